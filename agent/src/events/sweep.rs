//! What shims that died have left behind. Whatever looks abandoned must look so twice, half a minute apart: a shim may be in
//! the middle of creating or deleting.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io, iter,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use portcullis_bpf::{
    abi::ContainerStats,
    cgroup,
    guard::{Guard, GuardError},
    pins::Pins,
};
use portcullis_policy::{
    policyset,
    record::{ContainerRecord, Counts},
};

use super::tracker::Tracker;
use crate::{
    clock,
    containers::{Container, Containers},
    counters::Counters,
    records::RecordName,
};

/// Directories of the cgroup hierarchy that are looked at; with more, orphans stay.
const MAX_CGROUPS: usize = 200_000;

/// Removes guards that guard nothing any more.
pub struct Sweep {
    own: Guard,
    /// Of other versions.
    others: Vec<Other>,
    run_dir: PathBuf,
    counters: Arc<Counters>,
    gone_before: HashSet<RecordName>,
    orphans_before: HashSet<u64>,
}

/// What is there of another version.
struct Other {
    guard: Guard,
    unused_before: bool,
}

impl Sweep {
    pub fn new(own: Guard, others: Vec<Pins>, run_dir: PathBuf, counters: Arc<Counters>) -> Self {
        let open = |pins: Pins| match Guard::open(pins.clone()) {
            Ok(guard) => Some(Other { guard, unused_before: false }),
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(pins = %pins.directory().display(), error = format!("{error:#}"), "another version's tables can't be read: what is there stays until the node is started anew");
                None
            }
        };
        let others = others.into_iter().filter_map(open).collect();
        Self { own, others, run_dir, counters, gone_before: HashSet::new(), orphans_before: HashSet::new() }
    }

    /// What the kernel has counted, by all versions' programs.
    pub fn stats(&self) -> Vec<(u64, ContainerStats)> {
        self.guards().flat_map(Guard::all_stats).collect()
    }

    /// One sweep. Other versions that no container needs any more are taken away if `drained`: their events have been read. Those
    /// are returned.
    pub fn run(&mut self, tracker: &mut Tracker, containers: &Containers, drained: bool) -> Vec<Pins> {
        let all = containers.all();
        self.end_gone(&all, tracker);
        self.end_orphans(&all, tracker);
        if drained { self.remove_unused() } else { Vec::new() }
    }

    /// Gives up what the kernel has counted for a container that has ended, once it is told. Whether nothing is left of it.
    pub fn forget(&mut self, cgroup_id: u64) -> bool {
        self.of_all("what was counted for it could not be given up", cgroup_id, Guard::forget)
            .iter()
            .all(Option::is_some)
    }

    fn guards(&self) -> impl Iterator<Item = &Guard> {
        iter::once(&self.own).chain(self.others.iter().map(|other| &other.guard))
    }

    /// Takes other versions away: first what shims are told, then the programs.
    fn remove_unused(&mut self) -> Vec<Pins> {
        let mut removed = Vec::new();
        self.others.retain_mut(|other| {
            let pins = other.guard.pins();
            let unused = guarded(&other.guard).next().is_none();
            if !(std::mem::replace(&mut other.unused_before, unused) && unused) {
                return true;
            }
            match remove(&self.run_dir, pins) {
                Ok(()) => {
                    tracing::info!(pins = %pins.directory().display(), "no container needs this version's programs any more: removed");
                    removed.push(pins.clone());
                    false
                }
                Err(error) => {
                    self.counters.release_errors.increment();
                    tracing::warn!(pins = %pins.directory().display(), %error, "another version's programs could not be removed");
                    true
                }
            }
        });
        removed
    }

    /// Containers whose cgroup is gone without their record saying so.
    fn end_gone(&mut self, all: &BTreeMap<RecordName, Container>, tracker: &mut Tracker) {
        let running = all.iter().filter(|(_, container)| container.ended_ns.is_none());
        let gone: HashSet<RecordName> =
            running.filter(|(_, container)| is_gone(&container.record)).map(|(name, _)| name.clone()).collect();
        let gone_before = std::mem::replace(&mut self.gone_before, gone.clone());
        for name in gone.intersection(&gone_before) {
            let Some(container) = all.get(name) else { continue };
            let record = &container.record;
            tracing::warn!(container = ?record.container_id, "a container has ended without its shim saying so");
            self.counters.containers_abandoned.increment();
            let counts = (record.cgroup_id != 0).then(|| self.detach(record.cgroup_id)).flatten();
            tracker.end(name, record.created_ns, clock::now_ns(), counts);
        }
    }

    /// Guards without record and without cgroup.
    fn end_orphans(&mut self, all: &BTreeMap<RecordName, Container>, tracker: &mut Tracker) {
        let mut orphans: HashSet<u64> = self.guards().flat_map(guarded).collect();
        orphans.retain(|id| {
            let name = RecordName::Cgroup(*id);
            !all.contains_key(&name) && !tracker.is_ended(&name)
        });
        let suspects: HashSet<u64> = orphans.intersection(&self.orphans_before).copied().collect();
        self.orphans_before = orphans;
        if suspects.is_empty() {
            return;
        }
        match cgroup::hierarchy().map_err(io::Error::other).and_then(|mount| live_cgroups(&mount)) {
            Ok(live) => {
                for id in suspects.difference(&live) {
                    tracing::warn!(cgroup_id = id, "a guard without container was left behind and is removed");
                    self.counters.guards_orphaned.increment();
                    let counts = self.detach(*id);
                    tracker.end(&RecordName::Cgroup(*id), 0, clock::now_ns(), counts);
                }
            }
            Err(error) => tracing::warn!(%error, "the cgroups can't be listed; guards left behind stay"),
        }
    }

    /// What the kernel has counted, where it was under guard.
    fn detach(&mut self, cgroup_id: u64) -> Option<Counts> {
        let detached = self.of_all("a guard could not be removed", cgroup_id, Guard::detach);
        let ContainerStats { matched, blocked, killed, .. } = detached.into_iter().flatten().flatten().last()?;
        Some(Counts { matched, blocked, killed })
    }

    /// Does something for a container by each version. Where it is not under guard that does nothing, and what cuts it off from the
    /// network may be beside another's guard. `None` for each that failed.
    fn of_all<T>(
        &mut self,
        failure: &str,
        cgroup_id: u64,
        action: impl Fn(&mut Guard, u64) -> Result<T, GuardError>,
    ) -> Vec<Option<T>> {
        let guards = iter::once(&mut self.own).chain(self.others.iter_mut().map(|other| &mut other.guard));
        let done = guards.map(|guard| {
            let failed = |error: &GuardError| {
                self.counters.release_errors.increment();
                let chain: &dyn std::error::Error = error;
                tracing::warn!(cgroup_id, error = chain, "{failure}");
            };
            action(guard, cgroup_id).inspect_err(failed).ok()
        });
        done.collect()
    }
}

