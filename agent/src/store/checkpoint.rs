//! Brings the write-ahead log into the database beside the writer. That waits for the disk, and what is to be stored meanwhile would wait with
//! it: a fifth of the time at a thousand signals a second.

use std::{
    ffi::c_int,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::Result;
use rusqlite::{Connection, OpenFlags, hooks::Wal};

/// Pages in the log from which on it is brought into the database.
const DUE: c_int = 1000;

/// From so many on the writer does what is left to be done: as long as it writes, nobody else comes to the log's end, where it begins anew.
const MOST: c_int = 2000;

/// From so many on the writer waits for the other, should that be at it: a slow disk must not make the log grow for ever. What
/// so many take when they come into a database on a full disk, the reserve has.
const LONGEST: c_int = 4000;

/// A thread that does it, as long as the writer's connection is open. Should there be none, the writer goes on doing it.
#[derive(Debug)]
pub struct Checkpoints(Option<JoinHandle<()>>);

impl Checkpoints {
    /// Starts it for this connection.
    pub fn start(writer: &mut Connection, path: &Path) -> Self {
        let started = start(writer, path).inspect_err(|error| {
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                "signals may have to wait for the disk: nobody but the writer brings the log into the database"
            );
        });
        Self(started.ok())
    }

    /// Ends it, so that the writer's connection is the last that may change anything when it is closed.
    pub fn end(self, writer: &mut Connection) -> rusqlite::Result<()> {
        writer.wal_hook(None::<fn(&mut Wal, c_int) -> rusqlite::Result<()>>)?;
        // Should it have panicked, then it has ended as well.
        let _ = self.0.map(JoinHandle::join);
        Ok(())
    }
}

fn start(writer: &mut Connection, path: &Path) -> Result<JoinHandle<()>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // One that is on its way is enough.
    let (due, is_due) = mpsc::sync_channel(1);
    let under_way = Arc::new(Mutex::new(()));
    let mine = Arc::clone(&under_way);
    let thread = thread::Builder::new().name("checkpoints".to_owned()).spawn(move || {
        for () in is_due {
            let _under_way = mine.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
                tracing::debug!(%error, "the write-ahead log could not be brought into the signal database");
            }
        }
    })?;
    writer.wal_hook(Some(move |log: &mut Wal, pages| {
        if pages >= MOST {
            // SQLite itself would not wait.
            let _ended = (pages >= LONGEST).then(|| under_way.lock().unwrap_or_else(PoisonError::into_inner));
            // As with SQLite's own hook it is no error of what was written. The log grows, and on a full disk the next write tells.
            let _ = log.checkpoint();
        } else if pages >= DUE {
            let _ = due.try_send(());
        }
        Ok(())
    }))?;
    Ok(thread)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn the_log_comes_to_its_end() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("x.db");
        let mut writer = Connection::open(&path).unwrap();
        writer.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)).unwrap();
        writer.execute_batch("CREATE TABLE t (x)").unwrap();
        let checkpoints = Checkpoints::start(&mut writer, &path);
        let write = |times: c_int| {
            for _ in 0..times {
                writer.execute("INSERT INTO t VALUES (zeroblob(16000))", []).unwrap();
            }
        };
        let database = || fs::metadata(&path).unwrap().len();
        write(100);
        assert!(database() < 100_000, "the log is short");
        write(DUE / 4);
        while database() < 4_000_000 {
            thread::sleep(Duration::from_millis(1));
        }
        write(10 * DUE);
        let log = fs::metadata(state.path().join("x.db-wal")).unwrap().len();
        assert!(log < 3 * 4096 * u64::try_from(MOST).unwrap(), "{log} bytes");
        checkpoints.end(&mut writer).unwrap();
        drop(writer);
        assert!(!state.path().join("x.db-wal").exists(), "nobody else has it open");
    }
}
