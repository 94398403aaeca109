//! Deciding about a container that the inner shim has created and that has not run an instruction yet, and putting
//! the decision into effect.

pub mod contents;
pub mod lesson;
mod records;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use portcullis_bpf::{
    Backend, abi,
    cgroup::Cgroup,
    guard::{Guard, GuardError, Placement},
    pins::Pins,
};
use portcullis_policy::{
    policyset::{self, Choice, OnAttachFailure, PolicySet},
    record::{self, ContainerRecord, Counts},
    select::Facts,
};

use self::{lesson::Lesson, records::Records};
use crate::{
    log::{self, Level},
    rundir::{Published, RunDir},
    spec::{self, Annotations},
    state::Attached,
};

/// A container that was just created.
#[derive(Debug)]
pub struct Subject<'a> {
    /// containerd's id of it.
    pub id: &'a str,
    /// Its bundle.
    pub bundle: &'a Path,
    /// Its first process.
    pub pid: u32,
    /// See [`contents::shared_scope`].
    pub shared_scope: Option<u64>,
}

/// A container that may run.
#[derive(Debug)]
pub struct Admission {
    bundle: PathBuf,
    cgroup_id: u64,
    /// `None` when it runs unguarded.
    attached: Option<Attached>,
}

impl Admission {
    /// The container's bundle.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }
}

