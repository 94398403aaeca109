//! Modes that an operator has set at run time. They survive the agent, in a file of its state directory.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use portcullis_policy::policyset::Mode;
use serde::{Deserialize, Serialize};

use crate::{counters::Counters, files, store::ContainerKey};

/// Version of the file's format.
const FORMAT: u32 = 1;
const FILE_NAME: &str = "overrides.json";

/// What is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Modes {
    /// Of policies, by name. One that is not in force keeps its mode for when it is again.
    pub policies: BTreeMap<String, Mode>,
    /// Of containers; gone with the container.
    pub containers: BTreeMap<ContainerKey, Mode>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format: u32,
    policies: BTreeMap<String, Mode>,
    containers: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    namespace: String,
    id: String,
    created_ns: u64,
    mode: Mode,
}

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("writing {}", path.display())]
pub struct SaveError {
    path: PathBuf,
    source: io::Error,
}

/// The modes and their file.
#[derive(Debug)]
pub struct Overrides {
    path: PathBuf,
    modes: Modes,
}

impl Overrides {
    /// Reads them from the state directory. A file that can't be used is moved aside: which mode was asked for is not known
    /// any more, and the policies' own hold.
    pub fn open(state_dir: &Path, counters: &Counters) -> Self {
        let path = state_dir.join(FILE_NAME);
        let modes = read(&path).unwrap_or_else(|error| {
            counters.overrides_lost.increment();
            let aside = path.with_extension("json.corrupt");
            tracing::error!(
                file = %path.display(), moved_to = %aside.display(), error = format!("{error:#}"),
                "the modes that operators have set can't be read: set them again"
            );
            if let Err(error) = fs::rename(&path, &aside) {
                tracing::error!(file = %path.display(), %error, "the file could not be moved aside");
            }
            Modes::default()
        });
        Self { path, modes }
    }

    /// What is set.
    pub fn modes(&self) -> &Modes {
        &self.modes
    }

    /// Sets other modes, in the file and here; if the file can't be written, in neither.
    pub fn set(&mut self, modes: Modes) -> Result<(), SaveError> {
        if modes == self.modes {
            return Ok(());
        }
        let containers = modes.containers.iter();
        let content = Content {
            format: FORMAT,
            policies: modes.policies.clone(),
            containers: containers
                .map(|(key, mode)| Entry {
                    namespace: key.namespace.clone(),
                    id: key.id.clone(),
                    created_ns: key.created_ns,
                    mode: *mode,
                })
                .collect(),
        };
        serde_json::to_vec_pretty(&content)
            .map_err(io::Error::other)
            .and_then(|bytes| files::replace(&self.path, 0o600, &bytes))
            .map_err(|source| SaveError { path: self.path.clone(), source })?;
        self.modes = modes;
        Ok(())
    }
}

fn read(path: &Path) -> anyhow::Result<Modes> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Modes::default()),
        Err(error) => return Err(error.into()),
    };
    let content: Content = serde_json::from_slice(&bytes)?;
    anyhow::ensure!(content.format == FORMAT, "it has format {}, this agent reads format {FORMAT}", content.format);
    let containers = content.containers.into_iter().map(|entry| {
        let Entry { namespace, id, created_ns, mode } = entry;
        (ContainerKey { namespace, id, created_ns }, mode)
    });
    Ok(Modes { policies: content.policies, containers: containers.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes() -> Modes {
        let key = ContainerKey { namespace: "default".into(), id: "c1".into(), created_ns: 7 };
        Modes { policies: [("web".into(), Mode::Enforce)].into(), containers: [(key, Mode::Detect)].into() }
    }

    #[test]
    fn they_survive() {
        let (directory, counters) = (tempfile::tempdir().unwrap(), Counters::default());
        let mut overrides = Overrides::open(directory.path(), &counters);
        assert_eq!(*overrides.modes(), Modes::default());
        overrides.set(modes()).unwrap();
        assert_eq!(*Overrides::open(directory.path(), &counters).modes(), modes());
        assert_eq!(counters.overrides_lost.get(), 0);
    }

    #[test]
    fn what_can_not_be_saved_is_not_set() {
        let directory = tempfile::tempdir().unwrap();
        let mut overrides = Overrides::open(&directory.path().join("missing"), &Counters::default());
        assert!(overrides.set(modes()).unwrap_err().to_string().contains("overrides.json"));
        assert_eq!(*overrides.modes(), Modes::default());
    }

    #[test]
    fn a_broken_file_is_moved_aside_and_counted() {
        for broken in ["{", r#"{"format": 2, "policies": {}, "containers": []}"#] {
            let (directory, counters) = (tempfile::tempdir().unwrap(), Counters::default());
            fs::write(directory.path().join(FILE_NAME), broken).unwrap();
            assert_eq!(*Overrides::open(directory.path(), &counters).modes(), Modes::default());
            assert_eq!(counters.overrides_lost.get(), 1);
            assert_eq!(fs::read_to_string(directory.path().join("overrides.json.corrupt")).unwrap(), broken);
        }
    }
}
