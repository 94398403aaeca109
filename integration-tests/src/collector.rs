//! An OpenTelemetry collector, and behind it what takes its log records as a store does.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    logs::v1::LogRecord,
};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, codec::CompressionEncoding, transport::Server};

use crate::command::run;

/// One record as the store has it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Attributes of the resource that it came from.
    pub resource: BTreeMap<String, String>,
    /// Its own.
    pub attributes: BTreeMap<String, String>,
    /// Its severity.
    pub severity: String,
    /// Its body.
    pub body: String,
}

type Records = Arc<Mutex<Vec<Record>>>;

/// Takes log records over OTLP. Dropping it ends it.
pub struct Store {
    address: SocketAddr,
    records: Records,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Taker(Records);

fn locked(records: &Records) -> MutexGuard<'_, Vec<Record>> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes
        .into_iter()
        .map(|attribute| (attribute.key, text(attribute.value.and_then(|value| value.value))))
        .collect()
}

#[tonic::async_trait]
impl LogsService for Taker {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        for logs in request.into_inner().resource_logs {
            let resource = logs.resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
            let record = |record: LogRecord| Record {
                resource: resource.clone(),
                attributes: texts(record.attributes),
                severity: record.severity_text,
                body: text(record.body.and_then(|body| body.value)),
            };
            locked(&self.0).extend(logs.scope_logs.into_iter().flat_map(|scope| scope.log_records).map(record));
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

impl Store {
    /// Listens on a port of the loopback device.
    pub fn start() -> Result<Self> {
        let records = Records::default();
        let (stop, stopped) = oneshot::channel();
        let (listening, address) = mpsc::channel();
        let taker = LogsServiceServer::new(Taker(Arc::clone(&records))).accept_compressed(CompressionEncoding::Gzip);
        let serve = move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                listening.send(listener.local_addr()?)?;
                let connections = TcpListenerStream::new(listener);
                let end = async { drop(stopped.await) };
                Ok(Server::builder().add_service(taker).serve_with_incoming_shutdown(connections, end).await?)
            })
        };
        let thread = thread::spawn(move || {
            if let Err(error) = serve() {
                eprintln!("the store: {error:#}");
            }
        });
        let address = address.recv().context("the store did not start")?;
        Ok(Self { address, records, stop: Some(stop), thread: Some(thread) })
    }

    /// What it has taken so far.
    pub fn records(&self) -> Vec<Record> {
        locked(&self.records).clone()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the collector logs, in its directory.
pub const LOG: &str = "collector.log";

/// The collector, between agents and store. Dropping it ends it.
pub struct Collector {
    program: PathBuf,
    directory: PathBuf,
    ports: [u16; 2],
    store: SocketAddr,
    child: Option<Child>,
}

impl Collector {
    /// The program, in the environment of a Python that has the package rotel.
    pub fn program(python: &Path) -> Result<PathBuf> {
        let text = "import importlib.util as u, os; print(os.path.dirname(u.find_spec('rotel').origin))";
        let directory = run(Command::new(python).args(["-c", text]))?.success()?.stdout;
        Ok(Path::new(directory.trim()).join("rotel-agent"))
    }

    /// `program`: rotel's agent. `directory`: for its files.
    pub fn start(program: &Path, directory: &Path, store: &Store) -> Result<Self> {
        let ports = [free_port()?, free_port()?];
        let mut collector = Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            ports,
            store: store.address,
            child: None,
        };
        collector.resume()?;
        Ok(collector)
    }

    /// Where agents send to.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// SIGKILLs it.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it again, at the same endpoint.
    pub fn resume(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.directory.join(LOG))?;
        let [grpc, http] = self.ports.map(|port| format!("127.0.0.1:{port}"));
        let mut command = Command::new(&self.program);
        command.args(["start", "--otlp-grpc-endpoint", &grpc, "--otlp-http-endpoint", &http]);
        command.args(["--exporter", "otlp", "--otlp-exporter-protocol", "grpc", "--otlp-exporter-endpoint"]);
        command.arg(format!("http://{}", self.store)).arg("--pid-file").arg(self.directory.join("collector.pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("ending the collector: {error:#}");
        }
    }
}

/// One that nobody has at the moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
