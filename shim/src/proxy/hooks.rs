//! The calls at which a container comes or goes.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, KillRequest, StartRequest, StartResponse, WaitRequest,
};
use protobuf::Message;
use ttrpc::{Code, Request, Response, asynchronous::Client};

use crate::{
    guard::{Admission, Subject, Warden, contents},
    inner,
    log::{self, Level},
    options::{self, Translation},
    proxy::rest,
    starting::Starting,
    state::{Deleted, Shims},
    task,
};

const SIGKILL: u32 = 9;

/// How a container stands that the inner shim has created.
#[derive(Debug)]
enum Standing {
    /// It may run.
    Admitted(Admission),
    /// To be restored from a checkpoint: the runtime makes its process and its cgroup only at Start. Here is its
    /// bundle.
    Restoring(PathBuf),
}

/// The containers of this shim.
pub struct Containers {
    inner: Client,
    warden: Warden,
    shims: Shims,
    starting: Starting,
    standing: Mutex<HashMap<String, Standing>>,
}

/// The request's message, or the response that says that it is none.
fn decode<M: Message>(request: &Request) -> Result<M, Response> {
    M::parse_from_bytes(&request.payload).map_err(|error| {
        task::refusal(Code::INVALID_ARGUMENT, &format!("portcullis: decoding {}: {error}", request.method))
    })
}

impl Containers {
    /// None so far.
    pub fn new(inner: Client, warden: Warden, shims: Shims, starting: Starting) -> Self {
        Self { inner, warden, shims, starting, standing: Mutex::default() }
    }

