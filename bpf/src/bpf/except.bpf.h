/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a policy lets pass although a rule names it. An exception holds in both modes, so it decides whether something
 * forbidden may run. Where a fact can't be read, it does not hold.
 */
#ifndef PORTCULLIS_EXCEPT_H
#define PORTCULLIS_EXCEPT_H

/* What is compared with a pattern. */
struct text {
	u64 words[PATTERN_LEN / 8];
};

/*
 * Room to read one argument. The stack has none left, and a CPU's own memory would be shared with whoever interrupts us,
 * so it is the thread's.
 */
struct scratch {
	struct text argument;
	struct basename base;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct scratch);
} scratches SEC(".maps");

/* This and what follows is not static where that spares the verifier from looking at it for every caller's every state. */
__attribute__((noinline)) int fits(const struct pattern_key *wanted, const struct text *text)
{
	struct pattern *pattern;
	struct pattern_key key;
	u64 different = 0;

	if (!wanted || !text)
		return false;
	/* Kernels before 6.4 take no key from a caller's memory. */
	key = *wanted;
	pattern = bpf_map_lookup_elem(&patterns, &key);
	if (!pattern)
		return false;
#pragma clang loop unroll(full)
	for (int i = 0; i < PATTERN_LEN / 8; i++) {
		different |= (text->words[i] & pattern->mask[i]) ^ pattern->bytes[i];
		/* Else the compiler makes a branch of each word, and the verifier follows them all. */
		barrier_var(different);
	}
	return !different;
}

struct arguments_cursor {
	struct args args;
	struct scratch *scratch;
	struct pattern_key key;
	/* Which of argv is compared with the first pattern. */
	u32 first;
	/* How many patterns there are, and have been found. */
	u32 patterns;
	u32 found;
	/* There are more arguments than patterns. */
	bool more;
	bool failed;
};

static long argument_step(u32 index, struct arguments_cursor *c)
{
	struct scratch *scratch = c->scratch;
	u64 string = arg_string(&c->args, index);
	long n;

	if (!string) {
		c->failed = c->args.failed;
		return 1;
	}
	if (index >= c->first) {
		if (index - c->first >= c->patterns) {
			c->more = true;
			return 1;
		}
		c->key.index = index - c->first;
		__builtin_memset(&scratch->argument, 0, PATTERN_LEN);
		n = bpf_probe_read_user_str(&scratch->argument, PATTERN_LEN, (void *)string);
		if (n < 0) {
			COUNT(argv_read_failed);
			c->failed = true;
			return 1;
		}
		/* It may go on. A pattern is shorter, so that the end of a whole one's text must be seen. */
		if (n == PATTERN_LEN)
			((char *)&scratch->argument)[PATTERN_LEN - 1] = 1;
		if (!fits(&c->key, &scratch->argument)) {
			c->failed = true;
			return 1;
		}
		c->found++;
	}
	if (!c->args.strings)
		return 0;
	scratch->base.length = 0;
	read_user_basename(string, &scratch->base);
	arg_next(&c->args, scratch->base.length + 1);
	return 0;
}

/*
 * Before the exec is final, arguments only say whether it is worth being friendly: who changes them meanwhile is ended by the
 * second look. Those of a script will begin with its interpreter's, which are not known yet, so it is left to that look
 * altogether.
 */
static __always_inline bool has_arguments(const struct execution *exec, const struct exception *exception, u32 number)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct linux_binprm *bprm = (void *)exec->bprm;
	struct arguments_cursor cursor = {
		.args = { .strings = exec->argv },
		.key = { .policy = exec->in.container.policy, .number = number, .list = PATTERNS_ARGUMENTS },
		.first = exec->match.first_argument,
		.patterns = exception->arguments,
	};
	u32 argc = exec->argc, looks = cursor.first + cursor.patterns + 1;
	u16 magic = 0;

	/* A running program can write over its arguments; a tracer can do that before the program begins. */
	if (!bprm || BPF_CORE_READ(task, ptrace))
		return false;
	if (!exec->argv) {
		bpf_probe_read_kernel(&magic, sizeof(magic), (void *)bprm + bpf_core_field_offset(bprm->buf));
		if (magic == 0x2123 /* "#!" */ || BPF_CORE_READ(bprm, interp) != BPF_CORE_READ(bprm, filename))
			return true;
		registers_argv(&cursor.args);
		argc = ARGS_SCANNED_MAX;
	}
	cursor.scratch = bpf_task_storage_get(&scratches, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!cursor.scratch) {
		COUNT(scratch_failed);
		return false;
	}
	bpf_loop(argc < looks ? argc : looks, argument_step, &cursor, 0);
	return !cursor.failed && cursor.found == cursor.patterns &&
	       (!cursor.more || exception->flags & EXCEPTION_MORE_ARGUMENTS);
}

