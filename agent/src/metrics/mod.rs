//! Numbers for Prometheus: `/metrics` over HTTP, in the OpenMetrics text format.
//!
//! | module | idea |
//! |---|---|
//! | [`node`] | what is true at the moment of a scrape |
//! | [`tally`] | signals counted and timed as a watcher gets them |
//! | [`server`] | HTTP |

mod node;
mod server;
mod tally;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use prometheus_client::registry::Registry;
use rustix::io::Errno;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use self::{node::NodeMetrics, tally::Tally};
use crate::{api::Sources, export::Progress};

/// An exporter's name, and how far it has come.
pub type Exporters = Vec<(&'static str, watch::Receiver<Progress>)>;

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
#[error("listening on {listen} for metrics ([metrics] listen in the configuration){}", hint(source))]
pub struct ListenError {
    listen: SocketAddr,
    source: std::io::Error,
}

/// What the agent's own unit forbids looks like a kernel without IP.
fn hint(source: &std::io::Error) -> &'static str {
    if source.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) {
        "; under systemd the agent has no network without the drop-in portcullisd-network.conf"
    } else {
        ""
    }
}

/// Counts from now on and serves what it counts.
pub async fn start(
    listen: SocketAddr,
    sources: Sources,
    exporters: Exporters,
    database: PathBuf,
) -> Result<Vec<JoinHandle<()>>, ListenError> {
    let listener = TcpListener::bind(listen).await.map_err(|source| ListenError { listen, source })?;
    tracing::info!(%listen, "serving metrics");
    let mut registry = Registry::with_prefix("portcullis");
    let tally = Tally::new(sources.store.clone(), &mut registry);
    registry.register_collector(Box::new(NodeMetrics { sources, exporters, database }));
    Ok(vec![tokio::spawn(tally.run()), tokio::spawn(server::serve(listener, Arc::new(registry)))])
}

#[cfg(test)]
mod tests;
