//! What a story is made of: a container's signals around a moment, and what other containers did then. Every query goes by an
//! index and looks at a bounded number of rows, however much a container does.

use portcullis_proto::v1::Signal;
use rusqlite::{Connection, Params, params};

use super::{
    StoreError,
    reader::{Readers, TABLES, WHOLE, decode_row},
};

/// Encoded bytes after which one direction of time ends: with all that is made of them they must fit into 4 MB.
const BYTES: usize = 384 << 10;
/// Signals of other containers in the time that are looked at, the newest.
const ELSEWHERE: i64 = 2000;

/// A container and a time, nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Around {
    /// containerd's id.
    pub container_id: String,
    /// From then on.
    pub since_ns: i64,
    /// What it is about.
    pub moment_ns: i64,
    /// Up to and including then.
    pub until_ns: i64,
}

/// Signals of a container.
#[derive(Debug, Default)]
pub struct Near {
    /// Those that began up to the moment, newest first.
    pub before: Vec<Signal>,
    /// Those that began after it, oldest first.
    pub after: Vec<Signal>,
    /// How many there are in the time, these included.
    pub total: u64,
}

impl Readers {
    /// A container's signals in a time, in each direction the nearest to its moment, `limit` at most.
    pub async fn near(&self, around: Around, limit: usize) -> Result<Near, StoreError> {
        self.run(move |connection| near(connection, &around, limit)).await
    }

    /// Folds signals of other containers in a time, the newest ones, in no order.
    pub async fn elsewhere<T: Send + 'static>(
        &self,
        around: Around,
        mut folded: T,
        fold: impl Fn(&mut T, Signal) + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(move |connection| {
            let sql = format!(
                "SELECT {WHOLE} FROM {TABLES} WHERE container_id <> ?3 AND signals.id IN
                 (SELECT id FROM signals WHERE time_ns BETWEEN ?1 AND ?2 ORDER BY time_ns DESC LIMIT ?4)"
            );
            let Around { container_id, since_ns, until_ns, .. } = &around;
            each(connection, &sql, params![since_ns, until_ns, container_id, ELSEWHERE], usize::MAX, |signal| {
                fold(&mut folded, signal);
            })?;
            Ok(folded)
        })
        .await
    }

    /// The first and the newest signal of a container.
    pub async fn first_and_newest_of(&self, container_id: String) -> Result<Option<(Signal, Signal)>, StoreError> {
        self.run(move |connection| {
            let mut ends = Vec::new();
            for order in ["ASC", "DESC"] {
                let sql =
                    format!("SELECT {WHOLE} FROM {TABLES} WHERE container_id = ?1 ORDER BY time_ns {order} LIMIT 1");
                each(connection, &sql, params![container_id], 1, |signal| ends.push(signal))?;
            }
            let newest = ends.pop();
            Ok(ends.pop().zip(newest))
        })
        .await
    }
}

/// Hands on each signal of a query.
fn each(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    most_bytes: usize,
    mut take: impl FnMut(Signal),
) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        match decode_row(row, 0) {
            Ok(signal) => {
                bytes += prost::Message::encoded_len(&signal);
                take(signal);
            }
            // One bad row must not hide all others.
            Err(error) => tracing::warn!(%error, "a stored signal was left out of a story"),
        }
        if bytes >= most_bytes {
            break;
        }
    }
    Ok(())
}

fn near(connection: &Connection, around: &Around, limit: usize) -> Result<Near, StoreError> {
    let Around { container_id, since_ns, moment_ns, until_ns } = around;
    let rows = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut found = Near::default();
    let of_container = format!("SELECT {WHOLE} FROM {TABLES} WHERE container_id = ?1 AND time_ns");
    let sql = format!("{of_container} BETWEEN ?2 AND ?3 ORDER BY time_ns DESC, signals.id DESC LIMIT ?4");
    each(connection, &sql, params![container_id, since_ns, moment_ns, rows], BYTES, |signal| {
        found.before.push(signal);
    })?;
    let sql = format!("{of_container} > ?2 AND time_ns <= ?3 ORDER BY time_ns, signals.id LIMIT ?4");
    each(connection, &sql, params![container_id, moment_ns, until_ns, rows], BYTES, |signal| found.after.push(signal))?;
    let in_time: i64 = connection
        .prepare_cached("SELECT count(*) FROM signals WHERE container_id = ?1 AND time_ns BETWEEN ?2 AND ?3")?
        .query_row(params![container_id, since_ns, until_ns], |row| row.get(0))?;
    found.total = u64::try_from(in_time).unwrap_or_default();
    Ok(found)
}
