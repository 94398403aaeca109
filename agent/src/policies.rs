//! The operator's policy: found, parsed and compiled, without touching the node.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use portcullis_bpf::abi::{self, NameKey, RuleKey};
use portcullis_policy::{
    catalog::{Catalog, Severity},
    compile::compile,
    policyset::PolicyEntry,
    source::{Action, SHIPPED_DEFAULT, SourceError, parse},
};

/// The kernel's id of the one policy.
const POLICY_ID: u32 = 1;

/// A policy ready for the kernel.
#[derive(Debug)]
pub struct Loaded {
    /// Where it came from, for people.
    pub source: String,
    /// For shims.
    pub entry: PolicyEntry,
    /// For the kernel: name to tool.
    pub names: Vec<(NameKey, u32)>,
    /// For the kernel: policy and tool to action.
    pub rules: Vec<(RuleKey, abi::Action)>,
    /// For signals: tool to severity, where the policy gives one.
    pub severities: HashMap<u32, Severity>,
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Directory or file could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
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
    let files = policy_files(directory)?;
    let (source, text) = match files.as_slice() {
        [] => ("shipped default".to_owned(), SHIPPED_DEFAULT.to_owned()),
        [file] => {
            let path = directory.join(file);
            let text = fs::read_to_string(&path).map_err(|source| PolicyError::Read { path: path.clone(), source })?;
            (path.display().to_string(), text)
        }
        _ => return Err(PolicyError::Several { directory: directory.to_owned(), files }),
    };
    let policy = parse(&source, &text)?;
    let compiled = compile(catalog, &policy, POLICY_ID)?;
    let names = compiled
        .names
        .into_iter()
        .map(|(name, tool)| match NameKey::new(&name) {
            Some(key) => Ok((key, tool)),
            None => Err(PolicyError::Name { name }),
        })
        .collect::<Result<_, _>>()?;
    let rules = compiled
        .rules
        .into_iter()
        .map(|((policy, tool), action)| (RuleKey { policy, tool }, kernel_action(action)))
        .collect();
    Ok(Loaded { source, entry: compiled.entry, names, rules, severities: compiled.severities })
}

fn kernel_action(action: Action) -> abi::Action {
    match action {
        Action::Ignore => abi::Action::Ignore,
        Action::Alert => abi::Action::Alert,
        Action::Block => abi::Action::Block,
    }
}

/// The names of the policy files, sorted. Names with a leading dot are editors' and Kubernetes's own.
fn policy_files(directory: &Path) -> Result<Vec<String>, PolicyError> {
    let fail = |source| PolicyError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        let is_yaml = Path::new(&name).extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_yaml && !name.starts_with('.') {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_means_the_shipped_policy() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::shipped().unwrap();
        for path in [directory.path(), Path::new("/nonexistent")] {
            let loaded = load(path, &catalog).unwrap();
            assert_eq!(loaded.source, "shipped default");
            assert_eq!(loaded.entry.id, POLICY_ID);
            assert!(!loaded.names.is_empty() && !loaded.rules.is_empty());
        }
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
