use std::os::unix::fs::FileExt;

use portcullis_proto::v1::{
    Container, NetworkActivity, NetworkOperation, Occurrence, Pod, Severity, Signal, SignalFilter, SuppressedCount,
    Tool, Verdict,
};

use super::{
    entry::{Origin, Process, Update},
    filter::Filter,
    reader::Range,
    *,
};
use crate::{
    clock::{now_ns, timestamp},
    count::Count,
};

mod accounts;
mod faults;
mod novelty;

const LIMITS: Limits = Limits { max_age: Duration::from_secs(3600), max_bytes: 1 << 30 };

struct Bed {
    sender: Option<Sender>,
    store: Store,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
}

impl Bed {
    fn open(directory: &Path, limits: Limits) -> Self {
        let counters = Arc::new(Counters::default());
        let (sender, store, thread) = open(directory, limits, Arc::clone(&counters)).unwrap();
        Self { sender: Some(sender), store, thread: Some(thread), counters }
    }

    async fn put(&self, number: u64, signal: Signal) {
        let origin = Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: number };
        self.send(Command::Signal(Box::new(Entry::new(origin, &signal, Vec::new())))).await;
    }

    async fn send(&self, command: Command) {
        self.sender.as_ref().unwrap().send(command).await.unwrap();
    }

    /// Waits until everything sent is written.
    async fn close(&mut self) {
        self.sender = None;
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap();
    }

    async fn ids(&self, filter: SignalFilter) -> Vec<u64> {
        let filter = Filter::new(Some(&filter)).unwrap();
        let page = self.store.readers().page(filter, Range::Before(u64::MAX), 1000).await.unwrap();
        page.signals.iter().map(|signal| signal.id).collect()
    }
}

fn signal(tool: &str, seconds: u64) -> Signal {
    Signal {
        rule: "net_util_in_container".into(),
        severity: Severity::Medium.into(),
        verdict: Verdict::Detected.into(),
        time: Some(timestamp(now_ns() - seconds * 1_000_000_000)),
        tool: Some(Tool { id: tool.into(), category: "netcat".into(), techniques: vec![] }),
        ..Signal::default()
    }
}

#[tokio::test]
async fn filters_choose_what_they_say() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1, signal("nc", 100)).await;
    bed.put(2, Signal { verdict: Verdict::Blocked.into(), ..signal("nc", 50) }).await;
    bed.put(3, Signal { severity: Severity::Critical.into(), ..signal("nmap", 50) }).await;
    let pod = Pod { name: "web".into(), namespace: "shop".into(), ..Pod::default() };
    let container = Container { id: "c1".into(), image: "alpine".into(), pod: Some(pod), ..Container::default() };
    bed.put(4, Signal { container: Some(container), rule: "other".into(), ..signal("dig", 1) }).await;
    bed.close().await;
    let empty = SignalFilter::default;
    assert_eq!(bed.ids(empty()).await, [4, 3, 2, 1]);
    assert_eq!(bed.ids(SignalFilter { tool: "nc".into(), ..empty() }).await, [2, 1]);
    assert_eq!(bed.ids(SignalFilter { category: "netcat".into(), tool: "dig".into(), ..empty() }).await, [4]);
    assert_eq!(bed.ids(SignalFilter { verdict: Verdict::Blocked.into(), ..empty() }).await, [2]);
    assert_eq!(bed.ids(SignalFilter { min_severity: Severity::High.into(), ..empty() }).await, [3]);
    assert_eq!(bed.ids(SignalFilter { min_severity: Severity::Medium.into(), ..empty() }).await, [4, 3, 2, 1]);
    assert_eq!(bed.ids(SignalFilter { container_id: "c1".into(), ..empty() }).await, [4]);
    assert_eq!(bed.ids(SignalFilter { image: "alpine".into(), ..empty() }).await, [4]);
    assert_eq!(bed.ids(SignalFilter { rule: "other".into(), ..empty() }).await, [4]);
    assert_eq!(bed.ids(SignalFilter { pod_namespace: "shop".into(), pod_name: "web".into(), ..empty() }).await, [4]);
    let ago = |seconds: u64| Some(timestamp(now_ns() - seconds * 1_000_000_000));
    assert_eq!(bed.ids(SignalFilter { since: ago(70), until: ago(20), ..empty() }).await, [3, 2]);
    let injection = "x' OR '1'='1".to_owned();
    assert!(bed.ids(SignalFilter { tool: injection, ..empty() }).await.is_empty());
}

