//! A signal on its way in. It is encoded when it is made: a thousand tiny arguments are a hundred times smaller that way.

use portcullis_proto::v1::Signal;
use prost::Message;

use super::habits::Sighting;
use crate::{clock, count::Count};

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
    /// What is judged for novelty.
    pub(super) sighting: Option<Sighting>,
    /// The cgroup's processes whose signals are related to this one.
    pub(super) kin: Vec<Process>,
    /// The events that it stands for.
    pub(super) count: Count,
}

/// A process that is never mistaken for another one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// As the node sees it.
    pub pid: u32,
    /// When it began, `CLOCK_BOOTTIME`.
    pub start_time_ns: u64,
}

/// What a signal is about; there is one signal an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// An event of the kernel.
    Event {
        /// The guarded cgroup.
        cgroup_id: u64,
        /// The process.
        process: Process,
        /// When the event was made, `CLOCK_BOOTTIME`.
        time_ns: u64,
    },
    /// A container without guard, which each start of the agent finds anew.
    Unguarded {
        /// Hash of the container's key.
        container: [u8; 32],
    },
    /// What a container does too much of.
    Suppressed {
        /// The guarded cgroup.
        cgroup_id: u64,
        /// When the first such event was made, `CLOCK_BOOTTIME`.
        time_ns: u64,
    },
    /// What was lost of a container's events.
    Lost {
        /// The guarded cgroup.
        cgroup_id: u64,
        /// When that was first found, `CLOCK_BOOTTIME`.
        time_ns: u64,
    },
    /// What an operator asked for.
    Operation {
        /// When, nanoseconds since 1970.
        time_ns: u64,
        /// Tells it from another one of the same time.
        number: u64,
    },
}

/// How the origins of all of a process's events begin.
fn process_prefix(cgroup_id: u64, process: Process) -> Vec<u8> {
    let mut bytes = vec![b'e'];
    bytes.extend(cgroup_id.to_be_bytes());
    bytes.extend(process.pid.to_be_bytes());
    bytes.extend(process.start_time_ns.to_be_bytes());
    bytes
}

impl Origin {
    /// The first and the last value that the column can have for events of a process of the same cgroup.
    pub(super) fn range_of(self, process: Process) -> Option<(Vec<u8>, Vec<u8>)> {
        let Self::Event { cgroup_id, .. } = self else { return None };
        let prefix = process_prefix(cgroup_id, process);
        Some(([&prefix[..], &[0; 8]].concat(), [&prefix[..], &[0xff; 8]].concat()))
    }

    /// The value of the unique column.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Event { cgroup_id, process, time_ns } => {
                let mut bytes = process_prefix(cgroup_id, process);
                bytes.extend(time_ns.to_be_bytes());
                bytes
            }
            Self::Unguarded { container } => [&b"u"[..], &container].concat(),
            Self::Suppressed { cgroup_id, time_ns } => {
                [&b"s"[..], &cgroup_id.to_be_bytes(), &time_ns.to_be_bytes()].concat()
            }
            Self::Lost { cgroup_id, time_ns } => [&b"l"[..], &cgroup_id.to_be_bytes(), &time_ns.to_be_bytes()].concat(),
            Self::Operation { time_ns, number } => [&b"o"[..], &time_ns.to_be_bytes(), &number.to_be_bytes()].concat(),
        }
    }

    /// Whether seeing it twice says that something is wrong.
    pub(super) fn is_once_only(self) -> bool {
        matches!(self, Self::Event { .. })
    }
}

/// What has been folded into a signal since it was sent to the store. Of several the last holds: each tells all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Which signal.
    pub origin: Origin,
    /// The events that no update has told of before.
    pub added: Count,
    pub(super) count: u64,
    pub(super) last_ns: i64,
    /// An encoded signal that has only what changes.
    pub(super) body: Vec<u8>,
}

impl Update {
    /// `changed`: a signal that has only what changes, its count and last time among it.
    pub fn new(origin: Origin, added: Count, changed: &Signal) -> Self {
        let last_ns = clock::ns(changed.last_time.as_ref());
        Self { origin, added, count: changed.count, last_ns, body: changed.encode_to_vec() }
    }

    /// How many events the signal stands for by now.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl Entry {
    /// Encodes a signal. `kin`: its process and that process's ancestors.
    pub fn new(origin: Origin, signal: &Signal, kin: Vec<Process>) -> Self {
        let tool = signal.tool.clone().unwrap_or_default();
        let container = signal.container.as_ref();
        let pod = container.and_then(|container| container.pod.clone()).unwrap_or_default();
        let text = |field: Option<&String>| field.cloned().unwrap_or_default();
        let time_ns = clock::ns(signal.time.as_ref());
        Self {
            origin,
            time_ns,
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
            sighting: Sighting::of(signal, time_ns),
            kin,
            count: Count::of(signal),
        }
    }
}
