//! What workloads do habitually, and so what is new of a signal.
//!
//! A workload is what runs from one image under one container name (without CRI: from one image; the one container while its
//! image is not known). A habit is a rule, a tool and an origin that a signal of it had. Both are judged and written in the
//! transaction that stores the signal, and kept up by what is folded into it: they can't drift from what is stored. They
//! outlive signals: retention has them go when they were not seen for [`MAX_AGE`].
//!
//! Nothing that a container does makes more rows than rules, tools and origins there are. Whoever may start containers of
//! ever new images can fill the table: then what was seen least recently goes, and is counted.

use std::time::Duration;

use portcullis_proto::v1;
use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};

use super::entry::Entry;
use crate::clock::{self, at};

/// Workloads and habits that were not seen for so long go.
const MAX_AGE: Duration = Duration::from_secs(90 * 24 * 3600);
/// A row of either table, with its indexes, takes less; see [`limit`].
const ROW_BYTES: u64 = 256;
/// Rows of each table, however large the database may be.
const MAX_ROWS: u64 = 65_536;
/// The part of the database's size that either table may take.
const SHARE: u64 = 16;

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
/// Of so many days before today,
const WEEK: u32 = 7;
/// on so many at least: this is habitual.
const HABITUAL_DAYS: u32 = 3;

/// Identifies a workload. A hash: names of images are as long as their makers like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload([u8; 16]);

impl Workload {
    /// A container's workload; `None` when neither its image nor its id is known.
    pub fn of(container: &v1::Container) -> Option<Self> {
        let name = container.pod.as_ref().map_or("", |pod| pod.container_name.as_str());
        match (container.image.as_str(), container.id.as_str()) {
            ("", "") => None,
            ("", id) => Some(Self::new("container", &container.containerd_namespace, id)),
            (image, _) => Some(Self::new("image", image, name)),
        }
    }

    fn new(kind: &str, first: &str, second: &str) -> Self {
        let mut hash = Sha256::new();
        for text in [kind, first, second] {
            hash.update(text.len().to_be_bytes());
            hash.update(text);
        }
        let [key @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _]: [u8; 32] = hash.finalize().into();
        Self(key)
    }
}

/// What a signal says of its workload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    workload: Workload,
    origin: i32,
    /// The workload is known since then at least.
    since_ns: i64,
}

impl Sighting {
    /// `None` for what is not about a process, or where the workload is not known.
    pub(super) fn of(signal: &v1::Signal, time_ns: i64) -> Option<Self> {
        let container = signal.container.as_ref().filter(|_| signal.process.is_some())?;
        let created_ns = container.created.as_ref().and_then(clock::from_timestamp).unwrap_or(time_ns);
        Some(Self { workload: Workload::of(container)?, origin: signal.origin, since_ns: created_ns.min(time_ns) })
    }
}

/// A row of habits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Habit {
    first_ns: i64,
    last_ns: i64,
    times: i64,
    /// Bit 0 is the day of `last_ns`, bit 1 the day before, and so on.
    days: u32,
}

fn day(ns: i64) -> i64 {
    ns.div_euclid(DAY_NS)
}

impl Habit {
    fn read(row: &Row<'_>) -> rusqlite::Result<(i64, Self)> {
        let days: i64 = row.get("days")?;
        let habit = Self {
            first_ns: row.get("first_ns")?,
            last_ns: row.get("last_ns")?,
            times: row.get("times")?,
            days: u32::try_from(days).unwrap_or(1),
        };
        Ok((row.get("id")?, habit))
    }

    /// The days, with bit 0 for that of `ns`.
    fn days_at(&self, ns: i64) -> u32 {
        let later = day(ns) - day(self.last_ns);
        let shifted = match u32::try_from(later) {
            Ok(later) => self.days.checked_shl(later),
            Err(_) => u32::try_from(-later).ok().and_then(|earlier| self.days.checked_shr(earlier)),
        };
        shifted.unwrap_or(0)
    }

