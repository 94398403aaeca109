//! The Rust mirror of `abi.h`, which is the only definition; `tests/abi.rs` compares both. Events are decoded with
//! checked lengths and tags: they hold what a container chose.

use std::net::SocketAddr;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `PORTCULLIS_ABI_VERSION`.
pub const ABI_VERSION: u32 = if cfg!(feature = "next-abi") { 9 } else { 8 };
/// From this version on, records of the ring buffers have the layout and the meaning of this one's: containers that a former
/// version's programs guard are reported on all the same. A change of them raises it to [`ABI_VERSION`].
pub const RECORDS_SINCE: u32 = 6;

/// `NAME_LEN`: bytes of a name in the tables, including at least one NUL.
pub const NAME_LEN: usize = 64;
/// `COMM_LEN`: bytes of a task's comm, including its NUL.
pub const COMM_LEN: usize = 16;
const PATH_LEN: usize = 256;
const TTY_LEN: usize = 32;
/// `ARGV_LEN`: bytes of arguments that an event holds at most.
pub const ARGV_LEN: usize = 4096;
/// `ANCESTORS_MAX`.
pub const ANCESTORS_MAX: usize = 16;
const ANCESTOR_EXE_LEN: usize = 128;
const ANCESTOR_ARGV_LEN: usize = 256;

/// `PREFIXES_MAX`: elements of `multicall_prefixes`.
pub const PREFIXES_MAX: usize = 4;

/// `DECISIONS_MAX`: what a policy may say of one tool.
pub const DECISIONS_MAX: usize = 8;
/// `EXCEPTIONS_MAX`: exceptions of a policy.
pub const EXCEPTIONS_MAX: usize = 32;
/// `ARGUMENT_PATTERNS_MAX`: arguments of an exception.
pub const ARGUMENT_PATTERNS_MAX: usize = 16;
/// `EXE_PATTERNS_MAX`: executables in one of an exception's lists.
pub const EXE_PATTERNS_MAX: usize = 4;
/// `UID_RANGES_MAX`: users of an exception.
pub const UID_RANGES_MAX: usize = 4;
/// `EXCEPTED_MAX`: tools of one execution that exceptions are looked for.
pub const EXCEPTED_MAX: usize = 2;
const PATTERN_WORDS: usize = 16;
/// `NO_RULE` of [`Event::rule`]: what was found is no policy's business.
pub const NO_RULE: u32 = u32::MAX;

/// Key of `names` and `loader_options`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameKey(pub [u8; NAME_LEN]);

impl NameKey {
    /// A catalogue name as a key; `None` if it is empty, too long, or holds a NUL or a slash. The programs cut what they
    /// look up to `NAME_LEN - 1` bytes; a key is shorter than that, so a cut name never equals one.
    pub fn new(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.contains(&0) || bytes.contains(&b'/') {
            return None;
        }
        let mut key = [0; NAME_LEN];
        key.get_mut(..NAME_LEN - 2)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self(key))
    }
}

/// What a key of `comm_patterns` holds besides the number of bits that count.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Comm {
    /// Policy id.
    pub policy: u32,
    /// The name or its beginning; the rest is 0.
    pub comm: [u8; COMM_LEN],
}

/// A policy's pattern of comm as a key of `comm_patterns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommKey {
    /// How many bits of `comm` count.
    pub bits: u32,
    /// The policy and the name, or its beginning.
    pub comm: Comm,
}

impl CommKey {
    /// A whole name, or how names begin, as a key; `None` if it is empty, too long, or holds a NUL or a slash.
    pub fn new(policy: u32, name: &str, whole: bool) -> Option<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.contains(&0) || bytes.contains(&b'/') {
            return None;
        }
        let mut comm = [0; COMM_LEN];
        comm.get_mut(..COMM_LEN - 1)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        // A name's NUL is what tells it from a beginning.
        let bytes = size_of::<u32>() + bytes.len() + usize::from(whole);
        Some(Self { bits: u32::try_from(8 * bytes).ok()?, comm: Comm { policy, comm } })
    }
}

/// Key of `rules`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// Policy id.
    pub policy: u32,
    /// Tool id.
    pub tool: u32,
}

/// User ids as the node sees them; both belong to the range.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UidRange {
    /// The smallest.
    pub first: u32,
    /// The largest.
    pub last: u32,
}

/// What one rule says of a tool.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decision {
    /// An [`Action`] as `u32`.
    pub action: u32,
    /// The rule's number in its policy, from 0.
    pub rule: u32,
    /// [`place`] bits, one of which must hold; 0 when the place does not matter.
    pub places: u32,
    /// Of whom.
    pub uids: UidRange,
}

