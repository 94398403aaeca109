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
        let path = self.0.join(policyset::FILE_NAME);
        match fs::read(&path) {
            Ok(bytes) => PolicySet::parse(&bytes).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} is missing: start portcullisd, which publishes the policy set, and order it before containerd",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("reading the policy set {}", path.display())),
        }
    }
}
