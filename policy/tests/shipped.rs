//! The policies in config/policies do what their comments say.
#![cfg(feature = "source")]
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path};

use portcullis_policy::{
    arrange::arrange,
    catalog::Catalog,
    compile::Compiled,
    identity,
    policyset::{Mode, OnAttachFailure},
    source::{self, Action},
};

fn shipped(name: &str) -> Compiled {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/policies").join(format!("{name}.yaml"));
    let policy = source::parse(name, &fs::read_to_string(path).unwrap()).unwrap();
    let compiled = identity::compile(&Catalog::shipped().unwrap(), &policy).unwrap();
    assert_eq!(compiled.entry.name, name, "the file is called like the policy");
    compiled
}

/// What is done about the tools of each category; about a behaviour by its own name.
fn actions(policy: &Compiled) -> BTreeMap<String, Action> {
    let catalog = Catalog::shipped().unwrap();
    let mut actions: BTreeMap<String, Action> = BTreeMap::new();
    for tool in catalog.tools() {
        let found = policy.rulings.get(&tool.kernel_id()).and_then(|ruling| ruling.decision(&[], 0));
        let action = found.map_or(Action::Ignore, |decision| decision.action);
        let what = if tool.category == "behaviour" { &tool.id } else { &tool.category };
        let before = actions.insert(what.clone(), action);
        assert!(before.is_none_or(|before| before == action), "{}: one category, two actions", tool.id);
    }
    actions
}

fn of(actions: &BTreeMap<String, Action>, wanted: Action) -> Vec<&str> {
    actions.iter().filter(|(_, action)| **action == wanted).map(|(what, _)| what.as_str()).collect()
}

#[test]
fn every_shipped_policy_is_tested() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/policies");
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    // The first and the last are tested where they are compiled.
    assert_eq!(names, ["default.yaml", "enforce-offensive.yaml", "lockdown.yaml", "upstream-exact.yaml"]);
}

#[test]
fn enforce_offensive_blocks_what_attacks_and_reports_the_rest() {
    let policy = shipped("enforce-offensive");
    assert_eq!((policy.entry.mode, policy.entry.on_attach_failure), (Mode::Enforce, OnAttachFailure::Deny));
    assert!(policy.entry.select.is_everything() && !policy.entry.allow_loosening);
    let actions = actions(&policy);
    assert_eq!(
        of(&actions, Action::Block),
        ["netcat", "reverse_shell", "scanner", "shell_socket", "sniffer", "tunnel"]
    );
    assert_eq!(
        of(&actions, Action::Ignore),
        ["cgroup_escape", "dropped_executable", "guard_tampering", "interpreter_socket", "locked"]
    );
}

#[test]
fn lockdown_blocks_every_category() {
    let policy = shipped("lockdown");
    assert_eq!((policy.entry.mode, policy.entry.on_attach_failure), (Mode::Enforce, OnAttachFailure::Deny));
    let actions = actions(&policy);
    assert_eq!(of(&actions, Action::Block).len(), actions.len());
}

#[test]
fn anybody_may_ask_for_lockdown() {
    for base in ["default", "enforce-offensive"] {
        let arrangement = arrange(&[shipped(base), shipped("lockdown")], |_| None).unwrap();
        let lockdown = arrangement.policies.first().unwrap();
        assert_eq!(lockdown.may_replace, [arrangement.default_policy.id], "{base}");
    }
}