/// Value of `rules`: the first decision that applies holds.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ruling {
    /// How many decisions there are.
    pub count: u32,
    /// Numbers of the policy's exceptions for this tool: a bit each.
    pub exceptions: u32,
    /// The decisions, in order.
    pub decisions: [Decision; DECISIONS_MAX],
}

impl Ruling {
    /// `None` if there are too many decisions.
    pub fn new(exceptions: u32, decisions: &[Decision]) -> Option<Self> {
        let mut this = Self { count: u32::try_from(decisions.len()).ok()?, exceptions, ..Self::default() };
        this.decisions.get_mut(..decisions.len())?.copy_from_slice(decisions);
        Some(this)
    }
}

/// Key of `exceptions`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExceptionKey {
    /// Policy id.
    pub policy: u32,
    /// The exception's number in its policy, from 0.
    pub number: u32,
}

/// `enum exception_flags`, bits.
pub mod exception_flags {
    /// It is for certain arguments only, of which there may be none.
    pub const ARGUMENTS: u32 = 1 << 0;
    /// There may be more arguments than patterns.
    pub const MORE_ARGUMENTS: u32 = 1 << 1;
}

/// Value of `exceptions`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exception {
    /// [`exception_flags`] bits.
    pub flags: u32,
    /// How many patterns of arguments there are, at most [`ARGUMENT_PATTERNS_MAX`].
    pub arguments: u32,
    /// How many patterns of parents, at most [`EXE_PATTERNS_MAX`]; with 0 the parent does not matter.
    pub parents: u32,
    /// The same for ancestors.
    pub ancestors: u32,
    /// How many of `uids` are used; with 0 the user does not matter.
    pub users: u32,
    /// The users.
    pub uids: [UidRange; UID_RANGES_MAX],
}

/// Key of `patterns`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PatternKey {
    /// Policy id.
    pub policy: u32,
    /// The exception's number in its policy.
    pub number: u32,
    /// A [`PatternList`] as `u32`.
    pub list: u32,
    /// The pattern's number in the list.
    pub index: u32,
}

/// Value of `patterns`: a text, or how texts begin.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    bytes: [u64; PATTERN_WORDS],
    mask: [u64; PATTERN_WORDS],
}

impl Pattern {
    /// The longest text, in bytes.
    pub const MAX: usize = 8 * PATTERN_WORDS - 2;

    /// A whole text, or how texts begin; `None` if it is too long or holds a NUL.
    pub fn new(text: &str, whole: bool) -> Option<Self> {
        if text.len() > Self::MAX || text.contains('\0') {
            return None;
        }
        let mut this = Self { bytes: [0; PATTERN_WORDS], mask: [0; PATTERN_WORDS] };
        // A whole text's NUL counts as well.
        for (place, byte) in text.bytes().chain(whole.then_some(0)).enumerate() {
            let (word, shift) = (place / 8, place % 8 * 8);
            *this.bytes.get_mut(word)? |= u64::from(byte) << shift;
            *this.mask.get_mut(word)? |= 0xff << shift;
        }
        Some(this)
    }
}

/// Value of `names` and `fingerprints`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Tool id; for other kinds an id for people.
    pub id: u32,
    /// A [`Kind`] as `u32`.
    pub kind: u32,
}

/// Key of `fingerprints`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FingerprintKey {
    /// See [`crate::fingerprint`].
    pub fingerprint: u64,
    /// [`Container::scope`] of those that it holds for; 0 for all.
    pub scope: u64,
}

/// An element of `multicall_prefixes`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamePrefix {
    bytes: [u64; 2],
    mask: [u64; 2],
}

impl NamePrefix {
    /// An element that is not used.
    pub const NONE: Self = Self { bytes: [0; 2], mask: [0; 2] };
    /// The longest prefix, in bytes.
    pub const MAX: usize = 16;

    /// `None` if the prefix is empty or too long.
    pub fn new(prefix: &str) -> Option<Self> {
        let mut this = Self::NONE;
        if prefix.is_empty() || prefix.len() > Self::MAX {
            return None;
        }
        for (place, byte) in prefix.bytes().enumerate() {
            let (word, shift) = (place / 8, place % 8 * 8);
            // As the kernel reads the name: the first byte is the lowest on the machines that we build for.
            *this.bytes.get_mut(word)? |= u64::from(byte) << shift;
            *this.mask.get_mut(word)? |= 0xff << shift;
        }
        Some(this)
    }
}

