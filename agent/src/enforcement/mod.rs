//! Which policies are in force, and which container is under which of them.
//!
//! Policies are put in force whole or not at all, and each container moves from the old to the new in one update of its entry
//! in the kernel's map `containers`:
//!
//! 1. the rules of the new policies go into the kernel's tables, under ids of their own, beside the old ones;
//! 2. the policy set for shims is replaced, by rename;
//! 3. each container is chosen for again, and its entry moved;
//! 4. the rules of policies that are not in force and that no entry holds go out.
//!
//! A container may be created meanwhile. Its shim enters it into the map, then reads the policy set again, and if that has been
//! replaced chooses again; after that it writes the container's record, and only then may the container run. So its record
//! says what was chosen by a set that was in force after its entry was there. If that was an old set, the record is seen here
//! either by the pass over all containers, or after it, and then [`Enforcement::apply`] moves it. An entry without a record
//! keeps its policy's rules in the tables.
//!
//! An image becomes known after the container has started. Until then a container whose policy depends on it stays as it is.

mod edit;
mod overrides;

use std::{
    collections::HashSet,
    mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use portcullis_bpf::{
    abi,
    guard::{GuardError, Move, Placement},
    pins::Pins,
    tables::Content,
};
use portcullis_policy::{
    arrange::{Arrangement, arrange},
    catalog::Catalog,
    decide::Execution,
    explain::{Explanation, explain},
    policyset::{self, Backend, Mode, ModeAnnotationError, PolicySet},
    record::Guard,
    select::{Facts, Select},
};

pub use self::{
    edit::{Change, Edit, EditError, Edited},
    overrides::{Modes, Overrides, SaveError},
};
use crate::{
    additions,
    config::Config,
    containers::{self, Container, Containers, Image, LeftBehind, Standing},
    counters::Counters,
    policies::{self, Loaded, Policies},
    publish::{PublishError, publish},
    records::RecordName,
    store::ContainerKey,
    tools::Tools,
};

/// The kernel's tables of policies and containers.
pub trait PolicyTables: Send + Sync + 'static {
    /// Puts rules, patterns and names beside those that are there.
    fn add(&self, content: &Content) -> Result<(), GuardError>;
    /// Removes what is not in this, but for the rules of the `held` policies.
    fn retain(&self, content: &Content, held: &HashSet<u32>) -> Result<(), GuardError>;
    /// The policies under which some container is.
    fn policies_held(&self) -> Result<HashSet<u32>, GuardError>;
    /// A container's entry, also in another version's tables, if these can be read.
    fn container(&self, cgroup_id: u64) -> Result<Option<abi::Container>, GuardError>;
    /// Puts a container under another policy and mode, in one step.
    fn move_container(&self, cgroup_id: u64, to: Placement) -> Result<Move, GuardError>;
}

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where the policy set is published.
    pub run_dir: PathBuf,
    /// The operator's policies, those of the API.
    pub policy_dir: PathBuf,
    /// All directories of policies, that one among them.
    pub policy_dirs: Vec<PathBuf>,
    /// The operator's additions to the catalogue.
    pub catalog_dir: PathBuf,
    /// In use.
    pub backend: Backend,
    /// The directory of the pins.
    pub pins: PathBuf,
    /// The stock shim.
    pub inner_shim: PathBuf,
}

/// Policies that could not be put in force. The former ones are.
#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    /// The tables did not take them.
    #[error("filling the kernel's tables")]
    Tables(#[from] GuardError),
    /// Shims could not be told.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A policy that goes and one that comes can't be told apart.
    #[error("the policies {former:?} (in force) and {new:?} have the same 32-bit hash: change the name of the new one")]
    Id {
        /// In force.
        former: String,
        /// To take its place.
        new: String,
    },
    /// Whoever prepared them has left the default out.
    #[error("no policy selects every container")]
    NoDefault,
}

