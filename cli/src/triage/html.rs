//! The story as one page: nothing is loaded, nothing is executed, everything from containers is escaped twice: what a terminal
//! or an eye could be deceived by is made visible as everywhere else, and what is left is text for the browser.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    report::{command, place},
    story::{Event, Process, Story},
};
use crate::{
    escape::{shell_command, text},
    time::Time,
    view::{Severity, Verdict},
};

const STYLE: &str = include_str!("page.css");
/// Forbids the browser everything but the page's own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The whole page.
pub fn page(story: &Story) -> String {
    let title = match (&story.signal, &story.container) {
        (Some(signal), _) => format!("Signal {}", signal.id),
        (None, Some(container)) => format!("Container {}", text(&container.id)),
        (None, None) => "Story".to_owned(),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (title) " · Portcullis" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (headline(story, &title))
                    (tree(story))
                    (timeline(story))
                    (related(story))
                    (habits(story))
                    (next(story))
                }
                footer { "portcullis " (env!("CARGO_PKG_VERSION")) ", times are UTC" }
            }
        }
    };
    page.into_string()
}

fn headline(story: &Story, title: &str) -> Markup {
    let signal = story.headline();
    html! {
        header {
            p.kicker { "Network utility executed in container" }
            h1 { (title) }
            @if let Some(signal) = signal {
                p.badges {
                    span class={ "badge " (signal.severity.word()) } { (signal.severity.word()) }
                    span class={ "badge " (verdict_class(signal.verdict)) } { (signal.verdict.word().replace('_', " ")) }
                    @if let Some(tool) = &signal.tool {
                        span.badge { (text(&tool.id)) @if !tool.category.is_empty() { " · " (text(&tool.category)) } }
                        @for technique in &tool.techniques { span.badge { (text(technique)) } }
                    }
                }
                p.message { (text(&signal.message)) }
            } @else {
                p.message { "There are no signals in this time." }
            }
            @if let Some(container) = &story.container { p.place { (place(container)) } }
            p.place { (short(story.since)) " to " (short(story.until)) }
        }
    }
}

