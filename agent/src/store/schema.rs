//! Tables, and opening a database that may be corrupt or of a newer version: it is moved aside, for no file must stop
//! detection.

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
pub(super) const STEPS: [&str; 7] = [SIGNALS, REPEATS, TRIAGE, HABITS, NETWORK, HOURS, ACCOUNTS];

const SIGNALS: &str = "
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

/// What is habitual, see [`super::habits`].
const HABITS: &str = "
BEGIN IMMEDIATE;
CREATE TABLE workloads (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL UNIQUE,
    since_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX workloads_last ON workloads (last_ns);
CREATE TABLE habits (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    workload INTEGER NOT NULL REFERENCES workloads (id) ON DELETE CASCADE,
    rule TEXT NOT NULL,
    tool TEXT NOT NULL,
    origin INTEGER NOT NULL,
    first_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    times INTEGER NOT NULL,
    -- Bit 0 is the day of last_ns, UTC, bit 1 the day before, and so on.
    days INTEGER NOT NULL,
    UNIQUE (workload, rule, tool, origin)
) STRICT;
CREATE INDEX habits_last ON habits (last_ns);
ALTER TABLE signals ADD COLUMN first_time INTEGER NOT NULL DEFAULT 0;
-- Its row of habits. No reference: that may go first, and its id is not given again.
ALTER TABLE signals ADD COLUMN habit INTEGER;
CREATE INDEX signals_first_time ON signals (first_time) WHERE first_time = 1;
PRAGMA user_version = 4;
COMMIT;
";

/// Apart from repeats: both change by themselves.
const NETWORK: &str = "
BEGIN IMMEDIATE;
CREATE TABLE network (
    id INTEGER PRIMARY KEY REFERENCES signals (id) ON DELETE CASCADE,
    -- Grows with every change of any row, here or of repeats.
    revision INTEGER NOT NULL UNIQUE,
    -- portcullis.v1.NetworkActivity, which holds instead of the signal's own.
    body BLOB NOT NULL
) STRICT;
PRAGMA user_version = 5;
COMMIT;
";

/// Where among the ids an hour's signals are: those that began in it, and for `first_id` also those that went on in it. Ids are by
/// time of storing, so that a range of time is nearly one of ids, and only that is looked through.
const HOURS: &str = "
BEGIN IMMEDIATE;
CREATE TABLE hours (
    hour INTEGER PRIMARY KEY,
    first_id INTEGER NOT NULL,
    last_id INTEGER NOT NULL
) STRICT;
INSERT INTO hours SELECT time_ns / 3600000000000, min(id), max(id) FROM signals GROUP BY 1;
INSERT INTO hours SELECT last_ns / 3600000000000, min(id), max(id) FROM repeats WHERE true GROUP BY 1
ON CONFLICT DO UPDATE SET first_id = min(first_id, excluded.first_id);
CREATE TRIGGER signals_hours AFTER INSERT ON signals BEGIN
    INSERT INTO hours VALUES (new.time_ns / 3600000000000, new.id, new.id)
    ON CONFLICT DO UPDATE SET first_id = min(first_id, excluded.first_id), last_id = max(last_id, excluded.last_id);
END;
CREATE TRIGGER repeats_hours_insert AFTER INSERT ON repeats BEGIN
    INSERT INTO hours VALUES (new.last_ns / 3600000000000, new.id, new.id)
    ON CONFLICT DO UPDATE SET first_id = min(first_id, excluded.first_id);
END;
CREATE TRIGGER repeats_hours_update AFTER UPDATE OF last_ns ON repeats BEGIN
    INSERT INTO hours VALUES (new.last_ns / 3600000000000, new.id, new.id)
    ON CONFLICT DO UPDATE SET first_id = min(first_id, excluded.first_id);
END;
PRAGMA user_version = 6;
COMMIT;
";

/// See [`super::accounts`].
const ACCOUNTS: &str = "
BEGIN IMMEDIATE;
CREATE TABLE boot (id TEXT PRIMARY KEY) STRICT;
CREATE TABLE accounts (
    cgroup_id INTEGER PRIMARY KEY,
    seen INTEGER NOT NULL,
    seen_blocked INTEGER NOT NULL,
    seen_killed INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    lost_blocked INTEGER NOT NULL,
    lost_killed INTEGER NOT NULL
) STRICT;
PRAGMA user_version = 7;
COMMIT;
";

/// A database that this agent can't go on with.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// SQLite says so.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// A query found it broken where opening does not look.
    #[error("a part of it is damaged")]
    Damaged,
    /// It is none.
    #[error("it is a directory")]
    Directory,
    /// A newer agent wrote it.
    #[error("it has version {version}, and this agent knows none after {}", STEPS.len())]
    Newer {
        /// Its `user_version`.
        version: i64,
    },
}

