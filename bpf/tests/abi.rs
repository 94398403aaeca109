//! `src/abi.rs` mirrors `abi.h` as the compiled object's BTF has it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeMap, mem::offset_of};

use aya::maps::lpm_trie::Key;
use btf_rs::{Btf, Type};
use object::{Object, ObjectSection};
use portcullis_bpf::{
    Backend,
    abi::{
        self, Action, Behaviour, Comm, Container, ContainerStats, Decision, Event, Exception, ExceptionKey,
        FingerprintKey, Hook, Identity, Kind, LoaderOption, Mode, NameKey, NamePrefix, Operation, Pattern, PatternKey,
        PatternList, RuleKey, Ruling, Transport, UidRange, Verdict, container_flags, exception_flags, flags,
        identified_by, place,
    },
    loader,
};

struct Layout {
    size: usize,
    /// Name, offset, in the header's order.
    members: Vec<(String, usize)>,
}

fn btf() -> Btf {
    let file = object::File::parse(loader::object()).unwrap();
    Btf::from_bytes(file.section_by_name(".BTF").unwrap().data().unwrap()).unwrap()
}

fn layout(btf: &Btf, name: &str) -> Layout {
    let types = btf.resolve_types_by_name(name).unwrap();
    let found = types.into_iter().find_map(|t| if let Type::Struct(s) = t { Some(s) } else { None }).unwrap();
    let members = found
        .members
        .iter()
        .map(|member| (btf.resolve_name(member).unwrap(), usize::try_from(member.bit_offset() / 8).unwrap()))
        .collect();
    Layout { size: found.size(), members }
}

fn enumerators(btf: &Btf, name: &str) -> BTreeMap<String, u32> {
    let types = btf.resolve_types_by_name(name).unwrap();
    let found = types.into_iter().find_map(|t| if let Type::Enum(e) = t { Some(e) } else { None }).unwrap();
    found.members.iter().map(|member| (btf.resolve_name(member).unwrap(), member.val())).collect()
}

#[track_caller]
fn assert_layout(name: &str, size: usize, members: &[(&str, usize)]) {
    let layout = layout(&btf(), name);
    assert_eq!(layout.size, size, "size of {name}");
    let found: Vec<(&str, usize)> = layout.members.iter().map(|(name, offset)| (name.as_str(), *offset)).collect();
    assert_eq!(found, members, "members of {name}");
}

#[track_caller]
fn assert_enum(name: &str, values: &[(&str, u32)]) {
    let expected = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    assert_eq!(enumerators(&btf(), name), expected, "enum {name}");
}

#[test]
fn keys_and_values_of_maps() {
    assert_layout("name_key", size_of::<NameKey>(), &[("name", 0)]);
    // aya's key of a trie begins with the number of bits and is packed.
    assert_layout(
        "comm_key",
        size_of::<Key<Comm>>(),
        &[("bits", 0), ("policy", 4 + offset_of!(Comm, policy)), ("comm", 4 + offset_of!(Comm, comm))],
    );
    assert_layout(
        "rule_key",
        size_of::<RuleKey>(),
        // The tool is in a union, which has no name.
        &[("policy", offset_of!(RuleKey, policy)), ("", offset_of!(RuleKey, tool))],
    );
    assert_layout(
        "container",
        size_of::<Container>(),
        &[
            ("cgroup_id", offset_of!(Container, cgroup_id)),
            ("policy", offset_of!(Container, policy)),
            ("mode", offset_of!(Container, mode)),
            ("init_pid", offset_of!(Container, init_pid)),
            ("backend", offset_of!(Container, backend)),
            ("scope", offset_of!(Container, scope)),
            ("node_mount_ns", offset_of!(Container, node_mount_ns)),
            ("exceptions", offset_of!(Container, exceptions)),
            ("flags", offset_of!(Container, flags)),
            ("level", offset_of!(Container, level)),
        ],
    );
    assert_layout(
        "identity",
        size_of::<Identity>(),
        &[("id", offset_of!(Identity, id)), ("kind", offset_of!(Identity, kind))],
    );
    assert_layout(
        "fingerprint_key",
        size_of::<FingerprintKey>(),
        &[("fingerprint", offset_of!(FingerprintKey, fingerprint)), ("scope", offset_of!(FingerprintKey, scope))],
    );
    assert_layout("name_prefix", size_of::<NamePrefix>(), &[("bytes", 0), ("mask", 16)]);
    assert_layout(
        "container_stats",
        size_of::<ContainerStats>(),
        &[
            ("matched", offset_of!(ContainerStats, matched)),
            ("blocked", offset_of!(ContainerStats, blocked)),
            ("killed", offset_of!(ContainerStats, killed)),
            ("lost", offset_of!(ContainerStats, lost)),
            ("excepted", offset_of!(ContainerStats, excepted)),
        ],
    );
    assert_layout(
        "uid_range",
        size_of::<UidRange>(),
        &[("first", offset_of!(UidRange, first)), ("last", offset_of!(UidRange, last))],
    );
    assert_layout(
        "decision",
        size_of::<Decision>(),
        &[
            ("action", offset_of!(Decision, action)),
            ("rule", offset_of!(Decision, rule)),
            ("places", offset_of!(Decision, places)),
            ("uids", offset_of!(Decision, uids)),
        ],
    );
    assert_layout(
        "ruling",
        size_of::<Ruling>(),
        &[
            ("count", offset_of!(Ruling, count)),
            ("exceptions", offset_of!(Ruling, exceptions)),
            ("decisions", offset_of!(Ruling, decisions)),
        ],
    );
}

