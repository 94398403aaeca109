//! `PolicyService`.

use portcullis_policy::{
    policyset::Mode,
    select::{AnnotationGlobs, Globs, Select},
};
use portcullis_proto::v1::{
    self, ApplyPolicyRequest, ApplyPolicyResponse, DeletePolicyRequest, DeletePolicyResponse, ExplainPolicyRequest,
    ExplainPolicyResponse, GetPolicyRequest, GetPolicyResponse, ListPoliciesRequest, ListPoliciesResponse,
    PolicyChange, SetModeRequest, SetModeResponse, policy_service_server::PolicyService, set_mode_request::Target,
};
use tonic::{Request, Response, Status};

use super::{explain, peer::Audit, status::cut};
use crate::{
    containers::{self, Containers},
    enforcement::{Change, Edit, Edited, Enforcement, InForce},
    signal,
    store::ContainerKey,
};

/// What errors call a text that has no file yet.
const TEXT: &str = "policy";

/// The service.
#[derive(Clone)]
pub struct PolicyApi {
    enforcement: Enforcement,
    containers: Containers,
    backend: v1::Backend,
}

impl PolicyApi {
    /// `backend` is the one in use.
    pub fn new(enforcement: Enforcement, containers: Containers, backend: v1::Backend) -> Self {
        Self { enforcement, containers, backend }
    }

    /// Does what may take a while, with files and the kernel's tables, where it holds nobody up.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let api = self.clone();
        tokio::task::spawn_blocking(move || work(&api))
            .await
            .unwrap_or_else(|_| Err(Status::internal("the call has failed; the agent's log says why")))
    }

    fn set_mode(&self, target: Target, mode: Option<Mode>) -> Result<SetModeResponse, Status> {
        match target {
            Target::Policy(name) => {
                let containers = self.enforcement.set_policy_mode(&name, mode)?;
                let policy = self.enforcement.list().into_iter().find(|policy| policy.name == name);
                // One that is not in force may be relieved of its mode as well.
                let mode = policy.as_ref().map_or(v1::Mode::Unspecified, |policy| signal::mode(policy.mode));
                let reason = match policy {
                    Some(InForce { file_mode: Some(_), .. }) => "operator",
                    Some(_) => "policy",
                    None => "",
                };
                Ok(SetModeResponse { mode: mode.into(), mode_reason: reason.to_owned(), containers })
            }
            Target::Container(wanted) => {
                let key = self.key(&wanted)?;
                let moved = self.enforcement.set_container_mode(&key, mode)?;
                let all = self.containers.all();
                let container = all.values().find(|container| containers::key(&container.record) == key);
                let standing = container.map(|container| container.standing.clone());
                let (mode, mode_reason) = standing.map_or((v1::Mode::Unspecified, String::new()), |standing| {
                    (signal::mode(standing.mode), standing.mode_reason)
                });
                Ok(SetModeResponse { mode: mode.into(), mode_reason, containers: u64::from(moved) })
            }
        }
    }

    /// The running container of that id.
    fn key(&self, wanted: &v1::ContainerReference) -> Result<ContainerKey, Status> {
        let v1::ContainerReference { id, containerd_namespace: namespace } = wanted;
        let all = self.containers.all();
        let running = all.values().filter(|container| container.ended_ns.is_none());
        let keys: Vec<ContainerKey> = running
            .map(|container| containers::key(&container.record))
            .filter(|key| key.id == *id && (namespace.is_empty() || key.namespace == *namespace))
            .collect();
        match keys.as_slice() {
            [key] => Ok(key.clone()),
            [] => Err(Status::not_found(cut(format!("no running container has the id {id:?}")))),
            several => {
                let namespaces: Vec<&str> = several.iter().map(|key| key.namespace.as_str()).collect();
                let namespaces = namespaces.join(", ");
                Err(Status::failed_precondition(format!(
                    "containers of the namespaces {namespaces} have the id {id:?}: say which"
                )))
            }
        }
    }
}

#[tonic::async_trait]
impl PolicyService for PolicyApi {
    async fn list_policies(
        &self,
        _request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        let (policies, error) = self.enforcement.status();
        let moves = self.enforcement.moves();
        let moves = v1::ContainerMoves {
            passes: moves.passes,
            moved: moves.moved,
            failed: moves.failed,
            last_pass: prost_types::Duration::try_from(moves.last).ok(),
        };
        let policies = policies.into_iter().map(message).collect();
        Ok(Response::new(ListPoliciesResponse { policies, error, moves: Some(moves) }))
    }

    async fn get_policy(&self, request: Request<GetPolicyRequest>) -> Result<Response<GetPolicyResponse>, Status> {
        let name = request.into_inner().name;
        match self.enforcement.get(&name) {
            Some((policy, yaml)) => Ok(Response::new(GetPolicyResponse { policy: Some(message(policy)), yaml })),
            None => Err(Status::not_found(cut(format!("no policy named {name:?} is in force")))),
        }
    }

