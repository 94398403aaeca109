//! What a bundle remembers of the shims that serve it: written by `start`, completed by the daemon, read by
//! `delete`, which has to know what is left when both shims have died.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{inner, process::Process};

/// The shims of one group of containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shims {
    /// Our socket.
    pub socket: PathBuf,
    /// The answer to `start`.
    pub answer: Vec<u8>,
    /// The inner shim's program.
    pub inner_program: PathBuf,
    /// Where the inner shim listens.
    pub inner_address: String,
    /// The version of the task API it speaks.
    pub task_version: u32,
    /// Its process; `None` until it was asked.
    pub inner: Option<Process>,
}

impl Shims {
    const FILE: &str = "shims.json";

    /// Writes the state into a bundle.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        save(&inner::directory(bundle).join(Self::FILE), self)
    }

    /// The state in a bundle, if `start` got so far.
    pub fn load(bundle: &Path) -> Result<Option<Self>> {
        load(&inner::directory(bundle).join(Self::FILE))
    }
}

/// What was put in place for a container in the kernel. Written before it is done: whoever cleans up after a shim
/// killed half-way finds it here, even if there is no record yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// The container's cgroup.
    pub cgroup_id: u64,
    /// The pins by which it was attached; the policy set may name others by now.
    pub pins: PathBuf,
}

impl Attached {
    const FILE: &str = "attached.json";

    /// Writes the state into a bundle.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        save(&inner::directory(bundle).join(Self::FILE), self)
    }

    /// The state in a bundle, if there is any.
    pub fn load(bundle: &Path) -> Result<Option<Self>> {
        load(&inner::directory(bundle).join(Self::FILE))
    }

    /// Removes it from a bundle.
    pub fn forget(bundle: &Path) {
        // Left behind it is harmless: releasing twice is no error.
        let _ = fs::remove_file(inner::directory(bundle).join(Self::FILE));
    }
}

/// What the inner shim has answered when it deleted the container. Nothing of it is left then to be deleted once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted(pub Vec<u8>);

impl Deleted {
    const FILE: &str = "deleted";

    /// Notes it in a bundle, which containerd may be removing already.
    pub fn note(&self, bundle: &Path) {
        // Without it `delete` does again what was done.
        let _ = replace(&inner::directory(bundle).join(Self::FILE), &self.0);
    }

    /// What is noted in a bundle.
    pub fn load(bundle: &Path) -> Option<Self> {
        fs::read(inner::directory(bundle).join(Self::FILE)).ok().map(Self)
    }
}

/// Replaces a file as a whole: a reader sees the old content or the new one.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} is no file", path.display());
    };
    // A leading dot keeps the agent away from it; the pid keeps two shims apart.
    let temporary = directory.join(format!(".{}.{}", name.to_string_lossy(), process::id()));
    let write = || -> io::Result<()> {
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?
            .write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    write()
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
        .with_context(doing)
}

/// Replaces a file by a value.
pub fn save<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    replace(path, &serde_json::to_vec(value).with_context(|| format!("encoding {}", path.display()))?)
}

/// The value in a file; `None` when there is no such file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is not valid", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_round_trips() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Shims::load(bundle.path()).unwrap(), None);
        inner::prepare(bundle.path()).unwrap();
        let shims = Shims {
            socket: "/s".into(),
            answer: b"unix:///s".to_vec(),
            inner_program: "/i".into(),
            inner_address: "unix:///i".into(),
            task_version: 2,
            inner: Some(Process { pid: 7, start_time: 8 }),
        };
        shims.save(bundle.path()).unwrap();
        assert_eq!(Shims::load(bundle.path()).unwrap(), Some(shims));
    }

    #[test]
    fn an_answer_is_found_again() {
        let bundle = tempfile::tempdir().unwrap();
        let answer = Deleted(vec![8, 7]);
        answer.note(bundle.path());
        assert_eq!(Deleted::load(bundle.path()), None, "there is no place for it");
        inner::prepare(bundle.path()).unwrap();
        answer.note(bundle.path());
        assert_eq!(Deleted::load(bundle.path()), Some(answer));
    }

    #[test]
    fn replacing_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&path, b"1").unwrap();
        replace(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        fs::create_dir(directory.path().join("directory")).unwrap();
        fs::write(directory.path().join("directory/x"), "").unwrap();
        assert!(replace(&directory.path().join("directory"), b"3").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
