//! Queries, on a few read-only connections; each runs on a thread that may block.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use portcullis_proto::v1::{Habit, NetworkActivity, Signal, SignalUpdate, SummarizeSignalsResponse, Triage, WatchGap};
use prost::Message;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params, params_from_iter, types::Value};
use tokio::sync::Semaphore;

use super::{
    ContainerKey, StoreError,
    common::{Common, Order},
    filter::Filter,
    habits::{self, Workload},
    summary::{self, Grouping},
};

/// Queries at a time; more wait.
const CONNECTIONS: usize = 4;
/// Encoded bytes after which a page ends. A client takes messages of 4 MB, and a signal is at most about 40 kB.
const PAGE_BYTES: usize = 1 << 20;

/// Rows that an expression looks at for one page, and how long it may take for that: then the page ends, full or not.
const SCANNED_ROWS: usize = 20_000;
const SCAN_TIME: Duration = Duration::from_millis(500);

/// How long an expression may look at rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget(Instant);

impl Budget {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn is_spent(self) -> bool {
        self.0.elapsed() > SCAN_TIME
    }
}

/// Where a page begins and which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Ids below this, from the greatest down.
    Before(u64),
    /// Ids above the first and up to the second, from the smallest up.
    After(u64, u64),
    /// By severity and id, from the greatest down; those below the two.
    BelowSeverity(i64, u64),
    /// By count and id likewise.
    BelowCount(i64, u64),
}

/// Some signals.
#[derive(Debug, Default)]
pub struct Page {
    /// In the range's order.
    pub signals: Vec<Signal>,
    /// The last one looked at, when the range may hold more: its severity or count, where that is the order, and its id.
    pub next: Option<(i64, u64)>,
}

/// What has changed in signals that were stored before.
#[derive(Debug, Default)]
pub struct Changes {
    /// By their revisions.
    pub updates: Vec<SignalUpdate>,
    /// The newest revision looked at.
    pub last: Option<u64>,
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
    /// A query found the file broken.
    suspect: AtomicBool,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, permits: Arc::new(Semaphore::new(CONNECTIONS)), pool: Arc::default() }
    }

    /// The file was replaced: open connections lead to the old one.
    pub(super) fn reopen(&self) {
        self.pool.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a query has found the file broken since this was last asked.
    pub(super) fn take_suspicion(&self) -> bool {
        self.pool.suspect.swap(false, Ordering::SeqCst)
    }

    pub(super) async fn run<T: Send + 'static>(
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
                None => open(&path).map_err(|source| StoreError::Open { path, source: source.into() })?,
            };
            let result = query(&connection);
            if let Err(StoreError::Read(error)) = &result
                && error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
            {
                pool.suspect.store(true, Ordering::SeqCst);
            }
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
                .prepare_cached(&format!("SELECT {WHOLE} FROM {TABLES} WHERE signals.id = ?1"))?
                .query_row([key], |row| Ok(decode_row(row, 0)))
                .optional()?
                .transpose()
        })
        .await
    }

    /// How many signals pass a filter, by groups.
    pub async fn summary(&self, filter: Filter, grouping: Grouping) -> Result<SummarizeSignalsResponse, StoreError> {
        self.run(move |connection| summary::summarize(connection, &filter, &grouping)).await
    }

    /// Ids above the first and up to the second that no signal has any more.
    pub async fn gaps(&self, above: u64, up_to: u64) -> Result<Vec<WatchGap>, StoreError> {
        if above >= up_to {
            return Ok(Vec::new());
        }
        self.run(move |connection| gaps(connection, above, up_to)).await
    }

    /// What a workload does, what was seen last first.
    pub async fn habits(&self, workload: Workload) -> Result<Vec<Habit>, StoreError> {
        self.run(move |connection| Ok(habits::list(connection, workload)?)).await
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

/// What [`decode_row`] reads, and from where.
pub(super) const WHOLE: &str = "signals.id, signals.body, repeats.body, triage.body, network.body";
pub(super) const TABLES: &str =
    "signals LEFT JOIN repeats USING (id) LEFT JOIN triage USING (id) LEFT JOIN network USING (id)";

/// A whole signal from the five columns of [`WHOLE`] that begin at this one.
pub(super) fn decode_row(row: &Row<'_>, first: usize) -> Result<Signal, StoreError> {
    let id = u64::try_from(row.get::<_, i64>(first)?).unwrap_or_default();
    let bytes = |column| row.get_ref(column)?.as_blob_or_null().map_err(rusqlite::Error::from);
    let mut signal =
        Signal::decode(bytes(first + 1)?.unwrap_or_default()).map_err(|source| StoreError::Body { id, source })?;
    if let Some(changed) = bytes(first + 2)? {
        // What comes later holds, but lists are put one behind the other. What changes of these is told whole each time.
        (signal.occurrences, signal.suppressed) = (Vec::new(), Vec::new());
        signal.merge(changed).map_err(|source| StoreError::Body { id, source })?;
    }
    // It holds instead of the signal's own.
    if let Some(network) = bytes(first + 4)? {
        signal.network = Some(NetworkActivity::decode(network).map_err(|source| StoreError::Body { id, source })?);
    }
    signal.id = id;
    if signal.count == 0 {
        (signal.count, signal.last_time) = (1, signal.time);
    }
    let triage = bytes(first + 3)?.map(Triage::decode).transpose();
    signal.triage = triage.map_err(|source| StoreError::Body { id, source })?;
    Ok(signal)
}

fn integer(number: u64) -> Value {
    Value::from(i64::try_from(number).unwrap_or(i64::MAX))
}

/// The query for a page by what `key` says and by ids, from the greatest down.
fn by_key(filter: &Filter, key: &str, (below, id): (i64, u64), limit: usize) -> (String, Vec<Value>) {
    let (filters, filter_values) = filter.conditions();
    let bound = format!("({key}, signals.id) < (?, ?)");
    let conditions: Vec<&str> = [bound.as_str()].into_iter().chain(filters).collect();
    let conditions = conditions.join(" AND ");
    let values = [Value::from(below), integer(id)].iter().chain(filter_values).cloned().collect();
    let rows = if filter.expression().is_some() { SCANNED_ROWS } else { limit } + 1;
    // Sorted before the bodies are read: for counts no index has this order.
    let sql = format!(
        "SELECT sorted.key, {WHOLE} FROM (SELECT signals.id AS id, {key} AS key FROM {TABLES} WHERE {conditions}
         ORDER BY {key} DESC, signals.id DESC LIMIT {rows}) AS sorted
         CROSS JOIN signals USING (id) LEFT JOIN repeats USING (id) LEFT JOIN triage USING (id)
         LEFT JOIN network USING (id) ORDER BY sorted.key DESC, signals.id DESC"
    );
    (sql, values)
}

