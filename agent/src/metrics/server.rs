//! HTTP/1.1 for one path, one request a connection: bounded in number, size and time, whoever connects.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 8;
/// How long a connection may take in all.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_MAX: usize = 16 * 1024;
/// After a connection that could not be accepted, as when there are too many open files.
const PAUSE: Duration = Duration::from_millis(200);
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Serves for ever.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| answer(request, Arc::clone(&registry)));
            let connection = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(HEAD_MAX)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever breaks off or is too slow does not want an answer.
            let _ = timeout(TIMEOUT, connection).await;
        });
    }
}

async fn answer(request: Request<Incoming>, registry: Arc<Registry>) -> Result<Response<String>, Infallible> {
    let mut response = Response::new(String::new());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
    } else if request.method() != Method::GET {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    } else if let Some(text) = scrape(registry).await {
        response.headers_mut().insert(CONTENT_TYPE, OPEN_METRICS);
        *response.body_mut() = text;
    } else {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    Ok(response)
}

/// Kernel maps and files are read for it.
async fn scrape(registry: Arc<Registry>) -> Option<String> {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry).ok().map(|()| text)
    })
    .await
    .ok()
    .flatten()
}