/// The containers of which anything is there, if only what was counted.
fn guarded(guard: &Guard) -> impl Iterator<Item = u64> {
    let counted = guard.all_stats().into_iter().map(|(cgroup_id, _)| cgroup_id);
    guard.containers().into_iter().chain(link_directories(&guard.pins().links())).chain(counted)
}

fn remove(run_dir: &Path, pins: &Pins) -> io::Result<()> {
    if let Some(version) = pins.version() {
        match fs::remove_file(run_dir.join(policyset::file_name(version))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    pins.remove()
}

/// Whether a record's container can't exist any more.
fn is_gone(record: &ContainerRecord) -> bool {
    // containerd removes the bundle with the container.
    let no_bundle =
        || matches!(fs::symlink_metadata(&record.bundle), Err(error) if error.kind() == io::ErrorKind::NotFound);
    if record.cgroup_id == 0 {
        return no_bundle();
    }
    match fs::symlink_metadata(&record.cgroup_path) {
        // When a pod's shim was killed, containerd 2 has only the pod's own container deleted properly: the cgroups of
        // the others stay for ever.
        Ok(metadata) => metadata.ino() != record.cgroup_id || (no_bundle() && is_empty(&record.cgroup_path)),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether no process is in a cgroup or below it.
fn is_empty(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|text| text.lines().any(|line| line == "populated 0"))
}

/// The containers that have links pinned.
fn link_directories(links: &Path) -> Vec<u64> {
    // Missing with the backend `tracepoint`.
    let Ok(entries) = fs::read_dir(links) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The ids of all cgroups.
fn live_cgroups(mount: &Path) -> io::Result<HashSet<u64>> {
    let mut live = HashSet::new();
    let mut rest = vec![mount.to_owned()];
    while let Some(directory) = rest.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Removed in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                live.insert(entry.ino());
                rest.push(entry.path());
            }
        }
        if live.len() > MAX_CGROUPS {
            return Err(io::Error::other("there are too many cgroups"));
        }
    }
    Ok(live)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_container_is_gone_with_its_own_cgroup() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = testing::record(fs::metadata(directory.path()).unwrap().ino(), "c1");
        assert!(is_gone(&record));
        record.cgroup_path = directory.path().into();
        assert!(!is_gone(&record));
        let events = |text| fs::write(directory.path().join("cgroup.events"), text).unwrap();
        record.bundle = directory.path().join("bundle");
        events("populated 1\nfrozen 0\n");
        assert!(!is_gone(&record), "processes without a bundle");
        events("populated 0\nfrozen 0\n");
        assert!(is_gone(&record), "neither processes nor a bundle");
        record.bundle = directory.path().into();
        assert!(!is_gone(&record), "a bundle without processes");
        record.cgroup_id += 1;
        assert!(is_gone(&record), "another cgroup at the same path");
        record.cgroup_id = 0;
        record.bundle = directory.path().into();
        assert!(!is_gone(&record));
    }

    #[test]
    fn nested_cgroups_are_found() {
        let mount = tempfile::tempdir().unwrap();
        let nested = mount.path().join("a/b");
        fs::create_dir_all(&nested).unwrap();
        assert!(live_cgroups(mount.path()).unwrap().contains(&fs::metadata(nested).unwrap().ino()));
    }
}