/// Some of it rare, some common, some in one place only.
fn varied(number: u64) -> Signal {
    let tool = if number.is_multiple_of(3) { "nc" } else { "nmap" };
    let severity = match number % 50 {
        0 => Severity::Critical,
        1..10 => Severity::High,
        10..20 => Severity::Low,
        _ => Severity::Medium,
    };
    let verdict = if number.is_multiple_of(10) { Verdict::Blocked } else { Verdict::Detected };
    let id = match number {
        400..500 => "burst".to_owned(),
        _ => format!("c{}", number % 7),
    };
    let pod = Pod { name: format!("web-{}", number % 2), namespace: "shop".into(), ..Pod::default() };
    let container = Container { id, image: "alpine".into(), pod: Some(pod), ..Container::default() };
    Signal { severity: severity.into(), verdict: verdict.into(), container: Some(container), ..signal(tool, 1) }
}

/// All that pass, in pages.
async fn paged(bed: &Bed, filter: &SignalFilter, ascending: bool) -> Vec<u64> {
    let (mut seen, mut from) = (Vec::new(), None);
    loop {
        let range = match (ascending, from) {
            (true, from) => Range::After(from.unwrap_or(0), u64::MAX),
            (false, from) => Range::Before(from.unwrap_or(u64::MAX)),
        };
        let page = bed.store.readers().page(Filter::new(Some(filter)).unwrap(), range, 10).await.unwrap();
        seen.extend(page.signals.iter().map(|signal| signal.id));
        from = page.next.map(|(_, id)| id);
        if from.is_none() {
            break;
        }
    }
    if !ascending {
        seen.reverse();
    }
    seen
}

#[tokio::test]
async fn several_conditions_find_what_each_row_says() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    for number in 1..=1000 {
        bed.put(number, varied(number)).await;
    }
    bed.close().await;
    let empty = SignalFilter::default;
    let mut filters = Vec::new();
    for tool in ["", "nc", "nmap", "dig"] {
        for container_id in ["", "c3", "burst", "none"] {
            for verdict in [Verdict::Unspecified, Verdict::Blocked] {
                for severity in [Severity::Unspecified, Severity::Low, Severity::High, Severity::Critical] {
                    for pod_name in ["", "web-1"] {
                        filters.push(SignalFilter {
                            tool: tool.into(),
                            container_id: container_id.into(),
                            verdict: verdict.into(),
                            min_severity: severity.into(),
                            pod_name: pod_name.into(),
                            pod_namespace: if severity == Severity::Low { "shop".into() } else { String::new() },
                            ..empty()
                        });
                    }
                }
            }
        }
    }
    let mut found = 0;
    for filter in filters {
        let fits = |number: &u64| {
            let signal = varied(*number);
            let container = signal.container.unwrap();
            (filter.tool.is_empty() || signal.tool.unwrap().id == filter.tool)
                && (filter.container_id.is_empty() || container.id == filter.container_id)
                && (filter.verdict == 0 || signal.verdict == filter.verdict)
                && signal.severity >= filter.min_severity
                && (filter.pod_name.is_empty() || container.pod.unwrap().name == filter.pod_name)
        };
        let expected: Vec<u64> = (1..=1000).filter(fits).collect();
        for ascending in [false, true] {
            assert_eq!(paged(&bed, &filter, ascending).await, expected, "{filter:?}");
        }
        found += usize::from(!expected.is_empty());
    }
    assert!(found > 50, "{found} filters find something");
}

#[test]
fn senseless_filters_are_refused() {
    let unknown = SignalFilter { verdict: 99, ..SignalFilter::default() };
    assert!(Filter::new(Some(&unknown)).unwrap_err().to_string().contains("verdict"));
    let time = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
    let time = SignalFilter { until: Some(time), ..SignalFilter::default() };
    assert!(Filter::new(Some(&time)).unwrap_err().to_string().contains("until"));
}

