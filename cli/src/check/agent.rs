//! What the agent says about the node and itself.

use std::{collections::BTreeMap, time::Duration};

use portcullis_bpf::abi::ABI_VERSION;
use portcullis_proto::v1::{GetStatusRequest, GetStatusResponse};
use serde::Serialize;

use super::report::{Check, Source};
use crate::{
    client::{self, ClientError, Place},
    time::Time,
    view::{Backend, Mode, Node},
};

/// Long enough for a busy node, short enough for a person.
const PATIENCE: Duration = Duration::from_secs(5);

/// The agent itself, as JSON has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // The API's definition documents them.
pub struct Agent {
    pub version: String,
    pub abi_version: u32,
    pub backend: Backend,
    pub backend_reason: String,
    pub kernel: String,
    pub node: Option<Node>,
    pub started: Option<Time>,
    pub policies: Vec<Policy>,
    pub policy_error: String,
    pub containers_guarded: u64,
    pub containers_unguarded: u64,
    pub signals_stored: u64,
    pub last_signal_id: u64,
    pub losses: BTreeMap<String, u64>,
    pub suppressed: BTreeMap<String, u64>,
}

/// A policy in force.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    pub id: u32,
    pub name: String,
    pub mode: Mode,
    pub source: String,
}

/// Its answer.
#[derive(Debug)]
pub struct Status {
    pub agent: Agent,
    pub checks: Vec<Check>,
}

/// Asks it; without an answer, the check that says so.
pub async fn ask(place: Place) -> Result<Status, Check> {
    let name = place.to_string();
    let answer = tokio::time::timeout(PATIENCE, async {
        let agent = client::Agent::connect(place).await?;
        let response = agent.node().get_status(client::request(GetStatusRequest {})).await;
        response.map_err(|status| agent.error(&status))
    });
    match answer.await {
        Ok(Ok(response)) => Ok(status(response.into_inner())),
        Ok(Err(ClientError::Unreachable { place, cause, remedy })) => {
            Err(Check::failed("agent", format!("cannot reach portcullisd at {place}: {cause}"), remedy))
        }
        Ok(Err(error)) => {
            Err(Check::failed("agent", error.to_string(), "see the agent's log (journalctl -u portcullisd)"))
        }
        Err(_) => Err(Check::failed(
            "agent",
            format!("portcullisd at {name} took longer than {} s to answer", PATIENCE.as_secs()),
            "see the agent's log (journalctl -u portcullisd)",
        )),
    }
}

fn status(response: GetStatusResponse) -> Status {
    let backend = response.backend().into();
    let policies = response.policies.into_iter().map(|policy| Policy {
        mode: policy.mode().into(),
        id: policy.id,
        name: policy.name,
        source: policy.source,
    });
    let agent = Agent {
        version: response.version,
        abi_version: response.abi_version,
        backend,
        backend_reason: response.backend_reason,
        kernel: response.kernel,
        node: response.node.map(Into::into),
        started: response.started.as_ref().and_then(Time::from_proto),
        policies: policies.collect(),
        policy_error: response.policy_error,
        containers_guarded: response.containers_guarded,
        containers_unguarded: response.containers_unguarded,
        signals_stored: response.signals_stored,
        last_signal_id: response.last_signal_id,
        losses: response.losses.into_iter().collect(),
        suppressed: response.suppressed.into_iter().collect(),
    };
    let mut checks = vec![reachable(&agent)];
    checks.extend(response.checks.into_iter().map(Check::from));
    checks.extend([unguarded(&agent), losses(&agent), suppressed(&agent), policy(&agent)]);
    Status { agent, checks }
}

/// The agent's own numbers, judged here; marked as the agent's.
fn ours(check: Check) -> Check {
    Check { source: Source::Agent, ..check }
}

