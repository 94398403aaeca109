//! Selection against a slow model that is obviously right, for generated policies and containers.
#![cfg(feature = "source")]
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fmt::Write, sync::LazyLock};

use portcullis_policy::{
    arrange::arrange,
    catalog::Catalog,
    compile::Compiled,
    glob::Glob,
    identity,
    policyset::{self, Backend, Choice, MODE_ANNOTATION, Mode, OnAttachFailure, PolicySet},
    select::{Facts, Select},
    source::{self, Action, Policy},
    strictness::may_replace,
};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::{Index, select, subsequence},
};

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| Catalog::shipped().unwrap());

/// Few and short, so that they often match and often collide.
const TEXTS: [&str; 5] = ["a", "b", "ab", "ba", "abb"];
const GLOBS: [&str; 7] = ["a", "b", "ab", "a*", "*b", "?", "*"];
const COMMS: [&str; 6] = ["nc", "ncd", "nc*", "n*", "ncd*", "d"];
const TOOLS: [&str; 4] = ["nc", "curl", "raw_socket", "nmap"];
const CATEGORIES: [&str; 3] = ["netcat", "http", "behaviour"];
const ACTIONS: [&str; 3] = ["ignore", "alert", "block"];

fn globs() -> impl Strategy<Value = Option<Vec<&'static str>>> {
    option::weighted(0.3, vec(select(&GLOBS[..]), 1..3))
}

/// A rule of each kind.
fn rule() -> impl Strategy<Value = String> {
    let tools = (subsequence(&TOOLS[..], 0..3), subsequence(&CATEGORIES[..], 0..3), select(&ACTIONS[..])).prop_map(
        |(tools, categories, action)| format!("{{tools: {tools:?}, categories: {categories:?}, action: {action}}}"),
    );
    let comm =
        (subsequence(&COMMS[..], 1..4), select(&ACTIONS[..]), any::<bool>()).prop_map(|(comm, action, except)| {
            let except = if except && action == "alert" { ", exceptArguments: [localhost]" } else { "" };
            format!("{{comm: {comm:?}, action: {action}{except}}}")
        });
    prop_oneof![tools, comm]
}

prop_compose! {
    fn spec()(
        fields in [globs(), globs(), globs(), globs()],
        annotations in option::weighted(0.4, btree_map(select(&["tier", "team"][..]), select(&GLOBS[..]), 1..3)),
        priority in -1..2,
        mode in select(&["detect", "enforce"][..]),
        loosening in prop::bool::weighted(0.2),
        failure in option::of(select(&["allow", "deny"][..])),
        backend in option::weighted(0.3, select(&["lsm", "tracepoint"][..])),
    ) -> String {
        let mut spec = format!("mode: {mode}, allowLoosening: {loosening}, priority: {priority}");
        let mut select = Vec::new();
        for (name, globs) in ["namespaces", "pods", "containers", "images"].into_iter().zip(fields) {
            select.extend(globs.map(|globs| format!("{name}: {globs:?}")));
        }
        select.extend(annotations.map(|annotations| format!("annotations: {annotations:?}")));
        write!(spec, ", select: {{{}}}", select.join(", ")).unwrap();
        for (key, value) in [("onAttachFailure", failure), ("requireBackend", backend)] {
            if let Some(value) = value {
                write!(spec, ", {key}: {value}").unwrap();
            }
        }
        spec
    }
}

fn policy(name: &str, spec: &str, rules: &[String]) -> Policy {
    let head = "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:";
    let text = format!("{head} {{name: {name}}}\nspec: {{{spec}, rules: [{}]}}\n", rules.join(", "));
    source::parse("t.yaml", &text).unwrap()
}

/// One for every container, and some others. Most have the same rules, or these and one before them: what has nothing in
/// common is seldom as strict.
fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let others = vec((spec(), option::weighted(0.6, rule())), 0..6);
    (spec_of_default(), vec(rule(), 0..4), others).prop_map(|(default, rules, others)| {
        let mut policies = vec![policy("default", &default, &rules)];
        policies.extend(others.into_iter().enumerate().map(|(number, (spec, more))| {
            policy(&format!("p{number}"), &spec, &more.into_iter().chain(rules.clone()).collect::<Vec<_>>())
        }));
        policies
    })
}

