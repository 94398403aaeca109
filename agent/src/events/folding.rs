//! Repeats of an execution become a count in the signal of the first.
//!
//! The window runs from the first, so that what goes on for ever is one signal a window. Nothing is compared but what a
//! signal shows: where argv was cut, what is left of it. What is always compared is compared itself; hashes stand for the
//! rest, with keys that no container can know, and so can't make two things alike.
//!
//! Memory is bounded by [`CAPACITY`], whatever containers do: what is nearest to its window's end makes room, which can only
//! bring a signal more. It is not stored: an agent that has started again folds nothing into older signals.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    mem,
};

use portcullis_bpf::abi::{Event, Verdict, flags};
use portcullis_policy::repeat::{Key, Repeat};
use portcullis_proto::v1;

use crate::{
    clock::{BootOffset, timestamp},
    count::Count,
    signal,
    store::entry::{Origin, Update},
    text,
};

/// Signals that can be folded into, of all containers together. Some megabytes; 24 MB if all of them have occurrences with
/// an argv of their own.
const CAPACITY: usize = 16_384;
/// Occurrences that a signal keeps.
const OCCURRENCES: usize = 4;
/// Bytes of argv that an occurrence keeps.
const ARGV_BYTES: usize = 256;

/// What repeats have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Common {
    cgroup_id: u64,
    policy: u32,
    rule: u32,
    tool: u32,
    verdict: u32,
    came_by: v1::Origin,
    rest: u64,
}

#[derive(Debug)]
struct Folded {
    origin: Origin,
    verdict: Verdict,
    until_ns: u64,
    /// Hash of the first one's argv.
    argv: u64,
    count: u64,
    /// The count that the store was told.
    told: u64,
    /// Nanoseconds since 1970.
    last_ns: u64,
    occurrences: VecDeque<v1::Occurrence>,
}

/// What can be folded into.
#[derive(Debug, Default)]
pub struct Folding {
    hasher: RandomState,
    folded: HashMap<Common, Folded>,
    /// The next to end first.
    order: BTreeSet<(u64, Common)>,
    /// Those whose count the store does not know. Some may be gone.
    changed: Vec<Common>,
    /// What became of those that are gone.
    gone: Vec<Update>,
}

impl Folding {
    /// What this event's repeats have in common with it; `None` if its policy wants each told. `came_by`: how its process came to
    /// be in the container, so that nothing hides among a probe's.
    pub fn common(&self, event: &Event, came_by: v1::Origin, repeat: Repeat) -> Option<Common> {
        let given = |key| repeat.keys.contains(key);
        let rest = (
            given(Key::Arguments).then_some((&event.argv, event.argc, event.remote)),
            given(Key::Parent).then(|| event.lineage.first().map(|parent| &parent.exe)),
            given(Key::User).then_some(event.uid),
            given(Key::Exe).then_some((&event.exe, event.place, event.identified_by)),
            given(Key::Cwd).then_some(&event.cwd),
        );
        (!repeat.window.is_zero()).then(|| Common {
            cgroup_id: event.cgroup_id,
            policy: event.policy,
            rule: event.rule,
            tool: event.tool,
            verdict: event.verdict as u32,
            came_by,
            rest: self.hasher.hash_one(rest),
        })
    }

    /// Counts an event if it is a repeat: in whose signal? The event's own time is what counts: it may have waited for the agent.
    pub fn fold(&mut self, common: Common, event: &Event, offset: BootOffset) -> Option<Origin> {
        while let Some(&(until_ns, ended)) = self.order.first().filter(|(until_ns, _)| *until_ns <= event.time_ns) {
            self.order.remove(&(until_ns, ended));
            self.remove(ended);
        }
        let folded = self.folded.get_mut(&common)?;
        let differs = self.hasher.hash_one(&event.argv) != folded.argv;
        if folded.count == folded.told {
            self.changed.push(common);
        }
        folded.count += 1;
        let wall_ns = offset.wall_ns(event.time_ns);
        folded.last_ns = folded.last_ns.max(wall_ns);
        if folded.occurrences.len() == OCCURRENCES {
            folded.occurrences.pop_front();
        }
        folded.occurrences.push_back(occurrence(event, wall_ns, differs));
        Some(folded.origin)
    }