struct images_cursor {
	const struct execution *exec;
	struct task_struct *task;
	struct pattern_key key;
	u32 patterns;
	bool found;
};

/* The images that led here, nearest first, as in an event's lineage. */
static long images_step(u32 step, struct images_cursor *c)
{
	struct process *process = bpf_task_storage_get(&processes, c->task, NULL, 0);
	struct task_struct *parent;

	if (process) {
		/* Of a path that is too long only the end is known. */
		if (!(process->image.flags & EXE_TRUNCATED)) {
			for (u32 i = 0; i < EXE_PATTERNS_MAX; i++) {
				if (i >= c->patterns)
					break;
				c->key.index = i;
				if (fits(&c->key, (const struct text *)process->image.exe)) {
					c->found = true;
					return 1;
				}
			}
		}
		if (c->key.list == PATTERNS_PARENTS)
			return 1;
	}
	parent = c->task->real_parent->group_leader;
	if (!is_member(parent, &c->exec->in))
		return 1;
	c->task = parent;
	return 0;
}

__attribute__((noinline)) int has_image(const struct execution *exec, u32 number, u32 list, u32 patterns)
{
	struct images_cursor cursor = {
		.exec = exec,
		.task = bpf_get_current_task_btf()->group_leader,
		.key = { .number = number, .list = list },
		.patterns = patterns,
	};

	if (!exec)
		return false;
	cursor.key.policy = exec->in.container.policy;
	bpf_loop(2 * ANCESTORS_MAX, images_step, &cursor, 0);
	return cursor.found;
}

static __always_inline bool has_user(const struct exception *exception)
{
	u32 uid = bpf_get_current_uid_gid();

	for (u32 i = 0; i < UID_RANGES_MAX; i++) {
		if (i >= exception->users)
			break;
		if (uid >= exception->uids[i].first && uid <= exception->uids[i].last)
			return true;
	}
	return false;
}

struct exceptions_cursor {
	const struct execution *exec;
	bool found;
};

static long exception_step(u32 number, struct exceptions_cursor *c)
{
	const struct execution *exec = c->exec;
	struct exception_key key = { .policy = exec->in.container.policy, .number = number };
	struct exception *exception;

	if (!(exec->match.exceptions & (1u << (number & 31))))
		return 0;
	exception = bpf_map_lookup_elem(&exceptions, &key);
	if (!exception)
		return 0;
	if (exception->users && !has_user(exception))
		return 0;
	if (exception->parents && !has_image(exec, number, PATTERNS_PARENTS, exception->parents))
		return 0;
	if (exception->ancestors && !has_image(exec, number, PATTERNS_ANCESTORS, exception->ancestors))
		return 0;
	if (exception->flags & EXCEPTION_ARGUMENTS && !has_arguments(exec, exception, number))
		return 0;
	c->found = true;
	return 1;
}

/* Whether one of the exceptions that are for the tool that was found holds. */
__attribute__((noinline)) int is_excepted(const struct execution *exec)
{
	struct exceptions_cursor cursor = { .exec = exec };

	if (!exec || !exec->match.exceptions)
		return false;
	bpf_loop(EXCEPTIONS_MAX, exception_step, &cursor, 0);
	return cursor.found;
}

/* What is left once exceptions are made. An exception for one tool says nothing of what else a file is. */
static __always_inline void judge(struct execution *exec)
{
	identify(exec);
#pragma clang loop unroll(full)
	for (int i = 0; i < EXCEPTED_MAX; i++) {
		if (!is_excepted(exec))
			return;
		exec->excepted[i] = exec->match.tool;
		exec->match.tool = 0;
		exec->match.by = 0;
		exec->match.action = ACTION_IGNORE;
		exec->match.exceptions = 0;
		identify(exec);
	}
}

static __always_inline void count_excepted(const struct execution *exec)
{
	u64 cgroup_id = exec->in.container.cgroup_id;
	struct container_stats *stats = bpf_map_lookup_elem(&container_stats, &cgroup_id);

	if (stats)
		__sync_fetch_and_add(&stats->excepted, 1);
}

/* The same for what a running program does. */
static __always_inline bool may_pass(struct execution *exec)
{
	if (exec->match.action == ACTION_IGNORE)
		return true;
	if (!is_excepted(exec))
		return false;
	count_excepted(exec);
	return true;
}

#endif
