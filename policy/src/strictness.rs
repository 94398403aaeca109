//! Whether one policy is at least as strict as another.
//!
//! Annotations are written by the workload's author. If they select a policy, it may be taken in another's place only if
//! nothing is thereby allowed that the other one reports or stops.

use std::collections::BTreeSet;

use crate::{
    comm::Pattern,
    compile::{Compiled, Decision, Ruling},
    exceptions::Exception,
    policyset::{Mode, OnAttachFailure, PolicyEntry},
    source::{Action, Place},
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

/// What is done about each tool and each executable. Where both are named the stricter action holds, so it is enough to
/// compare the ones with the ones and the others with the others.
fn rules(this: &Compiled, other: &Compiled) -> bool {
    // What is folded is told less of.
    this.repeat.folds_no_more_than(other.repeat) && tools(this, other) && patterns(this, other)
}

fn tools(this: &Compiled, other: &Compiled) -> bool {
    let mut named = other.rulings.iter().filter(|(id, _)| !other.comm.contains_key(id));
    named.all(|(id, theirs)| ruling((this, this.rulings.get(id)), (other, theirs)))
}

/// The patterns of both stand for all executables: of those that cover one executable, the longest of each policy are what
/// decides, and the longer of these two is covered by the other.
fn patterns(this: &Compiled, other: &Compiled) -> bool {
    let mut both = this.comm.values().chain(other.comm.values());
    both.all(|pattern| {
        longest(other, pattern).is_none_or(|theirs| ruling((this, longest(this, pattern)), (other, theirs)))
    })
}

/// What the kernel finds for what this pattern stands for; `None` if nothing is done.
fn longest<'a>(policy: &'a Compiled, pattern: &Pattern) -> Option<&'a Ruling> {
    let covering = policy.comm.iter().filter(|(_, known)| known.covers(pattern));
    let (id, _) = covering.max_by_key(|(_, known)| (known.name().len(), known.is_whole()))?;
    policy.rulings.get(id)
}

/// What is done about one of them, wherever its file is and whoever the user.
fn ruling(this: (&Compiled, Option<&Ruling>), other: (&Compiled, &Ruling)) -> bool {
    let (policy, ours) = this;
    let (others_policy, theirs) = other;
    let users = ours.iter().copied().chain([theirs]).flat_map(|ruling| &ruling.decisions).map(|one| one.users);
    // Between two of these numbers nothing changes.
    let uids: BTreeSet<u32> = users.flat_map(|users| [users.first, users.last.saturating_add(1)]).chain([0]).collect();
    let exceptions_too = ours.is_none_or(|ours| {
        let mut ours = exceptions(policy, ours);
        ours.all(|one| exceptions(others_policy, theirs).any(|another| one.has_the_conditions_of(another)))
    });
    exceptions_too
        && places().all(|places| {
            uids.iter().all(|uid| {
                let Some(wanted) = theirs.decision(&places, *uid) else { return true };
                wanted.action == Action::Ignore
                    || ours.and_then(|ours| ours.decision(&places, *uid)).is_some_and(|ours| {
                        ours.action >= wanted.action && !omits_more(policy, ours, others_policy, wanted)
                    })
            })
        })
}

fn exceptions<'a>(policy: &'a Compiled, ruling: &Ruling) -> impl Iterator<Item = &'a Exception> {
    let bits = ruling.exceptions;
    policy
        .exceptions
        .iter()
        .enumerate()
        .filter(move |(number, _)| bits >> number & 1 == 1)
        .map(|(_, exception)| exception)
}

/// Every set of places.
fn places() -> impl Iterator<Item = Vec<Place>> {
    let all = [Place::WritableDirectory, Place::UpperLayer, Place::Memfd, Place::Deleted];
    (0..1 << all.len()).map(move |bits: u32| {
        all.into_iter().enumerate().filter(|(number, _)| bits >> number & 1 == 1).map(|(_, place)| place).collect()
    })
}

/// Whether the agent leaves out what it does not by the other's rule.
fn omits_more(this: &Compiled, ours: &Decision, other: &Compiled, theirs: &Decision) -> bool {
    let omissions = |policy: &Compiled, decision: &Decision| {
        let rule = usize::try_from(decision.rule).ok().and_then(|rule| policy.rules.get(rule));
        rule.and_then(|rule| rule.omissions.clone())
    };
    omissions(this, ours).is_some_and(|ours| {
        omissions(other, theirs)
            .is_none_or(|theirs| (&ours.arguments, ours.repeats) != (&theirs.arguments, theirs.repeats))
    })
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
    fn omissions_loosen_unless_the_other_has_them_too() {
        let rule = |exceptions: &str| format!("{{mode: detect, rules: [{{comm: [nc], action: alert{exceptions}}}]}}");
        let (plain, excepts) = (rule(""), rule(", exceptArguments: [localhost]"));
        assert!(replaces(&plain, &excepts) && replaces(&excepts, &excepts));
        assert!(!replaces(&excepts, &plain) && !replaces(&rule(", exceptArguments: [x]"), &excepts));
        assert!(!replaces(&rule(", exceptRepeats: 1h"), &plain));
    }

    #[test]
    fn folding_more_is_looser() {
        let repeat = |repeat: &str| BASE.replace("{mode", &format!("{{repeat: {repeat}, mode"));
        for stricter in
            ["{window: 0s, keys: []}", "{window: 10m}", "{}", "{window: 1h, keys: [exe, cwd, user, parent, arguments]}"]
        {
            assert!(replaces(&repeat(stricter), BASE), "{stricter}");
        }
        for looser in ["{window: 2h}", "{window: 10m, keys: [arguments]}"] {
            assert!(!replaces(&repeat(looser), BASE), "{looser}");
        }
        assert!(!replaces(BASE, &repeat("{window: 0s}")));
    }

    #[test]
    fn conditions_are_compared_in_every_case() {
        let rules = |rules: &str| format!("{{mode: detect, rules: [{rules}, {{tools: [nc], action: alert}}]}}");
        let other = rules("{tools: [nc], places: [memfd, upper_layer], users: [5-9], action: block}");
        for stricter in [
            "{tools: [nc], action: block}",
            "{tools: [nc], users: [0-20], action: block}",
            "{tools: [nc], places: [memfd], users: [5-9], action: block}, {tools: [nc], places: [upper_layer], users: [5-7, 8, 9], \
             action: block}",
        ] {
            assert!(replaces(&rules(stricter), &other), "{stricter}");
        }
        for looser in [
            "{tools: [nc], users: [5-8], action: block}",
            "{tools: [nc], places: [memfd], users: [5-9], action: block}",
            "{tools: [nc], places: [deleted], action: ignore}, {tools: [nc], action: block}",
        ] {
            assert!(!replaces(&rules(looser), &other), "{looser}");
        }
    }

    #[test]
    fn exceptions_loosen_unless_the_other_has_them_too() {
        let policy = |exceptions: &str| {
            format!("{{mode: detect, rules: [{{tools: [nc], action: alert}}], exceptions: [{exceptions}]}}")
        };
        let (plain, user) = (policy(""), policy("{tools: [nc], users: [5]}"));
        assert!(replaces(&plain, &user) && replaces(&user, &user) && !replaces(&user, &plain));
        assert!(replaces(&policy("{tools: [curl], users: [5]}"), &plain), "it is for nothing that is looked at");
        assert!(replaces(&user, &policy("{tools: [curl], users: [0]}, {users: [5]}")));
        assert!(!replaces(&policy("{users: [5, 6]}"), &user));
    }
}