    fn standing(&self) -> MutexGuard<'_, HashMap<String, Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forward(&self, request: Request) -> Response {
        task::response(self.inner.request(request).await)
    }

    /// Lets the inner shim create the container, and puts it under guard before containerd may start it.
    pub async fn create(self: Arc<Self>, mut request: Request) -> Response {
        let mut create: CreateTaskRequest = match decode(&request) {
            Ok(create) => create,
            Err(refusal) => return refusal,
        };
        if let Err(error) = translate_options(&mut create, &mut request) {
            return refused(&create.id, Code::INVALID_ARGUMENT, &format!("{error:#}"));
        }
        let shared_scope = contents::shared_scope(&create.rootfs);
        let (id, bundle) = (create.id, PathBuf::from(create.bundle));
        if let Err(error) = self.prepare(&bundle) {
            return refused(&id, Code::FAILED_PRECONDITION, &format!("{error:#}"));
        }
        let origin = origin(&request);
        let response = self.forward(request).await;
        if !task::is_ok(&response) {
            return response;
        }
        let pid = match CreateTaskResponse::parse_from_bytes(&response.payload) {
            Ok(created) => created.pid,
            Err(error) => return self.undo(&origin, &id, &format!("decoding the inner shim's answer: {error}")).await,
        };
        if pid == 0 {
            self.standing().insert(id, Standing::Restoring(bundle));
            return response;
        }
        self.admit(&origin, response, &Subject { id: &id, bundle: &bundle, pid, shared_scope }).await
    }

    /// containerd 2 runs `start` for the first container of a pod only, but `delete` for each: all bundles must tell
    /// which shims serve them, and have room for what is attached.
    fn prepare(&self, bundle: &Path) -> Result<()> {
        if Shims::load(bundle)?.is_none() {
            inner::prepare(bundle)?;
            self.shims.save(bundle)?;
        }
        Ok(())
    }

    /// Lets a container run only if it was admitted. An exec is the inner shim's alone.
    pub async fn start(self: Arc<Self>, request: Request) -> Response {
        let start: StartRequest = match decode(&request) {
            Ok(start) => start,
            Err(refusal) => return refusal,
        };
        if !start.exec_id.is_empty() {
            return self.forward(request).await;
        }
        // Whoever knows that it was created will run `delete`, should we die.
        self.starting.forget(&self.shims);
        let bundle = match self.standing().get(&start.id) {
            Some(Standing::Admitted(_)) => None,
            Some(Standing::Restoring(bundle)) => Some(bundle.clone()),
            // Created through a shim that was killed, or through none: nobody can say whether it is guarded.
            None => {
                let reason = "it was not created through this shim: delete it and create it anew";
                return refused(&start.id, Code::FAILED_PRECONDITION, reason);
            }
        };
        let origin = origin(&request);
        let response = self.forward(request).await;
        if task::is_ok(&response) {
            tokio::spawn(rest::after_start());
        }
        let Some(bundle) = bundle.filter(|_| task::is_ok(&response)) else { return response };
        match StartResponse::parse_from_bytes(&response.payload) {
            Ok(started) => {
                // What a restored container has written is in its upper layer already.
                let (id, bundle, pid) = (&start.id, &bundle, started.pid);
                self.admit(&origin, response, &Subject { id, bundle, pid, shared_scope: None }).await
            }
            Err(error) => self.undo(&origin, &start.id, &format!("decoding the inner shim's answer: {error}")).await,
        }
    }

    async fn admit(&self, origin: &Request, response: Response, subject: &Subject<'_>) -> Response {
        match self.warden.admit(subject) {
            Ok(admission) => {
                self.standing().insert(subject.id.to_owned(), Standing::Admitted(admission));
                response
            }
            Err(error) => {
                let reason = format!("{error:#}");
                log::write(subject.bundle, Level::Error, subject.id, &format!("the container is refused: {reason}"));
                self.undo(origin, subject.id, &reason).await
            }
        }
    }

    /// Ends and deletes a container that must not run.
    async fn undo(&self, origin: &Request, id: &str, reason: &str) -> Response {
        self.standing().remove(id);
        let reason = match self.destroy(origin, id).await {
            Ok(()) => reason.to_owned(),
            Err(error) => format!("{reason}; what was created of it could not be deleted: {error:#}"),
        };
        refused(id, Code::FAILED_PRECONDITION, &reason)
    }

    async fn destroy(&self, origin: &Request, id: &str) -> Result<()> {
        let id = || id.to_owned();
        // Not `all`: that means all of the cgroup, and sharing one with another container is a reason to be refused.
        let kill = KillRequest { id: id(), signal: SIGKILL, ..KillRequest::default() };
        // It may be dead already; whether it is, Delete decides.
        let _ = self.call(origin, "Kill", &kill).await;
        self.call(origin, "Wait", &WaitRequest { id: id(), ..WaitRequest::default() }).await?;
        self.call(origin, "Delete", &DeleteRequest { id: id(), ..DeleteRequest::default() }).await
    }

    /// A call of our own, in the name of the one that it follows from: same version, same containerd namespace.
    async fn call(&self, origin: &Request, method: &str, message: &impl Message) -> Result<()> {
        let mut request = task::request(&origin.service, method, message)?;
        request.metadata.clone_from(&origin.metadata);
        self.inner.request(request).await.map(drop).with_context(|| format!("{method} by the inner shim"))
    }

    /// Takes the guard away once the container has gone.
    pub async fn delete(self: Arc<Self>, request: Request) -> Response {
        let delete: DeleteRequest = match decode(&request) {
            Ok(delete) => delete,
            Err(refusal) => return refusal,
        };
        let response = self.forward(request).await;
        if !delete.exec_id.is_empty() || !task::is_ok(&response) {
            return response;
        }
        let standing = self.standing().remove(&delete.id);
        if let Some(Standing::Admitted(admission)) = standing {
            if let Err(error) = self.warden.release(&delete.id, &admission) {
                // The container is gone, and containerd could do nothing about this.
                log::write(admission.bundle(), Level::Error, &delete.id, &format!("{error:#}"));
            }
            Deleted(response.payload.clone()).note(admission.bundle());
        }
        response
    }

    /// The inner shim ends if it has no container left; then we end too. It may be gone before its answer is here.
    pub async fn shutdown(self: Arc<Self>, request: Request) -> Response {
        match self.inner.request(request).await {
            Err(error) if !matches!(error, ttrpc::Error::RpcStatus(_)) => task::answer(Vec::new()),
            result => task::response(result),
        }
    }
}

fn refused(id: &str, code: Code, reason: &str) -> Response {
    task::refusal(code, &format!("portcullis: container {id} refused: {reason}"))
}

fn translate_options(create: &mut CreateTaskRequest, request: &mut Request) -> Result<()> {
    let Some(options) = create.options.as_ref() else { return Ok(()) };
    match options::translate(options)? {
        Translation::AsIs => return Ok(()),
        Translation::Instead(options) => create.options = Some(options).into(),
        Translation::Nothing => create.options = None.into(),
    }
    request.payload = create.write_to_bytes().context("encoding Create")?;
    Ok(())
}

/// Whom a request addresses and in whose name, without its content.
fn origin(request: &Request) -> Request {
    Request { service: request.service.clone(), metadata: request.metadata.clone(), ..Request::default() }
}
