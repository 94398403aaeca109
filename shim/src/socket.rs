//! Our own unix socket: its path, binding it, and telling a live one from a leftover.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Where containerd's shims have their sockets unless told otherwise. The path must stay short: a unix address has
/// 108 bytes.
const DEFAULT_DIRECTORY: &str = "/run/containerd/s";

const SCHEME: &str = "unix://";

/// Sets our path apart from the inner shim's: both are derived from the same three words, and the inner one is left
/// as it is.
const SALT: &str = "portcullis";

/// The socket of the shim that serves `group`.
pub fn path(directory: Option<&Path>, containerd_address: &str, namespace: &str, group: &str) -> PathBuf {
    let mut hash = Sha256::new();
    for part in [SALT, containerd_address, namespace, group] {
        hash.update(part);
        hash.update([0]);
    }
    let name = format!("{:x}", hash.finalize());
    directory.unwrap_or(Path::new(DEFAULT_DIRECTORY)).join(name)
}

/// How long a socket may outlive whoever listened on it.
const RELEASE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// The address of a socket's path, as containerd wants it.
pub fn address(path: &Path) -> String {
    format!("{SCHEME}{}", path.display())
}

/// The path in an address.
pub fn path_of(address: &str) -> Result<&Path> {
    let path = address.strip_prefix(SCHEME).with_context(|| format!("{address:?} is not a unix socket's address"))?;
    Ok(Path::new(path))
}

/// What is at a socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Somebody listens.
    Live,
    /// The socket is there, its process is not.
    Stale,
    /// Nothing is there.
    Absent,
}

/// Finds out by connecting.
pub fn probe(path: &Path) -> Result<State> {
    match UnixStream::connect(path) {
        Ok(_) => Ok(State::Live),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(State::Stale),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::Absent),
        Err(error) => Err(error).with_context(|| format!("connecting to {}", path.display())),
    }
}

/// Removes a socket that nobody listens on.
pub fn remove_stale(path: &Path) -> Result<()> {
    if probe(path)? != State::Stale {
        return Ok(());
    }
    match fs::remove_file(path) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("removing the stale socket {}", path.display())),
    }
}

/// Removes the socket of one that has ended. A child that it had forked when it was killed holds it until that executes something.
pub fn remove_of_ended(path: &Path) -> Result<()> {
    let begun = Instant::now();
    while probe(path)? == State::Live && begun.elapsed() < RELEASE {
        thread::sleep(PAUSE);
    }
    remove_stale(path)
}

/// Binds the socket; `None` when another process serves it.
pub fn bind(path: &Path) -> Result<Option<UnixListener>> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    let doing = || format!("binding {}", path.display());
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if probe(path)? == State::Live {
                return Ok(None);
            }
            remove_stale(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
    .with_context(doing)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(doing)?;
    Ok(Some(listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_depends_on_all_that_tells_groups_apart() {
        let base = path(None, "/run/c.sock", "k8s.io", "g");
        assert_eq!(base, path(None, "/run/c.sock", "k8s.io", "g"));
        assert_ne!(base, path(None, "/run/d.sock", "k8s.io", "g"));
        assert_ne!(base, path(None, "/run/c.sock", "default", "g"));
        assert_ne!(base, path(None, "/run/c.sock", "k8s.io", "h"));
        // Words must not run into each other.
        assert_ne!(path(None, "a", "bc", "d"), path(None, "a", "b", "cd"));
    }

    #[test]
    fn path_fits_an_address_and_is_not_the_stock_one() {
        let ours = path(None, "/run/containerd/containerd.sock", "default", "c1");
        assert!(ours.as_os_str().len() < 108);
        assert_eq!(ours.parent(), Some(Path::new("/run/containerd/s")));
        let stock = format!("{:x}", Sha256::digest("/run/containerd/containerd.sock/default/c1"));
        assert_ne!(ours.file_name().unwrap().to_str().unwrap(), stock);
        assert_eq!(path(Some(Path::new("/s")), "a", "b", "c").parent(), Some(Path::new("/s")));
    }

    #[test]
    fn addresses_round_trip() {
        assert_eq!(path_of(&address(Path::new("/a/b"))).unwrap(), Path::new("/a/b"));
        assert!(path_of("vsock://1:2").is_err());
    }

    #[test]
    fn stale_sockets_are_replaced_and_live_ones_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s/socket");
        assert!(matches!(probe(&path), Ok(State::Absent)));
        let first = bind(&path).unwrap().unwrap();
        assert!(bind(&path).unwrap().is_none());
        remove_stale(&path).unwrap();
        assert!(path.exists(), "a live socket was removed");
        drop(first);
        assert!(matches!(probe(&path), Ok(State::Stale)));
        let again = bind(&path).unwrap().unwrap();
        let held = thread::spawn(move || {
            thread::sleep(10 * PAUSE);
            drop(again);
        });
        remove_of_ended(&path).unwrap();
        held.join().unwrap();
        assert!(!path.exists());
    }
}
