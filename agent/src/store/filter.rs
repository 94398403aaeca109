//! A request's filter: checked once, then SQL. Only values come from the request, never SQL.

use portcullis_proto::v1::{Severity, SignalFilter, Verdict};
use prost::Message;
use rusqlite::types::Value;
use sha2::{Digest, Sha256};

use crate::clock;

/// A filter that makes sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    conditions: Vec<&'static str>,
    /// One for each `?`.
    values: Vec<Value>,
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
            let fingerprint = fingerprint(&SignalFilter::default());
            return Ok(Self { conditions: Vec::new(), values: Vec::new(), fingerprint });
        };
        let verdict = Verdict::try_from(filter.verdict)
            .map_err(|_| FilterError::Unknown { field: "verdict", value: filter.verdict })?;
        let severity = Severity::try_from(filter.min_severity)
            .map_err(|_| FilterError::Unknown { field: "min_severity", value: filter.min_severity })?;
        let (mut conditions, mut values) = (Vec::new(), Vec::new());
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
                conditions.push(condition);
                values.push(Value::from(text.clone()));
            }
        }
        if verdict != Verdict::Unspecified {
            conditions.push("verdict = ?");
            values.push(Value::from(filter.verdict));
        }
        if severity != Severity::Unspecified {
            conditions.push("severity >= ?");
            values.push(Value::from(filter.min_severity));
        }
        let ns = |field, time| clock::from_timestamp(time).ok_or(FilterError::Time { field });
        if let Some(since) = &filter.since {
            // What began earlier may have gone on.
            conditions.push("(time_ns >= ? OR signals.id IN (SELECT id FROM repeats WHERE last_ns >= ?))");
            values.extend([Value::from(ns("since", since)?), Value::from(ns("since", since)?)]);
        }
        if let Some(until) = &filter.until {
            conditions.push("time_ns < ?");
            values.push(Value::from(ns("until", until)?));
        }
        Ok(Self { conditions, values, fingerprint: fingerprint(filter) })
    }

    /// Tells filters apart, in page tokens.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The conditions on a row of signals, and a value for each `?`.
    pub(super) fn conditions(&self) -> (&[&'static str], &[Value]) {
        (&self.conditions, &self.values)
    }
}

fn fingerprint(filter: &SignalFilter) -> u64 {
    let digest = Sha256::digest(filter.encode_to_vec());
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