fn page(connection: &Connection, filter: &Filter, range: Range, limit: usize) -> Result<Page, StoreError> {
    let id = |id: u64| i64::try_from(id).unwrap_or(i64::MAX);
    let mut reading = Reading::new(filter, limit);
    match range {
        Range::Before(below) => {
            let (first, last) = filter.ids(connection)?;
            reading.by_id(connection, (first, last.min(id(below.saturating_sub(1)))), Order::Descending)?;
        }
        Range::After(above, up_to) => {
            let (first, last) = filter.ids(connection)?;
            let ids = (first.max(id(above.saturating_add(1))), last.min(id(up_to)));
            reading.by_id(connection, ids, Order::Ascending)?;
        }
        Range::BelowSeverity(severity, below) => {
            reading.query(connection, by_key(filter, "severity", (severity, below), limit))?;
        }
        Range::BelowCount(count, below) => {
            reading.query(connection, by_key(filter, "coalesce(count, 1)", (count, below), limit))?;
        }
    }
    Ok(reading.page)
}

/// A page that is being read.
struct Reading<'f> {
    filter: &'f Filter,
    limit: usize,
    page: Page,
    bytes: usize,
    scanned: usize,
    last: (i64, u64),
    budget: Budget,
}

impl<'f> Reading<'f> {
    fn new(filter: &'f Filter, limit: usize) -> Self {
        Self { filter, limit, page: Page::default(), bytes: 0, scanned: 0, last: (0, 0), budget: Budget::start() }
    }

