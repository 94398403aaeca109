//! What goes when there is too much. Age is looked at from time to time, size after each batch: a flood can't fill the
//! disk between two looks.

use std::{
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::habits;
use crate::clock;

/// Images of containers that are remembered; the oldest go first.
const MAX_CONTAINERS: i64 = 20_000;
/// Signals removed in one step: as many as a batch brings at most. What more changes at once is more than is brought into the database beside
/// the writer, and new signals would wait for the disk.
const STEP: i64 = 256;
/// What the newest batch needs is free before it comes, so that the file neither grows beyond its limit nor has to be made smaller each
/// time. Of a small limit, a part.
const FREE_BYTES: u64 = 4 << 20;
const FREE_PART: u64 = 16;
/// The same where there is little room: what is changed is written to the log first.
const SMALL_STEP: i64 = 64;
/// How long the log is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);
/// Pages given back to the file system in one step (4 MB).
const VACUUM_PAGES: i64 = 1000;

/// Removes what is too old, that is to say: was not seen again of late. Returns the number of signals removed.
pub fn by_age(connection: &Connection, max_age: Duration) -> rusqlite::Result<u64> {
    let age = u64::try_from(max_age.as_nanos()).unwrap_or(u64::MAX);
    let oldest = i64::try_from(clock::now_ns().saturating_sub(age)).unwrap_or(0);
    let removed = connection.execute(
        "DELETE FROM signals WHERE time_ns < ?1
         AND NOT EXISTS (SELECT 1 FROM repeats WHERE repeats.id = signals.id AND last_ns >= ?1)",
        [oldest],
    )?;
    connection.execute("DELETE FROM containers WHERE stored_ns < ?1", [oldest])?;
    connection.execute(
        "DELETE FROM containers WHERE stored_ns <
         (SELECT stored_ns FROM containers ORDER BY stored_ns DESC LIMIT 1 OFFSET ?1)",
        [MAX_CONTAINERS],
    )?;
    connection.execute("DELETE FROM hours WHERE last_id < (SELECT min(id) FROM signals)", [])?;
    habits::forget_old(connection)?;
    if removed > 0 {
        vacuum(connection)?;
    }
    Ok(u64::try_from(removed).unwrap_or(0))
}

/// Removes the oldest signals until the database is small enough, and counts them, whether or not all goes well.
pub fn by_size(connection: &Connection, max_bytes: u64, removed: &mut u64) -> rusqlite::Result<()> {
    let most = max_bytes - FREE_BYTES.min(max_bytes / FREE_PART);
    while used_bytes(connection)? > most {
        let step = remove_oldest(connection, STEP)?;
        if step == 0 {
            break;
        }
        *removed += step;
    }
    // It was larger, or a batch was.
    let mut file = bytes(connection, "page_count")?;
    while file > max_bytes {
        vacuum(connection)?;
        let smaller = bytes(connection, "page_count")?;
        if smaller >= file {
            break;
        }
        file = smaller;
    }
    Ok(())
}

/// Removes the oldest signals until so much of the database is free for new ones, but no more than a quarter of it, and counts
/// them. It takes little room on the disk, and gives none back.
pub fn by_free_space(connection: &Connection, free_bytes: u64, removed: &mut u64) -> rusqlite::Result<()> {
    let enough = free_bytes.min(bytes(connection, "page_count")? / 4);
    while bytes(connection, "freelist_count")? < enough {
        let step = remove_oldest(connection, SMALL_STEP)?;
        if step == 0 {
            break;
        }
        *removed += step;
    }
    Ok(())
}

/// Brings the write-ahead log into the database and gives its room back, as far as no reader is in the way.
pub fn empty_log(connection: &Connection) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        // Where another is doing a part of it, SQLite does not wait by itself.
        let is_busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0))?;
        if !is_busy || begun.elapsed() > PATIENCE {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
}

fn remove_oldest(connection: &Connection, step: i64) -> rusqlite::Result<u64> {
    let removed = connection
        .prepare_cached(
            "DELETE FROM signals WHERE id IN (SELECT id FROM signals ORDER BY id LIMIT
             (SELECT max(1, min(?1, count(*) / 10)) FROM (SELECT 1 FROM signals LIMIT ?1 * 10)))",
        )?
        .execute([step])?;
    Ok(u64::try_from(removed).unwrap_or(0))
}

fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    Ok(bytes(connection, "page_count")?.saturating_sub(bytes(connection, "freelist_count")?))
}

/// Pages that a pragma counts, in bytes.
fn bytes(connection: &Connection, pages: &str) -> rusqlite::Result<u64> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    Ok(u64::try_from(pragma(pages)?.saturating_mul(pragma("page_size")?)).unwrap_or(0))
}

fn vacuum(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
