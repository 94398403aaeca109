//! One agent a run directory: two would both read the ring buffer and each see half of it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

const FILE_NAME: &str = "portcullisd.lock";

/// Held as long as the process lives; the file stays.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the lock is not held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Someone else has it.
    #[error("another portcullisd is running on {} (it holds {FILE_NAME}); stop it first, or give this one another run_dir", run_dir.display())]
    Held {
        /// The run directory.
        run_dir: PathBuf,
    },
    /// The file could not be made or locked.
    #[error("locking {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Lock {
    /// Creates the run directory unless it is there, and takes its lock.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join(FILE_NAME);
        let fail = |source| LockError::Io { path: path.clone(), source };
        // Clients of the socket's group pass through it.
        fs::DirBuilder::new().recursive(true).mode(0o755).create(run_dir).map_err(fail)?;
        let file = File::options().create(true).append(true).open(&path).map_err(fail)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(LockError::Held { run_dir: run_dir.to_owned() }),
            Err(error) => Err(fail(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_holder() {
        let parent = tempfile::tempdir().unwrap();
        let run_dir = parent.path().join("run");
        let first = Lock::take(&run_dir).unwrap();
        assert!(matches!(Lock::take(&run_dir), Err(LockError::Held { .. })));
        drop(first);
        Lock::take(&run_dir).unwrap();
    }
}