/// Value of `containers`, keyed by cgroup id.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Container {
    /// The key once more.
    pub cgroup_id: u64,
    /// Policy id.
    pub policy: u32,
    /// A [`Mode`] as `u32`.
    pub mode: u32,
    /// Pid of the container's first process, as the node sees it.
    pub init_pid: u32,
    /// A [`Backend`](crate::Backend) as `u32`.
    pub backend: u32,
    /// Whose fingerprints hold here besides those that hold everywhere; 0 for none.
    pub scope: u64,
    /// Inode number of the node's own mount namespace: what runs there is the container runtime.
    pub node_mount_ns: u32,
    /// Which of its policy's exceptions are for its image: a bit each.
    pub exceptions: u32,
    /// [`container_flags`] bits.
    pub flags: u32,
    /// For the programs; 0 in the map.
    pub level: u32,
}

/// `enum container_flags`, bits.
pub mod container_flags {
    /// Every exec in it is refused, but the container runtime's own.
    pub const LOCKED: u32 = 1 << 0;
}

/// Value of `container_stats`, keyed by cgroup id.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// Executions that matched a rule.
    pub matched: u64,
    /// Refused with EPERM.
    pub blocked: u64,
    /// Ended by SIGKILL.
    pub killed: u64,
    /// Events that did not fit into the ring buffer.
    pub lost: u64,
    /// Executions that an exception let pass without an event.
    pub excepted: u64,
}

// SAFETY: these are repr(C) structs of integers or bytes without padding (tests/abi.rs checks offsets and sizes
// against the kernel object's BTF), so every bit pattern is valid and no uninitialised byte is read.
unsafe impl aya::Pod for NameKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Comm {}
// SAFETY: as above.
unsafe impl aya::Pod for Identity {}
// SAFETY: as above.
unsafe impl aya::Pod for FingerprintKey {}
// SAFETY: as above.
unsafe impl aya::Pod for NamePrefix {}
// SAFETY: as above.
unsafe impl aya::Pod for RuleKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Ruling {}
// SAFETY: as above.
unsafe impl aya::Pod for ExceptionKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Exception {}
// SAFETY: as above.
unsafe impl aya::Pod for PatternKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Pattern {}
// SAFETY: as above.
unsafe impl aya::Pod for Container {}
// SAFETY: as above.
unsafe impl aya::Pod for ContainerStats {}
// SAFETY: as above.
unsafe impl aya::Pod for PinPlace {}

/// An integer from the kernel side that is none of the enum's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{value} is no {name}")]
pub struct UnknownTag {
    /// The enum.
    pub name: &'static str,
    /// The integer.
    pub value: u32,
}

macro_rules! abi_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl TryFrom<u32> for $name {
            type Error = UnknownTag;
            fn try_from(value: u32) -> Result<Self, UnknownTag> {
                match value {
                    $($value => Ok(Self::$variant),)*
                    _ => Err(UnknownTag { name: stringify!($name), value }),
                }
            }
        }
    };
}

/// Value of `pin_place`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PinPlace {
    /// The bpffs's device as the kernel has it: major << 20 | minor.
    pub device: u64,
    /// Inode number of the directory of all versions' pins.
    pub directory: u64,
}

