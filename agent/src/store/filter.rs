//! A request's filter: checked once, then SQL. Only values come from the request, never SQL.

use portcullis_proto::v1::{Severity, SignalFilter, TriageState, Verdict};
use prost::Message;
use rusqlite::{Connection, types::Value};
use sha2::{Digest, Sha256};

use super::{
    expression::{Expression, ExpressionError},
    triage,
};
use crate::clock;

/// Of the table of hours.
const HOUR_NS: i64 = 3600 * 1_000_000_000;

const SEVERITIES: &str = "signals_severity";

const POD: &str = "pod_namespace = ? AND pod_name = ?";

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
    /// Those of the conditions that an index answers in the order of ids, but for the severity.
    keys: Vec<Key>,
    severity: Option<AtLeast>,
    /// The first and the last that the range of time touches, counted from 1970.
    hours: (Option<i64>, Option<i64>),
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
            keys: Vec::new(),
            severity: None,
            hours: (None, None),
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
        let mut keys = Vec::new();
        let text = |text: &String| (!text.is_empty()).then(|| vec![Value::from(text.clone())]);
        let both = |one: Option<Vec<_>>, other: Option<Vec<_>>| Some([one?, other?].concat());
        let verdict = (verdict != Verdict::Unspecified).then(|| vec![Value::from(filter.verdict)]);
        let (namespace, name) = (text(&filter.pod_namespace), text(&filter.pod_name));
        for (any_of, index, values) in [
            (&["container_id = ?"], "signals_container", text(&filter.container_id)),
            (&["tool = ?"], "signals_tool", text(&filter.tool)),
            (&["category = ?"], "signals_category", text(&filter.category)),
            (&["rule = ?"], "signals_rule", text(&filter.rule)),
            (&["image = ?"], "signals_image", text(&filter.image)),
            (&[POD], "signals_pod", both(namespace.clone(), name.clone())),
            (&["verdict = ?"], "signals_verdict", verdict),
            (&["first_time = 1"], "signals_first_time", filter.first_time_only.then(Vec::new)),
        ] {
            keys.extend(values.map(|values| Key { any_of, index, values }));
        }
        let mut conditions: Vec<_> = keys.iter().flat_map(|key| key.any_of).copied().collect();
        let mut values: Vec<_> = keys.iter().flat_map(|key| &key.values).cloned().collect();
        // By itself neither has an index in the order of ids.
        for (condition, value) in [("pod_namespace = ?", namespace), ("pod_name = ?", name)] {
            if let Some(value) = value.filter(|_| !conditions.contains(&POD)) {
                conditions.push(condition);
                values.extend(value);
            }
        }
        let mut hours = (None, None);
        let ns = |field, time| clock::from_timestamp(time).ok_or(FilterError::Time { field });
        if let Some(since) = &filter.since {
            let since = ns("since", since)?;
            // What began earlier may have gone on. (+: not by the index of times, which has not the order of ids.)
            conditions.push(
                "(+time_ns >= ? OR EXISTS (SELECT 1 FROM repeats AS told WHERE told.id = signals.id AND told.last_ns >= ?))",
            );
            values.extend([Value::from(since), Value::from(since)]);
            hours.0 = Some(since / HOUR_NS);
        }
        if let Some(until) = &filter.until {
            let until = ns("until", until)?;
            conditions.push("+time_ns < ?");
            values.push(Value::from(until));
            hours.1 = Some(until / HOUR_NS);
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
        let severity = AtLeast::new(severity);
        Ok(Self { conditions, keys, severity, hours, values, expression, fingerprint: fingerprint(filter) })
    }

    /// The conditions that an index answers in the order of ids; others may be left.
    pub(super) fn keys(&self) -> Vec<Key> {
        let severity =
            self.severity.map(|severity| Key { any_of: severity.any_of, index: SEVERITIES, values: Vec::new() });
        self.keys.iter().cloned().chain(severity).collect()
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
    pub(super) fn conditions(&self) -> (Vec<&'static str>, &[Value]) {
        let severity = self.severity.map(|severity| severity.at_least);
        (self.conditions.iter().copied().chain(severity).collect(), &self.values)
    }

    /// The first and the last id that a row may have; others need not be looked at.
    pub(super) fn ids(&self, connection: &Connection) -> rusqlite::Result<(i64, i64)> {
        let bound = |sql: &str, hour: i64| -> rusqlite::Result<Option<i64>> {
            connection.prepare_cached(sql)?.query_row([hour], |row| row.get(0))
        };
        let first = match self.hours.0 {
            None => 0,
            // None: nothing happened since.
            Some(hour) => bound("SELECT min(first_id) FROM hours WHERE hour >= ?", hour)?.unwrap_or(i64::MAX),
        };
        let last = match self.hours.1 {
            None => i64::MAX,
            Some(hour) => bound("SELECT max(last_id) FROM hours WHERE hour <= ?", hour)?.unwrap_or(0),
        };
        Ok((first, last))
    }
}

/// A condition for which an index has the ids, in their order.
#[derive(Debug, Clone)]
pub(super) struct Key {
    /// Of which no row fits two.
    pub any_of: &'static [&'static str],
    /// The index of each of them.
    pub index: &'static str,
    /// One for each `?`, of each of them.
    pub values: Vec<Value>,
}

/// A least severity, as one condition and as several.
#[derive(Debug, Clone, Copy, PartialEq)]
struct AtLeast {
    at_least: &'static str,
    any_of: &'static [&'static str],
}

impl AtLeast {
    fn new(severity: Severity) -> Option<Self> {
        const ALL: [&str; 4] = ["severity = 1", "severity = 2", "severity = 3", "severity = 4"];
        let (at_least, any_of) = match severity {
            Severity::Unspecified => return None,
            Severity::Low => ("severity >= 1", ALL.as_slice()),
            Severity::Medium => ("severity >= 2", ALL.split_at(1).1),
            Severity::High => ("severity >= 3", ALL.split_at(2).1),
            Severity::Critical => ("severity >= 4", ALL.split_at(3).1),
        };
        Some(Self { at_least, any_of })
    }
}

fn fingerprint(filter: &SignalFilter) -> u64 {
    let digest = Sha256::digest(filter.encode_to_vec());
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
