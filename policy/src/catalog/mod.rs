//! The tools that Portcullis knows: `catalog.toml`, and what files of the same format add to it (docs/catalog.md).

mod source;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    ops::Range,
};

use serde::{Deserialize, Serialize};
use toml::Spanned;

use self::source::File;

pub use self::source::CatalogError;

/// The longest name, in bytes: the kernel's table holds two more.
pub const NAME_MAX: usize = 62;
/// The longest prefix of a multi-call program's name, in bytes.
pub const PREFIX_MAX: usize = 16;
/// How many such prefixes there may be.
pub const PREFIXES_MAX: usize = 4;
/// How many names there may be: half of what the kernel's table holds, as old and new ones are in it for a moment while
/// they are replaced. So it is with the following.
pub const NAMES_MAX: usize = 8192;
/// How many tools.
pub const TOOLS_MAX: usize = 8192;
/// How many options of dynamic loaders.
pub const LOADER_OPTIONS_MAX: usize = 128;
/// How many fingerprints. The kernel's table has room for more, which is for what shims learn of images.
pub const FINGERPRINTS_MAX: usize = 16_384;

/// The category of findings that are no tool's; their ids are rules of their own.
pub const BEHAVIOUR: &str = "behaviour";

const SHIPPED: &str = include_str!("../../catalog.toml");
const SHIPPED_FINGERPRINTS: &str = include_str!("../../fingerprints.toml");

/// How bad it is when a tool runs where nobody expects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

pub(crate) fn kernel_id(id: &str) -> u32 {
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.max(1)
}

/// What a name or a content stands for.
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

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tool => "tool",
            Self::Multicall => "multicall",
            Self::Loader => "loader",
            Self::Shell => "shell",
            Self::Interpreter => "interpreter",
        })
    }
}

/// What a name or a content stands for, and for which of the kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Meaning {
    /// The kind of program.
    pub kind: Kind,
    /// The tool's id; of another kind an id for people.
    pub id: String,
}

impl Meaning {
    fn new(kind: Kind, id: impl Into<String>) -> Self {
        Self { kind, id: id.into() }
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.id)
    }
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

/// One content that is known on the whole node, and what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// The fingerprint. Never 0.
    pub value: u64,
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
    fingerprints: BTreeMap<u64, Meaning>,
    by_kernel_id: HashMap<u32, usize>,
    by_name: HashMap<String, Meaning>,
}

impl Catalog {
    /// The catalogue that comes with Portcullis.
    pub fn shipped() -> Result<Self, CatalogError> {
        Self::default().with("the shipped catalogue", SHIPPED)?.with("the shipped fingerprints", SHIPPED_FINGERPRINTS)
    }

    /// This catalogue and what another file adds. `file` is its name in errors.
    pub fn with(mut self, file: &str, text: &str) -> Result<Self, CatalogError> {
        let file = File { name: file, text };
        let source = file.parse()?;
        for (id, category) in source.category {
            self.add_category(file, id, category)?;
        }
        for (id, multicall) in source.multicall {
            self.add_multicall(file, &id, multicall)?;
        }
        self.add_loader(file, source.loader)?;
        self.add_runner(file, Kind::Shell, "shell", source.shell.names)?;
        self.add_runner(file, Kind::Interpreter, "interpreter", source.interpreter.names)?;
        // Last: they may be of tools that the same file adds.
        for fingerprint in source.fingerprint {
            self.add_fingerprint(file, fingerprint)?;
        }
        Ok(self)
    }

