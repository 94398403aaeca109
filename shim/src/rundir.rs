//! The directory that agent and shims share.

use std::{env, fs, io, path::PathBuf};

use anyhow::{Context, Result, bail};
use portcullis_policy::{
    policyset::{self, PolicySet},
    record,
};

const VARIABLE: &str = "PORTCULLIS_RUN_DIR";
const DEFAULT: &str = "/run/portcullis";

/// The run directory.
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The directory that the environment names; containerd hands its own environment on to shims.
    pub fn from_env() -> Self {
        Self(env::var_os(VARIABLE).filter(|value| !value.is_empty()).map_or_else(|| DEFAULT.into(), PathBuf::from))
    }

    /// The directory of the containers' records.
    pub fn records(&self) -> PathBuf {
        self.0.join(record::DIR_NAME)
    }

    /// The policy set in force.
    pub fn policy_set(&self) -> Result<PolicySet> {
        Ok(self.published()?.set)
    }

    /// The policy set in force, as it was published.
    pub fn published(&self) -> Result<Published> {
        self.parse(self.read()?)
    }

    fn file(&self) -> PathBuf {
        self.0.join(policyset::FILE_NAME)
    }

    fn read(&self) -> Result<Vec<u8>> {
        let path = self.file();
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} is missing: start portcullisd, which publishes the policy set, and order it before containerd",
                path.display()
            ),
            read => read.with_context(|| format!("reading the policy set {}", path.display())),
        }
    }

    fn parse(&self, bytes: Vec<u8>) -> Result<Published> {
        let set = PolicySet::parse(&bytes).with_context(|| self.file().display().to_string())?;
        Ok(Published { bytes, set })
    }
}

/// A policy set and the bytes that it was read from.
#[derive(Debug)]
pub struct Published {
    bytes: Vec<u8>,
    /// The policy set.
    pub set: PolicySet,
}

impl Published {
    /// Reads it anew. Whether it is another one now.
    pub fn refresh(&mut self, run_dir: &RunDir) -> Result<bool> {
        let bytes = run_dir.read()?;
        if bytes == self.bytes {
            return Ok(false);
        }
        *self = run_dir.parse(bytes)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use portcullis_policy::policyset::{Backend, Mode, OnAttachFailure, PolicyEntry};

    use super::*;

    #[test]
    fn another_policy_set_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = RunDir(directory.path().to_owned());
        let error = run_dir.published().unwrap_err().to_string();
        assert!(error.contains("start portcullisd"), "{error}");
        let mut set = PolicySet {
            format: policyset::FORMAT,
            backend: Backend::Lsm,
            pins: "/pins".into(),
            inner_shim: "inner".into(),
            catalog: 1,
            default_policy: PolicyEntry::new(1, "default", Mode::Detect, OnAttachFailure::Allow),
            policies: Vec::new(),
        };
        let publish = |set: &PolicySet| {
            fs::write(directory.path().join(policyset::FILE_NAME), set.to_bytes().unwrap()).unwrap();
        };
        publish(&set);
        let mut published = run_dir.published().unwrap();
        assert!(!published.refresh(&run_dir).unwrap());
        set.default_policy.id = 2;
        publish(&set);
        assert!(published.refresh(&run_dir).unwrap() && published.set == set);
        assert!(!published.refresh(&run_dir).unwrap());
    }
}
