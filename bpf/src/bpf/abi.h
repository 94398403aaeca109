/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the kernel programs and user space share: the only definition of it. src/abi.rs mirrors this file
 * and tests/abi.rs compares it with the object's BTF. Any change of meaning or layout raises
 * PORTCULLIS_ABI_VERSION, which also names the directory of the pins, so that programs of two versions can
 * stand side by side on a node.
 */
#ifndef PORTCULLIS_ABI_H
#define PORTCULLIS_ABI_H

/* The feature next-abi: the same under the next number, for tests of upgrades. */
#ifdef PORTCULLIS_NEXT_ABI
#define PORTCULLIS_ABI_VERSION 9
#else
#define PORTCULLIS_ABI_VERSION 8
#endif

/* Enums are members and values here: 32 bits each, on both sides. */
#define ASSERT_ENUM_IS_U32(name) _Static_assert(sizeof(enum name) == sizeof(__u32), #name)

/* Names are NUL-padded; a longer one can't be a catalogue entry. */
#define NAME_LEN 64
/* A task's comm, its NUL included: TASK_COMM_LEN. */
#define COMM_LEN 16
#define PATH_LEN 256
#define TTY_LEN 32
#define ARGV_LEN 4096
#define ANCESTORS_MAX 16
#define ANCESTOR_EXE_LEN 128
#define ANCESTOR_ARGV_LEN 256
/* A guarded cgroup is at most this deep below the hierarchy's root; what it holds may be deeper. */
#define CGROUP_DEPTH_MAX 32
/* Elements of `multicall_prefixes`. */
#define PREFIXES_MAX 4
/* What a policy may say of one tool, by place and user. */
#define DECISIONS_MAX 8
/* Of a policy: there is a bit for each in struct ruling. */
#define EXCEPTIONS_MAX 32
#define ARGUMENT_PATTERNS_MAX 16
#define EXE_PATTERNS_MAX 4
#define UID_RANGES_MAX 4
/* Of a text that is compared, as of ANCESTOR_EXE_LEN; a pattern is at least two bytes shorter. */
#define PATTERN_LEN 128
/* Tools of one execution that exceptions are looked for. */
#define EXCEPTED_MAX 2
/* Bytes of a datagram to a name server that are looked at: the question comes first. */
#define DATAGRAM_LEN 512
/* Of event.rule: what was found is no policy's business. */
#define NO_RULE 0xffffffff

enum mode {
	MODE_DETECT = 1,
	MODE_ENFORCE = 2,
};

/* Which program is responsible for a container. */
enum backend {
	BACKEND_LSM = 1,
	BACKEND_TRACEPOINT = 2,
};

enum action {
	ACTION_IGNORE = 0,
	ACTION_ALERT = 1,
	ACTION_BLOCK = 2,
};

enum verdict {
	VERDICT_DETECTED = 1,
	VERDICT_WOULD_BLOCK = 2,
	VERDICT_BLOCKED = 3,
	VERDICT_KILLED = 4,
};

/* What a name or a content stands for; one of these each. */
enum kind {
	KIND_TOOL = 1 << 0,
	/* One program that is many: argv decides which. busybox, toybox. */
	KIND_MULTICALL = 1 << 1,
	/* Dynamic loader: run as a program it runs the one that argv names. */
	KIND_LOADER = 1 << 2,
	KIND_SHELL = 1 << 3,
	KIND_INTERPRETER = 1 << 4,
};

/* Value of `names` and `fingerprints`. */
struct identity {
	/* Tool id; for the other kinds an id for people. */
	__u32 id;
	enum kind kind;
};

/* Key of `fingerprints`. */
struct fingerprint_key {
	/* See fingerprint.bpf.h. */
	__u64 fingerprint;
	/* struct container.scope of those that it holds for; 0 for all. */
	__u64 scope;
};

/* Value of `loader_options`, keyed by the option: what a dynamic loader's option is followed by. */
enum loader_option {
	OPTION_VALUE = 1,
	/* argv[0] for the program that is run. */
	OPTION_ARGV0 = 2,
};

/* An element of `multicall_prefixes`: a name that begins like this stands for the multi-call program itself. */
struct name_prefix {
	__u64 bytes[2];
	/* Which bits of them count; the first is 0 in an element that is not used. */
	__u64 mask[2];
};