fn tree(story: &Story) -> Markup {
    const ROW: usize = 30;
    const STEP: usize = 22;
    let rows = story.tree();
    if rows.is_empty() {
        return html! {};
    }
    // Where each process's mark is.
    let at = |index: usize, levels: &[bool]| (12 + STEP * levels.len().saturating_sub(1), ROW / 2 + ROW * index);
    let place_of = |number: u32| {
        let found = rows.iter().enumerate().find(|(_, (process, _))| process.number == number);
        found.map(|(index, (_, levels))| at(index, levels))
    };
    let deepest = rows.iter().map(|(_, levels)| levels.len()).max().unwrap_or(1);
    let (width, height) = (24 + STEP * deepest, ROW * rows.len());
    html! {
        section {
            h2 { "Processes" }
            div.tree {
                svg width=(width) height=(height) viewBox={ "0 0 " (width) " " (height) } role="img" aria-label="Process tree" {
                    @for (index, (process, levels)) in rows.iter().enumerate() {
                        @let (x, y) = at(index, levels);
                        @if let Some((from, top)) = place_of(process.parent) {
                            path.branch d={ "M" (from) " " (top) "V" (y) "H" (x) } {}
                        }
                    }
                    @for (index, (process, levels)) in rows.iter().enumerate() {
                        @let (x, y) = at(index, levels);
                        circle class=(process_class(process)) cx=(x) cy=(y) r="6" {}
                    }
                }
                ol {
                    @for (process, _) in &rows {
                        li title={ "pid " (process.pid) ", " (process.container_pid) " in the container, uid " (process.uid) } {
                            span.pid { (process.pid) } " "
                            code { (command(process)) }
                            @for id in &process.signal_ids { " " a.ref href={ "#signal-" (id) } { (id) } }
                            @if process.verdict != Verdict::Unknown {
                                " " span class={ "badge small " (verdict_class(process.verdict)) } { (process.verdict.word().replace('_', " ")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn timeline(story: &Story) -> Markup {
    const WIDTH: f64 = 1000.0;
    let moment = story.moment();
    let times: Vec<f64> = story.timeline.iter().filter_map(|event| event.time).map(Time::seconds).collect();
    let (first, last) =
        (times.iter().copied().fold(f64::MAX, f64::min), times.iter().copied().fold(f64::MIN, f64::max));
    let x = |time: Time| 12.0 + (time.seconds() - first) / (last - first).max(0.001) * (WIDTH - 24.0);
    let mut anchored = std::collections::BTreeSet::new();
    html! {
        section {
            h2 { "Timeline" }
            @if times.len() > 1 {
                svg.axis viewBox={ "0 0 " (WIDTH) " 84" } role="img" aria-label="Timeline" {
                    line x1="0" y1="42" x2=(WIDTH) y2="42" {}
                    @for event in &story.timeline {
                        @if let Some(time) = event.time {
                            circle class={ "dot " (event_class(event)) } cx=(format!("{:.1}", x(time))) cy=(lane(event)) r="6" {
                                title { (time.short()) " " (text(&event.text)) }
                            }
                        }
                    }
                }
                p.ends { span { (short(story.timeline.first().and_then(|event| event.time))) } span { (short(story.timeline.last().and_then(|event| event.time))) } }
            }
            div.scroll {
                table {
                    thead { tr { th { "Time" } th.number { "Offset" } th { "What" } th {} th { "Signal" } } }
                    tbody {
                        @for event in &story.timeline {
                            tr id=[(event.signal_id > 0 && anchored.insert(event.signal_id)).then(|| format!("signal-{}", event.signal_id))] {
                                td.time { (short(event.time)) }
                                td.number { (event.time.zip(moment).map(|(time, moment)| time.since(moment)).unwrap_or_default()) }
                                td { span class={ "kind " (event_class(event)) } { (event.kind.replace('_', " ")) } }
                                td { (text(&event.text)) }
                                td.number { @if event.signal_id > 0 { (event.signal_id) } }
                            }
                        }
                    }
                }
            }
            @for gap in story.gaps() { p.place { (gap) "." } }
        }
    }
}

fn related(story: &Story) -> Markup {
    html! {
        section {
            h2 { "Elsewhere on this node" }
            @if story.related.is_empty() { p.none { "Nothing that has something in common with it." } }
            @else {
                div.scroll {
                    table {
                        thead { tr { th { "Signal" } th { "Time" } th { "In common" } th { "What" } th { "Where" } } }
                        tbody {
                            @for related in &story.related {
                                @if let Some(signal) = &related.signal {
                                    tr {
                                        td.number { (signal.id) }
                                        td.time { (short(signal.time)) }
                                        td { (text(&related.reasons.join(", "))) }
                                        td { (text(&signal.message)) }
                                        td { @if let Some(container) = &signal.container { (place(container)) } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn habits(story: &Story) -> Markup {
    html! {
        @if !story.habits.is_empty() {
            section {
                h2 { "What this workload does" }
                div.scroll {
                    table {
                        thead { tr { th { "Tool" } th { "Rule" } th { "Origin" } th.number { "Times" } th.number { "Days of 32" } th { "First" } th { "Last" } th {} } }
                        tbody {
                            @for habit in &story.habits {
                                tr {
                                    td { (text(&habit.tool)) }
                                    td { (text(&habit.rule)) }
                                    td { (habit.origin.word().replace('_', " ")) }
                                    td.number { (habit.times_seen) }
                                    td.number { (habit.days_seen) }
                                    td.time { (short(habit.first_seen)) }
                                    td.time { (short(habit.last_seen)) }
                                    td { @if habit.habitual { span.badge.small.good { "habitual" } } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn next(story: &Story) -> Markup {
    html! {
        @if !story.next_steps.is_empty() {
            section {
                h2 { "Next" }
                ol.steps {
                    @for step in &story.next_steps {
                        li {
                            strong { (text(&step.text)) } " " span.reason { (text(&step.reason)) }
                            @if !step.command.is_empty() { pre { code { (shell_command(&step.command)) } } }
                        }
                    }
                }
            }
        }
    }
}

fn short(time: Option<Time>) -> String {
    time.map(Time::short).unwrap_or_default()
}

fn verdict_class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Blocked | Verdict::Killed => "good",
        Verdict::Detected | Verdict::WouldBlock => "medium",
        Verdict::Unknown => "",
    }
}

fn process_class(process: &Process) -> &'static str {
    match (process.signal_ids.is_empty(), process.verdict) {
        (true, _) => "process",
        (false, Verdict::Blocked | Verdict::Killed) => "process stopped",
        (false, _) => "process flagged",
    }
}

fn event_class(event: &Event) -> &'static str {
    match (event.kind, event.severity) {
        ("signal", Severity::Critical | Severity::High) => "high",
        ("signal", Severity::Medium) => "medium",
        ("network", _) => "network",
        ("containment" | "triage", _) => "people",
        _ => "plain",
    }
}

/// Kinds that come at the same moment lie above each other.
fn lane(event: &Event) -> u32 {
    match event.kind {
        "network" => 62,
        "signal" => 42,
        _ => 22,
    }
}
