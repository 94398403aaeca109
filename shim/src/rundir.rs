//! The directory that agent and shims share.

use std::{env, ffi::OsStr, fs, io, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use portcullis_bpf::abi::ABI_VERSION;
use portcullis_policy::{
    policyset::{self, PolicySet},
    record,
};

use crate::starting::Starting;

const VARIABLE: &str = "PORTCULLIS_RUN_DIR";
const DEFAULT: &str = "/run/portcullis";
const STARTING: &str = "starting";

/// The run directory.
#[derive(Debug, Clone)]
pub struct RunDir(pub(crate) PathBuf);

impl RunDir {
    /// The directory that the environment names; containerd hands its own environment on to shims.
    pub fn from_env() -> Self {
        Self(env::var_os(VARIABLE).filter(|value| !value.is_empty()).map_or_else(|| DEFAULT.into(), PathBuf::from))
    }

    /// The directory of the containers' records.
    pub fn records(&self) -> PathBuf {
        self.0.join(record::DIR_NAME)
    }

    /// The pairs of shims that containerd does not know yet.
    pub fn starting(&self) -> Starting {
        Starting::new(self.0.join(STARTING))
    }

    /// The policy set in force.
    pub fn policy_set(&self) -> Result<PolicySet> {
        Ok(self.published()?.set)
    }

    /// The policy set in force, as it was published. Where there is none for shims of this version, another version's says what
    /// is to happen to a container that can't be guarded.
    pub fn published(&self) -> Result<Published> {
        let own = self.file(ABI_VERSION);
        if let Some(published) = Published::read(own.clone(), ABI_VERSION)? {
            return Ok(published);
        }
        for version in self.other_versions() {
            if let Some(published) = Published::read(self.file(version), version)? {
                return Ok(published);
            }
        }
        bail!(
            "{} is missing: start portcullisd, which publishes the policy set, and order it before containerd",
            own.display()
        )
    }

    fn file(&self, abi_version: u32) -> PathBuf {
        self.0.join(policyset::file_name(abi_version))
    }

    /// Newest first.
    fn other_versions(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let version = |name: &OsStr| name.to_str().and_then(policyset::abi_version);
        let mut versions: Vec<u32> = entries.filter_map(|entry| version(&entry.ok()?.file_name())).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions
    }
}

/// A policy set and the bytes that it was read from.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
    abi_version: u32,
    bytes: Vec<u8>,
    /// The policy set.
    pub set: PolicySet,
}

impl Published {
    /// `None` when there is no such file.
    fn read(path: PathBuf, abi_version: u32) -> Result<Option<Self>> {
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("reading the policy set {}", path.display()))?,
        };
        let set = PolicySet::parse(&bytes).with_context(|| path.display().to_string())?;
        Ok(Some(Self { path, abi_version, bytes, set }))
    }

    /// Whether containers can be guarded by it: the programs that it names are those that this shim knows how to attach.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.abi_version == ABI_VERSION,
            "the agent's programs are of ABI version {}, this shim's of {ABI_VERSION}: restart portcullisd, and install agent and shim of one version",
            self.abi_version
        );
        Ok(())
    }

    /// Reads it anew. Whether it is another one now.
    pub fn refresh(&mut self) -> Result<bool> {
        let missing = || format!("{} has been taken away", self.path.display());
        let new = Self::read(self.path.clone(), self.abi_version)?.with_context(missing)?;
        let changed = new.bytes != self.bytes;
        *self = new;
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use portcullis_policy::policyset::{Backend, Mode, OnAttachFailure, PolicyEntry};

    use super::*;

    fn set() -> PolicySet {
        PolicySet {
            format: policyset::FORMAT,
            backend: Backend::Lsm,
            pins: "/pins".into(),
            inner_shim: "inner".into(),
            catalog: 1,
            default_policy: PolicyEntry::new(1, "default", Mode::Detect, OnAttachFailure::Allow),
            policies: Vec::new(),
        }
    }

    #[test]
    fn another_policy_set_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = RunDir(directory.path().to_owned());
        let error = run_dir.published().unwrap_err().to_string();
        assert!(error.contains("start portcullisd"), "{error}");
        let mut set = set();
        let publish = |set: &PolicySet| {
            fs::write(run_dir.file(ABI_VERSION), set.to_bytes().unwrap()).unwrap();
        };
        publish(&set);
        let mut published = run_dir.published().unwrap();
        assert!(!published.refresh().unwrap());
        set.default_policy.id = 2;
        publish(&set);
        assert!(published.refresh().unwrap() && published.set == set);
        assert!(!published.refresh().unwrap());
        published.check().unwrap();
    }

    #[test]
    fn another_version_s_policy_set_is_read_but_guards_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = RunDir(directory.path().to_owned());
        let publish = |version: u32| {
            let set = PolicySet { pins: format!("/pins/v{version}").into(), ..set() };
            fs::write(run_dir.file(version), set.to_bytes().unwrap()).unwrap();
        };
        fs::write(directory.path().join("policyset.vX"), "no policy set").unwrap();
        publish(ABI_VERSION - 1);
        publish(ABI_VERSION + 1);
        let other = run_dir.published().unwrap();
        assert!(other.set.pins.ends_with(format!("v{}", ABI_VERSION + 1)));
        let error = other.check().unwrap_err().to_string();
        assert!(error.contains("restart portcullisd"), "{error}");
        publish(ABI_VERSION);
        let mut own = run_dir.published().unwrap();
        own.check().unwrap();
        assert!(own.set.pins.ends_with(format!("v{ABI_VERSION}")));
        fs::remove_file(run_dir.file(ABI_VERSION)).unwrap();
        assert!(own.refresh().is_err());
    }
}