prop_compose! {
    fn spec_of_default()(
        mode in select(&["detect", "enforce"][..]),
        failure in select(&["allow", "deny"][..]),
        backend in option::weighted(0.3, select(&["lsm", "tracepoint"][..])),
    ) -> String {
        let backend = backend.map(|backend| format!(", requireBackend: {backend}")).unwrap_or_default();
        format!("mode: {mode}, onAttachFailure: {failure}{backend}")
    }
}

#[derive(Debug, Clone)]
struct Container {
    facts: [Option<&'static str>; 4],
    annotations: BTreeMap<String, String>,
}

impl Container {
    fn facts(&self) -> Facts<'_> {
        let [namespace, pod, container, image] = self.facts;
        Facts { namespace, pod, container, image, annotations: &self.annotations }
    }

    /// The same, as if its author had said nothing.
    fn silent(&self) -> Self {
        Self { annotations: BTreeMap::new(), ..self.clone() }
    }
}

prop_compose! {
    fn container()(
        facts in [option::of(select(&TEXTS[..])), option::of(select(&TEXTS[..])), option::of(select(&TEXTS[..])), option::of(select(&TEXTS[..]))],
        mut annotations in btree_map(select(&["tier", "team"][..]).prop_map(str::to_owned), select(&TEXTS[..]).prop_map(str::to_owned), 0..3),
        mode in option::weighted(0.3, select(&["detect", "enforce"][..])),
    ) -> Container {
        annotations.extend(mode.map(|mode| (MODE_ANNOTATION.to_owned(), mode.to_owned())));
        Container { facts, annotations }
    }
}

fn compiled(policies: &[Policy]) -> Vec<Compiled> {
    policies.iter().map(|policy| identity::compile(&CATALOG, policy).unwrap()).collect()
}

fn set(compiled: &[Compiled]) -> PolicySet {
    let arrangement = arrange(compiled, |_| None).unwrap();
    PolicySet {
        format: policyset::FORMAT,
        backend: Backend::Lsm,
        pins: "/sys/fs/bpf/portcullis".into(),
        inner_shim: "inner".into(),
        catalog: 1,
        default_policy: arrangement.default_policy,
        policies: arrangement.policies,
    }
}

/// What a choice comes to, without the text.
fn outcome(choice: &Choice<'_>) -> (u32, Mode) {
    (choice.policy.id, choice.mode)
}

/// Every way of reading the glob is tried.
fn slowly_matches(glob: &[char], text: &[char]) -> bool {
    match (glob.split_first(), text.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), _) => {
            (0..=text.len()).filter_map(|taken| text.get(taken..)).any(|text| slowly_matches(rest, text))
        }
        (Some((wanted, glob)), Some((found, text))) => {
            (*wanted == '?' || wanted == found) && slowly_matches(glob, text)
        }
        _ => false,
    }
}

fn model_matches(glob: &Glob, text: &str) -> bool {
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    slowly_matches(&chars(&glob.to_string()), &chars(text))
}

fn json(select: &Select) -> serde_json::Value {
    serde_json::to_value(select).unwrap()
}

fn texts(value: &serde_json::Value) -> Vec<Glob> {
    value.as_array().unwrap().iter().map(|glob| glob.as_str().unwrap().parse().unwrap()).collect()
}

fn model_selects(select: &Select, container: &Container) -> bool {
    let select = json(select);
    let fields = ["namespaces", "pods", "containers", "images"].into_iter().zip(container.facts).all(|(name, fact)| {
        select
            .get(name)
            .is_none_or(|list| fact.is_some_and(|fact| texts(list).iter().any(|glob| model_matches(glob, fact))))
    });
    let annotations = select.get("annotations").is_none_or(|wanted| {
        wanted.as_object().unwrap().iter().all(|(key, glob)| {
            let glob: Glob = glob.as_str().unwrap().parse().unwrap();
            container.annotations.get(key).is_some_and(|value| model_matches(&glob, value))
        })
    });
    fields && annotations
}

