//! The containerd runtime shim `io.containerd.portcullis.v1`: puts each container under guard before its first
//! instruction, and leaves all other work to the stock runc shim, to which it is a proxy.
//!
//! | module | idea |
//! |---|---|
//! | [`cli`] | the commands that containerd runs: `start`, `delete`, `-info`, `-v` |
//! | [`proxy`] | the resident part: forwards task calls, and hooks the few at which a container comes or goes |
//! | [`guard`] | choosing a container's policy, putting it under guard, learning its tools' contents, keeping its record |
//! | [`inner`] | the inner shim as a program |
//! | [`args`], [`bootstrap`], [`options`], [`task`] | what containerd and shims say to each other |
//! | [`socket`], [`process`], [`state`], [`starting`] | what has to be found again when a shim has died |
//! | [`spec`], [`rundir`], [`log`] | what is read of the OCI spec, the agent's directory, the log FIFO |
//!
//! `docs/shim.md` tells the whole story.
#![forbid(unsafe_code)]

mod args;
mod bootstrap;
mod cli;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod guard;
mod inner;
mod log;
mod options;
mod process;
mod proxy;
mod rundir;
mod socket;
mod spec;
mod starting;
mod state;
mod task;

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};

use self::{
    args::Flags,
    guard::lesson::{self, Lesson},
};

/// What an error on standard error begins with.
const PREFIX: &str = "portcullis: ";

fn run(arguments: &[OsString]) -> Result<()> {
    let flags = Flags::parse(arguments).context("reading the command line")?;
    if flags.version {
        return print(concat!(env!("CARGO_PKG_NAME"), ":\n  Version:  ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    }
    if flags.info {
        return print(&cli::info(arguments)?);
    }
    match flags.action.as_str() {
        "start" => print(&cli::start(&flags, arguments)?),
        "delete" => print(&cli::delete(&flags, arguments)?),
        "" => proxy::run(&flags),
        lesson::ACTION => Lesson::learn(&flags.argument),
        other => bail!("unknown command {other:?}: containerd runs start and delete"),
    }
}

/// Standard output is the answer to containerd and carries nothing else.
fn print(answer: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(answer).and_then(|()| stdout.flush()).context("answering containerd")
}

/// The program.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this to whoever asked for the container.
            let _ = writeln!(io::stderr(), "{PREFIX}{error:#}");
            ExitCode::FAILURE
        }
    }
}
