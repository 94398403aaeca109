//! The Portcullis node agent: loads and pins the kernel programs, fills their tables from the policy, turns their events into
//! signals, stores these and serves them over gRPC. Enforcement does not depend on it: what it pinned stays in force without it.
//!
//! | module | idea |
//! |---|---|
//! | [`config`], [`policies`], [`additions`], [`files`] | what people write, checked before anything is touched |
//! | [`enforcement`], [`changes`] | the policies in force, which container is under which, and when to read them again |
//! | [`app`] | composition, start and end |
//! | [`kernel`], [`publish`], [`lock`] | the node's state: tables, policy set, one agent at a time |
//! | [`events`], [`records`], [`containers`] | from the ring buffer and the shims' records to signals |
//! | [`signal`], [`tools`], [`text`], [`clock`] | how a signal is built |
//! | [`image`] | which image a container was made from |
//! | [`containment`] | stopping single containers, or parts of them, by hand |
//! | [`containerd`] | the calls of containerd's API that these two need |
//! | [`store`] | SQLite |
//! | [`api`] | gRPC |
//! | [`certificate`] | whom a certificate names |
//! | [`export`], [`metrics`] | signals and numbers for others: OCSF as JSON lines and over OTLP, Prometheus |
//! | [`sandbox`] | what the agent leaves itself once it has started |
//! | [`counters`] | everything that was dropped or refused |
#![forbid(unsafe_code)]

mod additions;
mod api;
mod app;
mod certificate;
mod changes;
mod clock;
mod config;
mod containerd;
mod containers;
mod containment;
mod count;
mod counters;
mod enforcement;
mod events;
mod export;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod image;
mod kernel;
mod lock;
mod logging;
mod metrics;
mod network;
mod notify;
mod policies;
mod publish;
mod records;
mod rules;
mod sandbox;
mod signal;
mod store;
#[cfg(any(test, fuzzing))]
mod testing;
mod text;
mod tools;
mod triage;

use std::{mem, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use portcullis_bpf::heap;
use tokio::{
    signal::unix::{SignalKind, signal as unix_signal},
    time::{self, Instant},
};

use crate::{
    app::{App, Loaded},
    config::Config,
};

/// Until what starting has set going is done.
const SETTLE: Duration = Duration::from_secs(2);
/// Each time costs some hundred page faults.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);

/// Portcullis node agent.
#[derive(Debug, Parser)]
#[command(name = "portcullisd", version)]
struct Arguments {
    /// Configuration file [default: /etc/portcullis/portcullis.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check configuration, catalogue and policy, and exit
    #[arg(long)]
    check_config: bool,
}

/// The program.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullisd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    let format = config.log.format;
    let prepared = app::prepare(config)?;
    if arguments.check_config {
        return Ok(());
    }
    logging::init(format);
    if !heap::give_back() {
        tracing::warn!("the C library does not give memory back; the agent may keep some tens of megabytes more");
    }
    let loaded = prepared.load()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("portcullisd")
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(serve(loaded))
}

/// Gives back what is not needed, once what starting has set going is done as well, and now and then.
async fn trim() {
    let mut turns = time::interval_at(Instant::now() + SETTLE, TRIM_INTERVAL);
    let mut is_told = false;
    loop {
        turns.tick().await;
        if let Err(error) = heap::trim()
            && !mem::replace(&mut is_told, true)
        {
            tracing::warn!(%error, "what is not needed stays in memory: some megabytes more; said once");
        }
    }
}

async fn serve(loaded: Loaded) -> anyhow::Result<()> {
    let mut terminate = unix_signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = unix_signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let mut hangup = unix_signal(SignalKind::hangup()).context("catching SIGHUP")?;
    let mut app = App::start(loaded).await?;
    notify::state("READY=1");
    tokio::spawn(trim());
    let outcome = loop {
        tokio::select! {
            error = app.failed() => break Err(error),
            _ = hangup.recv() => app.reload(),
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
        }
    };
    notify::state("STOPPING=1");
    tracing::info!("stopping");
    app.stop().await;
    outcome
}
