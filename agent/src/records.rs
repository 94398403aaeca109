//! The directory of container records: written by shims, read and finally emptied by the agent.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use portcullis_policy::record::{ContainerRecord, DIR_NAME, FORMAT};

/// A record is about 1 kB; its annotations come from whoever wrote the pod.
const MAX_BYTES: u64 = 256 * 1024;

/// Names the file of a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordName {
    /// By cgroup id.
    Cgroup(u64),
    /// `x-…`: the cgroup could not be found out.
    Other(String),
}

impl RecordName {
    /// A file name of the directory, `None` when it is no record's (a temporary file, for example).
    pub fn parse(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        if name.starts_with("x-") {
            return Some(Self::Other(name.to_owned()));
        }
        let id: u64 = name.parse().ok()?;
        // Only the one canonical spelling.
        (id != 0 && id.to_string() == name).then_some(Self::Cgroup(id))
    }

    fn file_name(&self) -> String {
        match self {
            Self::Cgroup(id) => id.to_string(),
            Self::Other(name) => name.clone(),
        }
    }
}

/// A file that is no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could not be read.
    #[error("reading the record")]
    Read(#[source] io::Error),
    /// Larger than any record.
    #[error("the record is larger than {MAX_BYTES} bytes")]
    Size,
    /// Not JSON of the expected shape.
    #[error("the record is not valid")]
    Syntax(#[source] serde_json::Error),
    /// Of another version.
    #[error("the record has format {found}, this agent reads format {FORMAT}")]
    Format {
        /// The format found.
        found: u32,
    },
    /// It is another container's.
    #[error("the record in this file is that of cgroup {cgroup_id}")]
    Name {
        /// What it says.
        cgroup_id: u64,
    },
}

/// The directory.
#[derive(Debug, Clone)]
pub struct RecordDirectory {
    run_dir: PathBuf,
    path: PathBuf,
}

impl RecordDirectory {
    /// Creates it below the run directory unless it is there.
    pub fn create(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join(DIR_NAME);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self { run_dir: run_dir.to_owned(), path })
    }

    /// The directory that it is in, with all that agent and shims share.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The records in it.
    pub fn list(&self) -> io::Result<Vec<RecordName>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(RecordName::parse(entry?.file_name().as_bytes()));
        }
        Ok(names)
    }

    /// Reads one; `None` when there is none of that name.
    pub fn read(&self, name: &RecordName) -> Result<Option<ContainerRecord>, RecordError> {
        #[derive(serde::Deserialize)]
        struct Probe {
            format: u32,
        }
        let file = match File::open(self.path.join(name.file_name())) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RecordError::Read(error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(RecordError::Read)?;
        if u64::try_from(read).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(RecordError::Size);
        }
        let Probe { format: found } = serde_json::from_slice(&bytes).map_err(RecordError::Syntax)?;
        if found != FORMAT {
            return Err(RecordError::Format { found });
        }
        let record: ContainerRecord = serde_json::from_slice(&bytes).map_err(RecordError::Syntax)?;
        match name {
            RecordName::Cgroup(id) if *id != record.cgroup_id => Err(RecordError::Name { cgroup_id: record.cgroup_id }),
            _ => Ok(Some(record)),
        }
    }

    /// Removes one, unless a new container has taken its place.
    pub fn remove(&self, name: &RecordName, created_ns: u64) -> io::Result<()> {
        if self.read(name).is_ok_and(|record| record.is_some_and(|record| record.created_ns != created_ns)) {
            return Ok(());
        }
        match fs::remove_file(self.path.join(name.file_name())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn names_that_are_no_records_are_passed_over() {
        assert_eq!(RecordName::parse(b"42"), Some(RecordName::Cgroup(42)));
        assert_eq!(RecordName::parse(b"x-default-c1"), Some(RecordName::Other("x-default-c1".into())));
        for other in [&b"042"[..], b"0", b".42.tmp", b"42.tmp", b"", b"+4", b"\xff"] {
            assert_eq!(RecordName::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn reads_and_removes_what_the_shim_writes() {
        let run = tempfile::tempdir().unwrap();
        let directory = RecordDirectory::create(run.path()).unwrap();
        let name = RecordName::Cgroup(42);
        assert!(directory.read(&name).unwrap().is_none());
        let record = testing::record(42, "c1");
        testing::write_record(run.path(), &record);
        assert_eq!(directory.list().unwrap(), std::slice::from_ref(&name));
        assert_eq!(directory.read(&name).unwrap(), Some(record.clone()));
        directory.remove(&name, record.created_ns + 1).unwrap();
        assert!(directory.read(&name).unwrap().is_some(), "another container's record stays");
        directory.remove(&name, record.created_ns).unwrap();
        assert!(directory.read(&name).unwrap().is_none());
    }

    #[test]
    fn refuses_what_is_no_record() {
        let run = tempfile::tempdir().unwrap();
        let directory = RecordDirectory::create(run.path()).unwrap();
        let read = |content: &str| {
            fs::write(directory.path().join("7"), content).unwrap();
            directory.read(&RecordName::Cgroup(7)).unwrap_err()
        };
        assert!(matches!(read("{"), RecordError::Syntax(_)));
        assert!(matches!(read("{\"format\": 99}"), RecordError::Format { found: 99 }));
        assert!(matches!(read(&" ".repeat(300 * 1024)), RecordError::Size));
        let other = serde_json::to_string(&testing::record(8, "c")).unwrap();
        assert!(matches!(read(&other), RecordError::Name { cgroup_id: 8 }));
    }
}
