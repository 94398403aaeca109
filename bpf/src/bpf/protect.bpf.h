/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a guarded container may not do to its guard, whatever capabilities it has. A container's own mode does not matter here:
 * one that only watches must go on watching.
 *
 * Maps are known by their ids, pins by where they are. Links have no hook of their own, and any that is reached by its id may
 * be ours: in a guarded container none is. What containers do with objects that they have made is nobody's business.
 */
#ifndef PORTCULLIS_PROTECT_H
#define PORTCULLIS_PROTECT_H

/* linux/magic.h */
#define BPF_FS_MAGIC 0xcafe4a11
/* Of a pin below the directory of all versions: version, links, container, pin. With room for what comes. */
#define PIN_DEPTH_MAX 8
#define EPERM 1

/* The ids of Portcullis's maps. Written by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u32);
} own_maps SEC(".maps");

/* Where its pins are. Written by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct pin_place);
} pin_place SEC(".maps");

/*
 * Reports what the current process does, if it is in a guarded container; whether it is. Not inline, so that the verifier looks
 * at what tells about a process once for all hooks.
 */
__attribute__((noinline)) int is_tampering(u32 hook)
{
	struct execution exec = { .hook = hook, .verdict = VERDICT_BLOCKED };

	if (!find_container(&exec.in) || is_runtime(&exec.in.container))
		return false;
	fill_running(&exec);
	exec.match.tool = GUARD_TAMPERING;
	exec.match.action = ACTION_BLOCK;
	exec.match.rule = NO_RULE;
	emit(&exec);
	return true;
}

/*
 * The answer to the kernel. From 6.11 on the verifier wants to see that it is 0 or an error's number: the barrier keeps the
 * compiler from computing it out of what it knows of the function.
 */
static __always_inline int refuse_tampering(enum hook hook)
{
	if (!is_tampering(hook))
		return 0;
	barrier();
	return -EPERM;
}

/* Whether a name on a bpffs is that of a pin of ours, or of a directory of pins. */
static __always_inline bool is_own_pin(struct inode *directory, struct dentry *dentry)
{
	u32 zero = 0;
	struct pin_place *place;

	/* The common case is any other file system of the node: as little as can be. */
	if (directory->i_sb->s_magic != BPF_FS_MAGIC)
		return false;
	place = bpf_map_lookup_elem(&pin_place, &zero);
	if (!place || directory->i_sb->s_dev != place->device)
		return false;
	for (int i = 0; i < PIN_DEPTH_MAX; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		if (BPF_CORE_READ(dentry, d_inode, i_ino) == place->directory)
			return true;
		if (parent == dentry)
			return false;
		dentry = parent;
	}
	return false;
}

#endif
