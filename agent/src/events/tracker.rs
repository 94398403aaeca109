//! Records into the table of containers, and out of it.
//!
//! A record is removed only when the ring buffer was seen empty after the container's end was seen, and a moment later: by
//! then every event from before the end has found its record.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use portcullis_policy::record::{ContainerRecord, Counts, Guard};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::EventsError;
use crate::{
    clock,
    containers::{Containers, Inserted},
    counters::Counters,
    enforcement::Enforcement,
    image::{Item, Pending},
    records::{RecordDirectory, RecordName},
    signal,
    store::entry::Origin,
};

/// Longer than a signal waits for its image, and than a program needs between reserving an event and submitting it (until
/// then the ring buffer looks empty although there are events behind).
const GRACE: Duration = Duration::from_secs(2);

/// Keeps the table and the directory in step.
pub struct Tracker {
    directory: RecordDirectory,
    containers: Containers,
    enforcement: Enforcement,
    signals: mpsc::Sender<Item>,
    counters: Arc<Counters>,
    ended: HashMap<RecordName, Ended>,
    unguarded: Vec<RecordName>,
    new: Vec<RecordName>,
}

struct Ended {
    created_ns: u64,
    seen: Instant,
    counts: Option<Counts>,
}

impl Tracker {
    pub fn new(
        directory: RecordDirectory,
        containers: Containers,
        enforcement: Enforcement,
        signals: mpsc::Sender<Item>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            directory,
            containers,
            enforcement,
            signals,
            counters,
            ended: HashMap::new(),
            unguarded: Vec::new(),
            new: Vec::new(),
        }
    }

    /// Reads every record; what is in the table without a file has ended.
    pub fn scan(&mut self) -> io::Result<()> {
        let names = self.directory.list()?;
        for name in &names {
            self.load(name);
        }
        let names: HashSet<RecordName> = names.into_iter().collect();
        for (name, container) in self.containers.all() {
            if container.ended_ns.is_none() && !names.contains(&name) {
                self.end(&name, container.record.created_ns, clock::now_ns(), None);
            }
        }
        Ok(())
    }

    /// Reads a record that is new or has changed.
    pub fn load(&mut self, name: &RecordName) {
        match self.directory.read(name) {
            Ok(Some(record)) => self.insert(name, record),
            // Removed in the meantime.
            Ok(None) => {}
            Err(error) => {
                self.counters.records_invalid.increment();
                let error = anyhow::Error::from(error);
                tracing::warn!(record = ?name, error = format!("{error:#}"), "a container's record can't be used");
            }
        }
    }

    fn insert(&mut self, name: &RecordName, record: ContainerRecord) {
        let (created_ns, ended_ns, counts) = (record.created_ns, record.ended_ns, record.counts);
        let unguarded = matches!(record.guard, Guard::Unguarded { .. });
        let unknown = record.contents_unknown.clone();
        match self.containers.insert(name.clone(), record) {
            Inserted::Full => {
                self.counters.records_over_limit.increment();
                return;
            }
            Inserted::New => {
                // The name may have been an earlier container's.
                self.ended.remove(name);
                self.new.push(name.clone());
                if let Some(reason) = unknown {
                    self.counters.contents_unknown.increment();
                    tracing::warn!(record = ?name, reason, "tools are recognised by their names only in this container");
                }
                if unguarded {
                    self.unguarded.push(name.clone());
                }
            }
            Inserted::Known => {}
        }
        match ended_ns {
            Some(ended_ns) => self.end(name, created_ns, ended_ns, counts),
            // Its shim may have chosen by a policy set that has been replaced since.
            None => self.enforcement.apply(name),
        }
    }

    /// Notes that a container has ended, and what the kernel has counted for it.
    pub fn end(&mut self, name: &RecordName, created_ns: u64, ended_ns: u64, counts: Option<Counts>) {
        self.containers.mark_ended(name, ended_ns);
        self.ended.entry(name.clone()).or_insert(Ended { created_ns, seen: Instant::now(), counts });
    }

    /// Sends the workload of each new container whose image is known at once, and a signal for each that was found without guard.
    /// The store keeps one a container.
    pub fn send_new(&mut self) -> Result<(), EventsError> {
        for name in std::mem::take(&mut self.new) {
            let Some(container) = self.containers.get(&name) else { continue };
            let Some(workload) = container.workload() else { continue };
            self.send(Item::Workload(workload, container.record.created_ns))?;
        }
        for name in std::mem::take(&mut self.unguarded) {
            let Some(container) = self.containers.get(&name) else { continue };
            let Guard::Unguarded { reason } = &container.record.guard else { continue };
            tracing::warn!(container = ?container.record.container_id, reason = ?reason, "a container runs unguarded");
            let origin = Origin::Unguarded { container: hash(&container.record) };
            let signal = signal::unguarded(&container, reason);
            let pending = Pending { origin, signal, kin: Vec::new(), container: Some(name) };
            self.send(Item::Signal(Box::new(pending)))?;
        }
        Ok(())
    }

    fn send(&self, item: Item) -> Result<(), EventsError> {
        self.signals.blocking_send(item).map_err(|_| EventsError::Closed)
    }

    /// Whether one has ended and waits to be collected.
    pub fn is_ended(&self, name: &RecordName) -> bool {
        self.ended.contains_key(name)
    }

    /// Whether there is anything to collect, now or soon.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// The containers whose end was seen before the ring buffer was read until it was empty, with what was counted for them.
    pub fn collectable(&self, reading_began: Instant) -> Vec<(RecordName, Option<Counts>)> {
        let now = Instant::now();
        let is_read = |ended: &Ended| ended.seen <= reading_began && now.saturating_duration_since(ended.seen) >= GRACE;
        let ended = self.ended.iter().filter(|(_, ended)| is_read(ended));
        ended.map(|(name, ended)| (name.clone(), ended.counts)).collect()
    }

    /// Removes one of those.
    pub fn remove(&mut self, name: &RecordName) {
        let Some(ended) = self.ended.remove(name) else { return };
        if let Err(error) = self.directory.remove(name, ended.created_ns) {
            tracing::warn!(record = ?name, %error, "a container's record could not be removed");
        }
        self.containers.remove(name);
    }
}