/// The documented order, one criterion after the other.
fn model_first<'a>(candidates: impl Iterator<Item = &'a Policy>) -> &'a Policy {
    let fields = |policy: &Policy| json(&policy.spec.select).as_object().unwrap().len();
    let literal = |policy: &Policy| {
        let select = json(&policy.spec.select);
        let is_literal = |value: &serde_json::Value| !value.to_string().contains(['*', '?']);
        let values = select.as_object().unwrap().iter();
        values
            .filter(|(key, value)| {
                if *key == "annotations" {
                    value.as_object().unwrap().values().all(is_literal)
                } else {
                    is_literal(value)
                }
            })
            .count()
    };
    let mut left: Vec<&Policy> = candidates.collect();
    let most = left.iter().map(|policy| fields(policy)).max().unwrap();
    left.retain(|policy| fields(policy) == most);
    let most = left.iter().map(|policy| literal(policy)).max().unwrap();
    left.retain(|policy| literal(policy) == most);
    let most = left.iter().map(|policy| policy.spec.priority).max().unwrap();
    left.retain(|policy| policy.spec.priority == most);
    left.iter().min_by_key(|policy| &policy.metadata.name).unwrap()
}

/// The policy if nobody looked at annotations.
fn model_base<'a>(policies: &'a [Policy], container: &Container) -> &'a Policy {
    let selected = policies.iter().filter(|policy| !policy.spec.select.by_annotations());
    model_first(selected.filter(|policy| model_selects(&policy.spec.select, container)))
}

fn level(action: Action) -> u8 {
    match action {
        Action::Ignore => 0,
        Action::Alert => 1,
        Action::Block => 2,
    }
}

/// What a policy does about a tool: straight from its rules.
fn tool_level(policy: &Policy, tool: &str, category: &str) -> u8 {
    let named = policy.spec.rules.iter().find(|rule| {
        rule.tools.iter().any(|id| id.value == tool) || rule.categories.iter().any(|id| id.value == category)
    });
    named.map_or(0, |rule| level(rule.action))
}

/// What it does about an executable of this name with these arguments.
fn comm_level(policy: &Policy, comm: &str, arguments: &str) -> u8 {
    let matches = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => comm.starts_with(beginning),
        None => comm == pattern,
    };
    let named = policy.spec.rules.iter().find(|rule| rule.comm.iter().any(|pattern| matches(&pattern.value)));
    named.map_or(0, |rule| {
        let excepted = rule.except_arguments.iter().any(|word| arguments.contains(&word.value));
        if excepted { 0 } else { level(rule.action) }
    })
}

fn on_attach_failure(policy: &Policy) -> OnAttachFailure {
    policy.spec.on_attach_failure.unwrap_or(match policy.spec.mode {
        Mode::Detect => OnAttachFailure::Allow,
        Mode::Enforce => OnAttachFailure::Deny,
    })
}

/// Unguarded, guarded, or not started at all.
fn standing(policy: &Policy, backend: Backend, attaches: bool) -> u8 {
    if attaches && policy.spec.require_backend.is_none_or(|required| required == backend) {
        return 1;
    }
    match on_attach_failure(policy) {
        OnAttachFailure::Allow => 0,
        OnAttachFailure::Deny => 2,
    }
}

fn at_least_as_strict(this: &Policy, other: &Policy) -> Result<(), String> {
    for tool in CATALOG.tools() {
        if tool_level(this, &tool.id, &tool.category) < tool_level(other, &tool.id, &tool.category) {
            return Err(format!("tool {}", tool.id));
        }
    }
    for comm in ["n", "nc", "ncd", "ncdu", "nx", "d", "dd", "c"] {
        for arguments in ["", "localhost"] {
            if comm_level(this, comm, arguments) < comm_level(other, comm, arguments) {
                return Err(format!("{comm} {arguments}"));
            }
        }
    }
    for backend in [Backend::Lsm, Backend::Tracepoint] {
        for attaches in [true, false] {
            if standing(this, backend, attaches) < standing(other, backend, attaches) {
                return Err(format!("on {backend}, attaches: {attaches}"));
            }
        }
    }
    Ok(())
}

