//! How many new signals a container may make: a token bucket each, by the time that the kernel gave the events. What was
//! made slowly while the agent was down is not too much only because it is read at once.
//!
//! Of a bucket only the moment is kept at which it is full again (the generic cell rate algorithm), and a full bucket is as
//! good as none: so the table holds only the containers that made a signal within the last seconds.

use std::collections::HashMap;

/// New signals a second, in the long run.
pub const PER_SECOND: u64 = 100;
/// New signals at once.
pub const BURST: u64 = 1000;

const REFILL_NS: u64 = 1_000_000_000 / PER_SECOND;

/// The buckets.
#[derive(Debug, Default)]
pub struct Rates {
    /// By cgroup id, nanoseconds of `CLOCK_BOOTTIME`.
    full_at: HashMap<u64, u64>,
}

impl Rates {
    /// Takes a token, if there is one.
    pub fn allow(&mut self, cgroup_id: u64, now_ns: u64) -> bool {
        let full_at = self.full_at.entry(cgroup_id).or_default();
        let then = now_ns.max(*full_at).saturating_add(REFILL_NS);
        let allowed = then.saturating_sub(now_ns) <= BURST * REFILL_NS;
        if allowed {
            *full_at = then;
        }
        allowed
    }

    /// Forgets full buckets.
    pub fn prune(&mut self, now_ns: u64) {
        self.full_at.retain(|_, full_at| *full_at > now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_then_a_rate() {
        let mut rates = Rates::default();
        let mut allowed = |now| (0..5000).filter(|_| rates.allow(42, now)).count();
        assert_eq!(allowed(SECOND), 1000);
        assert_eq!(allowed(SECOND), 0);
        assert_eq!(allowed(2 * SECOND), 100);
        assert_eq!(allowed(2 * SECOND + SECOND / 2), 50);
        // Events of several processors are not quite in order.
        assert_eq!(allowed(2 * SECOND), 0);
        assert_eq!(allowed(100 * SECOND), 1000);
    }

    #[test]
    fn containers_have_buckets_of_their_own() {
        let mut rates = Rates::default();
        while rates.allow(42, SECOND) {}
        assert!(rates.allow(43, SECOND));
        rates.prune(SECOND + REFILL_NS);
        assert_eq!(rates.full_at.len(), 1, "what is full is forgotten");
        assert!(!rates.allow(42, SECOND), "and nothing else");
        rates.prune(20 * SECOND);
        assert!(rates.full_at.is_empty());
    }

    #[test]
    fn times_at_the_end_of_the_clock_do_no_harm() {
        let mut rates = Rates::default();
        rates.allow(42, u64::MAX);
        rates.allow(42, 0);
        rates.allow(42, u64::MAX);
    }
}
