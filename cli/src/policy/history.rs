//! The signals of what was stopped, or would have been.

use portcullis_policy::{catalog::Catalog, glob::Glob};
use portcullis_proto::v1::{self, ListSignalsRequest, SignalFilter};

use super::{
    files::CatalogArgs,
    habits::{Habits, suggest::Threshold, workload::namespace},
};
use crate::{
    args::Global,
    client::{self, Agent, ClientError},
    time::Time,
    view::Signal,
};

/// So many at a time: enough for few round trips, and few enough for little memory.
const PAGE: u32 = 200;

/// What habits are read from, and what counts as one.
#[derive(Debug, clap::Args)]
pub struct HabitArgs {
    #[command(flatten)]
    pub history: History,
    #[command(flatten)]
    pub threshold: Threshold,
    #[command(flatten)]
    catalog: CatalogArgs,
}

impl HabitArgs {
    /// Asks the agent.
    pub async fn read(&self, global: &Global) -> anyhow::Result<Habits> {
        let catalog = self.catalog.load()?;
        let agent = global.agent().await?;
        Ok(self.history.read(&agent, catalog).await?)
    }
}

/// Which signals are looked at.
#[derive(Debug, clap::Args)]
pub struct History {
    /// Not before: how long ago (15m, 24h, 7d) or RFC 3339
    #[arg(long, value_name = "WHEN", default_value = "7d", value_parser = Time::parse)]
    pub since: Time,
    /// Not after: how long ago (15m, 24h, 7d) or RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = Time::parse)]
    until: Option<Time>,
    /// From containers of images that match: * stands for any characters, ? for one
    #[arg(long, value_name = "GLOB")]
    image: Option<Glob>,
    /// From this namespace of Kubernetes, or, outside of it, of containerd
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

impl History {
    /// Reads them, a page at a time: only what is counted stays in memory.
    async fn read(&self, agent: &Agent, catalog: Catalog) -> Result<Habits, ClientError> {
        let mut habits = Habits::new(catalog);
        for verdict in [v1::Verdict::WouldBlock, v1::Verdict::Blocked, v1::Verdict::Killed] {
            let filter = SignalFilter {
                verdict: verdict.into(),
                since: Some(self.since.to_proto()),
                until: self.until.map(Time::to_proto),
                ..SignalFilter::default()
            };
            let mut page_token = String::new();
            loop {
                let request = ListSignalsRequest {
                    filter: Some(filter.clone()),
                    page_size: PAGE,
                    page_token,
                    ..ListSignalsRequest::default()
                };
                let response = agent.signals().list_signals(client::request(request)).await;
                let page = response.map_err(|status| agent.error(&status))?.into_inner();
                page.signals.into_iter().map(Signal::from).filter(|signal| self.wants(signal)).for_each(|signal| {
                    habits.add(&signal);
                });
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
        }
        Ok(habits)
    }

    fn wants(&self, signal: &Signal) -> bool {
        let Some(container) = &signal.container else { return self.image.is_none() && self.namespace.is_none() };
        self.image.as_ref().is_none_or(|glob| glob.matches(&container.image))
            && self.namespace.as_ref().is_none_or(|wanted| namespace(container) == wanted)
    }
}
