//! Composition: prepares everything that can fail without touching the node, starts the parts in order, ends them in order.

use std::{fs, path::PathBuf, sync::Arc, thread, time::Duration};

use anyhow::{Context, anyhow};
use portcullis_bpf::{Backend, contents::Contents, pins::Pins, probe};
use portcullis_proto::v1;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{interval, timeout},
};

use crate::{
    additions,
    api::{
        self, NodeFacts, Sources,
        tcp::{Listener, TcpError},
        tls::Tls,
    },
    changes::Changes,
    clock,
    config::{Config, Seccomp, Signals},
    containers::Containers,
    containment::{Containment, Means},
    counters::Counters,
    enforcement::{self, Cause, Enforcement, Overrides, PolicyTables},
    events::{EventLoop, EventsError, Outlet, Stop},
    export::{Exporter, Progress, Sink, jsonl::JsonLines, ocsf, otlp::Otlp},
    image,
    kernel::{self, Kernel},
    lock::Lock,
    metrics,
    policies::{self, Policies},
    records::RecordDirectory,
    sandbox, signal,
    store::{self, Command, Limits},
    text::enum_name,
    tools::{Known, Tools},
};

/// Signals between the events' thread and the stage behind it; a decoded one takes up to 100 kB.
const SIGNAL_QUEUE: usize = 64;
/// How often contents of unused images are looked for.
const FORGET_INTERVAL: Duration = Duration::from_secs(600);
/// How often retention by age is applied.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(600);
/// How long the parts may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Configuration, catalogue and policy, checked.
pub struct Prepared {
    config: Config,
    tools: Tools,
    policies: Policies,
    socket_group: Option<u32>,
}

/// Reads and checks everything that people write. Changes nothing.
pub fn prepare(config: Config) -> anyhow::Result<Prepared> {
    let catalog = additions::load(&config.catalog_dir)?;
    let policies = policies::load(&config.policy_dirs(), &catalog)?;
    let tools = Tools::new(Known::new(catalog, policies.meanings()));
    let socket_group = config.socket.group.as_deref().map(api::socket::group_id).transpose()?;
    Ok(Prepared { config, tools, policies, socket_group })
}

/// What it takes rights to make that the running agent has not.
pub struct Loaded {
    prepared: Prepared,
    lock: Lock,
    report: probe::Report,
    backend: Backend,
    reason: String,
    pins: Pins,
    kernel: Kernel,
    socket: api::socket::Socket,
}

impl Prepared {
    /// Loads what the kernel is to run and makes the socket, then gives up the rights to do so. Before there are threads.
    pub fn load(self) -> anyhow::Result<Loaded> {
        let config = &self.config;
        let lock = Lock::take(&config.run_dir)?;
        let report = probe::node();
        let (backend, reason) = kernel::choose(config.backend, &report)?;
        tracing::info!(backend = %kernel::published(backend), reason, kernel = report.kernel, "backend chosen");
        let pins = Pins::current(&config.bpffs_root);
        let kernel = Kernel::load(&pins, backend).context("loading the kernel programs")?;
        let socket = api::socket::Socket::prepare(&config.run_dir, self.socket_group)?;
        sandbox::give_up_rights()?;
        Ok(Loaded { prepared: self, lock, report, backend, reason, pins, kernel, socket })
    }
}

/// The running agent.
pub struct App {
    enforcement: Enforcement,
    tls: Option<Arc<Tls>>,
    stop_events: Stop,
    events_ended: Option<oneshot::Receiver<Result<(), EventsError>>>,
    shutdown: watch::Sender<bool>,
    server: Option<JoinHandle<Result<(), api::ApiError>>>,
    stage: Option<JoinHandle<Result<(), store::StoreError>>>,
    background: Vec<JoinHandle<()>>,
    store_thread: thread::JoinHandle<()>,
    socket: PathBuf,
    _lock: Lock,
}

