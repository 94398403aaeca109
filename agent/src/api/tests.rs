//! The services on a real socket, with a real store; signals are put in where the events' thread's arrive.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use portcullis_bpf::abi;
use portcullis_proto::v1::{
    ApplyPolicyRequest, ContainRequest, Container, ContainerReference, Containment as InEffect, DeletePolicyRequest,
    ExplainPolicyRequest, GetPolicyRequest, GetSignalRequest, GetStatusRequest, GetStoryRequest, ListContainersRequest,
    ListPoliciesRequest, ListSignalsRequest, Measure, PolicyChange, ReleaseRequest, SetModeRequest,
    SetTriageStateRequest, Signal, SignalFilter, SignalOrder, SummarizeSignalsRequest, SummaryKey, Tool, TriageState,
    WatchSignalsRequest, container_service_client::ContainerServiceClient,
    containment_service_client::ContainmentServiceClient, get_story_request::Subject,
    node_service_client::NodeServiceClient, policy_service_client::PolicyServiceClient, set_mode_request::Target,
    signal_service_client::SignalServiceClient, triage_service_client::TriageServiceClient,
};
use prost::Message;
use tokio::{io::AsyncReadExt, net::UnixStream, task::JoinSet, time::timeout};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::{
    clock::{now_ns, timestamp},
    containment::Means,
    count::Count,
    enforcement::Cause,
    image::{Item, complete_signals},
    records::RecordName,
    store::{
        self, Command, Limits, Sender,
        entry::{Entry, Origin, Process, Update},
    },
    testing::{self, FakeTables},
};

const WAIT: Duration = Duration::from_secs(20);

struct NoKernel;

impl KernelCounters for NoKernel {
    fn container(&self, cgroup_id: u64) -> Option<ContainerStats> {
        (cgroup_id == 42).then_some(ContainerStats { matched: 3, blocked: 2, killed: 1, lost: 0, excepted: 5 })
    }

    fn activities_lost(&self, cgroup_id: u64) -> u64 {
        if cgroup_id == 42 { 7 } else { 0 }
    }

    fn node(&self) -> Vec<(&'static str, u64)> {
        vec![("events_lost", 5)]
    }
}

pub struct Bed {
    /// What containment does to the kernel.
    pub directory: tempfile::TempDir,
    sender: Sender,
    pub sources: Sources,
    tables: Arc<FakeTables>,
    shutdown: sync::watch::Sender<bool>,
    socket: PathBuf,
    _signals: sync::mpsc::Sender<Item>,
}

pub fn bed() -> Bed {
    bed_with(None, Arc::default())
}

/// One that is asked over TCP as well.
pub fn bed_with(tcp: Option<Listener>, counters: Arc<Counters>) -> Bed {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { max_age: Duration::from_secs(3600), max_bytes: 1 << 30 };
    let (sender, store, _thread) = store::open(&directory.path().join("state"), limits, Arc::clone(&counters)).unwrap();
    let facts = NodeFacts {
        backend: v1::Backend::Lsm,
        node: v1::Node { name: "node-1".into(), cluster: "shop".into() },
        backend_reason: "test".into(),
        kernel: "6.1".into(),
        started_ns: 1,
        checks: Vec::new(),
        seccomp: Seccomp::Enforce,
    };
    let (containers, tables) = (Containers::default(), Arc::<FakeTables>::default());
    let (signals, pending) = sync::mpsc::channel(8);
    let stage =
        complete_signals(pending, containers.clone(), sender.clone(), facts.node.clone(), Arc::clone(&counters));
    tokio::spawn(stage);
    let containment =
        Containment::new(containers.clone(), Arc::clone(&tables) as Arc<dyn Means>, &signals, Arc::clone(&counters));
    let sources = Sources {
        containment,
        store,
        sender: sender.clone(),
        enforcement: testing::enforcement_with(directory.path(), &containers, Arc::clone(&tables), Arc::default()),
        containers,
        kernel: Arc::new(NoKernel),
        counters,
        facts: Arc::new(facts),
        tls: tcp.as_ref().map(|tcp| Arc::clone(tcp.tls())),
    };
    let (shutdown, stopped) = sync::watch::channel(false);
    let (listener, socket) = socket::Socket::prepare(directory.path(), None).unwrap().publish().unwrap();
    tokio::spawn(serve(listener, tcp, sources.clone(), stopped));
    Bed { directory, sender, sources, tables, shutdown, socket, _signals: signals }
}

async fn put_into(sender: &Sender, number: u64, tool: &str) {
    let signal = Signal {
        time: Some(timestamp(now_ns())),
        tool: Some(Tool { id: tool.into(), ..Tool::default() }),
        container: Some(Container { id: "c1".into(), ..Container::default() }),
        message: format!("{number}"),
        ..Signal::default()
    };
    let origin = Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: number };
    sender.send(Command::Signal(Box::new(Entry::new(origin, &signal, Vec::new())))).await.unwrap();
}

impl Bed {
    async fn channel(&self) -> Channel {
        let path = self.socket.clone();
        Endpoint::from_static("http://portcullis.invalid")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .unwrap()
    }

    async fn signals(&self) -> SignalServiceClient<Channel> {
        SignalServiceClient::new(self.channel().await)
    }

    pub async fn put(&self, number: u64, tool: &str) {
        put_into(&self.sender, number, tool).await;
    }

    async fn stored(&self, last: u64) {
        self.sources.store.last_id().wait_for(|id| *id >= last).await.unwrap();
    }
}

