//! What would come of an execution: the question and the answer.

use std::collections::BTreeMap;

use portcullis_policy::{
    decide::{Execution, Way, basename},
    explain::{Explanation, Finding, Verdict},
    select::Facts,
    source::{Action, Place},
};
use portcullis_proto::v1::{
    self, ExplainPolicyRequest, ExplainPolicyResponse, explain_policy_response::PolicyCandidate,
};
use tonic::Status;

use super::status::cut;
use crate::{enforcement::Enforcement, signal};

/// Looks at the policies in force.
pub fn answer(enforcement: &Enforcement, request: &ExplainPolicyRequest) -> Result<Explanation, Status> {
    if request.argv.is_empty() {
        return Err(Status::invalid_argument("argv is empty: it begins with the command's name"));
    }
    let annotations: BTreeMap<String, String> = request.annotations.clone().into_iter().collect();
    let facts = Facts {
        namespace: known(&request.namespace),
        pod: known(&request.pod),
        container: known(&request.container),
        image: known(&request.image),
        annotations: &annotations,
    };
    let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
    let command = Execution::of_command(&argv);
    let execution = Execution {
        resolved: known(&request.exe).map_or(command.resolved, |exe| basename(exe.as_bytes())),
        uid: request.uid,
        images: request.ancestors.iter().map(String::as_bytes).collect(),
        places: request.places().filter_map(place).collect(),
        stdio_is_socket: request.stdio_is_socket,
        image: facts.image,
        ..command
    };
    enforcement.explain(&facts, &execution).map_err(|error| Status::invalid_argument(cut(error.to_string())))
}

/// What is not known is not told.
fn known(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A place that rules know.
fn place(place: v1::Place) -> Option<Place> {
    match place {
        v1::Place::WritableDirectory => Some(Place::WritableDirectory),
        v1::Place::UpperLayer => Some(Place::UpperLayer),
        v1::Place::Memfd => Some(Place::Memfd),
        v1::Place::Deleted => Some(Place::Deleted),
        v1::Place::TemporaryDirectory | v1::Place::Unspecified => None,
    }
}

/// The answer; `in_use` is this node's backend.
pub fn message(explanation: Explanation, in_use: v1::Backend) -> ExplainPolicyResponse {
    let candidates = explanation.candidates.into_iter().map(|candidate| PolicyCandidate {
        name: candidate.name,
        chosen: candidate.chosen,
        reason: candidate.reason,
    });
    let outcomes = explanation.outcomes.into_iter().map(|outcome| {
        let backend = signal::backend(Some(outcome.backend));
        v1::explain_policy_response::Outcome {
            backend: backend.into(),
            verdict: outcome.verdict.map_or(v1::Verdict::Unspecified, verdict).into(),
            message: outcome.message,
            in_use: backend == in_use,
        }
    });
    ExplainPolicyResponse {
        candidates: candidates.collect(),
        policy: explanation.policy,
        policy_reason: explanation.policy_reason,
        mode: signal::mode(explanation.mode).into(),
        mode_reason: explanation.mode_reason,
        finding: explanation.finding.map(finding_message),
        excepted: explanation.excepted.into_iter().map(finding_message).collect(),
        outcomes: outcomes.collect(),
    }
}

fn verdict(verdict: Verdict) -> v1::Verdict {
    match verdict {
        Verdict::Detected => v1::Verdict::Detected,
        Verdict::WouldBlock => v1::Verdict::WouldBlock,
        Verdict::Blocked => v1::Verdict::Blocked,
        Verdict::Killed => v1::Verdict::Killed,
    }
}

fn finding_message(finding: Finding) -> v1::explain_policy_response::Finding {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let identification = |way| match way {
        Way::InvokedName => v1::Identification::InvokedName,
        Way::ResolvedName => v1::Identification::ResolvedName,
        Way::Fingerprint => v1::Identification::Fingerprint,
        Way::Applet => v1::Identification::Applet,
        Way::Loader => v1::Identification::Loader,
        Way::Stdio => v1::Identification::Stdio,
        Way::Place => v1::Identification::Place,
        Way::Pattern => v1::Identification::Pattern,
    };
    let action = match finding.action {
        Action::Ignore => v1::Action::Ignore,
        Action::Alert => v1::Action::Alert,
        Action::Block => v1::Action::Block,
    };
    v1::explain_policy_response::Finding {
        tool: finding.tool,
        identified_by: finding.ways.into_iter().map(|way| identification(way).into()).collect(),
        action: action.into(),
        rule: number(finding.rule),
        exception: finding.exception.map(number),
        severity: signal::severity(finding.severity).into(),
    }
}
