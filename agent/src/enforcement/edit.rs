//! Policies stored and removed through the API.
//!
//! Everything is checked together before anything changes. The file is written first, and put back if the policies can't be
//! put in force: what is in the directory and what is in force stay the same.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use portcullis_policy::{
    catalog::Catalog,
    source::{self, SourceError},
    validate::validate,
};

use super::{EnforceError, Enforcement, Facts, InForce, State, in_force, warn};
use crate::{
    additions::{self, AdditionError},
    files::{self, ReadError},
    policies::{self, Policies, PolicyErrors, SHIPPED},
};

/// What is wished for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Edit {
    /// Check everything, and change nothing.
    pub dry_run: bool,
    /// Replace a policy of that name in whatever file it is.
    pub overwrite: bool,
}

/// What becomes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There was none.
    Created,
    /// It has another text.
    Replaced,
    /// It has the same text already.
    Unchanged,
}

/// What has come of it, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// Of the file.
    pub change: Change,
    /// The policy, and for how many containers it is.
    pub policy: InForce,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The text makes no sense.
    #[error("{}", lines(.0))]
    Invalid(Vec<SourceError>),
    /// The name is taken.
    #[error("the policy {name:?} is in {file}: change it there, or ask for that file to be overwritten")]
    Elsewhere {
        /// The policy.
        name: String,
        /// Its file.
        file: String,
    },
    /// The file is taken.
    #[error(
        "{file}, where the policy {name:?} would be stored, holds the policy {other:?}: give that file another name"
    )]
    Occupied {
        /// The policy.
        name: String,
        /// The file that would be its own.
        file: String,
        /// Whose it is.
        other: String,
    },
    /// There is no such policy.
    #[error("there is no policy {name:?}")]
    None {
        /// Its name.
        name: String,
    },
    /// It has no file.
    #[error(
        "the policy {name:?} comes with Portcullis and has no file: it is in force where no other is for all containers"
    )]
    Shipped {
        /// Its name.
        name: String,
    },
    /// All together they would be no valid set.
    #[error("the policies could not be put in force together: {0}")]
    Others(PolicyErrors),
    /// The directory could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The catalogue could not be read.
    #[error(transparent)]
    Catalog(#[from] AdditionError),
    /// The file could not be written or removed.
    #[error("changing {}{}", path.display(), remedy(source))]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Tables or shims did not take them. The file is as it was.
    #[error("the policies could not be put in force; the former ones are, and the file is as it was")]
    Enforce(#[from] EnforceError),
}

fn lines(errors: &[SourceError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            " (the service must be allowed to write there: ReadWritePaths= of portcullisd.service)"
        }
        _ => "",
    }
}

impl Enforcement {
    /// Stores a policy as a file of its own and puts it in force. `file` is what errors call the text.
    pub fn store(&self, file: &str, text: &str, edit: Edit) -> Result<Edited, EditError> {
        let mut state = self.state();
        let node = &self.0.node;
        let catalog = additions::load(&node.catalog_dir)?;
        let policy = validate(&catalog, file, text).map_err(EditError::Invalid)?;
        let name = policy.metadata.name;
        let (mut texts, errors) = policies::read(&node.policy_dirs)?;
        let path = path(&node.policy_dir, &name, &texts, edit)?;
        let source = path.display().to_string();
        let former = texts.iter().position(|(other, _)| *other == source).map(|place| texts.swap_remove(place).1);
        let change = match &former {
            None => Change::Created,
            Some(former) if former == text => Change::Unchanged,
            Some(_) => Change::Replaced,
        };
        texts.push((source, text.to_owned()));
        let policies = policies::with(errors, policies::prepare(texts, &catalog)).map_err(EditError::Others)?;
        let edited = self.preview(&state, &policies, &name, change)?;
        if edit.dry_run {
            return Ok(edited);
        }
        let fail = |source| EditError::Write { path: path.clone(), source };
        if change != Change::Unchanged {
            fs::create_dir_all(&node.policy_dir).map_err(fail)?;
            files::replace(&path, 0o644, text.as_bytes()).map_err(fail)?;
        }
        self.put_in_force_or_back(&mut state, catalog, policies, &path, former.as_deref())?;
        Ok(edited)
    }

