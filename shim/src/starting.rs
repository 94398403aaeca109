//! Pairs of shims whose container containerd has not seen created yet. If ours is killed by then, containerd may run no `delete`, or only
//! after it has removed the bundle, which tells of the inner one. So each new pair is noted in the run directory until it is asked to
//! start a container, and whoever starts a pair later ends what was abandoned.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};

use crate::{
    socket,
    state::{self, Shims},
};

/// A container is created some tenths of a second after `start`; many may be starting at once, and none is to be asked by all others.
const TAKEN_OVER: Duration = Duration::from_secs(10);

/// The notes: a file each, named as the pair's socket is.
#[derive(Debug, Clone)]
pub struct Starting(PathBuf);

impl Starting {
    /// The notes in this directory, which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn path(&self, shims: &Shims) -> Result<PathBuf> {
        let name = shims.socket.file_name().with_context(|| format!("{} is no socket", shims.socket.display()))?;
        Ok(self.0.join(name))
    }

    /// Notes a pair.
    pub fn note(&self, shims: &Shims) -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .with_context(|| format!("creating {}", self.0.display()))?;
        state::save(&self.path(shims)?, shims)
    }

    /// It is known to containerd, or has gone.
    pub fn forget(&self, shims: &Shims) {
        // Left behind it is harmless: whoever starts next finds nothing to end.
        if let Ok(path) = self.path(shims) {
            let _ = fs::remove_file(path);
        }
    }

    /// Ends what is left of pairs whose outer shim has gone before containerd knew of it. What can't be ended is noted anew.
    pub fn end_abandoned(&self, end: impl Fn(&Shims) -> Result<()>) -> Result<()> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("reading {}", self.0.display()))?,
        };
        let mut result = Ok(());
        for entry in entries.flatten() {
            let path = entry.path();
            if is_old(&path)
                && let Err(error) = end_if_abandoned(&path, &end)
            {
                result = Err(error);
            }
        }
        result
    }
}

/// Also if the clock was set back meanwhile.
fn is_old(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|file| file.modified());
    modified.is_ok_and(|then| {
        SystemTime::now().duration_since(then).is_ok_and(|age| age > TAKEN_OVER) || then > SystemTime::now()
    })
}

fn end_if_abandoned(path: &Path, end: impl Fn(&Shims) -> Result<()>) -> Result<()> {
    // Another start may have been faster.
    let Some(shims) = state::load::<Shims>(path)? else { return Ok(()) };
    if socket::probe(&shims.socket)? == socket::State::Live {
        return Ok(());
    }
    // Should it fail: not again at each start.
    end(&shims).inspect_err(|_| drop(state::save(path, &shims)))?;
    fs::remove_file(path)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .with_context(|| format!("removing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs::File, os::unix::net::UnixListener};

    use super::*;

    fn shims(directory: &Path, name: &str) -> Shims {
        Shims {
            socket: directory.join(name),
            answer: Vec::new(),
            inner_program: "/i".into(),
            inner_address: "unix:///i".into(),
            task_version: 2,
            inner: None,
        }
    }

    fn grow_old(starting: &Starting, shims: &Shims) {
        let file = File::options().write(true).open(starting.path(shims).unwrap()).unwrap();
        file.set_modified(SystemTime::now() - 2 * TAKEN_OVER).unwrap();
    }

    #[test]
    fn only_the_abandoned_are_ended() {
        let directory = tempfile::tempdir().unwrap();
        let starting = Starting::new(directory.path().join("starting"));
        starting.end_abandoned(|_| unreachable!()).unwrap();
        let [young, served, abandoned] = ["young", "served", "abandoned"].map(|name| shims(directory.path(), name));
        for shims in [&young, &served, &abandoned] {
            starting.note(shims).unwrap();
        }
        let _listener = UnixListener::bind(&served.socket).unwrap();
        for shims in [&served, &abandoned] {
            grow_old(&starting, shims);
        }
        let ended = Cell::new(0);
        let end = |shims: &Shims| {
            assert_eq!(*shims, abandoned);
            ended.set(ended.get() + 1);
            anyhow::ensure!(ended.get() > 1, "not this time");
            Ok(())
        };
        assert!(starting.end_abandoned(end).is_err());
        starting.end_abandoned(end).unwrap();
        assert_eq!(ended.get(), 1, "not again so soon");
        grow_old(&starting, &abandoned);
        starting.end_abandoned(end).unwrap();
        starting.end_abandoned(end).unwrap();
        assert_eq!(ended.get(), 2);
        starting.forget(&served);
        starting.forget(&young);
        assert_eq!(fs::read_dir(&starting.0).unwrap().count(), 0);
    }
}
