//! Times of the API as numbers.

use prost_types::Timestamp;

use crate::clock;

/// Nanoseconds since 1970; 0 for none.
pub fn ns(time: Option<&Timestamp>) -> i64 {
    time.and_then(clock::from_timestamp).unwrap_or_default()
}

/// The API's time; before 1970 there was none.
pub fn at(ns: i64) -> Timestamp {
    clock::timestamp(u64::try_from(ns).unwrap_or_default())
}
