/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Every map of Portcullis, and counting what goes wrong. */
#ifndef PORTCULLIS_MAPS_H
#define PORTCULLIS_MAPS_H

/* The containers under guard. Written by the shim, one entry a container. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct container);
} containers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct container_stats);
} container_stats SEC(".maps");

/*
 * Container to what its reported processes did on the network and no record tells. An entry is made by the first of it: not a part of
 * container_stats, which other versions of Portcullis read as well.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, u64);
} activity_losses SEC(".maps");

/* Name to what it stands for. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct name_key);
	__type(value, struct identity);
} names SEC(".maps");

/*
 * Content to what it stands for. Scope 0 is written by the agent, any other by the shim of the first container of an
 * image. Not allocated in advance: it is for thousands of images, and few nodes have more than some dozens.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct fingerprint_key);
	__type(value, struct identity);
} fingerprints SEC(".maps");

/* Options of dynamic loaders that something follows. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct name_key);
	__type(value, enum loader_option);
} loader_options SEC(".maps");

/* How multi-call programs' own names begin. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PREFIXES_MAX);
	__type(key, u32);
	__type(value, struct name_prefix);
} multicall_prefixes SEC(".maps");

/* What a policy calls executables by their comm. Written by the agent. The kernel has no preallocated tries. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct comm_key);
	__type(value, u32);
} comm_patterns SEC(".maps");

/* Policy and tool to what is done. Written by the agent. Not allocated in advance: it is for hundreds of policies. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct rule_key);
	__type(value, struct ruling);
} rules SEC(".maps");

/* What policies except, and the texts that they look for. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct exception_key);
	__type(value, struct exception);
} exceptions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct pattern_key);
	__type(value, struct pattern);
} patterns SEC(".maps");

/* Events to the agent. It is pinned, and so is the reader's position: what happens without an agent waits here, thousands of events.
   All of it counts as the agent's memory. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* Which build's programs are pinned, by enum backend. The programs don't use it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, u32);
	__type(value, u64);
} build_id SEC(".maps");

#define COUNT(what)                                                         \
	do {                                                                \
		u32 zero = 0;                                               \
		struct counters *all = bpf_map_lookup_elem(&counters, &zero); \
                                                                            \
		if (all)                                                    \
			__sync_fetch_and_add(&all->what, 1);                \
	} while (0)

#endif
