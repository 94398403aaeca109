//! `signals summarize`.

use std::{
    io::{self, BufWriter, Write},
    time::Duration,
};

use clap::ValueEnum;
use portcullis_proto::v1::{SignalSummary, SummarizeSignalsRequest, SummaryKey};
use serde::Serialize;

use super::{
    filter::Filter,
    row::{severity_tone, verdict_tone},
};
use crate::{
    args::Global,
    client,
    containers::short_id,
    exit::note,
    output::{Format, Sequence},
    table::{Cell, Table, text, whole},
    time::{self, Time},
    view::{Severity, Verdict},
};

/// Count signals by what they have in common
///
/// Repeats that were folded into a signal count as well.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What they must have in common, several separated by commas
    #[arg(long, value_name = "KEYS", value_delimiter = ',', default_value = "container,tool")]
    by: Vec<Key>,
    /// For time: how long a group is (15m, 1h, 1d)
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = time::parse_duration)]
    bucket: Duration,
    /// At most so many groups
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    filter: Filter,
}

/// `--by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Key {
    Container,
    Tool,
    Category,
    Rule,
    Image,
    Verdict,
    Time,
}

impl From<Key> for SummaryKey {
    fn from(key: Key) -> Self {
        match key {
            Key::Container => Self::Container,
            Key::Tool => Self::Tool,
            Key::Category => Self::Category,
            Key::Rule => Self::Rule,
            Key::Image => Self::Image,
            Key::Verdict => Self::Verdict,
            Key::Time => Self::Time,
        }
    }
}

/// What `-o json` shows of a group.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    container_id: String,
    tool: String,
    category: String,
    rule: String,
    image: String,
    verdict: Verdict,
    bucket_start: Option<Time>,
    signals: u64,
    count: u64,
    first_time: Option<Time>,
    last_time: Option<Time>,
    max_severity: Severity,
}

impl From<SignalSummary> for Group {
    fn from(summary: SignalSummary) -> Self {
        Self {
            verdict: summary.verdict().into(),
            max_severity: summary.max_severity().into(),
            bucket_start: summary.bucket_start.as_ref().and_then(Time::from_proto),
            first_time: summary.first_time.as_ref().and_then(Time::from_proto),
            last_time: summary.last_time.as_ref().and_then(Time::from_proto),
            container_id: summary.container_id,
            tool: summary.tool,
            category: summary.category,
            rule: summary.rule,
            image: summary.image,
            signals: summary.signals,
            count: summary.count,
        }
    }
}

impl Args {
    /// Asks the agent.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let request = SummarizeSignalsRequest {
            filter: Some(self.filter.to_proto(&agent).await?),
            group_by: self.by.iter().map(|key| SummaryKey::from(*key).into()).collect(),
            bucket: prost_types::Duration::try_from(self.bucket).ok(),
            limit: self.limit,
        };
        let response = agent.signals().summarize_signals(client::request(request)).await;
        let response = response.map_err(|status| agent.error(&status))?.into_inner();
        let groups: Vec<Group> = response.groups.into_iter().map(Into::into).collect();
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json | Format::Yaml => {
                let mut sequence = Sequence::new(global.output == Format::Yaml);
                groups.iter().try_for_each(|group| sequence.push(&mut out, group))?;
                sequence.finish(&mut out)?;
            }
            Format::Table | Format::Wide if groups.is_empty() => {}
            Format::Table | Format::Wide => {
                let rows: Vec<_> = groups.iter().map(|group| self.row(group)).collect();
                self.table(global).write(&mut out, &rows)?;
            }
        }
        out.flush()?;
        if groups.is_empty() && matches!(global.output, Format::Table | Format::Wide) {
            note("no signals");
        }
        if response.omitted_groups > 0 {
            note(&format!(
                "{} more groups with {} signals ({} events) are left out: --limit N",
                response.omitted_groups, response.omitted_signals, response.omitted_count
            ));
        }
        Ok(())
    }

    fn table(&self, global: &Global) -> Table {
        let column = |key: &Key| match key {
            Key::Container => whole("CONTAINER"),
            Key::Tool => whole("TOOL"),
            Key::Category => whole("CATEGORY"),
            Key::Rule => whole("RULE"),
            Key::Image => text("IMAGE"),
            Key::Verdict => whole("VERDICT"),
            Key::Time => whole("FROM"),
        };
        let counts = ["SIGNALS", "COUNT", "SEVERITY", "FIRST", "LAST"].map(whole);
        Table::new(self.by.iter().map(column).chain(counts).collect(), global.screen())
    }

    fn row(&self, group: &Group) -> Vec<Cell> {
        let time = |time: Option<Time>| Cell::text(time.map(Time::short).unwrap_or_default());
        let cell = |key: &Key| match key {
            Key::Container => Cell::text(short_id(&group.container_id)),
            Key::Tool => Cell::text(&group.tool),
            Key::Category => Cell::text(&group.category),
            Key::Rule => Cell::text(&group.rule),
            Key::Image => Cell::text(&group.image),
            Key::Verdict => Cell::text(group.verdict.word()).tone(verdict_tone(group.verdict)),
            Key::Time => time(group.bucket_start),
        };
        let counts = [
            Cell::text(group.signals.to_string()),
            Cell::text(group.count.to_string()),
            Cell::text(group.max_severity.word()).tone(severity_tone(group.max_severity)),
            time(group.first_time),
            time(group.last_time),
        ];
        self.by.iter().map(cell).chain(counts).collect()
    }
}
