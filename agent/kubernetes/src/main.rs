//! Policies from a Kubernetes API server: follows the cluster's PortcullisPolicies and keeps, for each that makes sense, a file
//! where the agent reads its policies. It is a program of its own, so that nodes without Kubernetes have nothing of it.
//!
//! | module | idea |
//! |---|---|
//! | [`object`] | what is kept of a PortcullisPolicy |
//! | [`document`] | an object as a policy file |
//! | [`directory`] | the files |
//! | [`plan`] | which files there are to be, and what to say of each object |
//! | [`status`] | saying it |
//! | [`watch`] | following the API server |
#![forbid(unsafe_code)]

#[cfg(test)]
mod definition;
mod directory;
mod document;
mod object;
mod plan;
mod status;
mod watch;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{directory::Directory, watch::Follower};

/// Keeps policy files in step with a cluster's PortcullisPolicies.
///
/// It finds the API server as kubectl does, or by its pod's service account. `RUST_LOG` chooses what is logged.
#[derive(Debug, Parser)]
#[command(name = "portcullis-policies", version)]
struct Arguments {
    /// The agent's policy_dir; the files are crd-NAME.yaml
    #[arg(long, value_name = "DIR", default_value = "/etc/portcullis/policies")]
    directory: PathBuf,
    /// The agent's more_policy_dirs: policies whose names are taken
    #[arg(long = "more", value_name = "DIR")]
    more: Vec<PathBuf>,
    /// The agent's catalog_dir
    #[arg(long, value_name = "DIR", default_value = "/etc/portcullis/catalog.d")]
    catalog_dir: PathBuf,
    /// A file that is there as long as the files are what the API server says
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Change the files to what the API server says now, and end; after so many seconds without an answer end as well,
    /// successfully, with the files as they were
    #[arg(long, value_name = "SECONDS")]
    once: Option<u64>,
}

fn main() -> ExitCode {
    // kube's own lines repeat with every attempt what is told here once.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=error,kube_runtime=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis-policies: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
        let client =
            Client::try_default().await.context("finding the API server: run this in a pod, or set KUBECONFIG")?;
        let Arguments { directory, more, catalog_dir, ready_file, once } = arguments;
        let directory = Directory { policies: directory, more, catalog: catalog_dir };
        let mut follower = Follower::new(Api::all_with(client, &object::resource()), directory, ready_file);
        let Some(seconds) = once else {
            let end = async {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            };
            return follower.follow(end).await;
        };
        let Ok(outcome) = tokio::time::timeout(Duration::from_secs(seconds), follower.once()).await else {
            tracing::warn!(seconds, "no answer from the API server: policies stay as they are");
            return Ok(());
        };
        outcome
    })
}
