//! `delete`: containerd's cleanup, run in the bundle when a shim has died, and by some versions after every normal end.
//!
//! It must find out by itself what is left: perhaps nothing, perhaps an inner shim whose outer one was killed,
//! perhaps a guard of a container that died with both.

use std::{env, ffi::OsString, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    args::Flags,
    guard::Warden,
    inner::{self, Inner},
    rundir::RunDir,
    state::{Deleted, Shims},
};

/// Runs the command and gives the answer to print. Every step is tried, whatever became of the others.
pub fn delete(flags: &Flags, arguments: &[OsString]) -> Result<Vec<u8>> {
    let bundle = if flags.bundle.is_empty() {
        env::current_dir().context("finding the bundle")?
    } else {
        PathBuf::from(&flags.bundle)
    };
    let run_dir = RunDir::from_env();
    let shims = Shims::load(&bundle).unwrap_or_default();

    let buried =
        shims.as_ref().map_or(Ok(()), |shims| super::bury(shims).inspect(|()| run_dir.starting().forget(shims)));
    let answer = match Deleted::load(&bundle) {
        Some(Deleted(answer)) => Ok(answer),
        None => inner(shims.as_ref(), &run_dir).and_then(|inner| inner.run(arguments, &bundle, &[])),
    };
    let warden = Warden::new(run_dir, &flags.namespace, &flags.address);
    let released = warden.release_leftovers(&flags.id, &bundle);

    for error in [buried, released].into_iter().filter_map(Result::err) {
        // containerd logs what comes here; the answer counts all the same.
        eprintln!("portcullis: deleting container {}: {error:#}", flags.id);
    }
    answer
}

/// The one that has served the bundle, or would have.
fn inner(shims: Option<&Shims>, run_dir: &RunDir) -> Result<Inner> {
    match shims {
        Some(shims) => Ok(Inner { program: shims.inner_program.clone() }),
        None => Inner::find(&run_dir.policy_set().map_or_else(|_| inner::DEFAULT.into(), |set| set.inner_shim)),
    }
}
