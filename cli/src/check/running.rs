//! The containerd that runs: which handlers it knows, and where it looks for shims.
//!
//! It reads its configuration only when it starts, and has a PATH of its own: both are asked from it, not guessed.

use std::{
    collections::HashMap,
    env,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use prost::Message;
use tokio::net::UnixStream;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

use super::{
    containerd::{RUNTIME_TYPE, some_of},
    report::Check,
};
use crate::client::connect_unix;

const NAME: &str = "containerd";
const PATIENCE: Duration = Duration::from_secs(5);
const LOG: &str = "see its log (journalctl -u containerd)";

/// Of `runtime.v1.RuntimeService/Status` what is asked for here.
#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

/// The same of the answer. `config` in it is CRI's configuration as JSON.
#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

/// What was learnt.
#[derive(Debug)]
pub struct Running {
    /// Its PATH, where it could be seen.
    pub path: Option<Vec<PathBuf>>,
    handlers: Result<Handlers, String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Handlers {
    /// Those that lead to the shim.
    Ours(Vec<String>),
    /// It has no CRI.
    NoCri,
}

/// Asks it.
pub async fn ask(socket: &Path) -> Running {
    let path = match UnixStream::connect(socket).await {
        Err(error) => return Running { path: None, handlers: Err(format!("{}: {error}", socket.display())) },
        Ok(stream) => stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(path_of),
    };
    let asked = tokio::time::timeout(PATIENCE, status(socket)).await;
    let handlers = match asked {
        Ok(Ok(response)) => Ok(Handlers::Ours(ours(&response))),
        Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(Handlers::NoCri),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    Running { path, handlers }
}

impl Running {
    /// `configured`: the handlers that its configuration has by now.
    pub fn check(&self, configured: &[String]) -> Check {
        match &self.handlers {
            Err(error) => {
                Check::warning(NAME, error, "start it (systemctl start containerd), or give --containerd-socket")
            }
            Ok(Handlers::NoCri) if configured.is_empty() => Check::ok(NAME, "runs, without CRI"),
            Ok(Handlers::NoCri) => Check::warning(
                NAME,
                format!("has no CRI, so that nothing can use {}", some_of(configured)),
                format!("take cri out of disabled_plugins and restart containerd; or {LOG}"),
            ),
            Ok(Handlers::Ours(known)) => {
                let unknown: Vec<_> = configured.iter().filter(|name| !known.contains(name)).cloned().collect();
                if unknown.is_empty() && known.is_empty() {
                    return Check::ok(NAME, "runs; no handler leads to the shim");
                }
                if unknown.is_empty() {
                    return Check::ok(NAME, format!("runs, and offers {}", some_of(known)));
                }
                Check::failed(
                    NAME,
                    format!("does not know {}: it was not restarted since, or ignores it", some_of(&unknown)),
                    format!("systemctl restart containerd   # if that does not help, {LOG}"),
                )
            }
        }
    }
}

async fn status(socket: &Path) -> Result<StatusResponse, Status> {
    let unavailable = |error: &dyn std::error::Error| Status::unavailable(error.to_string());
    let channel = connect_unix(socket, Endpoint::from_static("http://containerd.invalid")).await;
    let mut grpc = Grpc::new(channel.map_err(|error| unavailable(&error))?);
    grpc.ready().await.map_err(|error| unavailable(&error))?;
    let codec = ProstCodec::<StatusRequest, StatusResponse>::default();
    let method = PathAndQuery::from_static("/runtime.v1.RuntimeService/Status");
    Ok(grpc.unary(Request::new(StatusRequest { verbose: true }), method, codec).await?.into_inner())
}

/// The handlers that lead to the shim.
fn ours(response: &StatusResponse) -> Vec<String> {
    let config = response.info.get("config").and_then(|config| serde_json::from_str(config).ok());
    let config: serde_json::Value = config.unwrap_or_default();
    let runtimes = config.pointer("/containerd/runtimes").and_then(serde_json::Value::as_object);
    let is_ours = |runtime: &serde_json::Value| runtime.get("runtimeType").is_some_and(|value| value == RUNTIME_TYPE);
    let ours = runtimes.into_iter().flatten().filter(|(_, runtime)| is_ours(runtime));
    ours.map(|(name, _)| name.clone()).collect()
}

fn path_of(pid: i32) -> Option<Vec<PathBuf>> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let path = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"PATH="))?;
    Some(env::split_paths(OsStr::from_bytes(path)).collect())
}

#[cfg(test)]
mod tests {
    use super::{super::report::State, *};

    /// As containerd 1.6.20 answers, cut short.
    const CONFIG: &str = r#"{"containerd": {"snapshotter": "overlayfs", "runtimes": {
        "portcullis": {"runtimeType": "io.containerd.portcullis.v1", "PodAnnotations": ["portcullis.dev/*"]},
        "runc": {"runtimeType": "io.containerd.runc.v2", "PodAnnotations": null}}}}"#;

    fn running(handlers: Handlers) -> Running {
        Running { path: None, handlers: Ok(handlers) }
    }

    #[test]
    fn its_handlers_are_read() {
        let response = StatusResponse { info: [("config".to_owned(), CONFIG.to_owned())].into() };
        assert_eq!(ours(&response), ["portcullis"]);
        assert!(ours(&StatusResponse::default()).is_empty());
    }

    #[test]
    fn what_it_was_not_told_yet_is_named() {
        let configured = ["portcullis".to_owned()];
        let known = running(Handlers::Ours(configured.to_vec()));
        assert_eq!((known.check(&configured).state, known.check(&[]).state), (State::Ok, State::Ok));
        let check = running(Handlers::Ours(Vec::new())).check(&configured);
        assert!(check.state == State::Failed && check.remedy.starts_with("systemctl restart containerd"), "{check:?}");
        assert_eq!(running(Handlers::NoCri).check(&[]).state, State::Ok);
        assert_eq!(running(Handlers::NoCri).check(&configured).state, State::Warning);
    }

    #[tokio::test]
    async fn nobody_there_is_a_warning() {
        let running = ask(Path::new("/nonexistent/containerd.sock")).await;
        assert_eq!((running.check(&[]).state, running.path), (State::Warning, None));
    }
}