/* Bits of event.identified_by. */
enum identified_by {
	BY_INVOKED_NAME = 1 << 0,
	BY_RESOLVED_NAME = 1 << 1,
	BY_FINGERPRINT = 1 << 2,
	/* argv of a multi-call program. */
	BY_APPLET = 1 << 3,
	/* argv of a dynamic loader. */
	BY_LOADER = 1 << 4,
	/* Mapped as code into a process that executed something else. */
	BY_MAPPING = 1 << 5,
	/* An internet socket as standard input or output. */
	BY_STDIO = 1 << 6,
	/* The place it was executed from. */
	BY_PLACE = 1 << 7,
	/* A socket that it opened. */
	BY_SOCKET = 1 << 8,
	/* Its comm, by one of the policy's patterns. */
	BY_PATTERN = 1 << 9,
};

/* Bits of event.place: where the executed file is. */
enum place {
	/* Everybody may write to its directory. */
	PLACE_WRITABLE_DIRECTORY = 1 << 0,
	/* In overlayfs's upper layer: not part of the image. */
	PLACE_UPPER_LAYER = 1 << 1,
	PLACE_MEMFD = 1 << 2,
	PLACE_DELETED = 1 << 3,
};

/* Where in the kernel an event was made. */
enum hook {
	HOOK_BPRM_CHECK = 1,
	HOOK_BPRM_COMMITTED = 2,
	HOOK_TRACEPOINT = 3,
	HOOK_MMAP = 4,
	HOOK_SOCKET_CREATE = 5,
	HOOK_SOCKET_CONNECT = 6,
	HOOK_TCP_CONNECT = 7,
	/* bpf(2). */
	HOOK_BPF = 8,
	/* A name on our bpffs goes, or becomes another. */
	HOOK_PIN = 9,
	HOOK_CGROUP = 10,
};

/* Bits of event.flags and, where they fit, ancestor.flags and process.flags. */
enum event_flags {
	FILENAME_TRUNCATED = 1 << 0,
	EXE_TRUNCATED = 1 << 1,
	ARGV_TRUNCATED = 1 << 2,
	CWD_TRUNCATED = 1 << 3,
	/* argv was read where the process could change it: before the exec was final, or from a program that runs. */
	ARGV_UNCONFIRMED = 1 << 4,
	LINEAGE_TRUNCATED = 1 << 5,
	/* The last ancestor's parent is outside the container and it is not the container's first process. */
	EXEC_SESSION = 1 << 6,
	/* No memory for a whole event: argv, paths beyond the names, and lineage are missing. */
	EVENT_REDUCED = 1 << 7,
};

/* Key of `names`. */
struct name_key {
	char name[NAME_LEN];
};

/*
 * Key of `comm_patterns`, a trie that answers with the longest prefix. The value is the pattern's id in `rules` and events.
 * The policy comes first, so that one policy's longer pattern never hides another's shorter one.
 */
struct comm_key {
	/* How many of the bits that follow count: the policy's, and a prefix's, or a whole name's with its NUL. */
	__u32 bits;
	__u32 policy;
	char comm[COMM_LEN];
};

/*
 * Findings that are no tool's but that rules know as if they were: FNV-1a of the id in the catalogue, as for tools.
 */
enum behaviour {
	REVERSE_SHELL = 0x52305de0,
	DROPPED_EXECUTABLE = 0xbe94b6ae,
	SHELL_SOCKET = 0x35a0d1e3,
	INTERPRETER_SOCKET = 0xa7931717,
	RAW_SOCKET = 0x60c3cc13,
	/* An exec in a locked container. No rule knows it: an operator has decided. */
	LOCKED = 0xce164093,
	/* A guarded container attacks its guard, or moves a process out of its reach. No rule knows these either. */
	GUARD_TAMPERING = 0xc750b39e,
	CGROUP_ESCAPE = 0x4b48d461,
};

/* Key of `rules`. */
struct rule_key {
	__u32 policy;
	union {
		__u32 tool;
		enum behaviour behaviour;
	};
};

