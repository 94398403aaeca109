//! What a rule has reported of late, for those that report nothing twice.
//!
//! Two sets a rule and container, as the published rule has them: arguments and parents. An execution is a repeat if both of
//! its own are in them, whether or not they came together. What is put in when an execution is reported leaves after the
//! rule's time, unless it is reported again; a repeat renews nothing, so that what goes on for ever is reported once in
//! that time.
//!
//! What is not known whole is never a repeat. Nothing a container does makes this grow beyond [`CAPACITY`]: what is nearest
//! to leaving makes room, which can only bring a report more, not a report less.

use std::{
    collections::{BTreeSet, HashMap, hash_map::RandomState},
    hash::BuildHasher,
    time::Duration,
};

use portcullis_bpf::abi::{Event, flags};
use portcullis_policy::omissions::Omissions;

/// Arguments and parents of all containers together: some megabytes.
const CAPACITY: usize = 65_536;

/// Which of the two sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Set {
    Arguments,
    Parents,
}

/// What was reported.
///
/// Hashes stand for what was seen: a container can't know the keys of the hash, and so can't make two things alike.
#[derive(Debug, Default)]
pub struct Repeats {
    hasher: RandomState,
    /// When each leaves, nanoseconds of `CLOCK_BOOTTIME`.
    until: HashMap<u64, u64>,
    /// The same, the next to leave first.
    order: BTreeSet<(u64, u64)>,
}

/// An execution that is to be reported or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// It is a repeat.
    pub repeat: bool,
    /// How many earlier ones were forgotten before their time to make room for it.
    pub forgotten: u64,
}

impl Repeats {
    /// Whether an execution is a repeat; if it is not, it is what later ones repeat. The event's own time is what counts:
    /// it may have waited for the agent.
    pub fn judge(&mut self, event: &Event, omissions: &Omissions, window: Duration) -> Answer {
        let now = event.time_ns;
        while let Some(&(until, key)) = self.order.first().filter(|(until, _)| *until <= now) {
            self.order.remove(&(until, key));
            self.until.remove(&key);
        }
        let key = |set: Set, what: &[u8]| self.hasher.hash_one((omissions.rule, event.cgroup_id, set, what));
        let keys = [
            arguments(event).map(|line| key(Set::Arguments, &line)),
            parent(event).map(|path| key(Set::Parents, path)),
        ];
        if keys.iter().all(|key| key.is_some_and(|key| self.until.contains_key(&key))) {
            return Answer { repeat: true, forgotten: 0 };
        }
        let window = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let forgotten = keys.into_iter().flatten().map(|key| self.put(key, now.saturating_add(window))).sum();
        Answer { repeat: false, forgotten }
    }

    fn put(&mut self, key: u64, until: u64) -> u64 {
        if let Some(former) = self.until.insert(key, until) {
            self.order.remove(&(former, key));
        }
        self.order.insert((until, key));
        let mut forgotten = 0;
        while self.until.len() > CAPACITY {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.until.remove(&oldest);
            forgotten += 1;
        }
        forgotten
    }
}

/// The arguments after argv\[0\] as one line, as the published rule compares them; `None` if there are none, or more than were
/// recorded.
fn arguments(event: &Event) -> Option<Vec<u8>> {
    const CUT: u32 = flags::ARGV_TRUNCATED | flags::ARGV_UNCONFIRMED | flags::EVENT_REDUCED;
    let line = event.argv.get(1..).unwrap_or_default().join(&b' ');
    (event.flags & CUT == 0 && !line.is_empty()).then_some(line)
}

/// The executable that the process or its parent ran before; the empty path when that is outside the container, which is to
/// say: the container runtime. `None` if it is not known whole.
fn parent(event: &Event) -> Option<&[u8]> {
    match event.lineage.first() {
        Some(parent) => {
            (parent.flags & flags::EXE_TRUNCATED == 0 && !parent.exe.is_empty()).then_some(parent.exe.as_slice())
        }
        None => (event.flags & (flags::LINEAGE_TRUNCATED | flags::EVENT_REDUCED) == 0).then_some(b"".as_slice()),
    }
}

#[cfg(test)]
mod tests {
    use portcullis_bpf::abi::Ancestor;

    use super::*;
    use crate::testing;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: u64 = 1_000_000_000;

    fn omissions(rule: u32) -> Omissions {
        Omissions { rule, arguments: Vec::new(), repeats: Some(HOUR) }
    }

    /// `nc ARGUMENTS`, executed by a parent.
    fn event(cgroup_id: u64, seconds: u64, arguments: &str, parent: &str) -> Event {
        let mut event = testing::event(cgroup_id, 1, seconds * SECOND);
        event.argv = [b"nc".to_vec()].into_iter().chain(words(arguments)).collect();
        for ancestor in &mut event.lineage {
            ancestor.exe = parent.into();
        }
        event
    }

    fn words(text: &str) -> impl Iterator<Item = Vec<u8>> {
        text.split_whitespace().map(|word| word.as_bytes().to_vec())
    }

    #[derive(Default)]
    struct Bed(Repeats);

    impl Bed {
        fn repeats(&mut self, event: &Event) -> bool {
            self.0.judge(event, &omissions(1), HOUR).repeat
        }

