/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the kernel programs and user space share: the only definition of it. src/abi.rs mirrors this file
 * and tests/abi.rs compares it with the object's BTF. Any change of meaning or layout raises
 * PORTCULLIS_ABI_VERSION, which also names the directory of the pins, so that programs of two versions can
 * stand side by side on a node.
 */
#ifndef PORTCULLIS_ABI_H
#define PORTCULLIS_ABI_H

#define PORTCULLIS_ABI_VERSION 1

/* Enums are members and values here: 32 bits each, on both sides. */
#define ASSERT_ENUM_IS_U32(name) _Static_assert(sizeof(enum name) == sizeof(__u32), #name)

/* Names are NUL-padded; a longer one can't be a catalogue entry. */
#define NAME_LEN 64
#define PATH_LEN 256
#define TTY_LEN 32
#define ARGV_LEN 4096
#define ANCESTORS_MAX 16
#define ANCESTOR_EXE_LEN 128
#define ANCESTOR_ARGV_LEN 256
/* A guarded cgroup is at most this deep below the hierarchy's root; what it holds may be deeper. */
#define CGROUP_DEPTH_MAX 32

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

/* Bits of event.identified_by. */
enum identified_by {
	BY_INVOKED_NAME = 1 << 0,
	BY_RESOLVED_NAME = 1 << 1,
};

/* Where in the kernel an event was made. */
enum hook {
	HOOK_BPRM_CHECK = 1,
	HOOK_BPRM_COMMITTED = 2,
	HOOK_TRACEPOINT = 3,
};

/* Bits of event.flags and, where they fit, ancestor.flags and process.flags. */
enum event_flags {
	FILENAME_TRUNCATED = 1 << 0,
	EXE_TRUNCATED = 1 << 1,
	ARGV_TRUNCATED = 1 << 2,
	CWD_TRUNCATED = 1 << 3,
	/* argv was read through the caller's registers before the exec was final. */
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

/* Key of `rules`; the value is an enum action. */
struct rule_key {
	__u32 policy;
	__u32 tool;
};

/* Value of `containers`; the key is the container's cgroup id as u64. */
struct container {
	__u32 policy;
	enum mode mode;
	/* The container's first process, as the node sees it. */
	__u32 init_pid;
	enum backend backend;
};

/* Value of `container_stats`; the key is the container's cgroup id as u64. */
struct container_stats {
	__u64 matched;
	__u64 blocked;
	__u64 killed;
	__u64 lost;
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
	__u32 reserved;
	char invoked[NAME_LEN];
	char tty[TTY_LEN];
	char filename[PATH_LEN];
	char exe[PATH_LEN];
	char cwd[PATH_LEN];
};

ASSERT_ENUM_IS_U32(mode);
ASSERT_ENUM_IS_U32(backend);
ASSERT_ENUM_IS_U32(action);
ASSERT_ENUM_IS_U32(verdict);
ASSERT_ENUM_IS_U32(identified_by);
ASSERT_ENUM_IS_U32(hook);
ASSERT_ENUM_IS_U32(event_flags);

#endif
