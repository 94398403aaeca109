//! What a tool's number in an event means: the catalogue's entry, and the severity that the policy in force gives it.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, PoisonError, RwLock},
};

use portcullis_policy::catalog::{Catalog, Severity, Tool};

/// A catalogue, and the severities of the policy that was compiled with it.
#[derive(Debug)]
pub struct Known {
    /// The tools.
    pub catalog: Catalog,
    /// Tool to severity, where the policy gives one.
    pub severities: HashMap<u32, Severity>,
}

/// What is known now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tools(Arc<RwLock<Known>>);

impl Tools {
    /// The first that is known.
    pub fn new(catalog: Catalog, severities: HashMap<u32, Severity>) -> Self {
        Self(Arc::new(RwLock::new(Known { catalog, severities })))
    }

    /// Catalogue and policy are others from now on. Returns the former ones.
    pub fn replace(&self, known: Known) -> Known {
        mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), known)
    }

    /// A tool and its severity; `None` when events were made by another catalogue.
    pub fn get(&self, kernel_id: u32) -> Option<(Tool, Severity)> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let tool = known.catalog.tool(kernel_id)?;
        Some((tool.clone(), known.severities.get(&kernel_id).copied().unwrap_or(tool.severity)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_replaced_and_can_be_put_back() {
        let catalog = |text| Catalog::shipped().unwrap().with("c.toml", text).unwrap();
        let id = |catalog: &Catalog, id: &str| catalog.tools().iter().find(|tool| tool.id == id).unwrap().kernel_id();
        let larger = catalog("[category.dns.tools]\nprobe = {}");
        let (probe, nc) = (id(&larger, "probe"), id(&larger, "nc"));
        let tools = Tools::new(catalog(""), [(nc, Severity::Low)].into());
        let reader = tools.clone();
        let severity = |kernel_id| reader.get(kernel_id).map(|(_, severity)| severity);
        assert_eq!((severity(probe), severity(nc)), (None, Some(Severity::Low)));
        let former = tools.replace(Known { catalog: larger, severities: HashMap::new() });
        assert_eq!((severity(probe), severity(nc)), (Some(Severity::Medium), Some(Severity::High)));
        tools.replace(former);
        assert_eq!((severity(probe), severity(nc)), (None, Some(Severity::Low)));
    }
}