#[tokio::test]
async fn pages_cover_everything_once() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    for number in 0..25 {
        bed.put(number, signal("nc", 1)).await;
    }
    bed.close().await;
    for ascending in [false, true] {
        let seen = paged(&bed, &SignalFilter::default(), ascending).await;
        assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn large_signals_make_short_pages() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    for number in 0..40 {
        bed.put(number, Signal { message: "x".repeat(100_000), ..signal("nc", 1) }).await;
    }
    bed.close().await;
    let page = bed.store.readers().page(Filter::new(None).unwrap(), Range::After(0, u64::MAX), 1000).await.unwrap();
    assert_eq!((page.signals.len(), page.next), (11, Some((0, 11))));
}

#[tokio::test]
async fn an_event_is_stored_once() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    for number in [1, 2, 1, 3] {
        bed.put(number, signal("nc", 1)).await;
    }
    let unguarded = Origin::Unguarded { container: [7; 32] };
    for _ in 0..2 {
        bed.send(Command::Signal(Box::new(Entry::new(unguarded, &signal("nc", 1), Vec::new())))).await;
    }
    bed.close().await;
    assert_eq!(bed.ids(SignalFilter::default()).await, [4, 3, 2, 1]);
    assert_eq!(bed.counters.duplicates.get(), 1);
    assert_eq!(bed.store.stored(), 4);
}

#[tokio::test]
async fn a_store_that_opens_again_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let key = ContainerKey { namespace: "default".into(), id: "c1".into(), created_ns: 5 };
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1, signal("nc", 1)).await;
    bed.send(Command::Image(key.clone(), "alpine".into())).await;
    bed.close().await;
    let mut bed = Bed::open(state.path(), LIMITS);
    assert_eq!((*bed.store.last_id().borrow(), bed.store.stored()), (1, 1));
    assert_eq!(bed.store.readers().image(key.clone()).await.unwrap().as_deref(), Some("alpine"));
    let another = ContainerKey { created_ns: 6, ..key };
    assert_eq!(bed.store.readers().image(another).await.unwrap(), None);
    bed.put(2, signal("nc", 1)).await;
    bed.close().await;
    assert_eq!(bed.ids(SignalFilter::default()).await, [2, 1]);
    assert_eq!(bed.counters.store_replaced.get(), 0);
}

#[tokio::test]
async fn old_signals_go_and_their_ids_do_not_come_back() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1, signal("nc", 1)).await;
    bed.put(2, signal("nc", 2 * 3600)).await;
    bed.send(Command::Expire).await;
    bed.close().await;
    assert_eq!(bed.ids(SignalFilter::default()).await, [1]);
    assert_eq!(bed.store.stored(), 1);
    let mut bed = Bed::open(state.path(), LIMITS);
    assert_eq!(*bed.store.last_id().borrow(), 2);
    bed.put(3, signal("nc", 1)).await;
    bed.close().await;
    assert_eq!(bed.ids(SignalFilter::default()).await, [3, 1]);
    assert_eq!(bed.counters.expired_by_size.get(), 0);
}

#[tokio::test]
async fn the_database_stays_within_its_size() {
    const MAX: u64 = 2 << 20;
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), Limits { max_bytes: MAX, ..LIMITS });
    for number in 0..1000 {
        bed.put(number, Signal { message: "x".repeat(8000), ..signal("nc", 1) }).await;
    }
    bed.close().await;
    let ids = bed.ids(SignalFilter::default()).await;
    let stored = u64::try_from(ids.len()).unwrap();
    assert_eq!(ids.first(), Some(&1000), "the newest stay");
    assert!(stored > 50);
    assert_eq!(bed.store.stored(), 1000 - bed.counters.expired_by_size.get());
    let size = fs::metadata(state.path().join(FILE_NAME)).unwrap().len();
    assert!(size <= MAX, "{size}");
}