/// A mode that could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// There is no such policy.
    #[error("no policy named {name:?} is in force")]
    NoPolicy {
        /// The name.
        name: String,
    },
    /// There is no such container.
    #[error("container {id:?} of containerd's namespace {namespace:?} does not run, or is not known here")]
    NoContainer {
        /// containerd's namespace.
        namespace: String,
        /// containerd's id.
        id: String,
    },
    /// There is nothing by which it could be detected or enforced.
    #[error("container {id:?} runs without its guard, so that no mode has an effect: {reason}")]
    Unguarded {
        /// containerd's id.
        id: String,
        /// Why.
        reason: String,
    },
    /// It would be forgotten.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// It could not be published.
    #[error(transparent)]
    Enforce(#[from] EnforceError),
    /// The kernel did not take it.
    #[error(
        "the mode is noted, but the container could not be moved to it; it is tried again within a minute, the log says why"
    )]
    NotMoved,
}

/// A policy in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// Its id in the kernel's tables.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its file, or [`policies::SHIPPED`].
    pub source: String,
    /// Which containers it is for.
    pub select: Select,
    /// See [`policyset::PolicyEntry::priority`].
    pub priority: i32,
    /// In force.
    pub mode: Mode,
    /// The mode is an operator's, and this is the one of the file.
    pub file_mode: Option<Mode>,
    /// See [`policyset::PolicyEntry::require_backend`].
    pub require_backend: Option<Backend>,
    /// How many containers are under it.
    pub containers: usize,
}

/// What passes over the containers have done since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moves {
    /// How many passes there were.
    pub passes: u64,
    /// Containers that came under another policy or mode.
    pub moved: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// How long the last pass took.
    pub last: Duration,
}

/// The policies in force. Cheap to clone.
#[derive(Clone)]
pub struct Enforcement(Arc<Inner>);

struct Inner {
    node: Node,
    tables: Arc<dyn PolicyTables>,
    containers: Containers,
    tools: Tools,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

struct State {
    policies: Policies,
    set: PolicySet,
    overrides: Overrides,
    /// Why newer files are not in force; empty if they are.
    error: String,
    /// A pass has something to do: a container did not move, or rules stay that only some container needed.
    unsettled: bool,
    moves: Moves,
}

/// Why files are read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Something in their directories has changed; perhaps not them.
    Change,
    /// Somebody wants it: what is in force is put in force anew even if nothing has changed.
    Request,
}

/// What became of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// It is under another policy or mode now.
    Moved,
    /// It is where it was.
    Stayed,
    /// It should be moved, and could not.
    Failed,
}

impl Node {
    /// As configured, with the backend that was chosen and its pins.
    pub fn new(config: &Config, backend: Backend, pins: &Pins) -> Self {
        Self {
            run_dir: config.run_dir.to_path_buf(),
            policy_dir: config.policy_dir.to_path_buf(),
            policy_dirs: config.policy_dirs().into_iter().map(Path::to_owned).collect(),
            catalog_dir: config.catalog_dir.to_path_buf(),
            backend,
            pins: pins.directory().to_owned(),
            inner_shim: config.shim.inner.to_path_buf(),
        }
    }

    fn policy_set(&self, policies: &Policies, modes: &Modes) -> Result<PolicySet, EnforceError> {
        let compiled: Vec<_> = policies.loaded.iter().map(|policy| policy.compiled.clone()).collect();
        let arrangement = arrange(&compiled, |name| modes.policies.get(name).copied());
        let Arrangement { default_policy, policies: others } = arrangement.ok_or(EnforceError::NoDefault)?;
        Ok(PolicySet {
            format: policyset::FORMAT,
            backend: self.backend,
            pins: self.pins.clone(),
            inner_shim: self.inner_shim.clone(),
            catalog: policies.catalog,
            default_policy,
            policies: others,
        })
    }
}