/// The ids that a watch delivers until `last` has come.
async fn watch_until(
    client: &mut SignalServiceClient<Channel>,
    filter: Option<SignalFilter>,
    after_id: Option<u64>,
    last: u64,
) -> Vec<u64> {
    let mut stream = client
        .watch_signals(WatchSignalsRequest { filter, after_id, after_revision: None, ..WatchSignalsRequest::default() })
        .await
        .unwrap()
        .into_inner();
    let mut ids = Vec::new();
    while ids.last() != Some(&last) {
        let message = timeout(Duration::from_secs(20), stream.message()).await.expect("a signal is missing").unwrap();
        ids.push(message.unwrap().signal.unwrap().id);
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_have_no_gaps_and_no_duplicates() {
    const SIGNALS: u64 = 3000;
    let bed = bed();
    for number in 0..500 {
        bed.put(number, if number % 10 == 9 { "dig" } else { "nc" }).await;
    }
    bed.stored(500).await;
    let sender = bed.sender.clone();
    let writer = tokio::spawn(async move {
        for number in 500..SIGNALS {
            put_into(&sender, number, if number % 10 == 9 { "dig" } else { "nc" }).await;
            if number % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    // Watchers join while signals arrive.
    let mut watchers = JoinSet::new();
    for number in 0..6u64 {
        let mut client = bed.signals().await;
        watchers.spawn(async move {
            tokio::time::sleep(Duration::from_millis(number * 20)).await;
            let ids = watch_until(&mut client, None, Some(number * 50), SIGNALS).await;
            assert_eq!(ids, (number * 50 + 1..=SIGNALS).collect::<Vec<_>>());
        });
        let mut client = bed.signals().await;
        watchers.spawn(async move {
            let filter = SignalFilter { tool: "dig".into(), ..SignalFilter::default() };
            let ids = watch_until(&mut client, Some(filter), Some(0), SIGNALS).await;
            assert_eq!(ids, (1..=SIGNALS).filter(|id| id % 10 == 0).collect::<Vec<_>>());
        });
    }
    while let Some(watched) = watchers.join_next().await {
        watched.unwrap();
    }
    writer.await.unwrap();
    assert_eq!(bed.sources.counters.duplicates.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_without_id_brings_only_what_is_new() {
    let bed = bed();
    bed.put(1, "nc").await;
    bed.stored(1).await;
    let mut client = bed.signals().await;
    let request =
        WatchSignalsRequest { filter: None, after_id: None, after_revision: None, ..WatchSignalsRequest::default() };
    let mut stream = client.watch_signals(request).await.unwrap().into_inner();
    bed.put(2, "nc").await;
    assert_eq!(stream.message().await.unwrap().unwrap().signal.unwrap().id, 2);
    bed.shutdown.send_replace(true);
    let end = timeout(Duration::from_secs(5), stream.message()).await.unwrap();
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_of_repeats() {
    let bed = bed();
    bed.put(1, "nc").await;
    bed.put(2, "dig").await;
    bed.stored(2).await;
    let filter = Some(SignalFilter { tool: "nc".into(), ..SignalFilter::default() });
    let request =
        WatchSignalsRequest { filter, after_id: Some(0), after_revision: None, ..WatchSignalsRequest::default() };
    let mut client = bed.signals().await;
    let mut stream = client.watch_signals(request.clone()).await.unwrap().into_inner();
    let signal = stream.message().await.unwrap().unwrap().signal.unwrap();
    assert_eq!((signal.id, signal.count), (1, 1));
    let repeat = async |number, count| {
        let origin = Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: number };
        let changed = Signal { count, last_time: Some(timestamp(now_ns())), ..Signal::default() };
        bed.sender
            .send(Command::Update(Update::new(origin, Count { all: 1, ..Count::default() }, &changed)))
            .await
            .unwrap();
    };
    repeat(2, 2).await;
    repeat(1, 5).await;
    let message = stream.message().await.unwrap().unwrap();
    let update = message.update.unwrap();
    assert_eq!((message.signal, update.id, update.count), (None, 1, 5));
    assert!(update.last_time.is_some());
    // What changes while nobody watches is told to who comes back.
    drop(stream);
    repeat(1, 6).await;
    bed.sources.store.revision().wait_for(|revision| *revision > update.revision).await.unwrap();
    let request = WatchSignalsRequest { after_id: Some(2), after_revision: Some(update.revision), ..request };
    let mut stream = client.watch_signals(request.clone()).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().update.unwrap().count, 6);
    // A revision of a store that was replaced.
    let request = WatchSignalsRequest { after_revision: Some(u64::MAX), ..request };
    let mut stream = client.watch_signals(request).await.unwrap().into_inner();
    repeat(1, 7).await;
    assert_eq!(stream.message().await.unwrap().unwrap().update.unwrap().count, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn people_say_what_they_make_of_signals() {
    let bed = bed();
    for number in 1..=3 {
        bed.put(number, "nc").await;
    }
    bed.stored(3).await;
    let mut signals = bed.signals().await;
    let mut triage = TriageServiceClient::new(bed.channel().await);
    let request = WatchSignalsRequest { after_id: Some(0), ..WatchSignalsRequest::default() };
    let mut stream = signals.watch_signals(request).await.unwrap().into_inner();
    for _ in 0..3 {
        assert!(stream.message().await.unwrap().unwrap().signal.unwrap().triage.is_none());
    }
    let set = |ids: &[u64], state: TriageState, note: &str| SetTriageStateRequest {
        signal_ids: ids.to_vec(),
        state: state.into(),
        note: note.into(),
        author: String::new(),
    };
    let missing = triage.set_triage_state(set(&[1, 99], TriageState::Expected, "")).await.unwrap_err();
    assert_eq!((missing.code(), missing.message().contains("no signal 99")), (Code::NotFound, true));
    for (state, note) in [(TriageState::Investigating, "mine"), (TriageState::Resolved, "a cron job")] {
        let answer = triage.set_triage_state(set(&[2, 1, 2], state, note)).await.unwrap().into_inner();
        assert_eq!(answer.signals.iter().map(|signal| signal.id).collect::<Vec<_>>(), [1, 2]);
    }
    let signal = signals.get_signal(GetSignalRequest { id: 1 }).await.unwrap().into_inner().signal.unwrap();
    let now = signal.triage.unwrap();
    assert_eq!((now.state(), now.note.as_str()), (TriageState::Resolved, "a cron job"));
    let uid = now.caller.unwrap().uid;
    assert_eq!(now.author, format!("uid {uid}"));
    assert_eq!((now.earlier.len(), now.earlier[0].note.as_str()), (1, "mine"), "what failed has left nothing");
    let mut told = Vec::new();
    // Of two changes in a moment the first may never be told.
    while told.last() != Some(&(2, i32::from(TriageState::Resolved))) {
        let update =
            timeout(Duration::from_secs(20), stream.message()).await.unwrap().unwrap().unwrap().update.unwrap();
        told.push((update.id, update.triage.unwrap().state));
    }
    assert!(told.contains(&(1, TriageState::Resolved.into())), "{told:?}");
    let list = async |states: &[TriageState]| {
        let triage_states = states.iter().map(|state| (*state).into()).collect();
        let filter = Some(SignalFilter { triage_states, ..SignalFilter::default() });
        let page =
            bed.signals().await.list_signals(ListSignalsRequest { filter, ..ListSignalsRequest::default() }).await;
        page.unwrap().into_inner().signals
    };
    assert_eq!(list(&[TriageState::Open]).await.iter().map(|signal| signal.id).collect::<Vec<_>>(), [3]);
    let resolved = list(&[TriageState::Resolved, TriageState::Contained]).await;
    assert_eq!(resolved.iter().map(|signal| signal.id).collect::<Vec<_>>(), [2, 1]);
    assert!(resolved[0].triage.as_ref().unwrap().earlier.is_empty(), "lists are short");
    for (ids, state, note) in [
        (&[][..], TriageState::Open, String::new()),
        (&[1], TriageState::Unspecified, String::new()),
        (&[1], TriageState::Open, "x".repeat(5000)),
    ] {
        let refused = triage.set_triage_state(set(ids, state, &note)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_story_is_told_of_a_signal_and_of_a_container() {
    let bed = bed();
    let story = crate::triage::testing::web_shell();
    let put = async |signal: &Signal, cgroup_id| {
        let process = Process { pid: 1, start_time_ns: 1 };
        let origin = Origin::Event { cgroup_id, process, time_ns: signal.id };
        bed.sender.send(Command::Signal(Box::new(Entry::new(origin, signal, Vec::new())))).await.unwrap();
    };
    for signal in &story {
        put(signal, 42).await;
    }
    let elsewhere = Container { id: "c2".into(), ..Container::default() };
    put(&Signal { container: Some(elsewhere), ..story[1].clone() }, 43).await;
    bed.stored(4).await;
    let mut client = TriageServiceClient::new(bed.channel().await);
    let of = |subject| GetStoryRequest { subject: Some(subject), window: None };
    let container = |id: &str| {
        let containerd_namespace = String::new();
        Subject::Container(ContainerReference { id: id.into(), containerd_namespace })
    };
    let told = client.get_story(of(Subject::SignalId(2))).await.unwrap().into_inner();
    assert_eq!(told.signals.iter().map(|signal| signal.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((told.signal.unwrap().id, told.container.unwrap().id.as_str()), (2, "c1"));
    assert_eq!((told.processes.len(), told.signals_omitted), (5, 0));
    assert_eq!(told.related.iter().map(|one| one.signal.as_ref().unwrap().id).collect::<Vec<_>>(), [4]);
    assert!(!told.timeline.is_empty() && !told.next_steps.is_empty());
    assert_eq!(told.habits.len(), 3, "each tool, and the shell: {:?}", told.habits);
    let all = client.get_story(of(container("c1"))).await.unwrap().into_inner();
    assert_eq!((all.signal, all.signals.len(), all.processes.len()), (None, 3, 5));
    let code =
        async |request| TriageServiceClient::new(bed.channel().await).get_story(request).await.unwrap_err().code();
    assert_eq!(code(of(Subject::SignalId(99))).await, Code::NotFound);
    assert_eq!(code(of(container("c9"))).await, Code::NotFound);
    assert_eq!(code(GetStoryRequest { subject: None, window: None }).await, Code::InvalidArgument);
    let window = Some(prost_types::Duration { seconds: 700 * 86400, nanos: 0 });
    assert_eq!(code(GetStoryRequest { window, ..of(Subject::SignalId(1)) }).await, Code::InvalidArgument);
}

/// A client that knows no better takes 4 MB.
#[tokio::test(flavor = "multi_thread")]
async fn a_story_of_the_largest_signals_fits() {
    let bed = bed();
    let argv = |bytes: usize| (0..bytes / 2).map(|_| "a".to_owned()).collect::<Vec<_>>();
    for (number, container) in (1..=400_u64).map(|number| (number, if number % 2 == 0 { "c1" } else { "c2" })) {
        let mut signal = crate::triage::testing::signal(number, 9, "nc", &["nc"]);
        signal.container = Some(Container { id: container.into(), ..Container::default() });
        signal.process.as_mut().unwrap().argv = argv(4096);
        let image = |pid: u32| {
            let argv = argv(250);
            v1::Ancestor {
                pid: pid + u32::try_from(number).unwrap() * 100,
                exe: "/x".repeat(60),
                argv,
                ..v1::Ancestor::default()
            }
        };
        signal.lineage = (0..16).map(image).collect();
        let operation = |port| v1::NetworkOperation {
            kind: v1::network_operation::Kind::DnsQuery.into(),
            dns_name: "x".repeat(255),
            count: port,
            ..v1::NetworkOperation::default()
        };
        signal.network = Some(v1::NetworkActivity { operations: (0..64).map(operation).collect(), omitted: 0 });
        let origin = Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: number };
        bed.sender.send(Command::Signal(Box::new(Entry::new(origin, &signal, Vec::new())))).await.unwrap();
    }
    bed.stored(400).await;
    let mut client = TriageServiceClient::new(bed.channel().await);
    let request = GetStoryRequest { subject: Some(Subject::SignalId(200)), window: None };
    let story = client.get_story(request).await.unwrap().into_inner();
    assert!(story.signals.len() > 10 && story.signals_omitted > 0, "{}", story.signals.len());
    assert!(story.signals.iter().any(|signal| signal.id == 200) && !story.related.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn summaries_count_what_is_alike() {
    let bed = bed();
    for number in 0..30 {
        bed.put(number, if number % 10 == 9 { "dig" } else { "nc" }).await;
    }
    bed.stored(30).await;
    let origin = Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: 9 };
    let changed = Signal { count: 100, last_time: Some(timestamp(now_ns())), ..Signal::default() };
    bed.sender
        .send(Command::Update(Update::new(origin, Count { all: 99, ..Count::default() }, &changed)))
        .await
        .unwrap();
    bed.sources.store.revision().wait_for(|revision| *revision > 0).await.unwrap();
    let mut client = bed.signals().await;
    let mut ask = async |group_by: &[SummaryKey], expression: &str, limit| {
        let request = SummarizeSignalsRequest {
            filter: Some(SignalFilter { expression: expression.into(), ..SignalFilter::default() }),
            group_by: group_by.iter().map(|key| (*key).into()).collect(),
            bucket: None,
            limit,
        };
        client.summarize_signals(request).await
    };
    for expression in ["", "signal.id > 0u"] {
        let answer = ask(&[SummaryKey::Tool], expression, 0).await.unwrap().into_inner();
        let told: Vec<_> =
            answer.groups.iter().map(|group| (group.tool.as_str(), group.signals, group.count)).collect();
        assert_eq!(told, [("dig", 3, 102), ("nc", 27, 27)], "{expression}");
        assert!(answer.groups[0].category.is_empty() && answer.groups[0].bucket_start.is_none());
    }
    let answer = ask(&[SummaryKey::Tool, SummaryKey::Category], "", 1).await.unwrap().into_inner();
    assert_eq!((answer.omitted_groups, answer.omitted_signals, answer.omitted_count), (1, 27, 27));
    let answer = ask(&[SummaryKey::Time], "signal.tool.id == 'dig'", 0).await.unwrap().into_inner();
    assert_eq!(answer.groups.iter().map(|group| group.signals).sum::<u64>(), 3);
    assert!(answer.groups[0].bucket_start.is_some());
    let answer = ask(&[], "", 0).await.unwrap().into_inner();
    assert_eq!((answer.groups.len(), answer.groups[0].count), (1, 129));
    assert_eq!(ask(&[SummaryKey::Unspecified], "", 0).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(ask(&[], "signal.", 0).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_other_orders_and_expressions() {
    let bed = bed();
    for number in 0..25 {
        bed.put(number, if number % 10 == 9 { "dig" } else { "nc" }).await;
    }
    bed.stored(25).await;
    for (number, count) in [(3, 7), (12, 7), (20, 9)] {
        let origin = Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: number };
        let changed = Signal { count, last_time: Some(timestamp(now_ns())), ..Signal::default() };
        bed.sender
            .send(Command::Update(Update::new(origin, Count { all: 1, ..Count::default() }, &changed)))
            .await
            .unwrap();
    }
    let mut client = bed.signals().await;
    let mut list = async |order: SignalOrder, expression: &str| {
        let (mut ids, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListSignalsRequest {
                filter: Some(SignalFilter { expression: expression.into(), ..SignalFilter::default() }),
                page_size: 4,
                page_token,
                order: order.into(),
                ..ListSignalsRequest::default()
            };
            let page = client.list_signals(request).await.unwrap().into_inner();
            ids.extend(page.signals.iter().map(|signal| signal.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return ids;
            }
        }
    };
    // The updates are stored by the time that another signal is.
    bed.put(25, "nc").await;
    bed.stored(26).await;
    let by_count = list(SignalOrder::Count, "").await;
    assert_eq!((by_count.len(), &by_count[..4]), (26, &[21, 13, 4, 26][..]));
    assert_eq!(list(SignalOrder::Count, "signal.count > 1u").await, [21, 13, 4]);
    assert_eq!(list(SignalOrder::Severity, "").await, (1..=26).rev().collect::<Vec<_>>());
    assert_eq!(list(SignalOrder::Unspecified, "signal.tool.id == 'dig'").await, [20, 10]);
    assert_eq!(list(SignalOrder::Unspecified, "signal.container.id == 'x'").await, [0; 0], "it can't be evaluated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_is_told_what_it_missed() {
    let bed = bed();
    for number in 0..5 {
        bed.put(number, "nc").await;
    }
    bed.stored(5).await;
    let database = rusqlite::Connection::open(bed.directory.path().join("state").join(store::FILE_NAME)).unwrap();
    database.execute("DELETE FROM signals WHERE id IN (1, 2, 4)", []).unwrap();
    let request = WatchSignalsRequest { after_id: Some(0), ..WatchSignalsRequest::default() };
    let mut stream = bed.signals().await.watch_signals(request).await.unwrap().into_inner();
    let (mut gaps, mut ids) = (Vec::new(), Vec::new());
    while ids.last() != Some(&5) {
        let message = stream.message().await.unwrap().unwrap();
        gaps.extend(message.gap.map(|gap| (gap.first_id, gap.last_id)));
        ids.extend(message.signal.map(|signal| signal.id));
    }
    assert_eq!((gaps, ids), (vec![(1, 2), (4, 4)], vec![3, 5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_gets_no_more_than_it_wants() {
    const SIGNALS: u64 = 200;
    let bed = bed();
    for number in 0..SIGNALS {
        bed.put(number, "nc").await;
    }
    bed.stored(SIGNALS).await;
    let request = WatchSignalsRequest { after_id: Some(0), max_per_second: 10, ..WatchSignalsRequest::default() };
    let mut stream = bed.signals().await.watch_signals(request).await.unwrap().into_inner();
    let (mut got, mut left_out, mut next) = (0, 0, 1);
    while got + left_out < SIGNALS {
        let message = timeout(Duration::from_secs(20), stream.message()).await.unwrap().unwrap().unwrap();
        if let Some(signal) = message.signal {
            assert_eq!(signal.id, next);
            (got, next) = (got + 1, next + 1);
        }
        if let Some(throttled) = message.throttled {
            assert_eq!(throttled.first_id, next);
            assert_eq!(throttled.last_id, next + throttled.signals - 1);
            (left_out, next) = (left_out + throttled.signals, throttled.last_id + 1);
        }
    }
    assert!(got >= 10 && left_out > 0, "{got} {left_out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_holds_nothing_up() {
    let bed = bed();
    let mut slow = bed.signals().await;
    let request =
        WatchSignalsRequest { filter: None, after_id: Some(0), after_revision: None, ..WatchSignalsRequest::default() };
    let mut stream = slow.watch_signals(request).await.unwrap().into_inner();
    for number in 0..2000 {
        bed.put(number, "nc").await;
    }
    let mut fast = bed.signals().await;
    assert_eq!(watch_until(&mut fast, None, Some(0), 2000).await.len(), 2000);
    for id in 1..=2000 {
        assert_eq!(stream.message().await.unwrap().unwrap().signal.unwrap().id, id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_are_limited_and_leave() {
    let bed = bed();
    let request =
        || WatchSignalsRequest { filter: None, after_id: None, after_revision: None, ..WatchSignalsRequest::default() };
    let mut client = bed.signals().await;
    let mut second = bed.signals().await;
    let mut streams = Vec::new();
    for _ in 0..watch::MAX_WATCHERS {
        let client = if streams.len() % 2 == 0 { &mut client } else { &mut second };
        streams.push(client.watch_signals(request()).await.unwrap());
    }
    let mut third = bed.signals().await;
    assert_eq!(third.watch_signals(request()).await.unwrap_err().code(), Code::ResourceExhausted);
    drop(streams);
    for attempt in 0.. {
        tokio::time::sleep(Duration::from_millis(50)).await;
        match third.watch_signals(request()).await {
            Ok(_) => break,
            Err(status) => assert!(attempt < 100, "{status}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_and_errors_have_codes() {
    let bed = bed();
    for number in 0..7 {
        bed.put(number, "nc").await;
    }
    bed.stored(7).await;
    let mut client = bed.signals().await;
    let mut request = ListSignalsRequest { page_size: 3, ..ListSignalsRequest::default() };
    let mut seen = Vec::new();
    loop {
        let response = client.list_signals(request.clone()).await.unwrap().into_inner();
        seen.extend(response.signals.iter().map(|signal| signal.id));
        request.page_token = response.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
        let other = ListSignalsRequest { oldest_first: true, ..request.clone() };
        assert_eq!(client.list_signals(other).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(seen, [7, 6, 5, 4, 3, 2, 1]);
    request.page_token = "nonsense".into();
    assert_eq!(client.list_signals(request).await.unwrap_err().code(), Code::InvalidArgument);
    let filter = Some(SignalFilter { min_severity: 77, ..SignalFilter::default() });
    let request = ListSignalsRequest { filter: filter.clone(), ..ListSignalsRequest::default() };
    assert_eq!(client.list_signals(request).await.unwrap_err().code(), Code::InvalidArgument);
    let request =
        WatchSignalsRequest { filter, after_id: None, after_revision: None, ..WatchSignalsRequest::default() };
    assert_eq!(client.watch_signals(request).await.unwrap_err().code(), Code::InvalidArgument);
    let request =
        WatchSignalsRequest { filter: None, after_id: Some(8), after_revision: None, ..WatchSignalsRequest::default() };
    assert_eq!(client.watch_signals(request).await.unwrap_err().code(), Code::OutOfRange);
    let signal = client.get_signal(GetSignalRequest { id: 5 }).await.unwrap().into_inner().signal.unwrap();
    assert_eq!((signal.id, signal.message.as_str()), (5, "4"));
    assert_eq!(client.get_signal(GetSignalRequest { id: 99 }).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_and_status_tell_what_there_is() {
    let bed = bed();
    bed.sources.containers.insert(RecordName::Cgroup(42), testing::record(42, "c1"));
    bed.sources.containers.insert(RecordName::Cgroup(43), testing::record(43, "c2"));
    bed.sources.containers.mark_ended(&RecordName::Cgroup(43), 9);
    let policies = bed.directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("p.yaml"), "kind: [").unwrap();
    bed.sources.enforcement.reload(Cause::Request);
    bed.sources.counters.decode_errors.increment();
    bed.sources.counters.excepted_repeats.increment();
    let mut client = ContainerServiceClient::new(bed.channel().await);
    let list = |include_ended| ListContainersRequest { include_ended };
    let running = client.list_containers(list(false)).await.unwrap().into_inner().containers;
    assert_eq!(running.len(), 1);
    assert_eq!(running[0].counters.unwrap().matched, 3);
    let all = client.list_containers(list(true)).await.unwrap().into_inner().containers;
    assert_eq!(all.len(), 2);
    assert!(all[1].ended.is_some() && all[1].counters.is_none());
    let mut client = NodeServiceClient::new(bed.channel().await);
    let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.containers_guarded, status.containers_unguarded), (1, 0));
    assert_eq!((status.losses["events_lost"], status.losses["decode_errors"]), (5, 1));
    assert_eq!((status.suppressed["excepted_repeats"], status.losses.get("excepted_repeats")), (1, None));
    assert!(status.policy_error.contains("p.yaml:1:"), "{}", status.policy_error);
    let store = status.checks.iter().find(|check| check.name == "store").unwrap();
    assert_eq!(store.state(), v1::check::State::Ok, "{store:?}");
    let policies: Vec<_> = status.policies.iter().map(|policy| (policy.name.as_str(), policy.mode())).collect();
    assert_eq!(policies, [("default", v1::Mode::Detect)], "what is in force");
    let mode = std::fs::metadata(bed.directory.path().join(socket::FILE_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

const ONE: &str = "\
apiVersion: portcullis.dev/v1
kind: NetworkUtilityPolicy
metadata: {name: one}
spec:
  mode: detect
  priority: 3
  select: {namespaces: [default], annotations: {tier: 'w*'}}
  allowLoosening: true
  rules: [{categories: [dns], action: block}]
";

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_listed_changed_and_explained() {
    let bed = bed();
    bed.sources.containers.insert(RecordName::Cgroup(42), testing::record(42, "c1"));
    let mut client = PolicyServiceClient::new(bed.channel().await);
    let apply =
        |yaml: &str, dry_run| ApplyPolicyRequest { yaml: yaml.into(), dry_run, ..ApplyPolicyRequest::default() };
    let dry = client.apply_policy(apply(ONE, true)).await.unwrap().into_inner();
    let list = client.list_policies(ListPoliciesRequest {}).await.unwrap().into_inner();
    assert_eq!((list.policies.len(), list.error.as_str()), (1, ""));
    let done = client.apply_policy(apply(ONE, false)).await.unwrap().into_inner();
    assert_eq!((done.change(), &done), (PolicyChange::Created, &dry));
    let [one, default] = &client.list_policies(ListPoliciesRequest {}).await.unwrap().into_inner().policies[..] else {
        panic!("two policies")
    };
    assert_eq!((one.name.as_str(), one.priority, one.mode_origin()), ("one", 3, v1::ModeOrigin::File));
    let select = one.select.as_ref().unwrap();
    assert_eq!((&select.namespaces[..], select.annotations["tier"].as_str()), (&["default".to_owned()][..], "w*"));
    assert_eq!((default.source.as_str(), default.select.is_none()), ("shipped default", true));
    let request = GetPolicyRequest { name: "one".into() };
    assert_eq!(client.get_policy(request).await.unwrap().into_inner().yaml, ONE);

    let explain = |tier: &str| ExplainPolicyRequest {
        namespace: "default".into(),
        annotations: [("tier".to_owned(), tier.to_owned())].into(),
        argv: ["busybox", "nslookup", "x"].map(str::to_owned).into(),
        ..ExplainPolicyRequest::default()
    };
    let explained = client.explain_policy(explain("db")).await.unwrap().into_inner();
    assert_eq!((explained.policy.as_str(), explained.candidates.len()), ("default", 2));
    assert_eq!(explained.candidates[0].reason, "annotation tier \"db\" is not \"w*\"");
    let explained = client.explain_policy(explain("web")).await.unwrap().into_inner();
    assert!(explained.candidates[0].reason.contains("the workload's own wish"), "{explained:?}");
    let finding = explained.finding.as_ref().unwrap();
    assert_eq!((finding.tool.as_str(), finding.action(), finding.exception), ("nslookup", v1::Action::Block, None));
    assert_eq!(finding.identified_by, [i32::from(v1::Identification::Applet)]);
    let [lsm, tracepoint] = &explained.outcomes[..] else { panic!("two backends") };
    assert_eq!((lsm.verdict(), lsm.in_use, tracepoint.in_use), (v1::Verdict::WouldBlock, true, false));
    let nothing = client.explain_policy(ExplainPolicyRequest::default()).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);

    let mode = |policy: &str, mode: v1::Mode| SetModeRequest {
        target: Some(Target::Policy(policy.into())),
        mode: mode.into(),
    };
    let set = client.set_mode(mode("default", v1::Mode::Enforce)).await.unwrap().into_inner();
    assert_eq!((set.mode(), set.mode_reason.as_str()), (v1::Mode::Enforce, "operator"));
    let origin = client.list_policies(ListPoliciesRequest {}).await.unwrap().into_inner().policies[1].mode_origin();
    assert_eq!(origin, v1::ModeOrigin::Operator);
    let set = client.set_mode(mode("default", v1::Mode::Unspecified)).await.unwrap().into_inner();
    assert_eq!((set.mode(), set.mode_reason.as_str()), (v1::Mode::Detect, "policy"));

    let request = DeletePolicyRequest { name: "one".into(), dry_run: false };
    assert_eq!(client.delete_policy(request).await.unwrap().into_inner().policy.unwrap().name, "one");
    assert_eq!(client.list_policies(ListPoliciesRequest {}).await.unwrap().into_inner().policies.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_mode_is_set_by_its_id() {
    let bed = bed();
    for cgroup_id in [42, 43] {
        bed.tables.enter(cgroup_id, bed.sources.enforcement.list()[0].id, abi::Mode::Enforce);
    }
    bed.sources.containers.insert(RecordName::Cgroup(42), testing::record(42, "c1"));
    let mut twin = testing::record(43, "c1");
    twin.containerd_namespace = "other".into();
    bed.sources.containers.insert(RecordName::Cgroup(43), twin);
    let mut client = PolicyServiceClient::new(bed.channel().await);
    let mode = |id: &str, namespace: &str| SetModeRequest {
        target: Some(Target::Container(ContainerReference { id: id.into(), containerd_namespace: namespace.into() })),
        mode: v1::Mode::Detect.into(),
    };
    let set = client.set_mode(mode("c1", "other")).await.unwrap().into_inner();
    assert_eq!((set.mode(), set.mode_reason.as_str(), set.containers), (v1::Mode::Detect, "operator", 1));
    assert_eq!(bed.tables.state().containers[&43].mode, abi::Mode::Detect as u32);
    let ambiguous = client.set_mode(mode("c1", "")).await.unwrap_err();
    assert_eq!(ambiguous.code(), Code::FailedPrecondition);
    assert!(ambiguous.message().contains("default, other") || ambiguous.message().contains("other, default"));
    assert_eq!(client.set_mode(mode("c2", "")).await.unwrap_err().code(), Code::NotFound);
    bed.sources.containers.mark_ended(&RecordName::Cgroup(43), 9);
    assert_eq!(client.set_mode(mode("c1", "other")).await.unwrap_err().code(), Code::NotFound);
    client.set_mode(mode("c1", "")).await.unwrap();
    let nobody = SetModeRequest { target: None, mode: v1::Mode::Detect.into() };
    assert_eq!(client.set_mode(nobody).await.unwrap_err().code(), Code::InvalidArgument);
    let odd = SetModeRequest { mode: 77, ..mode("c1", "") };
    assert_eq!(client.set_mode(odd).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_make_no_sense_are_refused_whole() {
    let bed = bed();
    let mut client = PolicyServiceClient::new(bed.channel().await);
    let apply =
        |yaml: String| ApplyPolicyRequest { yaml, file_name: "mine.yaml".into(), ..ApplyPolicyRequest::default() };
    // As many errors as there can be: a message is a header, and clients take no long ones.
    let rules = "{tools: [\u{e9}\u{1b}], action: block},".repeat(7000).replace('\u{1b}', "");
    let bad = ONE.replace("[{categories: [dns], action: block}]", &format!("[{rules}]"));
    let status = client.apply_policy(apply(bad)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().starts_with("mine.yaml:9:"), "{status}");
    assert!(status.message().ends_with("(and more)"), "{status}");
    let large = client.apply_policy(apply("#".repeat((1 << 20) + 1))).await.unwrap_err();
    assert!(large.message().contains("more than the 1048576 bytes"), "{large}");
    let endless = client.apply_policy(apply("#".repeat(4 << 20))).await.unwrap_err();
    assert_eq!(endless.code(), Code::OutOfRange, "{endless}");
    let request = DeletePolicyRequest { name: "default".into(), dry_run: false };
    assert_eq!(client.delete_policy(request).await.unwrap_err().code(), Code::FailedPrecondition);
    let request = GetPolicyRequest { name: "two".into() };
    assert_eq!(client.get_policy(request).await.unwrap_err().code(), Code::NotFound);
    assert!(!bed.directory.path().join("policies").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_contained_and_released_and_each_call_is_kept() {
    let bed = bed();
    let cgroup = bed.directory.path().join("cgroup");
    std::fs::create_dir(&cgroup).unwrap();
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&cgroup).unwrap());
    let mut record = testing::record(id, "c1");
    record.cgroup_path.clone_from(&cgroup);
    bed.sources.containers.insert(RecordName::Cgroup(id), record);
    bed.tables.enter(id, 1, abi::Mode::Detect);
    let mut client = ContainmentServiceClient::new(bed.channel().await);
    let contain = |measure: Measure| ContainRequest {
        container_id: "c1".into(),
        measure: measure.into(),
        ..ContainRequest::default()
    };
    // Whether it is frozen is not known: there is no containerd.
    let in_effect = |network_isolated, locked| Some(InEffect { frozen: None, network_isolated, locked });
    let now = client.contain(contain(Measure::Lock)).await.unwrap().into_inner().container.unwrap();
    assert_eq!(now.containment, in_effect(false, true));
    let now = client.contain(contain(Measure::IsolateNetwork)).await.unwrap().into_inner().container.unwrap();
    assert_eq!(now.containment, in_effect(true, true));
    let release = |measures: &[Measure]| ReleaseRequest {
        container_id: "c1".into(),
        containerd_namespace: "default".into(),
        measures: measures.iter().map(|measure| (*measure).into()).collect(),
    };
    let request = release(&[Measure::Lock, Measure::IsolateNetwork]);
    let now = client.release(request).await.unwrap().into_inner().container.unwrap();
    assert_eq!(now.containment, in_effect(false, false));
    client.contain(contain(Measure::IsolateNetwork)).await.unwrap();
    let error = client.release(release(&[])).await.unwrap_err();
    assert!(error.code() == Code::Aborted && error.message().contains("connecting to containerd"), "{error}");
    assert!(!bed.tables.is_isolated(id), "what needs no containerd is taken back all the same");
    assert!(bed.sources.counters.tasks_unanswered.get() > 0);

    bed.stored(5).await;
    let request = ListSignalsRequest { oldest_first: true, ..ListSignalsRequest::default() };
    let signals = bed.signals().await.list_signals(request).await.unwrap().into_inner().signals;
    let rules: Vec<_> = signals.iter().map(|signal| signal.rule.as_str()).collect();
    assert_eq!(rules, ["containment", "containment", "release", "containment", "release"]);
    let operation = signals[0].operation.as_ref().unwrap();
    let caller = operation.caller.as_ref().unwrap();
    assert_eq!(caller.pid, std::process::id());
    assert_eq!((operation.measures().collect::<Vec<_>>(), operation.error.as_str()), (vec![Measure::Lock], ""));
    let expected = format!("containment of container c1 (lock) by uid {}, pid {}: done", caller.uid, caller.pid);
    assert_eq!(signals[0].message, expected);
    assert_eq!(signals[0].container.as_ref().unwrap().cgroup_id, id);
    assert!(signals[4].message.contains("(all)") && signals[4].message.contains("not done: connecting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_contained_is_refused_with_a_reason() {
    let bed = bed();
    let ended = testing::record(43, "ended");
    bed.sources.containers.insert(RecordName::Cgroup(43), ended);
    bed.sources.containers.mark_ended(&RecordName::Cgroup(43), 9);
    let mut unguarded = testing::record(44, "unguarded");
    unguarded.guard = portcullis_policy::record::Guard::Unguarded { reason: "no pins".into() };
    bed.sources.containers.insert(RecordName::Cgroup(44), unguarded);
    for (id, namespace) in [(45, "a"), (46, "b")] {
        let mut twin = testing::record(id, "twin");
        twin.containerd_namespace = namespace.into();
        twin.cgroup_path = format!("/nonexistent/{namespace}").into();
        bed.sources.containers.insert(RecordName::Cgroup(id), twin);
    }
    let mut inner = testing::record(47, "inner");
    inner.cgroup_path = "/nonexistent/a/inner".into();
    bed.sources.containers.insert(RecordName::Cgroup(47), inner);
    let mut client = ContainmentServiceClient::new(bed.channel().await);
    let own = std::process::id();
    for (id, measure, pid, code, reason) in [
        ("gone", Measure::Lock, 0, Code::NotFound, "no container \"gone\" is known here"),
        ("ended", Measure::Kill, 0, Code::FailedPrecondition, "has ended"),
        ("unguarded", Measure::Lock, 0, Code::FailedPrecondition, "without its guard (no pins)"),
        ("twin", Measure::Lock, 0, Code::InvalidArgument, "several of containerd's namespaces"),
        ("inner", Measure::Lock, 0, Code::FailedPrecondition, "inside of container \"twin\""),
        ("inner", Measure::IsolateNetwork, 0, Code::Internal, "opening the cgroup"),
        ("inner", Measure::Freeze, 0, Code::Aborted, "connecting to containerd"),
        ("inner", Measure::KillProcess, own, Code::FailedPrecondition, "is not in container \"inner\""),
        ("inner", Measure::KillProcess, u32::MAX, Code::NotFound, "there is no process"),
        ("inner", Measure::KillProcess, 0, Code::InvalidArgument, "pid is for"),
        ("inner", Measure::Lock, 7, Code::InvalidArgument, "pid is for"),
        ("inner", Measure::Unspecified, 0, Code::InvalidArgument, "measure is not set"),
    ] {
        let request =
            ContainRequest { container_id: id.into(), measure: measure.into(), pid, ..ContainRequest::default() };
        let error = client.contain(request).await.unwrap_err();
        assert!(error.code() == code && error.message().contains(reason), "{id} {measure:?}: {error:?}");
    }
    let twin = ContainRequest {
        container_id: "twin".into(),
        containerd_namespace: "b".into(),
        measure: Measure::Lock.into(),
        pid: 0,
    };
    let error = client.contain(twin).await.unwrap_err();
    assert!(error.message().contains("another version of Portcullis"), "{error}");
    let request = |measure: i32| ReleaseRequest {
        container_id: "inner".into(),
        measures: vec![measure],
        ..ReleaseRequest::default()
    };
    for (measure, reason) in [(Measure::Kill as i32, "MEASURE_KILL can't be taken back"), (77, "newer version")] {
        let error = client.release(request(measure)).await.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.message().contains(reason), "{error}");
    }
    // Others may look.
    let place = crate::signal::Place { id: "inner", namespace: "" };
    for caller in [None, Some(v1::Caller { uid: u32::MAX - 7, pid: 1, ..v1::Caller::default() })] {
        let error = bed.sources.containment.contain(place, Measure::Freeze, 0, caller).await.unwrap_err();
        assert_eq!(tonic::Status::from(error).code(), Code::PermissionDenied);
    }
    // All but what makes no sense whatever the container is.
    bed.stored(12).await;
    let signals = bed.signals().await.list_signals(ListSignalsRequest::default()).await.unwrap().into_inner().signals;
    assert_eq!(signals.len(), 12);
    assert!(signals.iter().all(|signal| !signal.operation.as_ref().unwrap().error.is_empty()), "{signals:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_at_length_is_told_in_short() {
    let bed = bed();
    let channel = bed.channel().await;
    // Control characters take most room where they are quoted.
    let long = "\u{1}".repeat(60_000);
    let container = ContainerReference { id: long.clone(), ..ContainerReference::default() };
    let mut policies = PolicyServiceClient::new(channel.clone());
    let get = policies.get_policy(GetPolicyRequest { name: long.clone() }).await.unwrap_err();
    let request = SetModeRequest { target: Some(Target::Container(container.clone())), ..SetModeRequest::default() };
    let set = policies.set_mode(request).await.unwrap_err();
    let request = GetStoryRequest { subject: Some(Subject::Container(container)), ..GetStoryRequest::default() };
    let story = TriageServiceClient::new(channel.clone()).get_story(request).await.unwrap_err();
    let mut containment = ContainmentServiceClient::new(channel.clone());
    let request =
        ContainRequest { container_id: long.clone(), measure: Measure::Lock.into(), ..ContainRequest::default() };
    let contain = containment.contain(request).await.unwrap_err();
    let request = ReleaseRequest {
        container_id: long.clone(),
        measures: [Measure::Freeze, Measure::Lock].map(i32::from).repeat(1000),
        ..ReleaseRequest::default()
    };
    let release = containment.release(request).await.unwrap_err();
    let statuses = [get, set, story, contain, release];
    assert!(statuses.iter().all(|status| status.code() == Code::NotFound), "{statuses:?}");
    let request = ExplainPolicyRequest {
        argv: vec!["nc".into()],
        annotations: [("portcullis.dev/mode".into(), long)].into(),
        ..ExplainPolicyRequest::default()
    };
    let explain = policies.explain_policy(request).await.unwrap_err();
    assert_eq!(explain.code(), Code::InvalidArgument, "{explain:?}");
    let mut messages = statuses.iter().chain([&explain]).map(tonic::Status::message);
    assert!(messages.all(|message| message.len() < 5000));
    bed.stored(2).await;
    let signals = SignalServiceClient::new(channel).list_signals(ListSignalsRequest::default()).await.unwrap();
    let signals = signals.into_inner().signals;
    assert!(signals.len() == 2 && signals.iter().all(|signal| signal.encoded_len() < 10_000), "{signals:?}");
    assert_eq!(signals[0].operation.as_ref().unwrap().measures, [Measure::Lock, Measure::Freeze].map(i32::from));
}

#[tokio::test]
async fn a_user_has_so_many_connections() {
    let bed = bed();
    let mut held = Vec::new();
    for _ in 0..connections::MAX_CONNECTIONS {
        held.push(UnixStream::connect(&bed.socket).await.unwrap());
    }
    // The server begins each connection with its settings; one that is too many ends without.
    let begins = async || {
        let mut stream = UnixStream::connect(&bed.socket).await.unwrap();
        let mut byte = [0];
        matches!(timeout(WAIT, stream.read(&mut byte)).await.unwrap(), Ok(1))
    };
    assert!(!begins().await);
    assert_eq!(bed.sources.counters.connections_refused.get(), 1);
    held.pop();
    // The server has to notice.
    timeout(WAIT, async { while !begins().await {} }).await.unwrap();
}

#[tokio::test]
async fn a_user_may_call_so_often() {
    let bed = bed();
    // One call after the other: some have to wait.
    let mut node = NodeServiceClient::new(bed.channel().await);
    for _ in 0..rate::BURST + 50 {
        node.get_status(GetStatusRequest {}).await.unwrap();
    }
    assert_eq!(bed.sources.counters.requests_refused.get(), 0);
    // More than may wait, all at once.
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let node = NodeServiceClient::new(bed.channel().await);
        for _ in 0..MAX_STREAMS {
            let mut node = node.clone();
            calls.spawn(async move { node.get_status(GetStatusRequest {}).await.map(drop) });
        }
    }
    let outcomes = calls.join_all().await;
    let refusals: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(
        !refusals.is_empty() && refusals.iter().all(|status| status.code() == Code::ResourceExhausted),
        "{refusals:?}"
    );
    assert!(
        outcomes.len() - refusals.len() >= rate::WAITING as usize,
        "{} were answered",
        outcomes.len() - refusals.len()
    );
    assert_eq!(bed.sources.counters.requests_refused.get(), refusals.len() as u64);
}