impl App {
    /// Starts everything, inside a runtime. On failure what was pinned before stays in force.
    pub async fn start(loaded: Loaded) -> anyhow::Result<Self> {
        let Loaded { prepared, lock, report, backend, reason, pins, kernel, socket } = loaded;
        let Prepared { config, tools, policies, socket_group: _ } = prepared;

        let counters = Arc::new(Counters::default());
        let (sender, store, store_thread) =
            store::open(&config.state_dir, limits(config.signals), Arc::clone(&counters))?;

        let kernel = Arc::new(kernel);
        let directory = RecordDirectory::create(&config.run_dir)
            .with_context(|| format!("creating the container records below {}", config.run_dir.display()))?;
        let containers = Containers::default();
        let mut directories = config.policy_dirs();
        directories.push(&config.catalog_dir);
        let changes = Changes::watch(&directories, Arc::clone(&counters))
            .context("watching the directories of policies and catalogue (see fs.inotify.max_user_instances)")?;
        let enforcement = Enforcement::start(
            enforcement::Node::new(&config, kernel::published(backend), &pins),
            Arc::clone(&kernel) as Arc<dyn PolicyTables>,
            containers.clone(),
            tools.clone(),
            Arc::clone(&counters),
            policies,
            Overrides::open(&config.state_dir, &counters),
        )?;

        let (signals, pending) = mpsc::channel(SIGNAL_QUEUE);
        let containment = Containment::new(
            containers.clone(),
            Arc::clone(&kernel) as Arc<dyn Means>,
            &signals,
            Arc::clone(&counters),
        );
        let (events, stop_events) = EventLoop::open(
            &pins,
            directory,
            containers.clone(),
            enforcement.clone(),
            tools,
            Outlet { signals, store: &store },
            Arc::clone(&counters),
        )?;
        let (ended, events_ended) = oneshot::channel();
        thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                // Nobody listens any more when the process is ending.
                let _ = ended.send(events.run());
            })
            .context("starting the events' thread")?;

        reload_on_changes(changes, enforcement.clone(), Arc::clone(&counters))?;

        let node = node(&config);
        let stage =
            image::complete_signals(pending, containers.clone(), sender.clone(), node.clone(), Arc::clone(&counters));
        let resolver = image::resolve_images(
            containers.clone(),
            enforcement.clone(),
            sender.clone(),
            store.clone(),
            Arc::clone(&counters),
        );
        let expiry = expire_old_signals(sender.clone());
        let forgetting = forget_unused_contents(pins);
        let facts = facts(node, backend, reason, report, config.sandbox.seccomp);
        let tcp = listen(&config, &counters).await?;
        let sources = Sources {
            store,
            sender,
            containers,
            kernel: kernel as Arc<dyn api::KernelCounters>,
            counters,
            facts: Arc::new(facts),
            enforcement: enforcement.clone(),
            containment,
            tls: tcp.as_ref().map(|tcp| Arc::clone(tcp.tls())),
        };
        let refusals = sandbox::tell_of_refusals(Arc::clone(&sources.counters));
        let tasks = [tokio::spawn(resolver), tokio::spawn(expiry), tokio::spawn(forgetting), tokio::spawn(refusals)];
        let mut background = Vec::from(tasks);
        background.extend(sources.tls.clone().map(|tls| tokio::spawn(tls.follow())));
        let exporters = start_exporters(&config, &sources, &mut background)?;
        if let Some(listen) = config.metrics.listen {
            let database = config.state_dir.join(store::FILE_NAME);
            background.extend(metrics::start(listen, sources.clone(), exporters, database).await?);
        }
        // Everything is there: from here on the agent listens to others.
        sandbox::confine(config.sandbox.seccomp)?;
        let (listener, socket) = socket.publish()?;
        let (shutdown, stopped) = watch::channel(false);
        tracing::info!(socket = %socket.display(), "serving");
        Ok(Self {
            stage: Some(tokio::spawn(stage)),
            background,
            tls: sources.tls.clone(),
            server: Some(tokio::spawn(api::serve(listener, tcp, sources, stopped))),
            enforcement,
            stop_events,
            events_ended: Some(events_ended),
            shutdown,
            store_thread,
            socket,
            _lock: lock,
        })
    }

    /// Reads catalogue, policies and certificates again; if one is broken, the old ones stay in force.
    pub fn reload(&self) {
        if let Some(tls) = &self.tls {
            tls.reload();
        }
        self.enforcement.reload(Cause::Request);
    }

    /// Waits for a part to end, which none does by itself.
    pub async fn failed(&mut self) -> anyhow::Error {
        let (part, result) = tokio::select! {
            result = ended(&mut self.events_ended) => ("the events' thread", result),
            result = ended(&mut self.server) => ("the API", result),
            result = ended(&mut self.stage) => ("the signals' stage", result),
        };
        match result {
            Ok(()) => anyhow!("{part} has ended"),
            Err(error) => error.context(format!("{part} has ended")),
        }
    }

    /// Ends the parts in the order in which signals flow, so that what was read is stored. Whatever is pinned, and the
    /// records, stay.
    pub async fn stop(self) {
        self.stop_events.stop();
        self.shutdown.send_replace(true);
        let flow = async {
            // Errors were reported where they happened, or will be by the part behind.
            if let Some(events) = self.events_ended {
                let _ = events.await;
            }
            if let Some(stage) = self.stage {
                let _ = stage.await;
            }
            for task in self.background {
                task.abort();
                let _ = task.await;
            }
            // It can send to the store, whose thread ends when nobody can any more.
            if let Some(server) = self.server {
                let _ = server.await;
            }
            let _ = tokio::task::spawn_blocking(|| self.store_thread.join()).await;
        };
        if timeout(STOP_TIMEOUT, flow).await.is_err() {
            tracing::warn!("not everything ended in time");
        }
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::warn!(%error, "the socket could not be removed");
        }
        sandbox::sum_up();
    }
}