    /// Later repeats are folded into this event's signal. Returns how many others were forgotten to make room for it.
    pub fn begin(&mut self, common: Common, event: &Event, repeat: Repeat, origin: Origin, offset: BootOffset) -> u64 {
        let window = u64::try_from(repeat.window.as_nanos()).unwrap_or(u64::MAX);
        let until_ns = event.time_ns.saturating_add(window);
        self.remove(common);
        self.order.insert((until_ns, common));
        let folded = Folded {
            origin,
            verdict: event.verdict,
            until_ns,
            argv: self.hasher.hash_one(&event.argv),
            count: 1,
            told: 1,
            last_ns: offset.wall_ns(event.time_ns),
            occurrences: VecDeque::new(),
        };
        self.folded.insert(common, folded);
        let mut forgotten = 0;
        while self.folded.len() > CAPACITY {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.remove(oldest);
            forgotten += 1;
        }
        forgotten
    }

    /// Folds nothing more into what there is.
    pub fn forget(&mut self) {
        self.order.clear();
        let all: Vec<Common> = self.folded.keys().copied().collect();
        for common in all {
            self.remove(common);
        }
    }

    fn remove(&mut self, common: Common) {
        if let Some(mut folded) = self.folded.remove(&common) {
            self.order.remove(&(folded.until_ns, common));
            self.gone.extend(folded.update());
        }
    }

    /// Whether there is anything to tell the store.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty() || !self.gone.is_empty()
    }

    /// What the store has not been told yet.
    pub fn updates(&mut self) -> Vec<Update> {
        let mut updates = mem::take(&mut self.gone);
        for common in mem::take(&mut self.changed) {
            updates.extend(self.folded.get_mut(&common).and_then(Folded::update));
        }
        updates
    }
}

impl Folded {
    fn update(&mut self) -> Option<Update> {
        let added = self.count - self.told;
        self.told = self.count;
        let changed = || v1::Signal {
            count: self.count,
            last_time: Some(timestamp(self.last_ns)),
            occurrences: self.occurrences.iter().cloned().collect(),
            ..v1::Signal::default()
        };
        let added_count = Count::many(added, signal::verdict(self.verdict));
        (added > 0).then(|| Update::new(self.origin, added_count, &changed()))
    }
}

