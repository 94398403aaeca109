//! The events' thread: reads the ring buffer, joins each event with its container and hands signals on.
//!
//! | module | idea |
//! |---|---|
//! | [`watch`] | inotify on the directory of records |
//! | [`tracker`] | records into the table of containers, and out of it once their events are read |
//! | [`rings`] | where the events come from |
//! | [`sweep`] | what shims that died have left behind |
//! | [`probes`] | exec sessions that come at a steady pace |
//! | [`repeats`] | what a rule has reported of late |
//! | [`folding`] | repeats become a count in the signal of the first |
//! | [`activity`] | what reported processes do on the network, on its way to their signals |
//! | [`rates`] | how many new signals a container may make |
//! | [`suppressed`] | what is more than that, told by number |
//! | [`accounts`] | what is missing, told by number |
//!
//! When the stage behind is busy this thread waits: events then stay in the ring buffer, which survives the agent, and
//! what does not fit in there is counted by the kernel.

mod accounts;
mod activity;
mod folding;
mod probes;
mod rates;
mod repeats;
mod rings;
mod suppressed;
mod sweep;
mod tracker;
mod watch;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use portcullis_bpf::{
    abi::{ContainerStats, Event, Verdict},
    guard::{Guard, GuardError},
    pins::Pins,
    ring::Activities,
};
use portcullis_proto::v1;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};
use tokio::sync::mpsc;

pub use self::rates::{BURST, PER_SECOND};
use self::{
    accounts::Accounts,
    folding::Folding,
    probes::Probes,
    rates::Rates,
    repeats::Repeats,
    rings::{Ring, Rings},
    suppressed::Suppressed,
    sweep::Sweep,
    tracker::Tracker,
    watch::Watch,
};
use crate::{
    clock::{BootOffset, boot_ns},
    containers::Containers,
    counters::Counters,
    enforcement::Enforcement,
    image::{Item, Pending},
    records::{RecordDirectory, RecordName},
    signal,
    store::{
        Store,
        entry::{Origin, Process},
    },
    tools::Tools,
};

/// Events read before records are looked at again.
const ROUND: usize = 256;
/// Activities read before events are looked at again.
const ACTIVITY_ROUND: usize = 1024;
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// At most so often the store is told what became of a signal that it has.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// At most so often the kernel's numbers are read, while events come.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// While ended containers wait to be collected.
const COLLECT_INTERVAL: Duration = Duration::from_secs(1);

