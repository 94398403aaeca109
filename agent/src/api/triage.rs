//! `TriageService`.

use std::time::{Duration, SystemTime};

use portcullis_proto::v1::{
    GetStoryRequest, GetStoryResponse, SetTriageStateRequest, SetTriageStateResponse, Triage, TriageState,
    get_story_request::Subject as Named, triage_service_server::TriageService,
};
use tonic::{Request, Response, Status};

use super::{
    Sources,
    peer::{Audit, caller},
    status::cut,
};
use crate::{
    store::StoreError,
    triage::{self, Subject},
};

/// Signals of one call.
const MAX_SIGNALS: usize = 1000;
/// Bytes.
const MAX_NOTE: usize = 4096;
/// Bytes.
const MAX_AUTHOR: usize = 256;

const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// The service.
pub struct TriageApi(pub Sources);

#[tonic::async_trait]
impl TriageService for TriageApi {
    /// For whoever may use the socket: it changes nothing but what people say.
    async fn set_triage_state(
        &self,
        request: Request<SetTriageStateRequest>,
    ) -> Result<Response<SetTriageStateResponse>, Status> {
        let (caller, Audit { uid, pid, certificate, serial }) = (caller(&request), Audit::of(request.extensions()));
        let mut request = request.into_inner();
        if !matches!(TriageState::try_from(request.state), Ok(state) if state != TriageState::Unspecified) {
            return Err(Status::invalid_argument(format!("state has the unknown value {}", request.state)));
        }
        if request.signal_ids.is_empty() || request.signal_ids.len() > MAX_SIGNALS {
            return Err(Status::invalid_argument(format!("signal_ids must name 1 to {MAX_SIGNALS} signals")));
        }
        for (field, text, most) in [("note", &request.note, MAX_NOTE), ("author", &request.author, MAX_AUTHOR)] {
            if text.len() > most {
                return Err(Status::invalid_argument(format!("{field} is longer than {most} bytes")));
            }
        }
        request.signal_ids.sort_unstable();
        request.signal_ids.dedup();
        let author = match (&caller, request.author.is_empty()) {
            (Some(caller), true) if caller.certificate.is_empty() => format!("uid {}", caller.uid),
            (Some(caller), true) => caller.certificate.clone(),
            _ => request.author,
        };
        let change = Triage {
            state: request.state,
            note: request.note,
            author,
            caller,
            time: Some(SystemTime::now().into()),
            earlier: Vec::new(),
        };
        tracing::info!(
            signals = ?request.signal_ids,
            state = change.state().as_str_name(),
            note = change.note,
            author = change.author,
            uid,
            pid,
            certificate,
            serial,
            "triage"
        );
        self.0.sender.set_triage(request.signal_ids.clone(), change).await?;
        let mut signals = Vec::with_capacity(request.signal_ids.len());
        for id in request.signal_ids {
            match self.0.store.readers().signal(id).await? {
                Some(signal) => signals.push(signal),
                None => return Err(StoreError::NoSignal { id }.into()),
            }
        }
        Ok(Response::new(SetTriageStateResponse { signals }))
    }

    async fn get_story(&self, request: Request<GetStoryRequest>) -> Result<Response<GetStoryResponse>, Status> {
        let request = request.into_inner();
        let window = match request.window {
            None => HOUR,
            Some(window) => Duration::try_from(window)
                .ok()
                .filter(|window| *window <= WEEK)
                .ok_or_else(|| Status::invalid_argument("window is negative or longer than a week"))?,
        };
        let store = &self.0.store;
        let (subject, id, namespace) = match request.subject {
            None => return Err(Status::invalid_argument("a signal or a container must be named")),
            Some(Named::SignalId(id)) => {
                let signal = store.readers().signal(id).await?.ok_or(StoreError::NoSignal { id })?;
                let container = signal.container.clone().unwrap_or_default();
                (Subject::Signal(Box::new(signal)), container.id, container.containerd_namespace)
            }
            Some(Named::Container(container)) => {
                (Subject::Container(container.id.clone()), container.id, container.containerd_namespace)
            }
        };
        let container = self.0.container(&id, &namespace).await?;
        let story = triage::story(store, subject, container, window).await?;
        let story = story.ok_or_else(|| {
            Status::not_found(cut(format!(
                "there is no container {id}, and no signal of one; retention may have removed them"
            )))
        })?;
        Ok(Response::new(story))
    }
}