fn reachable(agent: &Agent) -> Check {
    ours(if agent.abi_version == ABI_VERSION {
        Check::ok("agent", "portcullisd answers")
    } else {
        Check::warning(
            "agent",
            format!("portcullisd has ABI version {}, this program {ABI_VERSION}", agent.abi_version),
            "install agent, shim and this program of one version",
        )
    })
}

fn unguarded(agent: &Agent) -> Check {
    ours(match agent.containers_unguarded {
        0 => Check::ok("containers", format!("{} guarded, none unguarded", agent.containers_guarded)),
        unguarded => Check::warning(
            "containers",
            format!("{unguarded} started without their guard, {} guarded", agent.containers_guarded),
            "see which and why with portcullis containers list -o wide",
        ),
    })
}

/// Those that are not zero.
fn told(counters: &BTreeMap<String, u64>) -> String {
    let counted = counters.iter().filter(|(_, count)| **count > 0);
    counted.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn losses(agent: &Agent) -> Check {
    const NAMES_ONLY: &str = "contents_unknown";
    let lost = told(&agent.losses);
    if lost.is_empty() {
        return ours(Check::ok("losses", "nothing was dropped, fell back or was refused"));
    }
    let mut remedy = "verdicts held all the same; the agent's log and metrics say when and why".to_owned();
    if agent.losses.get(NAMES_ONLY).is_some_and(|count| *count > 0) {
        remedy += "; portcullis containers list -o wide shows where tools are recognised by their names only, and why";
    }
    ours(Check::warning("losses", lost, remedy))
}

/// What the policy wants: nothing is wrong with it.
fn suppressed(agent: &Agent) -> Check {
    let suppressed = told(&agent.suppressed);
    ours(Check::ok(
        "suppressed",
        if suppressed.is_empty() {
            "the policy's exceptions and repeats kept no event from becoming a signal of its own".into()
        } else {
            suppressed
        },
    ))
}

fn policy(agent: &Agent) -> Check {
    ours(if agent.policy_error.is_empty() {
        Check::ok("policies", format!("{} in force", agent.policies.len()))
    } else {
        Check::warning(
            "policies",
            &agent.policy_error,
            "correct the file; until then the former policies and catalogue are in force",
        )
    })
}

/// For tests of what is made of it.
#[cfg(test)]
pub fn sample(response: GetStatusResponse) -> Status {
    status(response)
}

#[cfg(test)]
mod tests {
    use super::{super::report::State, *};

    #[test]
    fn losses_and_unguarded_containers_are_warnings() {
        let response = GetStatusResponse {
            abi_version: ABI_VERSION,
            containers_unguarded: 2,
            losses: [("ring_full".to_owned(), 7), ("argv_unreadable".to_owned(), 0)].into(),
            suppressed: [("excepted_repeats".to_owned(), 3)].into(),
            policy_error: "line 3: no such tool".into(),
            ..Default::default()
        };
        let status = status(response);
        let check = |name: &str| status.checks.iter().find(|check| check.name == name).unwrap();
        assert_eq!(check("agent").state, State::Ok);
        assert_eq!((check("losses").state, check("losses").detail.as_str()), (State::Warning, "ring_full 7"));
        assert_eq!((check("suppressed").state, check("suppressed").detail.as_str()), (State::Ok, "excepted_repeats 3"));
        assert!(!check("losses").remedy.contains("names only"));
        assert_eq!(check("containers").state, State::Warning);
        assert_eq!(check("policies").state, State::Warning);
        assert_eq!(sample(GetStatusResponse::default()).checks[0].state, State::Warning, "another ABI version");
    }

    #[test]
    fn containers_known_by_names_only_can_be_found() {
        let losses = [("contents_unknown".to_owned(), 1)].into();
        let status = status(GetStatusResponse { losses, ..Default::default() });
        let losses = status.checks.iter().find(|check| check.name == "losses").unwrap();
        assert_eq!(losses.detail, "contents_unknown 1");
        assert!(losses.remedy.contains("portcullis containers list -o wide"), "{}", losses.remedy);
    }
}
