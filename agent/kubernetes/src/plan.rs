//! What becomes of the objects: which files there are to be, and what to say of each object.
//!
//! The agent puts all policies in force, or none. So an object is taken only if it makes sense by itself and together with the
//! others; otherwise the version that was taken before stays, where there is one. Of objects that do not go together the older
//! one is taken.

use std::{cmp::Reverse, collections::BTreeMap};

use portcullis_policy::{
    catalog::Catalog,
    compile::Compiled,
    identity::compile,
    source::{SourceError, parse},
    together::{self, SHIPPED, filling_in},
    validate::validate,
    yaml::SIZE_MAX,
};

use crate::{
    directory::{Directory, Found},
    document::{explain, render},
    object::Object,
};

/// Errors of one object that are told.
const ERRORS_MAX: usize = 10;

/// What is said of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether its newest version is taken.
    pub accepted: bool,
    /// One word.
    pub reason: &'static str,
    /// For people. It says nothing of this node alone: other nodes say it as well.
    pub message: String,
    /// What that means for this node, for the log.
    pub note: &'static str,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Files of ours to write, or to remove, by the objects' names.
    pub changes: BTreeMap<String, Option<String>>,
    /// By the objects' names.
    pub verdicts: BTreeMap<String, Verdict>,
    /// Files of others that the agent does not take: it puts nothing new in force until they are right.
    pub broken: Vec<String>,
}

/// A version of an object.
struct Candidate {
    text: String,
    compiled: Compiled,
}

/// An object's versions.
struct Case<'a> {
    object: &'a Object,
    newest: Result<Candidate, (&'static str, String)>,
    /// The one that is in its file.
    former: Option<Candidate>,
}

/// Makes the plan.
pub fn plan<'a>(
    catalog: &Catalog,
    directory: &Directory,
    found: &Found,
    objects: impl Iterator<Item = &'a Object>,
) -> Result<Plan, SourceError> {
    let mut plan = Plan::default();
    let mut taken: Vec<(String, Compiled)> = Vec::new();
    for (path, text) in &found.others {
        let path = path.display().to_string();
        match text.as_deref().map(|text| parse(&path, text).and_then(|policy| compile(catalog, &policy))) {
            Some(Ok(compiled)) => taken.push((path, compiled)),
            Some(Err(error)) => plan.broken.push(error.to_string()),
            None => plan.broken.push(format!("{path}: it can't be read, is too large or no UTF-8")),
        }
    }
    let mut cases: Vec<Case<'_>> = objects.map(|object| Case::new(catalog, directory, found, object)).collect();
    // Those for every container first: whether the shipped default fills in depends on them.
    cases.sort_by_key(|case| (Reverse(case.may_be_everything()), case.object.created, case.object.name.clone()));
    for Case { object, newest, former } in cases {
        let file = directory.file(&object.name).display().to_string();
        let mut fits = |candidate: Candidate| {
            taken.push((file.clone(), candidate.compiled));
            match obstacle(catalog, &taken)? {
                None => Ok(Ok(candidate.text)),
                Some(obstacle) => {
                    taken.pop();
                    Ok(Err(obstacle))
                }
            }
        };
        let newest = match newest {
            Ok(candidate) => fits(candidate)?.map_err(|obstacle| ("Conflict", obstacle)),
            Err(error) => Err(error),
        };
        let (text, verdict) = match newest {
            Ok(text) => (Some(text), Verdict::valid()),
            Err((reason, message)) => {
                let kept = former.map(&mut fits).transpose()?.and_then(Result::ok);
                let verdict = Verdict::refused(reason, &message, kept.is_some());
                (kept, verdict)
            }
        };
        if text.as_ref() != found.ours.get(&object.name) {
            plan.changes.insert(object.name.clone(), text);
        }
        plan.verdicts.insert(object.name.clone(), verdict);
    }
    let gone = found.ours.keys().filter(|name| !plan.verdicts.contains_key(*name));
    plan.changes.extend(gone.map(|name| (name.clone(), None)).collect::<Vec<_>>());
    Ok(plan)
}

/// What keeps these from being in force together.
fn obstacle(catalog: &Catalog, taken: &[(String, Compiled)]) -> Result<Option<String>, SourceError> {
    let shipped = filling_in(catalog, taken.iter().map(|(_, policy)| policy))?;
    let mut all: Vec<(&str, &Compiled)> = taken.iter().map(|(file, policy)| (&**file, policy)).collect();
    all.extend(shipped.as_ref().map(|shipped| (SHIPPED, shipped)));
    Ok(together::check(&all).first().map(ToString::to_string))
}