#[tokio::test]
async fn a_corrupt_database_is_moved_aside() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE_NAME);
    for damage in ["this is no database, and longer than a page".repeat(200), String::new()] {
        let mut bed = Bed::open(state.path(), LIMITS);
        bed.put(1, signal("nc", 1)).await;
        bed.close().await;
        let before = *bed.store.last_id().borrow();
        if damage.is_empty() {
            // The header stays, the tables are gone.
            let length = fs::metadata(&path).unwrap().len();
            let garbage = vec![0xa5; usize::try_from(length - 100).unwrap()];
            fs::File::options().write(true).open(&path).unwrap().write_all_at(&garbage, 100).unwrap();
        } else {
            fs::write(&path, damage).unwrap();
        }
        let mut bed = Bed::open(state.path(), LIMITS);
        assert_eq!(bed.counters.store_replaced.get(), 1);
        assert!(state.path().join("signals.db.corrupt").exists());
        bed.put(2, signal("nc", 1)).await;
        bed.close().await;
        let ids = bed.ids(SignalFilter::default()).await;
        assert!(ids.len() == 1 && ids[0] > before, "{ids:?}");
    }
}

#[tokio::test]
async fn a_single_signal_is_readable_at_once() {
    let state = tempfile::tempdir().unwrap();
    let bed = Bed::open(state.path(), LIMITS);
    let mut last_id = bed.store.last_id();
    let sent = std::time::Instant::now();
    bed.put(1, signal("nc", 1)).await;
    last_id.wait_for(|id| *id == 1).await.unwrap();
    assert_eq!(bed.store.readers().signal(1).await.unwrap().unwrap().id, 1);
    assert!(bed.store.readers().signal(2).await.unwrap().is_none());
    assert!(bed.store.readers().signal(u64::MAX).await.unwrap().is_none());
    assert!(sent.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn signals_of_a_process_and_its_ancestors_are_related() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    let process = |pid| Process { pid, start_time_ns: 7 };
    let event = |cgroup_id, process, time_ns| Origin::Event { cgroup_id, process, time_ns };
    let [nc, shell, again] = [process(10), process(11), Process { pid: 10, start_time_ns: 8 }];
    for (origin, kin) in [
        (event(42, nc, 1), vec![nc]),
        (event(42, shell, 2), vec![nc, shell]),
        // The same pid, but another process, or another container.
        (event(42, again, 3), vec![again]),
        (event(43, nc, 4), vec![nc]),
        (event(42, shell, 5), vec![shell]),
        (event(42, shell, u64::MAX), vec![shell, nc]),
    ] {
        bed.send(Command::Signal(Box::new(Entry::new(origin, &signal("nc", 1), kin)))).await;
    }
    for number in 0..20 {
        bed.send(Command::Signal(Box::new(Entry::new(event(44, nc, number), &signal("nc", 1), vec![nc])))).await;
    }
    bed.close().await;
    let page = bed.store.readers().page(Filter::new(None).unwrap(), Range::After(0, u64::MAX), 100).await.unwrap();
    let related: Vec<&[u64]> = page.signals.iter().map(|signal| signal.related.as_slice()).collect();
    assert_eq!(related[..6], [&[][..], &[1], &[], &[], &[2], &[1, 2, 5]]);
    assert_eq!(related[25], (10..26).collect::<Vec<u64>>());
}

fn origin(number: u64) -> Origin {
    Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: number }
}

/// `count` events by now, the last of them so many seconds ago.
fn update(number: u64, added: u64, count: u64, seconds: u64) -> Command {
    let time = timestamp(now_ns() - seconds * 1_000_000_000);
    let occurrence = Occurrence { pid: 9, time: Some(time), ..Occurrence::default() };
    let changed = Signal { count, last_time: Some(time), occurrences: vec![occurrence; 4], ..Signal::default() };
    Command::Update(Update::new(origin(number), Count { all: added, ..Count::default() }, &changed))
}

#[tokio::test]
async fn numbers_take_the_place_of_former_ones() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    let numbers = |count| SuppressedCount { tool: "nc".into(), count, ..SuppressedCount::default() };
    let told = |count| Signal { count, suppressed: vec![numbers(count)], ..Signal::default() };
    bed.put(1, Signal { rule: "signals_suppressed".into(), ..told(274) }).await;
    for count in [500, 937] {
        bed.send(Command::Update(Update::new(origin(1), Count::default(), &told(count)))).await;
    }
    bed.close().await;
    let signal = bed.store.readers().signal(1).await.unwrap().unwrap();
    assert_eq!((signal.count, &signal.suppressed[..]), (937, &[numbers(937)][..]));
}