    fn add_category(
        &mut self,
        file: File<'_>,
        id: String,
        source: Spanned<source::Category>,
    ) -> Result<(), CatalogError> {
        let span = source.span();
        let source = source.into_inner();
        let category = match (self.categories.get(&id), source.title, source.severity, source.techniques) {
            (None, Some(title), Some(severity), Some(techniques)) => Category { title, severity, techniques },
            (None, ..) => {
                let reason = format!("the new category {id:?} needs title, severity and techniques");
                return Err(file.error(span, reason));
            }
            (Some(_), ..) if id == BEHAVIOUR => {
                let reason = format!("the category {id:?} is for what the kernel programs find by themselves");
                return Err(file.error(span, reason));
            }
            (Some(known), None, None, None) => known.clone(),
            (Some(_), ..) => {
                let reason = format!(
                    "the category {id:?} has title, severity and techniques already; give severity and techniques to \
                     the tools, or change severities in the policy"
                );
                return Err(file.error(span, reason));
            }
        };
        for (tool, own) in source.tools {
            self.add_tool(file, &id, &category, tool, own)?;
        }
        self.categories.insert(id, category);
        Ok(())
    }

    fn add_tool(
        &mut self,
        file: File<'_>,
        category_id: &str,
        category: &Category,
        id: String,
        source: Spanned<source::Tool>,
    ) -> Result<(), CatalogError> {
        let span = source.span();
        let source = source.into_inner();
        if id.is_empty() {
            return Err(file.error(span, "a tool's id must not be empty"));
        }
        if self.tools.len() == TOOLS_MAX {
            return Err(file.error(span, format!("there may be {TOOLS_MAX} tools")));
        }
        match self.by_kernel_id.entry(kernel_id(&id)) {
            Entry::Occupied(place) => {
                let known = self.tools.get(*place.get()).map_or_else(String::new, |tool| tool.id.clone());
                let what = if known == id { "an id" } else { "their ids' 32-bit hash" };
                return Err(file.error(span, format!("the tools {known:?} and {id:?} share {what}")));
            }
            Entry::Vacant(place) => place.insert(self.tools.len()),
        };
        let names = source.names.unwrap_or_else(|| vec![Spanned::new(span, id.clone())]);
        let names = self.add_names(file, &Meaning::new(Kind::Tool, &id), names)?;
        self.tools.push(Tool {
            id,
            category: category_id.to_owned(),
            severity: source.severity.unwrap_or(category.severity),
            techniques: source.techniques.unwrap_or_else(|| category.techniques.clone()),
            names,
        });
        Ok(())
    }

    fn add_multicall(
        &mut self,
        file: File<'_>,
        id: &str,
        source: Spanned<source::Multicall>,
    ) -> Result<(), CatalogError> {
        let span = source.span();
        let source = source.into_inner();
        let prefix = source.prefix.get_ref();
        if prefix.is_empty() || prefix.len() > PREFIX_MAX || prefix.contains(['/', '\0']) {
            let reason = format!("the prefix {prefix:?} must have 1 to {PREFIX_MAX} bytes and no slash");
            return Err(file.error(source.prefix.span(), reason));
        }
        if !self.prefixes.contains(prefix) {
            if self.prefixes.len() == PREFIXES_MAX {
                let known = self.prefixes.join(", ");
                let reason = format!("there may be {PREFIXES_MAX} prefixes; {known} are taken");
                return Err(file.error(source.prefix.span(), reason));
            }
            self.prefixes.push(prefix.clone());
        }
        let names = source.names.unwrap_or_else(|| vec![Spanned::new(span, id.to_owned())]);
        self.add_runner(file, Kind::Multicall, id, names)
    }

    fn add_loader(&mut self, file: File<'_>, source: source::Loader) -> Result<(), CatalogError> {
        self.add_runner(file, Kind::Loader, "loader", source.names)?;
        let value = source.value_options.into_iter().map(|option| (option, false));
        let argv0 = source.argv0_options.into_iter().map(|option| (option, true));
        for (option, is_argv0) in value.chain(argv0) {
            let span = option.span();
            let option = option.into_inner();
            check_name(file, span.clone(), &option)?;
            let LoaderOptions { value, argv0 } = &mut self.loader_options;
            if value.len() + argv0.len() == LOADER_OPTIONS_MAX {
                return Err(file.error(span, format!("there may be {LOADER_OPTIONS_MAX} options of loaders")));
            }
            let (ours, others) = if is_argv0 { (argv0, value) } else { (value, argv0) };
            if others.contains(&option) {
                return Err(file.error(span, format!("the option {option:?} is among the others already")));
            }
            if !ours.contains(&option) {
                ours.push(option);
            }
        }
        Ok(())
    }

