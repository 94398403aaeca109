/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a program that runs others was told to run: the applet of a multi-call program, the program of a dynamic loader.
 * Both by argv, as they themselves read it:
 *
 *   busybox    argv[0]'s last component is the applet; if it begins with "busybox", the next argument's is, and so on.
 *              toybox does the same.
 *   ld.so      options begin with "--", some are followed by a value; the first argument that is no option is the path of
 *              a program, which may be a multi-call one (argv[0] for it) or a loader again.
 */
#ifndef PORTCULLIS_COMMAND_H
#define PORTCULLIS_COMMAND_H

/* Of a path; linux/limits.h. */
#define PATH_MAX 4096
#define CHUNK NAME_LEN
/* MAX_ARG_STRLEN: an argument has at most 32 pages. */
#define ARG_LEN_MAX (32 * 4096)
/* More arguments than fit into the largest stack; bpf_loop can do eight times as many. */
#define ARGS_SCANNED_MAX (1 << 20)

/*
 * What follows the last slash in a piece of a string; 0 without a slash. Not static, so that the verifier looks at its many
 * paths once and not again for every state of every caller; hence the check for NULL as well.
 */
__attribute__((noinline)) int after_last_slash(const struct name_key *piece)
{
	int base = 0;

	if (!piece)
		return 0;
#pragma clang loop unroll(full)
	for (int i = 0; i < CHUNK - 1; i++)
		if (piece->name[i] == '/')
			base = i + 1;
	return base;
}

/* The last component of a string, its offset, and the string's length. */
struct basename {
	struct name_key key;
	u32 offset;
	u32 length;
};

struct basename_cursor {
	u64 string;
	/* Its key is the room for each piece of the string. */
	struct basename *to;
};

static __always_inline long basename_step(u32 index, struct basename_cursor *c, const bool user)
{
	/* Each read ends in a NUL of its own, so it brings CHUNK - 1 bytes of the string. */
	u32 offset = index * (CHUNK - 1);
	struct basename *to = c->to;
	void *string = (void *)(c->string + offset);
	u32 base;
	long n;

	__builtin_memset(&to->key, 0, CHUNK);
	n = user ? bpf_probe_read_user_str(&to->key, CHUNK, string) : bpf_probe_read_kernel_str(&to->key, CHUNK, string);
	if (n < 0) {
		COUNT(name_read_failed);
		return 1;
	}
	base = after_last_slash(&to->key);
	if (base)
		to->offset = offset + base;
	/* Older kernels answer 0 for an empty string instead of 1. */
	to->length = offset + n - 1 + ((u64)(n - 1) >> 63);
	return n < CHUNK;
}

static long user_basename_step(u32 index, struct basename_cursor *c)
{
	return basename_step(index, c, true);
}

static long kernel_basename_step(u32 index, struct basename_cursor *c)
{
	return basename_step(index, c, false);
}

/*
 * The name as comm has it, but whole. A path can be 4095 bytes long, an argument 128 KiB, and consist of slashes; looking
 * only at the beginning would be a way around us. The rest of the key's room is zeroes: keys are compared whole.
 */
static __always_inline int read_basename(u64 string, struct basename *to, const bool user)
{
	struct basename_cursor cursor = { .string = string, .to = to };

	if (!to)
		return 0;
	to->offset = 0;
	to->length = 0;
	if (user)
		bpf_loop(ARG_LEN_MAX / (CHUNK - 1) + 1, user_basename_step, &cursor, 0);
	else
		bpf_loop(PATH_MAX / (CHUNK - 1) + 1, kernel_basename_step, &cursor, 0);
	__builtin_memset(&to->key, 0, CHUNK);
	if (user)
		bpf_probe_read_user_str(&to->key, NAME_LEN, (void *)(string + to->offset));
	else
		bpf_probe_read_kernel_str(&to->key, NAME_LEN, (void *)(string + to->offset));
	return 0;
}

/* Not static, for the verifier's sake: see after_last_slash. */
__attribute__((noinline)) int read_user_basename(u64 string, struct basename *to)
{
	return read_basename(string, to, true);
}

__attribute__((noinline)) int read_kernel_basename(u64 string, struct basename *to)
{
	return read_basename(string, to, false);
}

struct command_cursor {
	struct args args;
	/* KIND_MULTICALL or KIND_LOADER: who reads the arguments. */
	enum kind reader;
	/* What the previous argument's option is followed by. */
	enum loader_option option;
	/* The loader's program gets another argv[0], which stands for this. */
	bool renamed;
	struct identity argv0;
	/* What is run; no kind when it is nothing that we know. */
	struct identity found;
	/* Which of argv said so. */
	u32 at;
};

static __always_inline bool is_multicall(const u64 *name)
{
	for (u32 i = 0; i < PREFIXES_MAX; i++) {
		u32 key = i;
		struct name_prefix *prefix = bpf_map_lookup_elem(&multicall_prefixes, &key);

		if (prefix && prefix->mask[0] && (name[0] & prefix->mask[0]) == prefix->bytes[0] &&
		    (name[1] & prefix->mask[1]) == prefix->bytes[1])
			return true;
	}
	return false;
}

static long command_step(u32 index, struct command_cursor *c)
{
	struct basename base __attribute__((aligned(8))) = {};
	const u64 *name = (const u64 *)base.key.name;
	enum loader_option value_of = c->option;
	u64 string = arg_string(&c->args, index);
	struct identity *identity;
	bool is_option;
	u32 dash;

	if (!string)
		return 1;
	if (bpf_probe_read_user_str(&base.key, NAME_LEN, (void *)string) < 0) {
		COUNT(argv_read_failed);
		return 1;
	}
	is_option = (name[0] & 0xffff) == 0x2d2d; /* "--" */
	c->option = 0;
	/* argv[0] is no option, whatever it looks like. */
	if (c->reader == KIND_LOADER && index > 0 && is_option && !value_of) {
		enum loader_option *followed = bpf_map_lookup_elem(&loader_options, &base.key);

		if (followed)
			c->option = *followed;
	}
	/* A login shell's argv[0] begins with a dash, and busybox passes over it whatever it is called by. */
	dash = index == 0 && (char)name[0] == '-';
	read_user_basename(string + dash, &base);
	arg_next(&c->args, dash + base.length + 1);

	identity = bpf_map_lookup_elem(&names, &base.key);
	if (c->reader == KIND_LOADER) {
		if (value_of == OPTION_ARGV0) {
			c->renamed = !is_multicall(name);
			if (identity)
				c->argv0 = *identity;
		}
		/* Its own name, options, and what follows them. */
		if (index == 0 || is_option || value_of)
			return 0;
		if (identity && identity->kind == KIND_LOADER)
			return 0;
	}
	c->at = index;
	if (is_multicall(name)) {
		if (c->reader == KIND_MULTICALL || !c->renamed) {
			c->reader = KIND_MULTICALL;
			return 0;
		}
		c->reader = KIND_MULTICALL;
		c->found = c->argv0;
	} else if (identity) {
		c->found = *identity;
	}
	return 1;
}

/*
 * `argc` is the true number, or ARGS_SCANNED_MAX where a NULL ends the array. Returns the way of identification; what is
 * run is in `found`.
 */
static __always_inline enum identified_by read_command(struct command_cursor *c, u32 argc)
{
	bpf_loop(argc < ARGS_SCANNED_MAX ? argc : ARGS_SCANNED_MAX, command_step, c, 0);
	return c->reader == KIND_MULTICALL ? BY_APPLET : BY_LOADER;
}

#endif
