//! The operator's policies: found, parsed and compiled, without touching the node.

use std::{collections::BTreeMap, error::Error, fmt, iter, path::Path, sync::Arc};

use portcullis_bpf::{
    abi::{self, Identity, LoaderOption, NameKey, NamePrefix},
    tables::{COMM_PATTERNS_MAX, Content, EXCEPTIONS_MAX, PATTERNS_MAX, RULES_MAX},
};
use portcullis_policy::{
    catalog::{Catalog, Kind},
    compile::Compiled,
    identity::compile,
    source::{SHIPPED_DEFAULT, SourceError, parse},
    together::{self, TogetherError, filling_in},
};

pub use portcullis_policy::together::SHIPPED;

use crate::{
    files::{self, ReadError},
    rules::{self, RulesError},
    tools::Meaning,
};

// Half of each of the kernel's tables is for the policies in force when others are put beside them.
const _: () = assert!(
    together::RULINGS_MAX == RULES_MAX / 2
        && together::COMM_MAX == COMM_PATTERNS_MAX / 2
        && together::EXCEPTIONS_MAX == EXCEPTIONS_MAX / 2
        && together::TEXTS_MAX == PATTERNS_MAX / 2
);

/// Files by name and text.
pub type Texts = Vec<(String, String)>;

/// A policy and the text that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The file, or [`SHIPPED`].
    pub source: String,
    /// Its text.
    pub text: String,
    /// What it was compiled to.
    pub compiled: Compiled,
}

impl Loaded {
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.compiled.entry.name
    }
}

/// Policies that can be put in force together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// By rank: the most specific first. At least one selects every container.
    pub loaded: Vec<Loaded>,
    /// For the kernel.
    pub tables: Content,
    /// For shims: see [`Catalog::version`].
    pub catalog: u32,
}

impl Policies {
    /// For signals: what each policy says, by its id.
    pub fn meanings(&self) -> BTreeMap<u32, Arc<Meaning>> {
        let meaning = |policy: &Loaded| (policy.compiled.entry.id, Arc::new(Meaning::from(&policy.compiled)));
        self.loaded.iter().map(meaning).collect()
    }
}

/// What is wrong with the policies.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Directory or file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file makes no sense; says where.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// They can't be in force together.
    #[error(transparent)]
    Together(#[from] TogetherError),
    /// A policy does not fit.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The catalogue has a name that does not fit into the kernel's table.
    #[error("{name:?} can't be a tool's name: it must have 1 to 62 bytes and no slash")]
    Tool {
        /// Which name.
        name: String,
    },
}

/// Everything that is wrong with the policies, on one line.
#[derive(Debug)]
pub struct PolicyErrors(pub Vec<PolicyError>);

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            f.write_str(if number == 0 { "" } else { "; " })?;
            write!(f, "{error}")?;
            for cause in iter::successors(error.source(), |cause| (*cause).source()) {
                write!(f, ": {cause}")?;
            }
        }
        Ok(())
    }
}

impl Error for PolicyErrors {}

impl<E: Into<PolicyError>> From<E> for PolicyErrors {
    fn from(error: E) -> Self {
        Self(vec![error.into()])
    }
}

/// The policies of directories and, where none of them selects every container, the shipped default.
pub fn load(directories: &[impl AsRef<Path>], catalog: &Catalog) -> Result<Policies, PolicyErrors> {
    let (texts, errors) = read(directories)?;
    with(errors, prepare(texts, catalog))
}

/// The directories' policy files, by name and text, and why others could not be read.
pub fn read(directories: &[impl AsRef<Path>]) -> Result<(Texts, Vec<PolicyError>), ReadError> {
    let (mut texts, mut errors) = (Vec::new(), Vec::new());
    for directory in directories.iter().map(AsRef::as_ref) {
        for file in files::names(directory, &["yaml", "yml"])? {
            let path = directory.join(file);
            match files::read(&path) {
                Ok(text) => texts.push((path.display().to_string(), text)),
                Err(error) => errors.push(error.into()),
            }
        }
    }
    Ok((texts, errors))
}

/// The policies, unless there were errors before; all of them are told.
pub fn with(mut errors: Vec<PolicyError>, prepared: Result<Policies, PolicyErrors>) -> Result<Policies, PolicyErrors> {
    match prepared {
        Ok(policies) if errors.is_empty() => Ok(policies),
        Ok(_) => Err(PolicyErrors(errors)),
        Err(PolicyErrors(mut others)) => {
            errors.append(&mut others);
            Err(PolicyErrors(errors))
        }
    }
}

