//! Exporters with a real store; a collector made from the published protocol, on loopback.

use std::{net::SocketAddr, sync::Mutex};

use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    common::v1::{KeyValue, any_value::Value as Any},
    logs::v1::LogRecord,
};
use portcullis_proto::v1::{Container, Process as SeenProcess, Severity, Tool};
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    metadata::MetadataMap,
    transport::{Endpoint, Server},
};

use super::{otlp::Otlp, *};
use crate::{
    clock::{now_ns, timestamp},
    count::Count,
    store::{
        self, Command, Limits, Sender,
        entry::{Entry, Origin, Process, Update},
    },
};

const WAIT: Duration = Duration::from_secs(20);

struct Bed {
    directory: tempfile::TempDir,
    sender: Sender,
    store: Store,
    counters: Arc<Counters>,
}

fn origin(number: u64) -> Origin {
    Origin::Event { cgroup_id: 42, process: Process { pid: 1, start_time_ns: 1 }, time_ns: number }
}

impl Bed {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let counters = Arc::new(Counters::default());
        let limits = Limits { max_age: Duration::from_secs(3600), max_bytes: 1 << 30 };
        let (sender, store, _thread) = store::open(directory.path(), limits, Arc::clone(&counters)).unwrap();
        Self { directory, sender, store, counters }
    }

    async fn put(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let signal = Signal {
                rule: "net_util_in_container".into(),
                severity: Severity::High.into(),
                time: Some(timestamp(now_ns())),
                tool: Some(Tool { id: "nc".into(), ..Tool::default() }),
                container: Some(Container { id: "c1".into(), ..Container::default() }),
                process: Some(SeenProcess {
                    pid: 7,
                    argv: vec!["nc".into(), "\u{fffd}\x1b[2J\"\n\u{202e}".into()],
                    ..SeenProcess::default()
                }),
                message: number.to_string(),
                ..Signal::default()
            };
            self.sender.send(Command::Signal(Box::new(Entry::new(origin(number), &signal, Vec::new())))).await.unwrap();
            timeout(WAIT, self.store.last_id().wait_for(|last| *last >= number)).await.unwrap().unwrap();
        }
    }

    async fn repeat(&self, number: u64, count: u64) {
        let mut revision = self.store.revision();
        revision.mark_unchanged();
        let changed = Signal { count, last_time: Some(timestamp(now_ns())), ..Signal::default() };
        self.sender
            .send(Command::Update(Update::new(origin(number), Count { all: 1, ..Count::default() }, &changed)))
            .await
            .unwrap();
        timeout(WAIT, revision.changed()).await.unwrap().unwrap();
    }

    fn exporter<S: Sink>(&self, sink: S) -> Exporter<S> {
        let node = Arc::new(Node { name: "n".into(), ..Node::default() });
        let mut exporter =
            Exporter::new(sink, self.store.clone(), node, self.directory.path(), Arc::clone(&self.counters));
        exporter.backoff = Duration::from_millis(5);
        exporter
    }

    fn otlp(&self, address: SocketAddr) -> Exporter<Otlp> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut headers = MetadataMap::new();
        headers.insert("x-tenant", "shop".parse().unwrap());
        let node = Node { name: "n".into(), cluster: "c".into(), ..Node::default() };
        self.exporter(Otlp::new(endpoint, headers, WAIT, &node, Arc::clone(&self.counters)))
    }
}

/// Takes what it is told to, and tells the test what it got.
struct Collector {
    got: mpsc::UnboundedSender<(MetadataMap, ExportLogsServiceRequest)>,
    answers: Mutex<Vec<Result<ExportLogsServiceResponse, Status>>>,
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let answer = self.answers.lock().unwrap().pop().unwrap_or_else(|| Ok(ExportLogsServiceResponse::default()));
        let (metadata, _, message) = request.into_parts();
        self.got.send((metadata, message)).unwrap();
        answer.map(Response::new)
    }
}

type Requests = mpsc::UnboundedReceiver<(MetadataMap, ExportLogsServiceRequest)>;

