//! What a container does so much of that it is told by number only: one signal a container and [`WINDOW_NS`], with a count
//! of each tool and verdict.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

use portcullis_bpf::abi::{Event, Verdict};
use portcullis_proto::v1;

use crate::{
    clock::{BootOffset, timestamp},
    containers::Containers,
    count::Count,
    image::{Item, Pending},
    records::RecordName,
    signal,
    store::entry::{Origin, Update},
};

/// How long one signal is added to.
const WINDOW_NS: u64 = 3600 * 1_000_000_000;
/// Tools and verdicts that are counted apart.
const APART: usize = 64;

/// The containers of which something was suppressed within the window.
#[derive(Debug, Default)]
pub struct Suppressed {
    /// By cgroup id.
    records: HashMap<u64, Record>,
    /// Those whose window has ended and that have not been told whole.
    ended: Vec<Record>,
    changed: bool,
}

#[derive(Debug)]
struct Record {
    cgroup_id: u64,
    /// Both `CLOCK_BOOTTIME`.
    first_ns: u64,
    last_ns: u64,
    counts: BTreeMap<(String, i32), u64>,
    count: u64,
    /// Of these, what the store was not told.
    untold: Count,
}

impl Suppressed {
    /// Counts an event. `tool`: its id.
    pub fn add(&mut self, event: &Event, tool: String) {
        let new = || Record {
            cgroup_id: event.cgroup_id,
            first_ns: event.time_ns,
            last_ns: event.time_ns,
            counts: BTreeMap::new(),
            count: 0,
            untold: Count::default(),
        };
        let record = self.records.entry(event.cgroup_id).or_insert_with(new);
        if record.has_ended(event.time_ns) {
            self.ended.push(mem::replace(record, new()));
        }
        record.add(event.time_ns, event.verdict, tool);
        self.changed = true;
    }

    /// Whether there is anything to tell the store.
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    /// What the store has not been told yet.
    pub fn items(&mut self, containers: &Containers, offset: BootOffset) -> Vec<Item> {
        self.changed = false;
        let changed = self.ended.iter_mut().chain(self.records.values_mut()).filter(|record| !record.untold.is_none());
        let items = changed.map(|record| record.item(containers, offset)).collect();
        self.ended.clear();
        items
    }

    /// Forgets those whose window has ended.
    pub fn prune(&mut self, now_ns: u64) {
        self.records.retain(|_, record| !record.untold.is_none() || !record.has_ended(now_ns));
    }

    /// Begins anew: the signals are gone.
    pub fn forget(&mut self) {
        self.ended.extend(self.records.drain().map(|(_, record)| record));
    }
}

impl Record {
    fn has_ended(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.first_ns) >= WINDOW_NS
    }

    fn add(&mut self, time_ns: u64, verdict: Verdict, tool: String) {
        self.untold += Count::one(verdict);
        let mut key = (tool, signal::verdict(verdict).into());
        if self.counts.len() >= APART && !self.counts.contains_key(&key) {
            key.0.clear();
        }
        *self.counts.entry(key).or_default() += 1;
        self.count += 1;
        self.last_ns = self.last_ns.max(time_ns);
    }

    /// The signal, if it is new, or what has changed of it.
    fn item(&mut self, containers: &Containers, offset: BootOffset) -> Item {
        let origin = Origin::Suppressed { cgroup_id: self.cgroup_id, time_ns: self.first_ns };
        let added = mem::take(&mut self.untold);
        let is_new = added.all == self.count;
        let name = RecordName::Cgroup(self.cgroup_id);
        let container = containers.get(&name).filter(|_| is_new);
        let signal = if is_new {
            signal::suppressed(self.cgroup_id, container.as_ref(), offset.wall_ns(self.first_ns))
        } else {
            v1::Signal::default()
        };
        let counts = self.counts.iter();
        let signal = v1::Signal {
            count: self.count,
            last_time: Some(timestamp(offset.wall_ns(self.last_ns))),
            suppressed: counts
                .map(|((tool, verdict), count)| v1::SuppressedCount {
                    tool: tool.clone(),
                    verdict: *verdict,
                    count: *count,
                })
                .collect(),
            ..signal
        };
        if is_new {
            Item::Signal(Box::new(Pending { origin, signal, kin: Vec::new(), container: container.map(|_| name) }))
        } else {
            Item::Update(Update::new(origin, added, &signal))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn add(suppressed: &mut Suppressed, cgroup_id: u64, time_ns: u64, tool: &str, verdict: Verdict) {
        suppressed.add(&Event { verdict, ..testing::event(cgroup_id, 7, time_ns) }, tool.into());
    }

    /// The counts of new signals, and those of updates with what is new of them.
    fn told(suppressed: &mut Suppressed) -> (Vec<u64>, Vec<(u64, u64)>) {
        let (mut signals, mut updates) = (Vec::new(), Vec::new());
        for item in suppressed.items(&Containers::default(), BootOffset::now()) {
            match item {
                Item::Update(update) => updates.push((update.count(), update.added.all)),
                Item::Signal(pending) => {
                    assert_eq!(pending.signal.rule, "signals_suppressed");
                    assert_eq!(Count::of(&pending.signal).all, pending.signal.count);
                    signals.push(pending.signal.count);
                }
                _ => panic!("{item:?}"),
            }
        }
        (signals, updates)
    }

    #[test]
    fn one_signal_a_container_and_window() {
        let mut suppressed = Suppressed::default();
        for _ in 0..5 {
            add(&mut suppressed, 42, 1, "nc", Verdict::Blocked);
        }
        add(&mut suppressed, 42, 2, "curl", Verdict::Detected);
        assert!(suppressed.has_changed());
        assert_eq!(told(&mut suppressed), (vec![6], vec![]));
        assert!(!suppressed.has_changed());
        assert_eq!(told(&mut suppressed), (vec![], vec![]));
        let counts = suppressed.records[&42].counts.values().copied().collect::<Vec<_>>();
        assert_eq!(counts, [1, 5], "by tool and verdict");
        add(&mut suppressed, 42, 3, "nc", Verdict::Blocked);
        assert_eq!(told(&mut suppressed), (vec![], vec![(7, 1)]));
        add(&mut suppressed, 42, 4, "nc", Verdict::Blocked);
        add(&mut suppressed, 42, WINDOW_NS + 1, "nc", Verdict::Blocked);
        assert_eq!(told(&mut suppressed), (vec![1], vec![(8, 1)]), "the old one is told whole");
        suppressed.prune(WINDOW_NS + 2);
        assert_eq!(suppressed.records.len(), 1);
        suppressed.prune(3 * WINDOW_NS);
        assert!(suppressed.records.is_empty());
    }

    #[test]
    fn tools_are_counted_apart_up_to_a_number() {
        let mut suppressed = Suppressed::default();
        for number in 0..1000 {
            add(&mut suppressed, 42, 1, &format!("t{number}"), Verdict::Blocked);
        }
        let record = &suppressed.records[&42];
        assert_eq!((record.counts.len(), record.count), (APART + 1, 1000));
        assert_eq!(record.counts.values().sum::<u64>(), 1000);
    }

    #[test]
    fn a_signal_that_is_gone_is_not_added_to() {
        let mut suppressed = Suppressed::default();
        add(&mut suppressed, 42, 1, "nc", Verdict::Blocked);
        told(&mut suppressed);
        add(&mut suppressed, 42, 2, "nc", Verdict::Blocked);
        suppressed.forget();
        add(&mut suppressed, 42, 3, "nc", Verdict::Blocked);
        assert_eq!(told(&mut suppressed), (vec![1], vec![(2, 1)]));
    }
}
