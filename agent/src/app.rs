//! Composition: prepares everything that can fail without touching the node, starts the parts in order, ends them in order.

use std::{fs, path::PathBuf, sync::Arc, thread, time::Duration};

use anyhow::{Context, anyhow};
use portcullis_bpf::{Backend, contents::Contents, pins::Pins, probe};
use portcullis_policy::{catalog::Catalog, policyset};
use portcullis_proto::v1;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{interval, timeout},
};

use crate::{
    additions,
    api::{self, NodeFacts, PolicyState, Sources},
    clock,
    config::Config,
    containers::Containers,
    counters::Counters,
    events::{EventLoop, EventsError, Stop},
    image,
    kernel::{self, Kernel},
    lock::Lock,
    policies::{self, Loaded},
    publish,
    records::RecordDirectory,
    signal,
    store::{self, Command, Limits},
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
    policy: Loaded,
    socket_group: Option<u32>,
}

/// Reads and checks everything that people write. Changes nothing.
pub fn prepare(config: Config) -> anyhow::Result<Prepared> {
    let catalog = additions::load(&config.catalog_dir)?;
    let policy = policies::load(&config.policy_dir, &catalog)?;
    let tools = Tools::new(known(catalog, &policy));
    let socket_group = config.socket.group.as_deref().map(api::socket::group_id).transpose()?;
    Ok(Prepared { config, tools, policy, socket_group })
}

/// What signals need of both.
fn known(catalog: Catalog, policy: &Loaded) -> Known {
    Known { catalog, severities: policy.severities.clone(), comm: policy.comm.clone() }
}

/// The running agent.
pub struct App {
    config: Config,
    tools: Tools,
    kernel: Arc<Kernel>,
    policy: PolicyState,
    backend: Backend,
    pins: Pins,
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
    pub fn start(prepared: Prepared) -> anyhow::Result<Self> {
        let Prepared { config, tools, policy, socket_group } = prepared;
        let lock = Lock::take(&config.run_dir)?;
        let report = probe::node();
        let (backend, reason) = kernel::choose(config.backend, &report)?;
        tracing::info!(backend = %kernel::published(backend), reason, kernel = report.kernel, "backend chosen");

        let counters = Arc::new(Counters::default());
        let limits = Limits {
            max_age: Duration::from_secs(u64::from(config.signals.max_age_days.get()) * 24 * 3600),
            max_bytes: u64::from(config.signals.max_size_mb.get()) << 20,
        };
        let (sender, store, store_thread) = store::open(&config.state_dir, limits, Arc::clone(&counters))?;

        let pins = Pins::current(&config.bpffs_root);
        let kernel = Arc::new(Kernel::load(&pins, backend, &policy).context("loading the kernel programs")?);
        let policy_state = PolicyState::default();
        let directory = RecordDirectory::create(&config.run_dir)
            .with_context(|| format!("creating the container records below {}", config.run_dir.display()))?;
        put_in_force(&config, backend, &pins, &policy, &policy_state)?;

        let containers = Containers::default();
        let (signals, pending) = mpsc::channel(SIGNAL_QUEUE);
        let (events, stop_events) =
            EventLoop::open(&pins, directory, containers.clone(), tools.clone(), signals, Arc::clone(&counters))?;
        let (ended, events_ended) = oneshot::channel();
        thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                // Nobody listens any more when the process is ending.
                let _ = ended.send(events.run());
            })
            .context("starting the events' thread")?;

        let stage = image::complete_signals(pending, containers.clone(), sender.clone(), Arc::clone(&counters));
        let resolver = image::resolve_images(containers.clone(), sender.clone(), store.clone(), Arc::clone(&counters));
        let expiry = async move {
            let mut ticks = interval(EXPIRE_INTERVAL);
            loop {
                ticks.tick().await;
                if sender.send(Command::Expire).await.is_err() {
                    return;
                }
            }
        };
        let forgetting = forget_unused_contents(pins.clone());
        let facts = NodeFacts {
            backend: signal::backend(Some(kernel::published(backend))),
            backend_reason: reason,
            kernel: report.kernel,
            started_ns: clock::now_ns(),
            checks: report.checks.into_iter().map(check_message).collect(),
        };
        let sources = Sources {
            store,
            containers,
            kernel: Arc::clone(&kernel) as Arc<dyn api::KernelCounters>,
            counters,
            facts: Arc::new(facts),
            policy: policy_state.clone(),
        };
        let (listener, socket) = api::socket::bind(&config.run_dir, socket_group)?;
        let (shutdown, stopped) = watch::channel(false);
        tracing::info!(socket = %socket.display(), "serving");
        Ok(Self {
            stage: Some(tokio::spawn(stage)),
            background: vec![tokio::spawn(resolver), tokio::spawn(expiry), tokio::spawn(forgetting)],
            server: Some(tokio::spawn(api::serve(listener, sources, stopped))),
            config,
            tools,
            kernel,
            policy: policy_state,
            backend,
            pins,
            stop_events,
            events_ended: Some(events_ended),
            shutdown,
            store_thread,
            socket,
            _lock: lock,
        })
    }

    /// Reads catalogue and policy again; if one is broken, the old ones stay in force.
    pub fn reload(&self) {
        if let Err(error) = self.try_reload() {
            let error = format!("{error:#}");
            tracing::error!(error, "catalogue and policy could not be reloaded; the former ones stay in force");
            self.policy.set_error(error);
        }
    }

    fn try_reload(&self) -> anyhow::Result<()> {
        let catalog = additions::load(&self.config.catalog_dir)?;
        let policy = policies::load(&self.config.policy_dir, &catalog)?;
        // Before the tables: an event about a new tool may come at once.
        let former = self.tools.replace(known(catalog, &policy));
        if let Err(error) = self.kernel.replace(&policy) {
            self.tools.replace(former);
            return Err(error).context("filling the kernel's tables");
        }
        put_in_force(&self.config, self.backend, &self.pins, &policy, &self.policy)
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
            let _ = tokio::task::spawn_blocking(|| self.store_thread.join()).await;
            if let Some(server) = self.server {
                let _ = server.await;
            }
        };
        if timeout(STOP_TIMEOUT, flow).await.is_err() {
            tracing::warn!("not everything ended in time");
        }
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::warn!(%error, "the socket could not be removed");
        }
    }
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

/// Publishes a policy whose tables are filled.
fn put_in_force(
    config: &Config,
    backend: Backend,
    pins: &Pins,
    policy: &Loaded,
    state: &PolicyState,
) -> anyhow::Result<()> {
    let set = policyset::PolicySet {
        format: policyset::FORMAT,
        backend: kernel::published(backend),
        pins: pins.directory().to_owned(),
        inner_shim: config.shim.inner.to_path_buf(),
        catalog: policy.catalog,
        default_policy: policy.entry.clone(),
    };
    publish::publish(&config.run_dir, &set)?;
    state.set(v1::Policy {
        id: policy.entry.id,
        name: policy.entry.name.clone(),
        mode: signal::mode(policy.entry.mode).into(),
        source: policy.source.clone(),
    });
    tracing::info!(policy = policy.entry.name, mode = %policy.entry.mode, source = policy.source, "policy in force");
    Ok(())
}

fn check_message(check: probe::Check) -> v1::Check {
    let state = match check.state {
        probe::State::Ok => v1::check::State::Ok,
        probe::State::Warning => v1::check::State::Warning,
        probe::State::Failed => v1::check::State::Failed,
    };
    v1::Check { name: check.name.to_owned(), state: state.into(), detail: check.detail, remedy: check.remedy }
}
