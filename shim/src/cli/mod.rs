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
use ttrpc::asynchronous::Client;

pub use self::{delete::delete, start::start};
use crate::{
    bootstrap::Input,
    inner::{self, Inner},
    proxy,
    rundir::RunDir,
    socket,
    state::Shims,
    task,
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
        // Ours died before it had asked. One that nobody can connect to has died as well.
        None if socket::probe(socket::path_of(&shims.inner_address)?)? != socket::State::Live => return Ok(()),
        None => proxy::event_loop()?.block_on(async {
            let client = Client::connect(&shims.inner_address).await.context("connecting to the inner shim")?;
            task::process(&client, shims.task_version).await
        })?,
    };
    process.kill().context("ending the inner shim")
}

/// `-info`: what the runtime can do is what the inner shim's runtime can do. Asked when containerd starts, perhaps
/// before the agent has published anything.
pub fn info(arguments: &[OsString]) -> Result<Vec<u8>> {
    let name = RunDir::from_env().policy_set().map_or_else(|_| inner::DEFAULT.into(), |set| set.inner_shim);
    let input = Input::parse(&input()?, "", "")?;
    let directory = env::current_dir().unwrap_or_else(|_| Path::new("/").to_owned());
    Inner::find(&name)?.run(arguments, &directory, &input.for_inner)
}