/// `answers`: the last one first, then all is taken.
async fn collector(
    address: &str,
    answers: Vec<Result<ExportLogsServiceResponse, Status>>,
) -> (SocketAddr, Requests, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (got, requests) = mpsc::unbounded_channel();
    let service = LogsServiceServer::new(Collector { got, answers: Mutex::new(answers) });
    let task = tokio::spawn(async move {
        Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    (address, requests, task)
}

fn records(request: &ExportLogsServiceRequest) -> &[LogRecord] {
    &request.resource_logs[0].scope_logs[0].log_records
}

fn body(record: &LogRecord) -> Value {
    let Some(Any::StringValue(json)) = &record.body.as_ref().unwrap().value else { panic!("no string") };
    serde_json::from_str(json).unwrap()
}

async fn next_ids(requests: &mut Requests) -> Vec<u64> {
    let (_, request) = timeout(WAIT, requests.recv()).await.unwrap().unwrap();
    records(&request).iter().map(|record| body(record)["unmapped"]["signal_id"].as_u64().unwrap()).collect()
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> &'a Any {
    attributes.iter().find(|one| one.key == key).unwrap().value.as_ref().unwrap().value.as_ref().unwrap()
}

#[tokio::test]
async fn a_collector_gets_each_signal_and_an_agent_goes_on_where_it_was() {
    let bed = Bed::new();
    bed.put(1..=3).await;
    let (address, mut requests, _collector) = collector("127.0.0.1:0", Vec::new()).await;
    let exporter = bed.otlp(address);
    let mut progress = exporter.progress();
    let running = tokio::spawn(exporter.run());
    let (metadata, request) = timeout(WAIT, requests.recv()).await.unwrap().unwrap();
    assert_eq!(metadata.get("x-tenant").unwrap(), "shop");
    let resource = &request.resource_logs[0].resource.as_ref().unwrap().attributes;
    let string = |text: &str| Any::StringValue(text.to_owned());
    for (key, expected) in [("service.name", "portcullis"), ("k8s.node.name", "n"), ("k8s.cluster.name", "c")] {
        assert_eq!(value(resource, key), &string(expected), "{key}");
    }
    let [first, _, third] = records(&request) else { panic!("not three") };
    assert_eq!((first.severity_number, first.severity_text.as_str()), (17, "high"));
    assert_eq!(value(&first.attributes, "portcullis.tool"), &string("nc"));
    assert_eq!(value(&first.attributes, "process.pid"), &Any::IntValue(7));
    assert_eq!(body(first)["unmapped"]["argv"][1], "\u{fffd}\x1b[2J\"\n\u{202e}");
    assert_eq!((&body(third)["class_uid"], &body(third)["message"]), (&2004.into(), &"3".into()));
    timeout(WAIT, progress.wait_for(|progress| progress.id == 3)).await.unwrap().unwrap();
    assert_eq!(progress.borrow().delivered, 3);
    running.abort();
    let _ = running.await;

    bed.put(4..=5).await;
    tokio::spawn(bed.otlp(address).run());
    assert_eq!(next_ids(&mut requests).await, [4, 5]);
    assert!(bed.counters.losses().iter().all(|(_, count)| *count == 0));
}

#[tokio::test]
async fn an_outage_loses_nothing() {
    let bed = Bed::new();
    let (address, requests, first) = collector("127.0.0.1:0", Vec::new()).await;
    first.abort();
    let _ = first.await;
    drop(requests);
    bed.put(1..=2).await;
    let exporter = tokio::spawn(bed.otlp(address).run());
    timeout(WAIT, async {
        while bed.counters.export_failures.get() == 0 {
            tokio::task::yield_now().await;
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    bed.put(3..=4).await;
    // It comes back, and is overloaded at first.
    let (_, mut requests, _collector) = collector(&address.to_string(), vec![Err(Status::unavailable("busy"))]).await;
    assert_eq!(next_ids(&mut requests).await, [1, 2]);
    let mut again = next_ids(&mut requests).await;
    while again.last() != Some(&4) {
        again.extend(next_ids(&mut requests).await);
    }
    assert_eq!(again, [1, 2, 3, 4]);
    assert!(!exporter.is_finished() && bed.counters.export_gap.get() == 0);
}

#[tokio::test]
async fn what_is_refused_is_counted_and_holds_nothing_up() {
    let bed = Bed::new();
    bed.put(1..=3).await;
    let partial = ExportLogsPartialSuccess { rejected_log_records: 2, error_message: "too old".into() };
    // All three at once are refused, then the second alone; of the first it takes no record, but says so.
    let answers = vec![
        Err(Status::invalid_argument("second")),
        Ok(ExportLogsServiceResponse { partial_success: Some(partial) }),
        Err(Status::invalid_argument("all")),
    ];
    let (address, mut requests, _collector) = collector("127.0.0.1:0", answers).await;
    let mut exporter = bed.otlp(address);
    timeout(WAIT, exporter.export_new(3)).await.unwrap().unwrap();
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(next_ids(&mut requests).await);
    }
    assert_eq!(got, [vec![1, 2, 3], vec![1], vec![2], vec![3]]);
    assert_eq!((bed.counters.export_refused.get(), exporter.cursor.id), (3, 3));
}

/// Keeps what it gets.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Finding>>>);

impl Sink for Memory {
    const NAME: &'static str = "memory";

    async fn deliver(&mut self, batch: &[Finding]) -> Result<(), SinkError> {
        assert!(!batch.is_empty());
        self.0.lock().unwrap().extend_from_slice(batch);
        Ok(())
    }
}

impl Memory {
    fn take(&self) -> Vec<Value> {
        let findings = std::mem::take(&mut *self.0.lock().unwrap());
        findings.iter().map(|finding| serde_json::from_str(&finding.json).unwrap()).collect()
    }
}

#[tokio::test]
async fn what_has_changed_is_told_again_once() {
    let bed = Bed::new();
    bed.put(1..=3).await;
    let memory = Memory::default();
    let mut exporter = bed.exporter(memory.clone());
    exporter.export_new(2).await.unwrap();
    let first = memory.take();
    for count in [2, 3, 4] {
        bed.repeat(1, count).await;
    }
    // Not exported yet: its first telling has it.
    bed.repeat(3, 9).await;
    let newest = *bed.store.revision().borrow();
    exporter.export_updates(newest).await.unwrap();
    let updates = memory.take();
    assert_eq!(updates.len(), 1);
    assert_eq!((&updates[0]["activity_id"], &updates[0]["count"]), (&2.into(), &4.into()));
    assert_eq!(updates[0]["finding_info"]["uid"], first[0]["finding_info"]["uid"]);
    exporter.export_new(3).await.unwrap();
    assert_eq!(memory.take()[0]["count"], 9);
    drop(exporter);
    let mut again = bed.exporter(memory.clone());
    again.export_updates(newest).await.unwrap();
    again.export_new(3).await.unwrap();
    assert!(memory.take().is_empty());
}

#[tokio::test]
async fn what_retention_was_faster_with_is_counted() {
    let bed = Bed::new();
    bed.put(1..=9).await;
    let database = rusqlite::Connection::open(bed.directory.path().join(store::FILE_NAME)).unwrap();
    let remove = |ids: &str| database.execute(&format!("DELETE FROM signals WHERE id IN ({ids})"), []).unwrap();
    remove("1");
    let memory = Memory::default();
    let mut exporter = bed.exporter(memory.clone());
    exporter.export_new(3).await.unwrap();
    // What was gone before anyone exported is nobody's loss.
    assert_eq!((memory.take().len(), bed.counters.export_gap.get()), (2, 0));
    remove("4, 5, 7, 9");
    exporter.export_new(9).await.unwrap();
    assert_eq!((memory.take().len(), bed.counters.export_gap.get(), exporter.cursor.id), (2, 4, 9));
}

#[tokio::test]
async fn another_database_is_exported_from_its_beginning() {
    let bed = Bed::new();
    bed.put(1..=2).await;
    let file = CursorFile::new(bed.directory.path(), Memory::NAME);
    file.write(Cursor { id: 500, revision: 7 }).unwrap();
    let memory = Memory::default();
    bed.exporter(memory.clone()).export_new(2).await.unwrap();
    assert_eq!((memory.take().len(), bed.counters.export_gap.get()), (2, 1));
    assert_eq!(file.read().unwrap(), Some(Cursor { id: 2, revision: 0 }));
    std::fs::write(bed.directory.path().join("export-memory.json"), "{\"id\":").unwrap();
    bed.exporter(memory.clone()).export_new(2).await.unwrap();
    assert_eq!((memory.take().len(), bed.counters.export_cursors_lost.get()), (2, 1));
}
