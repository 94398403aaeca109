//! What a person may do now: a few rules, the most urgent first. They suggest; nothing is done.

use portcullis_proto::v1::{
    Container, Containment, NextStep, Novelty, Origin, RelatedSignal, Severity, Signal, TriageState, Verdict,
    network_operation::Kind,
};

use super::endpoint;

/// All that apply. Containment only of a container that runs.
pub fn next_steps(
    signals: &[Signal],
    subject: Option<&Signal>,
    container: Option<&Container>,
    related: &[RelatedSignal],
) -> Vec<NextStep> {
    let mut steps = Vec::new();
    let newest = subject.or(signals.last());
    let findings: Vec<&Signal> = signals.iter().filter(|signal| signal.operation.is_none()).collect();
    let ran = |signal: &&Signal| matches!(signal.verdict(), Verdict::Detected | Verdict::WouldBlock);
    let is_usual = newest.is_some_and(usual);
    if let Some(container) = container.filter(|container| container.ended.is_none() && !container.id.is_empty()) {
        let reason = reason_to_contain(&findings);
        steps.extend(containment(container, reason.as_deref(), &findings, is_usual));
        if container.mode() == portcullis_proto::v1::Mode::Detect && findings.iter().any(ran) {
            steps.push(step(
                "Have such executions stopped in this container from now on",
                "its mode is detect: they are only reported",
                &["portcullis", "mode", &container.id, "enforce", "--container"],
            ));
        }
    }
    let elsewhere = related.iter().filter_map(|related| related.signal.as_ref()?.container.as_ref());
    if let Some(other) = elsewhere.map(|container| &container.id).find(|id| !id.is_empty()) {
        steps.push(step(
            "Look at the other containers that have it in common",
            &format!("{} related signals elsewhere on this node", related.len()),
            &["portcullis", "triage", other],
        ));
    }
    if let Some(signal) = newest {
        steps.extend(judgement(signal, is_usual));
    }
    steps
}

/// The workload does this day by day, or it comes at a probe's pace.
fn usual(signal: &Signal) -> bool {
    signal.origin() == Origin::Probe || signal.novelty.as_ref().is_some_and(|novelty| novelty.habitual)
}

fn reason_to_contain(findings: &[&Signal]) -> Option<String> {
    let ran = |signal: &&&Signal| matches!(signal.verdict(), Verdict::Detected | Verdict::WouldBlock);
    let by_rule = |rule: &str| findings.iter().find(|signal| signal.rule == rule && ran(signal));
    if let Some(shell) = by_rule("reverse_shell").or_else(|| by_rule("shell_socket")) {
        let to = shell.remote.as_ref().map(|remote| format!(" to {}", endpoint(remote)));
        return Some(format!(
            "a shell is connected{}: somebody may be typing (signal {})",
            to.unwrap_or_default(),
            shell.id
        ));
    }
    let first_time = |signal: &&&Signal| {
        let novelty: Option<&Novelty> = signal.novelty.as_ref();
        novelty.is_some_and(|novelty| novelty.first_time) && signal.severity() >= Severity::High
    };
    let new = findings.iter().filter(ran).find(first_time)?;
    let tool = new.tool.as_ref().map_or(new.rule.as_str(), |tool| &tool.id);
    Some(format!("{tool} ran for the first time in this workload (signal {})", new.id))
}

fn containment(container: &Container, reason: Option<&str>, findings: &[&Signal], is_usual: bool) -> Vec<NextStep> {
    let in_effect = container.containment.unwrap_or_default();
    let Containment { network_isolated, locked, .. } = in_effect;
    let frozen = in_effect.frozen();
    let contain = |what: &str| {
        ["portcullis", "contain", &container.id, "--namespace", &container.containerd_namespace, what]
            .map(str::to_owned)
    };
    let mut steps = Vec::new();
    let mut suggest = |text: &str, reason: &str, command: &[String]| {
        steps.push(NextStep { text: text.to_owned(), reason: reason.to_owned(), command: command.to_vec() });
    };
    if let Some(reason) = reason
        && !frozen
    {
        suggest("Freeze the container: nothing in it goes on, and nothing is lost", reason, &contain("--freeze"));
    }
    let connects = findings.iter().flat_map(|signal| signal.network.iter()).flat_map(|network| &network.operations);
    let talked =
        connects.filter(|operation| matches!(operation.kind(), Kind::Connect | Kind::Send | Kind::Listen)).count();
    if talked > 0 && !network_isolated && !is_usual {
        let reason = format!("{talked} destinations or ports were used by what was found");
        suggest("Cut it off from the network", &reason, &contain("--isolate-network"));
    }
    if reason.is_some() && !locked {
        suggest(
            "Lock it: no program is executed in it any more",
            "what has got in may execute more",
            &contain("--lock"),
        );
    }
    if frozen || network_isolated || locked {
        let command = ["portcullis", "release", &container.id, "--namespace", &container.containerd_namespace];
        suggest("When it is over: release it", "measures are in effect", &command.map(str::to_owned));
        suggest("Or end it, when its evidence is saved", "measures are in effect", &contain("--kill"));
    }
    steps
}

