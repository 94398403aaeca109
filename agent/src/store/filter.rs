//! A request's filter: checked once, then SQL. Only values come from the request, never SQL.

use portcullis_proto::v1::{Severity, SignalFilter, TriageState, Verdict};
use prost::Message;
use rusqlite::types::Value;
use sha2::{Digest, Sha256};

use super::{
    expression::{Expression, ExpressionError},
    triage,
};
use crate::clock;

/// All that a signal can be in.
const STATES: [TriageState; 5] = [
    TriageState::Open,
    TriageState::Expected,
    TriageState::Investigating,
    TriageState::Contained,
    TriageState::Resolved,
];

/// A filter that makes sense.
#[derive(Debug, Clone)]
pub struct Filter {
    conditions: Vec<&'static str>,
    /// One for each `?`.
    values: Vec<Value>,
    expression: Option<Expression>,
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
    /// An expression that can't be used.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
}

impl Filter {
    /// Everything.
    pub fn all() -> Self {
        Self {
            conditions: Vec::new(),
            values: Vec::new(),
            expression: None,
            fingerprint: fingerprint(&SignalFilter::default()),
        }
    }

    /// Checks a request's filter; unset means everything.
    pub fn new(filter: Option<&SignalFilter>) -> Result<Self, FilterError> {
        let Some(filter) = filter else { return Ok(Self::all()) };
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
        if filter.first_time_only {
            conditions.push("first_time = 1");
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
        let states = STATES.map(|state| filter.triage_states.contains(&state.into()));
        if let Some(unknown) = filter.triage_states.iter().find(|state| !STATES.map(i32::from).contains(state)) {
            return Err(FilterError::Unknown { field: "triage_states", value: *unknown });
        }
        if states.contains(&true) {
            // Five values, whatever was asked for: the text of the query stays the same.
            conditions.push("coalesce(triage.state, ?) IN (?, ?, ?, ?, ?)");
            values.push(Value::from(i32::from(triage::NONE)));
            let value = |(state, wanted)| Value::from(if wanted { i32::from(state) } else { -1 });
            values.extend(STATES.into_iter().zip(states).map(value));
        }
        let expression = match filter.expression.as_str() {
            "" => None,
            text => Some(Expression::new(text)?),
        };
        Ok(Self { conditions, values, expression, fingerprint: fingerprint(filter) })
    }

    /// What each row must satisfy besides the conditions.
    pub(super) fn expression(&self) -> Option<&Expression> {
        self.expression.as_ref()
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
