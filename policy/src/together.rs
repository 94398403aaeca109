//! What several policies may be together.
//!
//! Whoever puts policies where the agent reads them has to know before what the agent will say: it puts all of them in force, or
//! none.

use std::{borrow::Borrow, collections::BTreeMap};

use crate::{
    catalog::Catalog,
    compile::Compiled,
    exceptions::Exception,
    identity::compile,
    source::{SHIPPED_DEFAULT, SourceError, parse},
};

/// Policies at a time. Each is tried for each new container.
pub const POLICIES_MAX: usize = 256;
/// Tools and patterns that rules name, in all policies together.
pub const RULINGS_MAX: usize = 32_768;
/// Patterns of comm, in all policies together.
pub const COMM_MAX: usize = 2048;
/// Exceptions, in all policies together.
pub const EXCEPTIONS_MAX: usize = 8192;
/// Texts that exceptions look for, in all policies together.
pub const TEXTS_MAX: usize = 32_768;

/// What is shown as the file of the policy that comes with Portcullis.
pub const SHIPPED: &str = "shipped default";

/// Why policies can't be in force together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TogetherError {
    /// Two of one name.
    #[error("{first} and {second} both hold a policy named {name:?}: give one of them another name")]
    Name {
        /// The name.
        name: String,
        /// A file.
        first: String,
        /// Another one.
        second: String,
    },
    /// Two of one id.
    #[error("the policies {first:?} and {second:?} have the same 32-bit hash: change the name of one of them")]
    Id {
        /// A policy.
        first: String,
        /// Another one.
        second: String,
    },
    /// More than the kernel's tables or a shim's patience can hold.
    #[error("there are {count} {what} in all policies together, there may be {max}: leave some out")]
    Many {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

/// The shipped default, if it is needed: where no other policy selects every container.
pub fn filling_in<'a>(
    catalog: &Catalog,
    mut policies: impl Iterator<Item = &'a Compiled>,
) -> Result<Option<Compiled>, SourceError> {
    if policies.any(|policy| policy.entry.select.is_everything()) {
        return Ok(None);
    }
    compile(catalog, &parse(SHIPPED, SHIPPED_DEFAULT)?).map(Some)
}

/// Everything that keeps these from being in force together. Each comes with its file's name.
pub fn check<C: Borrow<Compiled>>(policies: &[(&str, C)]) -> Vec<TogetherError> {
    let mut errors = Vec::new();
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut ids: BTreeMap<u32, &str> = BTreeMap::new();
    for (source, policy) in policies {
        let entry = &policy.borrow().entry;
        if let Some(first) = names.insert(&entry.name, source) {
            let (name, first, second) = (entry.name.clone(), first.to_owned(), (*source).to_owned());
            errors.push(TogetherError::Name { name, first, second });
        } else if let Some(first) = ids.insert(entry.id, &entry.name) {
            errors.push(TogetherError::Id { first: first.to_owned(), second: entry.name.clone() });
        }
    }
    let sum = |count: fn(&Compiled) -> usize| policies.iter().map(|(_, policy)| count(policy.borrow())).sum::<usize>();
    for (what, count, max) in [
        ("policies", policies.len(), POLICIES_MAX),
        ("tools and patterns that rules name", sum(|policy| policy.rulings.len()), RULINGS_MAX),
        ("patterns of comm", sum(|policy| policy.comm.len()), COMM_MAX),
        ("exceptions", sum(|policy| policy.exceptions.len()), EXCEPTIONS_MAX),
        ("texts in exceptions", sum(exception_texts), TEXTS_MAX),
    ] {
        if count > max {
            errors.push(TogetherError::Many { what, count, max });
        }
    }
    errors
}

/// What its exceptions look for.
fn exception_texts(policy: &Compiled) -> usize {
    let texts = |exception: &Exception| {
        let arguments = exception.arguments.as_ref().map_or(0, |arguments| arguments.patterns.len());
        arguments + exception.parents.len() + exception.ancestors.len()
    };
    policy.exceptions.iter().map(texts).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(name: &str, spec: &str) -> Compiled {
        let text = format!(
            "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: {name}}}\nspec: {{mode: detect, rules: \
             [{{categories: [dns], action: block}}]{spec}}}\n"
        );
        compile(&Catalog::shipped().unwrap(), &parse("p.yaml", &text).unwrap()).unwrap()
    }

    #[test]
    fn the_shipped_policy_fills_in_only_where_none_is_for_everything() {
        let catalog = Catalog::shipped().unwrap();
        let (all, some) = (compiled("all", ""), compiled("some", ", select: {pods: [x]}"));
        assert_eq!(filling_in(&catalog, [&all, &some].into_iter()), Ok(None));
        let shipped = filling_in(&catalog, [&some].into_iter()).unwrap().unwrap();
        assert_eq!(shipped.entry.name, "default");
    }

    #[test]
    fn names_and_sums_are_looked_at() {
        let (one, other) = (compiled("same", ""), compiled("same", ", select: {pods: [x]}"));
        assert_eq!(check(&[("a", &one)]), []);
        let name = TogetherError::Name { name: "same".into(), first: "a".into(), second: "b".into() };
        assert_eq!(check(&[("a", &one), ("b", &other)]), [name]);
        let patterns: Vec<String> = (0..256).map(|number| format!("c{number}")).collect();
        let rule = format!(
            ", exceptions: [], priority: 0, select: {{pods: [x]}}, rules: [{{comm: [{}], action: block}}]",
            patterns.join(", ")
        );
        let many: Vec<(String, Compiled)> = (0..=COMM_MAX / 256)
            .map(|number| {
                let text = format!(
                    "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: p{number}}}\nspec: {{mode: detect{rule}}}\n"
                );
                let policy = parse("p.yaml", &text).unwrap();
                (format!("p{number}.yaml"), compile(&Catalog::shipped().unwrap(), &policy).unwrap())
            })
            .collect();
        let many: Vec<(&str, &Compiled)> = many.iter().map(|(file, policy)| (&**file, policy)).collect();
        assert_eq!(check(&many[..COMM_MAX / 256]), []);
        let what = "patterns of comm";
        assert_eq!(check(&many), [TogetherError::Many { what, count: COMM_MAX + 256, max: COMM_MAX }]);
    }
}
