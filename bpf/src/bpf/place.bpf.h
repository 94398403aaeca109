/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Where an executed file is, and what its standard input and output are. */
#ifndef PORTCULLIS_PLACE_H
#define PORTCULLIS_PLACE_H

/* linux/magic.h, linux/stat.h, linux/socket.h; those headers' other contents clash with vmlinux_min.h. */
#define OVERLAYFS_SUPER_MAGIC 0x794c7630
#define TMPFS_MAGIC 0x01021994
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IWOTH 0002
#define AF_INET 2
#define AF_INET6 10

/*
 * Whether a file of overlayfs has come or was changed since the container was made. `struct ovl_inode` has the dentry in
 * the upper layer right after its inode (fs/overlayfs/ovl_entry.h, 4.19 to 7.2); overlayfs may be a module, whose
 * types a program can't be relocated against.
 */
static __always_inline bool is_in_upper_layer(struct inode *inode)
{
	struct dentry *upper = NULL;

	if (BPF_CORE_READ(inode, i_sb, s_magic) != OVERLAYFS_SUPER_MAGIC)
		return false;
	bpf_probe_read_kernel(&upper, sizeof(upper), (void *)inode + bpf_core_type_size(struct inode));
	return upper;
}

static __always_inline enum place place_of(u64 address)
{
	struct file *file = (void *)address;
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
	enum place place = 0;

	if (parent == dentry) {
		/* No directory holds it. Only memfd_create(2) makes executable files of that kind. */
		if (BPF_CORE_READ(inode, i_sb, s_magic) == TMPFS_MAGIC)
			place |= PLACE_MEMFD;
	} else {
		if (BPF_CORE_READ(parent, d_inode, i_mode) & S_IWOTH)
			place |= PLACE_WRITABLE_DIRECTORY;
		if (BPF_CORE_READ(inode, i_nlink) == 0)
			place |= PLACE_DELETED;
	}
	if (is_in_upper_layer(inode))
		place |= PLACE_UPPER_LAYER;
	return place;
}

/* runc and the like execute themselves from a memfd when they enter a container's cgroup. */
static __always_inline bool is_runtime(const struct container *container)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum) == container->node_mount_ns;
}

/* The other end of a socket; false when it is none of the internet's. */
static __always_inline bool read_remote(struct endpoint *to, u64 address)
{
	struct sock *sock = (void *)address;

	to->family = BPF_CORE_READ(sock, __sk_common.skc_family);
	to->port = bpf_ntohs(BPF_CORE_READ(sock, __sk_common.skc_dport));
	if (to->family == AF_INET) {
		bpf_core_read(to->address, 4, &sock->__sk_common.skc_daddr);
		return true;
	}
	if (to->family == AF_INET6) {
		bpf_core_read(to->address, 16, &sock->__sk_common.skc_v6_daddr);
		return true;
	}
	to->family = 0;
	return false;
}

/* A socket's own end. */
static __always_inline bool read_local(struct endpoint *to, u64 address)
{
	struct sock *sock = (void *)address;

	to->family = BPF_CORE_READ(sock, __sk_common.skc_family);
	to->port = BPF_CORE_READ(sock, __sk_common.skc_num);
	if (to->family == AF_INET)
		return bpf_core_read(to->address, 4, &sock->__sk_common.skc_rcv_saddr) == 0;
	if (to->family == AF_INET6)
		return bpf_core_read(to->address, 16, &sock->__sk_common.skc_v6_rcv_saddr) == 0;
	return false;
}

static __always_inline bool is_internet_socket(struct task_struct *task, u32 fd, struct endpoint *remote)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd);
	struct file *file = NULL;
	struct socket *socket;

	if (fd >= BPF_CORE_READ(table, max_fds) || bpf_probe_read_kernel(&file, sizeof(file), files + fd) || !file)
		return false;
	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return false;
	socket = BPF_CORE_READ(file, private_data);
	return read_remote(remote, (u64)BPF_CORE_READ(socket, sk));
}

/* What a reverse shell has; a program that is run by an internet superserver has it as well. */
static __always_inline bool stdio_is_internet_socket(struct endpoint *remote)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return is_internet_socket(task, 0, remote) || is_internet_socket(task, 1, remote);
}

#endif
