//! What `policy explain` shows: the agent's answer, or what was found offline, in one shape.

use portcullis_policy::{catalog, decide::Way, explain, policyset, source};
use portcullis_proto::v1::{self, explain_policy_response as response};
use serde::Serialize;

use crate::view::{Action, Backend, Identification, Mode, Severity, Verdict};

/// What would come of an execution.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // The API's definition documents them; so do all below.
pub struct Explanation {
    pub candidates: Vec<Candidate>,
    pub policy: String,
    pub policy_reason: String,
    pub mode: Mode,
    pub mode_reason: String,
    pub finding: Option<Finding>,
    pub excepted: Vec<Finding>,
    pub outcomes: Vec<Outcome>,
}

/// A policy that there was to choose from.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    pub name: String,
    pub chosen: bool,
    pub reason: String,
}

/// What the execution is recognised as.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub tool: String,
    pub identified_by: Vec<Identification>,
    pub action: Action,
    pub rule: usize,
    pub exception: Option<usize>,
    pub severity: Severity,
}

/// What happens on one backend.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    pub backend: Backend,
    /// `None`: no signal.
    pub verdict: Option<Verdict>,
    pub message: String,
    /// Offline, no backend is in use.
    pub in_use: bool,
}

impl From<v1::ExplainPolicyResponse> for Explanation {
    fn from(response: v1::ExplainPolicyResponse) -> Self {
        let candidate = |candidate: response::PolicyCandidate| Candidate {
            name: candidate.name,
            chosen: candidate.chosen,
            reason: candidate.reason,
        };
        Self {
            mode: response.mode().into(),
            candidates: response.candidates.into_iter().map(candidate).collect(),
            policy: response.policy,
            policy_reason: response.policy_reason,
            mode_reason: response.mode_reason,
            finding: response.finding.map(Into::into),
            excepted: response.excepted.into_iter().map(Into::into).collect(),
            outcomes: response.outcomes.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<response::Finding> for Finding {
    fn from(finding: response::Finding) -> Self {
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            identified_by: finding.identified_by().map(Into::into).collect(),
            action: finding.action().into(),
            severity: finding.severity().into(),
            tool: finding.tool,
            rule: number(finding.rule),
            exception: finding.exception.map(number),
        }
    }
}

impl From<response::Outcome> for Outcome {
    fn from(outcome: response::Outcome) -> Self {
        Self {
            backend: outcome.backend().into(),
            verdict: Some(outcome.verdict().into()).filter(|verdict| *verdict != Verdict::Unknown),
            message: outcome.message,
            in_use: outcome.in_use,
        }
    }
}

impl From<explain::Explanation> for Explanation {
    fn from(explanation: explain::Explanation) -> Self {
        let candidate = |candidate: explain::Candidate| Candidate {
            name: candidate.name,
            chosen: candidate.chosen,
            reason: candidate.reason,
        };
        Self {
            candidates: explanation.candidates.into_iter().map(candidate).collect(),
            policy: explanation.policy,
            policy_reason: explanation.policy_reason,
            mode: explanation.mode.into(),
            mode_reason: explanation.mode_reason,
            finding: explanation.finding.map(Into::into),
            excepted: explanation.excepted.into_iter().map(Into::into).collect(),
            outcomes: explanation.outcomes.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<explain::Finding> for Finding {
    fn from(finding: explain::Finding) -> Self {
        Self {
            tool: finding.tool,
            identified_by: finding.ways.into_iter().map(identification).collect(),
            action: match finding.action {
                source::Action::Ignore => Action::Ignore,
                source::Action::Alert => Action::Alert,
                source::Action::Block => Action::Block,
            },
            rule: finding.rule,
            exception: finding.exception,
            severity: match finding.severity {
                catalog::Severity::Low => Severity::Low,
                catalog::Severity::Medium => Severity::Medium,
                catalog::Severity::High => Severity::High,
                catalog::Severity::Critical => Severity::Critical,
            },
        }
    }
}

fn identification(way: Way) -> Identification {
    match way {
        Way::InvokedName => Identification::InvokedName,
        Way::ResolvedName => Identification::ResolvedName,
        Way::Fingerprint => Identification::Fingerprint,
        Way::Applet => Identification::Applet,
        Way::Loader => Identification::Loader,
        Way::Stdio => Identification::Stdio,
        Way::Place => Identification::Place,
        Way::Pattern => Identification::Pattern,
    }
}

impl From<explain::Outcome> for Outcome {
    fn from(outcome: explain::Outcome) -> Self {
        Self {
            backend: match outcome.backend {
                policyset::Backend::Lsm => Backend::Lsm,
                policyset::Backend::Tracepoint => Backend::Tracepoint,
            },
            verdict: outcome.verdict.map(|verdict| match verdict {
                explain::Verdict::Detected => Verdict::Detected,
                explain::Verdict::WouldBlock => Verdict::WouldBlock,
                explain::Verdict::Blocked => Verdict::Blocked,
                explain::Verdict::Killed => Verdict::Killed,
            }),
            message: outcome.message,
            in_use: false,
        }
    }
}
