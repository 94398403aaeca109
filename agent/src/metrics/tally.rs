//! Signals counted and timed as a watcher gets them, since the agent started. It reads the store like one, so that what is not
//! asked for costs nothing.

use std::{collections::HashSet, time::Duration};

use portcullis_proto::v1::Signal;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::time::sleep;

use crate::{
    clock,
    store::{Store, filter::Filter, reader::Range},
    text::enum_name,
};

/// Signals read at a time.
const PAGE: usize = 64;
/// Series at most. Labels come from catalogue, policies and our own names, so this many are not expected; `other` has the rest.
const SERIES_MAX: usize = 2048;
const OTHER: &str = "other";
/// Seconds. The goal is 20 ms at most for 99 %.
const BUCKETS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// After a query that failed.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    rule: String,
    tool: String,
    category: String,
    verdict: String,
    severity: String,
}

/// The counting.
pub struct Tally {
    store: Store,
    signals: Family<Labels, Counter>,
    series: HashSet<Labels>,
    delivery: Histogram,
    cursor: u64,
}

impl Tally {
    /// Counts what is stored from now on.
    pub fn new(store: Store, registry: &mut Registry) -> Self {
        let (signals, delivery) = (Family::default(), Histogram::new(BUCKETS));
        registry.register("signals", "Signals stored since the agent started", signals.clone());
        registry.register_with_unit(
            "signal_delivery",
            "From the event in the kernel until watchers and exporters can read its signal",
            Unit::Seconds,
            delivery.clone(),
        );
        let cursor = *store.last_id().borrow();
        Self { store, signals, series: HashSet::new(), delivery, cursor }
    }

    /// Works until the store is closed.
    pub async fn run(mut self) {
        let mut last_id = self.store.last_id();
        loop {
            let newest = *last_id.borrow_and_update();
            // Of a database that was replaced.
            self.cursor = self.cursor.min(newest);
            while self.cursor < newest {
                match self.store.readers().page(Filter::all(), Range::After(self.cursor, newest), PAGE).await {
                    Ok(page) => {
                        for signal in &page.signals {
                            self.count(signal);
                        }
                        self.cursor = page.next.map_or(newest, |(_, id)| id);
                    }
                    Err(error) => {
                        let error = anyhow::Error::from(error);
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "signals could not be counted for metrics; tried again"
                        );
                        sleep(PAUSE).await;
                    }
                }
            }
            if last_id.changed().await.is_err() {
                return;
            }
        }
    }

    fn count(&mut self, signal: &Signal) {
        let (tool, category) =
            signal.tool.as_ref().map(|tool| (tool.id.clone(), tool.category.clone())).unwrap_or_default();
        let mut labels = Labels {
            rule: signal.rule.clone(),
            tool,
            category,
            verdict: enum_name(signal.verdict().as_str_name(), "VERDICT_"),
            severity: enum_name(signal.severity().as_str_name(), "SEVERITY_"),
        };
        if !self.series.contains(&labels) {
            if self.series.len() >= SERIES_MAX {
                (labels.tool, labels.category) = (OTHER.to_owned(), OTHER.to_owned());
            } else {
                self.series.insert(labels.clone());
            }
        }
        self.signals.get_or_create(&labels).inc();
        if let Some(time) = signal.time.as_ref().and_then(clock::from_timestamp).and_then(|ns| u64::try_from(ns).ok()) {
            self.delivery.observe(Duration::from_nanos(clock::now_ns().saturating_sub(time)).as_secs_f64());
        }
    }
}
