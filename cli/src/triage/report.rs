//! The story for a terminal: first what it comes to, last what to do.

use std::io::{self, Write};

use super::story::{Event, Process, Story};
use crate::{
    containers::pod_name,
    escape::{shell_command, text},
    output::{Screen, Tone},
    signals::row::{severity_tone, verdict_tone},
    time::Time,
    view::{Container, Severity, Verdict},
};

/// Columns of a command in the tree, where the screen does not say.
const WIDE: usize = 160;

/// Writes it.
pub fn write(out: &mut impl Write, story: &Story, screen: Screen) -> io::Result<()> {
    let mut report = Report { out, story, screen };
    report.headline()?;
    report.tree()?;
    report.timeline()?;
    report.related()?;
    report.habits()?;
    report.next()
}

struct Report<'a, W> {
    out: &'a mut W,
    story: &'a Story,
    screen: Screen,
}

impl<W: Write> Report<'_, W> {
    fn section(&mut self, title: &str) -> io::Result<()> {
        writeln!(self.out, "\n{}", self.screen.paint(Tone::Title, title))
    }

    fn headline(&mut self) -> io::Result<()> {
        let story = self.story;
        match (&story.signal, story.headline()) {
            (_, None) => writeln!(self.out, "No signals in this time")?,
            (subject, Some(signal)) => {
                let title = match subject {
                    Some(signal) => format!("Signal {}", signal.id),
                    None => format!("{} signals", story.signals.len() as u64 + story.signals_omitted),
                };
                let severity = self.screen.paint(severity_tone(signal.severity), signal.severity.word());
                let verdict = self.screen.paint(verdict_tone(signal.verdict), signal.verdict.word());
                writeln!(self.out, "{}  {severity}  {verdict}", self.screen.paint(Tone::Title, &title))?;
                writeln!(self.out, "{}", text(&signal.message))?;
            }
        }
        if let Some(container) = &story.container {
            writeln!(self.out, "{}", place(container))?;
        }
        let span = [story.since, story.until].map(|time| time.map(Time::short).unwrap_or_default());
        writeln!(self.out, "{} to {}", span[0], span[1])
    }

    fn tree(&mut self) -> io::Result<()> {
        if self.story.processes.is_empty() {
            return Ok(());
        }
        self.section("Processes")?;
        for (process, levels) in self.story.tree() {
            let mut branch = String::new();
            if let Some((last, above)) = levels.split_last() {
                for more in above.iter().skip(1) {
                    branch.push_str(if *more { "│  " } else { "   " });
                }
                if !above.is_empty() {
                    branch.push_str(if *last { "├─ " } else { "└─ " });
                }
            }
            let marks = marks(process, self.screen);
            let room = self.screen.width.unwrap_or(WIDE).saturating_sub(branch.chars().count() + 24).max(40);
            writeln!(self.out, "  {branch}{} {}{marks}", process.pid, cut(&command(process), room))?;
        }
        Ok(())
    }

    fn timeline(&mut self) -> io::Result<()> {
        self.section("Timeline")?;
        let moment = self.story.moment();
        for Event { time, kind, text: words, signal_id, severity, .. } in &self.story.timeline {
            let offset = time.zip(moment).map(|(time, moment)| time.since(moment)).unwrap_or_default();
            let mark = match severity {
                Severity::Unknown => String::new(),
                severity => format!("  {}", self.screen.paint(severity_tone(*severity), severity.word())),
            };
            let signal = if *signal_id == 0 { String::new() } else { format!("  [{signal_id}]") };
            let at = time.map(Time::short).unwrap_or_default();
            writeln!(self.out, "  {at}  {offset:>12}  {kind:<17} {}{mark}{signal}", text(words))?;
        }
        for gap in self.story.gaps() {
            writeln!(self.out, "  {gap}")?;
        }
        Ok(())
    }

    fn related(&mut self) -> io::Result<()> {
        if self.story.related.is_empty() {
            return Ok(());
        }
        self.section("Elsewhere on this node")?;
        for related in &self.story.related {
            let Some(signal) = &related.signal else { continue };
            let time = signal.time.map(Time::short).unwrap_or_default();
            let container = signal.container.as_ref().map(place).unwrap_or_default();
            writeln!(self.out, "  [{}] {time}  {}", signal.id, text(&related.reasons.join(", ")))?;
            writeln!(self.out, "      {}; {container}", text(&signal.message))?;
        }
        Ok(())
    }

    fn habits(&mut self) -> io::Result<()> {
        if self.story.habits.is_empty() {
            return Ok(());
        }
        self.section("What this workload does")?;
        for habit in &self.story.habits {
            let since = habit.first_seen.map(Time::short).unwrap_or_default();
            let last = habit.last_seen.map(Time::short).unwrap_or_default();
            let word = if habit.habitual { "habitual" } else { "not habitual" };
            writeln!(
                self.out,
                "  {} ({}, {}): {word}; {} times on {} of 32 days, first {since}, last {last}",
                text(&habit.tool),
                text(&habit.rule),
                habit.origin,
                habit.times_seen,
                habit.days_seen
            )?;
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<()> {
        if self.story.next_steps.is_empty() {
            return Ok(());
        }
        self.section("Next")?;
        for (index, step) in self.story.next_steps.iter().enumerate() {
            writeln!(self.out, "  {}. {}: {}", index + 1, text(&step.text), text(&step.reason))?;
            if !step.command.is_empty() {
                writeln!(self.out, "     {}", shell_command(&step.command))?;
            }
        }
        Ok(())
    }
}

/// Where it is, in a line that is safe to show.
pub fn place(container: &Container) -> String {
    let mut parts = vec![format!("container {}/{}", container.containerd_namespace, container.id)];
    parts.extend(container.pod.as_ref().map(|pod| format!("pod {}", pod_name(pod))));
    if !container.image.is_empty() {
        parts.push(format!("image {}", container.image));
    }
    if container.ended.is_some() {
        parts.push("ended".to_owned());
    } else if let Some(containment) = container.containment.as_ref().map(|containment| containment.words())
        && !containment.is_empty()
    {
        parts.push(containment);
    }
    text(&parts.join(", "))
}

/// Its command line, safe to show.
pub fn command(process: &Process) -> String {
    let words = if process.argv.is_empty() {
        vec![process.exe.as_str()]
    } else {
        process.argv.iter().map(String::as_str).collect()
    };
    let cut = if process.argv_truncated { " …" } else { "" };
    format!("{}{cut}", shell_command(words))
}

fn marks(process: &Process, screen: Screen) -> String {
    if process.signal_ids.is_empty() {
        return String::new();
    }
    let ids: Vec<_> = process.signal_ids.iter().map(u64::to_string).collect();
    let verdict = match process.verdict {
        Verdict::Unknown => String::new(),
        verdict => format!(" {}", screen.paint(verdict_tone(verdict), verdict.word())),
    };
    format!("  {} [{}]{verdict}", screen.paint(Tone::Bad, "●"), ids.join(", "))
}

fn cut(line: &str, room: usize) -> String {
    if line.chars().count() <= room {
        return line.to_owned();
    }
    line.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}
