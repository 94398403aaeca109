//! A signal as a row of a table.

use crate::{
    containers::{pod_name, short_id},
    output::{Screen, Tone},
    table::{Cell, Table, text, whole},
    time::Time,
    view::{Ancestor, Process, Severity, Signal, TriageState, Verdict},
};

/// An empty table of signals.
pub fn table(wide: bool, screen: Screen) -> Table {
    let mut columns = vec![
        whole("ID"),
        whole("TIME"),
        whole("SEVERITY"),
        whole("VERDICT"),
        whole("TOOL"),
        whole("CONTAINER"),
        text("IMAGE"),
    ];
    if wide {
        columns.extend([
            whole("COUNT"),
            whole("STATE"),
            text("POD"),
            text("POLICY"),
            whole("UID"),
            whole("PID"),
            text("PARENT"),
            text("EXE"),
            text("IDENTIFIED-BY"),
            text("NOVELTY"),
        ]);
    }
    columns.push(text("COMMAND"));
    Table::new(columns, screen)
}

/// One row of it. The command stands last: it is the longest.
pub fn row(signal: &Signal, wide: bool) -> Vec<Cell> {
    let container = signal.container.as_ref();
    let process = signal.process.as_ref();
    let mut row = vec![
        Cell::text(signal.id.to_string()),
        Cell::text(signal.time.map(Time::short).unwrap_or_default()),
        Cell::text(signal.severity.word()).tone(severity_tone(signal.severity)),
        Cell::text(signal.verdict.word()).tone(verdict_tone(signal.verdict)),
        // What the signal is about, where it is not about a tool.
        Cell::text(signal.tool.as_ref().map_or(&signal.rule, |tool| &tool.id)),
        Cell::text(container.map(|container| short_id(&container.id)).unwrap_or_default()),
        Cell::text(container.map(|container| container.image.as_str()).unwrap_or_default()),
    ];
    if wide {
        row.extend([
            Cell::text(signal.count.to_string()),
            Cell::text(signal.triage.as_ref().map_or(TriageState::Open, |triage| triage.state).word()),
            Cell::text(container.and_then(|container| container.pod.as_ref()).map(pod_name).unwrap_or_default()),
            Cell::text(&signal.policy),
            Cell::text(process.map(|process| process.uid.to_string()).unwrap_or_default()),
            Cell::text(process.map(|process| process.pid.to_string()).unwrap_or_default()),
            Cell::text(signal.lineage.first().map(parent).unwrap_or_default()),
            Cell::text(process.map(|process| process.exe.as_str()).unwrap_or_default()),
            Cell::text(words(&signal.identified_by, ",")),
            Cell::text(signal.novelty.as_ref().map(|novelty| novelty.summary.as_str()).unwrap_or_default()),
        ]);
    }
    row.push(match process {
        Some(process) => command(process),
        None => Cell::text(&signal.message),
    });
    row
}

fn command(process: &Process) -> Cell {
    if process.argv.is_empty() {
        return Cell::command([&process.filename], process.argv_truncated);
    }
    Cell::command(&process.argv, process.argv_truncated)
}

fn parent(ancestor: &Ancestor) -> String {
    format!("{}[{}]", ancestor.exe, ancestor.pid)
}

/// Several words in one text.
pub fn words(words: &[impl ToString], separator: &str) -> String {
    words.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

/// Its colour.
pub fn severity_tone(severity: Severity) -> Tone {
    match severity {
        Severity::Critical | Severity::High => Tone::Bad,
        Severity::Medium => Tone::Warning,
        Severity::Low | Severity::Unknown => Tone::Plain,
    }
}

/// Its colour: what was stopped is good news.
pub fn verdict_tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Blocked | Verdict::Killed => Tone::Good,
        Verdict::Detected | Verdict::WouldBlock => Tone::Warning,
        Verdict::Unknown => Tone::Plain,
    }
}
