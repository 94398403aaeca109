//! Stopping single containers, or parts of them, by hand.
//!
//! What is in effect is nowhere in this process: containerd knows which tasks are paused, the kernel's table which containers
//! are locked, and pinned links cut others off from the network. So it outlives the agent, and ends with the container.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use portcullis_bpf::{
    cgroup::{self, Cgroup, CgroupError},
    guard::{GuardError, Move},
    isolation::IsolationError,
};
use portcullis_policy::record::{ContainerRecord, Guard};
use portcullis_proto::v1::{self, Measure};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, getuid, pidfd_open, pidfd_send_signal},
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    clock,
    containerd::{Containerd, ContainerdError},
    containers::{Container, Containers},
    counters::Counters,
    image::{Item, Pending},
    records::RecordName,
    signal::{self, Place, RULE_CONTAINMENT, RULE_RELEASE},
    store::entry::Origin,
};

/// The measures that can be taken back, in the order in which that is done: what runs again comes last.
const REVERSIBLE: [Measure; 3] = [Measure::Lock, Measure::IsolateNetwork, Measure::Freeze];

/// The kernel's part in it.
pub trait Means: Send + Sync + 'static {
    /// Refuses every exec in a container, or no longer does.
    fn set_locked(&self, cgroup_id: u64, locked: bool) -> Result<Move, GuardError>;
    /// Whether it does.
    fn is_locked(&self, cgroup_id: u64) -> Result<bool, GuardError>;
    /// Cuts a container off from the network.
    fn isolate(&self, cgroup: &Cgroup) -> Result<(), IsolationError>;
    /// Lets it back.
    fn end_isolation(&self, cgroup_id: u64) -> Result<(), IsolationError>;
    /// Whether it is cut off.
    fn is_isolated(&self, cgroup_id: u64) -> bool;
}

