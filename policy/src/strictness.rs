//! Whether one policy is at least as strict as another.
//!
//! Annotations are written by the workload's author. If they select a policy, it may be taken in another's place only if
//! nothing is thereby allowed that the other one reports or stops.

use crate::{
    comm::Pattern,
    compile::{CommRule, Compiled},
    policyset::{Mode, OnAttachFailure, PolicyEntry},
    source::Action,
};

/// Whether what annotations select may be taken instead of `other`. The entries are as they are in force, with the modes that
/// an operator has set.
pub fn may_replace(this: (&PolicyEntry, &Compiled), other: (&PolicyEntry, &Compiled)) -> bool {
    other.0.allow_loosening || (terms(this.0, other.0) && rules(this.1, other.1))
}

/// The mode, and what becomes of a container whose guard can't be put in place.
fn terms(this: &PolicyEntry, other: &PolicyEntry) -> bool {
    // It could be asked for, and then be left by a second annotation.
    let loosens = this.allow_loosening;
    // Where another backend is needed than the node has, `allow` means no guard at all.
    let lets_go = this.on_attach_failure == OnAttachFailure::Allow
        && (other.on_attach_failure == OnAttachFailure::Deny
            || (this.require_backend.is_some() && this.require_backend != other.require_backend));
    let forgets_backend = other.require_backend.is_some() && this.require_backend != other.require_backend;
    mode(this.mode) >= mode(other.mode) && !loosens && !lets_go && !forgets_backend
}

fn mode(mode: Mode) -> u8 {
    match mode {
        Mode::Detect => 0,
        Mode::Enforce => 1,
    }
}

fn level(action: Action) -> u8 {
    match action {
        Action::Ignore => 0,
        Action::Alert => 1,
        Action::Block => 2,
    }
}

/// What is done about each tool and each executable. Where both are named the stricter action holds, so it is enough to
/// compare the ones with the ones and the others with the others.
fn rules(this: &Compiled, other: &Compiled) -> bool {
    tools(this, other) && patterns(this, other)
}

fn tools(this: &Compiled, other: &Compiled) -> bool {
    let is_pattern = |id: &u32| other.comm.contains_key(&(other.entry.id, *id));
    let mut named = other.rules.iter().filter(|((_, tool), _)| !is_pattern(tool));
    named.all(|((_, tool), action)| level(action_of(this, *tool)) >= level(*action))
}

fn action_of(policy: &Compiled, id: u32) -> Action {
    policy.rules.iter().find(|((_, known), _)| *known == id).map_or(Action::Ignore, |(_, action)| *action)
}

/// The patterns of both stand for all executables: of those that cover one executable, the longest of each policy are what
/// decides, and the longer of these two is covered by the other.
fn patterns(this: &Compiled, other: &Compiled) -> bool {
    let mut both = this.comm.values().chain(other.comm.values());
    both.all(|CommRule { pattern, .. }| {
        let Some(theirs) = longest(other, pattern) else { return true };
        let wanted = level(action_of(other, theirs.pattern.kernel_id()));
        if wanted == level(Action::Ignore) {
            return true;
        }
        longest(this, pattern).is_some_and(|ours| {
            let excepted = ours.exceptions.as_ref().is_some_and(|exceptions| {
                let theirs = theirs.exceptions.as_ref();
                theirs.is_none_or(|theirs| {
                    (&exceptions.arguments, exceptions.repeats) != (&theirs.arguments, theirs.repeats)
                })
            });
            level(action_of(this, ours.pattern.kernel_id())) >= wanted && !excepted
        })
    })
}

