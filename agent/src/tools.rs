//! What a tool's number in an event means: the catalogue's entry, and the severity that the policy in force gives it.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use portcullis_policy::catalog::{Catalog, Severity, Tool};

/// Catalogue and severities. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tools {
    catalog: Arc<Catalog>,
    severities: Arc<RwLock<HashMap<u32, Severity>>>,
}

impl Tools {
    /// The catalogue with its own severities.
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog: Arc::new(catalog), severities: Arc::default() }
    }

    /// The catalogue.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Another policy is in force.
    pub fn set_severities(&self, severities: HashMap<u32, Severity>) {
        *self.severities.write().unwrap_or_else(PoisonError::into_inner) = severities;
    }

    /// A tool and its severity; `None` when the kernel's table is newer than this catalogue.
    pub fn get(&self, kernel_id: u32) -> Option<(&Tool, Severity)> {
        let tool = self.catalog.tool(kernel_id)?;
        let severities = self.severities.read().unwrap_or_else(PoisonError::into_inner);
        Some((tool, severities.get(&kernel_id).copied().unwrap_or(tool.severity)))
    }
}