    /// Removes a policy's file, and the policy from those in force.
    pub fn delete(&self, name: &str, dry_run: bool) -> Result<InForce, EditError> {
        let mut state = self.state();
        let node = &self.0.node;
        let catalog = additions::load(&node.catalog_dir)?;
        let (mut texts, errors) = policies::read(&node.policy_dirs)?;
        let Some(place) = texts.iter().position(|(source, text)| is_of(name, source, text)) else {
            let shipped = state.policies.loaded.iter().any(|policy| policy.name() == name && policy.source == SHIPPED);
            let name = name.to_owned();
            return Err(if shipped { EditError::Shipped { name } } else { EditError::None { name } });
        };
        let (source, former) = texts.swap_remove(place);
        let path = PathBuf::from(source);
        let policies = policies::with(errors, policies::prepare(texts, &catalog)).map_err(EditError::Others)?;
        let loaded = state.policies.loaded.iter().find(|policy| policy.name() == name);
        // A file that is newer than what is in force.
        let loaded = loaded.ok_or_else(|| EditError::None { name: name.to_owned() })?;
        let deleted = in_force(&state, loaded, self.0.containers.all().values());
        if dry_run {
            return Ok(deleted);
        }
        fs::remove_file(&path).map_err(|source| EditError::Write { path: path.clone(), source })?;
        self.put_in_force_or_back(&mut state, catalog, policies, &path, Some(&former))?;
        Ok(deleted)
    }

    fn put_in_force_or_back(
        &self,
        state: &mut State,
        catalog: Catalog,
        policies: Policies,
        path: &Path,
        former: Option<&str>,
    ) -> Result<(), EditError> {
        let outcome = self.put_in_force(state, catalog, policies);
        if outcome.is_err() {
            let back = match former {
                Some(text) => files::replace(path, 0o644, text.as_bytes()),
                None => fs::remove_file(path),
            };
            if let Err(error) = back {
                warn("a policy file could not be put back as it was: it will be read at the next change", error);
            }
        }
        Ok(outcome?)
    }

    /// How a policy would be among these, and for how many containers.
    fn preview(&self, state: &State, policies: &Policies, name: &str, change: Change) -> Result<Edited, EditError> {
        let set = self.0.node.policy_set(policies, state.overrides.modes())?;
        let loaded = policies.loaded.iter().find(|policy| policy.name() == name);
        let loaded = loaded.ok_or_else(|| EditError::None { name: name.to_owned() })?;
        let containers = self.0.containers.all();
        let running = containers.values().filter(|container| container.ended_ns.is_none());
        let chosen = running.filter(|container| {
            let choice = set.choose(&Facts::of(&container.record, container.image.name()));
            choice.is_ok_and(|choice| choice.policy.name == name)
        });
        Ok(Edited { change, policy: InForce { containers: chosen.count(), ..in_force(state, loaded, [].iter()) } })
    }
}

/// Whether a file holds the policy of that name.
fn is_of(name: &str, source: &str, text: &str) -> bool {
    source::parse(source, text).is_ok_and(|policy| policy.metadata.name == name)
}

