//! Signals on disk: SQLite in WAL mode, written by one thread and read through a few read-only connections.
//!
//! | module | idea |
//! |---|---|
//! | [`accounts`] | how many of each container's events are stored |
//! | [`entry`] | a signal on its way in, encoded, with what makes it unique; what is folded into it later |
//! | [`schema`] | tables, and opening a database that may be unusable |
//! | [`habits`] | what workloads do habitually, and what is new |
//! | [`writer`] | the thread: batches, retries, then tells watchers the newest id |
//! | [`retention`] | what goes when there is too much |
//! | [`room`], [`health`] | a full disk, and what is said of it |
//! | [`filter`] | a request's filter, checked and turned into SQL |
//! | [`expression`] | a filter's CEL expression |
//! | [`reader`] | queries |
//! | [`common`] | what fits several conditions, without looking at rows |
//! | [`story`] | what happened around a moment |
//! | [`summary`] | how many there are, by groups |
//! | [`triage`] | what people make of signals |
//!
//! A batch is whatever has arrived while the batch before it was committed, so that a single signal is on disk at once and
//! a flood costs few transactions. When the channel is full, senders wait: events then stay in the kernel's ring buffer.

pub mod accounts;
mod checkpoint;
mod common;
pub mod entry;
pub mod expression;
pub mod filter;
pub mod habits;
pub mod health;
pub mod reader;
mod retention;
mod room;
mod schema;
pub mod story;
pub mod summary;
mod triage;
mod writer;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use portcullis_proto::v1::{NetworkActivity, Triage};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    accounts::{Account, Dropped},
    checkpoint::Checkpoints,
    entry::{Entry, Origin, Update},
    habits::Workload,
    health::Health,
    reader::Readers,
    room::Reserve,
    schema::Unusable,
    writer::Writer,
};
use crate::{clock, counters::Counters};

/// The database below the state directory.
pub const FILE_NAME: &str = "signals.db";

