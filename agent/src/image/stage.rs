//! The stage between the ring buffer's thread and the store: signals whose container's image is being asked for wait here,
//! a second at most and a bounded number of them; all others pass.

use std::{collections::VecDeque, future::pending, sync::Arc, time::Duration};

use portcullis_proto::v1::{NetworkActivity, Node, Signal};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    containers::{Containers, Image},
    counters::Counters,
    network,
    records::RecordName,
    store::{
        Command, Sender, StoreError,
        accounts::Account,
        entry::{Entry, Origin, Process, Update},
        habits::Workload,
    },
};

/// How long a signal waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// Signals that wait at most. A decoded signal takes up to 100 kB (an argument list of empty strings).
const WAITING: usize = 256;

/// What comes from the ring buffer's thread.
#[derive(Debug)]
pub enum Item {
    /// A new signal.
    Signal(Box<Pending>),
    /// What was folded into one that came before.
    Update(Update),
    /// A container of a workload was created, at this time in nanoseconds since 1970.
    Workload(Workload, u64),
    /// What the process of one that came before has done on the network since.
    Network(Origin, NetworkActivity),
    /// What is in no signal, for a container's account.
    Account(u64, Account),
    /// A container's account is closed.
    Close(u64),
    /// The store is to say when it has dealt with all that came before.
    Settle(u64),
}

/// A signal that may lack its image.
#[derive(Debug)]
pub struct Pending {
    /// What it is about.
    pub origin: Origin,
    /// The signal.
    pub signal: Signal,
    /// The process that it is about, and that process's ancestors.
    pub kin: Vec<Process>,
    /// Its container, if it has a record.
    pub container: Option<RecordName>,
}

/// A signal that waits.
struct Waiting {
    deadline: Instant,
    pending: Box<Pending>,
    /// What was folded into it in the meantime.
    update: Option<Update>,
    /// What its process has done.
    network: Option<NetworkActivity>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It has its image, or there is none to be had.
    Complete,
    /// The image could not be found out.
    Lacking,
    /// The image is being asked for.
    Wait,
}

/// Says where each was seen, as well. Works until the sender of `items` is gone, and then until those that wait are stored.
pub async fn complete_signals(
    mut items: mpsc::Receiver<Item>,
    containers: Containers,
    store: Sender,
    node: Node,
    counters: Arc<Counters>,
) -> Result<(), StoreError> {
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    // It must not overtake what waits.
    let mut settle: Option<(Instant, u64)> = None;
    loop {
        let oldest = waiting.front().map(|waiting| waiting.deadline);
        tokio::select! {
            received = items.recv() => match received {
                Some(Item::Signal(pending)) => {
                    let mut new = Waiting { deadline: Instant::now() + PATIENCE, pending, update: None, network: None };
                    match complete(&mut new.pending, &containers) {
                        Fate::Wait => waiting.push_back(new),
                        fate => put(&store, &node, new, fate, &counters).await?,
                    }
                }
                // It must not overtake its signal.
                Some(Item::Update(update)) => match waiting.iter_mut().find(|one| one.pending.origin == update.origin) {
                    Some(one) => one.add(update),
                    None => store.send(Command::Update(update)).await?,
                },
                Some(Item::Workload(workload, created_ns)) => {
                    store.send(Command::Workload(workload, created_ns)).await?;
                }
                Some(Item::Network(origin, activity)) => {
                    match waiting.iter_mut().find(|one| one.pending.origin == origin) {
                        Some(one) => network::merge(one.network.get_or_insert_default(), activity),
                        None => store.send(Command::Network(origin, activity)).await?,
                    }
                }
                Some(Item::Account(cgroup_id, account)) => store.send(Command::Account(cgroup_id, account)).await?,
                Some(Item::Close(cgroup_id)) => store.send(Command::Close(cgroup_id)).await?,
                Some(Item::Settle(number)) => settle = Some((Instant::now() + PATIENCE, number)),
                None => break,
            },
            () = containers.image_answered() => {
                for mut one in std::mem::take(&mut waiting) {
                    match complete(&mut one.pending, &containers) {
                        Fate::Wait => waiting.push_back(one),
                        fate => put(&store, &node, one, fate, &counters).await?,
                    }
                }
            }
            () = at(oldest) => {}
        }
        let now = Instant::now();
        while waiting.len() > WAITING || waiting.front().is_some_and(|waiting| waiting.deadline <= now) {
            let Some(one) = waiting.pop_front() else { break };
            put(&store, &node, one, Fate::Lacking, &counters).await?;
        }
        let is_first = |deadline: Instant| waiting.front().is_none_or(|waiting| waiting.deadline > deadline);
        if let Some((_, number)) = settle.take_if(|(deadline, _)| is_first(*deadline)) {
            store.send(Command::Settle(number)).await?;
        }
    }
    for mut one in waiting {
        let fate = complete(&mut one.pending, &containers);
        put(&store, &node, one, fate, &counters).await?;
    }
    Ok(())
}

