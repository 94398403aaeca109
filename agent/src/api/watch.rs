//! The stream of signals. A watcher reads from the store only, from its cursor on, each time the newest id has grown: there
//! is no gap and no duplicate between what is stored and what comes, and a slow watcher costs one page of memory. What was
//! stored before and has changed since it is told the same way, from another cursor on.

use std::{sync::Arc, time::Duration};

use portcullis_proto::v1::WatchSignalsResponse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::store::{Store, filter::Filter, reader::Range};

/// Watchers at a time.
pub const MAX_WATCHERS: usize = 64;
/// Signals read at a time.
const PAGE: usize = 64;
/// How long an id may be ahead of the newest one: a client can have read it the moment it was committed.
const AHEAD: Duration = Duration::from_secs(1);
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
    last_id: watch::Receiver<u64>,
    shutdown: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Watcher {
    /// Signals after `after_id`, or after the newest one of this moment; changes after `after_revision` likewise.
    pub async fn new(
        store: &Store,
        filter: Filter,
        after_id: Option<u64>,
        after_revision: Option<u64>,
        shutdown: watch::Receiver<bool>,
        watchers: Arc<Semaphore>,
    ) -> Result<Self, WatchError> {
        let permit = watchers.try_acquire_owned().map_err(|_| WatchError::TooMany)?;
        let mut last_id = store.last_id();
        let cursor = after_id.unwrap_or_else(|| *last_id.borrow());
        if tokio::time::timeout(AHEAD, last_id.wait_for(|last| *last >= cursor)).await.is_err() {
            return Err(WatchError::Ahead { after_id: cursor, last_id: *store.last_id().borrow() });
        }
        let newest_revision = store.revision();
        let newest = *newest_revision.borrow();
        // One from a store that was replaced since may be greater.
        let revision = after_revision.unwrap_or(newest).min(newest);
        let store = store.clone();
        Ok(Self { store, filter, cursor, revision, newest_revision, last_id, shutdown, _permit: permit })
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
            for signal in page.signals {
                if sender
                    .send(Ok(WatchSignalsResponse { signal: Some(signal), ..WatchSignalsResponse::default() }))
                    .await
                    .is_err()
                {
                    return None;
                }
            }
            self.cursor = page.next.unwrap_or(newest);
            if page.next.is_some() {
                continue;
            }
            let revisions = (self.revision, newest_revision);
            let changes = match self.store.readers().changes(self.filter.clone(), newest, revisions, PAGE).await {
                Ok(changes) => changes,
                Err(error) => return Some(error.into()),
            };
            let last = changes.updates.last().map(|update| update.revision);
            for update in changes.updates {
                if sender
                    .send(Ok(WatchSignalsResponse { update: Some(update), ..WatchSignalsResponse::default() }))
                    .await
                    .is_err()
                {
                    return None;
                }
            }
            if changes.more {
                self.revision = last.unwrap_or(newest_revision);
                continue;
            }
            self.revision = newest_revision;
            let changed = tokio::select! {
                changed = self.last_id.changed() => changed,
                changed = self.newest_revision.changed() => changed,
            };
            if changed.is_err() {
                return Some(WatchError::Stopping.into());
            }
        }
    }
}
