/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which tool is this, and what does the container's policy say about it? Each way of identification calls consider();
 * the strictest action wins, so that one more way can only find more.
 */
#ifndef PORTCULLIS_IDENTIFY_H
#define PORTCULLIS_IDENTIFY_H

/* What a policy says of a tool that is run from here, by this user; NULL if nothing. */
static __always_inline const struct decision *decide(const struct ruling *ruling, u64 file)
{
	u32 uid = bpf_get_current_uid_gid();
	enum place place = 0;
	bool looked = false;

	for (u32 i = 0; i < DECISIONS_MAX; i++) {
		const struct decision *decision = &ruling->decisions[i];

		if (i >= ruling->count)
			break;
		if (uid < decision->uids.first || uid > decision->uids.last)
			continue;
		if (decision->places && !looked) {
			place = place_of(file);
			looked = true;
		}
		if (!decision->places || decision->places & place)
			return decision;
	}
	return NULL;
}

/* Not static, so that the verifier looks at it once and not again for every way and every caller. */
__attribute__((noinline)) int consider(struct execution *exec, u32 tool, u32 by)
{
	struct rule_key key = { .tool = tool };
	const struct decision *decision;
	struct ruling *ruling;
	struct match *match;

	if (!exec || tool == exec->excepted[0] || tool == exec->excepted[1])
		return 0;
	match = &exec->match;
	if (tool == match->tool) {
		match->by |= by;
		return 0;
	}
	key.policy = exec->in.container.policy;
	ruling = bpf_map_lookup_elem(&rules, &key);
	if (!ruling)
		return 0;
	decision = decide(ruling, exec->file);
	if (!decision || decision->action <= match->action)
		return 0;
	match->tool = tool;
	match->by = by;
	match->action = decision->action;
	match->rule = decision->rule;
	match->exceptions = ruling->exceptions & exec->in.container.exceptions;
	match->first_argument = 1;
	return 0;
}

static __always_inline void consider_identity(struct execution *exec, const struct identity *identity,
					      enum identified_by by)
{
	if (!identity)
		return;
	exec->match.kinds |= identity->kind;
	if (identity->kind == KIND_TOOL)
		consider(exec, identity->id, by);
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

/* The tool of that name; 0 if it is none's. Not inline, so that its key is off the caller's stack. */
__attribute__((noinline)) u32 tool_by_resolved_name(u64 file)
{
	struct identity *identity = identity_by_resolved_name(file);

	return identity && identity->kind == KIND_TOOL ? identity->id : 0;
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

	/* It could not be read; 0 is the key of each scope's mark. */
	if (!key.fingerprint)
		return;
	consider_identity(exec, bpf_map_lookup_elem(&fingerprints, &key), BY_FINGERPRINT);
	key.scope = exec->in.container.scope;
	if (key.scope)
		consider_identity(exec, bpf_map_lookup_elem(&fingerprints, &key), BY_FINGERPRINT);
}

/*
 * Before the exec is final the caller's registers lead to what will be argv, unless another thread changes it: good
 * enough for an early EPERM, as the second look comes once the exec is final. For a script's interpreter they lead to the
 * script's argv, which says nothing of the interpreter's.
 */
__attribute__((noinline)) int consider_command(struct execution *exec, u32 reader)
{
	struct command_cursor cursor = { .reader = reader };
	struct linux_binprm *bprm;
	enum identified_by by;
	u32 argc;

	if (!exec)
		return 0;
	bprm = (void *)exec->bprm;
	cursor.args.strings = exec->argv;
	argc = exec->argc;
	if (!exec->argv) {
		if (BPF_CORE_READ(bprm, interp) != BPF_CORE_READ(bprm, filename))
			return 0;
		registers_argv(&cursor.args);
		argc = ARGS_SCANNED_MAX;
	}
	by = read_command(&cursor, argc);
	if (!cursor.found.kind)
		return 0;
	consider_identity(exec, &cursor.found, by);
	/* Whatever else led to this tool: what follows is what it will take for its arguments. */
	if (cursor.found.kind == KIND_TOOL && cursor.found.id == exec->match.tool)
		exec->match.first_argument = cursor.at + 1;
	return 0;
}

/*
 * By its names and its content. Returns the pattern that its comm matches, for later. Apart from identify(), so that its keys
 * are off the stack when arguments are read: older kernels allow 512 bytes for the whole chain of calls.
 */
__attribute__((noinline)) u32 consider_file(struct execution *exec)
{
	u32 pattern = 0;

	if (!exec)
		return 0;
	/* The file says more about what runs than the name it was called by, so it comes first. */
	consider_identity(exec, identity_by_resolved_name(exec->file), BY_RESOLVED_NAME);
	consider_content(exec);
	consider_identity(exec, identity_by_invoked_name(exec, &pattern), BY_INVOKED_NAME);
	return pattern;
}

/* Fills `match`. The result means nothing; a function that is not static must have one. */
__attribute__((noinline)) int identify(struct execution *exec)
{
	struct match *match;
	u32 pattern;

	if (!exec)
		return 0;
	match = &exec->match;
	pattern = consider_file(exec);
	/* Both, where it is called like the one and is the other: its name must not decide how its arguments are read. */
	if (match->kinds & KIND_MULTICALL)
		consider_command(exec, KIND_MULTICALL);
	if (match->kinds & KIND_LOADER)
		consider_command(exec, KIND_LOADER);
	match->place = place_of(exec->file);
	if (match->kinds & (KIND_SHELL | KIND_INTERPRETER) && stdio_is_internet_socket(&match->remote))
		consider(exec, REVERSE_SHELL, BY_STDIO);
	if (!match->action && !exec->excepted[0] && match->place & (PLACE_UPPER_LAYER | PLACE_MEMFD) && !is_runtime(&exec->in.container))
		consider(exec, DROPPED_EXECUTABLE, BY_PLACE);
	/*
	 * Last: the agent may yet make an exception of it, and what another rule says must not go with it. Of equal actions the
	 * first is reported.
	 */
	if (pattern)
		consider(exec, pattern, BY_PATTERN);
	return 0;
}

#endif
