//! What the kernel has counted for each container, against what was read and stored of it. Whatever is missing is told: one signal
//! `events_lost` a container and [`WINDOW_NS`].
//!
//! Missing is what the ring buffer had no room for, what the agent before this one had read when it was killed and not stored, what
//! could not be decoded, and what the store did not take.
//!
//! Containers go on while they are looked at. So a look takes the kernel's numbers at a moment, waits until all that was
//! counted before that moment has been read, if it is there to be read, and leaves out what came after it. What comes in the moment
//! itself may be taken for seen once, and then a later look finds it, but nothing that was seen is ever told to be lost.

use std::{
    collections::{HashMap, HashSet},
    mem,
};

use portcullis_bpf::abi::{ContainerStats, Event};
use portcullis_policy::record::Counts;
use portcullis_proto::v1;

use crate::{
    clock::{BootOffset, timestamp},
    containers::Containers,
    count::Count,
    image::{Item, Pending},
    records::RecordName,
    signal,
    store::{
        accounts::{Account as Stored, Sum},
        entry::{Origin, Update},
    },
};

/// How long one signal is added to.
const WINDOW_NS: u64 = 3600 * 1_000_000_000;
/// Longer than the kernel's programs need between counting an event and having it in the ring buffer.
const GRACE_NS: u64 = 2_000_000_000;
/// What is counted has its time a moment later.
const MOMENT_NS: u64 = 1_000_000;

/// All containers'. Bounded by the number of containers that the kernel's tables hold.
#[derive(Debug, Default)]
pub struct Accounts {
    /// By cgroup id.
    open: HashMap<u64, Account>,
    /// What the store does not know from signals.
    untold: HashMap<u64, Stored>,
    /// Those that the store may forget.
    closed: Vec<u64>,
    /// Something was read since the last look.
    changed: bool,
}

#[derive(Debug, Default)]
struct Account {
    /// Read, by this agent or, as far as it was stored, by those before it.
    seen: Count,
    /// Of what was read, what the store did not take.
    dropped: Count,
    /// Counted by the kernel and not there to be read.
    unseen: Count,
    /// What was told to be lost.
    told: Count,
    look: Option<Look>,
    telling: Option<Telling>,
}

/// Numbers of a moment.
#[derive(Debug)]
struct Look {
    kernel: Count,
    /// `CLOCK_BOOTTIME`.
    time_ns: u64,
    /// Read since then, and of a later time.
    after: Count,
}

/// The signal that is added to.
#[derive(Debug)]
struct Telling {
    /// `CLOCK_BOOTTIME`.
    first_ns: u64,
    count: Count,
}

impl Account {
    fn lost(&self) -> Count {
        let mut lost = self.unseen;
        lost += self.dropped;
        lost
    }

    /// Whether all that is lost was told.
    fn is_told(&self) -> bool {
        self.lost() == self.told
    }

    fn find_unseen(&mut self, kernel: Count, after: Count) {
        self.unseen = self.unseen.max(kernel.without(self.seen.without(after)));
    }
}

impl Accounts {
    /// Goes on from what is in the store. `None`: an agent that did not keep accounts was here before, or the database is a new one.
    /// What the kernel has counted so far is then taken for told.
    pub fn new(stored: Option<HashMap<u64, Stored>>, stats: &[(u64, ContainerStats)]) -> Self {
        let mut this = Self { changed: true, ..Self::default() };
        let stored = stored.unwrap_or_else(|| {
            let counted = stats.iter().filter(|(_, stats)| stats.matched > 0);
            let beginning = counted.map(|(cgroup_id, stats)| {
                let lost = Count { all: stats.lost, ..Count::default() };
                (*cgroup_id, Stored { seen: Count::from(*stats).without(lost), lost })
            });
            this.untold = beginning.collect();
            this.untold.clone()
        });
        let account = |Stored { seen, lost }| Account { seen, unseen: lost, told: lost, ..Account::default() };
        this.open = stored.into_iter().map(|(cgroup_id, stored)| (cgroup_id, account(stored))).collect();
        this
    }

    /// An event was read.
    pub fn see(&mut self, event: &Event) {
        let account = self.open.entry(event.cgroup_id).or_default();
        let one = Count::one(event.verdict);
        account.seen += one;
        if let Some(look) = account.look.as_mut().filter(|look| event.time_ns > look.time_ns) {
            look.after += one;
        }
        self.changed = true;
    }

