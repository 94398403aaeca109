//! Exec sessions that come at a steady pace: the kubelet's probes, or what behaves like one. CRI does not tell a probe
//! (ExecSync) from another exec session without terminal; their pace does.
//!
//! What is compared is the sessions' first process: its arguments, and when it began. Liveness and readiness are often asked
//! for by the same command, and so are two paces interleaved: the intervals to the one before the last are looked at as well.
//!
//! Being called a probe changes the origin that a signal tells, and nothing else: whoever may start exec sessions can look
//! like one. What is folded is of one origin, so that no session hides among a probe's.
//!
//! Memory is bounded by [`CAPACITY`]: what came least recently makes room, and is an exec session again for a while.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
};

use portcullis_bpf::abi::{Event, flags};
use portcullis_proto::v1::Origin;

/// Commands of all containers together; some hundred bytes each.
const CAPACITY: usize = 4096;
/// Intervals that must be alike.
const INTERVALS: usize = 3;
/// Paces that may be interleaved.
const PACES: usize = 2;
/// Sessions to remember for that.
const SESSIONS: usize = INTERVALS * PACES + 1;

const SECOND: u64 = 1_000_000_000;
const SHORTEST: u64 = SECOND;
const LONGEST: u64 = 600 * SECOND;

/// The sessions of one command in one container.
#[derive(Debug, Default)]
struct Sessions {
    /// When the newest began, `CLOCK_BOOTTIME`, oldest first.
    began: VecDeque<u64>,
    is_probe: bool,
}

/// The sessions seen of late.
#[derive(Debug, Default)]
pub struct Probes {
    hasher: RandomState,
    sessions: HashMap<u64, Sessions>,
    /// By the newest session, the least recent first.
    order: BTreeSet<(u64, u64)>,
}

/// What an event is by its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// How its process came to be in the container.
    pub origin: Origin,
    /// How many commands were forgotten to make room for its own.
    pub forgotten: u64,
}

impl Probes {
    /// Judges an event, and remembers its session. To be told of each event, whatever becomes of it.
    pub fn judge(&mut self, event: &Event) -> Answer {
        if event.flags & flags::EXEC_SESSION == 0 {
            return Answer { origin: Origin::Container, forgotten: 0 };
        }
        let session = Answer { origin: Origin::ExecSession, forgotten: 0 };
        let Some((argv, began)) = first_process(event).filter(|_| event.tty.is_empty()) else { return session };
        let key = self.hasher.hash_one((event.cgroup_id, argv));
        let sessions = self.sessions.entry(key).or_default();
        // A session may have many events.
        if sessions.began.contains(&began) {
            return if sessions.is_probe { Answer { origin: Origin::Probe, ..session } } else { session };
        }
        let before = sessions.began.back().copied();
        // Events of several processors are not quite in order; what is that late tells nothing of the pace.
        if before.is_some_and(|before| began < before) {
            return session;
        }
        if let Some(before) = before {
            self.order.remove(&(before, key));
        }
        self.order.insert((began, key));
        if sessions.began.len() == SESSIONS {
            sessions.began.pop_front();
        }
        sessions.began.push_back(began);
        sessions.is_probe = (1..=PACES).any(|pace| is_steady(&sessions.began, pace));
        let origin = if sessions.is_probe { Origin::Probe } else { Origin::ExecSession };
        Answer { origin, forgotten: self.forget() }
    }

    fn forget(&mut self) -> u64 {
        let mut forgotten = 0;
        while self.sessions.len() > CAPACITY {
            let Some((_, key)) = self.order.pop_first() else { break };
            self.sessions.remove(&key);
            forgotten += 1;
        }
        forgotten
    }

    /// Forgets what comes no longer. `now_ns`: of `CLOCK_BOOTTIME`.
    pub fn prune(&mut self, now_ns: u64) {
        // What is interleaved comes back after twice the longest interval at most.
        let oldest = now_ns.saturating_sub(2 * LONGEST);
        while let Some(&(began, key)) = self.order.first().filter(|(began, _)| *began < oldest) {
            self.order.remove(&(began, key));
            self.sessions.remove(&key);
        }
    }
}

/// Arguments and beginning of the session's first process; `None` if they are not known whole.
fn first_process(event: &Event) -> Option<(&[Vec<u8>], u64)> {
    if event.flags & (flags::LINEAGE_TRUNCATED | flags::EVENT_REDUCED) != 0 {
        return None;
    }
    let (argv, flags, began) = match event.lineage.last() {
        Some(first) => (&first.argv, first.flags, first.start_time_ns),
        None => (&event.argv, event.flags, event.start_time_ns),
    };
    (flags & flags::ARGV_TRUNCATED == 0 && !argv.is_empty()).then_some((argv, began))
}

/// Whether the newest sessions came in intervals that are alike, looking at every `pace`th.
fn is_steady(began: &VecDeque<u64>, pace: usize) -> bool {
    let newest: Vec<u64> = began.iter().rev().step_by(pace).take(INTERVALS + 1).copied().collect();
    let mut intervals: Vec<u64> =
        newest.iter().zip(newest.iter().skip(1)).map(|(later, earlier)| later.saturating_sub(*earlier)).collect();
    intervals.sort_unstable();
    if intervals.len() < INTERVALS {
        return false;
    }
    let Some(&median) = intervals.get(INTERVALS / 2) else { return false };
    // A fifth; of short ones a second, for starting a process takes its time, but never more than half.
    let tolerance = (median / 5).max(SECOND.min(median / 2));
    (SHORTEST..=LONGEST).contains(&median) && intervals.iter().all(|interval| interval.abs_diff(median) < tolerance)
}