    async fn apply_policy(
        &self,
        request: Request<ApplyPolicyRequest>,
    ) -> Result<Response<ApplyPolicyResponse>, Status> {
        let caller = Audit::of(request.extensions());
        let ApplyPolicyRequest { yaml, dry_run, overwrite, file_name } = request.into_inner();
        let outcome = self
            .blocking(move |api| {
                let file = if file_name.is_empty() { TEXT } else { &file_name };
                Ok(api.enforcement.store(file, &yaml, Edit { dry_run, overwrite })?)
            })
            .await;
        let edited = outcome.inspect_err(|status| refused(&caller, "ApplyPolicy", status))?;
        let (Audit { uid, pid, certificate, serial }, Edited { change, policy }) = (caller, edited);
        let (name, file) = (&policy.name, &policy.source);
        tracing::info!(uid, pid, certificate, serial, policy = name, file, ?change, dry_run, "a policy was applied");
        let change = match change {
            Change::Created => PolicyChange::Created,
            Change::Replaced => PolicyChange::Replaced,
            Change::Unchanged => PolicyChange::None,
        };
        Ok(Response::new(ApplyPolicyResponse { change: change.into(), policy: Some(message(policy)) }))
    }

    async fn delete_policy(
        &self,
        request: Request<DeletePolicyRequest>,
    ) -> Result<Response<DeletePolicyResponse>, Status> {
        let caller = Audit::of(request.extensions());
        let DeletePolicyRequest { name, dry_run } = request.into_inner();
        let outcome = self.blocking(move |api| Ok(api.enforcement.delete(&name, dry_run)?)).await;
        let policy = outcome.inspect_err(|status| refused(&caller, "DeletePolicy", status))?;
        let Audit { uid, pid, certificate, serial } = caller;
        let (name, file) = (&policy.name, &policy.source);
        tracing::info!(uid, pid, certificate, serial, policy = name, file, dry_run, "a policy was deleted");
        Ok(Response::new(DeletePolicyResponse { policy: Some(message(policy)) }))
    }

    async fn set_mode(&self, request: Request<SetModeRequest>) -> Result<Response<SetModeResponse>, Status> {
        let caller = Audit::of(request.extensions());
        let request = request.into_inner();
        let mode = match v1::Mode::try_from(request.mode) {
            Ok(v1::Mode::Unspecified) => None,
            Ok(v1::Mode::Detect) => Some(Mode::Detect),
            Ok(v1::Mode::Enforce) => Some(Mode::Enforce),
            Err(_) => return Err(Status::invalid_argument(format!("there is no mode {}", request.mode))),
        };
        let target =
            request.target.ok_or_else(|| Status::invalid_argument("neither a policy nor a container is named"))?;
        let (policy, container) = match &target {
            Target::Policy(name) => (Some(name.clone()), None),
            Target::Container(container) => (None, Some(container.id.clone())),
        };
        let outcome = self.blocking(move |api| api.set_mode(target, mode)).await;
        let response = outcome.inspect_err(|status| refused(&caller, "SetMode", status))?;
        let Audit { uid, pid, certificate, serial } = caller;
        let (mode, changed) = (mode.map_or_else(|| "default".to_owned(), |mode| mode.to_string()), response.containers);
        tracing::info!(uid, pid, certificate, serial, policy, container, mode, changed, "a mode was set");
        Ok(Response::new(response))
    }

    async fn explain_policy(
        &self,
        request: Request<ExplainPolicyRequest>,
    ) -> Result<Response<ExplainPolicyResponse>, Status> {
        let explanation = explain::answer(&self.enforcement, &request.into_inner())?;
        Ok(Response::new(explain::message(explanation, self.backend)))
    }
}

fn refused(caller: &Audit, call: &str, status: &Status) {
    let Audit { uid, pid, certificate, serial } = caller;
    let (code, error) = (status.code(), status.message());
    tracing::warn!(uid, pid, certificate, serial, call, ?code, error, "a change was refused");
}

/// A policy as the API shows it.
pub fn message(policy: InForce) -> v1::Policy {
    let origin = if policy.file_mode.is_some() { v1::ModeOrigin::Operator } else { v1::ModeOrigin::File };
    v1::Policy {
        id: policy.id,
        name: policy.name,
        mode: signal::mode(policy.mode).into(),
        source: policy.source,
        mode_origin: origin.into(),
        priority: policy.priority,
        select: select_message(&policy.select),
        containers: u64::try_from(policy.containers).unwrap_or(u64::MAX),
        require_backend: signal::backend(policy.require_backend).into(),
    }
}

fn select_message(select: &Select) -> Option<v1::Select> {
    if select.is_everything() {
        return None;
    }
    let texts = |globs: &Option<Globs>| globs.iter().flat_map(Globs::iter).map(ToString::to_string).collect();
    Some(v1::Select {
        namespaces: texts(&select.namespaces),
        pods: texts(&select.pods),
        containers: texts(&select.containers),
        images: texts(&select.images),
        annotations: select
            .annotations
            .iter()
            .flat_map(AnnotationGlobs::iter)
            .map(|(key, glob)| (key.clone(), glob.to_string()))
            .collect(),
    })
}