    /// It is in no signal, as its policy wants.
    pub fn omit(&mut self, event: &Event) {
        self.untold.entry(event.cgroup_id).or_default().seen += Count::one(event.verdict);
    }

    /// The store did not take this.
    pub fn drop(&mut self, dropped: Sum) {
        for (cgroup_id, Stored { seen, lost }) in dropped.into_each() {
            let account = self.open.entry(cgroup_id).or_default();
            account.dropped += seen;
            account.told = account.told.without(lost);
            if !lost.is_none() {
                account.telling = None;
            }
        }
    }

    /// Whether something was read since the last look.
    pub fn have_changed(&self) -> bool {
        self.changed
    }

    /// Whether there is a look to conclude.
    pub fn are_looked_at(&self) -> bool {
        self.open.values().any(|account| account.look.is_some())
    }

    /// Takes the kernel's numbers of now for containers of which something may be missing.
    pub fn look(&mut self, stats: &[(u64, ContainerStats)], now_ns: u64) {
        self.changed = false;
        for (cgroup_id, stats) in stats.iter().filter(|(_, stats)| stats.matched > 0) {
            let account = self.open.entry(*cgroup_id).or_default();
            let kernel = Count::from(*stats);
            let mut known = account.seen;
            known += account.unseen;
            if account.look.is_none() && !kernel.without(known).is_none() {
                account.look = Some(Look { kernel, time_ns: now_ns + MOMENT_NS, after: Count::default() });
            }
        }
    }

    /// Ends looks. `read_to_ns`: what is of an earlier time has been read, `CLOCK_BOOTTIME`.
    pub fn conclude(&mut self, read_to_ns: u64) {
        for account in self.open.values_mut() {
            let ready = |look: &mut Look| look.time_ns.saturating_add(GRACE_NS) <= read_to_ns;
            if let Some(Look { kernel, after, .. }) = account.look.take_if(ready) {
                account.find_unseen(kernel, after);
            }
        }
    }

    /// A container is gone, and all its events were read: `None` where the kernel's numbers are gone without having been read. What
    /// there is to tell must be told before it is forgotten.
    pub fn finish(&mut self, cgroup_id: u64, counts: Option<Counts>) {
        let kernel = counts.map(Count::from).unwrap_or_default();
        if self.open.contains_key(&cgroup_id) || !kernel.is_none() {
            let account = self.open.entry(cgroup_id).or_default();
            account.look = None;
            account.find_unseen(kernel, Count::default());
        }
    }

    /// Whether all that is lost of a container was told.
    pub fn is_told(&self, cgroup_id: u64) -> bool {
        self.open.get(&cgroup_id).is_none_or(Account::is_told)
    }

    /// After [`Self::finish`], and the last of what it has led to.
    pub fn forget(&mut self, cgroup_id: u64) {
        if self.open.remove(&cgroup_id).is_some() {
            self.closed.push(cgroup_id);
        }
    }

    /// Forgets whatever is about containers that are in neither.
    pub fn prune(&mut self, stats: &[(u64, ContainerStats)], containers: &Containers) {
        let counted: HashSet<u64> = stats.iter().map(|(cgroup_id, _)| *cgroup_id).collect();
        let is_there = |id: &u64| counted.contains(id) || containers.get(&RecordName::Cgroup(*id)).is_some();
        let gone = self.open.iter().filter(|(id, account)| account.is_told() && !is_there(id));
        let gone: Vec<u64> = gone.map(|(cgroup_id, _)| *cgroup_id).collect();
        for cgroup_id in gone {
            self.forget(cgroup_id);
        }
    }

    /// Whether there is anything for the store.
    pub fn has_news(&self) -> bool {
        let mut accounts = self.open.values();
        !self.untold.is_empty() || !self.closed.is_empty() || accounts.any(|account| !account.is_told())
    }

    /// What the store has not been told yet, and how many events of it are newly told to be lost.
    pub fn items(&mut self, containers: &Containers, offset: BootOffset, now_ns: u64) -> (Vec<Item>, u64) {
        let mut lost = 0;
        let mut items: Vec<Item> =
            mem::take(&mut self.untold).into_iter().map(|(id, of)| Item::Account(id, of)).collect();
        for (cgroup_id, account) in &mut self.open {
            let new = account.lost().without(account.told);
            if !new.is_none() {
                lost += new.all;
                account.told += new;
                items.push(account.tell(*cgroup_id, new, containers, offset, now_ns));
            }
        }
        items.extend(mem::take(&mut self.closed).into_iter().map(Item::Close));
        (items, lost)
    }
}

