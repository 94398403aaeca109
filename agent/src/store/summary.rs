//! How many signals there are, by what they have in common.

use std::{collections::BTreeMap, time::Duration};

use portcullis_proto::v1::{SignalSummary, SummarizeSignalsResponse, SummaryKey};
use rusqlite::{Connection, Row, params_from_iter, types::Value};

use super::{
    StoreError,
    filter::Filter,
    reader::{self, TABLES, WHOLE},
};
use crate::clock::timestamp;

/// Groups that are told apart on the way, where an expression has to look at each signal.
const MAX_GROUPS: usize = 100_000;

/// What a client asks for, checked.
#[derive(Debug, Clone)]
pub struct Grouping {
    /// Each once.
    pub keys: Vec<SummaryKey>,
    /// For [`SummaryKey::Time`].
    pub bucket: Duration,
    /// Groups at most.
    pub limit: usize,
}

impl Grouping {
    fn has(&self, key: SummaryKey) -> bool {
        self.keys.contains(&key)
    }

    /// Columns of the select, `''` or `0` for what is not asked for.
    fn columns(&self) -> String {
        let bucket = i64::try_from(self.bucket.as_nanos()).unwrap_or(i64::MAX).max(1);
        let text = |key, column: &'static str| if self.has(key) { column } else { "''" };
        let time = if self.has(SummaryKey::Time) { format!("time_ns / {bucket} * {bucket}") } else { "0".to_owned() };
        let verdict = if self.has(SummaryKey::Verdict) { "verdict" } else { "0" };
        format!(
            "{}, {}, {}, {time}, {}, {}, {verdict}",
            text(SummaryKey::Container, "container_id"),
            text(SummaryKey::Tool, "tool"),
            text(SummaryKey::Category, "category"),
            text(SummaryKey::Rule, "rule"),
            text(SummaryKey::Image, "image"),
        )
    }
}

/// The group's values, in the order of the columns.
type Group = (String, String, String, i64, String, String, i32);

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    signals: u64,
    count: u64,
    first_ns: u64,
    last_ns: u64,
    severity: i32,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.first_ns = if self.signals == 0 { other.first_ns } else { self.first_ns.min(other.first_ns) };
        self.last_ns = self.last_ns.max(other.last_ns);
        self.severity = self.severity.max(other.severity);
        self.signals += other.signals;
        self.count += other.count;
    }
}

/// Counts. With an expression each signal is looked at, without one the database does it.
pub(super) fn summarize(
    connection: &Connection,
    filter: &Filter,
    grouping: &Grouping,
) -> Result<SummarizeSignalsResponse, StoreError> {
    let mut groups: BTreeMap<Group, Sum> = BTreeMap::new();
    let mut beyond = Sum::default();
    let (conditions, values) = filter.conditions();
    let all = if conditions.is_empty() { "1".to_owned() } else { conditions.join(" AND ") };
    let columns = grouping.columns();
    let mut add = |group: Group, sum: Sum| {
        if groups.len() < MAX_GROUPS || groups.contains_key(&group) {
            groups.entry(group).or_default().add(sum);
        } else {
            beyond.add(sum);
        }
    };
    let sql = if filter.expression().is_some() {
        format!(
            "SELECT {columns}, 1, coalesce(count, 1), time_ns, coalesce(last_ns, time_ns), severity,
             {WHOLE} FROM {TABLES} WHERE {all}"
        )
    } else {
        format!(
            "SELECT {columns}, count(*), sum(coalesce(count, 1)), min(time_ns), max(coalesce(last_ns, time_ns)), max(severity)
             FROM {TABLES} WHERE {all} GROUP BY 1, 2, 3, 4, 5, 6, 7"
        )
    };
    let values: Vec<Value> = values.to_vec();
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let budget = reader::Budget::start();
    while let Some(row) = rows.next()? {
        if let Some(expression) = filter.expression() {
            if budget.is_spent() {
                return Err(StoreError::TooMuch);
            }
            match reader::decode_row(row, 12) {
                Ok(signal) if expression.matches(&signal) => {}
                _ => continue,
            }
        }
        let (group, sum) = read(row)?;
        add(group, sum);
    }
    Ok(answer(groups, beyond, grouping))
}

fn read(row: &Row<'_>) -> rusqlite::Result<(Group, Sum)> {
    let number = |column| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(column)?).unwrap_or_default());
    let group = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?);
    let sum = Sum {
        signals: number(7)?,
        count: number(8)?,
        first_ns: number(9)?,
        last_ns: number(10)?,
        severity: row.get(11)?,
    };
    Ok((group, sum))
}

fn answer(groups: BTreeMap<Group, Sum>, mut omitted: Sum, grouping: &Grouping) -> SummarizeSignalsResponse {
    let by_time = grouping.has(SummaryKey::Time);
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|(a, of_a), (b, of_b)| a.3.cmp(&b.3).then(of_b.count.cmp(&of_a.count)).then_with(|| a.cmp(b)));
    let mut omitted_groups = groups.len().saturating_sub(grouping.limit);
    for (_, sum) in groups.iter().skip(grouping.limit) {
        omitted.add(*sum);
    }
    if omitted.signals > 0 && omitted_groups == 0 {
        omitted_groups = 1;
    }
    let summary = |((container_id, tool, category, bucket, rule, image, verdict), sum): (Group, Sum)| SignalSummary {
        container_id,
        tool,
        category,
        bucket_start: by_time.then(|| timestamp(u64::try_from(bucket).unwrap_or_default())),
        rule,
        image,
        verdict,
        signals: sum.signals,
        count: sum.count,
        first_time: Some(timestamp(sum.first_ns)),
        last_time: Some(timestamp(sum.last_ns)),
        max_severity: sum.severity,
    };
    SummarizeSignalsResponse {
        groups: groups.into_iter().take(grouping.limit).map(summary).collect(),
        omitted_groups: omitted_groups as u64,
        omitted_signals: omitted.signals,
        omitted_count: omitted.count,
    }
}
