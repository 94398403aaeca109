//! What a tool's or pattern's number in an event means: the catalogue's entry, what the event's policy says of it, and what it
//! excepts.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use portcullis_bpf::abi::{Event, identified_by};
use portcullis_policy::{
    catalog::{Catalog, Kind, Severity, Tool},
    comm::{PATTERN_SEVERITY, Pattern},
    compile::{Compiled, RuleFacts},
    omissions::Omissions,
    repeat::Repeat,
};

/// The category of what only a policy's pattern knows.
pub const PATTERN: &str = "pattern";
/// Its technique, as published for network utilities in containers: ingress tool transfer.
const PATTERN_TECHNIQUE: &str = "T1105";

/// What a policy says about what it finds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Meaning {
    /// The policy's name.
    pub name: String,
    /// Its rules, by their numbers.
    pub rules: Vec<RuleFacts>,
    /// Kernel id to pattern of comm.
    pub comm: BTreeMap<u32, Pattern>,
    /// What is folded.
    pub repeat: Repeat,
}

impl From<&Compiled> for Meaning {
    fn from(policy: &Compiled) -> Self {
        Self {
            name: policy.entry.name.clone(),
            rules: policy.rules.clone(),
            comm: policy.comm.clone(),
            repeat: policy.repeat,
        }
    }
}

/// A catalogue, and the policies that were compiled with it.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The tools.
    pub catalog: Catalog,
    /// The policies by their ids in the kernel.
    pub policies: BTreeMap<u32, Arc<Meaning>>,
    /// Those that were in force before: events of theirs may be under way, and a container that could not be moved makes more.
    former: BTreeMap<u32, Arc<Meaning>>,
}

/// How many policies that are no longer in force are kept.
const FORMER_MAX: usize = 1024;

/// What is known now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tools(Arc<RwLock<Known>>);

impl Tools {
    /// The first that is known.
    pub fn new(known: Known) -> Self {
        Self(Arc::new(RwLock::new(known)))
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The catalogue.
    pub fn catalog(&self) -> Catalog {
        self.read().catalog.clone()
    }

    /// Catalogue and policies are others from now on. Returns what was known before.
    pub fn replace(&self, catalog: Catalog, policies: BTreeMap<u32, Arc<Meaning>>) -> Known {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut former = known.policies.clone();
        if former.len() + known.former.len() <= FORMER_MAX {
            former.extend(known.former.iter().map(|(id, meaning)| (*id, Arc::clone(meaning))));
        }
        mem::replace(&mut *known, Known { catalog, policies, former })
    }

    /// What was known before is known again.
    pub fn restore(&self, known: Known) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// An event's tool and its severity; `None` when the event was made by a catalogue or policy that is not known.
    pub fn of(&self, event: &Event) -> Option<(Tool, Severity)> {
        let known = self.read();
        if event.identified_by & identified_by::PATTERN != 0 {
            return known.by_pattern(event);
        }
        let tool = known.catalog.tool(event.tool)?;
        let severity = known.rule(event).and_then(|rule| rule.severity);
        Some((tool.clone(), severity.unwrap_or(tool.severity)))
    }

    /// The name of the policy under which an event was made.
    pub fn policy_name(&self, event: &Event) -> Option<String> {
        self.read().policy(event.policy).map(|policy| policy.name.clone())
    }

    /// The id of an event's tool. As [`Tools::of`], for floods.
    pub fn tool_id(&self, event: &Event) -> Option<String> {
        let known = self.read();
        if event.identified_by & identified_by::PATTERN != 0 {
            return known.by_pattern(event).map(|(tool, _)| tool.id);
        }
        known.catalog.tool(event.tool).map(|tool| tool.id.clone())
    }

    /// What an event's policy says of repeats.
    pub fn repeat(&self, event: &Event) -> Repeat {
        self.read().policy(event.policy).map_or_else(Repeat::default, |policy| policy.repeat)
    }

    /// What the rule omits by which an event was made.
    pub fn omissions(&self, event: &Event) -> Option<Arc<Omissions>> {
        self.read().rule(event)?.omissions.clone()
    }
}

impl Known {
    /// Catalogue and policies, and none before them.
    pub fn new(catalog: Catalog, policies: BTreeMap<u32, Arc<Meaning>>) -> Self {
        Self { catalog, policies, former: BTreeMap::new() }
    }

    fn policy(&self, id: u32) -> Option<&Meaning> {
        self.policies.get(&id).or_else(|| self.former.get(&id)).map(Arc::as_ref)
    }

    fn rule(&self, event: &Event) -> Option<&RuleFacts> {
        self.policy(event.policy)?.rules.get(usize::try_from(event.rule).ok()?)
    }