impl Account {
    fn tell(&mut self, cgroup_id: u64, new: Count, containers: &Containers, offset: BootOffset, now_ns: u64) -> Item {
        let telling = self.telling.take_if(|telling| now_ns.saturating_sub(telling.first_ns) < WINDOW_NS);
        let is_new = telling.is_none();
        let mut telling = telling.unwrap_or(Telling { first_ns: now_ns, count: Count::default() });
        telling.count += new;
        let Telling { first_ns, count } = telling;
        self.telling = Some(telling);

        let origin = Origin::Lost { cgroup_id, time_ns: first_ns };
        let counted =
            |verdict: v1::Verdict, count| v1::SuppressedCount { tool: String::new(), verdict: verdict.into(), count };
        let rest = count.all.saturating_sub(count.blocked).saturating_sub(count.killed);
        let counts = [
            counted(v1::Verdict::Blocked, count.blocked),
            counted(v1::Verdict::Killed, count.killed),
            counted(v1::Verdict::Unspecified, rest),
        ];
        let changed = v1::Signal {
            count: count.all,
            last_time: Some(timestamp(offset.wall_ns(now_ns))),
            suppressed: counts.into_iter().filter(|counted| counted.count > 0).collect(),
            ..v1::Signal::default()
        };
        if !is_new {
            return Item::Update(Update::new(origin, new, &changed));
        }
        let name = RecordName::Cgroup(cgroup_id);
        let container = containers.get(&name);
        let signal = v1::Signal {
            count: changed.count,
            last_time: changed.last_time,
            suppressed: changed.suppressed,
            ..signal::lost(cgroup_id, container.as_ref(), offset.wall_ns(first_ns))
        };
        Item::Signal(Box::new(Pending { origin, signal, kin: Vec::new(), container: container.map(|_| name) }))
    }
}

#[cfg(test)]
mod tests {
    use portcullis_bpf::abi::Verdict;

    use super::*;
    use crate::testing;

    const SECOND: u64 = 1_000_000_000;

    fn stats(matched: u64, blocked: u64, lost: u64) -> Vec<(u64, ContainerStats)> {
        vec![(42, ContainerStats { matched, blocked, killed: 0, lost, excepted: 0 })]
    }

    fn see(accounts: &mut Accounts, times: std::ops::Range<u64>, verdict: Verdict) {
        for time_ns in times {
            accounts.see(&Event { verdict, ..testing::event(42, 7, time_ns) });
        }
    }

    /// The counts of new signals, and those of updates.
    fn told(accounts: &mut Accounts, now_ns: u64) -> (Vec<Count>, Vec<u64>) {
        let (mut signals, mut updates) = (Vec::new(), Vec::new());
        for item in accounts.items(&Containers::default(), BootOffset::now(), now_ns).0 {
            match item {
                Item::Signal(pending) => {
                    assert_eq!(pending.signal.rule, "events_lost");
                    signals.push(Count::of(&pending.signal));
                }
                Item::Update(update) => updates.push(update.count()),
                _ => {}
            }
        }
        (signals, updates)
    }

    fn kept() -> Accounts {
        Accounts::new(Some(HashMap::new()), &[])
    }

    #[test]
    fn what_was_read_is_not_missing() {
        let mut accounts = kept();
        see(&mut accounts, 0..10, Verdict::Blocked);
        assert!(accounts.have_changed());
        accounts.look(&stats(12, 12, 0), SECOND);
        assert!(!accounts.have_changed());
        // One that was on its way, and three that were made later.
        see(&mut accounts, SECOND - 2..SECOND, Verdict::Blocked);
        see(&mut accounts, 2 * SECOND..2 * SECOND + 3, Verdict::Blocked);
        accounts.conclude(2 * SECOND);
        assert_eq!(told(&mut accounts, 5 * SECOND), (vec![], vec![]), "it is not sure yet that all was read");
        accounts.conclude(4 * SECOND);
        assert!(!accounts.has_news());
        accounts.look(&stats(15, 15, 0), 5 * SECOND);
        accounts.conclude(9 * SECOND);
        assert!(!accounts.has_news());
    }