fn hash(record: &ContainerRecord) -> [u8; 32] {
    let mut hash = Sha256::new();
    // Neither can hold a NUL.
    for text in [&record.containerd_namespace, &record.container_id] {
        hash.update(text);
        hash.update([0]);
    }
    hash.update(record.created_ns.to_be_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    struct Bed {
        run: tempfile::TempDir,
        tracker: Tracker,
        containers: Containers,
        signals: mpsc::Receiver<Item>,
    }

    fn bed() -> Bed {
        let run = tempfile::tempdir().unwrap();
        let directory = RecordDirectory::create(run.path()).unwrap();
        let containers = Containers::default();
        let (sender, signals) = mpsc::channel(8);
        let enforcement = testing::enforcement(run.path(), &containers);
        let tracker = Tracker::new(directory, containers.clone(), enforcement, sender, Arc::default());
        Bed { run, tracker, containers, signals }
    }

    /// As the events' thread does.
    fn collect(tracker: &mut Tracker, reading_began: Instant) -> Vec<Option<Counts>> {
        let all = tracker.collectable(reading_began);
        all.into_iter().map(|(name, counts)| (tracker.remove(&name), counts).1).collect()
    }

    fn rewind(tracker: &mut Tracker) {
        for ended in tracker.ended.values_mut() {
            ended.seen = ended.seen.checked_sub(GRACE * 2).unwrap();
        }
    }

    #[test]
    fn an_ended_container_stays_until_its_events_are_read() {
        let mut bed = bed();
        let mut record = testing::record(42, "c1");
        let name = RecordName::Cgroup(42);
        testing::write_record(bed.run.path(), &record);
        bed.tracker.scan().unwrap();
        let before = Instant::now();
        let counts = Some(Counts { matched: 3, blocked: 2, killed: 1 });
        (record.ended_ns, record.counts) = (Some(7), counts);
        testing::write_record(bed.run.path(), &record);
        bed.tracker.load(&name);
        assert_eq!(bed.containers.get(&name).unwrap().ended_ns, Some(7));
        collect(&mut bed.tracker, before);
        assert!(bed.containers.get(&name).is_some(), "the ring buffer may have been empty before the end");
        collect(&mut bed.tracker, Instant::now());
        assert!(bed.containers.get(&name).is_some(), "not yet");
        rewind(&mut bed.tracker);
        assert_eq!(collect(&mut bed.tracker, Instant::now()), [counts]);
        assert!(bed.containers.get(&name).is_none());
        assert!(!bed.run.path().join("containers/42").exists());
        assert!(!bed.tracker.has_ended());
    }

    #[test]
    fn a_name_that_is_used_again_is_a_new_container() {
        let mut bed = bed();
        let mut record = testing::record(0, "c1");
        record.ended_ns = Some(7);
        testing::write_record(bed.run.path(), &record);
        bed.tracker.scan().unwrap();
        rewind(&mut bed.tracker);
        let again = ContainerRecord { created_ns: record.created_ns + 1, ended_ns: None, ..record };
        testing::write_record(bed.run.path(), &again);
        let name = RecordName::Other("x-default-c1".into());
        bed.tracker.load(&name);
        collect(&mut bed.tracker, Instant::now());
        assert_eq!(bed.containers.get(&name).unwrap().ended_ns, None);
        assert!(bed.run.path().join("containers/x-default-c1").exists());
    }

    #[test]
    fn an_unguarded_container_is_reported() {
        let mut bed = bed();
        let mut record = testing::record(0, "c1");
        record.guard = Guard::Unguarded { reason: "no cgroup".into() };
        testing::write_record(bed.run.path(), &record);
        bed.tracker.scan().unwrap();
        bed.tracker.send_new().unwrap();
        let Item::Signal(pending) = bed.signals.try_recv().unwrap() else { panic!("no signal") };
        assert_eq!(pending.signal.rule, "container_unguarded");
        bed.tracker.scan().unwrap();
        bed.tracker.send_new().unwrap();
        assert!(bed.signals.try_recv().is_err());
    }
}