#[test]
fn keys_and_values_of_exceptions() {
    assert_layout(
        "exception_key",
        size_of::<ExceptionKey>(),
        &[("policy", offset_of!(ExceptionKey, policy)), ("number", offset_of!(ExceptionKey, number))],
    );
    assert_layout(
        "exception",
        size_of::<Exception>(),
        &[
            ("flags", offset_of!(Exception, flags)),
            ("arguments", offset_of!(Exception, arguments)),
            ("parents", offset_of!(Exception, parents)),
            ("ancestors", offset_of!(Exception, ancestors)),
            ("users", offset_of!(Exception, users)),
            ("uids", offset_of!(Exception, uids)),
        ],
    );
    assert_layout(
        "pattern_key",
        size_of::<PatternKey>(),
        &[
            ("policy", offset_of!(PatternKey, policy)),
            ("number", offset_of!(PatternKey, number)),
            ("list", offset_of!(PatternKey, list)),
            ("index", offset_of!(PatternKey, index)),
        ],
    );
    assert_layout("pattern", size_of::<Pattern>(), &[("bytes", 0), ("mask", 128)]);
}

#[test]
fn enums() {
    assert_enum("mode", &[("MODE_DETECT", Mode::Detect as u32), ("MODE_ENFORCE", Mode::Enforce as u32)]);
    assert_enum("backend", &[("BACKEND_LSM", Backend::Lsm as u32), ("BACKEND_TRACEPOINT", Backend::Tracepoint as u32)]);
    assert_enum(
        "action",
        &[
            ("ACTION_IGNORE", Action::Ignore as u32),
            ("ACTION_ALERT", Action::Alert as u32),
            ("ACTION_BLOCK", Action::Block as u32),
        ],
    );
    assert_enum(
        "verdict",
        &[
            ("VERDICT_DETECTED", Verdict::Detected as u32),
            ("VERDICT_WOULD_BLOCK", Verdict::WouldBlock as u32),
            ("VERDICT_BLOCKED", Verdict::Blocked as u32),
            ("VERDICT_KILLED", Verdict::Killed as u32),
        ],
    );
    assert_enum(
        "hook",
        &[
            ("HOOK_BPRM_CHECK", Hook::BprmCheck as u32),
            ("HOOK_BPRM_COMMITTED", Hook::BprmCommitted as u32),
            ("HOOK_TRACEPOINT", Hook::Tracepoint as u32),
            ("HOOK_MMAP", Hook::Mmap as u32),
            ("HOOK_SOCKET_CREATE", Hook::SocketCreate as u32),
            ("HOOK_SOCKET_CONNECT", Hook::SocketConnect as u32),
            ("HOOK_TCP_CONNECT", Hook::TcpConnect as u32),
            ("HOOK_BPF", Hook::Bpf as u32),
            ("HOOK_PIN", Hook::Pin as u32),
            ("HOOK_CGROUP", Hook::Cgroup as u32),
        ],
    );
    assert_enum(
        "identified_by",
        &[
            ("BY_INVOKED_NAME", identified_by::INVOKED_NAME),
            ("BY_RESOLVED_NAME", identified_by::RESOLVED_NAME),
            ("BY_FINGERPRINT", identified_by::FINGERPRINT),
            ("BY_APPLET", identified_by::APPLET),
            ("BY_LOADER", identified_by::LOADER),
            ("BY_MAPPING", identified_by::MAPPING),
            ("BY_STDIO", identified_by::STDIO),
            ("BY_PLACE", identified_by::PLACE),
            ("BY_SOCKET", identified_by::SOCKET),
            ("BY_PATTERN", identified_by::PATTERN),
        ],
    );
    assert_enum(
        "place",
        &[
            ("PLACE_WRITABLE_DIRECTORY", place::WRITABLE_DIRECTORY),
            ("PLACE_UPPER_LAYER", place::UPPER_LAYER),
            ("PLACE_MEMFD", place::MEMFD),
            ("PLACE_DELETED", place::DELETED),
        ],
    );
    assert_enum(
        "kind",
        &[
            ("KIND_TOOL", Kind::Tool as u32),
            ("KIND_MULTICALL", Kind::Multicall as u32),
            ("KIND_LOADER", Kind::Loader as u32),
            ("KIND_SHELL", Kind::Shell as u32),
            ("KIND_INTERPRETER", Kind::Interpreter as u32),
        ],
    );
    assert_enum(
        "loader_option",
        &[("OPTION_VALUE", LoaderOption::Value as u32), ("OPTION_ARGV0", LoaderOption::Argv0 as u32)],
    );
    assert_enum(
        "behaviour",
        &[
            ("REVERSE_SHELL", Behaviour::ReverseShell as u32),
            ("DROPPED_EXECUTABLE", Behaviour::DroppedExecutable as u32),
            ("SHELL_SOCKET", Behaviour::ShellSocket as u32),
            ("INTERPRETER_SOCKET", Behaviour::InterpreterSocket as u32),
            ("RAW_SOCKET", Behaviour::RawSocket as u32),
            ("LOCKED", Behaviour::Locked as u32),
            ("GUARD_TAMPERING", Behaviour::GuardTampering as u32),
            ("CGROUP_ESCAPE", Behaviour::CgroupEscape as u32),
        ],
    );
}

