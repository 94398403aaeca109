//! The agent's API, as a client has it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use portcullis_proto::v1::{
    GetStatusRequest, GetStatusResponse, ListSignalsRequest, ListSignalsResponse, WatchSignalsRequest,
    node_service_client::NodeServiceClient, signal_service_client::SignalServiceClient,
};
use tokio::{
    net::UnixStream,
    runtime::{Builder, Runtime},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

/// After so long without a signal there are no more.
const SILENCE: Duration = Duration::from_secs(10);

async fn connect(socket: PathBuf) -> Result<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://portcullis.invalid").connect_with_connector(connector).await?)
}

/// A connection.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let channel = runtime.block_on(connect(socket.to_owned())).context("connecting to the agent")?;
        Ok(Self { runtime, channel })
    }

    pub fn status(&self) -> Result<GetStatusResponse> {
        let mut client = NodeServiceClient::new(self.channel.clone());
        Ok(self.runtime.block_on(client.get_status(GetStatusRequest::default()))?.into_inner())
    }

    /// What has been lost so far, by name.
    pub fn losses(&self) -> Result<BTreeMap<String, u64>> {
        Ok(self.status()?.losses.into_iter().filter(|(_, count)| *count > 0).collect())
    }

    /// And how long it took.
    pub fn list(&self, request: ListSignalsRequest) -> Result<(ListSignalsResponse, Duration)> {
        let mut client = SignalServiceClient::new(self.channel.clone());
        let begun = Instant::now();
        let response = self.runtime.block_on(client.list_signals(request))?;
        Ok((response.into_inner(), begun.elapsed()))
    }
}

/// A signal as a watcher gets it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub at: Instant,
    /// Since the event in the kernel.
    pub after: Duration,
}

/// Watches from now on, until there are so many signals or no more come.
pub fn watch(socket: &Path, count: usize) -> JoinHandle<Result<Vec<Seen>>> {
    let (ready, is_ready) = mpsc::channel();
    let socket = socket.to_owned();
    let watcher = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let channel = connect(socket).await?;
            let status = NodeServiceClient::new(channel.clone()).get_status(GetStatusRequest::default()).await?;
            let after_id = Some(status.into_inner().last_signal_id);
            let request = WatchSignalsRequest { after_id, ..WatchSignalsRequest::default() };
            let mut stream = SignalServiceClient::new(channel).watch_signals(request).await?.into_inner();
            ready.send(())?;
            let mut seen = Vec::with_capacity(count);
            while seen.len() < count {
                let Ok(response) = timeout(SILENCE, stream.message()).await else { break };
                let Some(signal) = response?.context("the agent has ended the stream")?.signal else { continue };
                let time = SystemTime::try_from(signal.time.context("no time")?)?;
                let after = SystemTime::now().duration_since(time).unwrap_or_default();
                seen.push(Seen { at: Instant::now(), after });
            }
            Ok(seen)
        })
    });
    // If it has failed, it says why when it is joined.
    let _ = is_ready.recv();
    watcher
}

pub fn join(watcher: JoinHandle<Result<Vec<Seen>>>) -> Result<Vec<Seen>> {
    watcher.join().ok().context("the watcher panicked")?
}
