//! Tables, and opening a database that may be corrupt: it is moved aside, for a broken file must not stop detection.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;
use crate::{clock, counters::Counters};

/// What leads from each version (`PRAGMA user_version`) to the next. Only ever added to: a database of any earlier version
/// becomes one of this.
const STEPS: [&str; 3] = [SIGNALS, REPEATS, TRIAGE];

pub(super) const SIGNALS: &str = "
BEGIN IMMEDIATE;
CREATE TABLE signals (
    -- AUTOINCREMENT: an id that retention has freed is not given again.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    origin BLOB NOT NULL UNIQUE,
    time_ns INTEGER NOT NULL,
    rule TEXT NOT NULL,
    verdict INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    tool TEXT NOT NULL,
    category TEXT NOT NULL,
    container_id TEXT NOT NULL,
    image TEXT NOT NULL,
    pod_namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL,
    -- portcullis.v1.Signal without its id.
    body BLOB NOT NULL
) STRICT;
CREATE INDEX signals_time ON signals (time_ns);
CREATE INDEX signals_rule ON signals (rule);
CREATE INDEX signals_verdict ON signals (verdict);
CREATE INDEX signals_severity ON signals (severity);
CREATE INDEX signals_tool ON signals (tool);
CREATE INDEX signals_category ON signals (category);
CREATE INDEX signals_container ON signals (container_id);
CREATE INDEX signals_image ON signals (image);
CREATE INDEX signals_pod ON signals (pod_namespace, pod_name);
CREATE TABLE containers (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    image TEXT NOT NULL,
    stored_ns INTEGER NOT NULL,
    PRIMARY KEY (namespace, id, created_ns)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
COMMIT;
";

/// Apart from signals, whose rows are large: what goes on for long is written once a second.
const REPEATS: &str = "
BEGIN IMMEDIATE;
CREATE TABLE repeats (
    id INTEGER PRIMARY KEY REFERENCES signals (id) ON DELETE CASCADE,
    -- Grows with every change of any row.
    revision INTEGER NOT NULL UNIQUE,
    count INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    -- portcullis.v1.Signal with only what has changed.
    body BLOB NOT NULL
) STRICT;
CREATE INDEX repeats_last ON repeats (last_ns);
PRAGMA user_version = 2;
COMMIT;
";

/// What people make of signals.
const TRIAGE: &str = "
BEGIN IMMEDIATE;
CREATE TABLE triage (
    id INTEGER PRIMARY KEY REFERENCES signals (id) ON DELETE CASCADE,
    -- Of the same sequence as in repeats.
    revision INTEGER NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    -- portcullis.v1.Triage, with earlier changes.
    body BLOB NOT NULL
) STRICT;
CREATE INDEX triage_state ON triage (state);
-- A container's signals around a moment, whatever a flood of them there is.
CREATE INDEX signals_container_time ON signals (container_id, time_ns);
PRAGMA user_version = 3;
COMMIT;
";

/// Opens the database for writing; replaces it when it is unusable.
pub fn open(path: &Path, counters: &Counters) -> Result<Connection, StoreError> {
    match try_open(path) {
        Ok(connection) => Ok(connection),
        Err(error) if is_corrupt(&error) => replace(path, &error, counters),
        Err(source) => Err(StoreError::Open { path: path.to_owned(), source }),
    }
}

/// Moves the database aside and starts an empty one, whose ids go on above all that were ever given.
pub fn replace(path: &Path, cause: &rusqlite::Error, counters: &Counters) -> Result<Connection, StoreError> {
    let aside = move_aside(path)?;
    counters.store_replaced.increment();
    tracing::error!(error = %cause, kept_as = %aside.display(), "the signal database is corrupt; starting an empty one");
    let open = |source| StoreError::Open { path: path.to_owned(), source };
    let connection = try_open(path).map_err(open)?;
    // The old ids are lost with the file. Milliseconds since 1970 are greater than any of them, unless more than a
    // thousand signals a second were stored ever since, and still exact in a JSON number.
    let floor = i64::try_from(clock::now_ns() / 1_000_000).unwrap_or_default();
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('signals', ?1)", [floor]).map_err(open)?;
    Ok(connection)
}

/// Whether the file, rather than the disk or the system around it, is the problem.
pub fn is_corrupt(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        // Unknown is SQLITE_ERROR: a table or column is missing.
        Some(code) => matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown),
        None => true,
    }
}

fn try_open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(5))?;
    // Before the first table; later it has no effect.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update_and_check(None, "journal_size_limit", 16 << 20, |row| row.get::<_, i64>(0))?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let steps = usize::try_from(version).ok().and_then(|version| STEPS.get(version..));
    for step in steps.ok_or(rusqlite::Error::IntegralValueOutOfRange(0, version))? {
        connection.execute_batch(step)?;
    }
    // Touches every table and index root.
    connection.query_row(
        "SELECT (SELECT max(id) FROM signals), (SELECT count(*) FROM containers), (SELECT max(id) FROM repeats), (SELECT max(id) FROM triage)",
        [],
        |_| Ok(()),
    )?;
    Ok(connection)
}

/// One corrupt file is kept, so that corruption that comes back can't fill the disk.
fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let with_suffix = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with_suffix(".corrupt");
    fs::rename(path, &aside).map_err(|source| StoreError::MoveAside { path: path.to_owned(), source })?;
    for suffix in ["-wal", "-shm"] {
        let journal = with_suffix(suffix);
        match fs::rename(&journal, with_suffix(&format!(".corrupt{suffix}"))) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::MoveAside { path: journal, source });
            }
            _ => {}
        }
    }
    Ok(aside)
}