    /// Seen `times` more, at `ns` for the last time.
    fn see(&mut self, ns: i64, times: i64) {
        self.times = self.times.saturating_add(times);
        self.first_ns = self.first_ns.min(ns);
        match u32::try_from(day(self.last_ns) - day(ns)) {
            // Events of several processors are not quite in order.
            Ok(earlier) if earlier < u32::BITS => {
                self.days |= 1 << earlier;
                self.last_ns = self.last_ns.max(ns);
            }
            // Later; or the clock went wrong and was put right since.
            _ => {
                self.days = self.days_at(ns) | 1;
                self.last_ns = ns;
            }
        }
    }

    /// On at least [`HABITUAL_DAYS`] of the last [`WEEK`] days before that of `ns`.
    fn is_habitual(&self, ns: i64) -> bool {
        let week = (self.days_at(ns) >> 1) & ((1 << WEEK) - 1);
        week.count_ones() >= HABITUAL_DAYS
    }

    /// For people.
    fn summary(&self, ns: i64) -> String {
        let days = self.days_at(ns);
        let before = (days >> 1).trailing_ones();
        if day(self.first_ns) == day(ns) {
            return "first seen today".to_owned();
        }
        if before >= 2 {
            return format!("seen daily since {}", date(ns - i64::from(before) * DAY_NS));
        }
        let last = date(self.last_ns);
        match days.count_ones() {
            0 => format!("not seen in the last 32 days, last {last}"),
            on => format!("seen on {on} of the last 32 days, last {last}"),
        }
    }
}

/// The day of UTC.
fn date(ns: i64) -> String {
    let mut text = at(ns).to_string();
    text.truncate("2026-11-25".len());
    text
}

fn novelty(habit: Option<&Habit>, since_ns: i64, ns: i64) -> v1::Novelty {
    let known = Some(at(since_ns));
    let Some(habit) = habit else {
        let summary = match age(ns.saturating_sub(since_ns)) {
            Some(age) => format!("first time; the workload is known since {age} only"),
            None => "first time for this workload".to_owned(),
        };
        return v1::Novelty { first_time: true, workload_known_since: known, summary, ..v1::Novelty::default() };
    };
    v1::Novelty {
        first_time: false,
        first_seen: Some(at(habit.first_ns)),
        last_seen: Some(at(habit.last_ns)),
        days_seen: habit.days_at(ns).count_ones(),
        times_seen: u64::try_from(habit.times).unwrap_or(0),
        workload_known_since: known,
        habitual: habit.is_habitual(ns),
        summary: habit.summary(ns),
    }
}

/// For people, if it is less than a day.
fn age(ns: i64) -> Option<String> {
    let seconds = ns.max(0) / 1_000_000_000;
    let (number, unit) = match seconds {
        ..60 => return Some("less than a minute".to_owned()),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => return None,
    };
    Some(format!("{number} {unit}{}", if number == 1 { "" } else { "s" }))
}

/// What the store has to know of a signal.
pub(super) struct Judgement {
    /// The row of habits.
    pub(super) habit: i64,
    pub(super) novelty: v1::Novelty,
}

/// Judges a signal that is about to be stored, and remembers it.
pub(super) fn judge(connection: &Connection, entry: &Entry) -> rusqlite::Result<Option<Judgement>> {
    let Some(Sighting { workload, origin, since_ns }) = entry.sighting else { return Ok(None) };
    let (workload, since_ns) = remember(connection, workload, since_ns, entry.time_ns)?;
    let found = connection
        .prepare_cached(
            "SELECT id, first_ns, last_ns, times, days FROM habits
             WHERE workload = ?1 AND rule = ?2 AND tool = ?3 AND origin = ?4",
        )?
        .query_row(params![workload, entry.rule, entry.tool, origin], Habit::read)
        .optional()?;
    let novelty = novelty(found.as_ref().map(|(_, habit)| habit), since_ns, entry.time_ns);
    let habit = match found {
        Some((id, mut habit)) => {
            habit.see(entry.time_ns, 1);
            write(connection, id, &habit)?;
            id
        }
        None => connection
            .prepare_cached(
                "INSERT INTO habits (workload, rule, tool, origin, first_ns, last_ns, times, days)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5, 1, 1)",
            )?
            .insert(params![workload, entry.rule, entry.tool, origin, entry.time_ns])?,
    };
    Ok(Some(Judgement { habit, novelty }))
}