/// The rule by which the kernel judges what this pattern stands for.
fn longest<'a>(policy: &'a Compiled, pattern: &Pattern) -> Option<&'a CommRule> {
    let covering = policy.comm.values().filter(|rule| rule.pattern.covers(pattern));
    covering.max_by_key(|rule| (rule.pattern.name().len(), rule.pattern.is_whole()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::Catalog, identity, source};

    fn policy(spec: &str) -> Compiled {
        let head = "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {name: t}\nspec: ";
        let policy = source::parse("t.yaml", &format!("{head}{spec}")).unwrap();
        identity::compile(&Catalog::shipped().unwrap(), &policy).unwrap()
    }

    fn replaces(this: &str, other: &str) -> bool {
        let (this, other) = (policy(this), policy(other));
        may_replace((&this.entry, &this), (&other.entry, &other))
    }

    const BASE: &str = "{mode: detect, rules: [{categories: [netcat], action: block}, {tools: [curl], action: alert}]}";

    #[test]
    fn what_is_as_strict_or_stricter_may() {
        for this in [
            BASE,
            "{mode: enforce, rules: [{categories: [netcat, http], action: block}]}",
            "{mode: detect, onAttachFailure: deny, requireBackend: lsm, rules: [{categories: [netcat, http], action: block}]}",
            "{mode: detect, rules: [{categories: [netcat, http, dns], action: block}, {comm: [x], action: alert}]}",
        ] {
            assert!(replaces(this, BASE), "{this}");
        }
    }

    #[test]
    fn what_is_looser_in_anything_may_not() {
        for this in [
            "{mode: enforce, rules: []}",
            "{mode: enforce, rules: [{categories: [netcat], action: block}]}",
            "{mode: enforce, rules: [{tools: [nc], action: alert}, {categories: [netcat, http], action: block}]}",
            "{mode: enforce, allowLoosening: true, rules: [{categories: [netcat, http], action: block}]}",
            "{mode: enforce, onAttachFailure: allow, requireBackend: lsm, rules: [{categories: [netcat, http], action: block}]}",
            "{mode: enforce, rules: [{comm: [nc, ncat, socat, curl], action: block}]}",
        ] {
            assert!(!replaces(this, BASE), "{this}");
        }
        let strict = BASE.replace("detect", "enforce");
        assert!(!replaces(BASE, &strict), "the mode");
        assert!(!replaces(&strict.replace("{mode", "{onAttachFailure: allow, mode"), &strict));
        let lsm = BASE.replace("{mode", "{requireBackend: lsm, mode");
        assert!(!replaces(BASE, &lsm) && replaces(&lsm, &lsm));
        assert!(!replaces(&lsm.replace("lsm", "tracepoint"), &lsm));
        let loose = BASE.replace("{mode", "{allowLoosening: true, mode");
        assert!(replaces("{mode: detect, rules: []}", &loose), "the other policy allows it");
    }

    #[test]
    fn patterns_are_compared_by_what_they_cover() {
        let comm = |rules: &str| format!("{{mode: detect, rules: [{rules}]}}");
        let block = |names: &str| format!("{{comm: [{names}], action: block}}");
        let other = comm(&format!("{{comm: [ncdu], action: ignore}}, {}", block("'nc*', curl")));
        for stricter in ["'n*', 'c*'", "'nc*', curl", "'nc*', curl, ncdu"] {
            assert!(replaces(&comm(&block(stricter)), &other), "{stricter}");
        }
        let hole = comm(&format!("{{comm: [ncat], action: alert}}, {}", block("'nc*', curl")));
        for looser in [comm(&block("nc, curl")), comm(&block("'nc*'")), comm(&block("'nca*', curl")), hole] {
            assert!(!replaces(&looser, &other), "{looser}");
        }
    }

    #[test]
    fn exceptions_loosen_unless_the_other_has_them_too() {
        let rule = |exceptions: &str| format!("{{mode: detect, rules: [{{comm: [nc], action: alert{exceptions}}}]}}");
        let (plain, excepts) = (rule(""), rule(", exceptArguments: [localhost]"));
        assert!(replaces(&plain, &excepts) && replaces(&excepts, &excepts));
        assert!(!replaces(&excepts, &plain) && !replaces(&rule(", exceptArguments: [x]"), &excepts));
        assert!(!replaces(&rule(", exceptRepeats: 1h"), &plain));
    }
}