/// Where the API is served over TCP, if it is.
async fn listen(config: &Config, counters: &Arc<Counters>) -> Result<Option<Listener>, TcpError> {
    match &config.tcp {
        Some(tcp) => Ok(Some(Listener::bind(tcp, counters).await?)),
        None => Ok(None),
    }
}

/// What its signals call this node.
fn node(config: &Config) -> v1::Node {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    v1::Node {
        name: config.node_name.as_deref().map_or_else(host, str::to_owned),
        cluster: config.cluster_name.as_deref().unwrap_or_default().to_owned(),
    }
}

fn facts(
    node: v1::Node,
    backend: Backend,
    backend_reason: String,
    report: probe::Report,
    seccomp: Seccomp,
) -> NodeFacts {
    NodeFacts {
        node,
        backend: signal::backend(Some(kernel::published(backend))),
        backend_reason,
        kernel: report.kernel,
        started_ns: clock::now_ns(),
        checks: report.checks.into_iter().map(check_message).collect(),
        seccomp,
    }
}

/// Starts what the configuration asks for.
fn start_exporters(
    config: &Config,
    sources: &Sources,
    tasks: &mut Vec<JoinHandle<()>>,
) -> anyhow::Result<metrics::Exporters> {
    let export = &config.export;
    let node = Arc::new(ocsf::Node {
        name: sources.facts.node.name.clone(),
        kernel: sources.facts.kernel.clone(),
        backend: enum_name(sources.facts.backend.as_str_name(), "BACKEND_"),
        cluster: sources.facts.node.cluster.clone(),
    });
    let mut exporters = metrics::Exporters::new();
    if let Some(jsonl) = &export.jsonl {
        let sink = JsonLines::new(&jsonl.path, u64::from(jsonl.max_size_mb.get()) << 20, jsonl.keep.into());
        exporters.push(start_exporter(sink, config, sources, &node, tasks));
    }
    if let Some(otlp) = &export.otlp {
        let endpoint = otlp.endpoint.endpoint().context("the collector's address")?;
        let timeout = Duration::from_secs(otlp.timeout_seconds.get().into());
        let counters = Arc::clone(&sources.counters);
        let sink = Otlp::new(endpoint, otlp.headers.metadata(), timeout, &node, counters);
        exporters.push(start_exporter(sink, config, sources, &node, tasks));
    }
    Ok(exporters)
}