impl<'a> Case<'a> {
    fn new(catalog: &Catalog, directory: &Directory, found: &Found, object: &'a Object) -> Self {
        let former = found.ours.get(&object.name);
        Self {
            object,
            newest: newest(catalog, directory, found, object),
            former: former.and_then(|text| candidate(catalog, &object.name, text).ok()),
        }
    }

    fn may_be_everything(&self) -> bool {
        let candidates = [self.newest.as_ref().ok(), self.former.as_ref()];
        candidates.into_iter().flatten().any(|candidate| candidate.compiled.entry.select.is_everything())
    }
}

fn newest(
    catalog: &Catalog,
    directory: &Directory,
    found: &Found,
    object: &Object,
) -> Result<Candidate, (&'static str, String)> {
    let file = directory.file(&object.name);
    if found.others.contains_key(&file) {
        let file = file.display();
        return Err(("Conflict", format!("{file} was not written for this object: remove that file from the nodes")));
    }
    let Some(spec) = &object.spec else {
        return Err(("Invalid", format!("spec: it has more than {SIZE_MAX} bytes: make it several policies")));
    };
    candidate(catalog, &object.name, &render(&object.name, spec)).map_err(|errors| ("Invalid", errors))
}

fn candidate(catalog: &Catalog, name: &str, text: &str) -> Result<Candidate, String> {
    let tell = |errors: Vec<SourceError>| {
        let mut lines: Vec<String> = errors.iter().take(ERRORS_MAX).map(|error| explain(text, error)).collect();
        if errors.len() > ERRORS_MAX {
            lines.push(format!("and {} more", errors.len() - ERRORS_MAX));
        }
        lines.join("; ")
    };
    let policy = validate(catalog, name, text).map_err(tell)?;
    let compiled = compile(catalog, &policy).map_err(|error| tell(vec![error]))?;
    if compiled.entry.name != name {
        return Err(format!("the file holds the policy {:?}", compiled.entry.name));
    }
    Ok(Candidate { text: text.to_owned(), compiled })
}

impl Verdict {
    fn valid() -> Self {
        let message = "it makes sense, and nodes put it in force".to_owned();
        Self { accepted: true, reason: "Valid", message, note: "" }
    }

    fn refused(reason: &'static str, message: &str, kept: bool) -> Self {
        Self {
            accepted: false,
            reason,
            message: format!("{message}. Nodes keep the last version that was taken, if they have one"),
            note: if kept { "the version before stays in force" } else { "no version of it is in force here" },
        }
    }
}

#[cfg(test)]
mod tests {
    use portcullis_policy::together::POLICIES_MAX;
    use serde_json::{Value, json};

    use super::*;
    use crate::object::tests::object;

    fn directory() -> Directory {
        Directory { policies: "/p".into(), more: Vec::new(), catalog: "/c".into() }
    }

    fn policy(name: &str, created: i64, spec: &Value) -> Object {
        Object { created, ..object(name, json!({ "spec": spec })) }
    }

    fn for_namespace(namespace: &str) -> Value {
        json!({ "mode": "detect", "select": { "namespaces": [namespace] }, "rules": [{ "categories": ["dns"], "action": "block" }] })
    }

    fn made(found: &Found, objects: &[Object]) -> Plan {
        plan(&Catalog::shipped().unwrap(), &directory(), found, objects.iter()).unwrap()
    }

    /// What is there after the plan.
    fn after(found: &Found, plan: &Plan) -> Found {
        let mut ours = found.ours.clone();
        for (name, text) in &plan.changes {
            match text {
                Some(text) => ours.insert(name.clone(), text.clone()),
                None => ours.remove(name),
            };
        }
        Found { ours, others: found.others.clone() }
    }

