//! What reported processes do on the network, on its way to their signals.
//!
//! The kernel says which event a process was reported by. Where that was folded into another's signal, the activity is that
//! signal's. Which signal it is is asked when the store is told, about a second later: the two ring buffers are read one
//! after the other. Memory is bounded; the store adds what it is told to what it has.

use std::{
    collections::{HashMap, VecDeque},
    mem,
};

use portcullis_bpf::abi::{Activity, Event, Flagged, Operation, Transport};
use portcullis_policy::dns::{self, Question};
use portcullis_proto::v1::{
    Endpoint, NetworkActivity, NetworkOperation,
    network_operation::{Kind, Transport as Protocol},
};

use crate::{
    clock::{BootOffset, timestamp},
    network,
    store::entry::{Origin, Process},
};

/// Events whose activity waits at most, before the store must be told.
const WAITING: usize = 256;
/// Folded events that it is remembered of whose signal they are in.
const FOLDED: usize = 8192;

/// What the store has not been told yet.
#[derive(Debug, Default)]
pub struct Pending {
    by_event: HashMap<Flagged, NetworkActivity>,
    folded: HashMap<Flagged, Origin>,
    /// The oldest first.
    order: VecDeque<Flagged>,
}

impl Pending {
    /// An event has become part of this signal, another event's.
    pub fn folded(&mut self, event: &Event, into: Origin) {
        if self.order.len() == FOLDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.folded.remove(&oldest);
        }
        let flagged = flagged(event);
        self.order.push_back(flagged);
        self.folded.insert(flagged, into);
    }

    /// Adds an operation of a process that was reported by this event.
    pub fn add(&mut self, by: Flagged, operation: NetworkOperation) {
        network::add(self.by_event.entry(by).or_default(), operation);
    }

    /// Whether there is anything to tell the store.
    pub fn has_changed(&self) -> bool {
        !self.by_event.is_empty()
    }

    /// Whether no more of it may wait.
    pub fn is_full(&self) -> bool {
        self.by_event.len() >= WAITING
    }

    /// What the store has not been told, by signal.
    pub fn take(&mut self) -> Vec<(Origin, NetworkActivity)> {
        let signal = |by| self.folded.get(&by).copied().unwrap_or_else(|| origin(by));
        mem::take(&mut self.by_event).into_iter().map(|(by, activity)| (signal(by), activity)).collect()
    }
}

/// The event as the kernel names it afterwards.
pub fn flagged(event: &Event) -> Flagged {
    let Event { cgroup_id, start_time_ns, time_ns, pid, .. } = *event;
    Flagged { cgroup_id, start_time_ns, time_ns, pid }
}

fn origin(Flagged { cgroup_id, start_time_ns, time_ns, pid }: Flagged) -> Origin {
    Origin::Event { cgroup_id, process: Process { pid, start_time_ns }, time_ns }
}

/// An operation as the API shows it. `None` for a datagram that says no more than its connection did.
pub fn operation(activity: &Activity, offset: BootOffset) -> Option<NetworkOperation> {
    let question = dns::from_datagram(&activity.datagram);
    let kind = match activity.operation {
        Operation::Send | Operation::Question if question.is_some() => Kind::DnsQuery,
        Operation::Question => return None,
        Operation::Send => Kind::Send,
        Operation::Connect => Kind::Connect,
        Operation::Bind => Kind::Bind,
        Operation::Listen => Kind::Listen,
        Operation::RawSocket => Kind::RawSocket,
    };
    let transport = match activity.transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Other => Protocol::Other,
    };
    let endpoint = activity.endpoint.map(|endpoint| Endpoint {
        address: endpoint.ip().to_canonical().to_string(),
        port: u32::from(endpoint.port()),
    });
    let once = once(kind, activity.pid, offset.wall_ns(activity.time_ns), question);
    Some(NetworkOperation { transport: transport.into(), endpoint, ..once })
}

/// The question in an event's arguments, which is asked or was to be. `tool`: its id.
pub fn question(event: &Event, tool: &str, offset: BootOffset) -> Option<NetworkOperation> {
    let question = dns::from_arguments(tool, &event.argv)?;
    Some(once(Kind::DnsQuery, event.pid, offset.wall_ns(event.time_ns), Some(question)))
}

fn once(kind: Kind, pid: u32, wall_ns: u64, question: Option<Question>) -> NetworkOperation {
    let (dns_name, dns_type) = question.map(|question| (question.name, question.kind)).unwrap_or_default();
    let time = Some(timestamp(wall_ns));
    NetworkOperation {
        kind: kind.into(),
        dns_name,
        dns_type,
        pid,
        first_time: time,
        last_time: time,
        count: 1,
        ..NetworkOperation::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn activity(by: Flagged, operation: Operation) -> Activity {
        Activity {
            operation,
            transport: Transport::Udp,
            pid: 9,
            time_ns: 20,
            by,
            endpoint: "[::ffff:10.0.0.1]:53".parse().ok(),
            datagram: Vec::new(),
        }
    }

    #[test]
    fn activity_of_a_folded_event_is_the_first_ones() {
        let offset = BootOffset::now();
        let mut pending = Pending::default();
        let (first, repeat) = (testing::event(42, 7, 10), testing::event(42, 7, 11));
        pending.folded(&repeat, origin(flagged(&first)));
        for event in [&first, &repeat] {
            let by = flagged(event);
            pending.add(by, operation(&activity(by, Operation::Connect), offset).unwrap());
        }
        assert!(pending.has_changed());
        let told = pending.take();
        assert_eq!(told.len(), 2);
        for (of, activity) in told {
            assert_eq!((of, network::count(&activity)), (origin(flagged(&first)), 1));
            let endpoint = activity.operations[0].endpoint.clone().unwrap();
            assert_eq!((endpoint.address.as_str(), endpoint.port), ("10.0.0.1", 53));
        }
        assert!(!pending.has_changed());
    }

    #[test]
    fn what_waits_and_what_is_remembered_is_bounded() {
        let mut pending = Pending::default();
        for time_ns in 0..20_000 {
            let event = testing::event(42, 7, time_ns);
            pending.folded(&event, origin(flagged(&event)));
            if !pending.is_full() {
                let by = flagged(&event);
                pending.add(by, operation(&activity(by, Operation::Send), BootOffset::now()).unwrap());
            }
        }
        assert_eq!((pending.folded.len(), pending.order.len(), pending.by_event.len()), (FOLDED, FOLDED, WAITING));
    }

    #[test]
    fn a_datagram_is_a_question_or_a_datagram() {
        let by = flagged(&testing::event(42, 7, 10));
        let mut asked = activity(by, Operation::Question);
        assert_eq!(operation(&asked, BootOffset::now()), None);
        asked.datagram = b"\x00\x01\x01\x00\x00\x01\0\0\0\0\0\0\x01x\x02io\x00\x00\x10\x00\x01".to_vec();
        let told = operation(&asked, BootOffset::now()).unwrap();
        assert_eq!((told.kind(), told.dns_name.as_str(), told.dns_type.as_str()), (Kind::DnsQuery, "x.io", "TXT"));
        asked.operation = Operation::Send;
        assert_eq!(operation(&asked, BootOffset::now()).unwrap().kind(), Kind::DnsQuery);
        asked.datagram.clear();
        assert_eq!(operation(&asked, BootOffset::now()).unwrap().kind(), Kind::Send);
        let mut event = testing::event(42, 7, 10);
        event.argv = vec![b"nslookup".to_vec(), b"x.io".to_vec()];
        assert_eq!(question(&event, "nslookup", BootOffset::now()).unwrap().dns_name, "x.io");
    }
}
