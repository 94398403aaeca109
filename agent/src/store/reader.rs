//! Queries, on a few read-only connections; each runs on a thread that may block.

use std::{
    iter,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use portcullis_proto::v1::{Signal, SignalUpdate};
use prost::Message;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params, params_from_iter, types::Value};
use tokio::sync::Semaphore;

use super::{ContainerKey, StoreError, filter::Filter};
use crate::clock::timestamp;

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

/// What has changed in signals that were stored before.
#[derive(Debug, Default)]
pub struct Changes {
    /// By their revisions.
    pub updates: Vec<SignalUpdate>,
    /// Whether there may be more.
    pub more: bool,
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

    /// The newest changes of signals up to an id that pass a filter, with revisions above the first and up to the second,
    /// `limit` at most.
    pub async fn changes(
        &self,
        filter: Filter,
        up_to: u64,
        revisions: (u64, u64),
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.run(move |connection| changes(connection, &filter, up_to, revisions, limit)).await
    }

    /// One signal.
    pub async fn signal(&self, id: u64) -> Result<Option<Signal>, StoreError> {
        let Ok(key) = i64::try_from(id) else { return Ok(None) };
        self.run(move |connection| {
            connection
                .prepare_cached(
                    "SELECT signals.body, repeats.body FROM signals LEFT JOIN repeats USING (id) WHERE signals.id = ?1",
                )?
                .query_row([key], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Option<Vec<u8>>>(1)?)))
                .optional()?
                .map(|(body, changed)| decode(id, &body, changed.as_deref()))
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

fn decode(id: u64, body: &[u8], changed: Option<&[u8]>) -> Result<Signal, StoreError> {
    let mut signal = Signal::default();
    // What comes later holds; of lists, both: what changes is in the second alone.
    for part in iter::once(body).chain(changed) {
        signal.merge(part).map_err(|source| StoreError::Body { id, source })?;
    }
    signal.id = id;
    if signal.count == 0 {
        (signal.count, signal.last_time) = (1, signal.time);
    }
    Ok(signal)
}

fn integer(number: u64) -> Value {
    Value::from(i64::try_from(number).unwrap_or(i64::MAX))
}

fn page(connection: &Connection, filter: &Filter, range: Range, limit: usize) -> Result<Page, StoreError> {
    let (mut conditions, mut values, order) = match range {
        Range::Before(below) => (vec!["signals.id < ?"], vec![integer(below)], "DESC"),
        Range::After(above, up_to) => {
            (vec!["signals.id > ?", "signals.id <= ?"], vec![integer(above), integer(up_to)], "ASC")
        }
    };
    let (filters, filter_values) = filter.conditions();
    conditions.extend(filters);
    values.extend_from_slice(filter_values);
    let sql = format!(
        "SELECT signals.id, signals.body, repeats.body FROM signals LEFT JOIN repeats USING (id) WHERE {} \
         ORDER BY signals.id {order}",
        conditions.join(" AND ")
    );
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
        let changed = row.get_ref(2)?.as_blob_or_null().map_err(rusqlite::Error::from)?;
        bytes += changed.map_or(0, <[u8]>::len);
        match decode(last, body, changed) {
            Ok(signal) => page.signals.push(signal),
            // One bad row must not hide all others.
            Err(error) => tracing::warn!(%error, "a stored signal was left out"),
        }
    }
    Ok(page)
}

fn changes(
    connection: &Connection,
    filter: &Filter,
    up_to: u64,
    (above, newest): (u64, u64),
    limit: usize,
) -> Result<Changes, StoreError> {
    let mut conditions = vec!["revision > ?", "revision <= ?", "signals.id <= ?"];
    let mut values = vec![integer(above), integer(newest), integer(up_to)];
    let (filters, filter_values) = filter.conditions();
    conditions.extend(filters);
    values.extend_from_slice(filter_values);
    values.push(Value::from(i64::try_from(limit).unwrap_or(i64::MAX)));
    // CROSS JOIN: by revision, however few signals the filter leaves.
    let sql = format!(
        "SELECT signals.id, count, last_ns, revision FROM repeats CROSS JOIN signals USING (id) WHERE {} \
         ORDER BY revision LIMIT ?",
        conditions.join(" AND ")
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut updates = Vec::new();
    while let Some(row) = rows.next()? {
        let number = |column| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(column)?).unwrap_or_default());
        updates.push(SignalUpdate {
            id: number(0)?,
            count: number(1)?,
            last_time: Some(timestamp(number(2)?)),
            revision: number(3)?,
            ..SignalUpdate::default()
        });
    }
    Ok(Changes { more: updates.len() >= limit, updates })
}
