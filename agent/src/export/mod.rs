//! Signals out of the node. An exporter reads from the store as a watcher does, by id, so that the store is its queue: a slow or
//! dead receiver costs a page of memory and holds nothing up. Where it is, is kept in a file that is written after the receiver
//! has taken a batch: what retention holds arrives at least once, whatever is restarted in between.
//!
//! | module | idea |
//! |---|---|
//! | [`ocsf`] | a signal as an OCSF Detection Finding |
//! | [`cursor`] | how far an exporter has come |
//! | [`jsonl`] | a file with a finding a line |
//! | [`otlp`] | OpenTelemetry's logs over gRPC |

mod cursor;
pub mod jsonl;
pub mod ocsf;
pub mod otlp;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use portcullis_proto::v1::Signal;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use self::{
    cursor::{Cursor, CursorFile},
    ocsf::{Activity, Node},
};
use crate::{
    counters::Counters,
    store::{Store, StoreError, filter::Filter, reader::Range},
};

/// Signals read at a time.
const PAGE: usize = 64;
/// Bytes of JSON handed to a receiver at once. A finding has 200 kB at the very worst; gRPC's receivers take 4 MB.
const BATCH_BYTES: usize = 1 << 20;
/// How often what has changed in findings is told again.
const UPDATE_INTERVAL: Duration = Duration::from_secs(60);
/// Pauses after failures grow from the one to the other.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Ids further apart than this were not given out by one database.
const GAP_MAX: u64 = 1 << 32;

/// One finding on its way.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What it tells of.
    pub signal: Arc<Signal>,
    /// The OCSF object, without a newline.
    pub json: String,
}

/// Why a receiver did not take a batch.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// It may take it later.
    #[error(transparent)]
    Later(#[from] anyhow::Error),
    /// It never takes a batch with this content.
    #[error("the receiver refuses the content: {0}")]
    Refused(String),
}

/// A receiver.
pub trait Sink: Send + 'static {
    /// Of the cursor's file, and for the log.
    const NAME: &'static str;

    /// Hands over a batch. When it returns `Ok`, the batch is the receiver's.
    fn deliver(&mut self, batch: &[Finding]) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// How far an exporter is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last id that was handed over or given up.
    pub id: u64,
    /// Findings handed over since the agent started, updates included.
    pub delivered: u64,
}

/// One exporter.
pub struct Exporter<S> {
    sink: S,
    store: Store,
    node: Arc<Node>,
    counters: Arc<Counters>,
    cursor: Cursor,
    /// What the file says.
    kept: Option<Cursor>,
    file: CursorFile,
    filter: Filter,
    progress: watch::Sender<Progress>,
    failing: bool,
    backoff: Duration,
}

impl<S: Sink> Exporter<S> {
    /// Goes on where the cursor's file says. Without one: from the oldest signal that is stored.
    pub fn new(sink: S, store: Store, node: Arc<Node>, state_dir: &Path, counters: Arc<Counters>) -> Self {
        let file = CursorFile::new(state_dir, S::NAME);
        let cursor = match file.read() {
            Ok(cursor) => cursor.unwrap_or_default(),
            Err(error) => {
                counters.export_cursors_lost.increment();
                let error = anyhow::Error::from(error);
                tracing::error!(
                    exporter = S::NAME,
                    error = format!("{error:#}"),
                    "it is not known how far the export had come: everything stored is exported again"
                );
                Cursor::default()
            }
        };
        let (progress, _) = watch::channel(Progress { id: cursor.id, delivered: 0 });
        let filter = Filter::all();
        Self {
            sink,
            store,
            node,
            counters,
            cursor,
            kept: None,
            file,
            filter,
            progress,
            failing: false,
            backoff: BACKOFF,
        }
    }

    /// For metrics.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Works until the store is closed; may be dropped at any moment.
    pub async fn run(mut self) {
        let (mut last_id, revision) = (self.store.last_id(), self.store.revision());
        let mut updated = Instant::now();
        // Nothing tells apart what changed while nobody exported and what had been exported with its change: told again.
        if self.cursor.id == 0 {
            self.cursor.revision = *revision.borrow();
        }
        loop {
            // First the revision: what has it is stored by then, and its signal as well.
            let newest_revision = *revision.borrow();
            let newest = *last_id.borrow_and_update();
            let round = async {
                self.export_new(newest).await?;
                if updated.elapsed() >= UPDATE_INTERVAL {
                    self.export_updates(newest_revision).await?;
                    updated = Instant::now();
                }
                Ok::<(), StoreError>(())
            };
            if let Err(error) = round.await {
                self.pause(&anyhow::Error::from(error)).await;
                continue;
            }
            // Updates have a pace of their own.
            if let Ok(Err(_)) = timeout(UPDATE_INTERVAL.saturating_sub(updated.elapsed()), last_id.changed()).await {
                return;
            }
        }
    }