/// What was not done, and why.
#[derive(Debug, thiserror::Error)]
pub enum ContainmentError {
    /// Whoever may look need not be let do this.
    #[error("only root may contain and release containers")]
    NotPermitted,
    /// Not one of ours.
    #[error(
        "no container {id:?} is known here: it is gone, or was not started by Portcullis's shim (portcullis containers list)"
    )]
    NoContainer {
        /// containerd's id.
        id: String,
    },
    /// Its namespace is needed.
    #[error("several of containerd's namespaces have a container {id:?}: name one of them")]
    Several {
        /// containerd's id.
        id: String,
    },
    /// Nothing runs in it any more.
    #[error("container {id:?} has ended")]
    Ended {
        /// containerd's id.
        id: String,
    },
    /// Nothing looks at its execs.
    #[error("container {id:?} can't be locked, as it runs without its guard ({reason}): freeze or kill it")]
    Unguarded {
        /// containerd's id.
        id: String,
        /// Why.
        reason: String,
    },
    /// Another container's entry holds for it.
    #[error(
        "container {id:?} can't be locked by itself, as it runs inside of container {outer:?}: lock that, or freeze it"
    )]
    Nested {
        /// containerd's id.
        id: String,
        /// That of the other one.
        outer: String,
    },
    /// Not in the table of this version.
    #[error(
        "container {id:?} can't be locked: it has just ended, or another version of Portcullis guards it; freeze or kill it"
    )]
    NotInTable {
        /// containerd's id.
        id: String,
    },
    /// There is nothing to attach to.
    #[error("container {id:?} has no cgroup of its own that is known here: freeze or kill it")]
    NoCgroup {
        /// containerd's id.
        id: String,
    },
    /// Nobody is there to ask.
    #[error("the record of container {id:?} does not say which containerd it belongs to")]
    NoContainerd {
        /// containerd's id.
        id: String,
    },
    /// Gone, or a thread.
    #[error("there is no process {pid} on this node (a thread's number is none)")]
    NoProcess {
        /// As given.
        pid: u32,
    },
    /// Somebody else's.
    #[error("process {pid} is not in container {id:?}: nothing was done to it")]
    NotItsProcess {
        /// containerd's id.
        id: String,
        /// As given.
        pid: u32,
    },
    /// The kernel did not let us.
    #[error("sending SIGKILL to process {pid}")]
    KillProcess {
        /// As given.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such thing.
    #[error("{0} can't be taken back")]
    Irreversible(&'static str),
    /// Nothing was asked for.
    #[error("measure is not set, or of a newer version")]
    NoMeasure,
    /// Only one measure is about a process.
    #[error("pid is for MEASURE_KILL_PROCESS, and only for that")]
    Pid,
    /// It did not do it.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// The table.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The programs.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// The hierarchy.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The agent is ending.
    #[error("portcullisd is stopping")]
    Stopping,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Task {
    Contain(Measure, u32),
    /// Empty: all that are in effect.
    Release(Vec<Measure>),
}

/// Contains containers. Cheap to clone.
#[derive(Clone)]
pub struct Containment {
    containers: Containers,
    means: Arc<dyn Means>,
    /// Weak: what waits there is to end with the events, whoever is still connected.
    signals: mpsc::WeakSender<Item>,
    counters: Arc<Counters>,
    operations: Arc<AtomicU64>,
}

impl Containment {
    /// Each operation becomes a signal.
    pub fn new(
        containers: Containers,
        means: Arc<dyn Means>,
        signals: &mpsc::Sender<Item>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { containers, means, signals: signals.downgrade(), counters, operations: Arc::default() }
    }

    /// Takes a measure; `pid` is for [`Measure::KillProcess`]. Returns the container as it is then.
    pub async fn contain(
        &self,
        place: Place<'_>,
        measure: Measure,
        pid: u32,
        caller: Option<v1::Caller>,
    ) -> Result<v1::Container, ContainmentError> {
        match (measure, pid) {
            (Measure::Unspecified, _) => return Err(ContainmentError::NoMeasure),
            (Measure::KillProcess, 0) => return Err(ContainmentError::Pid),
            (Measure::KillProcess, _) | (_, 0) => {}
            _ => return Err(ContainmentError::Pid),
        }
        self.operate(place, Task::Contain(measure, pid), caller).await
    }

    /// Takes measures back, or, if none is named, all that are in effect. Returns the container as it is then.
    pub async fn release(
        &self,
        place: Place<'_>,
        measures: Vec<Measure>,
        caller: Option<v1::Caller>,
    ) -> Result<v1::Container, ContainmentError> {
        for measure in &measures {
            match measure {
                Measure::Unspecified => return Err(ContainmentError::NoMeasure),
                Measure::Kill | Measure::KillProcess => {
                    return Err(ContainmentError::Irreversible(measure.as_str_name()));
                }
                Measure::Freeze | Measure::IsolateNetwork | Measure::Lock => {}
            }
        }
        // Each once, however often it is named.
        let measures = REVERSIBLE.into_iter().filter(|measure| measures.contains(measure)).collect();
        self.operate(place, Task::Release(measures), caller).await
    }

    /// Does it and keeps that it was done, or was not.
    async fn operate(
        &self,
        place: Place<'_>,
        task: Task,
        caller: Option<v1::Caller>,
    ) -> Result<v1::Container, ContainmentError> {
        let place = place.cut();
        let (found, outcome) = match self.find(place) {
            Ok(found) if is_permitted(caller.as_ref()) => {
                let outcome = self.perform(&found.1, &task).await;
                (Some(found), outcome)
            }
            Ok(found) => (Some(found), Err(ContainmentError::NotPermitted)),
            Err(error) => (None, Err(error)),
        };
        let error = outcome.as_ref().err().map(describe).unwrap_or_default();
        let (rule, measures, pid) = match task {
            Task::Contain(measure, pid) => (RULE_CONTAINMENT, vec![measure], pid),
            Task::Release(measures) => (RULE_RELEASE, measures, 0),
        };
        let measures = measures.into_iter().map(Into::into).collect();
        self.record(rule, place, found.as_ref(), v1::Operation { measures, pid, caller, error }).await;
        outcome?;
        let Some((name, container)) = found else { return Err(ContainmentError::Stopping) };
        // It may have ended by this.
        let container = self.containers.get(&name).unwrap_or(container);
        let containment = self.in_effect(std::slice::from_ref(&container)).await.pop();
        Ok(v1::Container { containment, ..signal::container_message(&container) })
    }

    async fn record(
        &self,
        rule: &str,
        place: Place<'_>,
        found: Option<&(RecordName, Container)>,
        operation: v1::Operation,
    ) {
        let time_ns = clock::now_ns();
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        let signal = signal::operation(rule, found.map(|(_, container)| container), &place, operation, time_ns);
        tracing::warn!(operation = signal.message, "an operator contains or releases a container");
        let container = found.map(|(name, _)| name.clone());
        let pending = Pending { origin: Origin::Operation { time_ns, number }, signal, kin: Vec::new(), container };
        let sent = match self.signals.upgrade() {
            Some(signals) => signals.send(Item::Signal(Box::new(pending))).await.is_ok(),
            None => false,
        };
        if !sent {
            self.counters.operations_unrecorded.increment();
        }
    }

    /// The container that runs; or one that has ended, so that it can be said.
    fn find(&self, place: Place<'_>) -> Result<(RecordName, Container), ContainmentError> {
        let id = place.id;
        let mut found: Vec<_> = self.containers.all().into_iter().collect();
        found.retain(|(_, Container { record, .. })| {
            record.container_id == id && (place.namespace.is_empty() || record.containerd_namespace == place.namespace)
        });
        let running = found.iter().filter(|(_, container)| container.ended_ns.is_none()).count();
        match (running, found.len()) {
            (0, 0) => Err(ContainmentError::NoContainer { id: id.to_owned() }),
            (0 | 1, _) => {
                found.sort_by_key(|(_, container)| (container.ended_ns.is_some(), container.record.created_ns));
                found.into_iter().next().ok_or_else(|| ContainmentError::NoContainer { id: id.to_owned() })
            }
            _ => Err(ContainmentError::Several { id: id.to_owned() }),
        }
    }

    async fn perform(&self, container: &Container, task: &Task) -> Result<(), ContainmentError> {
        let record = &container.record;
        if container.ended_ns.is_some() {
            return Err(ContainmentError::Ended { id: record.container_id.clone() });
        }
        let id = &record.container_id;
        match task {
            Task::Contain(Measure::Freeze, _) => Ok(containerd(record)?.pause(id).await?),
            Task::Contain(Measure::Kill, _) => Ok(containerd(record)?.kill(id).await?),
            Task::Contain(Measure::KillProcess, pid) => kill_process(record, *pid),
            Task::Contain(Measure::IsolateNetwork, _) => self.isolate(record).await,
            Task::Contain(Measure::Lock, _) => self.lock(record),
            Task::Contain(Measure::Unspecified, _) => Err(ContainmentError::NoMeasure),
            Task::Release(measures) => {
                for measure in REVERSIBLE {
                    if measures.is_empty() || measures.contains(&measure) {
                        self.take_back(record, measure).await?;
                    }
                }
                Ok(())
            }
        }
    }

    fn lock(&self, record: &ContainerRecord) -> Result<(), ContainmentError> {
        let id = || record.container_id.clone();
        if let Guard::Unguarded { reason } = &record.guard {
            return Err(ContainmentError::Unguarded { id: id(), reason: reason.clone() });
        }
        if let Some(outer) = self.outer(record) {
            return Err(ContainmentError::Nested { id: id(), outer });
        }
        match self.means.set_locked(record.cgroup_id, true)? {
            Move::Moved | Move::InPlace => Ok(()),
            Move::Gone => Err(ContainmentError::NotInTable { id: id() }),
        }
    }

    /// A guarded container that this one is inside of: the programs go by the outermost one's entry.
    fn outer(&self, record: &ContainerRecord) -> Option<String> {
        let all = self.containers.all();
        let is_outer = |other: &ContainerRecord| {
            other.cgroup_id != 0
                && other.cgroup_id != record.cgroup_id
                && other.guard == Guard::Guarded
                && record.cgroup_path.starts_with(&other.cgroup_path)
        };
        let mut others = all.values().filter(|container| container.ended_ns.is_none());
        others.find(|other| is_outer(&other.record)).map(|other| other.record.container_id.clone())
    }

    async fn isolate(&self, record: &ContainerRecord) -> Result<(), ContainmentError> {
        let no_cgroup = || ContainmentError::NoCgroup { id: record.container_id.clone() };
        if record.cgroup_id == 0 {
            return Err(no_cgroup());
        }
        let cgroup = Cgroup::open(&record.cgroup_path)?;
        if cgroup.id != record.cgroup_id {
            return Err(ContainmentError::Ended { id: record.container_id.clone() });
        }
        let means = Arc::clone(&self.means);
        // It loads programs.
        let isolated = tokio::task::spawn_blocking(move || means.isolate(&cgroup)).await;
        Ok(isolated.map_err(|_| ContainmentError::Stopping)??)
    }

    async fn take_back(&self, record: &ContainerRecord, measure: Measure) -> Result<(), ContainmentError> {
        match measure {
            Measure::Lock => {
                if record.cgroup_id != 0 {
                    self.means.set_locked(record.cgroup_id, false)?;
                }
            }
            Measure::IsolateNetwork => {
                if record.cgroup_id != 0 {
                    self.means.end_isolation(record.cgroup_id)?;
                }
            }
            _ => {
                let containerd = containerd(record)?;
                if containerd.paused().await?.contains(&record.container_id) {
                    containerd.resume(&record.container_id).await?;
                }
            }
        }
        Ok(())
    }

    /// What is in effect for each of these.
    pub async fn in_effect(&self, containers: &[Container]) -> Vec<v1::Containment> {
        let mut paused = self.paused(containers).await;
        containers
            .iter()
            .map(|Container { record, ended_ns, .. }| {
                if ended_ns.is_some() {
                    return v1::Containment { frozen: Some(false), ..v1::Containment::default() };
                }
                let tasks = paused.entry(of(record)).or_default();
                let locked = record.cgroup_id != 0
                    && self.means.is_locked(record.cgroup_id).unwrap_or_else(|error| {
                        let error = anyhow::Error::from(error);
                        tracing::warn!(error = format!("{error:#}"), "it can't be seen whether a container is locked");
                        false
                    });
                v1::Containment {
                    frozen: tasks.as_ref().map(|tasks| tasks.contains(&record.container_id)),
                    network_isolated: record.cgroup_id != 0 && self.means.is_isolated(record.cgroup_id),
                    locked,
                }
            })
            .collect()
    }

    /// The paused tasks of each of the containerds, one question each; `None` of one that does not answer.
    async fn paused(&self, containers: &[Container]) -> HashMap<(String, String), Option<HashSet<String>>> {
        let running = containers.iter().filter(|container| container.ended_ns.is_none());
        let asked: HashSet<_> =
            running.map(|container| of(&container.record)).filter(|(address, _)| !address.is_empty()).collect();
        let mut questions = JoinSet::new();
        for (address, namespace) in asked {
            questions.spawn(async move {
                let answer = Containerd { address: &address, namespace: &namespace }.paused().await;
                ((address, namespace), answer)
            });
        }
        let mut paused = HashMap::new();
        while let Some(answered) = questions.join_next().await {
            let Ok((whom, answer)) = answered else { continue };
            let tasks = answer
                .inspect_err(|error| {
                    self.counters.tasks_unanswered.increment();
                    tracing::debug!(error = describe_source(error), "containerd did not say which tasks are paused");
                })
                .ok();
            paused.insert(whom, tasks);
        }
        paused
    }
}

/// The socket's group is for those who look. The agent's own user is root, but in tests. Of certificates only administrators' get
/// here.
fn is_permitted(caller: Option<&v1::Caller>) -> bool {
    let own = |uid| uid == 0 || uid == getuid().as_raw();
    caller.is_some_and(|caller| !caller.certificate.is_empty() || own(caller.uid))
}

fn of(record: &ContainerRecord) -> (String, String) {
    (record.containerd_address.clone(), record.containerd_namespace.clone())
}

fn containerd(record: &ContainerRecord) -> Result<Containerd<'_>, ContainmentError> {
    if record.containerd_address.is_empty() {
        return Err(ContainmentError::NoContainerd { id: record.container_id.clone() });
    }
    Ok(Containerd { address: &record.containerd_address, namespace: &record.containerd_namespace })
}

/// Ends one process of a container. Its descriptor is opened first: whoever gets its number after that is not hit.
fn kill_process(record: &ContainerRecord, number: u32) -> Result<(), ContainmentError> {
    let gone = || ContainmentError::NoProcess { pid: number };
    if record.cgroup_id == 0 {
        return Err(ContainmentError::NoCgroup { id: record.container_id.clone() });
    }
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
        // A thread's number is invalid here, or, since 6.9, none.
        Errno::SRCH | Errno::INVAL | Errno::NOENT => gone(),
        error => ContainmentError::KillProcess { pid: number, source: error.into() },
    })?;
    match cgroup::holds(record.cgroup_id, number) {
        Ok(true) => {}
        Ok(false) => return Err(ContainmentError::NotItsProcess { id: record.container_id.clone(), pid: number }),
        Err(CgroupError::Procfs { .. }) => return Err(gone()),
        Err(error) => return Err(error.into()),
    }
    pidfd_send_signal(&process, Signal::KILL).map_err(|error| match error {
        Errno::SRCH => gone(),
        error => ContainmentError::KillProcess { pid: number, source: error.into() },
    })
}

/// An error and its causes, each said once.
pub fn describe(error: &ContainmentError) -> String {
    describe_source(match error {
        ContainmentError::Containerd(error) => error,
        error => error,
    })
}

/// containerd's own words stand in the error itself; below them is only how they came.
fn describe_source(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    if matches!(error.downcast_ref(), Some(ContainerdError::Call(_))) {
        return text;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
