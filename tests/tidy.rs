//! The repository keeps its own rules: who may import whom, and what must be written down.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules and their ranks; imports go to a lower rank, or stay inside one module.
const RANKS: &[(&str, u32)] = &[
    ("rollout", 0),
    ("event", 2),
    ("error", 5),
    ("config", 5),
    ("protocol", 5),
    ("sys", 10),
    ("drain", 10),
    ("health", 10),
    ("observe", 11),
    ("channel", 20),
    ("listen", 20),
    ("pid_file", 20),
    ("schema", 20),
    ("state", 20),
    ("systemd", 20),
    ("control", 30),
    ("check", 30),
    ("director", 30),
    ("inject", 35),
    ("not_injected", 35),
    ("launch", 30),
    ("preview", 30),
    ("verify", 30),
    ("trigger", 40),
    ("driver", 50),
    ("generation", 60),
    ("pool", 60),
    ("http", 70),
];

/// What the deciding modules must not know (time comes as an argument, descriptors as numbers).
const EFFECTS: &[&str] = &[
    "std::net",
    "std::os",
    "std::fs",
    "std::env",
    "std::process",
    "std::io",
    "std::thread",
    "tokio",
    "tracing",
    "Instant::now",
    "rand",
];

#[test]
fn imports_go_to_a_lower_rank() {
    for (path, text) in sources() {
        let module = module_of(&path);
        // The program's `crate` is its own, and of the library it sees what every user does.
        if module == "lib" || module == "bin" {
            continue;
        }
        for imported in imports(&text) {
            let allowed = imported == module || rank(imported) < rank(&module);
            assert!(
                allowed,
                "{}: {module} imports {imported}, which is not below it",
                path.display()
            );
        }
    }
}

#[test]
fn every_module_has_a_rank() {
    for (path, _) in sources() {
        let module = module_of(&path);
        assert!(
            module == "lib" || module == "bin" || RANKS.iter().any(|(name, _)| *name == module),
            "{module} has no rank"
        );
    }
}

#[test]
fn the_machines_know_no_effects() {
    for (path, text) in sources() {
        let module = module_of(&path);
        let is_within = |directory| path.parent().is_some_and(|it| it.ends_with(directory));
        let is_test = path.ends_with("model.rs") || path.ends_with("tests.rs");
        let decides = ["protocol", "rollout"].contains(&&*module)
            || path.ends_with("pool/controller.rs")
            || is_within("pool/controller")
            || path.ends_with("pool/plan.rs");
        let decides = decides && !is_test;
        for effect in EFFECTS.iter().filter(|_| decides) {
            let code = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap_or_default();
            let used = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            for line in used {
                assert!(!line.contains(effect), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn operators_are_told_what_each_word_means() {
    let operations = read(&root().join("docs/OPERATIONS.md"));
    for (file, listed) in [
        ("src/event.rs", "pub enum Phase {"),
        ("src/event.rs", "pub enum Event {"),
        ("src/error.rs", "pub enum ErrorKind {"),
    ] {
        for word in variants(&read(&root().join(file)), listed) {
            let is_told = [&word, &word.to_lowercase()]
                .iter()
                .any(|word| operations.contains(&format!("`{word}`")));
            assert!(is_told, "{file}: {word}");
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_only() {
    for (path, text) in sources() {
        let lifts = text.lines().any(|line| {
            line.trim_start().starts_with("unsafe_code,") || line.contains("(unsafe_code")
        });
        assert!(
            !lifts || module_of(&path) == "sys",
            "{} lifts the ban on unsafe code",
            path.display()
        );
    }
}

#[test]
fn the_spawn_path_never_forks() {
    // The program `handover` becomes another program, and starts none.
    let shipped = sources()
        .into_iter()
        .filter(|(path, _)| !path.ends_with("testing.rs") && module_of(path) != "bin");
    for (path, text) in shipped {
        let in_tests = text.find("#[cfg(test)]").unwrap_or(text.len());
        // Whose a connection is, asked without an argument, starts no process.
        let code = text[..in_tests].replace(".uid()", "");
        for forking in [
            "pre_exec",
            ".uid(",
            ".gid(",
            "libc::fork",
            "std::process::Command",
        ] {
            assert!(!code.contains(forking), "{}: {forking}", path.display());
        }
    }
}

#[test]
fn the_changelog_has_this_version() {
    let changelog = read(&root().join("CHANGELOG.md"));
    assert!(changelog.contains(&format!("## {}", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = read(&root().join("Cargo.toml"));
    let section = manifest
        .split("[dependencies]")
        .nth(1)
        .and_then(|rest| rest.split("\n[").next());
    let mut reason = false;
    for line in section.unwrap_or_default().lines() {
        match line {
            "" => reason = false,
            line if line.starts_with('#') => reason = true,
            line => assert!(reason, "{line} has no reason"),
        }
    }
}

/// The names in an enum, given how it begins.
fn variants(text: &str, begin: &str) -> Vec<String> {
    let (_, rest) = text
        .split_once(begin)
        .unwrap_or_else(|| panic!("no {begin}"));
    let body = rest.lines().take_while(|line| *line != "}");
    let names = body.filter_map(|line| line.strip_prefix("    "));
    let names = names.filter(|name| name.starts_with(|letter: char| letter.is_ascii_uppercase()));
    let names: Vec<_> = names
        .map(|name| name.trim_end_matches([',', ' ', '{']).to_owned())
        .collect();
    assert!(!names.is_empty(), "nothing in {begin}");
    names
}

fn rank(module: &str) -> u32 {
    let found = RANKS.iter().find(|(name, _)| *name == module);
    found.unwrap_or_else(|| panic!("{module} has no rank")).1
}

/// First segments of every `crate::` path in the code, tests included.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .filter_map(|rest| {
            let end = rest
                .find(|letter: char| !letter.is_ascii_lowercase() && letter != '_')
                .unwrap_or(rest.len());
            (end > 0).then(|| &rest[..end])
        })
}

fn module_of(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).unwrap_or(path);
    let first = inner
        .components()
        .next()
        .map(|part| part.as_os_str().to_string_lossy().into_owned());
    first.unwrap_or_default().trim_end_matches(".rs").to_owned()
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    collect(&root().join("src"), &mut found);
    assert!(
        found.len() > 20,
        "the sources are not where this test looks"
    );
    found
        .into_iter()
        .map(|path| (path.clone(), read(&path)))
        .collect()
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.extension() {
            None => collect(&path, found),
            Some(extension) if extension == "rs" => found.push(path),
            Some(_) => {}
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