    /// A tool of the catalogue if it has one of that name, else one that is called by the pattern.
    fn by_pattern(&self, event: &Event) -> Option<(Tool, Severity)> {
        let pattern = self.policy(event.policy)?.comm.get(&event.tool)?;
        let meaning = str::from_utf8(&event.invoked).ok().and_then(|name| self.catalog.meaning_of_name(name));
        let tool = meaning
            .filter(|meaning| meaning.kind == Kind::Tool)
            .and_then(|meaning| self.catalog.tools().iter().find(|tool| tool.id == meaning.id));
        let tool = tool.cloned().unwrap_or_else(|| Tool {
            id: pattern.to_string(),
            category: PATTERN.to_owned(),
            severity: PATTERN_SEVERITY,
            techniques: vec![PATTERN_TECHNIQUE.to_owned()],
            names: Vec::new(),
        });
        let severity = self.rule(event).and_then(|rule| rule.severity).unwrap_or(tool.severity);
        Some((tool, severity))
    }
}

#[cfg(test)]
mod tests {
    use portcullis_policy::{compile::compile, source};

    use super::*;
    use crate::testing;

    #[test]
    fn both_are_replaced_and_can_be_put_back() {
        let catalog = |text| Catalog::shipped().unwrap().with("c.toml", text).unwrap();
        let id = |catalog: &Catalog, id: &str| catalog.tools().iter().find(|tool| tool.id == id).unwrap().kernel_id();
        let larger = catalog("[category.dns.tools]\nprobe = {}");
        let (probe, nc) = (id(&larger, "probe"), id(&larger, "nc"));
        // The policy of the event, and its first rule.
        let lower = |severity| {
            let rules = vec![RuleFacts { severity: Some(severity), omissions: None }];
            BTreeMap::from([(1, Arc::new(Meaning { rules, ..Meaning::default() }))])
        };
        let tools = Tools::new(Known::new(catalog(""), lower(Severity::Low)));
        let reader = tools.clone();
        let severity = |kernel_id| reader.of(&testing::event(42, kernel_id, 10)).map(|(_, severity)| severity);
        assert_eq!((severity(probe), severity(nc)), (None, Some(Severity::Low)));
        let former = tools.replace(larger, lower(Severity::Critical));
        assert_eq!((severity(probe), severity(nc)), (Some(Severity::Critical), Some(Severity::Critical)));
        tools.restore(former);
        assert_eq!((severity(probe), severity(nc)), (None, Some(Severity::Low)));
    }

    #[test]
    fn a_former_policy_is_still_known() {
        let catalog = Catalog::shipped().unwrap();
        let meaning = |name: &str| Arc::new(Meaning { name: name.to_owned(), ..Meaning::default() });
        let tools = Tools::new(Known::new(catalog.clone(), [(1, meaning("first"))].into()));
        let name = || tools.policy_name(&testing::event(42, 7, 10));
        tools.replace(catalog.clone(), [(2, meaning("second"))].into());
        tools.replace(catalog.clone(), [(3, meaning("third"))].into());
        assert_eq!(name().as_deref(), Some("first"));
        for id in 4..2000 {
            tools.replace(catalog.clone(), [(id, meaning("later"))].into());
        }
        assert_eq!(name(), None, "not for ever");
    }

    #[test]
    fn what_only_a_pattern_knows_is_called_by_it() {
        let catalog = Catalog::shipped().unwrap();
        let policy = |rule: &str| {
            let text = format!(
                "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: t}}\nspec: {{mode: detect, rules: [{rule}]}}"
            );
            compile(&catalog, &source::parse("t.yaml", &text).unwrap(), 1).unwrap()
        };
        let described = |rule: &str, invoked: &str| {
            let compiled = policy(rule);
            let pattern = *compiled.comm.keys().next().unwrap();
            let policies = [(1, Arc::new(Meaning::from(&compiled)))].into();
            let tools = Tools::new(Known::new(catalog.clone(), policies));
            let mut event = testing::event(42, pattern, 10);
            event.invoked = invoked.into();
            assert!(tools.of(&event).is_none(), "it is no tool");
            event.identified_by = identified_by::PATTERN;
            let (tool, severity) = tools.of(&event).unwrap();
            let omissions = tools.omissions(&event).is_some();
            (tool.id, tool.category, severity, tool.techniques.contains(&"T1105".to_owned()), omissions)
        };
        let alert = "{comm: ['nc*'], action: alert, exceptRepeats: 1h}";
        let of = |id: &str, category: &str, severity, transfer| (id.into(), category.into(), severity, transfer, true);
        assert_eq!(described(alert, "ncdu"), of("nc*", "pattern", Severity::Medium, true));
        assert_eq!(described(alert, "nc.openbsd"), of("nc", "netcat", Severity::High, false));
        assert_eq!(described(alert, "nc\u{fffd}"), of("nc*", "pattern", Severity::Medium, true));
        let low = "{comm: ['nc*'], action: alert, severity: low, exceptArguments: [x]}";
        assert_eq!(described(low, "ncdu").2, Severity::Low);
        assert_eq!(described(low, "nc").2, Severity::Low);
        assert!(!described("{comm: [nc], action: block}", "nc").4);
    }
}