impl Waiting {
    fn add(&mut self, mut update: Update) {
        update.added += self.update.take().map(|before| before.added).unwrap_or_default();
        self.update = Some(update);
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Fills in the image if it is known by now.
fn complete(pending: &mut Pending, containers: &Containers) -> Fate {
    let Some(message) = pending.signal.container.as_mut() else { return Fate::Complete };
    let known = pending.container.as_ref().and_then(|name| containers.get(name));
    let Some(known) = known.filter(|_| message.image.is_empty()) else { return Fate::Complete };
    match known.image {
        Image::Known(image) => {
            message.image = image;
            Fate::Complete
        }
        Image::None => Fate::Complete,
        Image::Unanswered => Fate::Lacking,
        Image::Wanted | Image::Asked => Fate::Wait,
    }
}

async fn put(store: &Sender, node: &Node, waiting: Waiting, fate: Fate, counters: &Counters) -> Result<(), StoreError> {
    if fate != Fate::Complete {
        counters.signals_without_image.increment();
    }
    let Pending { origin, mut signal, kin, .. } = *waiting.pending;
    signal.node = Some(node.clone());
    store.send(Command::Signal(Box::new(Entry::new(origin, &signal, kin)))).await?;
    if let Some(update) = waiting.update {
        store.send(Command::Update(update)).await?;
    }
    match waiting.network {
        Some(activity) => store.send(Command::Network(origin, activity)).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use portcullis_proto::v1::{Container, Verdict};

    use super::*;
    use crate::{count::Count, store, testing};

    fn origin(number: u64) -> Origin {
        Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: number }
    }

    fn signal(number: u64) -> Item {
        Item::Signal(Box::new(Pending {
            origin: origin(number),
            signal: Signal {
                container: Some(Container { id: "c1".into(), ..Container::default() }),
                ..Signal::default()
            },
            kin: Vec::new(),
            container: Some(RecordName::Cgroup(42)),
        }))
    }

    struct Bed {
        _state: tempfile::TempDir,
        containers: Containers,
        signals: mpsc::Sender<Item>,
        store: store::Store,
    }

    /// The stage before a real store, and one container whose image is being asked for.
    fn bed() -> Bed {
        let state = tempfile::tempdir().unwrap();
        let limits = store::Limits { max_age: Duration::from_secs(3600), max_bytes: 1 << 30 };
        let counters = Arc::new(Counters::default());
        let (sender, store, _thread) = store::open(state.path(), limits, Arc::clone(&counters)).unwrap();
        let containers = Containers::default();
        containers.insert(RecordName::Cgroup(42), testing::record(42, "c1"));
        assert!(containers.ask_image().is_some());
        let (signals, receiver) = mpsc::channel(4);
        tokio::spawn(complete_signals(receiver, containers.clone(), sender, node(), counters));
        Bed { _state: state, containers, signals, store }
    }

    fn node() -> Node {
        Node { name: "node-1".into(), cluster: "shop".into() }
    }

    async fn image_of(store: &store::Store, id: u64) -> String {
        let mut last = store.last_id();
        last.wait_for(|last| *last >= id).await.unwrap();
        store.readers().signal(id).await.unwrap().unwrap().container.unwrap().image
    }

    #[tokio::test]
    async fn a_signal_waits_for_its_image() {
        let bed = bed();
        bed.signals.send(signal(1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(*bed.store.last_id().borrow(), 0);
        let created = testing::record(42, "c1").created_ns;
        bed.containers.set_image(&RecordName::Cgroup(42), created, Image::Known("alpine".into()));
        assert_eq!(image_of(&bed.store, 1).await, "alpine");
        assert_eq!(bed.store.readers().signal(1).await.unwrap().unwrap().node, Some(node()));
    }

    #[tokio::test]
    async fn repeats_wait_with_their_signal() {
        let bed = bed();
        bed.signals.send(signal(1)).await.unwrap();
        for count in 2..=3 {
            let changed = Signal { count, ..Signal::default() };
            bed.signals
                .send(Item::Update(Update::new(origin(1), Count::many(1, Verdict::Blocked), &changed)))
                .await
                .unwrap();
        }
        bed.store.revision().wait_for(|revision| *revision > 0).await.unwrap();
        assert_eq!(bed.store.readers().signal(1).await.unwrap().unwrap().count, 3);
    }

    #[tokio::test]
    async fn a_signal_does_not_wait_for_long() {
        let bed = bed();
        let sent = Instant::now();
        bed.signals.send(signal(1)).await.unwrap();
        assert_eq!(image_of(&bed.store, 1).await, "");
        assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&sent.elapsed()));
    }

    #[tokio::test]
    async fn it_is_settled_when_what_came_before_is_stored() {
        let bed = bed();
        bed.signals.send(signal(1)).await.unwrap();
        bed.signals.send(Item::Settle(7)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(bed.store.settled(), 0, "the signal waits for its image");
        assert_eq!(image_of(&bed.store, 1).await, "");
        bed.signals.send(signal(2)).await.unwrap();
        while bed.store.settled() != 7 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(*bed.store.last_id().borrow(), 1, "it does not wait for what came later");
    }

    #[tokio::test]
    async fn only_so_many_signals_wait() {
        let bed = bed();
        for number in 0..u64::try_from(WAITING).unwrap() + 10 {
            bed.signals.send(signal(number)).await.unwrap();
        }
        let early = tokio::time::timeout(Duration::from_millis(900), image_of(&bed.store, 10)).await;
        assert_eq!(early.unwrap(), "");
    }
}