abi_enum! {
    /// `enum mode`.
    Mode {
        /// Report.
        Detect = 1,
        /// Report and stop.
        Enforce = 2,
    }
}
abi_enum! {
    /// `enum action`: what a rule asks for.
    Action {
        /// Nothing.
        Ignore = 0,
        /// A signal.
        Alert = 1,
        /// A signal, and the execution stopped in enforce mode.
        Block = 2,
    }
}
abi_enum! {
    /// `enum verdict`: what was done.
    Verdict {
        /// Only seen.
        Detected = 1,
        /// Seen in detect mode by a rule that says block.
        WouldBlock = 2,
        /// EPERM.
        Blocked = 3,
        /// SIGKILL before the first user instruction.
        Killed = 4,
    }
}
abi_enum! {
    /// `enum hook`: where the event was made.
    Hook {
        /// `lsm_cgroup/bprm_check_security`.
        BprmCheck = 1,
        /// `lsm_cgroup/bprm_committed_creds`.
        BprmCommitted = 2,
        /// `tp_btf/sched_process_exec`.
        Tracepoint = 3,
        /// `lsm_cgroup/mmap_file`.
        Mmap = 4,
        /// `lsm_cgroup/socket_create`.
        SocketCreate = 5,
        /// `lsm_cgroup/socket_connect`.
        SocketConnect = 6,
        /// `tp_btf/inet_sock_set_state`.
        TcpConnect = 7,
        /// `lsm/bpf` and `lsm/bpf_map`.
        Bpf = 8,
        /// `lsm/inode_unlink`, `lsm/inode_rmdir`, `lsm/inode_rename`.
        Pin = 9,
        /// `fentry/cgroup_attach_task`.
        Cgroup = 10,
    }
}
abi_enum! {
    /// `enum kind`: what a name or a content stands for.
    Kind {
        /// A tool.
        Tool = 1,
        /// One program that is many: argv decides which.
        Multicall = 2,
        /// Dynamic loader.
        Loader = 4,
        /// Shell.
        Shell = 8,
        /// Interpreter of another language.
        Interpreter = 16,
    }
}
abi_enum! {
    /// `enum loader_option`: what a dynamic loader's option is followed by.
    LoaderOption {
        /// A value that means nothing here.
        Value = 1,
        /// argv[0] for the program that is run.
        Argv0 = 2,
    }
}
abi_enum! {
    /// `enum pattern_list`: what an exception's pattern is compared with.
    PatternList {
        /// The argument of the same number.
        Arguments = 1,
        /// The executable of the nearest image before this one.
        Parents = 2,
        /// The executable of any image before this one.
        Ancestors = 3,
    }
}
abi_enum! {
    /// `enum behaviour`: findings that are no tool's.
    Behaviour {
        /// A shell or interpreter with an internet socket as standard input or output.
        ReverseShell = 0x5230_5de0,
        /// An executable that is not part of the image and no known tool.
        DroppedExecutable = 0xbe94_b6ae,
        /// A shell that connects an internet socket.
        ShellSocket = 0x35a0_d1e3,
        /// An interpreter that connects an internet socket.
        InterpreterSocket = 0xa793_1717,
        /// A raw or packet socket opened by anything.
        RawSocket = 0x60c3_cc13,
        /// An exec in a locked container.
        Locked = 0xce16_4093,
        /// A guarded container attacks its guard.
        GuardTampering = 0xc750_b39e,
        /// A guarded container moves a process out of its cgroup.
        CgroupEscape = 0x4b48_d461,
    }
}

abi_enum! {
    /// `enum operation`: what a process does on the network.
    Operation {
        /// It begins a connection, or gives a datagram socket its other end.
        Connect = 1,
        /// It sends a datagram from a socket that has no other end.
        Send = 2,
        /// It gives a socket its own address.
        Bind = 3,
        /// It waits for connections.
        Listen = 4,
        /// It opens a raw or packet socket.
        RawSocket = 5,
        /// It sends a datagram to a name server that its socket is connected to.
        Question = 6,
    }
}
abi_enum! {
    /// `enum transport`.
    Transport {
        /// TCP, multipath or not.
        Tcp = 1,
        /// UDP.
        Udp = 2,
        /// Every other protocol.
        Other = 3,
    }
}

/// `enum identified_by`, bits.
pub mod identified_by {
    /// The last component of the path given to execve(2).
    pub const INVOKED_NAME: u32 = 1 << 0;
    /// The name of the file it led to.
    pub const RESOLVED_NAME: u32 = 1 << 1;
    /// The file's content.
    pub const FINGERPRINT: u32 = 1 << 2;
    /// argv of a multi-call program.
    pub const APPLET: u32 = 1 << 3;
    /// argv of a dynamic loader.
    pub const LOADER: u32 = 1 << 4;
    /// Mapped as code into a process that executed something else.
    pub const MAPPING: u32 = 1 << 5;
    /// An internet socket as standard input or output.
    pub const STDIO: u32 = 1 << 6;
    /// The place it was executed from.
    pub const PLACE: u32 = 1 << 7;
    /// A socket that it opened.
    pub const SOCKET: u32 = 1 << 8;
    /// Its comm, by one of the policy's patterns.
    pub const PATTERN: u32 = 1 << 9;
}

/// `enum place`, bits: where the executed file is.
pub mod place {
    /// Everybody may write to its directory.
    pub const WRITABLE_DIRECTORY: u32 = 1 << 0;
    /// In overlayfs's upper layer: not part of the image.
    pub const UPPER_LAYER: u32 = 1 << 1;
    /// In no directory at all, but in memory.
    pub const MEMFD: u32 = 1 << 2;
    /// No longer in its directory.
    pub const DELETED: u32 = 1 << 3;
}

