//! Signals that several conditions fit, each of which has an index in the order of ids. Rows are large, so that looking into each that
//! fits one of the conditions is slow where few of these fit the others; here only what is common to all is looked at. Which is rarer does
//! not matter: whoever is behind goes as far as the farthest at once.

use std::{collections::VecDeque, iter};

use rusqlite::{CachedStatement, Connection, params_from_iter, types::Value};

use super::filter::Key;

/// Ids read at once: more where one is looked for after the other, fewer where most are passed over.
const CHUNK: (usize, usize) = (16, 512);

/// The way through ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

impl Order {
    pub fn sql(self) -> &'static str {
        match self {
            Self::Ascending => "ASC",
            Self::Descending => "DESC",
        }
    }

    /// Grows on the way; of a rank, the id.
    fn rank(self, id: i64) -> i64 {
        match self {
            Self::Ascending => id,
            Self::Descending => id.saturating_neg(),
        }
    }
}

/// The ids that fit all of the keys, one after the other.
pub(super) struct Common<'c> {
    lists: Vec<List<'c>>,
    order: Order,
    /// The least rank that is still to come.
    next: i64,
}

impl<'c> Common<'c> {
    /// Of the ids from the first to the last.
    pub fn new(connection: &'c Connection, keys: &[Key], ids: (i64, i64), order: Order) -> rusqlite::Result<Self> {
        let lists: rusqlite::Result<_> = keys.iter().map(|key| List::new(connection, key, ids, order)).collect();
        let begin = if order == Order::Ascending { ids.0 } else { ids.1 };
        Ok(Self { lists: lists?, order, next: order.rank(begin) })
    }

    pub fn next(&mut self) -> rusqlite::Result<Option<i64>> {
        let mut rank = self.next;
        let mut agreeing = 0;
        for at in (0..self.lists.len()).cycle() {
            if agreeing == self.lists.len() {
                break;
            }
            let Some(list) = self.lists.get_mut(at) else { break };
            match list.seek(rank)? {
                None => return Ok(None),
                Some(found) if found == rank => agreeing += 1,
                Some(found) => (rank, agreeing) = (found, 1),
            }
        }
        self.next = rank.saturating_add(1);
        Ok(Some(self.order.rank(rank)))
    }
}

/// The ids that fit one key, of which the next ones are in memory.
struct List<'c> {
    statement: CachedStatement<'c>,
    key: Key,
    ids: (i64, i64),
    order: Order,
    ranks: VecDeque<i64>,
    chunk: usize,
    /// How often one of the chunk was what was looked for.
    found: usize,
    /// There are none behind these.
    ends: bool,
}

impl<'c> List<'c> {
    fn new(connection: &'c Connection, key: &Key, ids: (i64, i64), order: Order) -> rusqlite::Result<Self> {
        let select = |condition: &&str| {
            format!("SELECT id FROM signals INDEXED BY {} WHERE {condition} AND id BETWEEN ? AND ?", key.index)
        };
        // Merged by SQLite as far as it is asked for.
        let selects: Vec<String> = key.any_of.iter().map(select).collect();
        let sql = format!("{} ORDER BY 1 {} LIMIT ?", selects.join(" UNION ALL "), order.sql());
        let statement = connection.prepare_cached(&sql)?;
        let (key, ranks, chunk) = (key.clone(), VecDeque::new(), CHUNK.0);
        Ok(Self { statement, key, ids, order, ranks, chunk, found: 0, ends: false })
    }

    /// The least rank from this one on.
    fn seek(&mut self, from: i64) -> rusqlite::Result<Option<i64>> {
        let passed = self.ranks.partition_point(|rank| *rank < from);
        self.ranks.drain(..passed);
        if self.ranks.is_empty() && !self.ends {
            self.chunk = if self.found > 1 { CHUNK.1.min(self.chunk * 2) } else { CHUNK.0.max(self.chunk / 2) };
            self.found = 0;
            self.read(from)?;
        }
        self.found += 1;
        Ok(self.ranks.front().copied())
    }

    fn read(&mut self, from: i64) -> rusqlite::Result<()> {
        let (order, begin) = (self.order, self.order.rank(from));
        let (first, last) = if order == Order::Ascending { (begin, self.ids.1) } else { (self.ids.0, begin) };
        let bounds = [Value::from(first), Value::from(last)];
        let limit = Value::from(i64::try_from(self.chunk).unwrap_or(i64::MAX));
        let values = iter::repeat_n(self.key.values.iter().chain(&bounds), self.key.any_of.len()).flatten();
        let values = values.chain(iter::once(&limit));
        let ids = self.statement.query_map(params_from_iter(values), |row| row.get(0))?;
        for id in ids {
            self.ranks.push_back(order.rank(id?));
        }
        self.ends = self.ranks.len() < self.chunk;
        Ok(())
    }
}
