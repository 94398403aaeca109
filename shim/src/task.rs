//! The task service as it is on the wire: names, statuses, and calls of our own.

use anyhow::{Context, Result};
use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};
use protobuf::Message;
use ttrpc::{Code, Request, Response, asynchronous::Client, get_status};

use crate::process::Process;

/// The task API's versions differ in nothing but the name.
pub const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// Every method of the task API.
pub const METHODS: [&str; 17] = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
];

/// How long a call of our own may take.
const TIMEOUT_NS: i64 = 10_000_000_000;

/// A response that says no.
pub fn refusal(code: Code, message: &str) -> Response {
    Response { status: Some(get_status(code, message)).into(), ..Response::default() }
}

/// A response that carries a message.
pub fn answer(payload: Vec<u8>) -> Response {
    Response { status: Some(get_status(Code::OK, "")).into(), payload, ..Response::default() }
}

/// Whether a response is the answer asked for.
pub fn is_ok(response: &Response) -> bool {
    response.status.as_ref().is_none_or(|status| status.code() == Code::OK)
}

/// The response for what a forwarded request came to: a status travels on as it is, details included; whatever else
/// goes wrong between the two shims means that the inner one can't be reached.
pub fn response(result: ttrpc::Result<Response>) -> Response {
    match result {
        Ok(response) => response,
        Err(ttrpc::Error::RpcStatus(status)) => Response { status: Some(status).into(), ..Response::default() },
        Err(error) => refusal(Code::UNAVAILABLE, &format!("portcullis: the inner shim does not answer: {error}")),
    }
}

/// A request of our own.
pub fn request(service: &str, method: &str, message: &impl Message) -> Result<Request> {
    Ok(Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: message.write_to_bytes().with_context(|| format!("encoding {method}"))?,
        timeout_nano: TIMEOUT_NS,
        ..Request::default()
    })
}

/// Asks a shim which process it is.
pub async fn process(client: &Client, version: u32) -> Result<Process> {
    let service = format!("containerd.task.v{version}.Task");
    let request = request(&service, "Connect", &ConnectRequest::default())?;
    let response = client.request(request).await.context("asking the inner shim for its pid")?;
    let answer = ConnectResponse::parse_from_bytes(&response.payload).context("decoding the inner shim's pid")?;
    Process::of(answer.shim_pid).context("finding the inner shim")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_travels_on_and_the_rest_is_unavailable() {
        let status = get_status(Code::NOT_FOUND, "no such task");
        let passed = response(Err(ttrpc::Error::RpcStatus(status.clone())));
        assert_eq!(passed.status.as_ref(), Some(&status));
        assert!(!is_ok(&passed));
        assert_eq!(response(Err(ttrpc::Error::RemoteClosed)).status().code(), Code::UNAVAILABLE);
        assert!(is_ok(&response(Ok(answer(vec![1])))));
        assert!(is_ok(&Response::default()));
    }
}
