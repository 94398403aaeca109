//! The directory of container records.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
};

use anyhow::{Context, Result};
use portcullis_policy::record::{self, ContainerRecord, Counts};

use crate::state;

/// With more records than this nobody collects them: then only those of ended containers are kept in which something was executed that is
/// to be told, and of these what tells whose they are.
const KEPT: usize = 4096;

/// At most so many, of some 1 kB each.
const KEPT_TO_TELL: usize = 16_384;

/// The records.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// The records in this directory, which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Writes a record, replacing one of the same name.
    pub fn write(&self, record: &ContainerRecord) -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .with_context(|| format!("creating {}", self.directory.display()))?;
        let name = record::file_name(record.cgroup_id, &record.containerd_namespace, &record.container_id);
        let bytes = serde_json::to_vec(record).context("encoding the container's record")?;
        state::replace(&self.directory.join(name), &bytes)
    }

    fn read(&self, name: &str) -> Result<Option<ContainerRecord>> {
        let path = self.directory.join(name);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is not valid", path.display()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        let doing = || format!("reading {}", self.directory.display());
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(doing)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.with_context(doing)?.file_name();
            if let Ok(name) = name.into_string()
                && !name.starts_with('.')
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The records of a container that have not ended.
    pub fn find(&self, namespace: &str, id: &str) -> Result<Vec<ContainerRecord>> {
        let mut found = Vec::new();
        for name in self.names()? {
            // The agent may remove a record at any time, and a broken one is no reason to leave others as they are.
            if let Ok(Some(record)) = self.read(&name)
                && record.container_id == id
                && record.containerd_namespace == namespace
                && record.ended_ns.is_none()
            {
                found.push(record);
            }
        }
        Ok(found)
    }

    /// Marks a record as ended, with what was counted for its container; removes it where records pile up. What is told nowhere
    /// by that.
    pub fn end(&self, name: &str, ended_ns: u64, counts: Option<Counts>) -> Result<Option<Counts>> {
        let Some(mut record) = self.read(name)? else { return Ok(None) };
        let uncollected = self.names()?.len();
        if uncollected > KEPT {
            let counts = record.counts.or(counts).unwrap_or_default();
            let is_to_tell = counts.matched > 0;
            if !is_to_tell || uncollected > KEPT_TO_TELL {
                self.remove(name)?;
                return Ok(is_to_tell.then_some(counts));
            }
            record.annotations.retain(|key, _| key.starts_with("io.kubernetes.cri."));
        }
        if record.ended_ns.is_none() {
            (record.ended_ns, record.counts) = (Some(ended_ns), counts);
            self.write(&record)?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use portcullis_policy::{policyset::Mode, record::Guard};

    use super::*;

    fn record(cgroup_id: u64, namespace: &str, id: &str) -> ContainerRecord {
        ContainerRecord {
            format: record::FORMAT,
            cgroup_id,
            cgroup_path: PathBuf::new(),
            container_id: id.into(),
            containerd_namespace: namespace.into(),
            containerd_address: String::new(),
            pid: 1,
            bundle: PathBuf::new(),
            policy_id: 1,
            policy: "default".into(),
            mode: Mode::Detect,
            mode_reason: "policy".into(),
            policy_reason: String::new(),
            backend: None,
            pins: PathBuf::new(),
            guard: Guard::Guarded,
            contents_unknown: None,
            annotations: BTreeMap::new(),
            created_ns: 1,
            ended_ns: None,
            counts: None,
        }
    }

    fn records() -> (tempfile::TempDir, Records) {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path().join("containers"));
        (directory, records)
    }

    #[test]
    fn finds_by_namespace_and_id_what_has_not_ended() {
        let (_directory, records) = records();
        assert!(records.find("default", "c1").unwrap().is_empty());
        for record in [record(1, "default", "c1"), record(2, "default", "c2"), record(3, "k8s.io", "c1")] {
            records.write(&record).unwrap();
        }
        records.write(&record(0, "default", "c1")).unwrap();
        fs::write(records.directory.join("9"), "broken").unwrap();
        fs::write(records.directory.join(".5.77"), "half").unwrap();
        let mut found: Vec<u64> = records.find("default", "c1").unwrap().iter().map(|r| r.cgroup_id).collect();
        found.sort_unstable();
        assert_eq!(found, [0, 1]);
        records.end("1", 5, None).unwrap();
        records.end("x-default-c1", 5, None).unwrap();
        assert!(records.find("default", "c1").unwrap().is_empty());
        assert_eq!(records.read("1").unwrap().unwrap().ended_ns, Some(5));
    }

    #[test]
    fn the_first_end_counts_and_a_collected_record_is_no_error() {
        let (_directory, records) = records();
        records.write(&record(1, "default", "c1")).unwrap();
        let counts = Some(Counts { matched: 3, blocked: 2, killed: 1 });
        records.end("1", 5, counts).unwrap();
        records.end("1", 6, None).unwrap();
        let record = records.read("1").unwrap().unwrap();
        assert_eq!((record.ended_ns, record.counts), (Some(5), counts));
        records.end("2", 5, None).unwrap();
    }

    #[test]
    fn records_that_nobody_collects_are_bounded() {
        let (_directory, records) = records();
        let write = |cgroup_id| {
            let mut record = record(cgroup_id, "default", "c1");
            record.annotations = [("io.kubernetes.cri.sandbox-name", "pod"), ("other", "x")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
            records.write(&record).unwrap();
        };
        let pile_up = |numbers: std::ops::Range<usize>| {
            for n in numbers {
                fs::write(records.directory.join(format!("x-{n}")), "").unwrap();
            }
        };
        let counts = Some(Counts { matched: 3, blocked: 2, killed: 1 });
        write(1);
        write(2);
        pile_up(0..KEPT);
        assert_eq!(records.end("1", 5, Some(Counts::default())).unwrap(), None);
        assert_eq!(records.read("1").unwrap(), None);
        assert_eq!(records.end("2", 5, counts).unwrap(), None);
        let kept = records.read("2").unwrap().unwrap();
        assert_eq!((kept.ended_ns, kept.counts), (Some(5), counts));
        let keys: Vec<_> = kept.annotations.into_keys().collect();
        assert_eq!(keys, ["io.kubernetes.cri.sandbox-name"]);
        write(3);
        pile_up(KEPT..KEPT_TO_TELL);
        assert_eq!(records.end("3", 5, counts).unwrap(), counts);
        assert_eq!(records.read("3").unwrap(), None);
    }
}
