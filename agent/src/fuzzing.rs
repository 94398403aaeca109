//! What fuzz targets do with their input, and what must hold for the outcome. The tests replay the corpus.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a target says no"
)]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::PathBuf,
    str,
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use portcullis_bpf::abi::{self, ContainerStats};
use portcullis_policy::record::Guard;
use portcullis_proto::v1;
use prost::{
    Message,
    bytes::{Buf, BufMut},
};
use prost_reflect::DescriptorPool;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    service::Routes,
};

use crate::{
    api::{self, ApiError, KernelCounters, NodeFacts, Sources, peer::Peer, socket::Socket},
    clock,
    config::Seccomp,
    containers::Containers,
    containment::Containment,
    enforcement::{Cause, InForce},
    image::Item,
    records::RecordName,
    store::{
        self, Command, Limits,
        entry::{Entry, Origin, Process},
        expression::Expression,
    },
    testing::{self, FakeTables},
    triage::testing::web_shell,
};

/// Nothing that a request comes to may take longer.
const LIMIT: Duration = Duration::from_secs(5);
/// After as long nothing more is expected of what goes on by itself.
const QUIET: Duration = Duration::from_millis(2);
/// Of the agent's threads. A debug build takes twenty times as much.
const STACK: usize = if cfg!(fuzzing) { 2 << 20 } else { 40 << 20 };
/// Bytes of an answer that clients take.
const ANSWER: usize = 4 << 20;
/// Bytes of an error's message that clients take: it travels as a header of at most 16 kB, where each byte may take three.
const MESSAGE: usize = 5000;
/// Bytes of a signal of an operation; as many as the store reckons with.
const SIGNAL: usize = 10_000;
/// No cgroup has it: whatever process a request names, it is in none of the containers.
const CGROUP: u64 = u64::MAX;
/// Begins what is sent to the socket as it is.
const FRAMES: &[u8] = b"HTTP2";
const POLICY: &str = "web";

/// A filter's expression.
pub fn expression(data: &[u8]) {
    static SIGNALS: LazyLock<Vec<v1::Signal>> = LazyLock::new(|| {
        let argv = (0..2048).map(|number| "a".repeat(number % 64)).collect();
        let hostile = v1::Process { argv, exe: "a".repeat(4096), ..v1::Process::default() };
        let hostile = v1::Signal { process: Some(hostile), ..v1::Signal::default() };
        web_shell().into_iter().chain([v1::Signal::default(), hostile]).collect()
    });
    let Ok(text) = str::from_utf8(data).map(str::to_owned) else { return };
    let evaluate = move || match Expression::new(&text) {
        Ok(expression) => {
            for signal in SIGNALS.iter() {
                let started = Instant::now();
                expression.matches(signal);
                assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
            }
        }
        Err(error) => assert!(error.to_string().len() <= MESSAGE, "{error}"),
    };
    let thread = thread::Builder::new().stack_size(STACK).spawn(evaluate).expect("a thread");
    thread.join().expect("no panic");
}

/// A method's name and its request, or what is sent to the socket as it is.
pub fn grpc(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (Some(name), Some(payload)) = (parts.next(), parts.next()) else { return };
    thread_local!(static BED: Bed = Bed::new());
    BED.with(|bed| {
        if name == FRAMES {
            bed.runtime.block_on(bed.send(payload));
            assert!(!bed.server.is_finished(), "it goes on, whatever one client sends");
        } else if let Some(method) = METHODS.get(name) {
            bed.runtime.block_on(bed.call(method, payload));
        }
        bed.restore();
    });
}

/// A method of one of the services.
struct Method {
    path: PathAndQuery,
    is_stream: bool,
}

/// All of them, by name.
static METHODS: LazyLock<BTreeMap<Vec<u8>, Method>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(portcullis_proto::FILE_DESCRIPTOR_SET).expect("our own");
    let methods: Vec<_> = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    let entry = |method: &prost_reflect::MethodDescriptor| {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let path = PathAndQuery::try_from(path).expect("a path");
        (method.name().as_bytes().to_vec(), Method { path, is_stream: method.is_server_streaming() })
    };
    methods.iter().map(entry).collect()
});