fn start_exporter<S: Sink>(
    sink: S,
    config: &Config,
    sources: &Sources,
    node: &Arc<ocsf::Node>,
    tasks: &mut Vec<JoinHandle<()>>,
) -> (&'static str, watch::Receiver<Progress>) {
    let (store, counters) = (sources.store.clone(), Arc::clone(&sources.counters));
    let exporter = Exporter::new(sink, store, Arc::clone(node), &config.state_dir, counters);
    let progress = exporter.progress();
    tasks.push(tokio::spawn(exporter.run()));
    (S::NAME, progress)
}

/// Waits for a part; one that has ended is not waited for again.
async fn ended<F, E, J>(part: &mut Option<F>) -> anyhow::Result<()>
where
    F: Future<Output = Result<Result<(), E>, J>> + Unpin,
    anyhow::Error: From<E> + From<J>,
{
    let Some(running) = part.as_mut() else { return std::future::pending().await };
    let outcome = running.await;
    *part = None;
    Ok(outcome??)
}

/// Reads policies and catalogue again whenever their directories change, in a thread that ends with the process: what it does
/// can be left at any moment. And once at first, as they were read before they were watched.
fn reload_on_changes(mut changes: Changes, enforcement: Enforcement, counters: Arc<Counters>) -> anyhow::Result<()> {
    let reload = move || {
        loop {
            enforcement.reload(Cause::Change);
            if let Err(error) = changes.wait() {
                counters.directories_unwatched.increment();
                tracing::error!(%error, "policies and catalogue are not watched any more: send SIGHUP after changes");
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("changes".to_owned());
    thread.spawn(reload).context("starting the thread that watches policies and catalogue")?;
    Ok(())
}

/// What is kept of signals.
fn limits(signals: Signals) -> Limits {
    Limits {
        max_age: Duration::from_secs(u64::from(signals.max_age_days.get()) * 24 * 3600),
        max_bytes: u64::from(signals.max_size_mb.get()) << 20,
    }
}

/// Has retention by age applied from time to time.
async fn expire_old_signals(sender: store::Sender) {
    let mut ticks = interval(EXPIRE_INTERVAL);
    loop {
        ticks.tick().await;
        if sender.send(Command::Expire).await.is_err() {
            return;
        }
    }
}

/// Removes what shims have learnt of images that are no longer used.
async fn forget_unused_contents(pins: Pins) {
    let mut ticks = interval(FORGET_INTERVAL);
    loop {
        ticks.tick().await;
        let pins = pins.clone();
        let forgotten = tokio::task::spawn_blocking(move || Contents::open(&pins)?.forget_unused(&pins)).await;
        match forgotten {
            Ok(Ok(0)) => {}
            Ok(Ok(images)) => tracing::debug!(images, "contents of images forgotten that are no longer used"),
            Ok(Err(error)) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(error = format!("{error:#}"), "contents of unused images could not be forgotten");
            }
            // The runtime is ending.
            Err(_) => return,
        }
    }
}

fn check_message(check: probe::Check) -> v1::Check {
    let state = match check.state {
        probe::State::Ok => v1::check::State::Ok,
        probe::State::Warning => v1::check::State::Warning,
        probe::State::Failed => v1::check::State::Failed,
    };
    v1::Check { name: check.name.to_owned(), state: state.into(), detail: check.detail, remedy: check.remedy }
}