/* Both belong to it. Every user: 0 and the largest number. */
struct uid_range {
	__u32 first;
	__u32 last;
};

/* What one of a policy's rules says of a tool, and of whom. */
struct decision {
	enum action action;
	/* The rule's number in its policy, from 0. */
	__u32 rule;
	/* One of these must hold; 0 when the place does not matter. */
	enum place places;
	struct uid_range uids;
};

/* Value of `rules`: the first decision that applies holds. */
struct ruling {
	__u32 count;
	/* Which of the policy's exceptions are for this tool: a bit each. */
	__u32 exceptions;
	struct decision decisions[DECISIONS_MAX];
};

/* Key of `exceptions`. */
struct exception_key {
	__u32 policy;
	__u32 number;
};

/* Bits of exception.flags. */
enum exception_flags {
	/* It is for certain arguments only, of which there may be none. */
	EXCEPTION_ARGUMENTS = 1 << 0,
	/* There may be more arguments than patterns. */
	EXCEPTION_MORE_ARGUMENTS = 1 << 1,
};

/* Value of `exceptions`: it holds if all of this does. */
struct exception {
	enum exception_flags flags;
	/* Patterns of each list in `patterns`. Without any, parents and ancestors do not matter. */
	__u32 arguments;
	__u32 parents;
	__u32 ancestors;
	/* Elements of uids; with none, the user does not matter. */
	__u32 users;
	struct uid_range uids[UID_RANGES_MAX];
};

enum pattern_list {
	PATTERNS_ARGUMENTS = 1,
	/* One of them must be that of the nearest image before this one. */
	PATTERNS_PARENTS = 2,
	/* One of them must be that of any image before this one, in the container. */
	PATTERNS_ANCESTORS = 3,
};

/* Key of `patterns`. */
struct pattern_key {
	__u32 policy;
	/* Of the exception. */
	__u32 number;
	enum pattern_list list;
	__u32 index;
};

/* Value of `patterns`: a text fits if those of its bits that are in the mask are these. */
struct pattern {
	__u64 bytes[PATTERN_LEN / 8];
	__u64 mask[PATTERN_LEN / 8];
};

/* Bits of container.flags. */
enum container_flags {
	/* Every exec in it is refused, but the container runtime's own. */
	CONTAINER_LOCKED = 1 << 0,
};

/* Value of `containers`; the key is the container's cgroup id as u64. */
struct container {
	/* The key once more, and first: what a program reads while the entry is replaced may become another container's. */
	__u64 cgroup_id;
	__u32 policy;
	enum mode mode;
	/* The container's first process, as the node sees it. */
	__u32 init_pid;
	enum backend backend;
	/* Whose fingerprints hold here besides those that hold everywhere. */
	__u64 scope;
	/* The node's own mount namespace (its inode number): what runs there is the container runtime. */
	__u32 node_mount_ns;
	/* Which of its policy's exceptions are for its image: a bit each. */
	__u32 exceptions;
	/* Written by the agent, when an operator wants it. */
	enum container_flags flags;
	/* Only in what a program has read: how many levels its cgroup is below the hierarchy's root. */
	__u32 level;
};

/* Value of `container_stats`; the key is the container's cgroup id as u64. */
struct container_stats {
	__u64 matched;
	__u64 blocked;
	__u64 killed;
	__u64 lost;
	/* Executions that an exception let pass without an event. */
	__u64 excepted;
};

/* The only value of `pin_place`: the directory of all versions' pins. */
struct pin_place {
	/* The bpffs's device, as the kernel has it: major << 20 | minor. */
	__u64 device;
	/* Its inode number. */
	__u64 directory;
};

/* The only value of `counters`: what went wrong inside the programs, node-wide. */
struct counters {
	__u64 events_lost;
	__u64 events_reduced;
	__u64 process_storage_failed;
	__u64 name_read_failed;
	__u64 argv_read_failed;
	__u64 path_read_failed;
	__u64 signal_failed;
	__u64 content_read_failed;
	__u64 scratch_failed;
	__u64 container_read_failed;
	/* Of what reported processes do on the network: no room, too much of one process, memory that was not there. */
	__u64 activities_lost;
	__u64 activities_over_budget;
	__u64 datagram_read_failed;
};

