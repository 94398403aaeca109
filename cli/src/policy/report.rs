//! `policy report`.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::{
    habits::{Habits, Tally, workload::Workload},
    history::HabitArgs,
};
use crate::{
    args::Global,
    exit::note,
    output::{Format, Sequence, Tone},
    table::{Cell, Table, text, whole},
    time::Time,
};

/// Show by workload what enforce mode would have stopped, and what of it is habitual
///
/// Counted are the signals that say would_block, blocked or killed. HABITUAL are those that `portcullis policy suggest`, with the
/// same options, proposes to except without a warning: what is left of WOULD-BLOCK and STOPPED is what enforce mode
/// stops for good.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    habits: HabitArgs,
}

/// One tool of a workload, as `-o json` has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(flatten)]
    workload: &'a Workload,
    tool: &'a str,
    category: &'a str,
    would_block: u64,
    stopped: u64,
    habitual: u64,
    containers: usize,
    first_seen: Option<Time>,
    last_seen: Option<Time>,
    policies: Vec<&'a str>,
    sample: &'a [String],
}

impl Args {
    /// Reads the signals and shows what they say.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let habits = self.habits.read(global).await?;
        let mut tallies: Vec<_> = habits.tallies().collect();
        // The workloads in their order, and in each what happens most often first.
        tallies.sort_by_key(|(workload, _, tally)| (*workload, std::cmp::Reverse(tally.counts.times())));
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json | Format::Yaml => {
                let mut sequence = Sequence::new(global.output == Format::Yaml);
                for (workload, tool, tally) in tallies {
                    sequence.push(&mut out, &self.line(workload, tool, tally))?;
                }
                sequence.finish(&mut out)?;
            }
            Format::Table | Format::Wide => {
                let wide = global.output == Format::Wide;
                let rows: Vec<_> =
                    tallies.into_iter().map(|(workload, tool, tally)| self.row(workload, tool, tally, wide)).collect();
                if !rows.is_empty() {
                    table(wide, global).write(&mut out, &rows)?;
                }
            }
        }
        out.flush()?;
        self.conclude(&habits, global);
        Ok(())
    }

    fn line<'a>(&self, workload: &'a Workload, tool: &'a str, tally: &'a Tally) -> Line<'a> {
        Line {
            workload,
            tool,
            category: &tally.category,
            would_block: tally.counts.would_block,
            stopped: tally.counts.stopped,
            habitual: tally.habitual(&self.habits.threshold),
            containers: tally.counts.containers().0,
            first_seen: tally.counts.first,
            last_seen: tally.counts.last,
            policies: tally.policies.iter().map(String::as_str).collect(),
            sample: &tally.sample,
        }
    }

    fn row(&self, workload: &Workload, tool: &str, tally: &Tally, wide: bool) -> Vec<Cell> {
        let counts = &tally.counts;
        let time = |time: Option<Time>| Cell::text(time.map(Time::short).unwrap_or_default());
        let habitual = tally.habitual(&self.habits.threshold);
        let tone = if habitual == counts.times() { Tone::Good } else { Tone::Warning };
        let mut row = vec![
            Cell::text(&workload.namespace),
            Cell::text(&workload.container),
            Cell::text(&workload.repository),
            Cell::text(tool),
            Cell::text(counts.would_block.to_string()),
            Cell::text(counts.stopped.to_string()),
            Cell::text(habitual.to_string()).tone(tone),
        ];
        if wide {
            let policies: Vec<&str> = tally.policies.iter().map(String::as_str).collect();
            row.extend([
                Cell::text(counts.containers().to_string()),
                Cell::text(&tally.category),
                Cell::text(policies.join(",")),
                time(counts.first),
            ]);
        }
        row.extend([time(counts.last), Cell::command(&tally.sample, false)]);
        row
    }

    /// Beside the output: what it comes to.
    fn conclude(&self, habits: &Habits, global: &Global) {
        if habits.left_out() > 0 {
            note(&format!(
                "{} signals are not counted: there are too many workloads and tools; give --image or --namespace",
                habits.left_out()
            ));
        }
        if matches!(global.output, Format::Json | Format::Yaml) {
            return;
        }
        let (would_block, stopped) = (habits.counts.would_block, habits.counts.stopped);
        let since = self.habits.history.since.short();
        if would_block + stopped == 0 {
            note(&format!("since {since} nothing was stopped, and in enforce mode nothing would have been"));
            return;
        }
        let habitual: u64 = habits.tallies().map(|(_, _, tally)| tally.habitual(&self.habits.threshold)).sum();
        let hint = if habitual > 0 { ": portcullis policy suggest proposes exceptions for these" } else { "" };
        note(&format!(
            "since {since} {stopped} executions were stopped, and in enforce mode {would_block} more would have been; \
             {habitual} of all are habitual{hint}"
        ));
    }
}

fn table(wide: bool, global: &Global) -> Table {
    let mut columns = vec![text("NAMESPACE"), text("CONTAINER"), text("IMAGE"), whole("TOOL"), whole("WOULD-BLOCK")];
    columns.extend([whole("STOPPED"), whole("HABITUAL")]);
    if wide {
        columns.extend([whole("CONTAINERS"), whole("CATEGORY"), text("POLICIES"), whole("FIRST-SEEN")]);
    }
    columns.extend([whole("LAST-SEEN"), text("COMMAND")]);
    Table::new(columns, global.screen())
}