    fn by_id(&mut self, connection: &Connection, ids: (i64, i64), order: Order) -> Result<(), StoreError> {
        let keys = self.filter.keys();
        let (conditions, values) = self.filter.conditions();
        if keys.is_empty() {
            // One bound each way: of several, SQLite would seek by one and look through what the others leave out.
            let conditions: Vec<&str> = ["signals.id BETWEEN ? AND ?"].into_iter().chain(conditions).collect();
            let order = order.sql();
            let sql = format!("SELECT 0, {WHOLE} FROM {TABLES} WHERE {} ORDER BY 2 {order}", conditions.join(" AND "));
            let bounds = [Value::from(ids.0), Value::from(ids.1)];
            return self.query(connection, (sql, bounds.iter().chain(values).cloned().collect()));
        }
        let conditions: Vec<&str> = ["signals.id = ?"].into_iter().chain(conditions).collect();
        let sql = format!("SELECT 0, {WHOLE} FROM {TABLES} WHERE {}", conditions.join(" AND "));
        let mut statement = connection.prepare_cached(&sql)?;
        let mut common = Common::new(connection, &keys, ids, order)?;
        while let Some(id) = common.next()? {
            let mut rows = statement.query(params_from_iter([Value::from(id)].iter().chain(values)))?;
            if let Some(row) = rows.next()?
                && self.take(row)?.is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn query(&mut self, connection: &Connection, (sql, values): (String, Vec<Value>)) -> Result<(), StoreError> {
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            if self.take(row)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// One more row, unless the page is full.
    fn take(&mut self, row: &Row<'_>) -> Result<ControlFlow<()>, StoreError> {
        let expression = self.filter.expression();
        let searched = expression.is_some() && (self.scanned >= SCANNED_ROWS || self.budget.is_spent());
        if self.page.signals.len() >= self.limit || self.bytes >= PAGE_BYTES || (self.scanned > 0 && searched) {
            self.page.next = Some(self.last);
            return Ok(ControlFlow::Break(()));
        }
        self.scanned += 1;
        self.last = (row.get(0)?, u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default());
        match decode_row(row, 1) {
            Ok(signal) if expression.is_some_and(|expression| !expression.matches(&signal)) => {}
            Ok(mut signal) => {
                if let Some(triage) = &mut signal.triage {
                    triage.earlier.clear();
                }
                self.bytes += signal.encoded_len();
                self.page.signals.push(signal);
            }
            // One bad row must not hide all others.
            Err(error) => tracing::warn!(%error, "a stored signal was left out"),
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Gaps that are told one by one; what is between the last of them and the end is one with it.
const GAPS: i64 = 16;

fn gaps(connection: &Connection, above: u64, up_to: u64) -> Result<Vec<WatchGap>, StoreError> {
    let gap = |first_id, last_id| WatchGap {
        first_id,
        last_id,
        reason: "retention has removed them, or the database was replaced".to_owned(),
    };
    let mut statement = connection.prepare_cached(
        "SELECT before + 1, id - 1 FROM
         (SELECT id, lag(id, 1, ?1) OVER (ORDER BY id) AS before FROM signals WHERE id > ?1 AND id <= ?2)
         WHERE id > before + 1 LIMIT ?3",
    )?;
    let number =
        |row: &Row<'_>, column| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(column)?).unwrap_or_default());
    let found = statement
        .query_map(params![integer(above), integer(up_to), GAPS], |row| Ok((number(row, 0)?, number(row, 1)?)))?;
    let mut gaps = found.map(|found| found.map(|(first, last)| gap(first, last))).collect::<Result<Vec<_>, _>>()?;
    let newest = connection
        .prepare_cached("SELECT max(id) FROM signals WHERE id <= ?1")?
        .query_row([integer(up_to)], |row| row.get::<_, Option<i64>>(0))?;
    let newest = newest.and_then(|id| u64::try_from(id).ok()).unwrap_or_default().max(above);
    if newest < up_to {
        gaps.push(gap(newest + 1, up_to));
    }
    Ok(gaps)
}

fn changes(
    connection: &Connection,
    filter: &Filter,
    up_to: u64,
    (above, newest): (u64, u64),
    limit: usize,
) -> Result<Changes, StoreError> {
    let mut conditions = vec!["signals.id <= ?"];
    let mut values: Vec<Value> = [above, newest, above, newest, above, newest, up_to].map(integer).into();
    let (filters, filter_values) = filter.conditions();
    conditions.extend(filters);
    values.extend_from_slice(filter_values);
    values.push(Value::from(i64::try_from(limit).unwrap_or(i64::MAX)));
    // CROSS JOIN: by revision, however few signals the filter leaves.
    let sql = format!(
        "SELECT changed.revision, changed.what, {WHOLE} FROM
         (SELECT id, revision, 0 AS what FROM repeats WHERE revision > ? AND revision <= ?
          UNION ALL SELECT id, revision, 1 FROM triage WHERE revision > ? AND revision <= ?
          UNION ALL SELECT id, revision, 2 FROM network WHERE revision > ? AND revision <= ?) AS changed
         CROSS JOIN signals USING (id) LEFT JOIN repeats USING (id) LEFT JOIN triage USING (id)
         LEFT JOIN network USING (id) WHERE {} ORDER BY changed.revision LIMIT ?",
        conditions.join(" AND ")
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut changes = Changes::default();
    let mut read = 0;
    while let Some(row) = rows.next()? {
        read += 1;
        let revision = u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default();
        changes.last = Some(revision);
        let signal = match decode_row(row, 2) {
            Ok(signal) => signal,
            Err(error) => {
                tracing::warn!(%error, "a change of a stored signal was left out");
                continue;
            }
        };
        if filter.expression().is_some_and(|expression| !expression.matches(&signal)) {
            continue;
        }
        let what: i64 = row.get(1)?;
        let triage = signal.triage.filter(|_| what == 1);
        changes.updates.push(SignalUpdate {
            id: signal.id,
            count: signal.count,
            last_time: signal.last_time,
            revision,
            triage: triage.map(|triage| Triage { earlier: Vec::new(), ..triage }),
            network: signal.network.filter(|_| what == 2),
        });
    }
    changes.more = read >= limit;
    Ok(changes)
}
