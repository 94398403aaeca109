//! `SignalService`.

use std::sync::Arc;

use portcullis_proto::v1::{
    GetSignalRequest, GetSignalResponse, ListSignalsRequest, ListSignalsResponse, SummarizeSignalsRequest,
    SummarizeSignalsResponse, WatchSignalsRequest, WatchSignalsResponse, signal_service_server::SignalService,
};
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    page::{self, Token},
    watch::{MAX_WATCHERS, Watcher},
};
use crate::store::{Store, filter::Filter, reader::Range};

/// The service.
pub struct SignalApi {
    store: Store,
    shutdown: watch::Receiver<bool>,
    watchers: Arc<Semaphore>,
}

impl SignalApi {
    pub fn new(store: Store, shutdown: watch::Receiver<bool>) -> Self {
        Self { store, shutdown, watchers: Arc::new(Semaphore::new(MAX_WATCHERS)) }
    }
}

#[tonic::async_trait]
impl SignalService for SignalApi {
    async fn list_signals(
        &self,
        request: Request<ListSignalsRequest>,
    ) -> Result<Response<ListSignalsResponse>, Status> {
        let request = request.into_inner();
        let filter = Filter::new(request.filter.as_ref())?;
        let token = Token::decode(&request.page_token, &filter, request.oldest_first)?;
        let range = match (request.oldest_first, token) {
            (false, None) => Range::Before(u64::MAX),
            (false, Some(token)) => Range::Before(token.last_id),
            (true, None) => Range::After(0, u64::MAX),
            (true, Some(token)) => Range::After(token.last_id, u64::MAX),
        };
        let page = self.store.readers().page(filter.clone(), range, page::size(request.page_size)).await?;
        let next_page_token = match page.next {
            Some(last_id) => Token { last_id }.encode(&filter, request.oldest_first),
            None => String::new(),
        };
        Ok(Response::new(ListSignalsResponse { signals: page.signals, next_page_token }))
    }

    async fn get_signal(&self, request: Request<GetSignalRequest>) -> Result<Response<GetSignalResponse>, Status> {
        let id = request.into_inner().id;
        match self.store.readers().signal(id).await? {
            Some(signal) => Ok(Response::new(GetSignalResponse { signal: Some(signal) })),
            None => Err(Status::not_found(format!("there is no signal {id}; retention may have removed it"))),
        }
    }

    async fn summarize_signals(
        &self,
        _request: Request<SummarizeSignalsRequest>,
    ) -> Result<Response<SummarizeSignalsResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    type WatchSignalsStream = ReceiverStream<Result<WatchSignalsResponse, Status>>;

    async fn watch_signals(
        &self,
        request: Request<WatchSignalsRequest>,
    ) -> Result<Response<Self::WatchSignalsStream>, Status> {
        let request = request.into_inner();
        let filter = Filter::new(request.filter.as_ref())?;
        let (after_id, after_revision) = (request.after_id, request.after_revision);
        let (shutdown, watchers) = (self.shutdown.clone(), Arc::clone(&self.watchers));
        let watcher = Watcher::new(&self.store, filter, after_id, after_revision, shutdown, watchers).await?;
        Ok(Response::new(watcher.spawn()))
    }
}
