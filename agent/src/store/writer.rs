//! The store's thread.

use std::{
    mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use portcullis_proto::v1::{NetworkActivity, Signal};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, watch};

use super::{
    Command, ContainerKey, Limits, StoreError, TriageChange,
    accounts::{self, Account, Dropped, Sum},
    checkpoint::Checkpoints,
    entry::{Entry, Origin, Update},
    habits,
    health::{Health, Trouble},
    reader::Readers,
    retention,
    room::{self, Reserve},
    schema::{self, Unusable},
    triage,
};
use crate::{clock, counters::Counters, network};

/// Commands of one transaction at most.
const BATCH: usize = 256;
/// A busy database may be better a moment later; after that the batch is dropped and counted.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);
/// Says whose database it is (file(1) shows it): "Port".
const APPLICATION_ID: i32 = 0x506f_7274;
/// Signals that one is said to be related to.
const RELATED: u32 = 16;

pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) reserve: Reserve,
    pub(super) health: Health,
    /// The disk was full, and there is not plenty of room again.
    pub(super) starved: bool,
    /// Signals dropped since the database takes nothing; `None` when it does.
    pub(super) failing: Option<u64>,
    /// Signals removed for the database's size, and not yet told.
    pub(super) shrunk: u64,
    pub(super) connection: Connection,
    pub(super) checkpoints: Checkpoints,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
    pub(super) last_id: watch::Sender<u64>,
    pub(super) revision: watch::Sender<u64>,
    pub(super) stored: Arc<AtomicU64>,
    pub(super) readers: Arc<Readers>,
    pub(super) dropped: Dropped,
    pub(super) settled: Arc<AtomicU64>,
}

/// What one transaction did.
#[derive(Default)]
struct Outcome {
    inserted: u64,
    duplicates: u64,
    last_id: Option<i64>,
    /// Updates of signals that are gone.
    orphans: Vec<Update>,
    /// What is in the store by it.
    accounts: Sum,
    /// What was done on the network by processes whose signals are not there.
    unmatched: u64,
    revision: Option<u64>,
    /// Something was written that is neither.
    probed: bool,
    /// There may be workloads or habits more than before.
    learnt: bool,
    /// Workloads and habits that had to make room.
    forgotten: u64,
}