        fn says(&mut self, seconds: u64, arguments: &str, parent: &str) -> bool {
            self.repeats(&event(42, seconds, arguments, parent))
        }
    }

    #[test]
    fn both_must_have_been_seen_but_not_together() {
        let mut bed = Bed::default();
        assert!(!bed.says(0, "-z a", "/bin/sh"));
        assert!(bed.says(1, "-z a", "/bin/sh"));
        assert!(!bed.says(2, "-z b", "/bin/sh"), "other arguments");
        assert!(!bed.says(3, "-z a", "/bin/bash"), "another parent");
        assert!(bed.says(4, "-z b", "/bin/bash"), "each was seen, though never together");
        let mut other_tool = event(42, 5, "-z a", "/bin/sh");
        other_tool.argv[0] = b"curl".to_vec();
        other_tool.tool = 2;
        assert!(bed.repeats(&other_tool), "neither the program nor argv[0] counts");
        assert!(!bed.repeats(&event(43, 6, "-z a", "/bin/sh")), "another container");
        assert!(!bed.0.judge(&event(42, 7, "-z a", "/bin/sh"), &omissions(2), HOUR).repeat, "another rule");
    }

    #[test]
    fn without_arguments_nothing_is_a_repeat() {
        let mut bed = Bed::default();
        assert!(!bed.says(0, "", "/bin/sh") && !bed.says(1, "", "/bin/sh"));
        let mut empty = event(42, 2, "", "/bin/sh");
        empty.argv = vec![b"nc".to_vec(), Vec::new()];
        assert!(!bed.repeats(&empty) && !bed.repeats(&empty));
        empty.argv = Vec::new();
        assert!(!bed.repeats(&empty) && !bed.repeats(&empty));
        assert!(!bed.says(3, "a", "/bin/sh"), "the parent alone was seen");
        assert!(bed.says(4, "a", "/bin/sh"));
    }

    #[test]
    fn the_time_runs_from_the_last_report() {
        let mut bed = Bed::default();
        assert!(!bed.says(0, "a", "/bin/sh"));
        assert!(bed.says(1800, "a", "/bin/sh") && bed.says(3599, "a", "/bin/sh"));
        assert!(!bed.says(3600, "a", "/bin/sh"), "a repeat renews nothing");
        assert!(bed.says(3601, "a", "/bin/sh"));
        // Reported for its arguments, which renews the parent as well.
        assert!(!bed.says(7000, "b", "/bin/sh"));
        assert!(!bed.says(7200, "a", "/bin/sh"), "the arguments have left");
        assert!(bed.says(10_599, "b", "/bin/sh"));
        assert!(!bed.says(10_600, "b", "/bin/sh"));
    }

    #[test]
    fn what_is_not_known_whole_is_no_repeat() {
        for flag in [flags::ARGV_TRUNCATED, flags::ARGV_UNCONFIRMED, flags::EVENT_REDUCED] {
            let mut bed = Bed::default();
            let cut = Event { flags: flag, ..event(42, 0, "a", "/bin/sh") };
            assert!(!bed.repeats(&cut) && !bed.repeats(&cut), "{flag}");
        }
        let mut bed = Bed::default();
        let mut cut = event(42, 0, "a", "/bin/sh");
        cut.lineage[0].flags = flags::EXE_TRUNCATED;
        assert!(!bed.repeats(&cut) && !bed.repeats(&cut));
        let unknown = |flags| Event { flags, lineage: Vec::new(), ..event(42, 0, "a", "") };
        let lost = unknown(flags::LINEAGE_TRUNCATED);
        assert!(!bed.repeats(&lost) && !bed.repeats(&lost));
        let nameless = Ancestor { exe: Vec::new(), flags: 0, ..cut.lineage[0].clone() };
        let nameless = Event { lineage: vec![nameless], ..event(42, 0, "a", "") };
        assert!(!bed.repeats(&nameless) && !bed.repeats(&nameless));
        // The runtime is a parent like any other.
        assert!(!bed.repeats(&unknown(flags::EXEC_SESSION)));
        assert!(bed.repeats(&unknown(flags::EXEC_SESSION)));
    }

    #[test]
    fn memory_is_bounded_and_what_is_forgotten_is_told() {
        let mut bed = Bed::default();
        let mut forgotten = 0;
        let many = u64::try_from(CAPACITY).unwrap() + 100;
        for number in 0..many {
            let event = Event { time_ns: number, ..event(42, 0, &number.to_string(), "/bin/sh") };
            let answer = bed.0.judge(&event, &omissions(1), HOUR);
            assert!(!answer.repeat);
            forgotten += answer.forgotten;
        }
        // One is the parent, renewed by each.
        assert_eq!((bed.0.until.len(), bed.0.order.len(), forgotten), (CAPACITY, CAPACITY, 101));
        assert!(!bed.says(1, "0", "/bin/sh"), "the oldest had to go");
        assert!(bed.says(1, &(many - 1).to_string(), "/bin/sh"));
        assert!(!bed.says(3601, "x", "/bin/sh"));
        assert_eq!((bed.0.until.len(), bed.0.order.len()), (2, 2), "all have left");
    }
}
