/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What each process in a guarded container last executed. It is kept with the task, so it costs memory only while the
 * process lives, and it is how a later signal knows its ancestors' arguments: another process's memory can't be read
 * from here.
 */
#ifndef PORTCULLIS_PROCESS_H
#define PORTCULLIS_PROCESS_H

/* Other builds of the same PORTCULLIS_ABI_VERSION read what this one has written: a change of it raises that. */
struct process {
	struct ancestor image;
	/* Twice the room, for the verifier's sake; see struct argv_cursor. Until argv is read, both are struct path_work. */
	char argv_slack[ANCESTOR_ARGV_LEN];
	bool exec_session;
	/* The tool that was reported when this image was executed; 0 if none was. */
	u32 tool;
	/* What was excepted then. */
	u32 excepted[EXCEPTED_MAX];
};

/* The kernel clears all of it for each new process, in the middle of its exec: no byte more than it takes. */
_Static_assert(sizeof(struct path_work) == sizeof(((struct ancestor *)0)->argv) + ANCESTOR_ARGV_LEN, "a path is built where argv goes");
_Static_assert(__builtin_offsetof(struct process, argv_slack) == sizeof(struct ancestor), "the room is of one piece");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct process);
} processes SEC(".maps");

/*
 * Whether the process descends from one that was put into the container from outside. Decided at a process's first exec
 * and inherited from then on: later its parent may be gone and itself adopted by the container's init.
 */
static __always_inline bool comes_from_outside(struct task_struct *leader, const struct membership *m)
{
	struct task_struct *task = leader;

	for (int i = 0; i < ANCESTORS_MAX; i++) {
		struct task_struct *parent = task->real_parent->group_leader;
		struct process *process;

		if (!is_member(parent, m))
			return (u32)task->tgid != m->container.init_pid;
		process = bpf_task_storage_get(&processes, parent, NULL, 0);
		if (process)
			return process->exec_session;
		task = parent;
	}
	return false;
}

/* What was executed, for later signals. */
__attribute__((noinline)) int record_process(const struct execution *exec)
{
	struct task_struct *leader = bpf_get_current_task_btf()->group_leader;
	struct process *process = bpf_task_storage_get(&processes, leader, NULL, 0);
	struct argv_cursor cursor = {};
	struct file *file;
	u32 args;

	if (!exec)
		return 0;
	file = (void *)exec->file;
	args = exec->argc;
	if (!process) {
		bool outside = comes_from_outside(leader, &exec->in);

		process = bpf_task_storage_get(&processes, leader, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (!process) {
			COUNT(process_storage_failed);
			return 0;
		}
		process->exec_session = outside;
	}
	process->image.start_time_ns = leader->start_boottime;
	process->image.pid = leader->tgid;
	process->image.ns_pid = ns_pid(leader);
	process->image.uid = (u32)bpf_get_current_uid_gid();
	process->image.flags = 0;
	/* Children that run meanwhile are told with no arguments of it, rather than with half of something. */
	process->image.argv_len = 0;
	process->tool = exec->match.tool;
	__builtin_memcpy(process->excepted, exec->excepted, sizeof(process->excepted));
	if (read_path(process->image.exe, ANCESTOR_EXE_LEN, (struct path_work *)process->image.argv,
		      BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry)))
		process->image.flags |= EXE_TRUNCATED;
	cursor.args.strings = exec->argv;
	cursor.to = process->image.argv;
	bpf_loop(args < ARGS_MAX ? args : ARGS_MAX, ancestor_argv_step, &cursor, 0);
	if (cursor.truncated || args > ARGS_MAX)
		process->image.flags |= ARGV_TRUNCATED;
	process->image.argv_len = cursor.len;
	process->image.argc = args;
	return 0;
}

#endif
