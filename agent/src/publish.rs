//! The policy set, for shims: replaced in one step, so that they read the old one or the new one.

use std::{
    io,
    path::{Path, PathBuf},
};

use portcullis_bpf::abi::ABI_VERSION;
use portcullis_policy::policyset::{self, PolicySet, PolicySetError};

use crate::files;

/// Why it could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It could not be encoded.
    #[error("encoding the policy set")]
    Encode(#[from] PolicySetError),
    /// It could not be written.
    #[error("writing {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes the policy set below the run directory, for shims of this version.
pub fn publish(run_dir: &Path, set: &PolicySet) -> Result<(), PublishError> {
    let bytes = set.to_bytes()?;
    let path = run_dir.join(policyset::file_name(ABI_VERSION));
    files::replace(&path, 0o644, &bytes).map_err(|source| PublishError::Write { path, source })
}
