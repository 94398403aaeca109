//! `SignalService`.

use std::{sync::Arc, time::Duration};

use portcullis_proto::v1::{
    GetSignalRequest, GetSignalResponse, ListSignalsRequest, ListSignalsResponse, SummarizeSignalsRequest,
    SummarizeSignalsResponse, SummaryKey, WatchSignalsRequest, WatchSignalsResponse,
    signal_service_server::SignalService,
};
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    page::{self, Order, Token},
    watch::{MAX_WATCHERS, Watcher},
};
use crate::store::{Store, StoreError, filter::Filter, summary::Grouping};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

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
        let order = Order::new(request.order, request.oldest_first)?;
        let range = order.range(Token::decode(&request.page_token, &filter, order)?);
        let page = self.store.readers().page(filter.clone(), range, page::size(request.page_size)).await?;
        let next_page_token = match page.next {
            Some((key, last_id)) => Token { key, last_id }.encode(&filter, order),
            None => String::new(),
        };
        Ok(Response::new(ListSignalsResponse { signals: page.signals, next_page_token }))
    }

    async fn get_signal(&self, request: Request<GetSignalRequest>) -> Result<Response<GetSignalResponse>, Status> {
        let id = request.into_inner().id;
        match self.store.readers().signal(id).await? {
            Some(signal) => Ok(Response::new(GetSignalResponse { signal: Some(signal) })),
            None => Err(StoreError::NoSignal { id }.into()),
        }
    }

    async fn summarize_signals(
        &self,
        request: Request<SummarizeSignalsRequest>,
    ) -> Result<Response<SummarizeSignalsResponse>, Status> {
        let request = request.into_inner();
        let filter = Filter::new(request.filter.as_ref())?;
        let keys = request.group_by.iter().map(|key| match SummaryKey::try_from(*key) {
            Ok(SummaryKey::Unspecified) | Err(_) => {
                Err(Status::invalid_argument(format!("group_by has the unknown value {key}")))
            }
            Ok(key) => Ok(key),
        });
        let bucket = match request.bucket {
            None => HOUR,
            Some(bucket) => Duration::try_from(bucket)
                .ok()
                .filter(|bucket| (MINUTE..=YEAR).contains(bucket))
                .ok_or_else(|| Status::invalid_argument("bucket is shorter than a minute or longer than a year"))?,
        };
        let grouping = Grouping { keys: keys.collect::<Result<_, _>>()?, bucket, limit: page::size(request.limit) };
        Ok(Response::new(self.store.readers().summary(filter, grouping).await?))
    }

    type WatchSignalsStream = ReceiverStream<Result<WatchSignalsResponse, Status>>;

    async fn watch_signals(
        &self,
        request: Request<WatchSignalsRequest>,
    ) -> Result<Response<Self::WatchSignalsStream>, Status> {
        let request = request.into_inner();
        let filter = Filter::new(request.filter.as_ref())?;
        let (shutdown, watchers) = (self.shutdown.clone(), Arc::clone(&self.watchers));
        let watcher = Watcher::new(&self.store, filter, &request, shutdown, watchers).await?;
        Ok(Response::new(watcher.spawn()))
    }
}
