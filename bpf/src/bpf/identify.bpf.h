/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which tool is this, and what does the container's policy say about it? Each way of identification calls consider();
 * the strictest action wins, so that one more way can only find more.
 */
#ifndef PORTCULLIS_IDENTIFY_H
#define PORTCULLIS_IDENTIFY_H

struct match {
	u32 tool;
	/* All the ways that led to `tool`. */
	enum identified_by by;
	enum action action;
	/* Last component of the path given to execve(2). */
	char invoked[NAME_LEN];
};

static __always_inline void consider(struct match *match, u32 policy, u32 tool, enum identified_by by)
{
	struct rule_key key = { .policy = policy, .tool = tool };
	enum action *action = bpf_map_lookup_elem(&rules, &key);

	if (!action || *action == ACTION_IGNORE)
		return;
	if (tool == match->tool) {
		match->by |= by;
	} else if (*action > match->action) {
		match->tool = tool;
		match->by = by;
		match->action = *action;
	}
}

static __always_inline void consider_name(struct match *match, u32 policy, const char *name, enum identified_by by)
{
	u32 *tool = bpf_map_lookup_elem(&names, name);

	if (tool)
		consider(match, policy, *tool, by);
}

#define CHUNK 64

struct basename_cursor {
	const char *string;
	/* Offset of what follows the last slash so far. */
	u32 base;
};

static long basename_step(u32 index, struct basename_cursor *c)
{
	char chunk[CHUNK] = {};
	/* Each read ends in a NUL of its own, so it brings CHUNK - 1 bytes of the string. */
	u32 offset = index * (CHUNK - 1);
	u32 base = 0;
	long n = bpf_probe_read_kernel_str(chunk, CHUNK, c->string + offset);

	if (n <= 0) {
		COUNT(name_read_failed);
		return 1;
	}
#pragma clang loop unroll(full)
	for (int i = 0; i < CHUNK - 1; i++)
		if (chunk[i] == '/')
			base = i + 1;
	if (base)
		c->base = offset + base;
	return n < CHUNK;
}

/*
 * The name as comm has it, but whole. The path can be 4095 bytes long and consist of slashes; looking only at its
 * beginning would be a way around us.
 */
static __always_inline void read_basename(char *to, const char *string)
{
	struct basename_cursor cursor = { .string = string };

	bpf_loop(4096 / (CHUNK - 1) + 1, basename_step, &cursor, 0);
	if (bpf_probe_read_kernel_str(to, NAME_LEN, string + cursor.base) < 0)
		COUNT(name_read_failed);
}

/*
 * A name of NAME_LEN bytes or more is cut; as no name in the table has NAME_LEN - 1 bytes (the agent refuses that), a
 * cut one can't match. The rest of a name's room must be zeroes: keys are compared whole.
 */
static __always_inline void identify(struct match *match, struct linux_binprm *bprm, u32 policy)
{
	struct file *file = bprm->file;
	struct name_key resolved = {};

	read_basename(match->invoked, bprm->filename);
	if (bpf_probe_read_kernel_str(resolved.name, NAME_LEN, BPF_CORE_READ(file, f_path.dentry, d_name.name)) < 0)
		COUNT(name_read_failed);
	/* The file says more about what runs than the name it was called by, so it comes first. */
	consider_name(match, policy, resolved.name, BY_RESOLVED_NAME);
	consider_name(match, policy, match->invoked, BY_INVOKED_NAME);
}

#endif
