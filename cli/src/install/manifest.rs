//! What an installation has put where, for its undoing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Below the root that was installed to.
pub const PATH: &str = "/etc/portcullis/install.json";

/// The file's content.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The version that installed.
    pub version: String,
    /// Every file that was written, as seen below the root.
    pub files: Vec<Installed>,
    /// containerd's main configuration, into which a line was put.
    pub imported_by: Option<PathBuf>,
    /// What that line imports.
    pub drop_in: Option<PathBuf>,
    /// Whether there was a list of imports before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub had_imports: bool,
}

/// One file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Installed {
    /// Where.
    pub path: PathBuf,
    /// Of what was written, in hexadecimal.
    pub sha256: String,
    /// The operator's to edit: removed only if it is as it was written.
    pub editable: bool,
}

impl Manifest {
    /// Whether these are the bytes that were written there.
    pub fn has_written(&self, path: &Path, bytes: &[u8]) -> bool {
        self.files.iter().any(|installed| installed.path == path && installed.is(bytes))
    }
}

impl Installed {
    /// What was written there.
    pub fn new(path: &Path, bytes: &[u8], editable: bool) -> Self {
        Self { path: path.to_owned(), sha256: hash(bytes), editable }
    }

    /// Whether these are the bytes that were written.
    pub fn is(&self, bytes: &[u8]) -> bool {
        hash(bytes) == self.sha256
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
