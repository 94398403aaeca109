//! The stream of signals. A watcher reads from the store only, from its cursor on, each time the newest id has grown: there
//! is no gap and no duplicate between what is stored and what comes, and a slow watcher costs one page of memory. What was
//! stored before and has changed since it is told the same way, from another cursor on.

use std::{sync::Arc, time::Duration};

use portcullis_proto::v1::{Signal, WatchSignalsRequest, WatchSignalsResponse, WatchThrottled};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::store::{Store, filter::Filter, reader::Range};

/// Watchers at a time.
pub const MAX_WATCHERS: usize = 64;
/// Signals read at a time.
const PAGE: usize = 64;
/// How long an id may be ahead of the newest one: a client can have read it the moment it was committed.
const AHEAD: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// Signals on their way to the client.
const QUEUE: usize = 8;

/// Why a watch can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Memory is bounded.
    #[error("{MAX_WATCHERS} watchers are connected already")]
    TooMany,
    /// The id was not given out by this database.
    #[error("after_id {after_id} is greater than the newest id {last_id}: the store was emptied; start from 0")]
    Ahead {
        /// What the client asked for.
        after_id: u64,
        /// What there is.
        last_id: u64,
    },
    /// The agent is being stopped.
    #[error("the agent is stopping; connect again with the last id seen")]
    Stopping,
}

/// One client's stream.
pub struct Watcher {
    store: Store,
    filter: Filter,
    cursor: u64,
    /// Of changes.
    revision: u64,
    newest_revision: watch::Receiver<u64>,
    throttle: Throttle,
    last_id: watch::Receiver<u64>,
    shutdown: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Watcher {
    /// Signals after `after_id`, or after the newest one of this moment; changes after `after_revision` likewise.
    pub async fn new(
        store: &Store,
        filter: Filter,
        request: &WatchSignalsRequest,
        shutdown: watch::Receiver<bool>,
        watchers: Arc<Semaphore>,
    ) -> Result<Self, WatchError> {
        let permit = watchers.try_acquire_owned().map_err(|_| WatchError::TooMany)?;
        let mut last_id = store.last_id();
        let cursor = request.after_id.unwrap_or_else(|| *last_id.borrow());
        if tokio::time::timeout(AHEAD, last_id.wait_for(|last| *last >= cursor)).await.is_err() {
            return Err(WatchError::Ahead { after_id: cursor, last_id: *store.last_id().borrow() });
        }
        let newest_revision = store.revision();
        let newest = *newest_revision.borrow();
        // One from a store that was replaced since may be greater.
        let revision = request.after_revision.unwrap_or(newest).min(newest);
        let store = store.clone();
        let throttle = Throttle::new(request.max_per_second);
        Ok(Self { store, filter, cursor, revision, newest_revision, throttle, last_id, shutdown, _permit: permit })
    }

    /// Starts streaming.
    pub fn spawn(self) -> ReceiverStream<Result<WatchSignalsResponse, Status>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut shutdown = self.shutdown.clone();
            let error = tokio::select! {
                error = self.run(&sender) => error,
                () = sender.closed() => None,
                _ = shutdown.wait_for(|stop| *stop) => Some(WatchError::Stopping.into()),
            };
            if let Some(error) = error {
                // A client that does not read does not learn of it: the stream ends all the same.
                let _ = sender.try_send(Err(error));
            }
        });
        ReceiverStream::new(receiver)
    }

    /// The error that ends the stream; `None` when the client is gone.
    async fn run(mut self, sender: &mpsc::Sender<Result<WatchSignalsResponse, Status>>) -> Option<Status> {
        loop {
            // First the revision: what has it is stored by then, and its signal as well.
            let newest_revision = *self.newest_revision.borrow_and_update();
            let newest = *self.last_id.borrow_and_update();
            let range = Range::After(self.cursor, newest);
            let page = match self.store.readers().page(self.filter.clone(), range, PAGE).await {
                Ok(page) => page,
                Err(error) => return Some(error.into()),
            };
            let end = page.next.map_or(newest, |(_, id)| id);
            let gaps = match self.store.readers().gaps(self.cursor, end).await {
                Ok(gaps) => gaps,
                Err(error) => return Some(error.into()),
            };
            for gap in gaps {
                let gap = WatchSignalsResponse { gap: Some(gap), ..WatchSignalsResponse::default() };
                if sender.send(Ok(gap)).await.is_err() {
                    return None;
                }
            }
            for signal in page.signals {
                for message in self.throttle.pass(signal) {
                    if sender.send(Ok(message)).await.is_err() {
                        return None;
                    }
                }
            }
            self.cursor = end;
            if page.next.is_some() {
                continue;
            }
            let revisions = (self.revision, newest_revision);
            let changes = match self.store.readers().changes(self.filter.clone(), newest, revisions, PAGE).await {
                Ok(changes) => changes,
                Err(error) => return Some(error.into()),
            };
            for update in changes.updates {
                let update = WatchSignalsResponse { update: Some(update), ..WatchSignalsResponse::default() };
                if sender.send(Ok(update)).await.is_err() {
                    return None;
                }
            }
            if changes.more {
                self.revision = changes.last.unwrap_or(newest_revision);
                continue;
            }
            self.revision = newest_revision;
            let changed = tokio::select! {
                changed = self.last_id.changed() => changed,
                changed = self.newest_revision.changed() => changed,
                () = self.throttle.due() => {
                    if let Some(left_out) = self.throttle.take()
                        && sender.send(Ok(left_out)).await.is_err()
                    {
                        return None;
                    }
                    Ok(())
                }
            };
            if changed.is_err() {
                return Some(WatchError::Stopping.into());
            }
        }
    }
}

/// How many signals a client wants a second, and what it has not got because of that.
struct Throttle {
    /// None: as many as there are.
    per_second: Option<u32>,
    /// Signals that may pass until `until`.
    left: u32,
    until: Instant,
    left_out: WatchThrottled,
}

impl Throttle {
    fn new(max_per_second: u32) -> Self {
        let per_second = (max_per_second > 0).then_some(max_per_second);
        Self { per_second, left: max_per_second, until: Instant::now() + SECOND, left_out: WatchThrottled::default() }
    }

    /// What the client gets of a signal: first what was left out before it, then itself, or nothing.
    fn pass(&mut self, signal: Signal) -> Vec<WatchSignalsResponse> {
        let Some(per_second) = self.per_second else { return vec![of(signal)] };
        let now = Instant::now();
        if now >= self.until {
            (self.left, self.until) = (per_second, now + SECOND);
        }
        if self.left > 0 {
            self.left -= 1;
            return self.take().into_iter().chain([of(signal)]).collect();
        }
        if self.left_out.signals == 0 {
            self.left_out.first_id = signal.id;
        }
        self.left_out.signals += 1;
        self.left_out.last_id = signal.id;
        Vec::new()
    }

    /// When what was left out is to be told at the latest.
    async fn due(&self) {
        if self.left_out.signals == 0 {
            return std::future::pending().await;
        }
        sleep_until(self.until).await;
    }

    fn take(&mut self) -> Option<WatchSignalsResponse> {
        let left_out = std::mem::take(&mut self.left_out);
        let throttled = (left_out.signals > 0).then_some(left_out)?;
        Some(WatchSignalsResponse { throttled: Some(throttled), ..WatchSignalsResponse::default() })
    }
}

fn of(signal: Signal) -> WatchSignalsResponse {
    WatchSignalsResponse { signal: Some(signal), ..WatchSignalsResponse::default() }
}
