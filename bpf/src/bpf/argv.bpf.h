/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Arguments of an execution. There are three places to read them, by the moment:
 * - before the exec is final (bprm_check_security): through the system call's registers, in the caller's memory, which
 *   another thread can rewrite: good enough to tell, not to decide;
 * - bprm_committed_creds: in the new program's stack, where bprm->p points, and nobody else can write yet: the truth;
 * - sched_process_exec: the same bytes; bprm->p has moved on, mm->arg_start says where.
 */
#ifndef PORTCULLIS_ARGV_H
#define PORTCULLIS_ARGV_H

#define ARGS_MAX 1024

/* Where arguments are. */
struct args {
	/* Strings one after the other; 0 when `pointers` leads to them. */
	u64 strings;
	/* The user's array of pointers, and their size in bytes; 0 when the system call is none that we know. */
	u64 pointers;
	u32 width;
	/* A pointer could not be read. */
	bool failed;
};

/* The address of an argument; those before it must have been passed over by arg_next. 0 after the last. */
static __always_inline u64 arg_string(struct args *args, u32 index)
{
	u64 string = args->strings;

	if (string)
		return string;
	if (!args->width)
		return 0;
	if (bpf_probe_read_user(&string, args->width == 4 ? 4 : 8, (void *)(args->pointers + (u64)index * args->width))) {
		COUNT(argv_read_failed);
		args->failed = true;
		return 0;
	}
	return string;
}

/* `size`: of the argument that was just looked at, its NUL included. */
static __always_inline void arg_next(struct args *args, u32 size)
{
	if (args->strings)
		args->strings += size;
}

struct argv_cursor {
	struct args args;
	/* Room of twice `capacity` bytes, for the verifier's sake, as in struct path_work. */
	char *to;
	/* Where the strings end, if nobody has counted them. */
	u64 end;
	u32 len;
	bool truncated;
};

static __always_inline void append(struct argv_cursor *c, u64 string, const u32 capacity)
{
	u32 len = c->len;
	long n;

	if (len >= capacity) {
		c->truncated = true;
		return;
	}
	len &= capacity - 1;
	n = bpf_probe_read_user_str(c->to + len, (capacity - len) & (2 * capacity - 1), (void *)string);
	if (n < 0) {
		COUNT(argv_read_failed);
		c->truncated = true;
		return;
	}
	/*
	 * Older kernels answer 0 for an empty string instead of 1. No branch: with one, the verifier follows each later argument's
	 * offset twice, and takes minutes.
	 */
	n += (u64)(n - 1) >> 63;
	/* A string that fills the room exactly may have been longer. */
	if ((u32)n == capacity - len)
		c->truncated = true;
	c->len = len + n;
	arg_next(&c->args, n);
}

/* One argument; `capacity` is a constant so that the verifier sees each buffer's bounds. */
static __always_inline long argv_step(u32 index, struct argv_cursor *c, const u32 capacity)
{
	u64 string;

	if (c->truncated)
		return 1;
	string = arg_string(&c->args, index);
	if (!string) {
		c->truncated = c->args.failed;
		return 1;
	}
	append(c, string, capacity);
	return 0;
}

static long event_argv_step(u32 index, struct argv_cursor *c)
{
	if (c->end && c->args.strings >= c->end)
		return 1;
	return argv_step(index, c, ARGV_LEN);
}

static long ancestor_argv_step(u32 index, struct argv_cursor *c)
{
	return argv_step(index, c, ANCESTOR_ARGV_LEN);
}

/* The registers' argv of the exec that is under way. */
static __always_inline void registers_argv(struct args *c)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

#if defined(__TARGET_ARCH_x86)
	switch (BPF_CORE_READ(regs, orig_ax)) {
	case 59: /* execve */
		c->pointers = BPF_CORE_READ(regs, si);
		c->width = 8;
		break;
	case 322: /* execveat */
		c->pointers = BPF_CORE_READ(regs, dx);
		c->width = 8;
		break;
	case 11: /* execve of a 32-bit program; munmap of a 64-bit one, which does not lead here */
		c->pointers = (u32)BPF_CORE_READ(regs, cx);
		c->width = 4;
		break;
	case 358: /* execveat of a 32-bit program */
		c->pointers = (u32)BPF_CORE_READ(regs, dx);
		c->width = 4;
		break;
	}
#elif defined(__TARGET_ARCH_arm64)
	switch (BPF_CORE_READ(regs, syscallno)) {
	case 221: /* execve */
		c->pointers = BPF_CORE_READ(regs, user_regs.regs[1]);
		c->width = 8;
		break;
	case 281: /* execveat */
		c->pointers = BPF_CORE_READ(regs, user_regs.regs[2]);
		c->width = 8;
		break;
	}
#endif
}

#endif