/// The file that a policy is to be stored in.
fn path(directory: &Path, name: &str, texts: &[(String, String)], edit: Edit) -> Result<PathBuf, EditError> {
    let own = directory.join(format!("{name}.yaml"));
    let file = own.display().to_string();
    let elsewhere = texts.iter().find(|(source, text)| *source != file && is_of(name, source, text));
    if let Some((source, _)) = elsewhere {
        if edit.overwrite {
            return Ok(PathBuf::from(source));
        }
        return Err(EditError::Elsewhere { name: name.to_owned(), file: source.clone() });
    }
    let occupant = texts.iter().find(|(source, _)| *source == file);
    let occupant = occupant.and_then(|(source, text)| source::parse(source, text).ok());
    match occupant.map(|policy| policy.metadata.name) {
        Some(other) if other != name => Err(EditError::Occupied { name: name.to_owned(), file, other }),
        _ => Ok(own),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use portcullis_bpf::abi::ABI_VERSION;
    use portcullis_policy::policyset::{self, Mode, PolicySet};
    use tempfile::TempDir;

    use super::{super::Cause, *};
    use crate::{
        containers::Containers,
        policies::Texts,
        records::RecordName,
        testing::{self, FakeTables},
    };

    struct Bed {
        directory: TempDir,
        tables: Arc<FakeTables>,
        containers: Containers,
        enforcement: Enforcement,
    }

    fn bed() -> Bed {
        let directory = tempfile::tempdir().unwrap();
        let (containers, tables) = (Containers::default(), Arc::<FakeTables>::default());
        let enforcement = testing::enforcement_with(directory.path(), &containers, Arc::clone(&tables), Arc::default());
        Bed { directory, tables, containers, enforcement }
    }

    fn policy(name: &str, spec: &str) -> String {
        format!(
            "# {name}\napiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}, rules: \
             [{{categories: [dns], action: block}}]}}\n"
        )
    }

    const C1: &str = "mode: enforce, select: {containers: [c1]}";

    impl Bed {
        fn file(&self, name: &str) -> PathBuf {
            self.directory.path().join("policies").join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::create_dir_all(self.file("")).unwrap();
            fs::write(self.file(name), text).unwrap();
        }

        /// Everything that must not change when an edit fails.
        fn state(&self) -> (Vec<String>, Texts, Vec<u8>, u32) {
            let names = self.enforcement.list().into_iter().map(|policy| format!("{policy:?}")).collect();
            let (mut texts, _) = policies::read(&[&self.file("")]).unwrap();
            texts.sort();
            let published = fs::read(self.directory.path().join(policyset::file_name(ABI_VERSION))).unwrap();
            (names, texts, published, self.tables.state().containers.get(&1).map_or(0, |entry| entry.policy))
        }

        fn store(&self, text: &str) -> Result<Edited, EditError> {
            self.enforcement.store("policy", text, Edit::default())
        }

        fn start(&self, cgroup_id: u64, id: &str) {
            let record = testing::record(cgroup_id, id);
            let set =
                PolicySet::parse(&fs::read(self.directory.path().join(policyset::file_name(ABI_VERSION))).unwrap())
                    .unwrap();
            self.tables.enter(cgroup_id, set.default_policy.id, super::super::kernel_mode(Mode::Detect));
            let name = RecordName::Cgroup(cgroup_id);
            self.containers.insert(name.clone(), record);
            self.enforcement.apply(&name);
        }

        fn held(&self) -> u32 {
            self.tables.state().containers[&1].policy
        }
    }

    #[test]
    fn a_stored_policy_is_in_force_and_a_deleted_one_is_not() {
        let bed = bed();
        bed.start(1, "c1");
        bed.start(2, "c2");
        let edited = bed.store(&policy("one", C1)).unwrap();
        assert_eq!((edited.change, edited.policy.name.as_str(), edited.policy.containers), (Change::Created, "one", 1));
        assert_eq!(fs::read_to_string(bed.file("one.yaml")).unwrap(), policy("one", C1), "comments included");
        assert_eq!(bed.held(), edited.policy.id);
        assert_eq!(bed.store(&policy("one", C1)).unwrap().change, Change::Unchanged);
        let edited = bed.store(&policy("one", "mode: detect, select: {containers: [c1]}")).unwrap();
        assert_eq!((edited.change, edited.policy.mode), (Change::Replaced, Mode::Detect));
        assert_eq!(bed.held(), edited.policy.id);

        let deleted = bed.enforcement.delete("one", false).unwrap();
        assert_eq!((deleted.name.as_str(), deleted.containers), ("one", 1));
        assert!(!bed.file("one.yaml").exists());
        assert_ne!(bed.held(), edited.policy.id);
        assert!(matches!(bed.enforcement.delete("one", false), Err(EditError::None { .. })));
        assert!(matches!(bed.enforcement.delete("default", false), Err(EditError::Shipped { .. })));
    }

    #[test]
    fn a_dry_run_says_the_same_and_changes_nothing() {
        let bed = bed();
        bed.start(1, "c1");
        let (before, edit) = (bed.state(), Edit { dry_run: true, ..Edit::default() });
        let dry = bed.enforcement.store("policy", &policy("one", C1), edit).unwrap();
        assert_eq!(bed.state(), before);
        let stored = bed.store(&policy("one", C1)).unwrap();
        assert_eq!(dry, stored);
        let before = bed.state();
        let dry = bed.enforcement.delete("one", true).unwrap();
        assert_eq!(bed.state(), before);
        assert_eq!(bed.enforcement.delete("one", false).unwrap(), dry);
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let bed = bed();
        bed.write("10-two.yaml", &policy("two", "mode: detect, select: {containers: [c2]}"));
        bed.write("three.yaml", &policy("four", "mode: detect, select: {containers: [c4]}"));
        bed.enforcement.reload(Cause::Change);
        let before = bed.state();
        let refused = |text: &str| {
            let error = bed.store(text).unwrap_err();
            assert_eq!(bed.state(), before, "{error}");
            error.to_string()
        };
        let two = policy("five", C1).replace(
            "[{categories: [dns], action: block}]",
            "[{tools: [a], action: block}, {tools: [b], action: block}]",
        );
        let error = refused(&two);
        let lines: Vec<&str> = error.lines().collect();
        assert!(
            matches!(lines.as_slice(), [a, b] if a.starts_with("policy:5:") && b.contains("unknown tool \"b\"")),
            "{error}"
        );
        assert!(refused("kind: [").starts_with("policy:"));
        assert!(refused(&policy("../up", C1)).contains("can't be a policy's name"));
        let error = refused(&policy("two", C1));
        assert!(error.contains("10-two.yaml: change it there"), "{error}");
        let error = refused(&policy("three", C1));
        assert!(error.contains("holds the policy \"four\""), "{error}");

        bed.tables.state().full = true;
        let error = refused(&policy("one", C1));
        assert!(error.contains("the file is as it was"), "{error}");
        let error = bed.enforcement.delete("two", false).unwrap_err();
        assert!(matches!(error, EditError::Enforce(_)));
        assert_eq!(bed.state(), before);
    }

    #[test]
    fn a_policy_is_overwritten_where_it_is_if_asked() {
        let bed = bed();
        bed.write("10-two.yml", &policy("two", "mode: detect, select: {containers: [c2]}"));
        bed.enforcement.reload(Cause::Change);
        let edit = Edit { overwrite: true, ..Edit::default() };
        let edited = bed.enforcement.store("policy", &policy("two", C1), edit).unwrap();
        assert_eq!((edited.change, edited.policy.mode), (Change::Replaced, Mode::Enforce));
        assert!(edited.policy.source.ends_with("10-two.yml") && !bed.file("two.yaml").exists());
        assert_eq!(fs::read_to_string(bed.file("10-two.yml")).unwrap(), policy("two", C1));
        bed.enforcement.delete("two", false).unwrap();
        assert!(!bed.file("10-two.yml").exists());
    }

    /// What is broken can be repaired the same way; what else is broken is in the way, and told.
    #[test]
    fn broken_files_can_be_repaired() {
        let bed = bed();
        bed.write("one.yaml", "kind: [\n");
        bed.enforcement.reload(Cause::Change);
        let error = bed.store(&policy("two", C1)).unwrap_err();
        assert!(matches!(&error, EditError::Others(_)) && error.to_string().contains("one.yaml:"), "{error}");
        assert!(!bed.file("two.yaml").exists());
        assert_eq!(bed.store(&policy("one", C1)).unwrap().change, Change::Replaced);
        assert_eq!(bed.enforcement.status().1, "");
        bed.store(&policy("two", "mode: detect, select: {containers: [c2]}")).unwrap();
    }
}
