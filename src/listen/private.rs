//! Listening Unix sockets that are this process's own: for its user alone, offered to nobody, and gone with it.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::options::ListenOptions;
use super::path::{self, Inode};

/// The path of one. It is unlinked when this is dropped, if it still leads there.
#[derive(Debug)]
pub(crate) struct Private {
    path: PathBuf,
    inode: Inode,
}

impl Private {
    /// Binds it with mode 0600, in the place of one that nobody listens on any more.
    pub(crate) async fn bind(path: &Path) -> io::Result<(Self, UnixListener)> {
        let address = std::os::unix::net::SocketAddr::from_pathname(path)?;
        let options = ListenOptions::new().mode(0o600);
        let (socket, inode) = path::bind(&address, &options).await?;
        let inode = inode.ok_or(io::ErrorKind::InvalidInput)?;
        let path = path.to_owned();
        Ok((Self { path, inode }, socket.into()))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Err(error) = path::try_unlink(&self.path, self.inode) {
            tracing::debug!(path = %self.path.display(), %error, "a private socket's path stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn it_is_for_its_user_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private");
        let (private, _listener) = Private::bind(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(private);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_path_that_is_somebody_elses_by_now_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private");
        let (private, _listener) = Private::bind(&path).await.unwrap();
        let others = directory.path().join("others");
        let (_other, _listener) = Private::bind(&others).await.unwrap();
        fs::rename(others, &path).unwrap();
        drop(private);
        assert!(path.exists());
    }
}
