//! The operator's policy: found, parsed and compiled, without touching the node.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use portcullis_bpf::{
    abi::{self, CommKey, Identity, LoaderOption, NameKey, NamePrefix, RuleKey},
    tables::Content,
};
use portcullis_policy::{
    catalog::{Catalog, Kind, Severity},
    compile::{CommRule, compile},
    policyset::PolicyEntry,
    source::{Action, SHIPPED_DEFAULT, SourceError, parse},
};

use crate::files::{self, ReadError};

/// The kernel's id of the one policy.
const POLICY_ID: u32 = 1;

/// A policy ready for the kernel.
#[derive(Debug)]
pub struct Loaded {
    /// Where it came from, for people.
    pub source: String,
    /// For shims.
    pub entry: PolicyEntry,
    /// For the kernel.
    pub tables: Content,
    /// For shims: see [`Catalog::version`].
    pub catalog: u32,
    /// For signals: tool to severity, where the policy gives one.
    pub severities: HashMap<u32, Severity>,
    /// For signals: policy and pattern to what its rule says.
    pub comm: BTreeMap<(u32, u32), CommRule>,
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Directory or file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// More than one.
    #[error(
        "{} holds {} policies ({}), but one is supported: move the others elsewhere",
        directory.display(), files.len(), files.join(", ")
    )]
    Several {
        /// Where.
        directory: PathBuf,
        /// Which.
        files: Vec<String>,
    },
    /// It makes no sense; says where.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The catalogue has a name that does not fit into the kernel's table.
    #[error("{name:?} can't be a tool's name: it must have 1 to 62 bytes and no slash")]
    Name {
        /// Which name.
        name: String,
    },
}

/// The policy of a directory, or the shipped one.
pub fn load(directory: &Path, catalog: &Catalog) -> Result<Loaded, PolicyError> {
    let files = files::names(directory, &["yaml", "yml"])?;
    let (source, text) = match files.as_slice() {
        [] => ("shipped default".to_owned(), SHIPPED_DEFAULT.to_owned()),
        [file] => {
            let path = directory.join(file);
            (path.display().to_string(), files::read(&path)?)
        }
        _ => return Err(PolicyError::Several { directory: directory.to_owned(), files }),
    };
    let policy = parse(&source, &text)?;
    let compiled = compile(catalog, &policy, POLICY_ID)?;
    let rules = compiled
        .rules
        .into_iter()
        .map(|((policy, tool), action)| (RuleKey { policy, tool }, kernel_action(action)))
        .collect();
    let tables = Content { rules, comm_patterns: comm_patterns(&compiled.comm)?, ..known(catalog)? };
    Ok(Loaded {
        source,
        entry: compiled.entry,
        tables,
        catalog: catalog.version(),
        severities: compiled.severities,
        comm: compiled.comm,
    })
}

/// A policy's patterns, for the kernel.
fn comm_patterns(rules: &BTreeMap<(u32, u32), CommRule>) -> Result<Vec<(CommKey, u32)>, PolicyError> {
    let key = |policy, rule: &CommRule| {
        let pattern = &rule.pattern;
        let too_long = || PolicyError::Name { name: pattern.to_string() };
        CommKey::new(policy, pattern.name(), pattern.is_whole()).ok_or_else(too_long)
    };
    rules.iter().map(|((policy, id), rule)| Ok((key(*policy, rule)?, *id))).collect()
}

/// What the catalogue knows, for the kernel.
fn known(catalog: &Catalog) -> Result<Content, PolicyError> {
    let key = |name: &str| NameKey::new(name).ok_or_else(|| PolicyError::Name { name: name.to_owned() });
    let prefix = |name: &String| NamePrefix::new(name).ok_or_else(|| PolicyError::Name { name: name.clone() });
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

fn kernel_action(action: Action) -> abi::Action {
    match action {
        Action::Ignore => abi::Action::Ignore,
        Action::Alert => abi::Action::Alert,
        Action::Block => abi::Action::Block,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use portcullis_policy::source::SHIPPED_UPSTREAM;

    use super::*;

    #[test]
    fn an_empty_directory_means_the_shipped_policy() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::shipped().unwrap();
        for path in [directory.path(), Path::new("/nonexistent")] {
            let loaded = load(path, &catalog).unwrap();
            assert_eq!(loaded.source, "shipped default");
            assert_eq!(loaded.entry.id, POLICY_ID);
            assert!(!loaded.tables.names.is_empty() && !loaded.tables.rules.is_empty());
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
        ] {
            assert_eq!(catalog.tool(behaviour as u32).unwrap().id, id);
        }
        assert_eq!(portcullis_policy::catalog::PREFIX_MAX, NamePrefix::MAX);
        assert_eq!(portcullis_policy::catalog::PREFIXES_MAX, abi::PREFIXES_MAX);
        assert_eq!(portcullis_policy::catalog::NAME_MAX, abi::NAME_LEN - 2);
        assert_eq!(portcullis_policy::comm::COMM_MAX, abi::COMM_LEN - 1);
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
    fn patterns_reach_the_kernel_with_their_actions() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("p.yaml"), SHIPPED_UPSTREAM).unwrap();
        let loaded = load(directory.path(), &Catalog::shipped().unwrap()).unwrap();
        assert_eq!((loaded.tables.comm_patterns.len(), loaded.tables.rules.len()), (10, 10));
        for (key, id) in &loaded.tables.comm_patterns {
            let rule = &loaded.comm[&(POLICY_ID, *id)];
            assert_eq!(CommKey::new(POLICY_ID, rule.pattern.name(), rule.pattern.is_whole()), Some(*key));
            assert!(loaded.tables.rules.contains(&(RuleKey { policy: POLICY_ID, tool: *id }, abi::Action::Alert)));
        }
        assert!(load(Path::new("/nonexistent"), &Catalog::shipped().unwrap()).unwrap().tables.comm_patterns.is_empty());
    }

    #[test]
    fn one_file_is_taken_and_several_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::shipped().unwrap();
        let file = directory.path().join("default.yaml");
        fs::write(&file, SHIPPED_DEFAULT).unwrap();
        fs::write(directory.path().join(".default.yaml.swp"), "x").unwrap();
        fs::write(directory.path().join("README"), "x").unwrap();
        assert_eq!(load(directory.path(), &catalog).unwrap().source, file.display().to_string());
        fs::write(directory.path().join("other.yml"), SHIPPED_DEFAULT).unwrap();
        let error = load(directory.path(), &catalog).unwrap_err().to_string();
        assert!(error.contains("default.yaml, other.yml"), "{error}");
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("p.yaml"), "kind: [\n").unwrap();
        let error = load(directory.path(), &Catalog::shipped().unwrap()).unwrap_err().to_string();
        assert!(error.contains("p.yaml") && error.contains(':'), "{error}");
    }
}