/// A container of a workload was seen. Returns the workload's row, and since when it is known.
pub(super) fn remember(
    connection: &Connection,
    workload: Workload,
    since_ns: i64,
    seen_ns: i64,
) -> rusqlite::Result<(i64, i64)> {
    connection
        .prepare_cached(
            "INSERT INTO workloads (key, since_ns, last_ns) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET since_ns = min(since_ns, excluded.since_ns),
             last_ns = max(last_ns, excluded.last_ns) RETURNING id, since_ns",
        )?
        .query_row(params![workload.0, since_ns, seen_ns], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// What was folded into a signal is seen as well.
pub(super) fn repeat(connection: &Connection, habit: i64, added: u64, last_ns: i64) -> rusqlite::Result<()> {
    let found = connection
        .prepare_cached("SELECT id, first_ns, last_ns, times, days FROM habits WHERE id = ?1")?
        .query_row([habit], Habit::read)
        .optional()?;
    // It may have been forgotten in the meantime.
    let Some((id, mut habit)) = found else { return Ok(()) };
    habit.see(last_ns, i64::try_from(added).unwrap_or(i64::MAX));
    write(connection, id, &habit)?;
    connection
        .prepare_cached(
            "UPDATE workloads SET last_ns = max(last_ns, ?2) WHERE id = (SELECT workload FROM habits WHERE id = ?1)",
        )?
        .execute([id, last_ns])?;
    Ok(())
}

fn write(connection: &Connection, id: i64, habit: &Habit) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE habits SET first_ns = ?2, last_ns = ?3, times = ?4, days = ?5 WHERE id = ?1")?
        .execute(params![id, habit.first_ns, habit.last_ns, habit.times, habit.days])?;
    Ok(())
}

/// Rows that either table may have in a database of so many bytes.
pub(super) fn limit(max_bytes: u64) -> u64 {
    (max_bytes / SHARE / ROW_BYTES).min(MAX_ROWS)
}

/// Forgets what was seen least recently, beyond so many rows of either table. Returns how many rows went.
pub(super) fn forget_surplus(connection: &Connection, limit: u64) -> rusqlite::Result<u64> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let workloads = "SELECT id FROM workloads ORDER BY last_ns DESC LIMIT -1 OFFSET ?1";
    let mut gone = 0;
    for sql in [
        &format!("DELETE FROM habits WHERE workload IN ({workloads})"),
        &format!("DELETE FROM workloads WHERE id IN ({workloads})"),
        "DELETE FROM habits WHERE id IN (SELECT id FROM habits ORDER BY last_ns DESC LIMIT -1 OFFSET ?1)",
    ] {
        gone += connection.prepare_cached(sql)?.execute([limit])?;
    }
    Ok(u64::try_from(gone).unwrap_or(0))
}

/// Forgets what was not seen for long.
pub(super) fn forget_old(connection: &Connection) -> rusqlite::Result<()> {
    let age = i64::try_from(MAX_AGE.as_nanos()).unwrap_or(i64::MAX);
    let oldest = i64::try_from(clock::now_ns()).unwrap_or(i64::MAX).saturating_sub(age);
    connection.execute("DELETE FROM habits WHERE last_ns < ?1", [oldest])?;
    connection.execute("DELETE FROM workloads WHERE last_ns < ?1", [oldest])?;
    Ok(())
}

