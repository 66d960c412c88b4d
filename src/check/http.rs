//! A check that is an HTTP request. It looks at the status and at nothing else, so that no HTTP library is needed.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::config::{CHECK_ANSWER, CHECK_RETRY, CHECK_TRIES};

/// One of a few tries has to be answered with a good status.
pub(super) async fn check(socket: PathBuf, path: &str) -> Result<(), String> {
    let mut reason = String::new();
    for attempt in 1..=CHECK_TRIES {
        if attempt > 1 {
            sleep(CHECK_RETRY).await;
        }
        reason = match timeout(CHECK_ANSWER, ask(&socket, path)).await {
            Ok(Ok(200..=299)) => return Ok(()),
            Ok(Ok(status)) => format!("it was answered with {status}"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it was not answered within {CHECK_ANSWER:?}"),
        };
    }
    Err(format!("{reason}, at the last of {CHECK_TRIES} tries"))
}

/// The final status of a GET.
async fn ask(socket: &Path, path: &str) -> io::Result<u16> {
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        let text = "the path begins with no slash, or has letters that a URL has not";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut stream = UnixStream::connect(socket).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: handover-check\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = BufReader::new(stream.take(HEAD_MAX));
    loop {
        let status = status_of(&line(&mut head).await?)?;
        // An interim answer is followed by another one (RFC 9110, section 15.2).
        if status >= 200 {
            return Ok(status);
        }
        while !line(&mut head).await?.is_empty() {}
    }
}

async fn line(head: &mut BufReader<tokio::io::Take<UnixStream>>) -> io::Result<String> {
    let mut line = Vec::new();
    head.read_until(b'\n', &mut line).await?;
    if line.pop() != Some(b'\n') {
        return Err(no_http("the connection ended too early"));
    }
    let line = String::from_utf8(line).map_err(|_| no_http("that is no text"))?;
    Ok(line.trim_end_matches('\r').to_owned())
}

fn status_of(line: &str) -> io::Result<u16> {
    let mut words = line.split(' ');
    let version = words.next().filter(|word| word.starts_with("HTTP/1."));
    let status = words.next().filter(|word| word.len() == 3);
    version
        .and(status)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| no_http("that is no status line of HTTP/1"))
}

fn no_http(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Bytes that may come before the final status line has ended.
const HEAD_MAX: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::UnixListener;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// The outcome of a check against a server that answers its clients with these in turn; how many came.
    async fn against(answers: &'static [&'static str]) -> (Result<(), String>, usize) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut came = 0;
        let serving = async {
            for answer in answers {
                let (stream, _) = listener.accept().await.unwrap();
                came += 1;
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).await.unwrap();
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            std::future::pending().await
        };
        let result = tokio::select! {
            result = check(path.clone(), "/readyz?full=1") => result,
            () = serving => unreachable!("it never ends"),
            () = sleep(DEADLINE) => panic!("no end after {DEADLINE:?}"),
        };
        (result, came)
    }

    #[tokio::test]
    async fn a_good_status_passes_also_behind_an_interim_one() {
        assert_eq!(against(&["HTTP/1.1 204 No Content\r\n"]).await, (Ok(()), 1));
        const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.0 200 OK\r\n";
        assert_eq!(against(&[HINTS]).await, (Ok(()), 1));
    }

    #[tokio::test]
    async fn one_good_answer_of_three_is_enough_and_none_is_not() {
        const BAD: &str = "HTTP/1.1 503 Not yet\r\n\r\n";
        assert_eq!(
            against(&[BAD, BAD, "HTTP/1.1 200 OK\r\n"]).await,
            (Ok(()), 3)
        );
        let (result, came) = against(&[BAD, BAD, BAD]).await;
        let reason = result.unwrap_err();
        assert_eq!(came, 3);
        assert_eq!(reason, "it was answered with 503, at the last of 3 tries");
    }

    #[tokio::test]
    async fn what_is_no_http_fails() {
        for odd in [
            "",
            "hello\r\n",
            "HTTP/1.1 abc\r\n",
            "HTTP/2 200\r\n",
            "HTTP/1.1 +20\r\n",
        ] {
            let answers: &'static [&'static str] = Box::leak(vec![odd; 3].into_boxed_slice());
            assert!(against(answers).await.0.is_err(), "{odd:?}");
        }
    }

    #[tokio::test]
    async fn a_path_that_would_be_more_than_a_path_is_refused() {
        let path = Path::new("/nonexistent");
        for odd in ["readyz", "", "/a b", "/a\r\nx: y", "/ü"] {
            let error = ask(path, odd).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{odd:?}");
        }
    }
}