fn occurrence(event: &Event, wall_ns: u64, differs: bool) -> v1::Occurrence {
    let (mut argv, mut room) = (Vec::new(), ARGV_BYTES);
    let mut cut = event.flags & (flags::ARGV_TRUNCATED | flags::EVENT_REDUCED) != 0;
    for argument in event.argv.iter().filter(|_| differs) {
        // An empty argument takes memory as well.
        let Some(left) = room.checked_sub(argument.len() + 1) else {
            argv.extend(argument.get(..room).filter(|part| !part.is_empty()).map(text::lossy));
            cut = true;
            break;
        };
        room = left;
        argv.push(text::lossy(argument));
    }
    v1::Occurrence { pid: event.pid, time: Some(timestamp(wall_ns)), argv_truncated: differs && cut, argv }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use portcullis_policy::repeat::Keys;

    use super::*;
    use crate::{store::entry::Process, testing};

    const SECOND: u64 = 1_000_000_000;

    fn origin(event: &Event) -> Origin {
        let process = Process { pid: event.pid, start_time_ns: event.start_time_ns };
        Origin::Event { cgroup_id: event.cgroup_id, process, time_ns: event.time_ns }
    }

    /// Folds, or begins anew. Whether it was a repeat.
    fn see(folding: &mut Folding, event: &Event, repeat: Repeat) -> bool {
        let offset = BootOffset::now();
        let Some(common) = folding.common(event, v1::Origin::Container, repeat) else { return false };
        let is_repeat = folding.fold(common, event, offset).is_some();
        if !is_repeat {
            folding.begin(common, event, repeat, origin(event), offset);
        }
        is_repeat
    }

    fn event(seconds: u64) -> Event {
        testing::event(42, 7, seconds * SECOND)
    }

    #[test]
    fn a_loop_is_one_signal_a_window() {
        let mut folding = Folding::default();
        let firsts: Vec<u64> =
            (0..7500).filter(|&seconds| !see(&mut folding, &event(seconds), Repeat::default())).collect();
        assert_eq!(firsts, [0, 3600, 7200]);
        let updates = folding.updates();
        let told: Vec<_> = updates.iter().map(|update| (update.origin, update.added.all, update.count())).collect();
        assert_eq!(
            told,
            [(0, 3599, 3600), (3600, 3599, 3600), (7200, 299, 300)].map(|(first, added, count)| (
                origin(&event(first)),
                added,
                count
            ))
        );
        assert!(!folding.has_changed() && folding.updates().is_empty());
        assert!(see(&mut folding, &event(7500), Repeat::default()));
        let [update] = &folding.updates()[..] else { panic!("one has changed") };
        assert_eq!((update.added.all, update.count()), (1, 301), "the whole count, and what is new of it");
    }

    #[test]
    fn whatever_is_not_the_same_is_told() {
        let all = |change: &dyn Fn(&mut Event)| {
            let mut folding = Folding::default();
            see(&mut folding, &event(1), Repeat::default());
            let mut other = event(2);
            change(&mut other);
            see(&mut folding, &other, Repeat::default())
        };
        assert!(all(&|event| event.pid = 5));
        assert!(!all(&|event| event.cgroup_id = 43));
        assert!(!all(&|event| event.rule = 1));
        assert!(!all(&|event| event.policy = 2));
        assert!(!all(&|event| event.verdict = Verdict::Detected));
        assert!(!all(&|event| event.argv[4] = b"4445".to_vec()));
        assert!(!all(&|event| event.remote = Some("10.0.0.1:1".parse().unwrap())));
        assert!(!all(&|event| event.lineage[0].exe = b"/bin/bash".to_vec()));
        assert!(!all(&|event| event.uid = 0));
        assert!(!all(&|event| event.exe = b"/tmp/nc".to_vec()));
        assert!(!all(&|event| event.identified_by = 0));
        assert!(!all(&|event| event.cwd = b"/".to_vec()));
    }

    #[test]
    fn verdict_and_tool_are_compared_whatever_the_keys() {
        let repeat = Repeat { keys: [].into_iter().collect(), ..Repeat::default() };
        let mut folding = Folding::default();
        assert!(!see(&mut folding, &Event { verdict: Verdict::Detected, ..event(1) }, repeat));
        assert!(!see(&mut folding, &event(2), repeat));
        assert!(!see(&mut folding, &Event { tool: 8, ..event(3) }, repeat));
        let other = Event { uid: 0, cwd: b"/".to_vec(), argv: vec![b"nc".to_vec()], lineage: vec![], ..event(4) };
        assert!(see(&mut folding, &other, repeat));
    }

    #[test]
    fn a_window_of_nothing_folds_nothing() {
        let repeat = Repeat { window: Duration::ZERO, keys: Keys::ALL };
        let mut folding = Folding::default();
        assert!((0..3).all(|_| !see(&mut folding, &event(1), repeat)));
        assert!(!folding.has_changed());
    }

    #[test]
    fn the_newest_occurrences_stay_and_say_what_differs() {
        let repeat = Repeat { keys: [Key::User].into_iter().collect(), ..Repeat::default() };
        let mut folding = Folding::default();
        for pid in 0..10 {
            let mut event = Event { pid, ..event(u64::from(pid)) };
            if pid == 8 {
                event.argv = vec![b"nc".to_vec(), vec![b'x'; 300]];
            }
            see(&mut folding, &event, repeat);
        }
        let folded = folding.folded.values().next().unwrap();
        let told: Vec<_> = folded.occurrences.iter().map(|one| (one.pid, one.argv.len())).collect();
        assert_eq!(told, [(6, 0), (7, 0), (8, 2), (9, 0)]);
        assert_eq!((folded.occurrences[2].argv[1].len(), folded.occurrences[2].argv_truncated), (253, true));
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_lost() {
        let mut folding = Folding::default();
        see(&mut folding, &event(0), Repeat::default());
        see(&mut folding, &event(0), Repeat::default());
        let mut forgotten = 0;
        for uid in 0..u32::try_from(CAPACITY).unwrap() {
            let event = Event { uid: 5000 + uid, ..event(1) };
            let common = folding.common(&event, v1::Origin::Container, Repeat::default()).unwrap();
            assert_eq!(folding.fold(common, &event, BootOffset::now()), None);
            forgotten += folding.begin(common, &event, Repeat::default(), origin(&event), BootOffset::now());
        }
        assert_eq!((forgotten, folding.folded.len(), folding.order.len()), (1, CAPACITY, CAPACITY));
        let updates = folding.updates();
        assert_eq!((updates.len(), updates[0].count()), (1, 2));
        assert!(!see(&mut folding, &event(2), Repeat::default()), "it is told once more");
        folding.forget();
        assert!(folding.folded.is_empty() && folding.order.is_empty() && folding.updates().is_empty());
        assert!(!see(&mut folding, &event(3), Repeat::default()));
    }
}
