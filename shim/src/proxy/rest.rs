//! Taking little memory while nothing happens, which is nearly always.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use portcullis_bpf::heap;
use tokio::time;

use crate::log::{self, Level};

/// A container that ends sooner needs the same code again.
const SETTLE: Duration = Duration::from_secs(1);

/// Whether what only starting needed is to be given back.
static DUE: AtomicBool = AtomicBool::new(false);

/// To be run when a container was started.
pub async fn after_start() {
    time::sleep(SETTLE).await;
    DUE.store(true, Ordering::Relaxed);
}

/// To be called when the thread is about to wait: as late as can be, as all code that it passes on its way there comes back into memory.
pub fn before_waiting() {
    if DUE.swap(false, Ordering::Relaxed)
        && let Err(error) = heap::trim()
    {
        // The working directory is the bundle of the first container.
        log::write(Path::new("."), Level::Warning, "", &format!("the shim takes more memory than it needs: {error}"));
    }
}
