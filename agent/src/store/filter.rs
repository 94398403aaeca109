//! A request's filter: checked once, then SQL. Only values come from the request, never SQL.

use portcullis_proto::v1::{Severity, SignalFilter, Verdict};
use prost::Message;
use rusqlite::types::Value;
use sha2::{Digest, Sha256};

use crate::clock;

/// A filter that makes sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    conditions: Vec<(&'static str, Value)>,
    fingerprint: u64,
}

/// A filter that makes none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// An enum field has a value that this version does not know.
    #[error("filter.{field} has the unknown value {value}")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// A time that can't be.
    #[error("filter.{field} is not a valid time")]
    Time {
        /// Which field.
        field: &'static str,
    },
}

impl Filter {
    /// Checks a request's filter; unset means everything.
    pub fn new(filter: Option<&SignalFilter>) -> Result<Self, FilterError> {
        let Some(filter) = filter else {
            return Ok(Self { conditions: Vec::new(), fingerprint: fingerprint(&SignalFilter::default()) });
        };
        let verdict = Verdict::try_from(filter.verdict)
            .map_err(|_| FilterError::Unknown { field: "verdict", value: filter.verdict })?;
        let severity = Severity::try_from(filter.min_severity)
            .map_err(|_| FilterError::Unknown { field: "min_severity", value: filter.min_severity })?;
        let mut conditions = Vec::new();
        for (condition, text) in [
            ("container_id = ?", &filter.container_id),
            ("tool = ?", &filter.tool),
            ("category = ?", &filter.category),
            ("rule = ?", &filter.rule),
            ("image = ?", &filter.image),
            ("pod_namespace = ?", &filter.pod_namespace),
            ("pod_name = ?", &filter.pod_name),
        ] {
            if !text.is_empty() {
                conditions.push((condition, Value::from(text.clone())));
            }
        }
        if verdict != Verdict::Unspecified {
            conditions.push(("verdict = ?", Value::from(filter.verdict)));
        }
        if severity != Severity::Unspecified {
            conditions.push(("severity >= ?", Value::from(filter.min_severity)));
        }
        for (field, condition, time) in
            [("since", "time_ns >= ?", filter.since), ("until", "time_ns < ?", filter.until)]
        {
            if let Some(time) = time {
                let ns = clock::from_timestamp(&time).ok_or(FilterError::Time { field })?;
                conditions.push((condition, Value::from(ns)));
            }
        }
        Ok(Self { conditions, fingerprint: fingerprint(filter) })
    }

    /// Tells filters apart, in page tokens.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The conditions, and a value for each `?`.
    pub(super) fn conditions(&self) -> &[(&'static str, Value)] {
        &self.conditions
    }
}

fn fingerprint(filter: &SignalFilter) -> u64 {
    let digest = Sha256::digest(filter.encode_to_vec());
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
