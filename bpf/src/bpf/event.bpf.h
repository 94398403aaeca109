/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Building one event and putting it into the ring buffer.
 *
 * An event is up to 15 KiB and its size varies, so it is put together in a slot of `slots` and then copied into the ring
 * buffer at its true size. A slot is claimed, not per CPU: a program may be preempted by another task that executes on
 * the same CPU. There is a fixed number of slots whatever containers do; when none is free, or the ring is full of large
 * ones, a reduced event without argv and lineage still goes out.
 */
#ifndef PORTCULLIS_EVENT_H
#define PORTCULLIS_EVENT_H

#define SLOTS_PER_CPU 4

struct slot {
	/* Non-zero while a program works in it. */
	u64 busy;
	struct path_work path;
	struct event event;
	/* Ancestors, then argv; twice the argv's room, for the verifier's sake. */
	char tail[ANCESTORS_MAX * sizeof(struct ancestor) + 2 * ARGV_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	/* The loader sets SLOTS_PER_CPU times the number of CPUs. */
	__uint(max_entries, SLOTS_PER_CPU);
	__type(key, u32);
	__type(value, struct slot);
} slots SEC(".maps");

static __always_inline struct slot *claim_slot(void)
{
	u32 first = bpf_get_smp_processor_id() * SLOTS_PER_CPU;

	for (u32 i = 0; i < SLOTS_PER_CPU; i++) {
		u32 key = first + i;
		struct slot *slot = bpf_map_lookup_elem(&slots, &key);

		if (slot && __sync_val_compare_and_swap(&slot->busy, 0, 1) == 0)
			return slot;
	}
	return NULL;
}

static __always_inline void release_slot(struct slot *slot)
{
	__sync_lock_test_and_set(&slot->busy, 0);
}

/* What a program does has no name that it was invoked by. */
static __always_inline void fill_names(struct event *event, const struct execution *exec)
{
	struct basename base = {};

	event->filename[0] = 0;
	__builtin_memset(event->invoked, 0, NAME_LEN);
	if (!exec->filename)
		return;
	read_kernel_basename(exec->filename, &base);
	__builtin_memcpy(event->invoked, &base.key, NAME_LEN);
	if (bpf_probe_read_kernel_str(event->filename, PATH_LEN, (void *)exec->filename) == PATH_LEN)
		event->flags |= FILENAME_TRUNCATED;
}

/* All that needs no slot. */
static __always_inline void fill_facts(struct event *event, const struct execution *exec)
{
	struct task_struct *leader = bpf_get_current_task_btf()->group_leader;
	struct file *file = (void *)exec->file;
	u64 pid_tgid = bpf_get_current_pid_tgid();
	u64 uid_gid = bpf_get_current_uid_gid();
	struct tty_struct *tty = BPF_CORE_READ(leader, signal, tty);

	event->abi_version = PORTCULLIS_ABI_VERSION;
	event->verdict = exec->verdict;
	event->time_ns = bpf_ktime_get_boot_ns();
	event->start_time_ns = leader->start_boottime;
	event->cgroup_id = exec->in.container.cgroup_id;
	event->leaf_cgroup_id = bpf_get_current_cgroup_id();
	event->inode = BPF_CORE_READ(file, f_inode, i_ino);
	event->file_size = BPF_CORE_READ(file, f_inode, i_size);
	event->policy = exec->in.container.policy;
	event->tool = exec->match.tool;
	event->identified_by = exec->match.by;
	event->hook = exec->hook;
	event->flags = 0;
	event->pid = pid_tgid >> 32;
	event->tid = (u32)pid_tgid;
	event->ns_pid = ns_pid(leader);
	event->uid = (u32)uid_gid;
	event->gid = uid_gid >> 32;
	event->argc = exec->argc;
	event->argv_len = 0;
	event->ancestors = 0;
	event->place = exec->match.place;
	event->remote = exec->match.remote;
	event->rule = exec->match.rule;
	__builtin_memset(event->tty, 0, TTY_LEN);
	if (tty)
		bpf_probe_read_kernel_str(event->tty, TTY_LEN, tty->name);
	event->exe[0] = 0;
	event->cwd[0] = 0;
	fill_names(event, exec);
	if (exec->verdict == VERDICT_DETECTED || exec->verdict == VERDICT_WOULD_BLOCK)
		mark_process(event, exec->in.container.backend);
}

static __always_inline void fill_paths(struct slot *slot, const struct execution *exec)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct file *file = (void *)exec->file;

	if (read_path(slot->event.exe, PATH_LEN, &slot->path, BPF_CORE_READ(file, f_path.mnt),
		      BPF_CORE_READ(file, f_path.dentry)))
		slot->event.flags |= EXE_TRUNCATED;
	if (read_path(slot->event.cwd, PATH_LEN, &slot->path, BPF_CORE_READ(task, fs, pwd.mnt),
		      BPF_CORE_READ(task, fs, pwd.dentry)))
		slot->event.flags |= CWD_TRUNCATED;
}