/// Policies from their files' names and texts. All of them are looked at, and all errors told.
pub fn prepare(texts: Texts, catalog: &Catalog) -> Result<Policies, PolicyErrors> {
    let mut errors: Vec<PolicyError> = Vec::new();
    let mut loaded: Vec<Loaded> = Vec::new();
    for (source, text) in texts {
        match parse(&source, &text).and_then(|policy| compile(catalog, &policy)) {
            Ok(compiled) => loaded.push(Loaded { source, text, compiled }),
            Err(error) => errors.push(error.into()),
        }
    }
    // A broken file may be the one that selects every container.
    if errors.is_empty()
        && let Some(compiled) = filling_in(catalog, loaded.iter().map(|policy| &policy.compiled))?
    {
        loaded.push(Loaded { source: SHIPPED.to_owned(), text: SHIPPED_DEFAULT.to_owned(), compiled });
    }
    loaded.sort_by(|a, b| a.compiled.entry.rank().cmp(&b.compiled.entry.rank()));
    let all: Vec<_> = loaded.iter().map(|policy| (&*policy.source, &policy.compiled)).collect();
    errors.extend(together::check(&all).into_iter().map(PolicyError::from));
    match tables(&loaded, catalog) {
        Ok(tables) if errors.is_empty() => Ok(Policies { loaded, tables, catalog: catalog.version() }),
        Ok(_) => Err(PolicyErrors(errors)),
        Err(error) => {
            errors.push(error);
            Err(PolicyErrors(errors))
        }
    }
}

fn tables(policies: &[Loaded], catalog: &Catalog) -> Result<Content, PolicyError> {
    let mut content = known(catalog)?;
    for Loaded { compiled, .. } in policies {
        rules::add(compiled, &mut content)?;
    }
    Ok(content)
}

/// What the catalogue knows, for the kernel.
fn known(catalog: &Catalog) -> Result<Content, PolicyError> {
    let key = |name: &str| NameKey::new(name).ok_or_else(|| PolicyError::Tool { name: name.to_owned() });
    let prefix = |name: &String| NamePrefix::new(name).ok_or_else(|| PolicyError::Tool { name: name.clone() });
    let options = catalog.loader_options();
    let value = options.value.iter().map(|name| (name, LoaderOption::Value));
    let argv0 = options.argv0.iter().map(|name| (name, LoaderOption::Argv0));
    Ok(Content {
        names: catalog
            .names()
            .map(|name| Ok((key(name.name)?, Identity { id: name.kernel_id, kind: kernel_kind(name.kind) as u32 })))
            .collect::<Result<_, PolicyError>>()?,
        fingerprints: catalog
            .fingerprints()
            .map(|known| (known.value, Identity { id: known.kernel_id, kind: kernel_kind(known.kind) as u32 }))
            .collect(),
        loader_options: value
            .chain(argv0)
            .map(|(name, option)| Ok((key(name)?, option)))
            .collect::<Result<_, PolicyError>>()?,
        multicall_prefixes: catalog.multicall_prefixes().iter().map(prefix).collect::<Result<_, _>>()?,
        ..Content::default()
    })
}

