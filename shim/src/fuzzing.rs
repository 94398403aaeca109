//! What fuzz targets do with their input, and what must hold for the outcome. The tests replay the corpus.
#![allow(clippy::expect_used, clippy::missing_panics_doc, missing_docs, reason = "a panic is how a target says no")]

use std::{collections::HashMap, env, fs, path::PathBuf, time::Duration};

use async_trait::async_trait;
use containerd_shim_protos::api::CreateTaskResponse;
use protobuf::{
    Message,
    well_known_types::{any::Any, empty::Empty},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    runtime::Runtime,
    time::timeout,
};
use ttrpc::{
    Request, Response,
    asynchronous::{Client, MethodHandler, Server, Service, TtrpcContext},
};

use crate::{
    bootstrap::{Answer, Input},
    guard::Warden,
    options::{CONFIG_BODY, Translation, translate},
    proxy,
    rundir::RunDir,
    socket, spec,
    state::Shims,
    task::{METHODS, SERVICES, answer},
};

/// Nothing that a broken request comes to may take longer.
const LIMIT: Duration = Duration::from_secs(5);
/// After as long nothing more is expected.
const QUIET: Duration = Duration::from_millis(2);
const RUN_DIR: &str = "run";

/// Runtime options: an `Any` as it comes, or the TOML in one.
pub fn options(data: &[u8]) {
    let Some((dialect, data)) = data.split_first() else { return };
    let options = if dialect % 2 == 0 {
        let Ok(options) = Any::parse_from_bytes(data) else { return };
        options
    } else {
        let mut body = Empty::default();
        body.special_fields.mut_unknown_fields().add_length_delimited(CONFIG_BODY, data.to_vec());
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: body.write_to_bytes().expect("it is in memory"),
            ..Any::default()
        }
    };
    if let Ok(Translation::Instead(translated)) = translate(&options) {
        assert_eq!(translate(&translated).expect("it needs no translation"), Translation::AsIs);
    }
}

/// An OCI spec's annotations.
pub fn oci_spec(data: &[u8]) {
    thread_local!(static BUNDLE: TempDir = tempfile::tempdir().expect("a directory"));
    let annotations = BUNDLE.with(|bundle| {
        fs::write(bundle.path().join("config.json"), data).expect("a file");
        spec::annotations(bundle.path())
    });
    if let Ok(annotations) = annotations {
        let group = spec::group(&annotations, "c1");
        assert!(group == "c1" || annotations.values().any(|value| value == group));
        let path = socket::path(None, "/run/containerd/containerd.sock", "default", group);
        assert!(path.as_os_str().len() < 108, "a socket's path, whatever the group is called");
    }
}

/// What containerd pipes into `start`, and what the inner shim answers.
pub fn bootstrap(data: &[u8]) {
    if let Ok(input) = Input::parse(data, "c1", "default") {
        let again = Input::parse(&input.for_inner, "c1", "default").expect("the inner shim can read it");
        assert_eq!(again.for_inner, input.for_inner, "nothing is left to be translated");
        assert_eq!(again.containerd_address, input.containerd_address);
    }
    if let Ok(answer) = Answer::parse(data) {
        let ours = answer.with_address("unix:///ours").expect("an answer");
        let read = Answer::parse(&ours).expect("our own answer");
        assert_eq!((read.address.as_str(), read.version), ("unix:///ours", answer.version));
    }
}

/// What comes to the resident part's socket: bytes as they are, or the payload of one method.
pub fn proxy(data: &[u8]) {
    // Without it no path leaves the working directory, which is made for this.
    if data.contains(&b'/') {
        return;
    }
    let Some((which, data)) = data.split_first() else { return };
    thread_local!(static BED: Bed = Bed::new());
    BED.with(|bed| {
        match usize::from(*which).checked_sub(1).and_then(|at| METHODS.get(at)) {
            Some(method) => bed.call(method, data),
            None => bed.runtime.block_on(bed.send(data)),
        }
        bed.call("State", b"c1");
        bed.clean();
    });
}