    #[test]
    fn what_is_missing_is_told_once_and_by_verdict() {
        let mut accounts = kept();
        see(&mut accounts, 0..10, Verdict::Detected);
        accounts.look(&stats(17, 4, 7), SECOND);
        accounts.conclude(4 * SECOND);
        assert_eq!(told(&mut accounts, 5 * SECOND), (vec![Count { all: 7, blocked: 4, killed: 0 }], vec![]));
        assert_eq!(told(&mut accounts, 5 * SECOND), (vec![], vec![]));
        accounts.look(&stats(17, 4, 7), 6 * SECOND);
        accounts.conclude(9 * SECOND);
        assert!(!accounts.has_news());
        accounts.look(&stats(18, 5, 8), 10 * SECOND);
        accounts.conclude(13 * SECOND);
        assert_eq!(told(&mut accounts, 14 * SECOND), (vec![], vec![8]));
        accounts.look(&stats(19, 5, 8), 20 * SECOND);
        accounts.conclude(23 * SECOND);
        assert_eq!(told(&mut accounts, 6 * SECOND + WINDOW_NS).0, [Count { all: 1, blocked: 0, killed: 0 }]);
    }

    #[test]
    fn what_the_store_did_not_take_is_missing() {
        let mut accounts = kept();
        see(&mut accounts, 0..3, Verdict::Killed);
        let drop = |accounts: &mut Accounts, origin, count| {
            let mut sum = Sum::default();
            sum.add(Stored::of(origin, count));
            accounts.drop(sum);
        };
        let killed = |all| Count { all, blocked: 0, killed: all };
        drop(&mut accounts, Origin::Suppressed { cgroup_id: 42, time_ns: 1 }, killed(2));
        assert_eq!(told(&mut accounts, 5), (vec![killed(2)], vec![]));
        // That itself was not stored: it is told again.
        drop(&mut accounts, Origin::Lost { cgroup_id: 42, time_ns: 5 }, killed(2));
        assert_eq!(told(&mut accounts, 6), (vec![killed(2)], vec![]));
        assert!(!accounts.has_news());
    }

    #[test]
    fn what_an_agent_had_read_when_it_was_killed_is_missing() {
        let blocked = |all| Count { all, blocked: all, killed: 0 };
        let stored = [(42, Stored { seen: blocked(5), lost: blocked(1) })];
        let mut accounts = Accounts::new(Some(stored.into()), &stats(9, 9, 1));
        assert!(accounts.have_changed(), "a look is due");
        // One of them was still in the ring buffer.
        see(&mut accounts, 0..1, Verdict::Blocked);
        accounts.look(&stats(9, 9, 1), SECOND);
        accounts.conclude(4 * SECOND);
        assert_eq!(told(&mut accounts, 5 * SECOND), (vec![blocked(2)], vec![]));
    }

    #[test]
    fn an_agent_without_accounts_is_followed() {
        let mut accounts = Accounts::new(None, &stats(9, 9, 1));
        let (items, lost) = accounts.items(&Containers::default(), BootOffset::now(), 1);
        assert!(matches!(&items[..], [Item::Account(42, stored)] if stored.seen.all == 8 && stored.lost.all == 1));
        assert_eq!(lost, 0);
        accounts.look(&stats(10, 10, 2), SECOND);
        accounts.conclude(4 * SECOND);
        assert_eq!(told(&mut accounts, 5 * SECOND).0.len(), 1);
    }

    #[test]
    fn the_last_numbers_are_exact_and_then_it_is_forgotten() {
        let mut accounts = kept();
        see(&mut accounts, 0..2, Verdict::Blocked);
        accounts.finish(42, Some(Counts { matched: 5, blocked: 5, killed: 0 }));
        assert_eq!(told(&mut accounts, 1).0, [Count { all: 3, blocked: 3, killed: 0 }]);
        accounts.forget(42);
        assert!(matches!(accounts.items(&Containers::default(), BootOffset::now(), 2).0[..], [Item::Close(42)]));
        // Nothing is known of it, and nothing happened.
        accounts.finish(43, None);
        accounts.finish(44, Some(Counts::default()));
        assert!(accounts.open.is_empty());
    }

    #[test]
    fn what_nobody_knows_goes() {
        let mut accounts = kept();
        see(&mut accounts, 0..2, Verdict::Blocked);
        accounts.prune(&stats(2, 2, 0), &Containers::default());
        assert_eq!(accounts.open.len(), 1);
        accounts.prune(&[], &Containers::default());
        assert!(accounts.open.is_empty());
    }
}