impl Unusable {
    /// Whether the file, rather than the disk or the system around it, is the problem.
    fn is_the_files(&self) -> bool {
        match self {
            Self::Sqlite(error) => is_corrupt(error),
            Self::Damaged | Self::Directory | Self::Newer { .. } => true,
        }
    }

    /// What is added to the file's name. One corrupt file is kept, so that corruption that comes back can't fill the disk. What
    /// a newer agent wrote is kept in any case: only an operator's going back to an older one makes more of it.
    fn suffix(&self) -> String {
        match self {
            Self::Sqlite(_) | Self::Damaged | Self::Directory => ".corrupt".to_owned(),
            Self::Newer { version } => format!(".v{version}-{}", clock::now_ns() / 1_000_000_000),
        }
    }
}

/// Opens the database for writing; replaces it when it is unusable.
pub fn open(path: &Path, counters: &Counters) -> Result<Connection, StoreError> {
    match try_open(path) {
        Ok(connection) => Ok(connection),
        Err(error) if error.is_the_files() => replace(path, &error, counters),
        Err(source) => Err(StoreError::Open { path: path.to_owned(), source }),
    }
}

/// Moves the database aside and starts an empty one, whose ids go on above all that were ever given.
pub fn replace(path: &Path, cause: &Unusable, counters: &Counters) -> Result<Connection, StoreError> {
    let aside = move_aside(path, &cause.suffix())?;
    counters.store_replaced.increment();
    tracing::error!(
        error = %cause,
        kept_as = %aside.display(),
        "the signal database can't be used and was moved aside; starting an empty one"
    );
    let open = |source| StoreError::Open { path: path.to_owned(), source };
    let connection = try_open(path).map_err(open)?;
    // The old ids are lost with the file. Milliseconds since 1970 are greater than any of them, unless more than a
    // thousand signals a second were stored ever since, and still exact in a JSON number.
    let floor = i64::try_from(clock::now_ns() / 1_000_000).unwrap_or_default();
    connection
        .execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('signals', ?1)", [floor])
        .map_err(|error| open(error.into()))?;
    Ok(connection)
}

/// Whether an error says that the file is broken.
pub fn is_corrupt(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        // Unknown is SQLITE_ERROR: a table or column is missing.
        Some(code) => matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown),
        None => true,
    }
}

/// Looks at the whole database, which takes seconds where it is large. Whether it is sound.
pub fn is_sound(connection: &Connection) -> bool {
    connection.pragma_query_value(None, "quick_check(1)", |row| row.get::<_, String>(0)).is_ok_and(|told| told == "ok")
}

fn try_open(path: &Path) -> Result<Connection, Unusable> {
    if path.is_dir() {
        return Err(Unusable::Directory);
    }
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(5))?;
    // First: what a newer agent wrote stays as it is.
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let steps = match usize::try_from(version) {
        Ok(known) => STEPS.get(known..).ok_or(Unusable::Newer { version })?,
        Err(_) => return Err(rusqlite::Error::IntegralValueOutOfRange(0, version).into()),
    };
    // Before the first table; later it has no effect.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update_and_check(None, "journal_size_limit", 16 << 20, |row| row.get::<_, i64>(0))?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    for step in steps {
        connection.execute_batch(step)?;
    }
    // Touches every table and index root.
    connection.query_row(
        "SELECT (SELECT max(id) FROM signals), (SELECT count(*) FROM containers), (SELECT max(id) FROM repeats),
          (SELECT max(id) FROM triage), (SELECT max(id) FROM workloads), (SELECT max(id) FROM habits),
          (SELECT max(id) FROM network), (SELECT max(hour) FROM hours), (SELECT max(id) FROM boot),
          (SELECT max(cgroup_id) FROM accounts)",
        [],
        |_| Ok(()),
    )?;
    Ok(connection)
}

fn move_aside(path: &Path, added: &str) -> Result<PathBuf, StoreError> {
    let with_suffix = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with_suffix(added);
    fs::rename(path, &aside).map_err(|source| StoreError::MoveAside { path: path.to_owned(), source })?;
    for suffix in ["-wal", "-shm"] {
        let journal = with_suffix(suffix);
        match fs::rename(&journal, with_suffix(&format!("{added}{suffix}"))) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::MoveAside { path: journal, source });
            }
            _ => {}
        }
    }
    Ok(aside)
}
