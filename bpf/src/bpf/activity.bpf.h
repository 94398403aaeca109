/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What processes do on the network after they were reported: so that their signals can tell it.
 *
 * A mark on the process says which event was the last about it or about an ancestor of it. All others have none, and pay for
 * one look. The records have a ring buffer of their own: a port scan delays and displaces no event.
 */
#ifndef PORTCULLIS_ACTIVITY_H
#define PORTCULLIS_ACTIVITY_H

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262
#define DNS_PORT 53

/* Records that one process may send; what is more is only counted. */
#define BUDGET 4096

/* On a process's leader. */
struct mark {
	struct flagged by;
	enum backend backend;
	u32 sent;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

/* Pinned like `events`, and for the same reason. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} activities SEC(".maps");

/* The current process goes on, and this event is about it. */
static __always_inline void mark_process(const struct event *event, enum backend backend)
{
	struct task_struct *leader = bpf_get_current_task_btf()->group_leader;
	struct mark *mark = bpf_task_storage_get(&marks, leader, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!mark) {
		COUNT(process_storage_failed);
		return;
	}
	mark->by.cgroup_id = event->cgroup_id;
	mark->by.start_time_ns = event->start_time_ns;
	mark->by.time_ns = event->time_ns;
	mark->by.pid = event->pid;
	mark->backend = backend;
	mark->sent = 0;
}

/* A child is its parent's doing, until there is an event about itself. */
static __always_inline void hand_on_mark(struct task_struct *parent, struct task_struct *child)
{
	struct mark *mark;

	/* A thread shares its leader's. */
	if (child->pid != child->tgid)
		return;
	mark = bpf_task_storage_get(&marks, parent->group_leader, NULL, 0);
	if (mark && !bpf_task_storage_get(&marks, child, mark, BPF_LOCAL_STORAGE_GET_F_CREATE))
		COUNT(process_storage_failed);
}

/* The current process's mark, if what it does is this backend's to tell. */
static __always_inline struct mark *current_mark(enum backend backend)
{
	struct mark *mark = bpf_task_storage_get(&marks, bpf_get_current_task_btf()->group_leader, NULL, 0);

	return mark && mark->backend == backend ? mark : NULL;
}

/* No record tells an operation. Not inline, for the stack's sake. */
__attribute__((noinline)) int lose_activity(u64 cgroup_id)
{
	u64 none = 0;
	u64 *losses = bpf_map_lookup_elem(&activity_losses, &cgroup_id);

	if (!losses) {
		/* A process that has left its container may outlive it. */
		if (!bpf_map_lookup_elem(&container_stats, &cgroup_id))
			return 0;
		/* Another CPU may be first. */
		bpf_map_update_elem(&activity_losses, &cgroup_id, &none, BPF_NOEXIST);
		losses = bpf_map_lookup_elem(&activity_losses, &cgroup_id);
	}
	if (losses)
		__sync_fetch_and_add(losses, 1);
	return 0;
}

static __always_inline bool may_send(struct mark *mark)
{
	if (mark->sent >= BUDGET) {
		COUNT(activities_over_budget);
		lose_activity(mark->by.cgroup_id);
		return false;
	}
	mark->sent++;
	return true;
}

static __always_inline enum transport transport_of(u64 sk)
{
	switch (BPF_CORE_READ((struct sock *)sk, sk_protocol)) {
	case IPPROTO_TCP:
	case IPPROTO_MPTCP:
		return TRANSPORT_TCP;
	case IPPROTO_UDP:
		return TRANSPORT_UDP;
	default:
		return TRANSPORT_OTHER;
	}
}

/* Not inline, so that BTF knows the record. */
static __attribute__((noinline)) void fill_activity(struct activity *activity, const struct mark *mark,
						    enum operation operation, u64 sk, const struct endpoint *endpoint)
{
	activity->abi_version = PORTCULLIS_ABI_VERSION;
	activity->operation = operation;
	/* Before a socket is made there is none to look at. */
	activity->transport = sk ? transport_of(sk) : TRANSPORT_OTHER;
	activity->pid = bpf_get_current_pid_tgid() >> 32;
	activity->time_ns = bpf_ktime_get_boot_ns();
	activity->by = mark->by;
	activity->endpoint = *endpoint;
	activity->datagram_len = 0;
}

/*
 * Tells an operation of the current process if it is marked. `sk`: its struct sock, or 0. Not inline, for the stack's and
 * the verifier's sake.
 */
__attribute__((noinline)) int tell(u32 backend, u32 operation, u64 sk, const struct endpoint *endpoint)
{
	struct mark *mark = current_mark(backend);
	struct activity *activity;

	if (!mark || !endpoint || !may_send(mark))
		return 0;
	activity = bpf_ringbuf_reserve(&activities, sizeof(*activity), 0);
	if (!activity) {
		COUNT(activities_lost);
		lose_activity(mark->by.cgroup_id);
		return 0;
	}
	fill_activity(activity, mark, operation, sk, endpoint);
	bpf_ringbuf_submit(activity, 0);
	return 0;
}

/* Where the first piece of what is sent lies in the process's memory; 0 when it is the kernel's own. */
static __always_inline u64 first_piece(const struct msghdr *message, u64 *len)
{
	const struct iov_iter *iter = __builtin_preserve_access_index(&message->msg_iter);
	u8 type = BPF_CORE_READ(iter, iter_type);
	const struct iovec *pieces;

	if (bpf_core_enum_value_exists(enum iter_type, ITER_UBUF) &&
	    type == bpf_core_enum_value(enum iter_type, ITER_UBUF)) {
		*len = BPF_CORE_READ(iter, count);
		return (u64)BPF_CORE_READ(iter, ubuf);
	}
	if (type != bpf_core_enum_value(enum iter_type, ITER_IOVEC))
		return 0;
	if (bpf_core_field_exists(iter->__iov))
		pieces = BPF_CORE_READ(iter, __iov);
	else
		pieces = BPF_CORE_READ((const struct iov_iter___6_3 *)iter, iov);
	*len = BPF_CORE_READ(pieces, iov_len);
	return (u64)BPF_CORE_READ(pieces, iov_base);
}

struct question {
	struct activity activity;
	u8 datagram[DATAGRAM_LEN];
};

/* The same for a datagram to a name server, with its beginning. */
__attribute__((noinline)) int tell_question(u32 operation, u64 sk, u64 message, const struct endpoint *endpoint)
{
	struct mark *mark = current_mark(BACKEND_LSM);
	struct question *question;
	u64 len = 0;
	u64 from;

	if (!mark || !endpoint || !may_send(mark))
		return 0;
	question = bpf_ringbuf_reserve(&activities, sizeof(*question), 0);
	if (!question) {
		COUNT(activities_lost);
		lose_activity(mark->by.cgroup_id);
		return 0;
	}
	fill_activity(&question->activity, mark, operation, sk, endpoint);
	from = first_piece((const struct msghdr *)message, &len);
	if (len > DATAGRAM_LEN)
		len = DATAGRAM_LEN;
	/* It fails where that memory is not there at the moment: nobody may sleep here until it is. */
	if (from && bpf_probe_read_user(question->datagram, len, (void *)from) == 0)
		question->activity.datagram_len = len;
	else if (from)
		COUNT(datagram_read_failed);
	bpf_ringbuf_submit(question, 0);
	return 0;
}

#endif
