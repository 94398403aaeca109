//! The commands that containerd runs. Each prints its answer on standard output and ends.

mod delete;
mod start;

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal, Read},
    path::Path,
};

use anyhow::{Context, Result};

pub use self::{delete::delete, start::start};
use crate::{
    bootstrap::Input,
    inner::{self, Inner},
    process::Process,
    proxy,
    rundir::RunDir,
    socket,
    state::Shims,
};

/// More than containerd ever sends.
const INPUT_LIMIT: u64 = 10 << 20;

/// What containerd pipes in; nothing when run by hand.
fn input() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        stdin.lock().take(INPUT_LIMIT).read_to_end(&mut bytes).context("reading standard input")?;
    }
    Ok(bytes)
}

/// Ends the inner shim.
fn end_inner(shims: &Shims) -> Result<()> {
    let process = match shims.inner {
        Some(process) => process,
        // Ours died before it had asked. It may have died as well, or wait for a reader of its log, who has gone, and answer nobody.
        None => match Process::listening_on(socket::path_of(&shims.inner_address)?)? {
            Some(process) => process,
            None => return Ok(()),
        },
    };
    process.kill().context("ending the inner shim")
}

/// Ends an inner shim that lost its outer one, and removes the sockets of both. As long as the outer one answers it
/// has other containers, or is about to end by itself.
fn bury(shims: &Shims) -> Result<()> {
    if proxy::find(&shims.socket)?.is_some() {
        return Ok(());
    }
    // Where the outer one's socket is absent, it removed it because the inner one had gone.
    if socket::probe(&shims.socket)? == socket::State::Stale {
        end_inner(shims)?;
    }
    if let Ok(path) = socket::path_of(&shims.inner_address) {
        socket::remove_of_ended(path)?;
    }
    // Last, for it is what tells the next `delete` of the same pod that there is something to do.
    socket::remove_stale(&shims.socket)
}

/// `-info`: what the runtime can do is what the inner shim's runtime can do. Asked when containerd starts, perhaps
/// before the agent has published anything.
pub fn info(arguments: &[OsString]) -> Result<Vec<u8>> {
    let name = RunDir::from_env().policy_set().map_or_else(|_| inner::DEFAULT.into(), |set| set.inner_shim);
    let input = Input::parse(&input()?, "", "")?;
    let directory = env::current_dir().unwrap_or_else(|_| Path::new("/").to_owned());
    Inner::find(&name)?.run(arguments, &directory, &input.for_inner)
}