#[test]
fn enums_of_exceptions_and_events() {
    assert_enum(
        "exception_flags",
        &[
            ("EXCEPTION_ARGUMENTS", exception_flags::ARGUMENTS),
            ("EXCEPTION_MORE_ARGUMENTS", exception_flags::MORE_ARGUMENTS),
        ],
    );
    assert_enum("container_flags", &[("CONTAINER_LOCKED", container_flags::LOCKED)]);
    assert_enum(
        "pattern_list",
        &[
            ("PATTERNS_ARGUMENTS", PatternList::Arguments as u32),
            ("PATTERNS_PARENTS", PatternList::Parents as u32),
            ("PATTERNS_ANCESTORS", PatternList::Ancestors as u32),
        ],
    );
    assert_enum(
        "event_flags",
        &[
            ("FILENAME_TRUNCATED", flags::FILENAME_TRUNCATED),
            ("EXE_TRUNCATED", flags::EXE_TRUNCATED),
            ("ARGV_TRUNCATED", flags::ARGV_TRUNCATED),
            ("CWD_TRUNCATED", flags::CWD_TRUNCATED),
            ("ARGV_UNCONFIRMED", flags::ARGV_UNCONFIRMED),
            ("LINEAGE_TRUNCATED", flags::LINEAGE_TRUNCATED),
            ("EXEC_SESSION", flags::EXEC_SESSION),
            ("EVENT_REDUCED", flags::EVENT_REDUCED),
        ],
    );
}

#[test]
fn activities() {
    assert_enum(
        "operation",
        &[
            ("OPERATION_CONNECT", Operation::Connect as u32),
            ("OPERATION_SEND", Operation::Send as u32),
            ("OPERATION_BIND", Operation::Bind as u32),
            ("OPERATION_LISTEN", Operation::Listen as u32),
            ("OPERATION_RAW_SOCKET", Operation::RawSocket as u32),
            ("OPERATION_QUESTION", Operation::Question as u32),
        ],
    );
    assert_enum(
        "transport",
        &[
            ("TRANSPORT_TCP", Transport::Tcp as u32),
            ("TRANSPORT_UDP", Transport::Udp as u32),
            ("TRANSPORT_OTHER", Transport::Other as u32),
        ],
    );
    assert_layout("pin_place", size_of::<abi::PinPlace>(), &[("device", 0), ("directory", 8)]);
    let flagged = [("cgroup_id", 0), ("start_time_ns", 8), ("time_ns", 16), ("pid", 24), ("unused", 28)];
    assert_layout("flagged", 32, &flagged);
    // The order in which the decoder reads.
    let members = [
        ("abi_version", 0),
        ("operation", 4),
        ("transport", 8),
        ("pid", 12),
        ("time_ns", 16),
        ("by", 24),
        ("endpoint", 56),
        ("datagram_len", 76),
    ];
    assert_layout("activity", abi::ACTIVITY_SIZE, &members);
}

#[test]
fn counters() {
    let layout = layout(&btf(), "counters");
    let names: Vec<&str> = layout.members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, abi::COUNTERS);
    assert_eq!(layout.size, size_of_val(&[0u64; abi::COUNTERS.len()]));
}

