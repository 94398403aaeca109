//! How many of each container's events are in the store, and how many it was told to be lost: what an agent that starts needs to
//! find out what the one before it had read and not stored.
//!
//! An account is written in the transaction that stores what it counts. All are of one boot: cgroup ids begin anew.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{Connection, params};

use super::entry::Origin;
use crate::count::Count;

/// One container's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// What signals stand for, or policies leave out.
    pub seen: Count,
    /// What was told to be lost.
    pub lost: Count,
}

impl Account {
    /// What is to be added for so many events that something of this origin stands for.
    pub fn of(origin: Origin, count: Count) -> Option<(u64, Self)> {
        match origin {
            Origin::Event { cgroup_id, .. } | Origin::Suppressed { cgroup_id, .. } => {
                Some((cgroup_id, Self { seen: count, lost: Count::default() }))
            }
            Origin::Lost { cgroup_id, .. } => Some((cgroup_id, Self { seen: Count::default(), lost: count })),
            Origin::Unguarded { .. } | Origin::Operation { .. } => None,
        }
    }

    fn add(&mut self, other: Self) {
        self.seen += other.seen;
        self.lost += other.lost;
    }
}

/// By cgroup id.
#[derive(Debug, Default)]
pub struct Sum(HashMap<u64, Account>);

impl Sum {
    /// Adds to one, if any.
    pub fn add(&mut self, added: Option<(u64, Account)>) {
        if let Some((cgroup_id, account)) = added {
            self.0.entry(cgroup_id).or_default().add(account);
        }
    }

    /// Each container's.
    pub fn into_each(self) -> impl Iterator<Item = (u64, Account)> {
        self.0.into_iter()
    }

    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(
            "INSERT INTO accounts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET seen = seen + excluded.seen, seen_blocked = seen_blocked + excluded.seen_blocked,
             seen_killed = seen_killed + excluded.seen_killed, lost = lost + excluded.lost,
             lost_blocked = lost_blocked + excluded.lost_blocked, lost_killed = lost_killed + excluded.lost_killed",
        )?;
        for (cgroup_id, Account { seen, lost }) in &self.0 {
            let counts = [seen.all, seen.blocked, seen.killed, lost.all, lost.blocked, lost.killed];
            let [seen, seen_blocked, seen_killed, lost, lost_blocked, lost_killed] =
                counts.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
            let id = cgroup_id.cast_signed();
            statement.execute(params![id, seen, seen_blocked, seen_killed, lost, lost_blocked, lost_killed])?;
        }
        Ok(())
    }
}

/// What was handed to the store and is not in it: the events' thread tells it to be lost.
#[derive(Debug, Clone, Default)]
pub struct Dropped(Arc<Mutex<Sum>>);

impl Dropped {
    pub(super) fn add(&self, added: Option<(u64, Account)>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(added);
    }

    /// What was added since the last time.
    pub fn take(&self) -> Sum {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Forgets a container that is gone.
pub(super) fn close(connection: &Connection, cgroup_id: u64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM accounts WHERE cgroup_id = ?1")?.execute([cgroup_id.cast_signed()])?;
    Ok(())
}

/// The accounts of this boot; `None` if none were kept since it began, and from now on they are.
pub(super) fn open(connection: &mut Connection, boot: &str) -> rusqlite::Result<Option<HashMap<u64, Account>>> {
    let transaction = connection.transaction()?;
    let known = transaction.prepare("SELECT 1 FROM boot WHERE id = ?1")?.exists([boot])?;
    if !known {
        transaction.execute("DELETE FROM accounts", [])?;
        transaction.execute("DELETE FROM boot", [])?;
        transaction.execute("INSERT INTO boot VALUES (?1)", [boot])?;
    }
    let mut accounts = HashMap::new();
    {
        let mut statement = transaction.prepare("SELECT * FROM accounts")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let number = |column: usize| Ok::<_, rusqlite::Error>(row.get::<_, i64>(column)?.cast_unsigned());
            let count = |first: usize| -> rusqlite::Result<Count> {
                Ok(Count { all: number(first)?, blocked: number(first + 1)?, killed: number(first + 2)? })
            };
            let cgroup_id: i64 = row.get(0)?;
            accounts.insert(cgroup_id.cast_unsigned(), Account { seen: count(1)?, lost: count(4)? });
        }
    }
    transaction.commit()?;
    Ok(known.then_some(accounts))
}
