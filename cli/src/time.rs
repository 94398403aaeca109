//! Times: always UTC, so that what two nodes print can be compared.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};
use serde::{Serialize, Serializer};

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Timestamp);

impl Time {
    /// From the API; `None` for a time outside of the years -9999 to 9999.
    pub fn from_proto(time: &prost_types::Timestamp) -> Option<Self> {
        Timestamp::new(time.seconds, time.nanos).ok().map(Self)
    }

    /// For the API.
    pub fn to_proto(self) -> prost_types::Timestamp {
        prost_types::Timestamp { seconds: self.0.as_second(), nanos: self.0.subsec_nanosecond() }
    }

    /// To the second, for tables.
    pub fn short(self) -> String {
        format!("{:.0}", self.0)
    }

    /// To the nanosecond, for JSON and reports.
    pub fn full(self) -> String {
        format!("{:.9}", self.0)
    }

    /// Seconds since 1970.
    pub fn seconds(self) -> f64 {
        self.0.as_duration().as_secs_f64()
    }

    /// How much later than another moment, for people: `+0.312 s`, `-1 h 02 min`.
    pub fn since(self, other: Self) -> String {
        let seconds = self.seconds() - other.seconds();
        let (sign, seconds) = if seconds < 0.0 { ('-', -seconds) } else { ('+', seconds) };
        if seconds < 120.0 {
            return format!("{sign}{seconds:.3} s");
        }
        let minutes = (seconds / 60.0).round();
        if minutes < 120.0 {
            return format!("{sign}{minutes} min");
        }
        format!("{sign}{} h {:02} min", (minutes / 60.0).floor(), minutes % 60.0)
    }

    /// Some minutes earlier or later.
    pub fn plus_minutes(self, minutes: i64) -> Self {
        Self(self.0.saturating_add(jiff::SignedDuration::from_mins(minutes)).unwrap_or(self.0))
    }

    /// The day of UTC, counted from 1970.
    pub fn day(self) -> i64 {
        self.0.as_second().div_euclid(86_400)
    }

    /// What `--since` and `--until` take: `1h`, `2d 12h` (that long ago), or RFC 3339.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self(time));
        }
        let ago = text.parse::<Span>().ok().and_then(|span| {
            let duration = span.abs().to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
            Timestamp::now().checked_sub(duration).ok()
        });
        ago.map(Self).ok_or_else(|| {
            "neither how long ago (90s, 15m, 1h, 7d) nor a time (2026-03-01T12:00:00Z, 2026-03-01T12:00:00+02:00)"
                .to_owned()
        })
    }
}

/// What `--bucket` takes: how long.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<Span>().ok().and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    let duration = span.and_then(|duration| Duration::try_from(duration).ok());
    duration.ok_or_else(|| "not how long (90s, 15m, 1h, 7d)".to_owned())
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_utc_with_fixed_digits() {
        let time = Time::from_proto(&prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 }).unwrap();
        assert_eq!(time.short(), "2023-11-14T22:13:20Z");
        assert_eq!(time.full(), "2023-11-14T22:13:20.000000005Z");
        assert_eq!(Time::from_proto(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    }

    #[test]
    fn reads_durations() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1d"), Ok(Duration::from_secs(86400)));
        for senseless in ["", "-1h", "12", "1 month"] {
            assert!(parse_duration(senseless).is_err(), "{senseless}");
        }
    }

    #[test]
    fn reads_moments_and_ages() {
        let moment = Time::parse("2023-11-15T00:13:20+02:00").unwrap();
        assert_eq!(moment.to_proto().seconds, 1_700_000_000);
        let now = Timestamp::now().as_second();
        for (age, seconds) in [("90s", 90), ("1h", 3600), ("7d", 7 * 86400), ("1h30m", 5400), ("2h ago", 7200)] {
            let parsed = Time::parse(age).unwrap().to_proto().seconds;
            assert!((parsed - (now - seconds)).abs() <= 2, "{age}");
        }
        for senseless in ["", "yesterday", "1 month", "12", "2026-03-01"] {
            assert!(Time::parse(senseless).is_err(), "{senseless}");
        }
    }
}