struct lineage_cursor {
	const struct execution *exec;
	struct slot *slot;
	/* The process looked at. */
	struct task_struct *task;
};

static long lineage_step(u32 step, struct lineage_cursor *c)
{
	const struct execution *exec = c->exec;
	struct slot *slot = c->slot;
	struct task_struct *task = c->task;
	struct event *event = &slot->event;
	struct process *process = bpf_task_storage_get(&processes, task, NULL, 0);
	struct task_struct *parent;

	if (process) {
		u32 n = event->ancestors;

		if (n >= ANCESTORS_MAX)
			return 1;
		if (n == 0 && process->exec_session)
			event->flags |= EXEC_SESSION;
		/* Where nothing is executed, the process's own image is the event's. */
		if (step || exec->bprm) {
			bpf_probe_read_kernel(slot->tail + n * sizeof(struct ancestor), sizeof(struct ancestor),
					      &process->image);
			event->ancestors = n + 1;
		}
	}
	parent = task->real_parent->group_leader;
	if (!is_member(parent, &exec->in)) {
		event->flags &= ~LINEAGE_TRUNCATED;
		if (event->ancestors == 0 && (u32)task->tgid != exec->in.container.init_pid)
			event->flags |= EXEC_SESSION;
		return 1;
	}
	c->task = parent;
	return 0;
}

/*
 * Every image that led here, nearest first: the one that called execve(2) if it was itself executed in this container,
 * then the parents'. A process that only forked has no image of its own.
 */
static __always_inline void fill_lineage(struct slot *slot, const struct execution *exec)
{
	struct lineage_cursor cursor = {
		.exec = exec,
		.slot = slot,
		.task = bpf_get_current_task_btf()->group_leader,
	};

	slot->event.flags |= LINEAGE_TRUNCATED;
	bpf_loop(2 * ANCESTORS_MAX, lineage_step, &cursor, 0);
}

static __always_inline void fill_argv(struct slot *slot, const struct execution *exec, u32 offset)
{
	struct argv_cursor cursor = {
		.args = { .strings = exec->argv },
		.to = slot->tail + offset,
		.end = exec->argv_end,
	};
	u32 args = exec->argv_end ? ARGS_MAX : exec->argc;
	long looks;

	if (exec->argv_end)
		slot->event.flags |= ARGV_UNCONFIRMED;
	if (!exec->argv) {
		slot->event.flags |= ARGV_UNCONFIRMED;
		registers_argv(&cursor.args);
		args = cursor.args.width ? ARGS_MAX : 0;
		if (!cursor.args.width)
			cursor.truncated = true;
	}
	looks = bpf_loop(args < ARGS_MAX ? args : ARGS_MAX, event_argv_step, &cursor, 0);
	/* The last look was the one that found no more. */
	if (exec->argv_end)
		slot->event.argc = looks < ARGS_MAX ? looks - 1 : looks;
	if (cursor.truncated || exec->argc > ARGS_MAX)
		slot->event.flags |= ARGV_TRUNCATED;
	slot->event.argv_len = cursor.len;
}

static __always_inline void lost(struct container_stats *stats)
{
	COUNT(events_lost);
	if (stats)
		__sync_fetch_and_add(&stats->lost, 1);
}

/* The last resort: facts only, straight into the ring buffer. */
static __always_inline void emit_reduced(const struct execution *exec, struct container_stats *stats)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		lost(stats);
		return;
	}
	fill_facts(event, exec);
	event->flags |= EVENT_REDUCED | ARGV_TRUNCATED | LINEAGE_TRUNCATED;
	bpf_ringbuf_submit(event, 0);
	COUNT(events_reduced);
}

__attribute__((noinline)) int emit(const struct execution *exec)
{
	struct container_stats *stats;
	bool sent = false;
	struct slot *slot;
	u64 cgroup_id;

	if (!exec)
		return 0;
	cgroup_id = exec->in.container.cgroup_id;
	stats = bpf_map_lookup_elem(&container_stats, &cgroup_id);
	if (stats) {
		__sync_fetch_and_add(&stats->matched, 1);
		if (exec->verdict == VERDICT_BLOCKED)
			__sync_fetch_and_add(&stats->blocked, 1);
		if (exec->verdict == VERDICT_KILLED)
			__sync_fetch_and_add(&stats->killed, 1);
	}
	slot = claim_slot();
	if (slot) {
		u32 ancestors, offset, size;

		fill_facts(&slot->event, exec);
		fill_paths(slot, exec);
		fill_lineage(slot, exec);
		ancestors = slot->event.ancestors;
		if (ancestors > ANCESTORS_MAX)
			ancestors = ANCESTORS_MAX;
		offset = ancestors * sizeof(struct ancestor);
		fill_argv(slot, exec, offset);
		size = slot->event.argv_len;
		if (size > ARGV_LEN)
			size = ARGV_LEN;
		size += sizeof(struct event) + offset;
		sent = bpf_ringbuf_output(&events, &slot->event, size, 0) == 0;
		release_slot(slot);
	}
	if (!sent)
		emit_reduced(exec, stats);
	return 0;
}

#endif
