/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * A path as its own root directory sees it, built from the dentries up. bpf_d_path would do this in the LSM hooks, but
 * the kernel does not allow it at a raw tracepoint, and one way for both backends is one way to test.
 */
#ifndef PORTCULLIS_PATH_H
#define PORTCULLIS_PATH_H

#define NAME_MAX_LEN 255
#define PATH_DEPTH_MAX 48

/*
 * The path grows from the end of the first half to its beginning. The second half is never used; it is there so that
 * the verifier, which adds the largest offset to the largest length, sees every write inside.
 */
struct path_work {
	char bytes[2 * PATH_LEN];
};

struct path_cursor {
	struct dentry *dentry;
	struct vfsmount *mnt;
	/* Of mnt: it stays the same for most steps, and each read costs. */
	struct dentry *mnt_root;
	struct dentry *root_dentry;
	struct vfsmount *root_mnt;
	struct path_work *work;
	/* Where the path begins in work->bytes. */
	u32 start;
	bool truncated;
};

static long path_step(u32 step, struct path_cursor *c)
{
	/* Copies: BPF_CORE_READ through `c` would make a relocation against struct path_cursor, which is ours. */
	struct dentry *dentry = c->dentry;
	struct vfsmount *mnt = c->mnt;
	const unsigned char *name;
	struct dentry *parent;
	u32 len, start;

	if (dentry == c->root_dentry && mnt == c->root_mnt)
		return 1;
	if (dentry == c->mnt_root) {
		/* container_of: a vfsmount is a member of its struct mount. */
		struct mount *mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
		struct mount *up = BPF_CORE_READ(mount, mnt_parent);

		if (up != mount) {
			c->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mnt = (void *)up + bpf_core_field_offset(struct mount, mnt);
			c->mnt = mnt;
			c->mnt_root = BPF_CORE_READ(mnt, mnt_root);
			return 0;
		}
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	len = BPF_CORE_READ(dentry, d_name.len);
	name = BPF_CORE_READ(dentry, d_name.name);
	/* The root of a whole file system is called "/"; a memfd's only dentry has a name and no parent. */
	if (parent == dentry && len <= 1)
		return 1;
	start = c->start;
	if (len > NAME_MAX_LEN || start > PATH_LEN || start < len + 1) {
		c->truncated = true;
		return 1;
	}
	start -= len;
	start &= PATH_LEN - 1;
	if (bpf_probe_read_kernel(&c->work->bytes[start], len & NAME_MAX_LEN, name)) {
		COUNT(path_read_failed);
		c->truncated = true;
		return 1;
	}
	start = (start - 1) & (PATH_LEN - 1);
	c->work->bytes[start] = '/';
	c->start = start;
	if (parent == dentry)
		return 1;
	c->dentry = parent;
	if (step == PATH_DEPTH_MAX - 1)
		c->truncated = true;
	return 0;
}

/*
 * Writes the path, or as much of its end as fits, and a NUL. Returns true when something is missing at the beginning.
 * `size` is a power of two and at most PATH_LEN. `fs` gives the root; the caller's is the container's.
 */
static __always_inline bool read_path(char *to, const u32 size, struct path_work *work, struct vfsmount *mnt,
				      struct dentry *dentry)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct path_cursor cursor = {
		.dentry = dentry,
		.mnt = mnt,
		.mnt_root = BPF_CORE_READ(mnt, mnt_root),
		.root_dentry = BPF_CORE_READ(task, fs, root.dentry),
		.root_mnt = BPF_CORE_READ(task, fs, root.mnt),
		.work = work,
		.start = PATH_LEN,
	};
	u32 start, len;

	bpf_loop(PATH_DEPTH_MAX, path_step, &cursor, 0);
	start = cursor.start;
	if (start >= PATH_LEN) {
		/* The root itself. */
		to[0] = '/';
		to[1] = 0;
		return cursor.truncated;
	}
	len = PATH_LEN - start;
	if (len > size - 1) {
		start += len - (size - 1);
		len = size - 1;
		cursor.truncated = true;
	}
	start &= PATH_LEN - 1;
	/* The NUL after the end of the path is work->bytes[PATH_LEN], which nothing writes. */
	bpf_probe_read_kernel_str(to, (len + 1) & (2 * PATH_LEN - 1), &work->bytes[start]);
	return cursor.truncated;
}

#endif
