//! Numbers of events.

use std::ops::AddAssign;

use portcullis_bpf::abi::{self, ContainerStats};
use portcullis_policy::record::Counts;
use portcullis_proto::v1::{Signal, Verdict};

/// How many events, and how many of them were stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// All.
    pub all: u64,
    /// Refused.
    pub blocked: u64,
    /// Ended by SIGKILL.
    pub killed: u64,
}

impl Count {
    /// One event.
    pub fn one(verdict: abi::Verdict) -> Self {
        Self {
            all: 1,
            blocked: u64::from(verdict == abi::Verdict::Blocked),
            killed: u64::from(verdict == abi::Verdict::Killed),
        }
    }

    /// So many of the same verdict.
    pub fn many(all: u64, verdict: Verdict) -> Self {
        let of = |which| if verdict == which { all } else { 0 };
        Self { all, blocked: of(Verdict::Blocked), killed: of(Verdict::Killed) }
    }

    /// The events that a signal stands for when it is new.
    pub fn of(signal: &Signal) -> Self {
        if signal.suppressed.is_empty() {
            return Self::many(1, signal.verdict());
        }
        let mut sum = Self::default();
        for counted in &signal.suppressed {
            sum += Self::many(counted.count, counted.verdict());
        }
        sum
    }

    /// Whether there are none.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// What is left without the others.
    pub fn without(self, others: Self) -> Self {
        self.with(others, u64::saturating_sub)
    }

    /// Each number the greater one.
    pub fn max(self, other: Self) -> Self {
        self.with(other, u64::max)
    }

    fn with(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            all: f(self.all, other.all),
            blocked: f(self.blocked, other.blocked),
            killed: f(self.killed, other.killed),
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        *self = self.with(other, u64::saturating_add);
    }
}

impl From<ContainerStats> for Count {
    fn from(stats: ContainerStats) -> Self {
        Self { all: stats.matched, blocked: stats.blocked, killed: stats.killed }
    }
}

impl From<Counts> for Count {
    fn from(counts: Counts) -> Self {
        Self { all: counts.matched, blocked: counts.blocked, killed: counts.killed }
    }
}

#[cfg(test)]
mod tests {
    use portcullis_proto::v1::SuppressedCount;

    use super::*;

    #[test]
    fn a_signal_stands_for_what_it_says() {
        let one = Signal { verdict: Verdict::Killed.into(), count: 1, ..Signal::default() };
        assert_eq!(Count::of(&one), Count { all: 1, blocked: 0, killed: 1 });
        let counted = |verdict: Verdict, count| SuppressedCount { tool: String::new(), verdict: verdict.into(), count };
        let many = Signal {
            suppressed: vec![
                counted(Verdict::Blocked, 5),
                counted(Verdict::Unspecified, 7),
                counted(Verdict::Blocked, 1),
            ],
            ..Signal::default()
        };
        assert_eq!(Count::of(&many), Count { all: 13, blocked: 6, killed: 0 });
    }
}
