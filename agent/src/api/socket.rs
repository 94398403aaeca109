//! The socket's place, mode and group.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// The socket below the run directory.
pub const FILE_NAME: &str = "portcullis.sock";

const GROUPS: &str = "/etc/group";

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The groups could not be read.
    #[error("reading {GROUPS}")]
    Groups(#[source] io::Error),
    /// There is no such group.
    #[error("socket.group: there is no group {group:?} in {GROUPS}")]
    NoGroup {
        /// What the configuration says.
        group: String,
    },
    /// The socket could not be made.
    #[error("creating the socket {}", path.display())]
    Create {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A group's number. Not through NSS: a service that starts before the network must not ask a directory server.
pub fn group_id(group: &str) -> Result<u32, SocketError> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let groups = fs::read_to_string(GROUPS).map_err(SocketError::Groups)?;
    find_group(&groups, group).ok_or_else(|| SocketError::NoGroup { group: group.to_owned() })
}

fn find_group(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// A socket that listens, with mode and group as they are to be, under a name that nobody knows.
#[derive(Debug)]
pub struct Socket {
    listener: std::os::unix::net::UnixListener,
    temporary: PathBuf,
    path: PathBuf,
}

impl Socket {
    /// Makes it, in the place of a stale one; the caller holds the lock that says it is stale.
    pub fn prepare(run_dir: &Path, group: Option<u32>) -> Result<Self, SocketError> {
        let path = run_dir.join(FILE_NAME);
        let temporary = run_dir.join(format!(".{FILE_NAME}"));
        let listen = || {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = std::os::unix::net::UnixListener::bind(&temporary)?;
            listener.set_nonblocking(true)?;
            std::os::unix::fs::chown(&temporary, Some(0), group).or_else(|error| {
                // Without a group, whoever runs the agent is the owner (in tests, not root).
                if group.is_none() { Ok(()) } else { Err(error) }
            })?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660))?;
            Ok(listener)
        };
        match listen() {
            Ok(listener) => Ok(Self { listener, temporary, path }),
            Err(source) => Err(SocketError::Create { path, source }),
        }
    }

    /// Gives it its name, in a runtime.
    pub fn publish(self) -> Result<(UnixListener, PathBuf), SocketError> {
        let Self { listener, temporary, path } = self;
        let published =
            UnixListener::from_std(listener).and_then(|listener| fs::rename(&temporary, &path).map(|()| listener));
        match published {
            Ok(listener) => Ok((listener, path)),
            Err(source) => Err(SocketError::Create { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_number() {
        let groups = "root:x:0:\nstaff:x:50:a,b\nbroken\n";
        assert_eq!(find_group(groups, "staff"), Some(50));
        assert_eq!(find_group(groups, "sta"), None);
        assert_eq!(find_group(groups, "broken"), None);
        assert_eq!(group_id("1234").unwrap(), 1234);
        assert!(group_id("no-such-group").unwrap_err().to_string().contains("no-such-group"));
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let run = tempfile::tempdir().unwrap();
        drop(Socket::prepare(run.path(), None).unwrap().publish().unwrap());
        let socket = Socket::prepare(run.path(), None).unwrap();
        let (_listener, path) = socket.publish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        tokio::net::UnixStream::connect(path).await.unwrap();
    }
}
