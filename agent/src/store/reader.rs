//! Queries, on a few read-only connections; each runs on a thread that may block.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use portcullis_proto::v1::Signal;
use prost::Message;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params, params_from_iter, types::Value};
use tokio::sync::Semaphore;

use super::{ContainerKey, StoreError, filter::Filter};

/// Queries at a time; more wait.
const CONNECTIONS: usize = 4;
/// Encoded bytes after which a page ends. A client takes messages of 4 MB, and a signal is at most about 12 kB.
const PAGE_BYTES: usize = 1 << 20;

/// Where a page begins and which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Ids below this, from the greatest down.
    Before(u64),
    /// Ids above the first and up to the second, from the smallest up.
    After(u64, u64),
}

/// Some signals.
#[derive(Debug, Default)]
pub struct Page {
    /// In the range's order.
    pub signals: Vec<Signal>,
    /// The last id looked at, when the range may hold more.
    pub next: Option<u64>,
}

/// The connections.
#[derive(Debug)]
pub struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    pool: Arc<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    /// With the generation of the file that each leads to.
    idle: Mutex<Vec<(u64, Connection)>>,
    generation: AtomicU64,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, permits: Arc::new(Semaphore::new(CONNECTIONS)), pool: Arc::default() }
    }

    /// The file was replaced: open connections lead to the old one.
    pub(super) fn reopen(&self) {
        self.pool.generation.fetch_add(1, Ordering::SeqCst);
    }

    async fn run<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let pool = Arc::clone(&self.pool);
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let generation = pool.generation.load(Ordering::SeqCst);
            let idle = || pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let pooled = {
                let mut idle = idle();
                idle.retain(|(of, _)| *of == generation);
                idle.pop()
            };
            let connection = match pooled {
                Some((_, connection)) => connection,
                None => open(&path).map_err(|source| StoreError::Open { path, source })?,
            };
            let result = query(&connection);
            idle().push((generation, connection));
            result
        })
        .await
        .map_err(|_| StoreError::Closed)?
    }

    /// Signals of a range that pass a filter, `limit` at most.
    pub async fn page(&self, filter: Filter, range: Range, limit: usize) -> Result<Page, StoreError> {
        self.run(move |connection| page(connection, &filter, range, limit)).await
    }

    /// One signal.
    pub async fn signal(&self, id: u64) -> Result<Option<Signal>, StoreError> {
        let Ok(key) = i64::try_from(id) else { return Ok(None) };
        self.run(move |connection| {
            connection
                .prepare_cached("SELECT body FROM signals WHERE id = ?1")?
                .query_row([key], |row| row.get::<_, Vec<u8>>(0))
                .optional()?
                .map(|body| decode(id, &body))
                .transpose()
        })
        .await
    }

    /// A container's image, if it was ever known.
    pub async fn image(&self, container: ContainerKey) -> Result<Option<String>, StoreError> {
        self.run(move |connection| {
            let created = i64::try_from(container.created_ns).unwrap_or(i64::MAX);
            Ok(connection
                .prepare_cached("SELECT image FROM containers WHERE namespace = ?1 AND id = ?2 AND created_ns = ?3")?
                .query_row(params![container.namespace, container.id, created], |row| row.get(0))
                .optional()?)
        })
        .await
    }
}

fn open(path: &std::path::Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

fn decode(id: u64, body: &[u8]) -> Result<Signal, StoreError> {
    let mut signal = Signal::decode(body).map_err(|source| StoreError::Body { id, source })?;
    signal.id = id;
    Ok(signal)
}

fn page(connection: &Connection, filter: &Filter, range: Range, limit: usize) -> Result<Page, StoreError> {
    let id = |id: u64| Value::from(i64::try_from(id).unwrap_or(i64::MAX));
    let (mut conditions, mut values, order) = match range {
        Range::Before(below) => (vec!["id < ?"], vec![id(below)], "DESC"),
        Range::After(above, up_to) => (vec!["id > ?", "id <= ?"], vec![id(above), id(up_to)], "ASC"),
    };
    for (condition, value) in filter.conditions() {
        conditions.push(condition);
        values.push(value.clone());
    }
    let sql = format!("SELECT id, body FROM signals WHERE {} ORDER BY id {order}", conditions.join(" AND "));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut page = Page::default();
    let (mut bytes, mut last) = (0, 0);
    while let Some(row) = rows.next()? {
        if page.signals.len() >= limit || bytes >= PAGE_BYTES {
            page.next = Some(last);
            break;
        }
        last = u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default();
        let body = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        bytes += body.len();
        match decode(last, body) {
            Ok(signal) => page.signals.push(signal),
            // One bad row must not hide all others.
            Err(error) => tracing::warn!(%error, "a stored signal was left out"),
        }
    }
    Ok(page)
}
