//! How far an exporter has come, in a file of its own below the state directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::files;

/// Everything up to these was handed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Of signals.
    pub id: u64,
    /// Of changes of signals.
    pub revision: u64,
}

/// The file.
#[derive(Debug)]
pub struct CursorFile(PathBuf);

/// Why it can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// The system does not let us.
    #[error("using {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not one of ours.
    #[error("reading {}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl CursorFile {
    /// Of an exporter.
    pub fn new(state_dir: &Path, exporter: &str) -> Self {
        Self(state_dir.join(format!("export-{exporter}.json")))
    }

    fn io(&self) -> impl FnOnce(io::Error) -> CursorError {
        |source| CursorError::Io { path: self.0.clone(), source }
    }

    fn content(&self) -> impl FnOnce(serde_json::Error) -> CursorError {
        |source| CursorError::Content { path: self.0.clone(), source }
    }

    /// `None` when there is no file.
    pub fn read(&self) -> Result<Option<Cursor>, CursorError> {
        match fs::read(&self.0) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(self.content()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io()(error)),
        }
    }

    /// Replaces it.
    pub fn write(&self, cursor: Cursor) -> Result<(), CursorError> {
        let bytes = serde_json::to_vec(&cursor).map_err(self.content())?;
        files::replace(&self.0, 0o600, &bytes).map_err(self.io())
    }
}