fn kernel_kind(kind: Kind) -> abi::Kind {
    match kind {
        Kind::Tool => abi::Kind::Tool,
        Kind::Multicall => abi::Kind::Multicall,
        Kind::Loader => abi::Kind::Loader,
        Kind::Shell => abi::Kind::Shell,
        Kind::Interpreter => abi::Kind::Interpreter,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use portcullis_policy::together::POLICIES_MAX;

    use super::*;

    fn shipped() -> Catalog {
        Catalog::shipped().unwrap()
    }

    /// A policy that selects one namespace.
    fn text(name: &str, namespace: &str) -> String {
        format!(
            "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: {name}}}\nspec:\n  mode: detect\n  select: \
             {{namespaces: [{namespace}]}}\n  rules: [{{categories: [dns], action: block}}]\n"
        )
    }

    fn names(policies: &Policies) -> Vec<&str> {
        policies.loaded.iter().map(Loaded::name).collect()
    }

    #[test]
    fn an_empty_directory_means_the_shipped_policy() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path(), Path::new("/nonexistent")] {
            let policies = load(&[path], &shipped()).unwrap();
            assert_eq!(policies.loaded[0].source, SHIPPED);
            assert_eq!(policies.loaded[0].text, SHIPPED_DEFAULT);
            assert!(!policies.tables.names.is_empty() && !policies.tables.rules.is_empty());
        }
    }

    #[test]
    fn catalogue_and_programs_agree() {
        let catalog = Catalog::shipped().unwrap();
        for (id, behaviour) in [
            ("reverse_shell", abi::Behaviour::ReverseShell),
            ("dropped_executable", abi::Behaviour::DroppedExecutable),
            ("shell_socket", abi::Behaviour::ShellSocket),
            ("interpreter_socket", abi::Behaviour::InterpreterSocket),
            ("raw_socket", abi::Behaviour::RawSocket),
            ("locked", abi::Behaviour::Locked),
            ("guard_tampering", abi::Behaviour::GuardTampering),
            ("cgroup_escape", abi::Behaviour::CgroupEscape),
        ] {
            assert_eq!(catalog.tool(behaviour as u32).unwrap().id, id);
        }
        assert_eq!(portcullis_policy::catalog::PREFIX_MAX, NamePrefix::MAX);
        assert_eq!(portcullis_policy::catalog::PREFIXES_MAX, abi::PREFIXES_MAX);
        assert_eq!(portcullis_policy::catalog::NAME_MAX, abi::NAME_LEN - 2);
        let content = known(&catalog).unwrap();
        assert_eq!(content.names.len(), catalog.names().count());
        assert_eq!(content.multicall_prefixes.len(), 2);
    }

    #[test]
    fn contents_reach_the_kernel_as_what_they_are() {
        let text = "[[fingerprint]]\ntool = 'nc'\nvalue = '0123456789abcdef'\n[[fingerprint]]\nruns = 'shell'\nvalue = '00000000000000ff'";
        let catalog = Catalog::shipped().unwrap().with("c.toml", text).unwrap();
        let nc = catalog.names().find(|known| known.name == "nc").unwrap().kernel_id;
        let content = known(&catalog).unwrap();
        let kind_of = |value| content.fingerprints.iter().find(|(known, _)| *known == value).map(|(_, what)| what.kind);
        assert!(
            content.fingerprints.contains(&(0x0123_4567_89ab_cdef, Identity { id: nc, kind: abi::Kind::Tool as u32 }))
        );
        assert_eq!(kind_of(0xff), Some(abi::Kind::Shell as u32));
    }

    #[test]
    fn the_shipped_policy_fills_in_where_none_selects_everything() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("b.yaml", &text("bank", "bank"));
        write("a.yml", &text("shop", "'shop-*'"));
        write(".a.yaml.swp", "x");
        write("README", "x");
        let policies = load(&[directory.path()], &shipped()).unwrap();
        assert_eq!(names(&policies), ["bank", "shop", "default"], "by rank");
        assert_eq!(policies.meanings().len(), 3);
        write("all.yaml", &SHIPPED_DEFAULT.replace("name: default", "name: all"));
        assert_eq!(names(&load(&[directory.path()], &shipped()).unwrap()), ["bank", "shop", "all"]);
    }

    #[test]
    fn all_errors_of_all_files_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| fs::write(directory.path().join(name), text).unwrap();
        write("a.yaml", b"kind: [\n");
        write("b.yaml", text("b", "x").replace("dns", "dsn").as_bytes());
        write("c.yaml", b"\xff");
        write("d.yaml", text("same", "x").as_bytes());
        write("e.yaml", text("same", "y").as_bytes());
        let PolicyErrors(errors) = load(&[directory.path()], &shipped()).unwrap_err();
        let text = PolicyErrors(errors).to_string();
        for told in [
            "a.yaml:",
            "b.yaml:7:25: unknown category \"dsn\"",
            "c.yaml: stream did not contain valid UTF-8",
            "d.yaml and ",
            "e.yaml both hold a policy named \"same\"",
        ] {
            assert!(text.contains(told), "{told}: {text}");
        }
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn the_name_of_the_shipped_policy_is_taken_where_it_fills_in() {
        let one = |name: &str| vec![("p.yaml".to_owned(), text(name, "shop"))];
        assert!(prepare(one("shop"), &shipped()).is_ok());
        let error = prepare(one("default"), &shipped()).unwrap_err().to_string();
        assert!(error.contains("p.yaml and shipped default both hold a policy named \"default\""), "{error}");
    }

    #[test]
    fn policies_are_bounded() {
        let many = |count: usize| {
            let texts = (0..count).map(|number| (format!("{number}.yaml"), text(&format!("p{number}"), "x"))).collect();
            prepare(texts, &shipped()).map(|policies| policies.loaded.len()).map_err(|error| error.to_string())
        };
        assert_eq!(many(POLICIES_MAX - 1), Ok(POLICIES_MAX), "the shipped one is the last");
        assert_eq!(
            many(POLICIES_MAX),
            Err("there are 257 policies in all policies together, there may be 256: leave some out".to_owned())
        );
    }
}
