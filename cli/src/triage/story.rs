//! The agent's answer in the shape that `-o json` shows.

use portcullis_proto::v1::{self, story_event};
use serde::Serialize;

use crate::{
    time::Time,
    view::{Container, Origin, Severity, Signal, Verdict},
};

/// All of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Story {
    pub signal: Option<Signal>,
    pub container: Option<Container>,
    pub since: Option<Time>,
    pub until: Option<Time>,
    pub signals: Vec<Signal>,
    pub signals_omitted: u64,
    pub processes: Vec<Process>,
    pub timeline: Vec<Event>,
    pub related: Vec<Related>,
    pub habits: Vec<Habit>,
    pub next_steps: Vec<NextStep>,
}

/// An image that a process ran.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    pub number: u32,
    pub parent: u32,
    pub pid: u32,
    pub container_pid: u32,
    pub uid: u32,
    pub exe: String,
    pub argv: Vec<String>,
    pub argv_truncated: bool,
    pub start_time: Option<Time>,
    pub signal_ids: Vec<u64>,
    pub verdict: Verdict,
}

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub time: Option<Time>,
    pub kind: &'static str,
    pub text: String,
    pub signal_id: u64,
    pub process: u32,
    pub severity: Severity,
}

/// A signal of another container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Related {
    pub signal: Option<Signal>,
    pub reasons: Vec<String>,
}

/// What the workload does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Habit {
    pub rule: String,
    pub tool: String,
    pub origin: Origin,
    pub first_seen: Option<Time>,
    pub last_seen: Option<Time>,
    pub days_seen: u32,
    pub times_seen: u64,
    pub habitual: bool,
}

/// What may be done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NextStep {
    pub text: String,
    pub reason: String,
    pub command: Vec<String>,
}

fn time(time: Option<prost_types::Timestamp>) -> Option<Time> {
    time.as_ref().and_then(Time::from_proto)
}

fn kind(kind: story_event::Kind) -> &'static str {
    use story_event::Kind;
    match kind {
        Kind::Unspecified => "unknown",
        Kind::ContainerStarted => "container_started",
        Kind::ContainerEnded => "container_ended",
        Kind::ProcessStarted => "process_started",
        Kind::Signal => "signal",
        Kind::Network => "network",
        Kind::Containment => "containment",
        Kind::Triage => "triage",
    }
}

impl Story {
    /// What is missing from the timeline.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        if self.signals_omitted > 0 {
            gaps.push(format!("{} more signals of this time are not shown", self.signals_omitted));
        }
        let counters = self.container.as_ref().and_then(|container| container.counters);
        if let Some(lost) = counters.map(|counters| counters.activities_lost).filter(|lost| *lost > 0) {
            gaps.push(format!("what this container's processes did on the network is not complete: {lost} operations were not recorded"));
        }
        gaps
    }
}

impl From<v1::GetStoryResponse> for Story {
    fn from(story: v1::GetStoryResponse) -> Self {
        Self {
            signal: story.signal.map(Into::into),
            container: story.container.map(Into::into),
            since: time(story.since),
            until: time(story.until),
            signals: story.signals.into_iter().map(Into::into).collect(),
            signals_omitted: story.signals_omitted,
            processes: story.processes.into_iter().map(Into::into).collect(),
            timeline: story.timeline.into_iter().map(Into::into).collect(),
            related: story
                .related
                .into_iter()
                .map(|related| Related { signal: related.signal.map(Into::into), reasons: related.reasons })
                .collect(),
            habits: story.habits.into_iter().map(Into::into).collect(),
            next_steps: story
                .next_steps
                .into_iter()
                .map(|step| NextStep { text: step.text, reason: step.reason, command: step.command })
                .collect(),
        }
    }
}

impl From<v1::StoryProcess> for Process {
    fn from(process: v1::StoryProcess) -> Self {
        Self {
            verdict: process.verdict().into(),
            start_time: time(process.start_time),
            number: process.number,
            parent: process.parent,
            pid: process.pid,
            container_pid: process.container_pid,
            uid: process.uid,
            exe: process.exe,
            argv: process.argv,
            argv_truncated: process.argv_truncated,
            signal_ids: process.signal_ids,
        }
    }
}

impl From<v1::StoryEvent> for Event {
    fn from(event: v1::StoryEvent) -> Self {
        Self {
            severity: event.severity().into(),
            kind: kind(event.kind()),
            time: time(event.time),
            text: event.text,
            signal_id: event.signal_id,
            process: event.process,
        }
    }
}

impl From<v1::Habit> for Habit {
    fn from(habit: v1::Habit) -> Self {
        Self {
            origin: habit.origin().into(),
            first_seen: time(habit.first_seen),
            last_seen: time(habit.last_seen),
            rule: habit.rule,
            tool: habit.tool,
            days_seen: habit.days_seen,
            times_seen: habit.times_seen,
            habitual: habit.habitual,
        }
    }
}

impl Story {
    /// The tree in the order in which it is shown: how deep each process is, and for each level above it whether more
    /// children follow there.
    pub fn tree(&self) -> Vec<(&Process, Vec<bool>)> {
        let mut shown = Vec::new();
        let mut left = self.children(0, &[]);
        while let Some((process, levels)) = left.pop() {
            // An agent's tree has no more than it has; a number that is its own parent must not go on for ever.
            if shown.len() >= self.processes.len() {
                break;
            }
            left.extend(self.children(process.number, &levels));
            shown.push((process, levels));
        }
        shown
    }

    /// The last one first.
    fn children(&self, parent: u32, above: &[bool]) -> Vec<(&Process, Vec<bool>)> {
        let children = self.processes.iter().filter(|process| process.parent == parent).rev();
        children.enumerate().map(|(index, process)| (process, [above, &[index > 0]].concat())).collect()
    }

    /// What time is told against: the subject's, or the first signal's.
    pub fn moment(&self) -> Option<Time> {
        self.signal.as_ref().or(self.signals.first()).and_then(|signal| signal.time)
    }

    /// The signal that the headline is about: the subject, or the most severe.
    pub fn headline(&self) -> Option<&Signal> {
        self.signal.as_ref().or_else(|| self.signals.iter().max_by_key(|signal| signal.severity as u8))
    }
}
