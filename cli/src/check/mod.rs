//! `check`: what this node can do and whether it is well. The agent is asked when it runs; the node itself is looked
//! at from here in any case, so that this helps when the agent does not start.
//!
//! | module | idea |
//! |---|---|
//! | [`local`] | what agent and shim share, and the programs |
//! | [`unit`] | the agent's unit |
//! | [`config`] | containerd's configuration |
//! | [`running`] | the containerd that runs |
//! | [`containerd`] | the containers that it runs |
//! | [`agent`] | what the agent says |
//! | [`report`] | all of it together |

mod agent;
mod config;
pub mod containerd;
pub mod local;
mod report;
mod running;
pub mod unit;

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use portcullis_bpf::probe;
use portcullis_proto::v1;

use self::{
    report::{Check, Report, State},
    running::Running,
};
use crate::{
    args::Global,
    client::Place,
    exit,
    output::{self, Format},
};

/// Look at this node: kernel, programs, shim, containerd, agent
///
/// Shows the backend (lsm or tracepoint) and why, then each thing looked at with its state and, where it is not well,
/// what to do. Run it as root: most of what it looks at is root's.
///
/// Exit codes: 0 when nothing failed, warnings allowed; 1 when something failed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where agent and shims keep what they share
    #[arg(long, value_name = "DIR", default_value = "/run/portcullis")]
    run_dir: PathBuf,
    /// containerd's state directory
    #[arg(long, value_name = "DIR", default_value = "/run/containerd")]
    containerd_state: PathBuf,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// containerd's socket
    #[arg(long, value_name = "PATH", default_value = "/run/containerd/containerd.sock")]
    containerd_socket: PathBuf,
}

impl Args {
    /// Looks and prints; the code says whether anything failed.
    pub async fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        let place = global.place().unwrap_or_else(|error| error.exit());
        let report = match place {
            Place::Socket(_) => {
                let status = agent::ask(place).await;
                let running = running::ask(&self.containerd_socket).await;
                self.look(probe::node(), &running, status)
            }
            Place::Remote(..) => elsewhere(agent::ask(place).await),
        };
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json => output::json(&mut out, &report)?,
            Format::Yaml => output::yaml(&mut out, &report)?,
            Format::Table | Format::Wide => {
                report.write(&mut out, global.screen(), global.output == Format::Wide)?;
            }
        }
        out.flush()?;
        Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) })
    }

    fn look(&self, node: probe::Report, running: &Running, status: Result<agent::Status, Check>) -> Report {
        let (agent, mut agent_checks) = match status {
            Ok(status) => (Some(status.agent), status.checks),
            Err(check) => (None, vec![check]),
        };
        let mut checks: Vec<Check> = node.checks.into_iter().map(Check::from).collect();
        // The agent looked at the same kernel when it started. Its word is worth a line where it differs.
        agent_checks.retain(|theirs| !checks.iter().any(|ours| ours.says_the_same(theirs)));
        let in_force = agent.as_ref().map(|agent| (agent.backend, agent.backend_reason.clone()));
        let (backend, backend_reason, backend_check) = report::backend((node.backend, node.reason), in_force);
        checks.insert(0, backend_check);
        checks.extend(local::checks(&self.run_dir, agent.is_some(), running.path.as_deref()));
        checks.extend(unit::check(agent.is_some()));
        let config = config::look(&self.containerd_config);
        checks.extend(config.checks);
        checks.push(running.check(&config.handlers));
        checks.push(containerd::bundles(&self.containerd_state));
        checks.extend(agent_checks);
        Report {
            ok: checks.iter().all(|check| check.state != State::Failed),
            backend,
            backend_reason,
            kernel: node.kernel,
            agent,
            checks,
        }
    }
}

/// What an agent says of a node that is not this one.
fn elsewhere(status: Result<agent::Status, Check>) -> Report {
    let (agent, checks) = match status {
        Ok(status) => (Some(status.agent), status.checks),
        Err(check) => (None, vec![check]),
    };
    let told = agent.as_ref().map(|agent| (agent.backend, agent.backend_reason.clone(), agent.kernel.clone()));
    let (backend, backend_reason, kernel) =
        told.unwrap_or((v1::Backend::Unspecified.into(), String::new(), String::new()));
    Report {
        ok: checks.iter().all(|check| check.state != State::Failed),
        backend,
        backend_reason,
        kernel,
        agent,
        checks,
    }
}

#[cfg(test)]
mod tests {
    use portcullis_bpf::Backend;

    use super::*;

    fn args(directory: &std::path::Path) -> Args {
        Args {
            run_dir: directory.join("run"),
            containerd_state: directory.join("containerd"),
            containerd_config: directory.join("config.toml"),
            containerd_socket: directory.join("containerd.sock"),
        }
    }

    fn node(state: probe::State) -> probe::Report {
        let check = probe::Check { name: "bpf-lsm", state, detail: "detail".into(), remedy: String::new() };
        probe::Report {
            kernel: "6.1.0".into(),
            backend: Some(Backend::Lsm),
            reason: "it is there".into(),
            checks: vec![check],
        }
    }

    async fn look(directory: &std::path::Path, state: probe::State, status: Result<agent::Status, Check>) -> Report {
        let args = args(directory);
        args.look(node(state), &running::ask(&args.containerd_socket).await, status)
    }

    #[tokio::test]
    async fn any_failure_is_the_outcome() {
        let directory = tempfile::tempdir().unwrap();
        let gone = Err(Check::failed("agent", "gone", "start it"));
        let report = look(directory.path(), probe::State::Ok, gone).await;
        assert!(!report.ok);
        assert_eq!(report.backend.word(), "lsm");
        assert_eq!(report.kernel, "6.1.0");
        let state = |name: &str| report.checks.iter().find(|check| check.name == name).map(|check| check.state);
        assert_eq!(state("backend"), Some(State::Ok));
        assert_eq!(state("bpf-lsm"), Some(State::Ok));
        assert_eq!(state("policyset"), Some(State::Failed));
        assert_eq!(state("agent"), Some(State::Failed));
    }

    #[tokio::test]
    async fn the_agent_does_not_repeat_the_node() {
        let directory = tempfile::tempdir().unwrap();
        let theirs = |state| Check { source: report::Source::Agent, state, ..Check::ok("bpf-lsm", "seen at start") };
        let status = |state| {
            let agent = agent::sample(v1::GetStatusResponse::default());
            Ok(agent::Status { agent: agent.agent, checks: vec![theirs(state)] })
        };
        let count = |report: &Report| report.checks.iter().filter(|check| check.name == "bpf-lsm").count();
        let agrees = look(directory.path(), probe::State::Ok, status(State::Ok)).await;
        let differs = look(directory.path(), probe::State::Ok, status(State::Failed)).await;
        assert_eq!((count(&agrees), count(&differs)), (1, 2));
    }
}