/* The other end of a socket. */
struct endpoint {
	/* AF_INET or AF_INET6; 0 when there is no such socket. */
	__u16 family;
	/* In host byte order; 0 when the socket is not connected. */
	__u16 port;
	/* IPv4 in the first four bytes. */
	__u8 address[16];
};

/* One image that led to the event's process. */
struct ancestor {
	__u64 start_time_ns;
	__u32 pid;
	__u32 ns_pid;
	__u32 uid;
	enum event_flags flags;
	/* Bytes used in argv: NUL-terminated strings. */
	__u32 argv_len;
	__u32 argc;
	char exe[ANCESTOR_EXE_LEN];
	char argv[ANCESTOR_ARGV_LEN];
};

/*
 * One record of the ring buffer `events`: this header, then `ancestors` times struct ancestor, then
 * argv_len bytes of NUL-terminated arguments.
 */
struct event {
	__u32 abi_version;
	enum verdict verdict;
	/* Nanoseconds of CLOCK_BOOTTIME. */
	__u64 time_ns;
	__u64 start_time_ns;
	/* The guarded cgroup, and the one below it that the task is in. */
	__u64 cgroup_id;
	__u64 leaf_cgroup_id;
	__u64 inode;
	__u64 file_size;
	__u32 policy;
	__u32 tool;
	enum identified_by identified_by;
	enum hook hook;
	enum event_flags flags;
	__u32 pid;
	__u32 tid;
	__u32 ns_pid;
	__u32 uid;
	__u32 gid;
	__u32 argc;
	__u32 argv_len;
	__u32 ancestors;
	enum place place;
	struct endpoint remote;
	/* Number of the policy's rule that decided, from 0; NO_RULE if none did. */
	__u32 rule;
	char invoked[NAME_LEN];
	char tty[TTY_LEN];
	char filename[PATH_LEN];
	char exe[PATH_LEN];
	char cwd[PATH_LEN];
};

/* What a process does on the network. */
enum operation {
	OPERATION_CONNECT = 1,
	/* A datagram from a socket that has no other end. */
	OPERATION_SEND = 2,
	OPERATION_BIND = 3,
	OPERATION_LISTEN = 4,
	/* A raw or packet socket is opened. */
	OPERATION_RAW_SOCKET = 5,
	/* A datagram to a name server, from a socket that is connected to it. */
	OPERATION_QUESTION = 6,
};

enum transport {
	TRANSPORT_TCP = 1,
	TRANSPORT_UDP = 2,
	TRANSPORT_OTHER = 3,
};

/* The event that a process was last reported by, itself or as an ancestor's child: as in that struct event. */
struct flagged {
	__u64 cgroup_id;
	__u64 start_time_ns;
	__u64 time_ns;
	__u32 pid;
	__u32 unused;
};

/* One record of the ring buffer `activities`: this, and then datagram_len bytes or more. */
struct activity {
	__u32 abi_version;
	enum operation operation;
	enum transport transport;
	/* The process that does it. */
	__u32 pid;
	/* Nanoseconds of CLOCK_BOOTTIME. */
	__u64 time_ns;
	struct flagged by;
	/* The other end; of a socket that is bound or listens, its own. */
	struct endpoint endpoint;
	/* Of what is sent to a name server; 0 when it is not known. */
	__u32 datagram_len;
};

ASSERT_ENUM_IS_U32(mode);
ASSERT_ENUM_IS_U32(backend);
ASSERT_ENUM_IS_U32(action);
ASSERT_ENUM_IS_U32(verdict);
ASSERT_ENUM_IS_U32(identified_by);
ASSERT_ENUM_IS_U32(kind);
ASSERT_ENUM_IS_U32(loader_option);
ASSERT_ENUM_IS_U32(behaviour);
ASSERT_ENUM_IS_U32(place);
ASSERT_ENUM_IS_U32(container_flags);
ASSERT_ENUM_IS_U32(exception_flags);
ASSERT_ENUM_IS_U32(pattern_list);
ASSERT_ENUM_IS_U32(hook);
ASSERT_ENUM_IS_U32(event_flags);
ASSERT_ENUM_IS_U32(operation);
ASSERT_ENUM_IS_U32(transport);

#endif