impl Enforcement {
    /// Puts the first policies in force. Containers that run already keep those of the agent before this one until their
    /// records have been read, and then [`Self::settle`] removes what is no longer needed.
    pub fn start(
        node: Node,
        tables: Arc<dyn PolicyTables>,
        containers: Containers,
        tools: Tools,
        counters: Arc<Counters>,
        policies: Policies,
        overrides: Overrides,
    ) -> Result<Self, EnforceError> {
        let set = node.policy_set(&policies, overrides.modes())?;
        tables.add(&policies.tables)?;
        publish(&node.run_dir, &set)?;
        let state = State { policies, set, overrides, error: String::new(), unsettled: true, moves: Moves::default() };
        log_in_force(&state, &[]);
        Ok(Self(Arc::new(Inner { node, tables, containers, tools, counters, state: Mutex::new(state) })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads catalogue and policies again; if anything is wrong with them, the old ones stay in force.
    pub fn reload(&self, cause: Cause) {
        let mut state = self.state();
        if let Err(error) = self.try_reload(&mut state, cause) {
            let error = format!("{error:#}");
            self.0.counters.policies_rejected.increment();
            tracing::error!(error, "catalogue and policies could not be reloaded; the former ones stay in force");
            state.error = error;
        }
    }

    fn try_reload(&self, state: &mut State, cause: Cause) -> anyhow::Result<()> {
        let catalog = additions::load(&self.0.node.catalog_dir)?;
        let policies = policies::load(&self.0.node.policy_dirs, &catalog)?;
        if cause == Cause::Change && policies == state.policies {
            // What the catalogue says of its tools beyond that is for signals only.
            self.0.tools.replace(catalog, policies.meanings());
            state.error.clear();
            return Ok(());
        }
        self.put_in_force(state, catalog, policies).context("putting the policies in force")
    }

    fn put_in_force(&self, state: &mut State, catalog: Catalog, policies: Policies) -> Result<(), EnforceError> {
        let Inner { node, tables, tools, .. } = &*self.0;
        let clash = |new: &&Loaded| {
            let same = |former: &&Loaded| former.compiled.entry.id == new.compiled.entry.id;
            state.policies.loaded.iter().find(same).filter(|former| former.compiled != new.compiled)
        };
        if let Some((former, new)) = policies.loaded.iter().find_map(|new| Some((clash(&new)?, new))) {
            return Err(EnforceError::Id { former: former.name().to_owned(), new: new.name().to_owned() });
        }
        let set = node.policy_set(&policies, state.overrides.modes())?;
        // Before the tables: an event about a new tool may come at once.
        let former = tools.replace(catalog, policies.meanings());
        let published =
            tables.add(&policies.tables).map_err(EnforceError::from).and_then(|()| Ok(publish(&node.run_dir, &set)?));
        if let Err(error) = published {
            tools.restore(former);
            self.put_back(state);
            return Err(error);
        }
        let former = mem::replace(&mut state.policies, policies);
        state.set = set;
        state.error.clear();
        log_in_force(state, &former.loaded);
        self.pass(state);
        Ok(())
    }

    /// Takes out of the tables again what could not be put in force.
    fn put_back(&self, state: &mut State) {
        // It may have given names another meaning.
        if let Err(error) = self.0.tables.add(&state.policies.tables) {
            state.unsettled = true;
            warn("the former policies' names could not be put back", error);
        }
        self.retain(state);
    }

    /// Chooses for every container again, and moves those for which another policy or mode is chosen.
    fn pass(&self, state: &mut State) {
        let started = Instant::now();
        let (mut moved, mut failed, mut seen) = (0_u64, 0_u64, 0_u64);
        for (name, container) in self.0.containers.all() {
            seen += 1;
            match self.place(state, &name, &container) {
                Placed::Moved => moved += 1,
                Placed::Stayed => {}
                Placed::Failed => failed += 1,
            }
        }
        state.unsettled = failed > 0;
        let left = self.retain(state);
        if failed > 0 {
            self.0.counters.policies_outlived.add(u64::try_from(left).unwrap_or(u64::MAX));
        }
        let Moves { passes, moved: before, failed: failed_before, .. } = state.moves;
        let last = started.elapsed();
        state.moves = Moves { passes: passes + 1, moved: before + moved, failed: failed_before + failed, last };
        let microseconds = u64::try_from(last.as_micros()).unwrap_or(u64::MAX);
        if moved + failed > 0 {
            tracing::info!(
                containers = seen,
                moved,
                failed,
                policies_left = left,
                microseconds,
                "containers were moved"
            );
        } else {
            tracing::debug!(containers = seen, policies_left = left, microseconds, "no container had to be moved");
        }
    }

    /// Removes the rules that nothing needs any more. How many policies' rules stay only because containers hold them.
    fn retain(&self, state: &mut State) -> usize {
        let tables = &self.0.tables;
        let outcome = tables.policies_held().and_then(|held| {
            tables.retain(&state.policies.tables, &held)?;
            let in_force = |id: &u32| state.policies.loaded.iter().any(|policy| policy.compiled.entry.id == *id);
            Ok(held.iter().filter(|id| !in_force(id)).count())
        });
        let left = outcome.unwrap_or_else(|error| {
            state.unsettled = true;
            warn("rules of former policies could not be removed; it is tried again", error);
            0
        });
        state.unsettled |= left > 0;
        left
    }

    /// Puts one container under the policy that is chosen for it.
    fn place(&self, state: &State, name: &RecordName, container: &Container) -> Placed {
        let Inner { node, tables, containers, counters, .. } = &*self.0;
        let Container { record, image, ended_ns, .. } = container;
        if ended_ns.is_some() {
            return Placed::Stayed;
        }
        let failed = |error: anyhow::Error| {
            counters.moves_failed.increment();
            let error = format!("{error:#}");
            tracing::warn!(container = ?record.container_id, error, "a container could not be put under its policy");
            Placed::Failed
        };
        let guarded = record.guard == Guard::Guarded && record.cgroup_id != 0;
        if guarded && !record.pins.as_os_str().is_empty() && record.pins != node.pins {
            let standing = match self.left_behind(state, container) {
                Ok(standing) => standing,
                Err(error) => return failed(error.into()),
            };
            if standing != container.standing {
                containers.set_standing(name, record.created_ns, standing);
            }
            return Placed::Stayed;
        }
        let choice = match state.set.choose(&Facts::of(record, image.name())) {
            Ok(choice) => choice,
            // Its shim has refused the container, or chosen by another version's rules.
            Err(error) => return failed(error.into()),
        };
        if choice.hinges_on_image && guarded && matches!(image, Image::Wanted | Image::Asked | Image::Unanswered) {
            match tables.container(record.cgroup_id) {
                Ok(Some(entry)) => {
                    let policy = state.policies.loaded.iter().find(|policy| policy.compiled.entry.id == entry.policy);
                    // One that is not in force any more can stay for a moment, but not until containerd answers some day.
                    if policy.is_some() || *image != Image::Unanswered {
                        if let Some(policy) = policy.filter(|_| record.policy_id != entry.policy) {
                            let standing = standing_of_entry(
                                policy,
                                &entry,
                                "as before the agent's start, until its image is known",
                            );
                            containers.set_standing(name, record.created_ns, standing);
                        }
                        return Placed::Stayed;
                    }
                }
                Ok(None) => return Placed::Stayed,
                Err(error) => return failed(error.into()),
            }
        }
        let mut standing = Standing {
            policy: choice.policy.name.clone(),
            policy_reason: choice.policy_reason,
            mode: choice.mode,
            mode_reason: choice.mode_reason,
            left_behind: None,
        };
        if let Some(obstacle) = choice.policy.obstacle(node.backend) {
            standing.policy_reason = format!("{}; {obstacle}", standing.policy_reason);
        }
        if let Some(mode) = state.overrides.modes().containers.get(&containers::key(record)) {
            (standing.mode, standing.mode_reason) = (*mode, "operator".to_owned());
        }
        let moved = if guarded {
            let mode = kernel_mode(standing.mode);
            let to = Placement { policy: choice.policy.id, mode, exceptions: choice.exceptions };
            match tables.move_container(record.cgroup_id, to) {
                Ok(Move::Moved) => Placed::Moved,
                Ok(Move::InPlace) => Placed::Stayed,
                // It is being released.
                Ok(Move::Gone) => return Placed::Stayed,
                Err(error) => return failed(error.into()),
            }
        } else {
            Placed::Stayed
        };
        if standing != container.standing {
            containers.set_standing(name, record.created_ns, standing);
        }
        moved
    }

    /// Where a container stands that another version's programs guard: where the agent of that version has left it.
    fn left_behind(&self, state: &State, container: &Container) -> Result<Standing, GuardError> {
        let record = &container.record;
        let entry = self.0.tables.container(record.cgroup_id)?;
        let policy = entry.and_then(|entry| {
            let is_it = |policy: &&Loaded| policy.compiled.entry.id == entry.policy;
            Some((state.policies.loaded.iter().find(is_it)?, entry))
        });
        let mut standing = match policy {
            Some((policy, entry))
                if record.policy_id != entry.policy || kernel_mode(record.mode) as u32 != entry.mode =>
            {
                standing_of_entry(policy, &entry, "as before the upgrade")
            }
            _ => Standing::of(record),
        };
        let readable = Pins::at(&record.pins).are_readable();
        standing.left_behind = Some(if readable { LeftBehind::Reported } else { LeftBehind::Unreported });
        let unreported = if readable { "" } else { " and whose events this agent can't read" };
        let reason = &mut standing.policy_reason;
        *reason = format!(
            "{reason}; guarded by another version's programs, which later changes do not reach{unreported}: start it anew"
        );
        Ok(standing)
    }

    /// Chooses for one container again: its record was read, or its image has become known.
    pub fn apply(&self, name: &RecordName) {
        let mut state = self.state();
        let Some(container) = self.0.containers.get(name) else { return };
        // Where it was, rules may be left that nobody needs any more.
        state.unsettled |= self.place(&state, name, &container) != Placed::Stayed;
    }

    /// Does what is left to do: tries again what failed, removes rules that are no longer needed, and forgets the modes of
    /// containers that are gone. To be called when all records have been read.
    pub fn settle(&self) {
        let mut state = self.state();
        let gone = {
            let set = &state.overrides.modes().containers;
            let keys = || self.0.containers.all().into_values().map(|container| containers::key(&container.record));
            let known: HashSet<ContainerKey> = if set.is_empty() { HashSet::new() } else { keys().collect() };
            set.keys().filter(|key| !known.contains(key)).cloned().collect::<Vec<_>>()
        };
        if !gone.is_empty() {
            let mut modes = state.overrides.modes().clone();
            modes.containers.retain(|key, _| !gone.contains(key));
            if let Err(error) = state.overrides.set(modes) {
                warn("modes of containers that are gone could not be forgotten", error);
            }
        }
        if state.unsettled {
            self.pass(&mut state);
        }
    }

    /// The policies in force, in the order in which they are tried, and why newer ones are not; empty if there are none.
    pub fn status(&self) -> (Vec<InForce>, String) {
        (self.list(), self.state().error.clone())
    }

    /// The policies in force, in the order in which they are tried.
    pub fn list(&self) -> Vec<InForce> {
        let state = self.state();
        let containers = self.0.containers.all();
        state.policies.loaded.iter().map(|policy| in_force(&state, policy, containers.values())).collect()
    }
}

/// For the API's service of policies.
impl Enforcement {
    /// A policy in force and the text that it was read from.
    pub fn get(&self, name: &str) -> Option<(InForce, String)> {
        let state = self.state();
        let policy = state.policies.loaded.iter().find(|policy| policy.name() == name)?;
        Some((in_force(&state, policy, self.0.containers.all().values()), policy.text.clone()))
    }

    /// What would come of an execution in a container.
    pub fn explain(&self, facts: &Facts<'_>, execution: &Execution<'_>) -> Result<Explanation, ModeAnnotationError> {
        let state = self.state();
        let policies = state.policies.loaded.iter().map(|policy| &policy.compiled);
        explain(&self.0.tools.catalog(), &state.set, policies, facts, execution)
    }

    /// What passes over the containers have done.
    pub fn moves(&self) -> Moves {
        self.state().moves
    }

    /// Sets a policy's mode instead of its file's; `None` gives the file's back. It holds until then, also when the file is
    /// edited, or gone for a while. How many containers have come under another mode.
    pub fn set_policy_mode(&self, name: &str, mode: Option<Mode>) -> Result<u64, ModeError> {
        let mut state = self.state();
        let former = state.overrides.modes().clone();
        let mut modes = former.clone();
        if let Some(mode) = mode {
            if !state.policies.loaded.iter().any(|policy| policy.name() == name) {
                return Err(ModeError::NoPolicy { name: name.to_owned() });
            }
            modes.policies.insert(name.to_owned(), mode);
        } else {
            modes.policies.remove(name);
        }
        let set = self.0.node.policy_set(&state.policies, &modes)?;
        state.overrides.set(modes)?;
        if let Err(error) = publish(&self.0.node.run_dir, &set) {
            if let Err(error) = state.overrides.set(former) {
                warn("a mode that could not be put in force will be at the next start", error);
            }
            return Err(EnforceError::from(error).into());
        }
        tracing::info!(policy = name, mode = mode.map(tracing::field::display), "an operator has set a policy's mode");
        state.set = set;
        let before = state.moves.moved;
        self.pass(&mut state);
        Ok(state.moves.moved - before)
    }

    /// Sets a container's mode, whatever policy and annotation say; `None` gives theirs back. It ends with the container.
    /// Whether it is another one now.
    pub fn set_container_mode(&self, key: &ContainerKey, mode: Option<Mode>) -> Result<bool, ModeError> {
        let mut state = self.state();
        let found = self
            .0
            .containers
            .all()
            .into_iter()
            .find(|(_, container)| container.ended_ns.is_none() && containers::key(&container.record) == *key);
        let Some((name, container)) = found else {
            return Err(ModeError::NoContainer { namespace: key.namespace.clone(), id: key.id.clone() });
        };
        if let Guard::Unguarded { reason } = &container.record.guard {
            return Err(ModeError::Unguarded { id: key.id.clone(), reason: reason.clone() });
        }
        let mut modes = state.overrides.modes().clone();
        match mode {
            Some(mode) => modes.containers.insert(key.clone(), mode),
            None => modes.containers.remove(key),
        };
        state.overrides.set(modes)?;
        tracing::info!(container = ?key.id, mode = mode.map(tracing::field::display), "an operator has set a container's mode");
        match self.place(&state, &name, &container) {
            Placed::Failed => {
                state.unsettled = true;
                Err(ModeError::NotMoved)
            }
            placed => Ok(placed == Placed::Moved),
        }
    }
}

fn in_force<'a>(state: &State, policy: &Loaded, containers: impl Iterator<Item = &'a Container>) -> InForce {
    let entry = &policy.compiled.entry;
    let operators = state.overrides.modes().policies.get(&entry.name);
    let under = containers.filter(|container| container.ended_ns.is_none() && container.standing.policy == entry.name);
    InForce {
        id: entry.id,
        name: entry.name.clone(),
        source: policy.source.clone(),
        select: entry.select.clone(),
        priority: entry.priority,
        mode: operators.copied().unwrap_or(entry.mode),
        file_mode: operators.map(|_| entry.mode),
        require_backend: entry.require_backend,
        containers: under.count(),
    }
}

fn standing_of_entry(policy: &Loaded, entry: &abi::Container, reason: &str) -> Standing {
    let enforce = entry.mode == abi::Mode::Enforce as u32;
    Standing {
        policy: policy.name().to_owned(),
        policy_reason: reason.to_owned(),
        mode: if enforce { Mode::Enforce } else { Mode::Detect },
        mode_reason: reason.to_owned(),
        left_behind: None,
    }
}

fn kernel_mode(mode: Mode) -> abi::Mode {
    match mode {
        Mode::Detect => abi::Mode::Detect,
        Mode::Enforce => abi::Mode::Enforce,
    }
}

/// Says what has changed: directories are read again whenever an editor leaves something in them.
fn log_in_force(state: &State, former: &[Loaded]) {
    let is_among = |policies: &[Loaded], policy: &Loaded| {
        policies
            .iter()
            .any(|other| other.compiled.entry.id == policy.compiled.entry.id && other.source == policy.source)
    };
    for policy in former.iter().filter(|policy| !is_among(&state.policies.loaded, policy)) {
        let id = policy.compiled.entry.id;
        tracing::info!(policy = policy.name(), id, source = policy.source, "policy no longer in force");
    }
    for policy in state.policies.loaded.iter().filter(|policy| !is_among(former, policy)) {
        let policy = in_force(state, policy, [].iter());
        let (name, mode) = (policy.name, policy.mode);
        tracing::info!(policy = name, id = policy.id, %mode, source = policy.source, "policy in force");
    }
}

fn warn(message: &str, error: impl Into<anyhow::Error>) {
    let error: anyhow::Error = error.into();
    tracing::warn!(error = format!("{error:#}"), "{message}");
}

#[cfg(test)]
mod tests;