/// The proxy between us and an inner shim that answers anything.
struct Bed {
    runtime: Runtime,
    directory: TempDir,
    path: PathBuf,
    client: Client,
    _servers: [Server; 2],
}

impl Bed {
    fn new() -> Self {
        let runtime = proxy::event_loop().expect("an event loop");
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        for name in [RUN_DIR, "a"] {
            fs::create_dir(root.join(name)).expect("a directory");
        }
        env::set_current_dir(root.join("a")).expect("a directory");
        let (path, inner_path) = (root.join("shim"), root.join("inner"));
        let (client, servers) = runtime.block_on(async {
            let methods = || {
                METHODS
                    .into_iter()
                    .map(|name| (name.to_owned(), Box::new(Anything) as Box<dyn MethodHandler + Send + Sync>))
            };
            let service =
                |name: &str| (name.to_owned(), Service { methods: methods().collect(), streams: HashMap::new() });
            let services = SERVICES.into_iter().map(service).collect();
            let bind = |path| Server::new().bind(&socket::address(path)).expect("a socket");
            let mut inner = bind(&inner_path).register_service(services);
            inner.start().await.expect("the inner shim");
            let client = Client::connect(&socket::address(&inner_path)).await.expect("the inner shim");
            let run_dir = RunDir(root.join(RUN_DIR));
            let starting = run_dir.starting();
            let warden = Warden::new(run_dir, "default", "");
            let shims = Shims {
                socket: path.clone(),
                answer: Vec::new(),
                inner_program: "/nonexistent".into(),
                inner_address: socket::address(&inner_path),
                task_version: 2,
                inner: None,
            };
            let services = proxy::services(&client, warden, starting, &shims).expect("services");
            let mut shim = bind(&path).register_service(services);
            shim.start().await.expect("the shim");
            let client = Client::connect(&socket::address(&path)).await.expect("the shim");
            (client, [inner, shim])
        });
        Self { runtime, directory, path, client, _servers: servers }
    }

    /// A request in order, but for its payload. Whatever it is, there is an answer.
    fn call(&self, method: &str, payload: &[u8]) {
        let request = Request {
            service: SERVICES[0].to_owned(),
            method: method.to_owned(),
            payload: payload.to_vec(),
            ..Request::default()
        };
        let answer = self
            .runtime
            .block_on(async { timeout(LIMIT, self.client.request(request)).await })
            .expect("an answer in time");
        assert!(matches!(answer, Ok(_) | Err(ttrpc::Error::RpcStatus(_))), "{method}: {answer:?}");
    }

    /// Sends anything, and reads until the other side closes or has nothing more to say.
    async fn send(&self, bytes: &[u8]) {
        let mut stream = UnixStream::connect(&self.path).await.expect("somebody listens");
        // A connection may be closed for what came first.
        let _ = stream.write_all(bytes).await;
        let mut answers = [0; 4096];
        while matches!(timeout(QUIET, stream.read(&mut answers)).await, Ok(Ok(1..))) {}
    }

    /// Away with what bundles left behind.
    fn clean(&self) {
        for entry in fs::read_dir(self.directory.path().join("a")).expect("a directory") {
            let path = entry.expect("an entry").path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
}

impl Drop for Bed {
    /// Out of the directory before it goes.
    fn drop(&mut self) {
        let _ = env::set_current_dir("/");
    }
}

/// An inner shim that answers with what it was sent, or that all is well with a process that is none.
struct Anything;

#[async_trait]
impl MethodHandler for Anything {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let made = CreateTaskResponse { pid: u32::MAX, ..CreateTaskResponse::default() };
        let echo = request.payload.len() % 2 == 1;
        Ok(answer(if echo { request.payload } else { made.write_to_bytes().unwrap_or_default() }))
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
        replay("options", options);
        replay("oci-spec", oci_spec);
        replay("bootstrap", bootstrap);
        replay("proxy", proxy);
    }
}