    #[test]
    fn objects_become_files_once_and_go_with_them() {
        let objects = [policy("a", 1, &for_namespace("a")), policy("b", 2, &for_namespace("b"))];
        let empty = Found::default();
        let first = made(&empty, &objects);
        assert_eq!(first.changes.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(first.verdicts.values().all(|verdict| verdict.accepted && verdict.reason == "Valid"));
        let there = after(&empty, &first);
        assert_eq!(made(&there, &objects).changes, BTreeMap::new(), "nothing is written twice");
        let second = made(&there, &objects[..1]);
        assert_eq!(second.changes, [("b".to_owned(), None)].into());
    }

    #[test]
    fn a_broken_version_keeps_the_one_before() {
        let good = policy("a", 1, &for_namespace("a"));
        let bad = policy("a", 1, &json!({ "mode": "detect", "rules": [{ "tools": ["telnut"], "action": "block" }] }));
        let there = after(&Found::default(), &made(&Found::default(), &[good]));
        let plan = made(&there, std::slice::from_ref(&bad));
        assert_eq!(plan.changes, BTreeMap::new());
        let verdict = &plan.verdicts["a"];
        assert_eq!((verdict.accepted, verdict.reason), (false, "Invalid"));
        assert!(verdict.message.starts_with("spec.rules[0].tools[0]: "), "{}", verdict.message);
        assert!(verdict.note.contains("stays in force"));
        let elsewhere = made(&Found::default(), &[bad]);
        assert_eq!(elsewhere.changes, BTreeMap::new());
        assert_eq!(elsewhere.verdicts["a"].message, verdict.message, "nodes say the same thing");
        assert!(elsewhere.verdicts["a"].note.contains("no version"));
    }

    #[test]
    fn a_file_that_makes_no_sense_any_more_goes() {
        let bad = policy("a", 1, &json!({ "mode": "audit", "rules": [] }));
        let mut there = Found::default();
        there.ours.insert("a".to_owned(), render("a", &json!({ "mode": "of a later version", "rules": [] })));
        assert_eq!(made(&there, &[bad]).changes, [("a".to_owned(), None)].into());
    }

    #[test]
    fn the_name_of_somebody_elses_policy_is_taken() {
        let mut there = Found::default();
        there.others.insert("/p/mine.yaml".into(), Some(render("a", &for_namespace("x"))));
        there.others.insert("/p/crd-b.yaml".into(), Some(render("other", &for_namespace("x"))));
        there.others.insert("/p/broken.yaml".into(), Some("x".into()));
        let plan = made(&there, &[policy("a", 1, &for_namespace("a")), policy("b", 1, &for_namespace("b"))]);
        assert_eq!(plan.changes, BTreeMap::new());
        assert_eq!(plan.verdicts["a"].reason, "Conflict");
        assert!(
            plan.verdicts["a"].message.contains("/p/mine.yaml and /p/crd-a.yaml"),
            "{}",
            plan.verdicts["a"].message
        );
        assert!(plan.verdicts["b"].message.starts_with("/p/crd-b.yaml was not written for this object"));
        assert!(plan.broken.len() == 1 && plan.broken[0].starts_with("/p/broken.yaml:"), "{:?}", plan.broken);
    }

    #[test]
    fn the_shipped_defaults_name_is_free_where_another_is_for_everything() {
        let everything = json!({ "mode": "enforce", "rules": [] });
        let some = policy("default", 1, &for_namespace("x"));
        let plan = made(&Found::default(), std::slice::from_ref(&some));
        assert!(plan.verdicts["default"].message.contains("shipped default"), "{}", plan.verdicts["default"].message);
        let plan = made(&Found::default(), &[some, policy("z", 9, &everything)]);
        assert!(plan.verdicts.values().all(|verdict| verdict.accepted), "{:?}", plan.verdicts);
    }

    #[test]
    fn of_too_many_the_oldest_are_taken() {
        let number = i64::try_from(POLICIES_MAX).unwrap();
        let objects: Vec<_> = (0..=number).map(|n| policy(&format!("p{n}"), number - n, &for_namespace("x"))).collect();
        let plan = made(&Found::default(), &objects);
        let refused: Vec<_> = plan.verdicts.iter().filter(|(_, verdict)| !verdict.accepted).collect();
        // The shipped default is one as well.
        assert_eq!(refused.iter().map(|(name, _)| &***name).collect::<Vec<_>>(), ["p0", "p1"]);
        assert!(refused[0].1.message.contains("there may be 256"));
        assert_eq!(plan.changes.len(), POLICIES_MAX - 1);
    }

    #[test]
    fn what_is_too_large_or_has_no_name_is_refused() {
        let large = Object { spec: None, ..policy("a", 1, &json!({})) };
        let long = policy(&"x".repeat(64), 1, &for_namespace("a"));
        let away = policy("../../x", 1, &for_namespace("a"));
        let plan = made(&Found::default(), &[large, long, away]);
        assert_eq!(plan.changes, BTreeMap::new());
        assert!(plan.verdicts.values().all(|verdict| verdict.reason == "Invalid"), "{:?}", plan.verdicts);
    }
}
