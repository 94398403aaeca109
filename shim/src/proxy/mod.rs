//! The resident part: answers containerd on our socket, and asks the inner shim.
//!
//! One thread, no stdio, and no child processes but the short-lived one that learns an image's contents. Every request is
//! forwarded undecoded, so that fields and metadata which this version does not know survive; [`hooks`] decodes the few
//! calls at which a container comes or goes.

mod describe;
mod hooks;
mod rest;

use std::{collections::HashMap, env, fs, os::unix::net::UnixListener, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use async_trait::async_trait;
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    runtime::{Builder, Runtime},
    time,
};
use ttrpc::{
    Request, Response,
    asynchronous::{Client, MethodHandler, Server, Service, TtrpcContext, transport::Listener},
};

pub use self::describe::find;
use self::hooks::Containers;
use crate::{
    args::Flags,
    guard::Warden,
    log::{self, Level},
    rundir::RunDir,
    socket,
    starting::Starting,
    state::Shims,
    task,
};

/// How long answers may take to reach containerd when the inner shim has gone.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs until the inner shim has gone. Working directory is the bundle, standard input the listening socket: a
/// descriptor that needs no number to be agreed on.
pub fn run(flags: &Flags) -> Result<()> {
    let listener = UnixListener::from(rustix::stdio::stdin().try_clone_to_owned().context("taking the socket")?);
    let null = fs::File::open("/dev/null").context("opening /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("closing standard input")?;
    yield_to_containerd();

    let bundle = env::current_dir().context("finding the bundle")?;
    let run_dir = RunDir::from_env();
    let starting = run_dir.starting();
    let warden = Warden::new(run_dir, &flags.namespace, &flags.address);
    // Should this fail while the inner shim lives, then the socket must stay behind: by it `delete` knows that there is
    // an inner shim to be ended. Nobody sees our exit status; the log is all there is.
    event_loop()?.block_on(serve(listener, &bundle, warden, starting)).inspect_err(|error| {
        log::write(&bundle, Level::Error, &flags.id, &format!("the shim ends: {error:#}"));
    })
}

/// An event loop without threads of its own.
pub fn event_loop() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_park(rest::before_waiting)
        .build()
        .context("starting the event loop")
}

/// When memory runs out, a shim must go before containerd does, as the stock one arranges it.
fn yield_to_containerd() {
    const PATH: &str = "/proc/self/oom_score_adj";
    if let Ok(text) = fs::read_to_string(PATH)
        && let Ok(score) = text.trim().parse::<i32>()
    {
        let _ = fs::write(PATH, score.saturating_add(1).min(1000).to_string());
    }
}

async fn serve(listener: UnixListener, bundle: &Path, warden: Warden, starting: Starting) -> Result<()> {
    let mut shims = Shims::load(bundle)?.context("the bundle was not prepared by start")?;
    let inner = Client::connect(&shims.inner_address).await.context("connecting to the inner shim")?;
    // The client does not tell when its connection closes; a second one that carries nothing does.
    let inner_socket = socket::path_of(&shims.inner_address)?;
    let lifeline = UnixStream::connect(inner_socket).await.context("watching the inner shim")?;
    shims.inner = Some(task::process(&inner, shims.task_version).await?);
    shims.save(bundle)?;

    let listener = Listener::try_from(listener).context("listening")?;
    let mut server = Server::new().add_listener(listener).register_service(services(&inner, warden, starting, &shims)?);
    server.start().await.context("serving")?;
    end_of(lifeline).await;

    // First the name, then the socket: containerd removes the bundle as soon as the connection closes, and a `start`
    // that finds the name must find somebody listening.
    let _ = fs::remove_file(&shims.socket);
    let _ = time::timeout(DRAIN, server.shutdown()).await;
    // One that was killed has left its name; containerd may remove the bundle, which tells of it, before it runs `delete`. Last, and it
    // may take a moment: nobody is served any more.
    let _ = socket::remove_of_ended(inner_socket);
    Ok(())
}

/// Waits until the other side has closed.
async fn end_of(mut connection: UnixStream) {
    let mut nothing = [0; 16];
    while !matches!(connection.read(&mut nothing).await, Ok(0) | Err(_)) {}
}

/// What is served on the socket.
pub fn services(inner: &Client, warden: Warden, starting: Starting, shims: &Shims) -> Result<HashMap<String, Service>> {
    let containers = Arc::new(Containers::new(inner.clone(), warden, shims.clone(), starting));
    let mut services = HashMap::new();
    for service in task::SERVICES {
        let methods =
            task::METHODS.into_iter().map(|name| (name.to_owned(), handler(name, inner, &containers))).collect();
        services.insert(service.to_owned(), Service { methods, streams: HashMap::new() });
    }
    services.insert(describe::SERVICE.to_owned(), describe::service(shims)?);
    Ok(services)
}

type Handler = Box<dyn MethodHandler + Send + Sync>;

fn handler(method: &str, inner: &Client, containers: &Arc<Containers>) -> Handler {
    let containers = Arc::clone(containers);
    match method {
        "Create" => hooked(move |request| Arc::clone(&containers).create(request)),
        "Start" => hooked(move |request| Arc::clone(&containers).start(request)),
        "Delete" => hooked(move |request| Arc::clone(&containers).delete(request)),
        "Shutdown" => hooked(move |request| Arc::clone(&containers).shutdown(request)),
        _ => Box::new(Forward(inner.clone())),
    }
}

/// A method that is the inner shim's alone.
struct Forward(Client);

#[async_trait]
impl MethodHandler for Forward {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        Ok(task::response(self.0.request(request).await))
    }
}

/// A method at which we have something to do. It runs to its end in a task of its own: ttrpc drops a handler whose
/// caller has gone or whose time is up, and a container must not be left half admitted because containerd restarts.
struct Hooked<F>(F);

fn hooked<F, R>(hook: F) -> Handler
where
    F: Fn(Request) -> R + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    Box::new(Hooked(hook))
}

#[async_trait]
impl<F, R> MethodHandler for Hooked<F>
where
    F: Fn(Request) -> R + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        tokio::spawn((self.0)(request)).await.map_err(|error| ttrpc::Error::Others(error.to_string()))
    }
}