/// Entries that may wait for the writer; about 10 kB each at worst.
const QUEUE: usize = 512;

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Signals older than this go.
    pub max_age: Duration,
    /// Bytes of the database.
    pub max_bytes: u64,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory could not be made.
    #[error("creating {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A database that can't be used could not be moved aside.
    #[error("moving the unusable database {} aside", path.display())]
    MoveAside {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database could not be opened.
    #[error("opening {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: Unusable,
    },
    /// There is no room for the database.
    #[error("the disk of {} is full: free some space on it, or choose another state_dir", path.display())]
    Full {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: Unusable,
    },
    /// A query failed.
    #[error("reading signals")]
    Read(#[from] rusqlite::Error),
    /// A change could not be written.
    #[error("changing signals")]
    Write(#[source] rusqlite::Error),
    /// A stored signal is not one.
    #[error("stored signal {id} can't be decoded")]
    Body {
        /// Its id.
        id: u64,
        /// What prost said.
        source: prost::DecodeError,
    },
    /// The writer's thread could not be started.
    #[error("starting the store's thread")]
    Thread(#[source] io::Error),
    /// A request would look at too much.
    #[error("the expression has to look at too many signals: narrow them by other fields, such as a time")]
    TooMuch,
    /// A signal that is not there, or not any more.
    #[error("there is no signal {id}; retention may have removed it")]
    NoSignal {
        /// Its id.
        id: u64,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// A container as the store knows it: the id alone may be used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerKey {
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's id.
    pub id: String,
    /// When it was created, nanoseconds since 1970.
    pub created_ns: u64,
}

/// What the writer is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Store a signal, unless it is stored already.
    Signal(Box<Entry>),
    /// Tell what was folded into a signal.
    Update(Update),
    /// Add to what a signal's process has done on the network.
    Network(Origin, NetworkActivity),
    /// Add to a container's account what is in no signal.
    Account(u64, Account),
    /// Close a container's account.
    Close(u64),
    /// Say so when all that came before is stored, or dropped and counted.
    Settle(u64),
    /// Remember a container's image.
    Image(ContainerKey, String),
    /// Give signals a state.
    Triage(TriageChange),
    /// A container of a workload was created, at this time in nanoseconds since 1970.
    Workload(Workload, u64),
    /// Apply retention by age.
    Expire,
}

/// What people make of some signals.
#[derive(Debug)]
pub struct TriageChange {
    ids: Vec<u64>,
    change: Triage,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

/// The way into the store. The writer ends when every sender is gone.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Command>);

impl Sender {
    /// Gives signals a state: all of them, or none if one of them is not there. When it returns it is on disk.
    pub async fn set_triage(&self, ids: Vec<u64>, change: Triage) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Triage(TriageChange { ids, change, answer })).await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Hands a command over, waiting while the queue is full.
    pub async fn send(&self, command: Command) -> Result<(), StoreError> {
        self.0.send(command).await.map_err(|_| StoreError::Closed)
    }
}

/// The way out of the store.
#[derive(Debug, Clone)]
pub struct Store {
    readers: Arc<Readers>,
    last_id: watch::Receiver<u64>,
    revision: watch::Receiver<u64>,
    stored: Arc<AtomicU64>,
    health: Health,
    accounts: Arc<Mutex<Option<HashMap<u64, Account>>>>,
    dropped: Dropped,
    settled: Arc<AtomicU64>,
}

impl Store {
    /// The queries.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Changes after each commit to the id of the newest signal.
    pub fn last_id(&self) -> watch::Receiver<u64> {
        self.last_id.clone()
    }

    /// Changes after each commit that has changed signals stored before, to the newest change's revision.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }

    /// The accounts of containers as they were when it was opened, the first time that they are asked for; `None` if none were kept
    /// since the node was started.
    pub fn take_accounts(&self) -> Option<HashMap<u64, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What it did not take.
    pub fn dropped(&self) -> &Dropped {
        &self.dropped
    }

    /// The number of the last [`Command::Settle`] that it has come to. What was dropped before is in [`Self::dropped`].
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Whether it takes what comes.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Number of signals stored.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }
}

/// Opens the store below a directory and starts its writer.
pub fn open(
    directory: &Path,
    limits: Limits,
    counters: Arc<Counters>,
) -> Result<(Sender, Store, JoinHandle<()>), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
    let path = directory.join(FILE_NAME);
    let reserve = Reserve::new(&path, limits.max_bytes);
    let mut connection = open_database(&path, &reserve, &counters)?;
    let checkpoints = Checkpoints::start(&mut connection, &path);
    if !reserve.take().is_ok_and(|held| held) {
        tracing::warn!(database = %path.display(), "there is little room on the disk of the signal database");
    }
    let (last_id_sender, last_id) = watch::channel(0);
    let (revision_sender, revision) = watch::channel(0);
    let readers = Arc::new(Readers::new(path.clone()));
    let stored = Arc::new(AtomicU64::new(0));
    let health = Health::default();
    let dropped = Dropped::default();
    let settled = Arc::new(AtomicU64::new(0));
    let mut writer = Writer {
        path,
        reserve,
        health: health.clone(),
        starved: false,
        failing: None,
        shrunk: 0,
        connection,
        checkpoints,
        limits,
        counters,
        last_id: last_id_sender,
        revision: revision_sender,
        stored: Arc::clone(&stored),
        readers: Arc::clone(&readers),
        dropped: dropped.clone(),
        settled: Arc::clone(&settled),
    };
    match writer.refresh() {
        // Opening looks at each table's beginning, this at more.
        Err(StoreError::Read(error)) if schema::is_corrupt(&error) => {
            writer.replace(&Unusable::Damaged);
            writer.refresh()?;
        }
        refreshed => refreshed?,
    }
    // On a full disk, for example. No reason not to start.
    let accounts = accounts::open(&mut writer.connection, &boot_id()).unwrap_or_else(|error| {
        tracing::warn!(%error, "what the agent before this one has read and not stored can't be found out");
        None
    });
    let accounts = Arc::new(Mutex::new(accounts));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let thread = std::thread::Builder::new()
        .name("store".to_owned())
        .spawn(move || writer.run(receiver))
        .map_err(StoreError::Thread)?;
    Ok((Sender(sender), Store { readers, last_id, revision, stored, health, accounts, dropped, settled }, thread))
}

/// Tells this boot from all others. Without one, what an agent before this one has lost can't be found out.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| clock::now_ns().to_string(), |id| id.trim().to_owned())
}

/// Opens it, on a full disk as well: bringing the log of an agent that was killed into it takes room.
fn open_database(path: &Path, reserve: &Reserve, counters: &Counters) -> Result<Connection, StoreError> {
    let is_full = |cause: &Unusable| matches!(cause, Unusable::Sqlite(error) if room::is_full(error, path));
    let mut opened = schema::open(path, counters);
    if matches!(&opened, Err(StoreError::Open { source, .. }) if is_full(source)) && reserve.release() {
        opened = schema::open(path, counters);
    }
    match opened {
        Err(StoreError::Open { path, source }) if is_full(&source) => Err(StoreError::Full { path, source }),
        opened => opened,
    }
}

#[cfg(test)]
mod tests;