/// `enum event_flags`, bits.
pub mod flags {
    /// `filename` is only the beginning.
    pub const FILENAME_TRUNCATED: u32 = 1 << 0;
    /// `exe` is only the end.
    pub const EXE_TRUNCATED: u32 = 1 << 1;
    /// `argv` is only the beginning.
    pub const ARGV_TRUNCATED: u32 = 1 << 2;
    /// `cwd` is only the end.
    pub const CWD_TRUNCATED: u32 = 1 << 3;
    /// `argv` was read where the process could change it: before the exec was final, or from a program that runs.
    pub const ARGV_UNCONFIRMED: u32 = 1 << 4;
    /// There are more ancestors.
    pub const LINEAGE_TRUNCATED: u32 = 1 << 5;
    /// The process descends from one that was put into the container from outside.
    pub const EXEC_SESSION: u32 = 1 << 6;
    /// No memory for the whole event.
    pub const EVENT_REDUCED: u32 = 1 << 7;
}

/// Members of `struct counters`, each a `u64`, in order.
pub const COUNTERS: [&str; 13] = [
    "events_lost",
    "events_reduced",
    "process_storage_failed",
    "name_read_failed",
    "argv_read_failed",
    "path_read_failed",
    "signal_failed",
    "content_read_failed",
    "scratch_failed",
    "container_read_failed",
    "activities_lost",
    "activities_over_budget",
    "datagram_read_failed",
];

/// Bytes of `struct ancestor`.
pub const ANCESTOR_SIZE: usize = 8 + 6 * 4 + ANCESTOR_EXE_LEN + ANCESTOR_ARGV_LEN;
/// Bytes of `struct event`.
pub const EVENT_SIZE: usize = 2 * 4 + 6 * 8 + 14 * 4 + 20 + 4 + NAME_LEN + TTY_LEN + 3 * PATH_LEN;

/// One execution that matched a rule. Byte strings are as the kernel had them, without the terminating NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What was done.
    pub verdict: Verdict,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// When the process began, nanoseconds of `CLOCK_BOOTTIME`.
    pub start_time_ns: u64,
    /// The guarded cgroup.
    pub cgroup_id: u64,
    /// The cgroup that the task is in: the same, or one below.
    pub leaf_cgroup_id: u64,
    /// Inode number of the executed file.
    pub inode: u64,
    /// Its size in bytes.
    pub file_size: u64,
    /// Policy id.
    pub policy: u32,
    /// Tool id.
    pub tool: u32,
    /// [`identified_by`] bits.
    pub identified_by: u32,
    /// Where the event was made.
    pub hook: Hook,
    /// [`flags`] bits.
    pub flags: u32,
    /// Process id as the node sees it.
    pub pid: u32,
    /// Thread id as the node sees it.
    pub tid: u32,
    /// Process id in its own pid namespace.
    pub ns_pid: u32,
    /// Real user id, in the node's user namespace.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Number of arguments, recorded or not.
    pub argc: u32,
    /// [`place`] bits.
    pub place: u32,
    /// Number of the policy's rule that decided, from 0.
    pub rule: u32,
    /// The other end of the socket, for a finding about one.
    pub remote: Option<SocketAddr>,
    /// Last component of `filename`.
    pub invoked: Vec<u8>,
    /// Controlling terminal.
    pub tty: Vec<u8>,
    /// The path given to execve(2).
    pub filename: Vec<u8>,
    /// The file it led to, as seen from the container's root.
    pub exe: Vec<u8>,
    /// Working directory, as seen from the container's root.
    pub cwd: Vec<u8>,
    /// Arguments.
    pub argv: Vec<Vec<u8>>,
    /// Nearest first.
    pub lineage: Vec<Ancestor>,
}

/// One image that led to an event's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// When the process began, nanoseconds of `CLOCK_BOOTTIME`.
    pub start_time_ns: u64,
    /// Process id as the node sees it.
    pub pid: u32,
    /// Process id in its own pid namespace.
    pub ns_pid: u32,
    /// Real user id, in the node's user namespace.
    pub uid: u32,
    /// [`flags`] bits.
    pub flags: u32,
    /// Number of arguments, recorded or not.
    pub argc: u32,
    /// The executed file.
    pub exe: Vec<u8>,
    /// Arguments; none when the image was started before the guard.
    pub argv: Vec<Vec<u8>>,
}

/// `DATAGRAM_LEN`: bytes of a datagram that are looked at.
pub const DATAGRAM_LEN: usize = 512;
/// Bytes of `struct activity`.
pub const ACTIVITY_SIZE: usize = 4 * 4 + 8 + (3 * 8 + 2 * 4) + 20 + 4;

/// `struct flagged`: which event a process was last reported by. Each member is that event's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flagged {
    /// The guarded cgroup.
    pub cgroup_id: u64,
    /// When the process began, nanoseconds of `CLOCK_BOOTTIME`.
    pub start_time_ns: u64,
    /// When the event was made, nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// Process id as the node sees it.
    pub pid: u32,
}