#[tokio::test]
async fn repeats_change_a_signal_and_not_its_place() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1, signal("nc", 100)).await;
    bed.put(2, signal("nc", 90)).await;
    for count in 2..=300 {
        bed.send(update(1, 1, count, 10)).await;
    }
    bed.close().await;
    assert_eq!(bed.ids(SignalFilter::default()).await, [2, 1]);
    let signal = |id| bed.store.readers().signal(id);
    let [repeated, once] = [signal(1).await.unwrap().unwrap(), signal(2).await.unwrap().unwrap()];
    assert_eq!((repeated.id, repeated.count, repeated.occurrences.len()), (1, 300, 4));
    assert!(repeated.last_time.unwrap().seconds > repeated.time.unwrap().seconds + 80);
    assert_eq!((once.count, once.last_time, once.occurrences.len()), (1, once.time, 0));
    assert_eq!((bed.store.stored(), bed.counters.repeats_lost.get()), (2, 0));
    let page = bed.store.readers().page(Filter::new(None).unwrap(), Range::After(0, u64::MAX), 10).await.unwrap();
    assert_eq!(page.signals, [repeated, once]);

    let ago = |seconds: u64| Some(timestamp(now_ns() - seconds * 1_000_000_000));
    let range = |since, until| SignalFilter { since, until, ..SignalFilter::default() };
    assert_eq!(bed.ids(range(ago(20), None)).await, [1], "it has gone on");
    assert_eq!(bed.ids(range(ago(60), ago(40))).await, [1], "before and after");
    assert_eq!(bed.ids(range(None, ago(95))).await, [1]);
    assert!(bed.ids(range(ago(5), None)).await.is_empty());
}

#[tokio::test]
async fn network_activity_grows_and_is_told() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    let activity = |name: &str| {
        let operation = NetworkOperation { dns_name: name.into(), count: 1, ..NetworkOperation::default() };
        NetworkActivity { operations: vec![operation], omitted: 0 }
    };
    bed.put(1, Signal { network: Some(activity("a")), ..signal("dig", 10) }).await;
    bed.put(2, signal("nc", 10)).await;
    bed.send(update(1, 1, 2, 1)).await;
    for (number, name) in [(1, "b"), (1, "a"), (2, "c"), (9, "d")] {
        bed.send(Command::Network(origin(number), activity(name))).await;
    }
    bed.close().await;
    // An agent that has started again adds to what is there.
    let mut bed = Bed { counters: Arc::clone(&bed.counters), ..Bed::open(state.path(), LIMITS) };
    bed.send(Command::Network(origin(1), activity("b"))).await;
    bed.close().await;
    let counts = |network: &Option<NetworkActivity>| -> Vec<(String, u64)> {
        let operations = &network.as_ref().unwrap().operations;
        operations.iter().map(|operation| (operation.dns_name.clone(), operation.count)).collect()
    };
    let signal = bed.store.readers().signal(1).await.unwrap().unwrap();
    assert_eq!((signal.count, counts(&signal.network)), (2, vec![("a".into(), 2), ("b".into(), 2)]));
    let page = bed.store.readers().page(Filter::new(None).unwrap(), Range::After(0, u64::MAX), 10).await.unwrap();
    assert_eq!(page.signals[0], signal);
    assert_eq!(counts(&page.signals[1].network), [("c".into(), 1)]);
    let newest = *bed.store.revision().borrow();
    let changes = bed.store.readers().changes(Filter::new(None).unwrap(), 2, (0, newest), 10).await.unwrap();
    let told: Vec<_> = changes.updates.iter().map(|one| (one.id, one.count, one.network.is_some())).collect();
    assert_eq!(told, [(1, 2, false), (2, 1, true), (1, 2, true)]);
    assert_eq!((&changes.updates[2].network, changes.updates[2].revision), (&signal.network, newest));
    assert_eq!(bed.counters.activity_unmatched.get(), 1, "there is no signal 9");
}

