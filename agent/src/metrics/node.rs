//! What is true at the moment of a scrape.

use std::{fmt, fs, path::PathBuf};

use portcullis_bpf::abi::ABI_VERSION;
use portcullis_policy::record::Guard;
use portcullis_sandbox::refusals;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Unit,
};

use super::Exporters;
use crate::{api::Sources, containers::LeftBehindCount, text::enum_name};

/// Where the numbers come from.
pub struct NodeMetrics {
    pub(super) sources: Sources,
    pub(super) exporters: Exporters,
    pub(super) database: PathBuf,
}

impl fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeMetrics").finish_non_exhaustive()
    }
}

/// A metric with one label, or none.
struct Series<'a, 'b> {
    encoder: &'a mut DescriptorEncoder<'b>,
}

impl Series<'_, '_> {
    fn family<T: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        values: impl IntoIterator<Item = (impl EncodeLabelSet, T)>,
    ) -> fmt::Result {
        let mut encoder: MetricEncoder<'_> = self.encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in values {
            value.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        value.encode(self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }
}

impl Collector for NodeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Sources { store, containers, kernel, counters, facts, enforcement, tls, containment: _, sender: _ } =
            &self.sources;
        let mut series = Series { encoder: &mut encoder };
        let counted = |values: Vec<(&'static str, u64)>| {
            values.into_iter().map(|(kind, count)| ([("kind", kind)], ConstCounter::new(count)))
        };
        let losses = kernel.node().into_iter().chain(counters.losses()).collect();
        let help = "What was dropped, fell back or was refused; all zero on a healthy node";
        series.family("losses", help, None, MetricType::Counter, counted(losses))?;
        let help = "System calls of the agent itself that its profile does not name, and that were refused";
        let refused =
            refusals::refused().into_iter().map(|(call, count)| ([("syscall", call)], ConstCounter::new(count)));
        series.family("seccomp_violations", help, None, MetricType::Counter, refused)?;
        let help = "Events that exceptions and repeats kept from becoming signals of their own";
        series.family("suppressed_events", help, None, MetricType::Counter, counted(counters.suppressed()))?;

        let (mut guarded, mut unguarded, mut seen) =
            (0_i64, 0_i64, [("matched", 0), ("blocked", 0), ("killed", 0), ("lost", 0)]);
        let mut left_behind = LeftBehindCount::default();
        for container in containers.all().into_values().filter(|container| container.ended_ns.is_none()) {
            left_behind.add(container.standing.left_behind);
            match container.record.guard {
                Guard::Guarded => guarded += 1,
                Guard::Unguarded { .. } => unguarded += 1,
            }
            let Some(stats) = kernel.container(container.record.cgroup_id) else { continue };
            for ((_, sum), count) in seen.iter_mut().zip([stats.matched, stats.blocked, stats.killed, stats.lost]) {
                *sum += i64::try_from(count).unwrap_or_default();
            }
        }
        let gauges = |values: &[(&'static str, i64)], label: &'static str| {
            values.iter().map(|(value, count)| ([(label, *value)], ConstGauge::new(*count))).collect::<Vec<_>>()
        };
        let states = gauges(&[("guarded", guarded), ("unguarded", unguarded)], "state");
        series.family("containers", "Running containers", None, MetricType::Gauge, states)?;
        let LeftBehindCount { reported, unreported } = left_behind;
        let states = [("true", reported), ("false", unreported)].map(|(reported, count)| {
            ([("reported", reported)], ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)))
        });
        let help = "Running containers that another version's programs guard, as before an upgrade";
        series.family("containers_left_behind", help, None, MetricType::Gauge, states)?;
        // Not a counter: a container that ends takes its own with it.
        let help = "Executions that matched a rule in the containers that run now, as the kernel counts them";
        series.family("container_executions", help, None, MetricType::Gauge, gauges(&seen, "outcome"))?;

        let last_id = *store.last_id().borrow();
        series.gauge("signals_stored", "Signals in the database", None, store.stored())?;
        let bytes = fs::metadata(&self.database).map_or(0, |metadata| metadata.len());
        series.gauge("store_size", "Size of the signal database's file", Some(&Unit::Bytes), bytes)?;
        let lag = self.exporters.iter().map(|(name, progress)| {
            let behind = last_id.saturating_sub(progress.borrow().id);
            ([("exporter", *name)], ConstGauge::new(i64::try_from(behind).unwrap_or(i64::MAX)))
        });
        series.family("export_lag_signals", "Signals that wait for an exporter", None, MetricType::Gauge, lag)?;
        let delivered = self
            .exporters
            .iter()
            .map(|(name, progress)| ([("exporter", *name)], ConstCounter::new(progress.borrow().delivered)));
        let help = "Findings that receivers have taken, updates included";
        series.family("export_findings", help, None, MetricType::Counter, delivered)?;

        let (policies, error) = enforcement.status();
        series.gauge("policies", "Policies in force", None, u64::try_from(policies.len()).unwrap_or_default())?;
        let help = "1: the newest policy and catalogue files are in force. 0: they are broken and former ones are";
        series.gauge("policies_current", help, None, error.is_empty().into())?;
        let started = facts.started_ns / 1_000_000_000;
        series.gauge("start_time", "When the agent started, since 1970", Some(&Unit::Seconds), started)?;
        if let Some(tls) = tls {
            let expiry = u64::try_from(tls.not_after()).unwrap_or_default();
            let help = "When the certificate of the API's TCP listener expires, since 1970";
            series.gauge("tcp_certificate_expiry", help, Some(&Unit::Seconds), expiry)?;
        }
        let abi = ABI_VERSION.to_string();
        let info = Info::new(
            [
                ("version", env!("CARGO_PKG_VERSION")),
                ("abi", &abi),
                ("backend", &enum_name(facts.backend.as_str_name(), "BACKEND_")),
                ("kernel", &facts.kernel),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        );
        info.encode(series.encoder.encode_descriptor(
            "build",
            "The agent, its backend and kernel",
            None,
            MetricType::Info,
        )?)
    }
}
