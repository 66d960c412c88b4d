//! Becoming another program in the same process (execve(2)).

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::unistd::execve;

use super::process::assignment;

/// Becomes this program, with this environment and no other. Returns only the reason if it did not.
///
/// Unlike std's exec it leaves blocked signals blocked: one that comes before the program has its handlers waits, and
/// does not end the process.
pub(crate) fn become_program(
    program: &Path,
    argv: &[OsString],
    env: &[(OsString, OsString)],
) -> io::Error {
    let strings = |texts: &mut dyn Iterator<Item = OsString>| {
        let strings = texts.map(|text| CString::new(text.into_vec()));
        strings.collect::<Result<Vec<_>, _>>()
    };
    let prepared = CString::new(program.as_os_str().as_bytes()).and_then(|program| {
        let argv = strings(&mut argv.iter().cloned())?;
        Ok((program, argv, strings(&mut env.iter().map(assignment))?))
    });
    match prepared.map(|(program, argv, env)| execve(&program, &argv, &env)) {
        Ok(Err(errno)) => errno.into(),
        Ok(Ok(never)) => match never {},
        Err(null) => null.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_leaves_everything_as_it_is() {
        let missing = Path::new("/no/such/program");
        let error = become_program(missing, &["program".into()], &[]);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = become_program(missing, &["a\0b".into()], &[]);
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