/// Writes a different value at each member's offset, as the BTF has it, and sees where the decoder finds it.
#[test]
fn event_and_ancestor_are_decoded_from_the_right_places() {
    let event = layout(&btf(), "event");
    let ancestor = layout(&btf(), "ancestor");
    assert_eq!(event.size, abi::EVENT_SIZE);
    assert_eq!(ancestor.size, abi::ANCESTOR_SIZE);

    let mut record = vec![0u8; event.size + ancestor.size];
    let mut put = |base: usize, layout: &Layout, name: &str, bytes: &[u8]| {
        let offset = base + layout.members.iter().find(|(member, _)| member == name).unwrap().1;
        record[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let u32s = [
        ("abi_version", abi::ABI_VERSION),
        ("verdict", Verdict::Killed as u32),
        ("policy", 101),
        ("tool", 102),
        ("identified_by", 103),
        ("hook", Hook::Tracepoint as u32),
        ("flags", 104),
        ("pid", 105),
        ("tid", 106),
        ("ns_pid", 107),
        ("uid", 108),
        ("gid", 109),
        ("argc", 110),
        ("argv_len", 3),
        ("ancestors", 1),
        ("place", 111),
        ("rule", 112),
    ];
    let u64s = [
        ("time_ns", 1u64 << 40),
        ("start_time_ns", 2 << 40),
        ("cgroup_id", 3 << 40),
        ("leaf_cgroup_id", 4 << 40),
        ("inode", 5 << 40),
        ("file_size", 6 << 40),
    ];
    let strings = ["invoked", "tty", "filename", "exe", "cwd"];
    for (name, value) in u32s {
        put(0, &event, name, &value.to_ne_bytes());
    }
    for (name, value) in u64s {
        put(0, &event, name, &value.to_ne_bytes());
    }
    for name in strings {
        put(0, &event, name, name.as_bytes());
    }
    let endpoint = layout(&btf(), "endpoint");
    let remote = event.members.iter().find(|(member, _)| member == "remote").unwrap().1;
    put(remote, &endpoint, "family", &10u16.to_ne_bytes());
    put(remote, &endpoint, "port", &443u16.to_ne_bytes());
    put(remote, &endpoint, "address", &[7; 16]);
    // Every member is in one of the lists above, or an endpoint.
    assert_eq!(event.members.len(), u32s.len() + u64s.len() + strings.len() + 1, "a new member wants a line here");
    let ancestor_u32s =
        [("pid", 201u32), ("ns_pid", 202), ("uid", 203), ("flags", 204), ("argv_len", 3), ("argc", 205)];
    put(event.size, &ancestor, "start_time_ns", &(7u64 << 40).to_ne_bytes());
    for (name, value) in ancestor_u32s {
        put(event.size, &ancestor, name, &value.to_ne_bytes());
    }
    put(event.size, &ancestor, "exe", b"/bin/sh");
    put(event.size, &ancestor, "argv", b"sh\0");
    assert_eq!(ancestor.members.len(), ancestor_u32s.len() + 3, "a new member wants a line here");
    record.extend(b"nc\0");

    let decoded = Event::decode(&record).unwrap();
    assert_eq!(decoded.verdict, Verdict::Killed);
    assert_eq!(decoded.hook, Hook::Tracepoint);
    assert_eq!(
        [decoded.policy, decoded.tool, decoded.identified_by, decoded.flags, decoded.pid, decoded.tid, decoded.ns_pid],
        [101, 102, 103, 104, 105, 106, 107]
    );
    assert_eq!([decoded.uid, decoded.gid, decoded.argc, decoded.place, decoded.rule], [108, 109, 110, 111, 112]);
    assert_eq!(decoded.remote, Some((([7; 16]), 443).into()));
    assert_eq!(
        [decoded.time_ns, decoded.start_time_ns, decoded.cgroup_id, decoded.leaf_cgroup_id, decoded.inode],
        [1 << 40, 2 << 40, 3 << 40, 4 << 40, 5 << 40]
    );
    assert_eq!(decoded.file_size, 6 << 40);
    assert_eq!(
        [&decoded.invoked, &decoded.tty, &decoded.filename, &decoded.exe, &decoded.cwd],
        strings.map(str::as_bytes)
    );
    assert_eq!(decoded.argv, [b"nc"]);
    let found = &decoded.lineage[0];
    assert_eq!([found.pid, found.ns_pid, found.uid, found.flags, found.argc], [201, 202, 203, 204, 205]);
    assert_eq!(found.start_time_ns, 7 << 40);
    assert_eq!((found.exe.as_slice(), found.argv.as_slice()), (&b"/bin/sh"[..], &[b"sh".to_vec()][..]));
}
