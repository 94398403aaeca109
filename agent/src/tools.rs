//! What a tool's or pattern's number in an event means: the catalogue's entry, what the policy in force says of it, and what it
//! excepts.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Arc, PoisonError, RwLock},
};

use portcullis_bpf::abi::{Event, identified_by};
use portcullis_policy::{
    catalog::{Catalog, Kind, Severity, Tool},
    compile::CommRule,
    exceptions::Exceptions,
};

/// The category of what only a policy's pattern knows.
pub const PATTERN: &str = "pattern";
/// Its technique, as published for network utilities in containers: ingress tool transfer.
const PATTERN_TECHNIQUE: &str = "T1105";
/// Its severity, unless the rule says otherwise.
const PATTERN_SEVERITY: Severity = Severity::Medium;

/// A catalogue, and the policy that was compiled with it.
#[derive(Debug, Default)]
pub struct Known {
    /// The tools.
    pub catalog: Catalog,
    /// Tool to severity, where the policy gives one.
    pub severities: HashMap<u32, Severity>,
    /// Policy and pattern to what its rule says.
    pub comm: BTreeMap<(u32, u32), CommRule>,
}

/// What is known now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tools(Arc<RwLock<Known>>);

impl Tools {
    /// The first that is known.
    pub fn new(known: Known) -> Self {
        Self(Arc::new(RwLock::new(known)))
    }

    /// Catalogue and policy are others from now on. Returns the former ones.
    pub fn replace(&self, known: Known) -> Known {
        mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), known)
    }

    /// An event's tool and its severity; `None` when the event was made by another catalogue or policy.
    pub fn of(&self, event: &Event) -> Option<(Tool, Severity)> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if event.identified_by & identified_by::PATTERN != 0 {
            return known.by_pattern(event);
        }
        let tool = known.catalog.tool(event.tool)?;
        Some((tool.clone(), known.severities.get(&event.tool).copied().unwrap_or(tool.severity)))
    }

    /// What the rule excepts by which an event was made.
    pub fn exceptions(&self, event: &Event) -> Option<Arc<Exceptions>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.comm_rule(event)?.exceptions.clone()
    }
}

impl Known {
    fn comm_rule(&self, event: &Event) -> Option<&CommRule> {
        if event.identified_by & identified_by::PATTERN == 0 {
            return None;
        }
        self.comm.get(&(event.policy, event.tool))
    }

    /// A tool of the catalogue if it has one of that name, else one that is called by the pattern.
    fn by_pattern(&self, event: &Event) -> Option<(Tool, Severity)> {
        let rule = self.comm_rule(event)?;
        let meaning = str::from_utf8(&event.invoked).ok().and_then(|name| self.catalog.meaning_of_name(name));
        let tool = meaning
            .filter(|meaning| meaning.kind == Kind::Tool)
            .and_then(|meaning| self.catalog.tools().iter().find(|tool| tool.id == meaning.id));
        let tool = tool.cloned().unwrap_or_else(|| Tool {
            id: rule.pattern.to_string(),
            category: PATTERN.to_owned(),
            severity: PATTERN_SEVERITY,
            techniques: vec![PATTERN_TECHNIQUE.to_owned()],
            names: Vec::new(),
        });
        let severity = rule.severity.unwrap_or(tool.severity);
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
        let known = Known { catalog: catalog(""), severities: [(nc, Severity::Low)].into(), comm: BTreeMap::new() };
        let tools = Tools::new(known);
        let reader = tools.clone();
        let severity = |kernel_id| reader.of(&testing::event(42, kernel_id, 10)).map(|(_, severity)| severity);
        assert_eq!((severity(probe), severity(nc)), (None, Some(Severity::Low)));
        let former = tools.replace(Known { catalog: larger, ..Known::default() });
        assert_eq!((severity(probe), severity(nc)), (Some(Severity::Medium), Some(Severity::High)));
        tools.replace(former);
        assert_eq!((severity(probe), severity(nc)), (None, Some(Severity::Low)));
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
            let comm = policy(rule).comm;
            let (_, pattern) = *comm.keys().next().unwrap();
            let tools = Tools::new(Known { catalog: catalog.clone(), comm, ..Known::default() });
            let mut event = testing::event(42, pattern, 10);
            event.invoked = invoked.into();
            assert!(tools.of(&event).is_none(), "it is no tool");
            event.identified_by = identified_by::PATTERN;
            let (tool, severity) = tools.of(&event).unwrap();
            let exceptions = tools.exceptions(&event).is_some();
            (tool.id, tool.category, severity, tool.techniques.contains(&"T1105".to_owned()), exceptions)
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
