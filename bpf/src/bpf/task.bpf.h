/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Small facts about a task: its container, its process id inside, its leader. */
#ifndef PORTCULLIS_TASK_H
#define PORTCULLIS_TASK_H

/* The container that the current task is in. */
struct membership {
	struct container container;
};

/* What was found out about an execution. */
struct match {
	u32 tool;
	/* All the ways that led to `tool`. */
	enum identified_by by;
	enum action action;
	/* The rule that says so. */
	u32 rule;
	/* Exceptions that may hold: bits. */
	u32 exceptions;
	/* Which of argv is the tool's first argument. */
	u32 first_argument;
	/* What else the file is known as: bits of enum kind. */
	enum kind kinds;
	enum place place;
	struct endpoint remote;
};

/*
 * The exec at hand, or what a program that runs does. It is passed to functions that are not static: the verifier looks at each of
 * those once, and not again for every state of its caller, without which it would give up. Such a function may be given
 * memory but no kernel pointers, so these are integers, for the BPF_CORE_READ family only.
 */
struct execution {
	/* struct linux_binprm; 0 when nothing is executed. */
	u64 bprm;
	/* struct file. */
	u64 file;
	/* The string given to execve(2), in kernel memory; 0 when nothing is executed. */
	u64 filename;
	/* The true argv; 0 while an exec is not final. */
	u64 argv;
	/* Where argv ends if nobody has counted it: that of a program that runs already. */
	u64 argv_end;
	u32 argc;
	enum hook hook;
	struct membership in;
	struct match match;
	enum verdict verdict;
	/* Tools that were found, but are excepted. */
	u32 excepted[EXCEPTED_MAX];
};

/*
 * An entry that is replaced makes room at once for another container's, and whoever reads it meanwhile reads that, or half of
 * each. The id is written first, so what was read before it changed is whole. Once more is enough: by then the entry's successor
 * is found, and its turn does not come within some instructions.
 */
static __always_inline bool read_container(struct container *to, u64 id)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < 2; i++) {
		struct container *container = bpf_map_lookup_elem(&containers, &id);

		if (!container)
			return false;
		*to = *container;
		barrier();
		if (*(volatile u64 *)&container->cgroup_id == id)
			return true;
	}
	COUNT(container_read_failed);
	return false;
}

/*
 * Looks the current cgroup's ancestors up, from the root down: whatever depth of child cgroups a container makes for
 * itself, its own cgroup is found within CGROUP_DEPTH_MAX steps (the shim refuses to guard a deeper one). Where
 * guarded containers are nested, the outermost one's policy holds: an inner one can't loosen it.
 */
static __always_inline bool find_container(struct membership *found)
{
	struct task_struct *task = bpf_get_current_task_btf();
	int depth = BPF_CORE_READ(task, cgroups, dfl_cgrp, level);

	for (int level = 1; level <= CGROUP_DEPTH_MAX; level++) {
		if (level > depth)
			break;
		u64 id = bpf_get_current_ancestor_cgroup_id(level);

		if (read_container(&found->container, id)) {
			found->container.level = level;
			return true;
		}
	}
	return false;
}

/*
 * Whether a cgroup is this one or below it. Not static, so that the verifier looks at it once and not again for every
 * caller's every state; such a function takes no kernel pointers, hence the integer.
 */
__attribute__((noinline)) int is_below(u64 address, u64 cgroup_id, u32 level)
{
	struct cgroup *cgroup = (void *)address;
	u64 id = 0;

	if (!cgroup || BPF_CORE_READ(cgroup, level) < (int)level)
		return false;
	/* The level is a run-time value, so the array's start is relocated and the index added by hand. */
	if (bpf_core_field_exists(cgroup->ancestors)) {
		struct cgroup *ancestor = NULL;
		void *array = __builtin_preserve_access_index(&cgroup->ancestors);

		bpf_probe_read_kernel(&ancestor, sizeof(ancestor), array + level * sizeof(ancestor));
		id = BPF_CORE_READ(ancestor, kn, id);
	} else {
		struct cgroup___ids *old = (void *)cgroup;
		void *array = __builtin_preserve_access_index(&old->ancestor_ids);

		bpf_probe_read_kernel(&id, sizeof(id), array + level * sizeof(id));
	}
	return id == cgroup_id;
}

/* Whether another task is in this container. */
static __always_inline bool is_member(struct task_struct *task, const struct membership *m)
{
	return is_below((u64)BPF_CORE_READ(task, cgroups, dfl_cgrp), m->container.cgroup_id, m->container.level);
}

/* A process's id in its own pid namespace, which is the deepest of those that it has ids in. */
static __always_inline u32 ns_pid(struct task_struct *leader)
{
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	u32 level = BPF_CORE_READ(pid, level);
	void *numbers = __builtin_preserve_access_index(&pid->numbers);
	struct upid *upid = numbers + level * bpf_core_type_size(struct upid);

	return BPF_CORE_READ(upid, nr);
}

#endif