/// Guards the containers of one containerd namespace.
#[derive(Debug)]
pub struct Warden {
    run_dir: RunDir,
    namespace: String,
    containerd_address: String,
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Warden {
    /// For the containers in `namespace` of the containerd at `containerd_address`.
    pub fn new(run_dir: RunDir, namespace: &str, containerd_address: &str) -> Self {
        Self { run_dir, namespace: namespace.to_owned(), containerd_address: containerd_address.to_owned() }
    }

    fn records(&self) -> Records {
        Records::new(self.run_dir.records())
    }

    /// Puts a container under guard. An error means that it must not run.
    pub fn admit(&self, subject: &Subject<'_>) -> Result<Admission> {
        // Without these three nobody has said that it may run unguarded.
        let mut published = self.run_dir.published()?;
        let mut record = self.record(subject, spec::annotations(subject.bundle)?);
        let mut terms = choose(&published.set, &mut record)?;

        let cgroup = Cgroup::of_container(subject.pid).context("finding the container's cgroup");
        if let Ok(cgroup) = &cgroup {
            (record.cgroup_id, record.cgroup_path) = (cgroup.id, cgroup.path.clone());
        }
        let guarded = cgroup.and_then(|cgroup| self.guard(subject, &cgroup, &mut published, &mut record, &mut terms));
        let bundle = subject.bundle.to_owned();
        match (guarded, terms.on_attach_failure) {
            (Ok(attached), _) => Ok(Admission { bundle, cgroup_id: record.cgroup_id, attached: Some(attached) }),
            (Err(error), OnAttachFailure::Deny) => {
                Err(error.context(format!("policy {} denies unguarded containers", record.policy)))
            }
            (Err(error), OnAttachFailure::Allow) => {
                let reason = format!("{error:#}");
                log::write(&bundle, Level::Warning, subject.id, &format!("the container runs unguarded: {reason}"));
                (record.backend, record.pins) = (None, PathBuf::new());
                record.guard = record::Guard::Unguarded { reason };
                if let Some(GuardError::AlreadyGuarded { .. }) = error.downcast_ref() {
                    // Not this container's own cgroup: the record of that name is another's.
                    (record.cgroup_id, record.cgroup_path) = (0, PathBuf::new());
                }
                if let Err(error) = self.records().write(&record) {
                    log::write(&bundle, Level::Error, subject.id, &format!("{error:#}"));
                }
                Ok(Admission { bundle, cgroup_id: record.cgroup_id, attached: None })
            }
        }
    }

    /// What `admit` does where it can fail as the policy wants. On failure nothing is left attached.
    fn guard(
        &self,
        subject: &Subject<'_>,
        cgroup: &Cgroup,
        published: &mut Published,
        record: &mut ContainerRecord,
        terms: &mut Terms,
    ) -> Result<Attached> {
        published.check()?;
        terms.check()?;
        (record.backend, record.pins) = (Some(published.set.backend), published.set.pins.clone());
        let scope = subject.shared_scope.unwrap_or_else(|| contents::private_scope(cgroup.id));
        let attached = attach(subject, cgroup, &published.set, placement(record, terms), scope)?;
        // After attaching, so that the agent sees that the scope is in use before it is looked up.
        let (catalog, pins) = (published.set.catalog, published.set.pins.clone());
        let lesson = Lesson { pid: subject.pid, scope, catalog, pins };
        if let Err(error) = lesson.teach() {
            let reason = format!("{error:#}");
            let message = format!("tools are recognised by their names only, not by their contents: {reason}");
            log::write(subject.bundle, Level::Warning, subject.id, &message);
            record.contents_unknown = Some(reason);
        }
        let settled = settle(&attached, published, record, terms).and_then(|()| self.records().write(record));
        match settled {
            Ok(()) => Ok(attached),
            Err(error) => {
                // The error to report is the one that was first.
                let _ = release(&attached);
                Err(error)
            }
        }
    }

    fn record(&self, subject: &Subject<'_>, annotations: Annotations) -> ContainerRecord {
        let (annotations, left_out) = record::keep(annotations);
        if left_out > 0 {
            let message = format!(
                "{left_out} annotations are left out of account: only {} bytes of them are looked at",
                record::ANNOTATIONS_MAX
            );
            log::write(subject.bundle, Level::Warning, subject.id, &message);
        }
        ContainerRecord {
            format: record::FORMAT,
            cgroup_id: 0,
            cgroup_path: PathBuf::new(),
            container_id: subject.id.to_owned(),
            containerd_namespace: self.namespace.clone(),
            containerd_address: self.containerd_address.clone(),
            pid: subject.pid,
            bundle: subject.bundle.to_owned(),
            policy_id: 0,
            policy: String::new(),
            mode: policyset::Mode::Detect,
            mode_reason: String::new(),
            policy_reason: String::new(),
            backend: None,
            pins: PathBuf::new(),
            guard: record::Guard::Guarded,
            contents_unknown: None,
            annotations,
            created_ns: now_ns(),
            ended_ns: None,
            counts: None,
        }
    }

    /// Takes the guard of a container away that has ended, and says so in its record.
    pub fn release(&self, id: &str, admission: &Admission) -> Result<()> {
        let name = record::file_name(admission.cgroup_id, &self.namespace, id);
        let ended = self.end(admission.attached.as_ref(), &name);
        Attached::forget(&admission.bundle);
        ended
    }

    /// The same for a container of which nothing is known but its id and, perhaps, its bundle.
    pub fn release_leftovers(&self, id: &str, bundle: &Path) -> Result<()> {
        let mut remembered = Attached::load(bundle).unwrap_or_default();
        let found = self.records().find(&self.namespace, id);
        let mut result = Ok(());
        for record in found.iter().flatten() {
            let recorded = || Attached { cgroup_id: record.cgroup_id, pins: record.pins.clone() };
            let attached = remembered
                .take_if(|attached| attached.cgroup_id == record.cgroup_id)
                .or_else(|| (record.guard == record::Guard::Guarded).then(recorded));
            let name = record::file_name(record.cgroup_id, &self.namespace, id);
            result = result.and(self.end(attached.as_ref(), &name));
        }
        // Its record says already that it has ended, or was never written: then it has run nothing.
        let rest = remembered.as_ref().map_or(Ok(()), release);
        result.and(rest).and(found.map(drop))
    }

    /// Whoever is killed in between leaves what the kernel has counted where the next one finds it: in the kernel's table or in the record.
    fn end(&self, attached: Option<&Attached>, record: &str) -> Result<()> {
        let detached = attached.map_or(Ok(None), detach);
        let counts = detached.as_ref().ok().copied().flatten();
        let ended = self.records().end(record, now_ns(), counts);
        let forgotten = match attached {
            Some(attached) if detached.is_ok() && ended.is_ok() => forget(attached),
            _ => Ok(()),
        };
        if let Some(Counts { matched, .. }) = detached.and(ended)? {
            bail!(
                "nobody collects the records of containers that have ended, and {matched} executions of this one are told nowhere: start portcullisd"
            );
        }
        forgotten
    }
}

/// What the chosen policy says about guarding.
#[derive(Debug)]
struct Terms {
    on_attach_failure: OnAttachFailure,
    /// See [`policyset::PolicyEntry::obstacle`].
    obstacle: Option<String>,
    /// See [`Placement::exceptions`].
    exceptions: u32,
}

impl Terms {
    fn check(&self) -> Result<()> {
        self.obstacle.as_ref().map_or(Ok(()), |obstacle| bail!("{obstacle}"))
    }
}

/// Chooses policy and mode by what the record says of the container, and notes them there.
fn choose(set: &PolicySet, record: &mut ContainerRecord) -> Result<Terms> {
    // What its image is, only the agent finds out, unless CRI has said so.
    let choice = set.choose(&Facts::of(record, None))?;
    let Choice { policy, policy_reason, mode, mode_reason, exceptions, .. } = choice;
    let terms =
        Terms { on_attach_failure: policy.on_attach_failure, obstacle: policy.obstacle(set.backend), exceptions };
    (record.policy_id, record.policy, record.policy_reason) = (policy.id, policy.name.clone(), policy_reason);
    (record.mode, record.mode_reason) = (mode, mode_reason);
    Ok(terms)
}

/// Chooses again, if the policy set was replaced since it was read. The agent replaces it first, and then moves the
/// containers that it finds; this one it finds when its record is written, which must not have been chosen by a set that
/// was replaced before the container was in the kernel's table (see the agent's `enforcement`).
fn settle(
    attached: &Attached,
    published: &mut Published,
    record: &mut ContainerRecord,
    terms: &mut Terms,
) -> Result<()> {
    while published.refresh()? {
        if published.set.pins != attached.pins {
            // The agent has been given another bpffs. What is attached stays under the programs there.
            return Ok(());
        }
        *terms = choose(&published.set, record)?;
        terms.check()?;
        Guard::open(Pins::at(&attached.pins))?
            .move_container(attached.cgroup_id, placement(record, terms))
            .context("putting the container under the policy that is in force by now")?;
    }
    Ok(())
}

fn placement(record: &ContainerRecord, terms: &Terms) -> Placement {
    let mode = match record.mode {
        policyset::Mode::Detect => abi::Mode::Detect,
        policyset::Mode::Enforce => abi::Mode::Enforce,
    };
    Placement { policy: record.policy_id, mode, exceptions: terms.exceptions }
}

fn attach(
    subject: &Subject<'_>,
    cgroup: &Cgroup,
    set: &PolicySet,
    placement: Placement,
    scope: u64,
) -> Result<Attached> {
    let backend = match set.backend {
        policyset::Backend::Lsm => Backend::Lsm,
        policyset::Backend::Tracepoint => Backend::Tracepoint,
    };
    let mut guard = Guard::open(Pins::at(&set.pins))?;
    let attached = Attached { cgroup_id: cgroup.id, pins: set.pins.clone() };
    attached.save(subject.bundle)?;
    let container = abi::Container {
        cgroup_id: cgroup.id,
        policy: placement.policy,
        mode: placement.mode as u32,
        init_pid: subject.pid,
        backend: backend as u32,
        scope,
        node_mount_ns: own_mount_namespace()?,
        exceptions: placement.exceptions,
        flags: 0,
        level: 0,
    };
    guard.attach(cgroup, backend, container).inspect_err(|_| {
        // It may be another container's cgroup, whose guard must not be taken away when this one is cleaned up.
        Attached::forget(subject.bundle);
    })?;
    Ok(attached)
}

/// Inode number of this process's mount namespace, which is the container runtime's.
fn own_mount_namespace() -> Result<u32> {
    let link = fs::metadata("/proc/self/ns/mnt").context("finding the node's mount namespace")?;
    u32::try_from(link.ino()).context("the mount namespace's number has more than 32 bits")
}

/// Takes the guard away. What the kernel has counted, if it was under guard.
fn detach(attached: &Attached) -> Result<Option<Counts>> {
    let detached = Guard::open(Pins::at(&attached.pins)).and_then(|mut guard| guard.detach(attached.cgroup_id));
    let stats = detached.with_context(|| format!("taking the guard away from cgroup {}", attached.cgroup_id))?;
    Ok(stats.map(|abi::ContainerStats { matched, blocked, killed, .. }| Counts { matched, blocked, killed }))
}

/// Both, where nothing is to be told.
fn release(attached: &Attached) -> Result<()> {
    detach(attached)?;
    forget(attached)
}

/// Gives up what the kernel has counted.
fn forget(attached: &Attached) -> Result<()> {
    let forgotten = Guard::open(Pins::at(&attached.pins)).and_then(|mut guard| guard.forget(attached.cgroup_id));
    forgotten.with_context(|| format!("giving up what was counted for cgroup {}", attached.cgroup_id))
}
