//! The tools that Portcullis knows: `catalog.toml`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: the kernel's table holds two more.
pub const NAME_MAX: usize = 62;

const SHIPPED: &str = include_str!("../catalog.toml");

/// How bad it is when a tool runs where nobody expects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a look in context.
    Low,
    /// Worth a look.
    Medium,
    /// Hardly ever innocent.
    High,
    /// Never innocent.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        })
    }
}

/// One tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// What signals and policies call it.
    pub id: String,
    /// The category's id.
    pub category: String,
    /// Default severity of its signals.
    pub severity: Severity,
    /// ATT&CK technique ids.
    pub techniques: Vec<String>,
    /// The names it is recognised by.
    pub names: Vec<String>,
}

impl Tool {
    /// What the kernel's tables and events call it: FNV-1a of the id, so that it stays the same when the catalogue
    /// grows and events wait in the ring buffer meanwhile. Never 0; unique within a catalogue.
    pub fn kernel_id(&self) -> u32 {
        let hash =
            self.id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        hash.max(1)
    }
}

/// Why a catalogue can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Not TOML of the expected shape; the message has line and column.
    #[error("the tool catalogue is not valid: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A name that the kernel's table can't hold.
    #[error("tool {tool}: the name {name:?} must have 1 to {NAME_MAX} bytes and no slash")]
    Name {
        /// The tool.
        tool: String,
        /// The name.
        name: String,
    },
    /// Two tools that can't be told apart.
    #[error("tools {first} and {second} share {what}")]
    Duplicate {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// What they share.
        what: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CategorySource {
    title: String,
    severity: Severity,
    techniques: Vec<String>,
    tools: BTreeMap<String, ToolSource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolSource {
    names: Option<Vec<String>>,
    severity: Option<Severity>,
    techniques: Option<Vec<String>>,
}

/// All tools.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// Category id and title.
    categories: BTreeMap<String, String>,
    tools: Vec<Tool>,
    by_kernel_id: HashMap<u32, usize>,
}

impl Catalog {
    /// The catalogue that comes with Portcullis.
    pub fn shipped() -> Result<Self, CatalogError> {
        Self::parse(SHIPPED)
    }

    /// Reads a catalogue.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        let source: BTreeMap<String, CategorySource> = toml::from_str(text)?;
        let mut categories = BTreeMap::new();
        let mut tools = Vec::new();
        for (category, content) in source {
            for (id, tool) in content.tools {
                tools.push(Tool {
                    names: tool.names.unwrap_or_else(|| vec![id.clone()]),
                    id,
                    category: category.clone(),
                    severity: tool.severity.unwrap_or(content.severity),
                    techniques: tool.techniques.unwrap_or_else(|| content.techniques.clone()),
                });
            }
            categories.insert(category, content.title);
        }
        let by_kernel_id = index(&tools)?;
        Ok(Self { categories, tools, by_kernel_id })
    }

    /// Every tool.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// Category ids and their titles.
    pub fn categories(&self) -> &BTreeMap<String, String> {
        &self.categories
    }

    /// The tool that an event names.
    pub fn tool(&self, kernel_id: u32) -> Option<&Tool> {
        self.tools.get(*self.by_kernel_id.get(&kernel_id)?)
    }
}

/// Checks that ids and names are usable and unique; returns the tools' places by kernel id.
fn index(tools: &[Tool]) -> Result<HashMap<u32, usize>, CatalogError> {
    let mut ids: HashMap<u32, usize> = HashMap::new();
    let mut names: HashMap<&str, &Tool> = HashMap::new();
    for (place, tool) in tools.iter().enumerate() {
        if let Some(other) = ids.insert(tool.kernel_id(), place).and_then(|other| tools.get(other)) {
            let (first, second) = (other.id.clone(), tool.id.clone());
            return Err(CatalogError::Duplicate { first, second, what: "an id, or its 32-bit hash".to_owned() });
        }
        for name in &tool.names {
            if name.is_empty() || name.len() > NAME_MAX || name.contains(['/', '\0']) {
                return Err(CatalogError::Name { tool: tool.id.clone(), name: name.clone() });
            }
            if let Some(other) = names.insert(name, tool) {
                let (first, second) = (other.id.clone(), tool.id.clone());
                return Err(CatalogError::Duplicate { first, second, what: format!("the name {name:?}") });
            }
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_catalogue_is_valid_and_explicit() {
        let catalog = Catalog::shipped().unwrap();
        let names: Vec<&str> = catalog.tools().iter().flat_map(|tool| &tool.names).map(String::as_str).collect();
        for expected in ["nc", "nc.openbsd", "nslookup", "curl", "nmap", "ligolo-ng", "lwp-download", "ssl_client"] {
            assert!(names.contains(&expected), "{expected}");
        }
        // The false positives of a `nc*` glob, and hosts of many tools, which are no tools themselves.
        for innocent in ["ncdu", "ncal", "busybox", "sh", "python3"] {
            assert!(!names.contains(&innocent), "{innocent}");
        }
        for tool in catalog.tools() {
            assert_eq!(catalog.tool(tool.kernel_id()), Some(tool));
            assert!(tool.techniques.iter().all(|technique| technique.starts_with('T')), "{tool:?}");
        }
    }

    #[test]
    fn kernel_ids_do_not_change() {
        let catalog = Catalog::shipped().unwrap();
        let nc = catalog.tools().iter().find(|tool| tool.id == "nc").unwrap();
        assert_eq!(nc.kernel_id(), 0x5636_5d16);
    }

    #[test]
    fn senseless_catalogues_are_refused() {
        let base = "[a]\ntitle = 'A'\nseverity = 'low'\ntechniques = []\n[a.tools]\n";
        let error = |tools: &str| Catalog::parse(&format!("{base}{tools}")).unwrap_err().to_string();
        assert!(error("x = { names = ['a/b'] }").contains("\"a/b\""));
        assert!(error("x = { names = [''] }").contains("1 to 62 bytes"));
        assert!(error("x = { names = ['n'] }\ny = { names = ['n'] }").contains("share the name \"n\""));
        assert!(error("x = { nmaes = ['n'] }").contains("line 6, column"));
    }
}