#[tokio::test]
async fn ranges_of_time_hold_whatever_the_order_of_ids() {
    const HOURS: u64 = 7;
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), Limits { max_age: Duration::from_secs(HOURS * 7200), ..LIMITS });
    let now = now_ns() / 1_000_000_000;
    // When each began and was last seen, in no order: seconds ago.
    let began = |number: u64| number * 7919 % (HOURS * 3600) + 100;
    let last = |number: u64| if number.is_multiple_of(5) { began(number) * (number % 7) / 7 } else { began(number) };
    for number in 0..200 {
        bed.put(number, signal("nc", began(number))).await;
        if number.is_multiple_of(5) {
            bed.send(update(number, 1, 2, u64::midpoint(began(number), last(number)))).await;
            bed.send(update(number, 1, 3, last(number))).await;
        }
    }
    bed.close().await;
    for from in (0..=HOURS * 2).map(|half| half * 1800 + 900) {
        for length in [60, 1800, 10_000] {
            let to = from.saturating_sub(length);
            let ago = |seconds: u64| Some(timestamp((now - seconds) * 1_000_000_000));
            let range = SignalFilter { since: ago(from), until: ago(to), ..SignalFilter::default() };
            let expected: Vec<u64> = (0..200)
                .filter(|number| last(*number) < from && began(*number) > to)
                .map(|number| number + 1)
                .collect();
            let mut found = bed.ids(range.clone()).await;
            found.reverse();
            // The clock went on between these and those above, by less than a second.
            let close =
                |id: &u64| [began(id - 1), last(id - 1)].iter().any(|at| at.abs_diff(from) < 3 || at.abs_diff(to) < 3);
            let clear = |ids: Vec<u64>| ids.into_iter().filter(|id| !close(id)).collect::<Vec<_>>();
            assert_eq!(clear(found), clear(expected), "{from} to {to}");
            let nothing = SignalFilter { min_severity: Severity::High.into(), ..range };
            assert!(bed.ids(nothing).await.is_empty());
        }
    }
}

#[tokio::test]
async fn changes_are_told_by_revision() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1, signal("nc", 1)).await;
    bed.put(2, signal("dig", 1)).await;
    for command in [update(1, 1, 2, 1), update(2, 1, 2, 1), update(1, 1, 3, 1)] {
        bed.send(command).await;
    }
    bed.close().await;
    let newest = *bed.store.revision().borrow();
    let changes = async |filter: SignalFilter, up_to, after, limit| {
        let filter = Filter::new(Some(&filter)).unwrap();
        let changes = bed.store.readers().changes(filter, up_to, (after, newest), limit).await.unwrap();
        (
            changes.updates.iter().map(|update| (update.id, update.count)).collect::<Vec<_>>(),
            changes.updates,
            changes.more,
        )
    };
    let all = SignalFilter::default;
    let (told, updates, more) = changes(all(), 2, 0, 10).await;
    assert_eq!((told, more), (vec![(2, 2), (1, 3)], false));
    assert_eq!(updates[1].revision, newest);
    assert_eq!(changes(all(), 2, updates[0].revision, 10).await.0, [(1, 3)]);
    assert_eq!(changes(all(), 1, 0, 10).await.0, [(1, 3)], "the other is not known yet");
    assert!(changes(all(), 2, 0, 1).await.2, "there is more");
    assert_eq!(changes(SignalFilter { tool: "dig".into(), ..all() }, 2, 0, 10).await.0, [(2, 2)]);
    let bed = Bed::open(state.path(), LIMITS);
    assert_eq!(*bed.store.revision().borrow(), newest, "it is read back");
}

#[tokio::test]
async fn what_is_folded_into_a_signal_that_is_gone_is_counted() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1, signal("nc", 2 * 3600)).await;
    bed.put(2, signal("nc", 2 * 3600)).await;
    bed.send(update(2, 5, 6, 1)).await;
    bed.close().await;
    // It removes what is old first of all.
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.send(update(1, 7, 8, 1)).await;
    bed.close().await;
    assert_eq!(bed.ids(SignalFilter::default()).await, [2], "what goes on is not old");
    assert_eq!(bed.counters.repeats_lost.get(), 7);
    let connection = Connection::open(state.path().join(FILE_NAME)).unwrap();
    connection.pragma_update(None, "foreign_keys", true).unwrap();
    connection.execute("DELETE FROM signals", []).unwrap();
    let left: i64 = connection.query_row("SELECT count(*) FROM repeats", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "repeats go with their signal");
}
