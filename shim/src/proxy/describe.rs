//! A service of our own on the same socket: what a second `start` of a group has to know of the shims that serve it.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result};
use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use ttrpc::{
    Request, Response,
    asynchronous::{Client, MethodHandler, Service, TtrpcContext},
};

use crate::{
    socket::{self, State},
    state::Shims,
    task,
};

/// The service.
pub const SERVICE: &str = "portcullis.shim.v1.Shim";

const METHOD: &str = "Describe";

struct Describe(Vec<u8>);

#[async_trait]
impl MethodHandler for Describe {
    async fn handler(&self, _: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
        Ok(task::answer(self.0.clone()))
    }
}

/// Answers with these shims.
pub fn service(shims: &Shims) -> Result<Service> {
    let bytes = serde_json::to_vec(shims).context("describing the shims")?;
    let describe: Box<dyn MethodHandler + Send + Sync> = Box::new(Describe(bytes));
    Ok(Service { methods: HashMap::from([(METHOD.to_owned(), describe)]), streams: HashMap::new() })
}

/// The shims that serve this socket, if it is served. A process that is being killed may close its connections well
/// before its listening socket, which then takes connections and answers none: only an answer is a sign of life.
pub fn find(path: &Path) -> Result<Option<Shims>> {
    if socket::probe(path)? != State::Live {
        return Ok(None);
    }
    match super::event_loop()?.block_on(describe(path)) {
        Err(_) if socket::probe(path)? != State::Live => Ok(None),
        described => described.map(Some),
    }
}

async fn describe(path: &Path) -> Result<Shims> {
    let doing = || format!("asking the shim that serves this group at {}", path.display());
    let client = Client::connect(&socket::address(path)).await.with_context(doing)?;
    let request = task::request(SERVICE, METHOD, &Empty::default())?;
    let response = client.request(request).await.with_context(doing)?;
    serde_json::from_slice(&response.payload).with_context(doing)
}