/// What a reported process, or a descendant of it, did on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// What it did.
    pub operation: Operation,
    /// By which protocol.
    pub transport: Transport,
    /// The process that did it, as the node sees it.
    pub pid: u32,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// The event that it belongs to.
    pub by: Flagged,
    /// The other end; of a socket that is bound or listens, its own.
    pub endpoint: Option<SocketAddr>,
    /// The beginning of what was sent to a name server; empty when it is not known.
    pub datagram: Vec<u8>,
}

impl Activity {
    /// Reads one record of the ring buffer `activities`.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { rest: record, len: record.len() };
        reader.version()?;
        let operation = reader.u32()?.try_into()?;
        let transport = reader.u32()?.try_into()?;
        let (pid, time_ns) = (reader.u32()?, reader.u64()?);
        let (cgroup_id, start_time_ns) = (reader.u64()?, reader.u64()?);
        let by = Flagged { cgroup_id, start_time_ns, time_ns: reader.u64()?, pid: reader.u32()? };
        let _unused = reader.u32()?;
        let endpoint = reader.endpoint()?;
        let len = reader.u32()?;
        let len = usize::try_from(len).ok().filter(|len| *len <= DATAGRAM_LEN);
        let datagram = reader.bytes(len.ok_or(DecodeError::Short { len: record.len() })?)?.to_vec();
        Ok(Self { operation, transport, pid, time_ns, by, endpoint, datagram })
    }
}

/// Why bytes from the ring buffer are no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record ends too early.
    #[error("event record of {len} bytes is too short")]
    Short {
        /// Its length.
        len: usize,
    },
    /// Written by programs of another version.
    #[error("event of ABI version {found}, expected {RECORDS_SINCE} to {ABI_VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// More ancestors or argument bytes than there can be.
    #[error("event claims {ancestors} ancestors and {argv_len} bytes of arguments")]
    Bounds {
        /// Number of ancestors claimed.
        ancestors: u32,
        /// Bytes of arguments claimed.
        argv_len: u32,
    },
    /// An unknown verdict or hook.
    #[error(transparent)]
    Tag(#[from] UnknownTag),
}

/// Reads fixed-width fields one after the other.
struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(DecodeError::Short { len: self.len })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.bytes(N)?.try_into().map_err(|_| DecodeError::Short { len: self.len })
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The number that each record begins with.
    fn version(&mut self) -> Result<(), DecodeError> {
        let found = self.u32()?;
        if (RECORDS_SINCE..=ABI_VERSION).contains(&found) { Ok(()) } else { Err(DecodeError::Version { found }) }
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// `struct endpoint`.
    fn endpoint(&mut self) -> Result<Option<SocketAddr>, DecodeError> {
        let (family, port) = (self.u16()?, self.u16()?);
        let address: [u8; 16] = self.array()?;
        Ok(match (family, address) {
            (AF_INET, [a, b, c, d, ..]) => Some(SocketAddr::from(([a, b, c, d], port))),
            (AF_INET6, _) => Some(SocketAddr::from((address, port))),
            _ => None,
        })
    }

    /// A NUL-padded string.
    fn string(&mut self, n: usize) -> Result<Vec<u8>, DecodeError> {
        let field = self.bytes(n)?;
        Ok(field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
    }
}

/// NUL-terminated strings one after the other; a last one without NUL was cut.
fn split_argv(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut argv: Vec<Vec<u8>> = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    if bytes.is_empty() || bytes.ends_with(&[0]) {
        argv.pop();
    }
    argv
}

impl Ancestor {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let start_time_ns = reader.u64()?;
        let [pid, ns_pid, uid, flags, argv_len, argc] =
            [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?];
        let exe = reader.string(ANCESTOR_EXE_LEN)?;
        let argv = reader.bytes(ANCESTOR_ARGV_LEN)?;
        let argv = usize::try_from(argv_len)
            .ok()
            .and_then(|len| argv.get(..len))
            .ok_or(DecodeError::Bounds { ancestors: 1, argv_len })?;
        Ok(Self { start_time_ns, pid, ns_pid, uid, flags, argc, exe, argv: split_argv(argv) })
    }
}

