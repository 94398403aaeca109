/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which tool is this, and what does the container's policy say about it? Each way of identification calls consider();
 * the strictest action wins, so that one more way can only find more.
 */
#ifndef PORTCULLIS_IDENTIFY_H
#define PORTCULLIS_IDENTIFY_H

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

static __always_inline void consider_identity(struct match *match, u32 policy, const struct identity *identity,
					      enum identified_by by)
{
	if (!identity)
		return;
	match->kinds |= identity->kind;
	if (identity->kind == KIND_TOOL)
		consider(match, policy, identity->id, by);
}

/* By the name of the file, links followed. */
static __always_inline struct identity *identity_by_resolved_name(u64 address)
{
	struct file *file = (void *)address;
	struct name_key key = {};

	if (bpf_probe_read_kernel_str(key.name, NAME_LEN, BPF_CORE_READ(file, f_path.dentry, d_name.name)) < 0)
		COUNT(name_read_failed);
	return bpf_map_lookup_elem(&names, &key);
}

/* By the last component of the path given to execve(2). The pattern that its comm matches is for later. */
static __always_inline struct identity *identity_by_invoked_name(const struct execution *exec, u32 *pattern)
{
	struct basename base = {};

	read_kernel_basename(exec->filename, &base);
	*pattern = comm_pattern(exec, &base.key);
	return bpf_map_lookup_elem(&names, &base.key);
}

static __always_inline void consider_content(struct execution *exec)
{
	struct fingerprint_key key = { .fingerprint = fingerprint(exec->bprm) };
	u32 policy = exec->in.container.policy;

	/* It could not be read; 0 is the key of each scope's mark. */
	if (!key.fingerprint)
		return;
	consider_identity(&exec->match, policy, bpf_map_lookup_elem(&fingerprints, &key), BY_FINGERPRINT);
	key.scope = exec->in.container.scope;
	if (key.scope)
		consider_identity(&exec->match, policy, bpf_map_lookup_elem(&fingerprints, &key), BY_FINGERPRINT);
}

/*
 * Before the exec is final the caller's registers lead to what will be argv, unless another thread changes it: good
 * enough for an early EPERM, as the second look comes once the exec is final. For a script's interpreter they lead to the
 * script's argv, which says nothing of the interpreter's.
 */
static __always_inline void consider_command(struct execution *exec, enum kind reader)
{
	struct linux_binprm *bprm = (void *)exec->bprm;
	struct command_cursor cursor = {
		.args = { .strings = exec->argv },
		.reader = reader,
	};
	u32 argc = exec->argc;
	enum identified_by by;

	if (!exec->argv) {
		if (BPF_CORE_READ(bprm, interp) != BPF_CORE_READ(bprm, filename))
			return;
		registers_argv(&cursor.args);
		argc = ARGS_SCANNED_MAX;
	}
	by = read_command(&cursor, argc);
	if (cursor.found.kind)
		consider_identity(&exec->match, exec->in.container.policy, &cursor.found, by);
}

/* Fills `match`. The result means nothing; a function that is not static must have one. */
__attribute__((noinline)) int identify(struct execution *exec)
{
	struct match *match;
	u32 policy, pattern = 0;

	if (!exec)
		return 0;
	match = &exec->match;
	policy = exec->in.container.policy;
	/* The file says more about what runs than the name it was called by, so it comes first. */
	consider_identity(match, policy, identity_by_resolved_name(exec->file), BY_RESOLVED_NAME);
	consider_content(exec);
	consider_identity(match, policy, identity_by_invoked_name(exec, &pattern), BY_INVOKED_NAME);
	/*
	 * Both, where it is called like the one and is the other: its name must not decide how its arguments are read. A loop,
	 * so that there is one cursor on the stack, of which older kernels allow 512 bytes for the whole chain of calls.
	 */
#pragma clang loop unroll(disable)
	for (enum kind reader = KIND_MULTICALL; reader <= KIND_LOADER; reader <<= 1)
		if (match->kinds & reader)
			consider_command(exec, reader);
	match->place = place_of(exec->file);
	if (match->kinds & (KIND_SHELL | KIND_INTERPRETER) && stdio_is_internet_socket(&match->remote))
		consider(match, policy, REVERSE_SHELL, BY_STDIO);
	if (!match->action && match->place & (PLACE_UPPER_LAYER | PLACE_MEMFD) && !is_runtime(&exec->in.container))
		consider(match, policy, DROPPED_EXECUTABLE, BY_PLACE);
	/*
	 * Last: the agent may yet make an exception of it, and what another rule says must not go with it. Of equal actions the
	 * first is reported.
	 */
	if (pattern)
		consider(match, policy, pattern, BY_PATTERN);
	return 0;
}

#endif
