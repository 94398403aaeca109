//! What the agent leaves itself once it has started, and what it tells of that. It parses what attackers wrote: whoever takes it
//! over is to gain as little as possible.

use std::{collections::HashMap, sync::Arc, time::Duration};

use portcullis_proto::v1::{Check, check::State};
use portcullis_sandbox::{
    capabilities::{Capabilities, keep},
    filter::{FilterError, Rest, apply},
    refusals,
};
use tokio::time::interval;

use crate::{config::Seccomp, counters::Counters};

/// BPF: the maps, and links (before Linux 5.19 even to read them). NET_ADMIN: attaching what cuts containers off from the network.
/// KILL: killing processes of containers, whoever they run as.
const KEPT: Capabilities = Capabilities::BPF.union(Capabilities::NET_ADMIN).union(Capabilities::KILL);

const REFUSED: &str = "a system call was refused that the agent's profile does not name: a fault of Portcullis, or an intruder in the agent";

/// How often refused system calls are looked for.
const INTERVAL: Duration = Duration::from_secs(2);

/// Why the agent can't confine itself.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel did not take them.
    #[error("giving up capabilities")]
    Capabilities(#[source] std::io::Error),
    /// The kernel did not take it.
    #[error("confining the agent to its system calls ([sandbox] seccomp in the configuration)")]
    Filter(#[from] FilterError),
}

/// Gives up root's rights that are not needed any more. Before there are threads: each has its own.
pub fn give_up_rights() -> Result<(), SandboxError> {
    let kept = keep(KEPT).map_err(|error| SandboxError::Capabilities(error.into()))?;
    tracing::info!(capabilities = names(kept), "all other capabilities are given up");
    Ok(())
}

/// Leaves all threads the system calls of the profile.
pub fn confine(seccomp: Seccomp) -> Result<(), SandboxError> {
    match seccomp {
        Seccomp::Enforce => apply(Rest::Refused)?,
        Seccomp::Log => apply(Rest::Logged)?,
        Seccomp::Off => tracing::warn!("[sandbox] seccomp is off: the agent may make every system call"),
    }
    Ok(())
}

fn names(capabilities: Capabilities) -> String {
    capabilities.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

/// Counts what is refused, and logs each system call the first time. The handler itself may do neither.
pub async fn tell_of_refusals(counters: Arc<Counters>) {
    let mut told: HashMap<&str, u64> = HashMap::new();
    let mut ticks = interval(INTERVAL);
    loop {
        ticks.tick().await;
        for (syscall, count) in refusals::refused() {
            let before = told.insert(syscall, count);
            counters.syscalls_refused.add(count - before.unwrap_or_default());
            if before.is_none() {
                tracing::error!(syscall, count, "{REFUSED}");
            }
        }
    }
}

/// What was refused in the end, as what happened last may not have been told.
pub fn sum_up() {
    for (syscall, count) in refusals::refused() {
        tracing::warn!(syscall, count, "{REFUSED}");
    }
}

/// For the status: what was refused so far comes with it.
pub fn check(seccomp: Seccomp, refused: &[(&'static str, u64)]) -> Check {
    let (state, detail, remedy) = match seccomp {
        Seccomp::Enforce if refused.is_empty() => {
            (State::Ok, "the agent makes no system calls but those of its profile".to_owned(), "")
        }
        Seccomp::Enforce => {
            let refused: Vec<_> = refused.iter().map(|(syscall, count)| format!("{syscall} {count}")).collect();
            let detail = format!("system calls of the agent were refused: {}", refused.join(", "));
            (
                State::Warning,
                detail,
                "a fault of Portcullis, or an intruder in it: see the agent's log, and start it anew",
            )
        }
        Seccomp::Log => {
            let detail = "the agent may make every system call; the kernel's log tells of those beyond its profile";
            (State::Warning, detail.to_owned(), "set seccomp = \"enforce\" in [sandbox]")
        }
        Seccomp::Off => (
            State::Warning,
            "the agent may make every system call".to_owned(),
            "set seccomp = \"enforce\" in [sandbox]",
        ),
    };
    Check { name: "sandbox".to_owned(), state: state.into(), detail, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_profile_that_is_kept_to_is_in_order() {
        let state = |seccomp, refused: &[_]| check(seccomp, refused).state();
        assert_eq!(state(Seccomp::Enforce, &[]), State::Ok);
        let refused = check(Seccomp::Enforce, &[("ptrace", 2), ("mount", 1)]);
        assert_eq!(refused.state(), State::Warning);
        assert!(refused.detail.ends_with("ptrace 2, mount 1") && !refused.remedy.is_empty(), "{refused:?}");
        assert_eq!([state(Seccomp::Log, &[]), state(Seccomp::Off, &[])], [State::Warning; 2]);
    }

    #[test]
    fn capabilities_have_their_names() {
        assert_eq!(names(KEPT), "KILL NET_ADMIN BPF");
    }
}
