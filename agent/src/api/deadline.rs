//! How long a call may take, whatever its client's patience: one that hangs holds memory, and a place among its connection's
//! calls. Streams are left out: they end with their client, which has to answer pings.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::timeout;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, http},
};
use tower::{Layer, Service};

use super::access::Calls;
use crate::counters::Counters;

/// Twice what our own client waits for.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Ends calls that take too long.
#[derive(Clone)]
pub struct Deadline {
    calls: Arc<Calls>,
    counters: Arc<Counters>,
}

impl Deadline {
    /// Calls that are ended are counted.
    pub fn new(calls: Arc<Calls>, counters: Arc<Counters>) -> Self {
        Self { calls, counters }
    }
}

impl<S> Layer<S> for Deadline {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, deadline: self.clone() }
    }
}

/// Services whose calls end.
#[derive(Clone)]
pub struct Bounded<S> {
    inner: S,
    deadline: Deadline,
}

impl<S, B> Service<http::Request<B>> for Bounded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let bounded = self.deadline.calls.is_bounded(request.uri().path());
        let answer = self.inner.call(request);
        if !bounded {
            return Box::pin(answer);
        }
        let counters = Arc::clone(&self.deadline.counters);
        Box::pin(async move {
            timeout(DEADLINE, answer).await.unwrap_or_else(|_| {
                counters.calls_timed_out.increment();
                let reason = format!("the call took longer than {} s", DEADLINE.as_secs());
                Ok(Status::deadline_exceeded(reason).into_http())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::ServiceExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_and_a_stream_does_not() {
        let counters = Arc::<Counters>::default();
        let layer = Deadline::new(Arc::new(Calls::new().unwrap()), Arc::clone(&counters));
        let call = async |path: &str, takes: Duration| {
            let service = tower::service_fn(move |_: http::Request<()>| async move {
                tokio::time::sleep(takes).await;
                Ok::<_, Infallible>(http::Response::new(Body::empty()))
            });
            let request = http::Request::builder().uri(path).body(()).unwrap();
            let answer = layer.layer(service).oneshot(request).await.unwrap();
            answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
        };
        let list = "/portcullis.v1.SignalService/ListSignals";
        assert_eq!(call(list, DEADLINE / 2).await, None);
        assert_eq!(counters.calls_timed_out.get(), 0);
        assert_eq!(call(list, DEADLINE * 2).await.as_deref(), Some("4"), "DEADLINE_EXCEEDED");
        assert_eq!(call("/portcullis.v1.SignalService/WatchSignals", 9 * DEADLINE).await, None);
        assert_eq!(counters.calls_timed_out.get(), 1);
    }
}