    /// Exports what has come up to an id.
    async fn export_new(&mut self, newest: u64) -> Result<(), StoreError> {
        if self.cursor.id > newest {
            tracing::warn!(
                exporter = S::NAME,
                exported = self.cursor.id,
                newest,
                "the signal database is another one: the export begins with its first signal"
            );
            self.counters.export_gap.increment();
            self.cursor = Cursor::default();
        }
        while self.cursor.id < newest {
            let range = Range::After(self.cursor.id, newest);
            let page = self.store.readers().page(self.filter.clone(), range, PAGE).await?;
            let end = page.next.map_or(newest, |(_, id)| id);
            self.tell_gaps(page.signals.iter().map(|signal| signal.id), end);
            let findings =
                page.signals.into_iter().filter_map(|signal| self.finding(signal, Activity::Create)).collect();
            self.deliver_all(findings, |exporter, last| exporter.cursor.id = last.signal.id).await;
            self.cursor.id = end;
            self.keep();
        }
        Ok(())
    }

    /// Exports again what has changed in what was exported, up to a revision: each once, however often it changed.
    async fn export_updates(&mut self, newest: u64) -> Result<(), StoreError> {
        loop {
            let revisions = (self.cursor.revision, newest);
            let changes = self.store.readers().changes(self.filter.clone(), self.cursor.id, revisions, PAGE).await?;
            let mut findings = Vec::with_capacity(changes.updates.len());
            for update in &changes.updates {
                if let Some(signal) = self.store.readers().signal(update.id).await? {
                    findings.extend(self.finding(signal, Activity::Update(update.revision)));
                }
            }
            self.deliver_all(findings, |_, _| {}).await;
            self.cursor.revision = match changes.last {
                Some(last) if changes.more => last,
                _ => newest.max(self.cursor.revision),
            };
            if !changes.updates.is_empty() {
                self.keep();
            }
            if !changes.more {
                return Ok(());
            }
        }
    }

    fn finding(&self, signal: Signal, activity: Activity) -> Option<Finding> {
        let json = ocsf::to_json(&signal, activity, &self.node)?;
        Some(Finding { signal: Arc::new(signal), json })
    }

    /// Ids that are no longer there, between the cursor and the end of what was read.
    fn tell_gaps(&self, ids: impl Iterator<Item = u64>, end: u64) {
        let mut before = self.cursor.id;
        for id in ids.chain([end.saturating_add(1)]) {
            let missing = id.saturating_sub(before).saturating_sub(1);
            // An exporter's first signal is the oldest that is stored, whatever its number.
            if missing > 0 && before > 0 {
                self.counters.export_gap.add(if missing > GAP_MAX { 1 } else { missing });
                tracing::warn!(
                    exporter = S::NAME,
                    after = before,
                    before = id,
                    "signals between these were gone before they could be exported"
                );
            }
            before = id;
        }
    }

    /// Hands findings over in batches that are not too large, each until it is taken.
    async fn deliver_all(&mut self, findings: Vec<Finding>, taken: fn(&mut Self, &Finding)) {
        let mut rest = findings.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fitting = rest.iter().take_while(|finding| {
                bytes += finding.json.len();
                bytes <= BATCH_BYTES
            });
            let (batch, behind) = rest.split_at(fitting.count().max(1));
            self.deliver(batch).await;
            rest = behind;
            if let Some(last) = batch.last() {
                taken(self, last);
                self.keep();
            }
        }
    }

    async fn deliver(&mut self, batch: &[Finding]) {
        loop {
            match self.sink.deliver(batch).await {
                Ok(()) => {
                    self.delivered(batch.len());
                    return;
                }
                Err(SinkError::Later(error)) => self.pause(&error).await,
                Err(SinkError::Refused(reason)) => match batch {
                    [] => return,
                    [one] => {
                        self.counters.export_refused.increment();
                        tracing::error!(
                            exporter = S::NAME,
                            signal = one.signal.id,
                            reason,
                            "the receiver refuses a finding; it is left out"
                        );
                        return;
                    }
                    // Not all of them need be bad.
                    several => {
                        for one in several {
                            Box::pin(self.deliver(std::slice::from_ref(one))).await;
                        }
                        return;
                    }
                },
            }
        }
    }

    fn delivered(&mut self, findings: usize) {
        self.backoff = BACKOFF;
        if std::mem::take(&mut self.failing) {
            tracing::info!(exporter = S::NAME, "the export works again");
        }
        self.progress.send_modify(|progress| progress.delivered += u64::try_from(findings).unwrap_or_default());
    }

    /// Waits after a failure, with jitter so that a fleet does not come back at one moment.
    async fn pause(&mut self, error: &anyhow::Error) {
        self.counters.export_failures.increment();
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                exporter = S::NAME,
                error = format!("{error:#}"),
                "the export does not work; it is tried again, signals wait in the store"
            );
        }
        sleep(self.backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// Writes the cursor down. A failure costs findings told twice after a restart, no more.
    fn keep(&mut self) {
        self.progress.send_modify(|progress| progress.id = self.cursor.id);
        if self.kept == Some(self.cursor) {
            return;
        }
        if let Err(error) = self.file.write(self.cursor) {
            if self.counters.export_cursors_unwritten.get() == 0 {
                let error = anyhow::Error::from(error);
                tracing::error!(
                    exporter = S::NAME,
                    error = format!("{error:#}"),
                    "how far the export has come can't be written down: a restart exports it again; said once"
                );
            }
            self.counters.export_cursors_unwritten.increment();
            return;
        }
        self.kept = Some(self.cursor);
    }
}

#[cfg(test)]
mod tests;