fn judgement(signal: &Signal, is_usual: bool) -> Vec<NextStep> {
    let id = signal.id.to_string();
    let set = |state: &'static str| ["portcullis", "triage", "set", id.as_str(), "--state", state];
    let state = signal.triage.as_ref().map_or(TriageState::Open, portcullis_proto::v1::Triage::state);
    match state {
        TriageState::Expected | TriageState::Resolved => Vec::new(),
        _ if is_usual => vec![
            step("Say that it is expected", "the workload does this habitually", &set("expected")),
            step(
                "See which exceptions the policy could have for it",
                "the workload does this habitually",
                &["portcullis", "policy", "suggest"],
            ),
        ],
        TriageState::Unspecified | TriageState::Open => {
            vec![step("Say that you are looking at it", "nobody has said so yet", &set("investigating"))]
        }
        TriageState::Investigating | TriageState::Contained => {
            vec![step("Say so when it is over", "it is being looked at", &set("resolved"))]
        }
    }
}

fn step(text: &str, reason: &str, command: &[&str]) -> NextStep {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    NextStep { text: text.to_owned(), reason: reason.to_owned(), command }
}

#[cfg(test)]
mod tests {
    use portcullis_proto::v1::{Endpoint, Mode, Triage};

    use super::{super::testing::web_shell, *};

    fn container() -> Container {
        Container {
            id: "c1".into(),
            containerd_namespace: "default".into(),
            mode: Mode::Detect.into(),
            containment: Some(Containment::default()),
            ..Container::default()
        }
    }

    fn commands(steps: &[NextStep]) -> Vec<String> {
        steps.iter().map(|step| step.command.join(" ")).collect()
    }

    #[test]
    fn a_connected_shell_is_frozen_first() {
        let mut signals = web_shell();
        signals[2].remote = Some(Endpoint { address: "10.0.0.1".into(), port: 4444 });
        let steps = next_steps(&signals, Some(&signals[1]), Some(&container()), &[]);
        assert_eq!(
            commands(&steps),
            [
                "portcullis contain c1 --namespace default --freeze",
                "portcullis contain c1 --namespace default --lock",
                "portcullis mode c1 enforce --container",
                "portcullis triage set 2 --state investigating",
            ]
        );
        assert!(steps[0].reason.contains("10.0.0.1:4444"), "{steps:#?}");
        let contained = Container {
            containment: Some(Containment { frozen: Some(true), locked: true, ..Containment::default() }),
            ..container()
        };
        let steps = commands(&next_steps(&signals, None, Some(&contained), &[]));
        assert!(steps[0].starts_with("portcullis release c1") && steps[1].ends_with("--kill"), "{steps:?}");
    }

    #[test]
    fn what_is_usual_is_not_contained() {
        let mut signals = web_shell();
        signals.truncate(1);
        signals[0].novelty = Some(Novelty { habitual: true, ..Novelty::default() });
        let steps = commands(&next_steps(&signals, None, Some(&container()), &[]));
        assert_eq!(steps[1..], ["portcullis triage set 1 --state expected", "portcullis policy suggest"]);
        signals[0].triage = Some(Triage { state: TriageState::Expected.into(), ..Triage::default() });
        assert_eq!(next_steps(&signals, None, Some(&container()), &[]).len(), 1);
    }

    #[test]
    fn what_has_ended_can_not_be_contained() {
        let signals = web_shell();
        let ended = Container { ended: Some(super::super::testing::second(99)), ..container() };
        let steps = commands(&next_steps(&signals, None, Some(&ended), &[]));
        assert_eq!(steps, ["portcullis triage set 3 --state investigating"]);
    }
}