proptest! {
    // A failure is told with its seed; no file is written beside the sources.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn globs_match_as_the_model_says(glob in "[ab*?\u{e9}]{1,8}", text in "[ab\u{e9}]{0,8}") {
        let glob: Glob = glob.parse().unwrap();
        prop_assert_eq!(glob.matches(&text), model_matches(&glob, &text));
    }

    #[test]
    fn some_policy_is_always_chosen_and_always_the_same(
        policies in policies(),
        container in container(),
        rotation in any::<Index>(),
        reversed in any::<bool>(),
    ) {
        let first = set(&compiled(&policies));
        let mut other = policies.clone();
        other.rotate_left(rotation.index(policies.len()));
        if reversed {
            other.reverse();
        }
        let second = set(&compiled(&other));
        prop_assert_eq!(&first, &second, "the order of files matters");
        let read = PolicySet::parse(&first.to_bytes().unwrap()).unwrap();
        let choice = first.choose(&container.facts()).unwrap();
        prop_assert_eq!(&choice, &read.choose(&container.facts()).unwrap(), "the file says something else");
        prop_assert!(!choice.policy_reason.is_empty() && !choice.mode_reason.is_empty());
    }

    #[test]
    fn without_annotations_the_model_chooses_the_same(policies in policies(), container in container()) {
        let container = container.silent();
        let set = set(&compiled(&policies));
        let choice = set.choose(&container.facts()).unwrap();
        let expected = model_base(&policies, &container);
        prop_assert_eq!((&choice.policy.name, choice.mode), (&expected.metadata.name, expected.spec.mode));
    }

    #[test]
    fn what_does_not_match_changes_nothing(policies in policies(), more in spec(), container in container()) {
        let before = set(&compiled(&policies));
        let more = policy("more", &more, &[]);
        prop_assume!(!model_selects(&more.spec.select, &container));
        let after = set(&compiled(&[policies, vec![more]].concat()));
        let (before, after) = (before.choose(&container.facts()).unwrap(), after.choose(&container.facts()).unwrap());
        prop_assert_eq!(outcome(&before), outcome(&after));
        prop_assert_eq!((before.policy_reason, before.mode_reason), (after.policy_reason, after.mode_reason));
    }

    #[test]
    fn annotations_never_loosen(policies in policies(), container in container()) {
        let set = set(&compiled(&policies));
        let base = model_base(&policies, &container);
        let choice = set.choose(&container.facts()).unwrap();
        let chosen = policies.iter().find(|policy| policy.metadata.name == choice.policy.name).unwrap();
        prop_assert!(model_selects(&chosen.spec.select, &container));
        if !base.spec.allow_loosening {
            prop_assert!(choice.mode >= base.spec.mode, "the mode");
            prop_assert_eq!(at_least_as_strict(chosen, base), Ok(()));
        }
    }

    /// Without selection in between, so that many pairs are tried whose rules differ in little.
    #[test]
    fn what_may_replace_is_as_strict(
        rules in vec(rule(), 1..3),
        more in rule(),
        specs in (spec_of_default(), spec_of_default()),
        same in prop::bool::weighted(0.9),
    ) {
        let (spec, other_spec) = if same { (&specs.0, &specs.0) } else { (&specs.0, &specs.1) };
        let other = policy("other", other_spec, &rules);
        let this = policy("this", spec, &[vec![more], rules].concat());
        let compiled = compiled(&[this.clone(), other.clone()]);
        let [ours, theirs] = compiled.as_slice() else { panic!("two were compiled") };
        if may_replace((&ours.entry, ours), (&theirs.entry, theirs)) {
            prop_assert!(this.spec.mode >= other.spec.mode);
            prop_assert_eq!(at_least_as_strict(&this, &other), Ok(()));
        }
    }

    /// So that the other properties are not true of everything: what asks for more, and alone does, gets it.
    #[test]
    fn annotations_tighten(policies in policies(), container in container()) {
        let strict = "mode: enforce, onAttachFailure: deny, select: {annotations: {strict: '*'}}";
        let rules = [
            "{comm: ['n*', 'd', 'c*'], action: block}".to_owned(),
            "{categories: [dns, netcat, http, file-transfer, scanner, sniffer, remote-shell, tunnel, diagnostics, behaviour], action: \
             block}"
                .to_owned(),
        ];
        let mut policies = policies;
        policies.retain(|policy| !policy.spec.select.by_annotations());
        let base = model_base(&policies, &container).clone();
        prop_assume!(base.spec.require_backend.is_none());
        policies.push(policy("strict", strict, &rules));
        let mut container = container.silent();
        container.annotations.insert("strict".into(), String::new());
        let set = set(&compiled(&policies));
        let choice = set.choose(&container.facts()).unwrap();
        let outranked = model_first([&base, policies.last().unwrap()].into_iter()).metadata.name != "strict";
        prop_assert_eq!(choice.policy.name == "strict", !outranked, "{}", choice.policy_reason);
    }
}
