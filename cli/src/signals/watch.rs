//! `signals watch`: stored signals after an id, then new ones as they come, across restarts of the agent.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use anyhow::Context;
use portcullis_proto::v1::{GetStatusRequest, WatchSignalsRequest, WatchSignalsResponse};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Request, Streaming};

use super::{filter::Filter, report, row};
use crate::{
    args::Global,
    client::{self, Agent, ClientError},
    escape,
    exit::note,
    output::{self, Format},
    table::Table,
    time::Time,
    view::{LeftOut, Signal, SignalUpdate, Triage},
};

/// Waits between attempts: the first, doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Follow signals as they come
///
/// A line that begins with a signal's ID and says how many times tells that it has been repeated; one that goes on with
/// "network" tells what its process has done last. When the agent restarts, this
/// reconnects and goes on after the last signal seen. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Begin with those stored after this id (0: all that are stored); without it, only new ones
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// At most so many a second; what is more is told by number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_per_second: Option<u32>,
    #[command(flatten)]
    filter: Filter,
}

impl Args {
    /// Follows until interrupted, or until nobody reads the output.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        tokio::select! {
            result = self.follow(global) => result,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted.context("waiting for SIGINT")?),
            _ = terminate.recv() => Ok(()),
        }
    }

    async fn follow(&self, global: &Global) -> anyhow::Result<()> {
        // An agent that is not there at all is worth an error; one that goes away is worth waiting for.
        let agent = global.agent().await?;
        let after = match self.after {
            Some(after) => after,
            // So there is a point to resume from, even if the agent restarts before the first signal.
            None => last_id(&agent).await?,
        };
        let filter = Some(self.filter.to_proto(&agent).await?);
        let mut request = WatchSignalsRequest {
            filter,
            after_id: Some(after),
            after_revision: None,
            max_per_second: self.max_per_second.unwrap_or_default(),
        };
        let mut stream = Stream::open(agent, &request).await?;
        let mut printer = Printer::new(global);
        let mut wait = FIRST_WAIT;
        loop {
            let cause = match stream.next().await {
                Ok(Some(WatchSignalsResponse { signal, update, gap, throttled })) => {
                    if let Some(gap) = gap {
                        printer.print_left_out("gap", gap.into())?;
                    }
                    if let Some(throttled) = throttled {
                        request.after_id = Some(throttled.last_id);
                        printer.print_left_out("throttled", throttled.into())?;
                    }
                    if let Some(signal) = signal {
                        request.after_id = Some(signal.id);
                        printer.print(&signal.into())?;
                    }
                    if let Some(update) = update {
                        request.after_revision = Some(update.revision);
                        printer.print_update(update.into())?;
                    }
                    // An agent that has sent something is well again; one that only accepts and hangs up is not.
                    wait = FIRST_WAIT;
                    continue;
                }
                Ok(None) => "portcullisd ended the stream".to_owned(),
                Err(error) if error.is_passing() => error.to_string(),
                Err(error) => return Err(error.into()),
            };
            note(&format!("{cause}; reconnecting"));
            stream = reopen(global, &request, &mut wait).await?;
            note(&format!("reconnected, going on after signal {}", request.after_id()));
        }
    }
}

async fn last_id(agent: &Agent) -> Result<u64, ClientError> {
    let status = agent.node().get_status(client::request(GetStatusRequest {})).await;
    Ok(status.map_err(|status| agent.error(&status))?.into_inner().last_signal_id)
}

async fn reopen(global: &Global, request: &WatchSignalsRequest, wait: &mut Duration) -> Result<Stream, ClientError> {
    loop {
        tokio::time::sleep(*wait).await;
        *wait = (*wait * 2).min(LONGEST_WAIT);
        let attempt = match global.agent().await {
            Ok(agent) => Stream::open(agent, request).await,
            Err(error) => Err(error),
        };
        match attempt {
            Err(error) if error.is_passing() => {}
            outcome => return outcome,
        }
    }
}

struct Stream {
    agent: Agent,
    inner: Streaming<WatchSignalsResponse>,
}

impl Stream {
    async fn open(agent: Agent, request: &WatchSignalsRequest) -> Result<Self, ClientError> {
        // No deadline: the stream has no end.
        let response = agent.signals().watch_signals(Request::new(request.clone())).await;
        Ok(Self { inner: response.map_err(|status| agent.error(&status))?.into_inner(), agent })
    }

    async fn next(&mut self) -> Result<Option<WatchSignalsResponse>, ClientError> {
        self.inner.message().await.map_err(|status| self.agent.error(&status))
    }
}

/// What tells it from a signal.
#[derive(Serialize)]
struct Update {
    update: SignalUpdate,
}

struct Printer {
    format: Format,
    table: Table,
}

impl Printer {
    fn new(global: &Global) -> Self {
        Self { format: global.output, table: row::table(global.output == Format::Wide, global.screen()) }
    }

    /// What has changed: one short line, or an object that has nothing but it.
    fn print_update(&mut self, update: SignalUpdate) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self.format {
            Format::Json => output::json_line(&mut out, &Update { update })?,
            Format::Yaml => {
                writeln!(out, "---")?;
                output::yaml(&mut out, &Update { update })?;
            }
            Format::Table | Format::Wide => {
                writeln!(out, "{}  {}", update.id, told(&update))?;
            }
        }
        out.flush()
    }

    /// Signals that are not shown: one line, or an object that has nothing but it.
    fn print_left_out(&mut self, what: &str, left_out: LeftOut) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self.format {
            Format::Json => output::json_line(&mut out, &BTreeMap::from([(what, left_out)]))?,
            Format::Yaml => {
                writeln!(out, "---")?;
                output::yaml(&mut out, &BTreeMap::from([(what, left_out)]))?;
            }
            Format::Table | Format::Wide => {
                let LeftOut { first_id, last_id, signals, reason } = &left_out;
                let signals = signals.map(|signals| format!("{signals} signals of ")).unwrap_or_default();
                writeln!(out, "{what}: {signals}{first_id} to {last_id} not shown ({})", escape::text(reason))?;
            }
        }
        out.flush()
    }

    fn print(&mut self, signal: &Signal) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self.format {
            Format::Json => output::json_line(&mut out, signal)?,
            Format::Yaml => {
                writeln!(out, "---")?;
                output::yaml(&mut out, signal)?;
            }
            Format::Table => self.table.write(&mut out, &[row::row(signal, false)])?,
            Format::Wide => self.table.write(&mut out, &[row::row(signal, true)])?,
        }
        out.flush()
    }
}

/// A change in some words.
fn told(update: &SignalUpdate) -> String {
    if let Some(Triage { state, author, note, .. }) = &update.triage {
        let note = if note.is_empty() { String::new() } else { format!(": {}", escape::text(note)) };
        return format!("{state}, says {}{note}", escape::text(author));
    }
    let Some(activity) = &update.network else {
        let last = update.last_time.map(Time::short).unwrap_or_default();
        return format!("{} times by now, last {last}", update.count);
    };
    let operations = activity.operations.iter().map(|operation| operation.count).sum::<u64>();
    let all = operations.saturating_add(activity.omitted);
    let newest = activity.operations.iter().max_by_key(|operation| operation.last_time);
    let newest = newest.map(report::network_operation).unwrap_or_default();
    format!("network: {newest} ({all} in all)")
}