    fn add_runner(
        &mut self,
        file: File<'_>,
        kind: Kind,
        id: &str,
        names: Vec<Spanned<String>>,
    ) -> Result<(), CatalogError> {
        let names = self.add_names(file, &Meaning::new(kind, id), names)?;
        self.runners.push(Runner { id: id.to_owned(), kind, names });
        Ok(())
    }

    /// Checks that the names are usable and nobody else's.
    fn add_names(
        &mut self,
        file: File<'_>,
        meaning: &Meaning,
        names: Vec<Spanned<String>>,
    ) -> Result<Vec<String>, CatalogError> {
        let mut added = Vec::with_capacity(names.len());
        for name in names {
            let span = name.span();
            let name = name.into_inner();
            check_name(file, span.clone(), &name)?;
            if self.by_name.len() == NAMES_MAX {
                return Err(file.error(span, format!("there may be {NAMES_MAX} names")));
            }
            match self.by_name.entry(name.clone()) {
                Entry::Occupied(known) => {
                    return Err(file.error(span, format!("{} and {meaning} share the name {name:?}", known.get())));
                }
                Entry::Vacant(place) => place.insert(meaning.clone()),
            };
            added.push(name);
        }
        Ok(added)
    }

    fn add_fingerprint(&mut self, file: File<'_>, source: Spanned<source::Fingerprint>) -> Result<(), CatalogError> {
        let span = source.span();
        let source = source.into_inner();
        let meaning = match (source.tool, source.runs) {
            (Some(tool), None) => {
                let id = tool.get_ref();
                let known = self.by_kernel_id.get(&kernel_id(id)).and_then(|place| self.tools.get(*place));
                match known {
                    Some(known) if known.id == *id && known.category != BEHAVIOUR => Meaning::new(Kind::Tool, id),
                    _ => {
                        let hint = self.by_name.get(id).filter(|known| known.kind == Kind::Tool);
                        let hint = hint.map(|known| format!("; this is a name of the {known}")).unwrap_or_default();
                        return Err(file.error(tool.span(), format!("unknown tool {id:?}{hint}")));
                    }
                }
            }
            (None, Some(runs)) => Meaning::new(runs.into(), Kind::from(runs).to_string()),
            _ => return Err(file.error(span, "a fingerprint needs either `tool` or `runs`")),
        };
        let text = source.value.get_ref();
        // from_str_radix would take a sign as well.
        let value = match u64::from_str_radix(text, 16) {
            Ok(value) if value != 0 && text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => value,
            _ => {
                let reason = format!("{text:?} is no fingerprint: 16 hexadecimal digits, not all of them 0");
                return Err(file.error(source.value.span(), reason));
            }
        };
        if self.fingerprints.len() == FINGERPRINTS_MAX {
            return Err(file.error(span, format!("there may be {FINGERPRINTS_MAX} fingerprints")));
        }
        if let Some(known) = self.fingerprints.get(&value).filter(|known| **known != meaning) {
            return Err(file.error(source.value.span(), format!("{known} and {meaning} share the fingerprint {text}")));
        }
        self.fingerprints.insert(value, meaning);
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

    /// Every content that is known on the whole node.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.fingerprints.iter().map(|(value, meaning)| Fingerprint {
            value: *value,
            kernel_id: kernel_id(&meaning.id),
            kind: meaning.kind,
        })
    }

    /// What a name stands for.
    pub fn meaning_of_name(&self, name: &str) -> Option<&Meaning> {
        self.by_name.get(name)
    }

    /// What a content stands for.
    pub fn meaning_of_fingerprint(&self, fingerprint: u64) -> Option<&Meaning> {
        self.fingerprints.get(&fingerprint)
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

/// A name that the kernel's table can hold.
fn check_name(file: File<'_>, span: Range<usize>, name: &str) -> Result<(), CatalogError> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(['/', '\0']) {
        return Err(file.error(span, format!("the name {name:?} must have 1 to {NAME_MAX} bytes and no slash")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
