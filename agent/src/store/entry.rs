//! A signal on its way in. It is encoded when it is made: a thousand tiny arguments are a hundred times smaller that way.

use portcullis_proto::v1::Signal;
use prost::Message;

use crate::clock;

/// One signal to store.
#[derive(Debug, Clone)]
pub struct Entry {
    pub(super) origin: Origin,
    pub(super) time_ns: i64,
    pub(super) rule: String,
    pub(super) verdict: i32,
    pub(super) severity: i32,
    pub(super) tool: String,
    pub(super) category: String,
    pub(super) container_id: String,
    pub(super) image: String,
    pub(super) pod_namespace: String,
    pub(super) pod_name: String,
    pub(super) body: Vec<u8>,
}

/// What a signal is about; there is one signal an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// An event of the kernel.
    Event {
        /// The guarded cgroup.
        cgroup_id: u64,
        /// The process.
        pid: u32,
        /// When it began, `CLOCK_BOOTTIME`.
        start_time_ns: u64,
        /// When the event was made, `CLOCK_BOOTTIME`.
        time_ns: u64,
    },
    /// A container without guard, which each start of the agent finds anew.
    Unguarded {
        /// Hash of the container's key.
        container: [u8; 32],
    },
}

impl Origin {
    /// The value of the unique column.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Event { cgroup_id, pid, start_time_ns, time_ns } => {
                let mut bytes = vec![b'e'];
                bytes.extend(cgroup_id.to_be_bytes());
                bytes.extend(pid.to_be_bytes());
                bytes.extend(start_time_ns.to_be_bytes());
                bytes.extend(time_ns.to_be_bytes());
                bytes
            }
            Self::Unguarded { container } => [&b"u"[..], &container].concat(),
        }
    }

    /// Whether seeing it twice says that something is wrong.
    pub(super) fn is_once_only(self) -> bool {
        matches!(self, Self::Event { .. })
    }
}

impl Entry {
    /// Encodes a signal.
    pub fn new(origin: Origin, signal: &Signal) -> Self {
        let tool = signal.tool.clone().unwrap_or_default();
        let container = signal.container.as_ref();
        let pod = container.and_then(|container| container.pod.clone()).unwrap_or_default();
        let text = |field: Option<&String>| field.cloned().unwrap_or_default();
        Self {
            origin,
            time_ns: signal.time.as_ref().and_then(clock::from_timestamp).unwrap_or_default(),
            rule: signal.rule.clone(),
            verdict: signal.verdict,
            severity: signal.severity,
            tool: tool.id,
            category: tool.category,
            container_id: text(container.map(|container| &container.id)),
            image: text(container.map(|container| &container.image)),
            pod_namespace: pod.namespace,
            pod_name: pod.name,
            body: signal.encode_to_vec(),
        }
    }
}