/// The services, with a store, policies and containers, but without a kernel and without containerd.
struct Bed {
    runtime: Runtime,
    routes: Routes,
    caller: Peer,
    server: JoinHandle<Result<(), ApiError>>,
    socket: PathBuf,
    sources: Sources,
    in_force: Vec<InForce>,
    directory: TempDir,
    _shutdown: watch::Sender<bool>,
    _signals: mpsc::Sender<Item>,
    /// What operations tell. It is not stored: the store is to stay as it is.
    told: RefCell<mpsc::Receiver<Item>>,
}

impl Bed {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let (signals, told) = mpsc::channel(8);
        write_policies(&directory);
        let sources = sources(&directory, &signals);
        let (shutdown, stopped) = watch::channel(false);
        let (server, socket, routes, caller) = runtime.block_on(async {
            fill(&sources).await;
            let routes = api::routes(sources.clone(), stopped.clone()).await.expect("services");
            let socket = Socket::prepare(directory.path(), None).and_then(Socket::publish);
            let (listener, socket) = socket.expect("a socket");
            let server = tokio::spawn(api::serve(listener, None, sources.clone(), stopped));
            let (ours, _theirs) = UnixStream::pair().expect("sockets");
            let caller = Peer::from(ours.peer_cred().expect("credentials"));
            (server, socket, routes, caller)
        });
        let in_force = sources.enforcement.list();
        Self {
            runtime,
            routes,
            caller,
            server,
            socket,
            sources,
            in_force,
            directory,
            _shutdown: shutdown,
            _signals: signals,
            told: told.into(),
        }
    }

    /// A call in order, but for its request. Whatever that is, there is an answer.
    async fn call(&self, method: &Method, payload: &[u8]) {
        let mut request = Request::new(payload.to_vec());
        request.extensions_mut().insert(self.caller.clone());
        let mut client = Grpc::new(self.routes.clone()).max_decoding_message_size(usize::MAX);
        let outcome = async {
            client.ready().await.expect("services");
            // An answer that is no stream is one of a single message.
            let mut answers = client.server_streaming(request, method.path.clone(), Raw).await?.into_inner();
            while let Some(bytes) = answers.message().await? {
                assert!(bytes <= ANSWER, "{}: {bytes} bytes", method.path);
            }
            Ok(())
        };
        match timeout(if method.is_stream { QUIET } else { LIMIT }, outcome).await {
            Ok(Ok(())) => {}
            Ok(Err(status)) => check(method, &status),
            Err(_) => assert!(method.is_stream, "{}: no answer in time", method.path),
        }
        while let Ok(item) = self.told.borrow_mut().try_recv() {
            let Item::Signal(pending) = item else { continue };
            let bytes = pending.signal.encoded_len();
            assert!(bytes <= SIGNAL, "{}: a signal of {bytes} bytes", method.path);
        }
    }

    /// Sends anything, and reads until the other side closes or has nothing more to say.
    async fn send(&self, bytes: &[u8]) {
        let mut stream = UnixStream::connect(&self.socket).await.expect("somebody listens");
        // A connection may be closed for what came first.
        let _ = stream.write_all(bytes).await;
        let mut answers = [0; 4096];
        while matches!(timeout(QUIET, stream.read(&mut answers)).await, Ok(Ok(1..))) {}
    }

    /// Policies and modes as they were, so that there are never many.
    fn restore(&self) {
        let enforcement = &self.sources.enforcement;
        let now = enforcement.list();
        if now == self.in_force {
            return;
        }
        for policy in now.iter().filter(|policy| policy.file_mode.is_some()) {
            enforcement.set_policy_mode(&policy.name, None).expect("the file's mode");
        }
        write_policies(&self.directory);
        enforcement.reload(Cause::Change);
        assert_eq!(enforcement.list(), self.in_force);
    }
}

fn write_policies(directory: &TempDir) {
    let policies = testing::node(directory.path()).policy_dir;
    let _ = fs::remove_dir_all(&policies);
    fs::create_dir(&policies).expect("a directory");
    let text = format!(
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: {POLICY}}}\nspec:\n  mode: enforce\n  \
         select: {{namespaces: [shop]}}\n  rules:\n  - {{tools: [nc, dig], action: block}}\n"
    );
    fs::write(policies.join(format!("{POLICY}.yaml")), text).expect("a file");
}

