//! The report of `check`, as JSON has it and as people see it.

use std::io::{self, Write};

use portcullis_bpf::{Backend as Usable, probe};
use portcullis_proto::v1;
use serde::Serialize;

use super::agent::Agent;
use crate::{
    escape::text,
    output::{Screen, Tone},
    time::Time,
    view::Backend,
};

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Nothing failed.
    pub ok: bool,
    /// The backend in force, or, without an agent, the one this node would get.
    pub backend: Backend,
    /// Why that one.
    pub backend_reason: String,
    /// Its release.
    pub kernel: String,
    /// `null` when it can't be reached.
    pub agent: Option<Agent>,
    /// Everything looked at.
    pub checks: Vec<Check>,
}

/// The outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, with something lost.
    Warning,
    /// Does not work.
    Failed,
}

/// Who looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// This program.
    Node,
    /// The agent.
    Agent,
}

/// One thing looked at.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Short name.
    pub name: String,
    /// Who looked.
    pub source: Source,
    /// The outcome.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do; empty when all is well.
    pub remedy: String,
}

impl Check {
    /// All is well.
    pub fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            source: Source::Node,
            state: State::Ok,
            detail: detail.into(),
            remedy: String::new(),
        }
    }

    /// Something is lost.
    pub fn warning(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Warning, remedy: remedy.into(), ..Self::ok(name, detail) }
    }

    /// It does not work.
    pub fn failed(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Failed, remedy: remedy.into(), ..Self::ok(name, detail) }
    }

    /// Whether showing both would be showing one thing twice.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.name == other.name && self.state == other.state
    }
}

impl From<probe::Check> for Check {
    fn from(check: probe::Check) -> Self {
        let state = match check.state {
            probe::State::Ok => State::Ok,
            probe::State::Warning => State::Warning,
            probe::State::Failed => State::Failed,
        };
        Self { state, remedy: check.remedy, ..Self::ok(check.name, check.detail) }
    }
}

impl From<v1::Check> for Check {
    fn from(check: v1::Check) -> Self {
        let state = match check.state() {
            v1::check::State::Ok => State::Ok,
            // A state that is newer than this program is at least worth a look.
            v1::check::State::Warning | v1::check::State::Unspecified => State::Warning,
            v1::check::State::Failed => State::Failed,
        };
        Self { name: check.name, source: Source::Agent, state, detail: check.detail, remedy: check.remedy }
    }
}

/// The backend to show, its reason, and the check of it, from what the node offers and what the agent uses.
pub fn backend(
    (usable, reason): (Option<Usable>, String),
    in_force: Option<(Backend, String)>,
) -> (Backend, String, Check) {
    let usable = usable.map_or(Backend::Unknown, |usable| match usable {
        Usable::Lsm => Backend::Lsm,
        Usable::Tracepoint => Backend::Tracepoint,
    });
    match in_force {
        Some((backend, why)) if backend != Backend::Unknown => {
            let check = if usable == backend || usable == Backend::Unknown {
                Check::ok("backend", format!("{backend} is in force"))
            } else {
                Check::warning(
                    "backend",
                    format!("{backend} is in force ({why}); looked at now, this node would get {usable}: {reason}"),
                    "if that is not wanted: remove `backend` from portcullisd's configuration, if it is set there, and \
                     restart portcullisd, which then chooses anew",
                )
            };
            (backend, why, check)
        }
        _ if usable == Backend::Unknown => {
            let check =
                Check::failed("backend", format!("none: {reason}"), "see the failed checks below; run this as root");
            (usable, reason, check)
        }
        _ => (usable, reason, Check::ok("backend", format!("{usable} is what this node gets"))),
    }
}

impl Report {
    /// For people.
    pub fn write(&self, out: &mut impl Write, screen: Screen, wide: bool) -> io::Result<()> {
        writeln!(out, "backend  {}: {}", self.backend, text(&self.backend_reason))?;
        if !self.kernel.is_empty() {
            writeln!(out, "kernel   {}", text(&self.kernel))?;
        }
        match &self.agent {
            None => writeln!(out, "agent    not reached")?,
            Some(agent) => agent.write(out, wide)?,
        }
        writeln!(out)?;
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
        for check in &self.checks {
            let (word, tone) = match check.state {
                State::Ok => ("ok", Tone::Good),
                State::Warning => ("warning", Tone::Warning),
                State::Failed => ("FAILED", Tone::Bad),
            };
            let word = screen.paint(tone, &format!("{word:<7}"));
            let other_view = |other: &Check| other.source == Source::Node && other.name == check.name;
            let theirs = check.source == Source::Agent && self.checks.iter().any(other_view);
            let by = if theirs { " (the agent's view)" } else { "" };
            writeln!(out, "{word}  {:<width$}  {}{by}", text(&check.name), text(&check.detail))?;
            if !check.remedy.is_empty() {
                writeln!(out, "{:7}  {:width$}  → {}", "", "", text(&check.remedy))?;
            }
        }
        let count = |state| self.checks.iter().filter(|check| check.state == state).count();
        writeln!(out, "\n{} failed, {} warnings", count(State::Failed), count(State::Warning))
    }
}

impl Agent {
    fn write(&self, out: &mut impl Write, wide: bool) -> io::Result<()> {
        if let Some(node) = &self.node {
            writeln!(out, "node     {}", text(&node.title()))?;
        }
        let since = self.started.map(|time| format!(", since {}", Time::short(time))).unwrap_or_default();
        writeln!(out, "agent    portcullisd {} (ABI {}){since}", text(&self.version), self.abi_version)?;
        let (guarded, unguarded) = (self.containers_guarded, self.containers_unguarded);
        writeln!(
            out,
            "         {guarded} containers guarded, {unguarded} unguarded; {} signals stored",
            self.signals_stored
        )?;
        for policy in &self.policies {
            writeln!(out, "policy   {} ({}) from {}", text(&policy.name), policy.mode, text(&policy.source))?;
        }
        if wide {
            for (name, count) in &self.losses {
                writeln!(out, "loss     {} {count}", text(name))?;
            }
            for (name, count) in &self.suppressed {
                writeln!(out, "excepted {} {count}", text(name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(usable: Option<Usable>) -> (Option<Usable>, String) {
        (usable, "because".to_owned())
    }

    #[test]
    fn what_is_in_force_counts() {
        let (shown, why, check) = backend(offered(Some(Usable::Lsm)), Some((Backend::Tracepoint, "told so".into())));
        assert_eq!((shown, why.as_str(), check.state), (Backend::Tracepoint, "told so", State::Warning));
        let (shown, _, check) = backend(offered(None), Some((Backend::Lsm, String::new())));
        assert_eq!((shown, check.state), (Backend::Lsm, State::Ok));
    }

    #[test]
    fn without_agent_the_node_decides() {
        let (shown, why, check) = backend(offered(Some(Usable::Tracepoint)), None);
        assert_eq!((shown, why.as_str(), check.state), (Backend::Tracepoint, "because", State::Ok));
        let (shown, _, check) = backend(offered(None), None);
        assert_eq!((shown, check.state), (Backend::Unknown, State::Failed));
    }
}
