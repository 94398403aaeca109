//! Findings as OpenTelemetry log records, over gRPC to a collector. The messages and the client are those of the published
//! protocol (crate opentelemetry-proto); the SDK's own pipeline is not used, for it drops what its queue does not hold and does not tell
//! which records a collector has taken.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use portcullis_proto::v1::{Severity, Signal};
use prost_types::Timestamp;
use tonic::{
    Code, Request,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{Finding, Sink, SinkError, ocsf::Node};
use crate::{clock, counters::Counters, text::enum_name};

/// A collector.
pub struct Otlp {
    client: LogsServiceClient<Channel>,
    headers: MetadataMap,
    resource: Resource,
    counters: Arc<Counters>,
}

impl Otlp {
    /// Inside a runtime; connects when there is something to send, and anew whenever the connection is lost.
    pub fn new(endpoint: Endpoint, headers: MetadataMap, wait: Duration, node: &Node, counters: Arc<Counters>) -> Self {
        let channel = endpoint.connect_timeout(wait).timeout(wait).connect_lazy();
        let attributes = [
            ("service.name", "portcullis"),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("host.name", &node.name),
            ("k8s.node.name", &node.name),
            ("k8s.cluster.name", &node.cluster),
        ];
        let attributes = attributes.into_iter().filter(|(_, value)| !value.is_empty());
        let resource = Resource {
            attributes: attributes.map(|(key, value)| attribute(key, text(value))).collect(),
            ..Resource::default()
        };
        Self { client: LogsServiceClient::new(channel), headers, resource, counters }
    }

    fn request(&self, batch: &[Finding]) -> ExportLogsServiceRequest {
        let scope = InstrumentationScope {
            name: "portcullis.signals".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let log_records = batch.iter().map(record).collect();
        let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records, ..ScopeLogs::default() }];
        let resource_logs =
            vec![ResourceLogs { resource: Some(self.resource.clone()), scope_logs, ..ResourceLogs::default() }];
        ExportLogsServiceRequest { resource_logs }
    }
}

impl Sink for Otlp {
    const NAME: &'static str = "otlp";

    async fn deliver(&mut self, batch: &[Finding]) -> Result<(), SinkError> {
        let mut request = Request::new(self.request(batch));
        *request.metadata_mut() = self.headers.clone();
        match self.client.export(request).await {
            Ok(response) => {
                // The protocol: what was rejected in part is not to be sent again.
                if let Some(partial) = response.into_inner().partial_success
                    && partial.rejected_log_records > 0
                {
                    let rejected = partial.rejected_log_records.unsigned_abs();
                    self.counters.export_refused.add(rejected);
                    tracing::error!(rejected, reason = partial.error_message, "the collector has refused findings");
                }
                Ok(())
            }
            // No other code says that it is the content: a wrong header or an old collector gets better without us.
            Err(status) if status.code() == Code::InvalidArgument => Err(SinkError::Refused(status.to_string())),
            Err(status) => Err(anyhow::Error::new(status).context("sending to the collector").into()),
        }
    }
}

fn record(finding: &Finding) -> LogRecord {
    let signal = finding.signal.as_ref();
    let (severity, severity_text) = severity(signal.severity());
    LogRecord {
        time_unix_nano: nanoseconds(signal.last_time.as_ref().or(signal.time.as_ref())),
        observed_time_unix_nano: clock::now_ns(),
        severity_number: severity.into(),
        severity_text: severity_text.to_owned(),
        body: Some(text(&finding.json)),
        attributes: attributes(signal),
        event_name: "portcullis.signal".to_owned(),
        ..LogRecord::default()
    }
}

fn severity(severity: Severity) -> (SeverityNumber, &'static str) {
    match severity {
        Severity::Unspecified => (SeverityNumber::Unspecified, ""),
        Severity::Low => (SeverityNumber::Info, "low"),
        Severity::Medium => (SeverityNumber::Warn, "medium"),
        Severity::High => (SeverityNumber::Error, "high"),
        Severity::Critical => (SeverityNumber::Fatal, "critical"),
    }
}

/// What people search by; the body has all. Names are those of OpenTelemetry's semantic conventions where it has one.
fn attributes(signal: &Signal) -> Vec<KeyValue> {
    let mut out = Vec::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            out.push(attribute(key, text(value)));
        }
    };
    add("security_rule.name", &signal.rule);
    add("portcullis.verdict", &enum_name(signal.verdict().as_str_name(), "VERDICT_"));
    add("portcullis.policy", &signal.policy);
    if let Some(tool) = &signal.tool {
        add("portcullis.tool", &tool.id);
        add("security_rule.category", &tool.category);
    }
    if let Some(container) = &signal.container {
        add("container.id", &container.id);
        add("container.image.name", &container.image);
        if let Some(pod) = &container.pod {
            add("k8s.pod.name", &pod.name);
            add("k8s.pod.uid", &pod.uid);
            add("k8s.namespace.name", &pod.namespace);
            add("k8s.container.name", &pod.container_name);
        }
    }
    if let Some(process) = &signal.process {
        add("process.executable.name", &process.invoked_name);
        add("process.executable.path", &process.exe);
        add("process.working_directory", &process.cwd);
    }
    if let Some(remote) = &signal.remote {
        add("network.peer.address", &remote.address);
    }
    let mut numbers = vec![("portcullis.signal.id", signal.id), ("portcullis.count", signal.count)];
    if let Some(process) = &signal.process {
        numbers.push(("process.pid", process.pid.into()));
        let values = process.argv.iter().map(|argument| text(argument)).collect();
        let value = Some(any_value::Value::ArrayValue(ArrayValue { values }));
        out.push(attribute("process.command_args", AnyValue { value }));
    }
    numbers.extend(signal.remote.as_ref().map(|remote| ("network.peer.port", remote.port.into())));
    out.extend(numbers.into_iter().map(|(key, number)| {
        let value = any_value::Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX));
        attribute(key, AnyValue { value: Some(value) })
    }));
    out
}

fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn text(text: &str) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) }
}

fn nanoseconds(time: Option<&Timestamp>) -> u64 {
    time.and_then(clock::from_timestamp).and_then(|ns| u64::try_from(ns).ok()).unwrap_or_default()
}