/// What a workload does, what was seen last first.
pub(super) fn list(connection: &Connection, workload: Workload) -> rusqlite::Result<Vec<v1::Habit>> {
    let now = i64::try_from(clock::now_ns()).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(
        "SELECT habits.*, rule, tool, origin FROM habits JOIN workloads ON workloads.id = workload
         WHERE key = ?1 ORDER BY habits.last_ns DESC",
    )?;
    let habits = statement.query_map([workload.0], |row| {
        let (_, habit) = Habit::read(row)?;
        Ok(v1::Habit {
            rule: row.get("rule")?,
            tool: row.get("tool")?,
            origin: row.get("origin")?,
            first_seen: Some(at(habit.first_ns)),
            last_seen: Some(at(habit.last_ns)),
            days_seen: habit.days_at(now).count_ones(),
            times_seen: u64::try_from(habit.times).unwrap_or(0),
            habitual: habit.is_habitual(now),
        })
    })?;
    habits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-25, and that many days before.
    fn ago(days: i64) -> i64 {
        (1_795_564_800 + 12 * 3600) * 1_000_000_000 - days * DAY_NS
    }

    /// Seen on these days, the oldest first.
    fn seen(days: &[i64]) -> Habit {
        let mut habit = Habit { first_ns: ago(days[0]), last_ns: ago(days[0]), times: 1, days: 1 };
        days[1..].iter().for_each(|day| habit.see(ago(*day), 1));
        habit
    }

    fn summary(days: &[i64]) -> String {
        novelty(Some(&seen(days)), ago(300), ago(0)).summary
    }

    #[test]
    fn days_are_told() {
        assert_eq!(summary(&[4, 3, 2, 1]), "seen daily since 2026-11-21");
        assert_eq!(summary(&[4, 3, 2, 1, 0]), "seen daily since 2026-11-21");
        assert_eq!(summary(&(1..=200).rev().collect::<Vec<_>>()), "seen daily since 2026-10-25");
        assert_eq!(summary(&[20, 9, 5]), "seen on 3 of the last 32 days, last 2026-11-20");
        assert_eq!(summary(&[1]), "seen on 1 of the last 32 days, last 2026-11-24");
        assert_eq!(summary(&[50, 40]), "not seen in the last 32 days, last 2026-10-16");
        assert_eq!(summary(&[0, 0]), "first seen today");
    }

    #[test]
    fn a_first_time_says_how_long_the_workload_is_known() {
        let first = |seconds: i64| novelty(None, ago(0) - seconds * 1_000_000_000, ago(0));
        assert_eq!(first(90_000).summary, "first time for this workload");
        assert_eq!(first(200).summary, "first time; the workload is known since 3 minutes only");
        assert_eq!(first(3600).summary, "first time; the workload is known since 1 hour only");
        assert_eq!(first(-5).summary, "first time; the workload is known since less than a minute only");
        assert!(first(5).first_time && first(5).first_seen.is_none());
    }

    #[test]
    fn three_days_of_a_week_are_habitual() {
        let habitual = |days: &[i64]| seen(days).is_habitual(ago(0));
        assert!(habitual(&[7, 3, 1]) && habitual(&[3, 2, 1, 0]));
        assert!(!habitual(&[2, 1, 0]), "today does not count");
        assert!(!habitual(&[8, 2, 1]), "that is too long ago");
    }

    #[test]
    fn order_and_clocks_do_no_harm() {
        let habit = seen(&[3, 5, 1, 2]);
        assert_eq!((habit.days, habit.times), (0b10111, 4));
        assert_eq!((habit.first_ns, habit.last_ns), (ago(5), ago(1)));
        assert_eq!(habit.days_at(ago(0)), 0b10_1110);
        assert_eq!(habit.days_at(ago(2)), 0b1011, "as it was then");
        // A year ahead by mistake.
        let mut habit = seen(&[-365]);
        habit.see(ago(0), 1);
        assert_eq!((habit.last_ns, habit.days), (ago(0), 1));
        for extreme in [i64::MIN / 2, i64::MAX / 2] {
            habit.see(extreme, i64::MAX);
            assert_eq!(habit.days.count_ones(), 1);
        }
    }

    #[test]
    fn workloads_are_told_apart() {
        let pod = |name: &str| Some(v1::Pod { container_name: name.into(), ..v1::Pod::default() });
        let container = |image: &str, id: &str, name: &str| {
            Workload::of(&v1::Container {
                image: image.into(),
                id: id.into(),
                pod: pod(name),
                ..v1::Container::default()
            })
        };
        assert_eq!(container("", "", "web"), None);
        assert_eq!(container("a", "1", "web"), container("a", "2", "web"));
        let apart = [container("a", "1", "web"), container("a", "1", "sidecar"), container("aw", "1", "eb")];
        assert!(apart[0] != apart[1] && apart[0] != apart[2]);
        assert_ne!(container("", "1", "web"), container("", "2", "web"));
        assert_ne!(container("", "1", ""), container("1", "", ""));
    }
}