fn sources(directory: &TempDir, signals: &mpsc::Sender<Item>) -> Sources {
    let directory = directory.path();
    let (containers, tables) = (Containers::default(), Arc::<FakeTables>::default());
    let limits = Limits { max_age: Duration::from_secs(100 * 366 * 24 * 3600), max_bytes: 1 << 28 };
    let (sender, store, _thread) =
        store::open(&directory.join("state"), limits, Arc::default()).expect("an empty store");
    let counters = Arc::default();
    let enforcement = testing::enforcement_with(directory, &containers, Arc::clone(&tables), Arc::clone(&counters));
    let means = Arc::clone(&tables);
    let containment = Containment::new(containers.clone(), means, signals, Arc::clone(&counters));
    let policy = enforcement.list().first().expect("two").id;
    for (number, id) in (0_u64..).zip(["c1", "c2", "gone"]) {
        let mut record = testing::record(CGROUP - number, id);
        match id {
            "c2" => record.guard = Guard::Unguarded { reason: "test".into() },
            "gone" => record.ended_ns = Some(record.created_ns + 1),
            _ => tables.enter(record.cgroup_id, policy, abi::Mode::Detect),
        }
        containers.insert(RecordName::Cgroup(record.cgroup_id), record);
    }
    let facts = NodeFacts {
        node: v1::Node { name: "node-1".into(), cluster: "shop".into() },
        backend: v1::Backend::Lsm,
        backend_reason: "test".into(),
        kernel: "6.1".into(),
        started_ns: 1,
        checks: Vec::new(),
        seccomp: Seccomp::Enforce,
    };
    Sources {
        store,
        sender,
        containers,
        kernel: Arc::new(NoKernel),
        counters,
        facts: Arc::new(facts),
        enforcement,
        containment,
        tls: None,
    }
}

/// Some pages of signals.
async fn fill(sources: &Sources) {
    const SIGNALS: u64 = 240;
    for number in 0..SIGNALS {
        for signal in web_shell() {
            let process = signal.process.clone().unwrap_or_default();
            let process = Process { pid: process.pid, start_time_ns: number };
            let time_ns = u64::try_from(clock::ns(signal.time.as_ref())).unwrap_or_default() + number;
            let origin = Origin::Event { cgroup_id: CGROUP, process, time_ns };
            let entry = Entry::new(origin, &signal, vec![process]);
            sources.sender.send(Command::Signal(Box::new(entry))).await.expect("the store takes it");
        }
    }
    let mut last = sources.store.last_id();
    last.wait_for(|last| *last >= SIGNALS).await.expect("the store keeps it");
}

/// An error is the caller's, or said of what is not there, and short enough to travel.
fn check(method: &Method, status: &Status) {
    let fits = status.message().len() <= MESSAGE && !status.message().is_empty();
    assert!(fits, "{}: {} bytes of {:?}", method.path, status.message().len(), status.code());
    let excused = ["failed to decode Protobuf message", "opening the cgroup /nonexistent"];
    let excused = excused.iter().any(|begin| status.message().starts_with(begin));
    let own = matches!(status.code(), Code::Unknown | Code::Internal | Code::DataLoss | Code::Unimplemented);
    assert!(!own || excused, "{}: {status:?}", method.path);
}

struct NoKernel;

impl KernelCounters for NoKernel {
    fn container(&self, cgroup_id: u64) -> Option<ContainerStats> {
        (cgroup_id == CGROUP).then_some(ContainerStats { matched: 3, blocked: 2, killed: 1, lost: 0, excepted: 5 })
    }

    fn activities_lost(&self, cgroup_id: u64) -> u64 {
        if cgroup_id == CGROUP { 7 } else { 0 }
    }

    fn node(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Requests that are bytes already, and answers of which the length is enough.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let length = from.remaining();
        from.advance(length);
        Ok(Some(length))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn replay(name: &str, target: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let inputs: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{} is empty", directory.display());
        for path in inputs {
            println!("{}", path.display());
            target(&fs::read(&path).unwrap());
        }
    }

    #[test]
    fn corpus() {
        replay("grpc", grpc);
        replay("expression", expression);
    }
}