/// Why the thread could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// A pinned object could not be opened.
    #[error("opening what is pinned")]
    Pins(#[from] GuardError),
    /// The directory of all versions' pins can't be read.
    #[error("looking for other versions' programs")]
    Versions(#[source] io::Error),
    /// The record directory can't be watched.
    #[error("watching the container records")]
    Watch(#[source] io::Error),
    /// The record directory can't be read.
    #[error("reading the container records")]
    Records(#[source] io::Error),
    /// Waiting failed.
    #[error("waiting for events")]
    Poll(#[source] io::Error),
    /// Nobody takes signals any more.
    #[error("the signals' stage has ended")]
    Closed,
}

/// Ends the thread.
#[derive(Debug)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// Asks it to end; what it has not read stays in the ring buffer.
    pub fn stop(&self) {
        // Fails only when the counter is full, and then the thread wakes as well.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// Where signals go.
pub struct Outlet<'a> {
    /// The stage before the store.
    pub signals: mpsc::Sender<Item>,
    /// Where they are in the end.
    pub store: &'a Store,
}

/// Containers of which the last is on its way to the store.
struct Ending {
    /// The store is asked to settle behind it.
    settle: u64,
    containers: Vec<RecordName>,
}

/// The thread's state.
pub struct EventLoop {
    rings: Rings,
    watch: Watch,
    stop: Arc<OwnedFd>,
    tracker: Tracker,
    sweep: Sweep,
    containers: Containers,
    enforcement: Enforcement,
    tools: Tools,
    probes: Probes,
    repeats: Repeats,
    folding: Folding,
    rates: Rates,
    suppressed: Suppressed,
    activity: activity::Pending,
    accounts: Accounts,
    ending: Option<Ending>,
    /// How often the store was asked to settle.
    settles: u64,
    store: Store,
    looked: Instant,
    updated: Instant,
    /// The counter of repeats that came too late for their signal, as it was when last looked at.
    repeats_lost: u64,
    signals: mpsc::Sender<Item>,
    counters: Arc<Counters>,
}

impl EventLoop {
    /// Opens everything and reads the records that are there.
    pub fn open(
        pins: &Pins,
        directory: RecordDirectory,
        containers: Containers,
        enforcement: Enforcement,
        tools: Tools,
        sink: Outlet<'_>,
        counters: Arc<Counters>,
    ) -> Result<(Self, Stop), EventsError> {
        let Outlet { signals, store } = sink;
        let others = pins.others().map_err(EventsError::Versions)?;
        let rings = Rings::open(pins, &others)?;
        let guard = Guard::open(pins.clone())?;
        // First the watch, then the reading: nothing falls between.
        let watch = Watch::new(directory.path()).map_err(EventsError::Watch)?;
        let run_dir = directory.run_dir().to_owned();
        let mut tracker =
            Tracker::new(directory, containers.clone(), enforcement.clone(), signals.clone(), Arc::clone(&counters));
        tracker.scan().map_err(EventsError::Records)?;
        enforcement.settle();
        let stop =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| EventsError::Poll(e.into()))?;
        let stop = Arc::new(stop);
        let sweep = Sweep::new(guard, others, run_dir, Arc::clone(&counters));
        let accounts = Accounts::new(store.take_accounts(), &sweep.stats());
        let handle = Stop(Arc::clone(&stop));
        let this = Self {
            rings,
            watch,
            stop,
            tracker,
            sweep,
            containers,
            enforcement,
            tools,
            probes: Probes::default(),
            repeats: Repeats::default(),
            folding: Folding::default(),
            rates: Rates::default(),
            suppressed: Suppressed::default(),
            activity: activity::Pending::default(),
            accounts,
            ending: None,
            settles: 0,
            store: store.clone(),
            looked: Instant::now(),
            updated: Instant::now(),
            repeats_lost: 0,
            signals,
            counters,
        };
        Ok((this, handle))
    }

    /// Works until [`Stop::stop`].
    pub fn run(mut self) -> Result<(), EventsError> {
        // What the scan on opening found; sent here because it may wait.
        self.tracker.send_new()?;
        let mut next_sweep = Instant::now();
        loop {
            let started = Instant::now();
            self.read_records()?;
            let read_events = self.read_events()?;
            let drained = self.read_activities()? && read_events;
            if self.has_updates() && self.updated.elapsed() >= UPDATE_INTERVAL {
                self.send_updates()?;
            }
            self.accounts.conclude(self.rings.read_to_ns());
            if self.accounts.have_changed() && self.looked.elapsed() >= LOOK_INTERVAL {
                self.look();
            }
            if drained {
                self.collect(started)?;
            }
            if next_sweep <= Instant::now() {
                next_sweep = Instant::now() + SWEEP_INTERVAL;
                self.tracker.scan().map_err(EventsError::Records)?;
                for pins in self.sweep.run(&mut self.tracker, &self.containers, drained) {
                    self.rings.close(&pins);
                }
                self.accounts.drop(self.store.dropped().take());
                let stats = self.look();
                self.accounts.prune(&stats, &self.containers);
                self.enforcement.settle();
                self.tracker.send_new()?;
                self.containers.want_unanswered_images();
                let now = boot_ns();
                self.rates.prune(now);
                self.suppressed.prune(now);
                self.probes.prune(now);
            }
            let timeout = if drained { self.timeout(next_sweep) } else { Duration::ZERO };
            if self.wait(timeout)? {
                return self.send_updates();
            }
        }
    }

    /// Reads the kernel's numbers.
    fn look(&mut self) -> Vec<(u64, ContainerStats)> {
        self.looked = Instant::now();
        let stats = self.sweep.stats();
        self.accounts.look(&stats, boot_ns());
        stats
    }

    /// Forgets containers that have ended, once all of them is told and on disk: should this agent be killed before, the next one
    /// finds what the kernel has counted, in its table or in the record.
    fn collect(&mut self, reading_began: Instant) -> Result<(), EventsError> {
        if let Some(ending) = self.ending.take_if(|ending| ending.settle <= self.store.settled()) {
            self.accounts.drop(self.store.dropped().take());
            for name in ending.containers {
                self.forget(&name);
            }
        }
        if self.ending.is_some() {
            return Ok(());
        }
        let collected = self.tracker.collectable(reading_began);
        if collected.is_empty() {
            return Ok(());
        }
        for (name, counts) in &collected {
            if let RecordName::Cgroup(cgroup_id) = name {
                self.accounts.finish(*cgroup_id, *counts);
            }
        }
        self.send_updates()?;
        self.settles += 1;
        self.send(Item::Settle(self.settles))?;
        let containers = collected.into_iter().map(|(name, _)| name).collect();
        self.ending = Some(Ending { settle: self.settles, containers });
        Ok(())
    }

    /// What could not be told, or not be forgotten by the kernel, is collected again.
    fn forget(&mut self, name: &RecordName) {
        if let RecordName::Cgroup(cgroup_id) = name {
            if !(self.accounts.is_told(*cgroup_id) && self.sweep.forget(*cgroup_id)) {
                return;
            }
            self.accounts.forget(*cgroup_id);
        }
        self.tracker.remove(name);
    }

    fn timeout(&self, next_sweep: Instant) -> Duration {
        let mut timeout = next_sweep.saturating_duration_since(Instant::now());
        if self.tracker.has_ended() {
            timeout = timeout.min(COLLECT_INTERVAL);
        }
        if self.has_updates() {
            timeout = timeout.min(UPDATE_INTERVAL.saturating_sub(self.updated.elapsed()));
        }
        if self.accounts.are_looked_at() {
            timeout = timeout.min(UPDATE_INTERVAL);
        } else if self.accounts.have_changed() {
            timeout = timeout.min(LOOK_INTERVAL.saturating_sub(self.looked.elapsed()));
        }
        timeout
    }

    fn has_updates(&self) -> bool {
        self.folding.has_changed()
            || self.suppressed.has_changed()
            || self.activity.has_changed()
            || self.accounts.has_news()
    }

    /// Tells the store what became of signals that it has.
    fn send_updates(&mut self) -> Result<(), EventsError> {
        self.updated = Instant::now();
        let lost = self.counters.repeats_lost.get();
        if lost != self.repeats_lost {
            // Retention may remove what is still folded into. It is not known which, and any signal can be told anew.
            self.repeats_lost = lost;
            self.folding.forget();
            self.suppressed.forget();
        }
        let updates = self.folding.updates().into_iter().map(Item::Update);
        for item in updates.chain(self.suppressed.items(&self.containers, BootOffset::now())) {
            self.send(item)?;
        }
        self.send_activity()?;
        self.accounts.drop(self.store.dropped().take());
        let (items, lost) = self.accounts.items(&self.containers, BootOffset::now(), boot_ns());
        if lost > 0 {
            if self.counters.events_untold.get() == 0 {
                tracing::warn!(
                    "events of a container are in no signal: how many is told in a signal events_lost; said once"
                );
            }
            self.counters.events_untold.add(lost);
        }
        items.into_iter().try_for_each(|item| self.send(item))
    }

    fn send_activity(&mut self) -> Result<(), EventsError> {
        let activity = self.activity.take();
        activity.into_iter().try_for_each(|(origin, activity)| self.send(Item::Network(origin, activity)))
    }

    fn send(&self, item: Item) -> Result<(), EventsError> {
        self.signals.blocking_send(item).map_err(|_| EventsError::Closed)
    }

    /// Waits for something to do. Whether the thread is to end.
    fn wait(&self, timeout: Duration) -> Result<bool, EventsError> {
        let own = [self.stop.as_fd(), self.watch.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let mut fds: Vec<_> = own.into_iter().chain(self.rings.poll()).collect();
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(EventsError::Poll(error.into())),
        }
        Ok(fds.first().is_some_and(|stop| stop.revents().contains(PollFlags::IN)))
    }

    fn read_records(&mut self) -> Result<(), EventsError> {
        let changes = self.watch.changes().map_err(EventsError::Watch)?;
        for name in changes.names {
            self.tracker.load(&name);
        }
        if changes.overflowed {
            self.counters.records_rescanned.increment();
            self.tracker.scan().map_err(EventsError::Records)?;
        }
        self.tracker.send_new()
    }

    /// Reads a round of events. Whether the ring buffers are empty now.
    fn read_events(&mut self) -> Result<bool, EventsError> {
        let offset = BootOffset::now();
        let mut rings = std::mem::take(&mut self.rings);
        let drained =
            rings.iter_mut().try_fold(true, |drained, ring| Ok(self.read_some_events(ring, offset)? && drained));
        self.rings = rings;
        drained
    }

    fn read_some_events(&mut self, ring: &mut Ring, offset: BootOffset) -> Result<bool, EventsError> {
        let began_ns = boot_ns();
        for _ in 0..ROUND {
            match ring.events.next_event() {
                None => {
                    ring.read_to_ns = began_ns;
                    return Ok(true);
                }
                Some(Ok(event)) => {
                    ring.read_to_ns = event.time_ns;
                    self.accounts.see(&event);
                    self.handle(&event, offset)?;
                }
                Some(Err(error)) => {
                    self.counters.decode_errors.increment();
                    tracing::warn!(%error, "a record of the ring buffer is no event");
                }
            }
        }
        Ok(false)
    }

    /// Reads a round of activities. Whether their ring buffers are empty now.
    fn read_activities(&mut self) -> Result<bool, EventsError> {
        let offset = BootOffset::now();
        let mut rings = std::mem::take(&mut self.rings);
        let drained = rings
            .iter_mut()
            .try_fold(true, |drained, ring| Ok(self.read_some_activities(&mut ring.activities, offset)? && drained));
        self.rings = rings;
        drained
    }

    fn read_some_activities(&mut self, ring: &mut Activities, offset: BootOffset) -> Result<bool, EventsError> {
        for _ in 0..ACTIVITY_ROUND {
            match ring.next_activity() {
                None => return Ok(true),
                Some(Ok(seen)) => {
                    if let Some(operation) = activity::operation(&seen, offset) {
                        self.activity.add(seen.by, operation);
                    }
                }
                Some(Err(error)) => {
                    self.counters.decode_errors.increment();
                    tracing::warn!(%error, "a record of the ring buffer is no activity");
                }
            }
            if self.activity.is_full() {
                self.send_activity()?;
            }
        }
        Ok(false)
    }

    /// Whether the policy omits an event from what is reported. What was stopped is always told.
    fn is_omitted(&mut self, event: &Event) -> bool {
        if !matches!(event.verdict, Verdict::Detected | Verdict::WouldBlock) {
            return false;
        }
        let Some(omissions) = self.tools.omissions(event) else { return false };
        if omissions.exclude(event.argv.iter().skip(1).map(Vec::as_slice)) {
            self.counters.excepted_arguments.increment();
            return true;
        }
        let Some(window) = omissions.repeats else { return false };
        let answer = self.repeats.judge(event, &omissions, window);
        self.counters.repeats_forgotten.add(answer.forgotten);
        if answer.repeat {
            self.counters.excepted_repeats.increment();
        }
        answer.repeat
    }

    fn handle(&mut self, event: &Event, offset: BootOffset) -> Result<(), EventsError> {
        // First: what is omitted or folded keeps the pace as well.
        let probes::Answer { origin: came_by, forgotten } = self.probes.judge(event);
        self.counters.probes_forgotten.add(forgotten);
        if self.is_omitted(event) {
            self.accounts.omit(event);
            return Ok(());
        }
        let repeat = self.tools.repeat(event);
        let common = self.folding.common(event, came_by, repeat);
        let tool = self.tools.tool_id(event).unwrap_or_default();
        let question = activity::question(event, &tool, offset);
        if let Some(first) = common.and_then(|common| self.folding.fold(common, event, offset)) {
            self.counters.repeats_folded.increment();
            self.activity.folded(event, first);
            if let Some(question) = question {
                self.activity.add(activity::flagged(event), question);
            }
            return Ok(());
        }
        if !self.rates.allow(event.cgroup_id, event.time_ns) {
            self.suppress(event, tool);
            return Ok(());
        }
        let name = RecordName::Cgroup(event.cgroup_id);
        let mut container = self.containers.get(&name);
        if container.is_none() {
            // The record is older than its container's first instruction: only its notification is late.
            self.tracker.load(&name);
            container = self.containers.get(&name);
        }
        if container.is_none() {
            self.counters.events_without_record.increment();
            tracing::warn!(cgroup_id = event.cgroup_id, "an event's container has no record");
        }
        let mut signal = signal::from_event(event, came_by, container.as_ref(), &self.tools, offset);
        signal.network = question.map(|question| v1::NetworkActivity { operations: vec![question], omitted: 0 });
        let process = Process { pid: event.pid, start_time_ns: event.start_time_ns };
        let origin = Origin::Event { cgroup_id: event.cgroup_id, process, time_ns: event.time_ns };
        if let Some(common) = common {
            let forgotten = self.folding.begin(common, event, repeat, origin, offset);
            self.counters.folds_forgotten.add(forgotten);
        }
        let ancestors = event.lineage.iter();
        let mut kin: Vec<Process> =
            ancestors.map(|image| Process { pid: image.pid, start_time_ns: image.start_time_ns }).collect();
        kin.push(process);
        // One process may have executed several images.
        kin.sort_unstable();
        kin.dedup();
        let pending = Pending { origin, signal, kin, container: container.map(|_| name) };
        self.send(Item::Signal(Box::new(pending)))
    }

    /// Counts what is too much to be told.
    fn suppress(&mut self, event: &Event, tool: String) {
        if self.counters.signals_suppressed.get() == 0 {
            tracing::warn!(
                cgroup_id = event.cgroup_id,
                "a container makes too many signals: what is more is counted in a signal signals_suppressed; said once"
            );
        }
        self.counters.signals_suppressed.increment();
        self.suppressed.add(event, tool);
    }
}