impl Writer {
    /// Works until every sender is gone.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        self.expire();
        while commands.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.write(&batch);
            if batch.iter().any(|command| matches!(command, Command::Expire)) {
                self.expire();
            }
            for command in batch.drain(..) {
                match command {
                    Command::Triage(change) => self.triage(change),
                    Command::Settle(number) => self.settled.store(number, Ordering::Release),
                    _ => {}
                }
            }
            if self.failing.is_none() {
                self.shrink();
                self.end_starvation();
            }
            if self.readers.take_suspicion() && !schema::is_sound(&self.connection) {
                self.replace(&Unusable::Damaged);
            }
        }
        let ended = self.checkpoints.end(&mut self.connection);
        if let Err(error) = ended.and_then(|()| self.connection.close().map_err(|(_, error)| error)) {
            tracing::warn!(%error, "the signal database could not be closed");
        }
    }

    /// Reads back the newest id and the number of signals.
    pub(super) fn refresh(&mut self) -> Result<(), StoreError> {
        let last: i64 = self.connection.query_row(
            "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'signals'), 0)",
            [],
            |row| row.get(0),
        )?;
        let stored: i64 = self.connection.query_row("SELECT count(*) FROM signals", [], |row| row.get(0))?;
        // All of one sequence.
        let revision: i64 = self.connection.query_row(
            "SELECT max((SELECT coalesce(max(revision), 0) FROM repeats), (SELECT coalesce(max(revision), 0) FROM triage),
                        (SELECT coalesce(max(revision), 0) FROM network))",
            [],
            |row| row.get(0),
        )?;
        self.stored.store(u64::try_from(stored).unwrap_or(0), Ordering::Relaxed);
        self.revision.send_replace(u64::try_from(revision).unwrap_or(0));
        self.last_id.send_replace(u64::try_from(last).unwrap_or(0));
        Ok(())
    }

    fn write(&mut self, batch: &[Command]) {
        let mut reason = String::new();
        for attempt in 1..=ATTEMPTS {
            let revision = *self.revision.borrow();
            match transaction(&mut self.connection, batch, revision, habits::limit(self.limits.max_bytes)) {
                Ok(outcome) => return self.written(&outcome),
                Err(error) if schema::is_corrupt(&error) => {
                    reason = error.to_string();
                    self.replace(&error.into());
                }
                Err(error) if room::is_full(&error, &self.path) => {
                    reason = error.to_string();
                    if !self.make_room() {
                        break;
                    }
                }
                Err(error) => {
                    reason = error.to_string();
                    // Whoever waits for what comes after must not wait each time.
                    if self.failing.is_none() && attempt < ATTEMPTS {
                        tracing::warn!(%error, attempt, "signals could not be stored");
                        thread::sleep(PAUSE);
                    }
                }
            }
        }
        self.lost(batch, reason);
    }

    fn written(&mut self, outcome: &Outcome) {
        self.counters.duplicates.add(outcome.duplicates);
        self.orphaned(&outcome.orphans);
        self.unmatched(outcome.unmatched);
        self.counters.habits_forgotten.add(outcome.forgotten);
        self.stored.fetch_add(outcome.inserted, Ordering::Relaxed);
        if let Some(last) = outcome.last_id {
            self.last_id.send_replace(u64::try_from(last).unwrap_or(0));
        }
        if let Some(revision) = outcome.revision {
            self.revision.send_replace(revision);
        }
        let wrote = outcome.probed || outcome.last_id.is_some() || outcome.revision.is_some();
        if let Some(dropped) = self.failing.take_if(|_| wrote) {
            self.health.set(self.starved.then_some(Trouble::Full));
            tracing::info!(dropped, "the signal database takes signals again");
        }
    }

    /// Counts what the database did not take. Said once, until it takes something again.
    fn lost(&mut self, batch: &[Command], reason: String) {
        let mut signals = 0;
        for command in batch {
            match command {
                Command::Signal(entry) => {
                    signals += 1;
                    self.dropped.add(Account::of(entry.origin, entry.count));
                }
                Command::Update(update) => self.orphaned([update]),
                // Left out as the policy says, so that it is told nowhere: as if it was not read.
                Command::Account(cgroup_id, account) => self.dropped.add(Some((*cgroup_id, *account))),
                _ => {}
            }
        }
        let activities = batch.iter().map(|command| match command {
            Command::Network(_, activity) => network::count(activity),
            _ => 0,
        });
        self.unmatched(activities.sum());
        if self.failing.is_none() {
            tracing::error!(
                reason,
                database = %self.path.display(),
                "signals are dropped and counted (store_dropped): the database does not take them; said once"
            );
        }
        let dropped = self.failing.unwrap_or(0) + signals;
        self.failing = Some(dropped);
        self.health.set(Some(Trouble::Failing { reason, dropped }));
        // Last: whoever sees the number finds the rest.
        self.counters.store_dropped.add(signals);
    }

    fn orphaned<'a>(&self, updates: impl IntoIterator<Item = &'a Update>) {
        for update in updates {
            self.counters.repeats_lost.add(update.added.all);
            self.dropped.add(Account::of(update.origin, update.added));
        }
    }

    fn unmatched(&self, activities: u64) {
        if activities > 0 && self.counters.activity_unmatched.get() == 0 {
            tracing::warn!("a process does something on the network, and its signal is not in the store; said once");
        }
        self.counters.activity_unmatched.add(activities);
    }

    /// Not in the batch's transaction: whoever asks is told what came of it.
    fn triage(&mut self, change: TriageChange) {
        let TriageChange { ids, change, answer } = change;
        let revision = next_revision(*self.revision.borrow());
        let result = match triage::set(&mut self.connection, &ids, &change, revision) {
            Ok(Ok(newest)) => {
                self.revision.send_replace(newest);
                Ok(())
            }
            Ok(Err(id)) => Err(StoreError::NoSignal { id }),
            Err(error) => Err(StoreError::Write(error)),
        };
        // Whoever has left does not want to know.
        let _ = answer.send(result);
    }

    /// The disk is full: the oldest signals make room for new ones. Whether it is worth another attempt.
    fn make_room(&mut self) -> bool {
        let released = self.reserve.release();
        if !self.starved {
            self.starved = true;
            self.health.set(Some(Trouble::Full));
            tracing::error!(
                database = %self.path.display(),
                "the disk of the signal database is full: new signals take the place of the oldest; said once"
            );
        }
        if let Err(error) = retention::empty_log(&self.connection) {
            tracing::debug!(%error, "the write-ahead log could not be brought into the database");
        }
        self.replace_oldest() || released
    }

    /// Keeps room for new signals inside the database. Whether there is.
    fn replace_oldest(&self) -> bool {
        let mut removed = 0;
        let outcome = retention::by_free_space(&self.connection, self.reserve.kept_free(), &mut removed);
        self.removed(removed);
        self.counters.expired_by_size.add(removed);
        if let Err(error) = &outcome {
            tracing::debug!(%error, "no room could be made in the signal database");
        }
        outcome.is_ok()
    }

    /// Ends it when there is plenty of room again.
    fn end_starvation(&mut self) {
        if !self.starved {
            return;
        }
        if self.reserve.take().is_ok_and(|held| held) {
            self.starved = false;
            self.health.set(None);
            tracing::info!(database = %self.path.display(), "there is room on the disk of the signal database again");
        } else {
            self.replace_oldest();
        }
    }

    pub(super) fn replace(&mut self, cause: &Unusable) {
        match schema::replace(&self.path, cause, &self.counters) {
            Ok(connection) => {
                self.connection = connection;
                self.checkpoints = Checkpoints::start(&mut self.connection, &self.path);
                self.readers.reopen();
                if let Err(error) = self.refresh() {
                    tracing::error!(%error, "the new signal database can't be read");
                }
            }
            Err(error) => {
                tracing::error!(%error, "no new signal database could be opened");
                thread::sleep(PAUSE);
            }
        }
    }

    fn expire(&mut self) {
        let removed = mem::take(&mut self.shrunk);
        if removed > 0 {
            tracing::info!(removed, "the oldest signals made room for new ones, for the database is at its size limit");
        }
        match retention::by_age(&self.connection, self.limits.max_age) {
            Ok(removed) => self.removed(removed),
            Err(error) => tracing::warn!(%error, "old signals could not be removed"),
        }
    }

    fn shrink(&mut self) {
        let mut removed = 0;
        let outcome = retention::by_size(&self.connection, self.limits.max_bytes, &mut removed);
        if removed > 0 {
            self.removed(removed);
            self.counters.expired_by_size.add(removed);
            if self.shrunk == 0 {
                tracing::warn!("the signal database reached its size limit: the oldest signals make room for new ones");
            }
            self.shrunk += removed;
        }
        if let Err(error) = outcome {
            tracing::warn!(%error, "the signal database could not be kept within its size limit");
        }
    }

    fn removed(&self, signals: u64) {
        self.stored.fetch_sub(signals.min(self.stored.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
}

/// Revisions above this are new. The clock's microseconds, so that they grow even if retention has removed the greatest; a
/// JSON number holds them.
fn next_revision(newest: u64) -> u64 {
    newest.max(clock::now_ns() / 1000)
}

fn transaction(
    connection: &mut Connection,
    batch: &[Command],
    revision: u64,
    max_habits: u64,
) -> rusqlite::Result<Outcome> {
    let transaction = connection.transaction()?;
    let mut outcome = Outcome::default();
    let mut revision = next_revision(revision);
    let mut closed = Vec::new();
    for command in batch {
        match command {
            Command::Signal(entry) => match insert(&transaction, entry)? {
                Some(Inserted { id, first_time }) => {
                    outcome.inserted += 1;
                    outcome.last_id = Some(id);
                    outcome.learnt |= first_time;
                    outcome.accounts.add(Account::of(entry.origin, entry.count));
                }
                None => outcome.duplicates += u64::from(entry.origin.is_once_only()),
            },
            Command::Update(update) => {
                revision += 1;
                if change(&transaction, update, revision)? {
                    outcome.revision = Some(revision);
                    outcome.accounts.add(Account::of(update.origin, update.added));
                } else {
                    outcome.orphans.push(update.clone());
                }
            }
            Command::Network(origin, activity) => {
                revision += 1;
                if extend_network(&transaction, *origin, activity, revision)? {
                    outcome.revision = Some(revision);
                } else {
                    outcome.unmatched += network::count(activity);
                }
            }
            Command::Image(container, image) => remember_image(&transaction, container, image)?,
            Command::Workload(workload, created_ns) => {
                let [since_ns, now] = [*created_ns, clock::now_ns()].map(|ns| i64::try_from(ns).unwrap_or(i64::MAX));
                outcome.learnt = true;
                habits::remember(&transaction, *workload, since_ns.min(now), now)?;
            }
            Command::Account(cgroup_id, account) => outcome.accounts.add(Some((*cgroup_id, *account))),
            Command::Close(cgroup_id) => closed.push(*cgroup_id),
            Command::Triage(_) | Command::Settle(_) => {}
            Command::Expire => {
                // Whether the database takes anything is to be found out.
                transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                outcome.probed = true;
            }
        }
    }
    outcome.accounts.write(&transaction)?;
    for cgroup_id in closed {
        accounts::close(&transaction, cgroup_id)?;
    }
    if outcome.learnt {
        outcome.forgotten = habits::forget_surplus(&transaction, max_habits)?;
    }
    transaction.commit()?;
    Ok(outcome)
}

/// Ids of earlier signals about a new one's process and its ancestors, the newest ones, oldest first.
fn related(connection: &Connection, entry: &Entry) -> rusqlite::Result<Vec<u64>> {
    let mut statement = connection
        .prepare_cached("SELECT id FROM signals WHERE origin BETWEEN ?1 AND ?2 ORDER BY origin DESC LIMIT ?3")?;
    let mut ids = Vec::new();
    for (first, last) in entry.kin.iter().filter_map(|process| entry.origin.range_of(*process)) {
        let found = statement.query_map(params![first, last, RELATED], |row| row.get::<_, i64>(0))?;
        for id in found {
            ids.extend(u64::try_from(id?));
        }
    }
    ids.sort_unstable();
    ids.dedup();
    let surplus = ids.len().saturating_sub(RELATED as usize);
    Ok(ids.split_off(surplus))
}

/// A new row of signals.
struct Inserted {
    id: i64,
    first_time: bool,
}

/// `None` if it was there already. (`ON CONFLICT DO NOTHING` would use up an id, and a hole among ids looks like a loss.)
fn insert(connection: &Connection, entry: &Entry) -> rusqlite::Result<Option<Inserted>> {
    let origin = entry.origin.to_bytes();
    if connection.prepare_cached("SELECT 1 FROM signals WHERE origin = ?1")?.exists([&origin])? {
        return Ok(None);
    }
    let (habit, novelty) = match habits::judge(connection, entry)? {
        Some(judgement) => (Some(judgement.habit), Some(judgement.novelty)),
        None => (None, None),
    };
    let first_time = novelty.as_ref().is_some_and(|novelty| novelty.first_time);
    // Encoded fields of a message may stand one after the other.
    let known_here = Signal { related: related(connection, entry)?, novelty, ..Signal::default() };
    let id = connection
        .prepare_cached(
            "INSERT INTO signals (origin, time_ns, rule, verdict, severity, tool, category, container_id, image,
             pod_namespace, pod_name, body, first_time, habit)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .insert(params![
            origin,
            entry.time_ns,
            entry.rule,
            entry.verdict,
            entry.severity,
            entry.tool,
            entry.category,
            entry.container_id,
            entry.image,
            entry.pod_namespace,
            entry.pod_name,
            [entry.body.as_slice(), &known_here.encode_to_vec()].concat(),
            first_time,
            habit,
        ])?;
    Ok(Some(Inserted { id, first_time }))
}

/// Whether the signal is still there.
fn change(connection: &Connection, update: &Update, revision: u64) -> rusqlite::Result<bool> {
    let found = connection
        .prepare_cached("SELECT id, habit FROM signals WHERE origin = ?1")?
        .query_row([update.origin.to_bytes()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)))
        .optional()?;
    let Some((id, habit)) = found else { return Ok(false) };
    connection
        .prepare_cached(
            "INSERT INTO repeats (id, revision, count, last_ns, body) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, count = excluded.count,
             last_ns = excluded.last_ns, body = excluded.body",
        )?
        .execute(params![
            id,
            i64::try_from(revision).unwrap_or(i64::MAX),
            i64::try_from(update.count).unwrap_or(i64::MAX),
            update.last_ns,
            update.body,
        ])?;
    if let Some(habit) = habit {
        habits::repeat(connection, habit, update.added.all, update.last_ns)?;
    }
    Ok(true)
}

/// Whether the signal is there.
fn extend_network(
    connection: &Connection,
    origin: Origin,
    later: &NetworkActivity,
    revision: u64,
) -> rusqlite::Result<bool> {
    let known = connection
        .prepare_cached(
            "SELECT signals.id, network.body, signals.body FROM signals LEFT JOIN network USING (id) WHERE origin = ?1",
        )?
        .query_row([origin.to_bytes()], |row| {
            let (id, body) = (row.get::<_, i64>(0)?, row.get_ref(1)?.as_blob_or_null()?);
            // One that can't be read any more is no reason to tell nothing further.
            let activity = match body {
                Some(body) => NetworkActivity::decode(body).unwrap_or_default(),
                None => Signal::decode(row.get_ref(2)?.as_blob()?).unwrap_or_default().network.unwrap_or_default(),
            };
            Ok((id, activity))
        })
        .optional()?;
    let Some((id, mut activity)) = known else { return Ok(false) };
    network::merge(&mut activity, later.clone());
    connection
        .prepare_cached(
            "INSERT INTO network (id, revision, body) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, body = excluded.body",
        )?
        .execute(params![id, i64::try_from(revision).unwrap_or(i64::MAX), activity.encode_to_vec()])?;
    Ok(true)
}

fn remember_image(connection: &Connection, container: &ContainerKey, image: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO containers (namespace, id, created_ns, image, stored_ns) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET image = excluded.image, stored_ns = excluded.stored_ns",
        )?
        .execute(params![
            container.namespace,
            container.id,
            i64::try_from(container.created_ns).unwrap_or(i64::MAX),
            image,
            i64::try_from(clock::now_ns()).unwrap_or(i64::MAX),
        ])?;
    Ok(())
}