#[cfg(test)]
mod tests {
    use portcullis_bpf::abi::Ancestor;

    use super::*;
    use crate::testing;

    /// `sh -c COMMAND` from outside, `began` milliseconds after boot, and the tool that it starts.
    fn session(command: &str, began: u64) -> Event {
        let mut event = testing::event(42, 7, began * 1_000_000 + 5);
        event.flags = flags::EXEC_SESSION;
        event.tty = Vec::new();
        event.lineage = vec![Ancestor {
            start_time_ns: began * 1_000_000,
            argv: ["sh", "-c", command].map(|word| word.as_bytes().to_vec()).into(),
            flags: 0,
            ..event.lineage[0].clone()
        }];
        event
    }

    /// Which of the sessions that begin at these milliseconds are probes.
    fn probes(began: &[u64]) -> Vec<bool> {
        let mut probes = Probes::default();
        began.iter().map(|began| probes.judge(&session("wget x", *began)).origin == Origin::Probe).collect()
    }

    #[test]
    fn a_steady_pace_is_a_probes() {
        assert_eq!(probes(&[0, 10_000, 20_010, 29_990, 40_000]), [false, false, false, true, true]);
        assert_eq!(probes(&[0, 1000, 2100, 3400]), [false, false, false, true]);
        assert_eq!(probes(&[0, 600_000, 1_200_000, 1_800_000]), [false, false, false, true]);
        assert_eq!(probes(&[0, 10_000, 20_000, 30_000, 33_000]), [false, false, false, true, false], "that is another");
    }

    #[test]
    fn other_paces_are_not() {
        for began in [
            [0, 10_000, 25_000, 30_000, 52_000, 60_000],
            [0, 100, 200, 300, 400, 500],
            [0, 700_000, 1_400_000, 2_100_000, 2_800_000, 3_500_000],
            [0, 1000, 1100, 2900, 3000, 5000],
            [5, 5, 5, 5, 5, 5],
        ] {
            assert_eq!(probes(&began), [false; 6], "{began:?}");
        }
    }

    #[test]
    fn two_probes_of_one_command_are_told() {
        let began: Vec<u64> = (0..6).flat_map(|round| [round * 10_000, round * 10_000 + 3000]).collect();
        assert_eq!(probes(&began).iter().position(|probe| *probe), Some(6));
        assert!(probes(&began)[6..].iter().all(|probe| *probe));
    }

    #[test]
    fn a_session_is_seen_once_whatever_it_does() {
        let mut probes = Probes::default();
        for round in 0..5 {
            for tool in 0..10 {
                let mut event = session("wget x", round * 10_000);
                event.time_ns += tool * 1000 * SECOND;
                assert_eq!(probes.judge(&event).origin == Origin::Probe, round >= 3);
            }
        }
    }

    #[test]
    fn the_sessions_first_process_counts() {
        let steady = |change: &dyn Fn(&mut Event, u64)| {
            let mut probes = Probes::default();
            let mut last = Origin::Unspecified;
            for round in 0..8 {
                let mut event = session("wget x", round * 10_000);
                change(&mut event, round);
                last = probes.judge(&event).origin;
            }
            last
        };
        assert_eq!(steady(&|_, _| ()), Origin::Probe);
        assert_eq!(steady(&|event, round| event.argv = vec![round.to_be_bytes().to_vec()]), Origin::Probe);
        let alone = |event: &mut Event, _| {
            event.start_time_ns = event.lineage[0].start_time_ns;
            event.lineage.clear();
        };
        assert_eq!(steady(&alone), Origin::Probe);
        for (why, change) in [
            ("other arguments", (|event, round| event.lineage[0].argv.push(vec![round])) as fn(&mut Event, u8)),
            ("other containers", |event, round| event.cgroup_id += u64::from(round)),
            ("a terminal", |event, _| event.tty = b"pts0".to_vec()),
            ("cut off", |event, _| event.lineage[0].flags |= flags::ARGV_TRUNCATED),
            ("not known", |event, _| event.flags |= flags::LINEAGE_TRUNCATED),
            ("no arguments", |event, _| event.lineage[0].argv.clear()),
        ] {
            let origin = steady(&|event, round| change(event, u8::try_from(round).unwrap()));
            assert_eq!(origin, Origin::ExecSession, "{why}");
        }
        assert_eq!(steady(&|event, _| event.flags = 0), Origin::Container);
    }

    #[test]
    fn memory_is_bounded() {
        let mut probes = Probes::default();
        let mut forgotten = 0;
        for number in 0..CAPACITY + 10 {
            forgotten += probes.judge(&session(&number.to_string(), u64::try_from(number).unwrap())).forgotten;
        }
        assert_eq!((forgotten, probes.sessions.len(), probes.order.len()), (10, CAPACITY, CAPACITY));
        for round in 0..100 {
            probes.judge(&session("x", 5_000_000 + round));
        }
        assert!(probes.sessions.values().all(|sessions| sessions.began.len() <= SESSIONS));
        probes.prune(5_000_000 * 1_000_000);
        assert_eq!((probes.sessions.len(), probes.order.len()), (1, 1));
    }
}