impl Event {
    /// Decodes one record of the ring buffer.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { rest: record, len: record.len() };
        reader.version()?;
        let verdict = Verdict::try_from(reader.u32()?)?;
        let [time_ns, start_time_ns, cgroup_id, leaf_cgroup_id, inode, file_size] =
            [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        let [policy, tool, identified_by] = [reader.u32()?, reader.u32()?, reader.u32()?];
        let hook = Hook::try_from(reader.u32()?)?;
        let [flags, pid, tid, ns_pid, uid, gid] =
            [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?];
        let [argc, argv_len, ancestors, place] = [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?];
        let remote = reader.endpoint()?;
        let rule = reader.u32()?;
        let invoked = reader.string(NAME_LEN)?;
        let tty = reader.string(TTY_LEN)?;
        let [filename, exe, cwd] = [reader.string(PATH_LEN)?, reader.string(PATH_LEN)?, reader.string(PATH_LEN)?];
        let bounds = DecodeError::Bounds { ancestors, argv_len };
        let (Ok(ancestor_count), Ok(argv_bytes)) = (usize::try_from(ancestors), usize::try_from(argv_len)) else {
            return Err(bounds);
        };
        if ancestor_count > ANCESTORS_MAX || argv_bytes > ARGV_LEN {
            return Err(bounds);
        }
        let lineage = (0..ancestor_count).map(|_| Ancestor::decode(&mut reader)).collect::<Result<_, _>>()?;
        let argv = split_argv(reader.bytes(argv_bytes)?);
        Ok(Self {
            verdict,
            time_ns,
            start_time_ns,
            cgroup_id,
            leaf_cgroup_id,
            inode,
            file_size,
            policy,
            tool,
            identified_by,
            hook,
            flags,
            pid,
            tid,
            ns_pid,
            uid,
            gid,
            argc,
            place,
            rule,
            remote,
            invoked,
            tty,
            filename,
            exe,
            cwd,
            argv,
            lineage,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as the kernel would write it.
    fn record(ancestors: u32, argv: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(ABI_VERSION.to_ne_bytes());
        out.extend(3u32.to_ne_bytes());
        for value in [10u64, 5, 77, 78, 1234, 99] {
            out.extend(value.to_ne_bytes());
        }
        let argv_len = u32::try_from(argv.len()).unwrap();
        for value in
            [1u32, 2, identified_by::INVOKED_NAME, 1, 0, 100, 101, 7, 0, 0, 2, argv_len, ancestors, place::MEMFD]
        {
            out.extend(value.to_ne_bytes());
        }
        out.extend([AF_INET.to_ne_bytes(), 4444u16.to_ne_bytes()].concat());
        out.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend(6u32.to_ne_bytes());
        for (text, len) in [("nc", NAME_LEN), ("", TTY_LEN), ("/bin/nc", 256), ("/usr/bin/nc.openbsd", 256), ("/", 256)]
        {
            let mut field = text.as_bytes().to_vec();
            field.resize(len, 0);
            out.extend(field);
        }
        assert_eq!(out.len(), EVENT_SIZE);
        for _ in 0..ancestors {
            let start = out.len();
            out.extend(4u64.to_ne_bytes());
            for value in [99u32, 6, 0, 0, 8, 2] {
                out.extend(value.to_ne_bytes());
            }
            let mut exe = b"/bin/sh".to_vec();
            exe.resize(ANCESTOR_EXE_LEN, 0);
            out.extend(exe);
            let mut ancestor_argv = b"sh\0-c\0x\0".to_vec();
            ancestor_argv.resize(ANCESTOR_ARGV_LEN, 0);
            out.extend(ancestor_argv);
            assert_eq!(out.len() - start, ANCESTOR_SIZE);
        }
        out.extend(argv);
        out
    }

    #[test]
    fn decodes_what_the_kernel_writes() {
        let event = Event::decode(&record(2, b"nc\0\0-l\0")).unwrap();
        assert_eq!(event.verdict, Verdict::Blocked);
        assert_eq!(event.invoked, b"nc");
        assert_eq!(event.exe, b"/usr/bin/nc.openbsd");
        assert_eq!(event.argv, [&b"nc"[..], b"", b"-l"]);
        assert_eq!(event.remote, Some("10.0.0.1:4444".parse().unwrap()));
        assert_eq!((event.place, event.rule), (place::MEMFD, 6));
        assert_eq!(event.lineage.len(), 2);
        assert_eq!(event.lineage[0].argv, [&b"sh"[..], b"-c", b"x"]);
        // Cut in the middle of an argument.
        assert_eq!(Event::decode(&record(0, b"nc\0-lv")).unwrap().argv, [&b"nc"[..], b"-lv"]);
        assert!(Event::decode(&record(0, b"")).unwrap().argv.is_empty());
    }

    #[test]
    fn refuses_every_shortened_record() {
        let whole = record(1, b"nc\0");
        for len in 0..whole.len() {
            assert!(matches!(Event::decode(&whole[..len]), Err(DecodeError::Short { .. })), "{len}");
        }
    }

    #[test]
    fn refuses_senseless_tags_and_lengths() {
        let mut verdict = record(0, b"");
        verdict[4..8].copy_from_slice(&9u32.to_ne_bytes());
        assert!(matches!(Event::decode(&verdict), Err(DecodeError::Tag(UnknownTag { name: "Verdict", value: 9 }))));
        let mut version = record(0, b"");
        version[..4].copy_from_slice(&(ABI_VERSION + 1).to_ne_bytes());
        assert_eq!(Event::decode(&version), Err(DecodeError::Version { found: ABI_VERSION + 1 }));
        let ancestors = EVENT_SIZE - 3 * PATH_LEN - TTY_LEN - NAME_LEN - 4 - 20 - 8;
        let mut bounds = record(0, b"");
        bounds[ancestors..ancestors + 4].copy_from_slice(&1_000_000u32.to_ne_bytes());
        assert!(matches!(Event::decode(&bounds), Err(DecodeError::Bounds { .. })));
    }

    #[test]
    fn an_activity_is_whole_or_none() {
        let mut record = [ABI_VERSION, Operation::Send as u32, Transport::Udp as u32, 7].map(u32::to_ne_bytes).concat();
        record.extend([1u64, 2, 3, 4].map(u64::to_ne_bytes).concat());
        record.extend([5u32, 0].map(u32::to_ne_bytes).concat());
        record.extend([AF_INET, 53].map(u16::to_ne_bytes).concat());
        record.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        record.extend(3u32.to_ne_bytes());
        assert_eq!(record.len(), ACTIVITY_SIZE);
        record.extend(b"abc and what is left of the room");
        let activity = Activity::decode(&record).unwrap();
        assert_eq!((activity.operation, activity.transport, activity.pid), (Operation::Send, Transport::Udp, 7));
        assert_eq!(activity.by, Flagged { cgroup_id: 2, start_time_ns: 3, time_ns: 4, pid: 5 });
        assert_eq!((activity.endpoint, activity.datagram.as_slice()), ("10.0.0.1:53".parse().ok(), &b"abc"[..]));
        for len in 0..ACTIVITY_SIZE + 3 {
            assert!(Activity::decode(&record[..len]).is_err(), "{len}");
        }
        record[ACTIVITY_SIZE - 4..ACTIVITY_SIZE].copy_from_slice(&513u32.to_ne_bytes());
        record.resize(2 * ACTIVITY_SIZE + DATAGRAM_LEN, 0);
        assert!(Activity::decode(&record).is_err(), "more than the kernel can have written");
    }

    #[test]
    fn patterns_of_comm_count_the_bits_that_matter() {
        let bits = |name: &str, whole| CommKey::new(7, name, whole).map(|key| key.bits);
        assert_eq!((bits("nc", true), bits("nc", false)), (Some(8 * (4 + 3)), Some(8 * (4 + 2))));
        assert_eq!(bits(&"n".repeat(COMM_LEN - 1), true), Some(8 * (4 + 16)));
        assert_eq!(
            CommKey::new(7, "nc", true).unwrap().comm,
            Comm { policy: 7, comm: *b"nc\0\0\0\0\0\0\0\0\0\0\0\0\0\0" }
        );
        for bad in ["", "a/b", "a\0b", &"n".repeat(COMM_LEN)] {
            assert!(CommKey::new(7, bad, true).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn patterns_hold_a_text_and_its_end_or_only_how_it_begins() {
        let whole = Pattern::new("ab", true).unwrap();
        assert_eq!((whole.bytes[0], whole.mask[0], whole.mask[1]), (0x6261, 0xff_ffff, 0));
        let beginning = Pattern::new("ab", false).unwrap();
        assert_eq!((beginning.bytes[0], beginning.mask[0]), (0x6261, 0xffff));
        assert_eq!(Pattern::new("", true).unwrap().mask[0], 0xff, "the empty text");
        assert_eq!(Pattern::new("", false).unwrap().mask, [0; PATTERN_WORDS], "any text");
        // The last byte of what is compared is the reader's own.
        assert_eq!(Pattern::new(&"n".repeat(Pattern::MAX), true).unwrap().mask[PATTERN_WORDS - 1], u64::MAX >> 8);
        assert!(Pattern::new(&"n".repeat(Pattern::MAX + 1), true).is_none() && Pattern::new("a\0", true).is_none());
    }

    #[test]
    fn names_become_keys_only_where_they_fit() {
        assert!(NameKey::new("nc").is_some());
        assert!(NameKey::new(&"n".repeat(NAME_LEN - 2)).is_some());
        for bad in ["", "a/b", "a\0b", &"n".repeat(NAME_LEN - 1)] {
            assert!(NameKey::new(bad).is_none(), "{bad:?}");
        }
    }
}
