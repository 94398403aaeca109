//! Everything that happened, by time.

use portcullis_proto::v1::{
    Container, NetworkOperation, Severity, Signal, StoryEvent, Triage, network_operation, story_event::Kind,
};
use prost_types::Timestamp;

use super::{
    endpoint,
    processes::{Processes, head},
};
use crate::{clock::ns, text::enum_name};

/// Bytes of a sentence.
const TEXT_BYTES: usize = 512;
/// Events that are told of what processes did on the network: the first ones.
const NETWORK_EVENTS: usize = 400;

/// All of it, oldest first.
pub fn timeline(signals: &[Signal], processes: &Processes, container: Option<&Container>) -> Vec<StoryEvent> {
    let mut events = Vec::new();
    let event = |time: Option<&Timestamp>, kind: Kind, text: String| {
        time.map(|time| StoryEvent { time: Some(*time), kind: kind.into(), text, ..StoryEvent::default() })
    };
    if let Some(container) = container {
        let started = format!("container started from {}", head(&container.image, TEXT_BYTES));
        events.extend(event(container.created.as_ref(), Kind::ContainerStarted, started));
        events.extend(event(container.ended.as_ref(), Kind::ContainerEnded, "container ended".to_owned()));
    }
    for (process, start) in processes.starts() {
        let text = format!("{} started", head(&process.exe, TEXT_BYTES));
        let started = event(Some(&start), Kind::ProcessStarted, text);
        events.extend(started.map(|event| StoryEvent { process: process.number, ..event }));
    }
    let mut network = 0;
    for signal in signals {
        let process = processes.of_signal(signal.id);
        let told = |event: StoryEvent| StoryEvent { signal_id: signal.id, process, ..event };
        let kind = if signal.operation.is_some() { Kind::Containment } else { Kind::Signal };
        let text = head(&signal.message, TEXT_BYTES).to_owned();
        let severity = signal.severity;
        events.extend(event(signal.time.as_ref(), kind, text).map(told).map(|event| StoryEvent { severity, ..event }));
        if signal.count > 1 {
            let text = format!("the last of {} times", signal.count);
            events.extend(event(signal.last_time.as_ref(), Kind::Signal, text).map(told));
        }
        if let Some(triage) = &signal.triage {
            for triage in triage.earlier.iter().chain([triage]) {
                events.extend(event(triage.time.as_ref(), Kind::Triage, of_triage(triage)).map(told));
            }
        }
        for operation in signal.network.iter().flat_map(|network| &network.operations) {
            network += 1;
            if network > NETWORK_EVENTS {
                continue;
            }
            let happened = event(operation.first_time.as_ref(), Kind::Network, of_network(operation));
            events.extend(happened.map(told).map(|event| StoryEvent {
                process: processes.of_pid(signal.id, operation.pid),
                network: Some(operation.clone()),
                severity: Severity::Unspecified.into(),
                ..event
            }));
        }
    }
    events.sort_by_key(|event| ns(event.time.as_ref()));
    events
}

fn of_triage(triage: &Triage) -> String {
    let note = if triage.note.is_empty() { String::new() } else { format!(": {}", triage.note) };
    let state = enum_name(triage.state().as_str_name(), "TRIAGE_STATE_");
    head(&format!("{state}, says {}{note}", triage.author), TEXT_BYTES).to_owned()
}

/// In a sentence.
pub fn of_network(operation: &NetworkOperation) -> String {
    use network_operation::{Kind, Transport};
    let endpoint = operation.endpoint.as_ref().map(endpoint).unwrap_or_default();
    let transport = match operation.transport() {
        Transport::Tcp => "TCP ",
        Transport::Udp => "UDP ",
        Transport::Other | Transport::Unspecified => "",
    };
    let times = if operation.count > 1 { format!(", {} times", operation.count) } else { String::new() };
    let what = match operation.kind() {
        Kind::Connect => format!("connects to {transport}{endpoint}"),
        Kind::Send => format!("sends to {transport}{endpoint}"),
        Kind::Bind => format!("binds to {transport}{endpoint}"),
        Kind::Listen => format!("listens on {transport}{endpoint}"),
        Kind::RawSocket => "opens a raw or packet socket".to_owned(),
        Kind::DnsQuery => {
            let kind = if operation.dns_type.is_empty() { "" } else { " for " };
            let name = head(&operation.dns_name, TEXT_BYTES);
            format!("asks DNS{kind}{} of {name}", operation.dns_type)
        }
        Kind::Unspecified => "uses the network".to_owned(),
    };
    format!("{}{times}", what.trim_end())
}

#[cfg(test)]
mod tests {
    use portcullis_proto::v1::{Endpoint, NetworkActivity, TriageState};

    use super::{
        super::testing::{second, signal, web_shell},
        *,
    };

    #[test]
    fn everything_has_its_place() {
        let mut signals = web_shell();
        signals[0].count = 5;
        signals[0].last_time = Some(second(90));
        let operation = NetworkOperation {
            kind: network_operation::Kind::Connect.into(),
            transport: network_operation::Transport::Tcp.into(),
            endpoint: Some(Endpoint { address: "10.0.0.1".into(), port: 4444 }),
            pid: 44,
            first_time: Some(second(33)),
            count: 2,
            ..NetworkOperation::default()
        };
        signals[1].network = Some(NetworkActivity { operations: vec![operation], omitted: 0 });
        let state = |state: TriageState, seconds| Triage {
            state: state.into(),
            author: "ann".into(),
            time: Some(second(seconds)),
            ..Triage::default()
        };
        let earlier = vec![state(TriageState::Investigating, 70)];
        signals[2].triage = Some(Triage { earlier, ..state(TriageState::Resolved, 80) });
        let container = Container { created: Some(second(1)), ended: Some(second(95)), ..Container::default() };
        let processes = Processes::new(&signals);
        let events = timeline(&signals, &processes, Some(&container));
        let told: Vec<_> = events.iter().map(|event| (event.kind(), event.signal_id, event.process)).collect();
        assert_eq!(told.first(), Some(&(Kind::ContainerStarted, 0, 0)));
        assert_eq!(told.last(), Some(&(Kind::ContainerEnded, 0, 0)));
        let network = events.iter().find(|event| event.kind() == Kind::Network).unwrap();
        assert_eq!(network.text, "connects to TCP 10.0.0.1:4444, 2 times");
        assert_eq!((network.signal_id, network.process), (2, 5));
        let triage: Vec<_> =
            events.iter().filter(|event| event.kind() == Kind::Triage).map(|event| event.text.as_str()).collect();
        assert_eq!(triage, ["investigating, says ann", "resolved, says ann"]);
        assert!(events.iter().any(|event| event.text == "the last of 5 times"));
        assert!(events.iter().any(|event| event.kind() == Kind::ProcessStarted && event.process == 1));
        assert!(events.is_sorted_by_key(|event| ns(event.time.as_ref())));
    }

    #[test]
    fn sentences_are_cut() {
        let mut one = signal(1, 9, "nc", &["nc"]);
        one.message = "é".repeat(2000);
        let events = timeline(&[one.clone()], &Processes::new(&[one]), None);
        assert!(events.iter().all(|event| event.text.len() <= TEXT_BYTES));
    }
}
