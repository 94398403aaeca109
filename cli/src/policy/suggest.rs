//! `policy suggest`.

use std::io::{self, BufWriter, Write};

use portcullis_policy::exceptions::EXCEPTIONS_MAX;
use serde::Serialize;

use super::{
    habits::{
        suggest::{Exception, Suggestion, Threshold},
        workload::Workload,
    },
    history::HabitArgs,
};
use crate::{
    args::Global,
    escape::{shell_command, text, yaml_string},
    exit::note,
    output::{Format, Sequence},
    time::Time,
};

/// Propose exceptions for what is habitual, for a person to review
///
/// From the signals that say would_block, blocked or killed. What is printed is a part of a policy: each exception with how often
/// it was seen, by whom, and what to bear in mind. Those that had better not be are commented out, with a warning. Nothing
/// is changed. An argument's end becomes a * only where it was seen to differ, and only behind a URL's host, a path's
/// directory or a header's name.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    habits: HabitArgs,
}

/// What `-o json` shows of a proposal.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    policy: &'a str,
    exception: Proposed<'a>,
    would_block: u64,
    stopped: u64,
    containers: usize,
    days: usize,
    first_seen: Option<Time>,
    last_seen: Option<Time>,
    workloads: Vec<&'a Workload>,
    sample: &'a [String],
    warnings: Vec<&'static str>,
    notes: Vec<String>,
}

/// An exception with its reason.
#[derive(Debug, Serialize)]
struct Proposed<'a> {
    #[serde(flatten)]
    exception: &'a Exception,
    reason: String,
}

impl Args {
    /// Reads the signals and shows what can be proposed.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let habits = self.habits.read(global).await?;
        let suggestions = habits.suggestions(&self.habits.threshold);
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json | Format::Yaml => {
                let mut sequence = Sequence::new(global.output == Format::Yaml);
                suggestions.iter().try_for_each(|suggestion| sequence.push(&mut out, &line(suggestion)))?;
                sequence.finish(&mut out)?;
            }
            Format::Table | Format::Wide => {
                for (number, suggestions) in suggestions.chunk_by(|a, b| a.policy == b.policy).enumerate() {
                    if number > 0 {
                        writeln!(out, "---")?;
                    }
                    self.header(&mut out, suggestions)?;
                    patch(&mut out, suggestions)?;
                }
            }
        }
        out.flush()?;
        if habits.left_out() > 0 {
            note(&format!(
                "{} signals were not looked at: there are too many workloads and tools; give --image or --namespace",
                habits.left_out()
            ));
        }
        if suggestions.is_empty() {
            note("nothing is habitual; --min-times and --min-spread say what is");
        }
        Ok(())
    }
}

impl Args {
    fn header(&self, out: &mut impl Write, suggestions: &[Suggestion]) -> io::Result<()> {
        let policy = suggestions.first().map(|suggestion| text(&suggestion.policy)).unwrap_or_default();
        let Threshold { min_times, min_spread } = self.habits.threshold;
        let since = self.habits.history.since.short();
        writeln!(
            out,
            "# For the policy {policy}: habits since {since} (--min-times {min_times}, --min-spread {min_spread})."
        )?;
        writeln!(out, "# Review each before you add it: what is excepted runs, and is not reported.")
    }
}

fn line(suggestion: &Suggestion) -> Line<'_> {
    Line {
        policy: &suggestion.policy,
        exception: Proposed { exception: &suggestion.exception, reason: suggestion.reason() },
        would_block: suggestion.counts.would_block,
        stopped: suggestion.counts.stopped,
        containers: suggestion.counts.containers().0,
        days: suggestion.counts.days().0,
        first_seen: suggestion.counts.first,
        last_seen: suggestion.counts.last,
        workloads: suggestion.workloads.iter().collect(),
        sample: &suggestion.sample,
        warnings: suggestion.dangers.iter().map(|danger| danger.text()).collect(),
        notes: suggestion.notes(),
    }
}

/// One policy's part. Everything in it that a container chose is in a comment, escaped, or in a string in double quotes.
fn patch(out: &mut impl Write, suggestions: &[Suggestion]) -> io::Result<()> {
    let harmless = suggestions.iter().filter(|suggestion| suggestion.dangers.is_empty()).count();
    // Without any, `exceptions` would have no value.
    let mark = if harmless == 0 { "# " } else { "" };
    writeln!(out, "{mark}spec:\n{mark}  exceptions:")?;
    if harmless > EXCEPTIONS_MAX {
        writeln!(out, "    # A policy may have {EXCEPTIONS_MAX} exceptions; here are {harmless}.")?;
    }
    for suggestion in suggestions {
        writeln!(out)?;
        comments(out, suggestion)?;
        let mark = if suggestion.dangers.is_empty() { "" } else { "# " };
        let Exception { tools, arguments, parents, ancestors, users, images } = &suggestion.exception;
        let list = |texts: &mut dyn Iterator<Item = &String>| {
            texts.map(|text| yaml_string(text)).collect::<Vec<_>>().join(", ")
        };
        let users = users.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let arguments = arguments.as_ref().map(|arguments| list(&mut arguments.iter()));
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        // No arguments at all is a condition as well.
        let fields = [
            ("tools", given(list(&mut tools.iter()))),
            ("arguments", arguments),
            ("parents", given(list(&mut parents.iter()))),
            ("ancestors", given(list(&mut ancestors.iter()))),
            ("users", given(users)),
            ("images", given(list(&mut images.iter()))),
        ];
        let mut dash = "- ";
        for (key, list) in fields.into_iter().filter_map(|(key, list)| Some((key, list?))) {
            writeln!(out, "    {mark}{dash}{key}: [{list}]")?;
            dash = "  ";
        }
        writeln!(out, "    {mark}  reason: {}", yaml_string(&suggestion.reason()))?;
    }
    Ok(())
}

fn comments(out: &mut impl Write, suggestion: &Suggestion) -> io::Result<()> {
    let counts = &suggestion.counts;
    let time = |time: Option<Time>| time.map(Time::short).unwrap_or_default();
    let (times, containers, days) = (counts.times(), counts.containers(), counts.days());
    let (first, last) = (time(counts.first), time(counts.last));
    writeln!(out, "    # times {times}, containers {containers}, days {days}, first {first}, last {last}")?;
    for Workload { namespace, container, repository } in &suggestion.workloads {
        let parts = [namespace, container, repository].map(|part| text(part));
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        writeln!(out, "    # by {}", parts.join(" "))?;
    }
    writeln!(out, "    # such as: {}", shell_command(&suggestion.sample))?;
    for note in suggestion.notes() {
        writeln!(out, "    # Note: {note}.")?;
    }
    for danger in &suggestion.dangers {
        writeln!(out, "    # WARNING: {}.", danger.text())?;
    }
    Ok(())
}
