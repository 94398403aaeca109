//! The operator's tool: what this node can do, what was found on it, what is guarded.
//!
//! | module | idea |
//! |---|---|
//! | [`args`] | the command line as a whole; each verb defines its own part |
//! | [`check`] | `check`: the node looked at from here, with or without the agent |
//! | [`signals`] | `signals list`, `get`, `watch`, `summarize` |
//! | [`triage`] | `triage set` |
//! | [`containers`] | `containers list` |
//! | [`policy`] | `policy list`, `get`, `apply`, `delete`, `explain`, `report`, `suggest`, `validate`, `schema` |
//! | [`mode`] | `mode`: detect or enforce, at run time |
//! | [`contain`] | `contain`, `release` |
//! | [`fingerprint`] | `fingerprint`: programs' contents for a catalogue file |
//! | [`install`] | `install`, `uninstall` |
//! | [`completions`], [`man`] | what is generated from the command line's definition |
//! | [`client`], [`tls`] | the connection to the agent, and its errors |
//! | [`view`] | the agent's answers in the shape that `-o json` shows |
//! | [`output`], [`table`], [`escape`], [`time`] | showing them; nothing hostile reaches a terminal |
//! | [`files`] | files written in one step |
//! | [`exit`] | exit codes, and where errors are shown |
#![forbid(unsafe_code)]

mod args;
mod check;
mod client;
mod completions;
mod contain;
mod containers;
mod escape;
mod exit;
mod files;
mod fingerprint;
mod install;
mod man;
mod mode;
mod output;
mod policy;
mod signals;
mod table;
mod time;
mod tls;
mod triage;
mod view;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    run(Args::parse()).unwrap_or_else(|error| exit::of(&error))
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { global, command } = args;
    match command {
        Command::Completions(verb) => verb.run()?,
        Command::Man(verb) => verb.run()?,
        Command::Fingerprint(verb) => verb.run(&global)?,
        Command::Install(verb) => verb.run(&global)?,
        Command::Uninstall(verb) => verb.run(&global)?,
        Command::Policy(verb) => return verb.run(&global),
        Command::Mode(verb) => runtime()?.block_on(verb.run(&global))?,
        Command::Check(verb) => return runtime()?.block_on(verb.run(&global)),
        Command::Signals(verb) => runtime()?.block_on(verb.run(&global))?,
        Command::Containers(verb) => runtime()?.block_on(verb.run(&global))?,
        Command::Triage(verb) => runtime()?.block_on(verb.run(&global))?,
        Command::Contain(verb) => runtime()?.block_on(verb.run(&global))?,
        Command::Release(verb) => runtime()?.block_on(verb.run(&global))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")
}
