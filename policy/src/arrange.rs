//! Several policies become what shims choose from.

use crate::{
    compile::Compiled,
    policyset::{Mode, PolicyEntry},
    strictness::may_replace,
};

/// The policies of a policy set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    /// The policy of a container that no other selects.
    pub default_policy: PolicyEntry,
    /// The others, in the order in which they are tried.
    pub policies: Vec<PolicyEntry>,
}

/// Puts policies in order, whatever the order they come in, with the modes that an operator has set instead of their own.
/// `None` if none of them selects every container. Where several do, the first of them by rank is the default, and the others
/// are left out: they would never be chosen.
pub fn arrange(policies: &[Compiled], operators_mode: impl Fn(&str) -> Option<Mode>) -> Option<Arrangement> {
    let mut ordered: Vec<(PolicyEntry, &Compiled)> = policies
        .iter()
        .map(|compiled| {
            let mut entry = compiled.entry.clone();
            if let Some(mode) = operators_mode(&entry.name) {
                (entry.mode, entry.mode_by_operator) = (mode, true);
            }
            (entry, compiled)
        })
        .collect();
    ordered.sort_by(|(a, _), (b, _)| a.rank().cmp(&b.rank()));
    // Those that select every container are the least specific.
    let default = ordered.iter().position(|(entry, _)| entry.select.is_everything())?;
    ordered.truncate(default + 1);
    let replaced = |this: &(PolicyEntry, &Compiled)| -> Vec<u32> {
        let others = ordered.iter().filter(|(other, _)| !other.select.by_annotations());
        others
            .filter(|(other, compiled)| may_replace((&this.0, this.1), (other, compiled)))
            .map(|(other, _)| other.id)
            .collect()
    };
    let mut entries: Vec<PolicyEntry> = ordered
        .iter()
        .map(|this| {
            let may_replace = if this.0.select.by_annotations() { replaced(this) } else { Vec::new() };
            PolicyEntry { may_replace, ..this.0.clone() }
        })
        .collect();
    let default_policy = entries.pop()?;
    Some(Arrangement { default_policy, policies: entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::Catalog, identity, source};

    fn policies(specs: &[(&str, &str)]) -> Vec<Compiled> {
        let catalog = Catalog::shipped().unwrap();
        let compiled = specs.iter().map(|(name, spec)| {
            let head = "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:";
            let text =
                format!("{head} {{name: {name}}}\nspec: {{{spec}, rules: [{{categories: [dns], action: block}}]}}");
            identity::compile(&catalog, &source::parse("t.yaml", &text).unwrap()).unwrap()
        });
        compiled.collect()
    }

    fn names(arrangement: &Arrangement) -> Vec<&str> {
        let policies = arrangement.policies.iter().chain([&arrangement.default_policy]);
        policies.map(|policy| policy.name.as_str()).collect()
    }

    #[test]
    fn the_most_specific_comes_first_and_the_default_last() {
        let mut policies = policies(&[
            ("all", "mode: detect"),
            ("other-all", "mode: detect, priority: -1"),
            ("shop", "mode: detect, select: {namespaces: [shop]}"),
            ("shops", "mode: detect, select: {namespaces: ['shop*']}"),
            ("urgent", "mode: detect, priority: 1, select: {namespaces: ['shop*']}"),
            ("web", "mode: detect, select: {namespaces: ['shop*'], pods: ['web*']}"),
        ]);
        for _ in 0..policies.len() {
            policies.rotate_left(1);
            let arrangement = arrange(&policies, |_| None).unwrap();
            assert_eq!(names(&arrangement), ["web", "shop", "urgent", "shops", "all"]);
        }
        policies.retain(|policy| !policy.entry.select.is_everything());
        assert_eq!(arrange(&policies, |_| None), None);
    }

    #[test]
    fn what_may_be_replaced_depends_on_the_modes_in_force() {
        let policies = policies(&[
            ("all", "mode: detect"),
            ("asked", "mode: detect, onAttachFailure: deny, select: {annotations: {tier: web}}"),
        ]);
        let replaces = |operators_mode: fn(&str) -> Option<Mode>| {
            let arrangement = arrange(&policies, operators_mode).unwrap();
            let asked = arrangement.policies.first().unwrap().clone();
            (asked.may_replace == [arrangement.default_policy.id], asked.mode_by_operator)
        };
        assert_eq!(replaces(|_| None), (true, false));
        assert_eq!(replaces(|name| (name == "all").then_some(Mode::Enforce)), (false, false));
        assert_eq!(replaces(|_| Some(Mode::Enforce)), (true, true));
    }
}
