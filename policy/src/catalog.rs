//! The tools that Portcullis knows: `catalog.toml`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: the kernel's table holds two more.
pub const NAME_MAX: usize = 62;
/// The longest prefix of a multi-call program's name, in bytes.
pub const PREFIX_MAX: usize = 16;
/// How many such prefixes there may be.
pub const PREFIXES_MAX: usize = 4;

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
        kernel_id(&self.id)
    }
}

fn kernel_id(id: &str) -> u32 {
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.max(1)
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A tool.
    Tool,
    /// One program that is many, told apart by argv.
    Multicall,
    /// A dynamic loader, which runs what argv names.
    Loader,
    /// A shell.
    Shell,
    /// Another language's interpreter.
    Interpreter,
}

/// One name and what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a> {
    /// The name.
    pub name: &'a str,
    /// The id it has in the kernel's tables and events.
    pub kernel_id: u32,
    /// The kind of program.
    pub kind: Kind,
}

/// A program that runs others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Runner {
    id: String,
    kind: Kind,
    names: Vec<String>,
}

/// Why a catalogue can't be used. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Not TOML of the expected shape; the message has line and column.
    #[error("{file}: {source}")]
    Syntax {
        /// The file.
        file: String,
        /// What is wrong, and where.
        source: toml::de::Error,
    },
    /// A name that the kernel's table can't hold.
    #[error("{file}: {owner}: the name {name:?} must have 1 to {NAME_MAX} bytes and no slash")]
    Name {
        /// The file.
        file: String,
        /// Whose name.
        owner: String,
        /// The name.
        name: String,
    },
    /// Two entries that can't be told apart.
    #[error("{file}: {first} and {second} share {what}")]
    Duplicate {
        /// The file that has the second.
        file: String,
        /// One.
        first: String,
        /// The other.
        second: String,
        /// What they share.
        what: String,
    },
    /// A new category without what every category needs.
    #[error("{file}: the new category {category:?} needs title, severity and techniques")]
    Category {
        /// The file.
        file: String,
        /// The category.
        category: String,
    },
    /// A prefix that the kernel's table can't hold.
    #[error(
        "{file}: multicall.{id}: the prefix must have 1 to {PREFIX_MAX} bytes, and there may be {PREFIXES_MAX} of them"
    )]
    Prefix {
        /// The file.
        file: String,
        /// The program.
        id: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    #[serde(default)]
    category: BTreeMap<String, CategorySource>,
    #[serde(default)]
    multicall: BTreeMap<String, MulticallSource>,
    #[serde(default)]
    loader: LoaderSource,
    #[serde(default)]
    shell: NamesSource,
    #[serde(default)]
    interpreter: NamesSource,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CategorySource {
    title: Option<String>,
    severity: Option<Severity>,
    techniques: Option<Vec<String>>,
    #[serde(default)]
    tools: BTreeMap<String, ToolSource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolSource {
    names: Option<Vec<String>>,
    severity: Option<Severity>,
    techniques: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MulticallSource {
    names: Option<Vec<String>>,
    prefix: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct LoaderSource {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    value_options: Vec<String>,
    #[serde(default)]
    argv0_options: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct NamesSource {
    #[serde(default)]
    names: Vec<String>,
}

/// A group of tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Category {
    /// For people.
    pub title: String,
    /// Of its tools, unless they have their own.
    pub severity: Severity,
    /// Of its tools, unless they have their own.
    pub techniques: Vec<String>,
}

/// What a dynamic loader's options are followed by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoaderOptions {
    /// A value that means nothing here.
    pub value: Vec<String>,
    /// argv[0] for the program.
    pub argv0: Vec<String>,
}

/// Everything that is known.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    categories: BTreeMap<String, Category>,
    tools: Vec<Tool>,
    runners: Vec<Runner>,
    loader_options: LoaderOptions,
    prefixes: Vec<String>,
    by_kernel_id: HashMap<u32, usize>,
}

impl Catalog {
    /// The catalogue that comes with Portcullis.
    pub fn shipped() -> Result<Self, CatalogError> {
        Self::default().with("the shipped catalogue", SHIPPED)
    }

    /// This catalogue and what another file adds. `file` is its name in errors.
    pub fn with(mut self, file: &str, text: &str) -> Result<Self, CatalogError> {
        let source: Source =
            toml::from_str(text).map_err(|source| CatalogError::Syntax { file: file.to_owned(), source })?;
        for (id, category) in source.category {
            self.add_category(file, id, category)?;
        }
        for (id, multicall) in source.multicall {
            if multicall.prefix.is_empty() || multicall.prefix.len() > PREFIX_MAX || self.prefixes.len() == PREFIXES_MAX
            {
                return Err(CatalogError::Prefix { file: file.to_owned(), id });
            }
            self.prefixes.push(multicall.prefix);
            let names = multicall.names.unwrap_or_else(|| vec![id.clone()]);
            self.runners.push(Runner { id, kind: Kind::Multicall, names });
        }
        self.loader_options.value.extend(source.loader.value_options);
        self.loader_options.argv0.extend(source.loader.argv0_options);
        for (kind, id, names) in [
            (Kind::Loader, "loader", source.loader.names),
            (Kind::Shell, "shell", source.shell.names),
            (Kind::Interpreter, "interpreter", source.interpreter.names),
        ] {
            self.runners.push(Runner { id: id.to_owned(), kind, names });
        }
        self.check(file)?;
        Ok(self)
    }

    fn add_category(&mut self, file: &str, id: String, source: CategorySource) -> Result<(), CatalogError> {
        let category = match (self.categories.get(&id), source.title, source.severity, source.techniques) {
            (None, Some(title), Some(severity), Some(techniques)) => Category { title, severity, techniques },
            (None, ..) => return Err(CatalogError::Category { file: file.to_owned(), category: id }),
            (Some(known), title, severity, techniques) => Category {
                title: title.unwrap_or_else(|| known.title.clone()),
                severity: severity.unwrap_or(known.severity),
                techniques: techniques.unwrap_or_else(|| known.techniques.clone()),
            },
        };
        for (tool, own) in source.tools {
            self.tools.push(Tool {
                names: own.names.unwrap_or_else(|| vec![tool.clone()]),
                id: tool,
                category: id.clone(),
                severity: own.severity.unwrap_or(category.severity),
                techniques: own.techniques.unwrap_or_else(|| category.techniques.clone()),
            });
        }
        self.categories.insert(id, category);
        Ok(())
    }

    /// Checks that ids and names are usable and unique; finds the tools' places by kernel id.
    fn check(&mut self, file: &str) -> Result<(), CatalogError> {
        let duplicate = |first: &str, second: &str, what: String| CatalogError::Duplicate {
            file: file.to_owned(),
            first: first.to_owned(),
            second: second.to_owned(),
            what,
        };
        let mut places: HashMap<u32, usize> = HashMap::new();
        for (place, tool) in self.tools.iter().enumerate() {
            if let Some(other) = places.insert(tool.kernel_id(), place).and_then(|other| self.tools.get(other)) {
                return Err(duplicate(&other.id, &tool.id, "an id, or its 32-bit hash".to_owned()));
            }
        }
        let mut owners: HashMap<&str, &str> = HashMap::new();
        let tools = self.tools.iter().map(|tool| (&tool.id, &tool.names));
        let runners = self.runners.iter().map(|runner| (&runner.id, &runner.names));
        let names = tools.chain(runners).flat_map(|(owner, names)| names.iter().map(move |name| (owner, name)));
        for (owner, name) in names {
            if name.is_empty() || name.len() > NAME_MAX || name.contains(['/', '\0']) {
                return Err(CatalogError::Name { file: file.to_owned(), owner: owner.clone(), name: name.clone() });
            }
            if let Some(other) = owners.insert(name, owner) {
                return Err(duplicate(other, owner, format!("the name {name:?}")));
            }
        }
        self.by_kernel_id = places;
        Ok(())
    }

    /// Every tool.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// Every name, tools' and others'.
    pub fn names(&self) -> impl Iterator<Item = Name<'_>> {
        let tools = self.tools.iter().map(|tool| (&tool.names, tool.kernel_id(), Kind::Tool));
        let runners = self.runners.iter().map(|runner| (&runner.names, kernel_id(&runner.id), runner.kind));
        tools
            .chain(runners)
            .flat_map(|(names, kernel_id, kind)| names.iter().map(move |name| Name { name, kernel_id, kind }))
    }

    /// Tells catalogues apart whose names stand for different things.
    pub fn version(&self) -> u32 {
        let names = self.names().map(|name| format!("{} {} {:?}\n", name.name, name.kernel_id, name.kind));
        kernel_id(&names.collect::<String>())
    }

    /// How multi-call programs' own names begin.
    pub fn multicall_prefixes(&self) -> &[String] {
        &self.prefixes
    }

    /// What dynamic loaders' options are followed by.
    pub fn loader_options(&self) -> &LoaderOptions {
        &self.loader_options
    }

    /// Categories by id.
    pub fn categories(&self) -> &BTreeMap<String, Category> {
        &self.categories
    }

    /// The tool that an event names.
    pub fn tool(&self, kernel_id: u32) -> Option<&Tool> {
        self.tools.get(*self.by_kernel_id.get(&kernel_id)?)
    }
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

    const BASE: &str = "[category.a]\ntitle = 'A'\nseverity = 'low'\ntechniques = []\n[category.a.tools]\n";

    fn error(catalog: Catalog, text: &str) -> String {
        catalog.with("c.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn senseless_catalogues_are_refused() {
        let base_error = |tools: &str| error(Catalog::default(), &format!("{BASE}{tools}"));
        assert!(base_error("x = { names = ['a/b'] }").contains("c.toml: x: the name \"a/b\""));
        assert!(base_error("x = { names = [''] }").contains("1 to 62 bytes"));
        assert!(base_error("x = { names = ['n'] }\ny = { names = ['n'] }").contains("x and y share the name \"n\""));
        assert!(base_error("x = { nmaes = ['n'] }").contains("line 6, column"));
        assert!(base_error("x = {}\n[shell]\nnames = ['x']").contains("x and shell share the name"));
        assert!(base_error("[multicall.box]\nprefix = ''").contains("multicall.box: the prefix"));
        assert!(base_error("[dns]").contains("unknown field `dns`"));
    }

    #[test]
    fn a_file_adds_to_the_shipped_catalogue() {
        let shipped = || Catalog::shipped().unwrap();
        let text = "[category.scanner.tools]\nprobe = { names = ['acme-probe'], severity = 'critical' }\n[category.acme]\n\
                    title = 'ACME'\nseverity = 'low'\ntechniques = []\n[category.acme.tools]\nacme = {}\n[shell]\nnames = ['acmesh']";
        let catalog = shipped().with("c.toml", text).unwrap();
        let tool = |id: &str| catalog.tools().iter().find(|tool| tool.id == id).unwrap();
        assert_eq!((tool("probe").severity, tool("probe").techniques[0].as_str()), (Severity::Critical, "T1046"));
        assert_eq!(tool("acme").category, "acme");
        assert!(catalog.names().any(|name| name.name == "acmesh" && name.kind == Kind::Shell));
        assert!(error(shipped(), "[category.scanner.tools]\nnmap = {}").contains("nmap and nmap share"));
        assert!(error(shipped(), "[category.acme.tools]\nacme = {}").contains("needs title, severity and techniques"));
    }

    #[test]
    fn names_know_what_they_stand_for() {
        let catalog = Catalog::shipped().unwrap();
        let kind = |name: &str| catalog.names().find(|known| known.name == name).map(|known| known.kind);
        assert_eq!(kind("nc.openbsd"), Some(Kind::Tool));
        assert_eq!(kind("toybox"), Some(Kind::Multicall));
        assert_eq!(kind("ld-musl-x86_64.so.1"), Some(Kind::Loader));
        assert_eq!(kind("dash"), Some(Kind::Shell));
        assert_eq!(kind("python3.11"), Some(Kind::Interpreter));
        assert_eq!(kind("reverse_shell"), None);
        assert_eq!(catalog.multicall_prefixes(), ["busybox", "toybox"]);
    }
}
