//! From the kernel's clock to the wall's.

use std::time::{Duration, SystemTime};

use chrono::DateTime;
use prost_types::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

const NANOS: i64 = 1_000_000_000;

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(NANOS).saturating_add(time.tv_nsec)
}

/// Wall clock, nanoseconds since 1970.
pub fn now_ns() -> u64 {
    u64::try_from(nanoseconds(clock_gettime(ClockId::Realtime))).unwrap_or(0)
}

/// `CLOCK_BOOTTIME` in nanoseconds, as the kernel's events have it.
pub fn boot_ns() -> u64 {
    u64::try_from(nanoseconds(clock_gettime(ClockId::Boottime))).unwrap_or(0)
}

/// How far the wall clock is ahead of `CLOCK_BOOTTIME`. Read anew for each batch of events: the wall clock may be set.
#[derive(Debug, Clone, Copy)]
pub struct BootOffset(i64);

impl BootOffset {
    /// The offset of this moment.
    pub fn now() -> Self {
        let [wall, boot] = [ClockId::Realtime, ClockId::Boottime].map(|id| nanoseconds(clock_gettime(id)));
        Self(wall.saturating_sub(boot))
    }

    /// A moment of `CLOCK_BOOTTIME` as nanoseconds since 1970.
    pub fn wall_ns(self, boot_ns: u64) -> u64 {
        boot_ns.saturating_add_signed(self.0)
    }
}

/// Nanoseconds since 1970 as the API has them.
pub fn timestamp(wall_ns: u64) -> Timestamp {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(wall_ns)).map(Timestamp::from).unwrap_or_default()
}

/// Seconds since 1970 for people.
pub fn date(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0).map_or_else(|| "a day out of reach".to_owned(), |date| date.to_string())
}

/// The API's time as nanoseconds since 1970; `None` when it is outside what 64 bits hold or no valid time.
pub fn from_timestamp(time: &Timestamp) -> Option<i64> {
    if !(0..NANOS).contains(&i64::from(time.nanos)) {
        return None;
    }
    time.seconds.checked_mul(NANOS)?.checked_add(i64::from(time.nanos))
}

/// The same; 0 for none, or for one that is not valid.
pub fn ns(time: Option<&Timestamp>) -> i64 {
    time.and_then(from_timestamp).unwrap_or_default()
}

/// Nanoseconds since 1970 as SQLite has them, as the API has them. Before 1970 there was none.
pub fn at(ns: i64) -> Timestamp {
    timestamp(u64::try_from(ns).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_becomes_wall_time() {
        let boot = u64::try_from(nanoseconds(clock_gettime(ClockId::Boottime))).unwrap();
        let wall = BootOffset::now().wall_ns(boot);
        assert!(now_ns().abs_diff(wall) < 1_000_000_000, "{wall}");
    }

    #[test]
    fn timestamps_round_trip() {
        let ns = 1_700_000_000_123_456_789;
        assert_eq!(from_timestamp(&timestamp(ns)), Some(i64::try_from(ns).unwrap()));
        assert_eq!(from_timestamp(&Timestamp { seconds: i64::MAX, nanos: 0 }), None);
        assert_eq!(from_timestamp(&Timestamp { seconds: 0, nanos: -1 }), None);
    }
}
