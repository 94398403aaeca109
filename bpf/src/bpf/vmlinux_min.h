/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The few kernel types that the programs look into, with only the members that they read. CO-RE finds each member by
 * name in the running kernel's BTF, so order and offsets here mean nothing. Kept by hand: a dump of the whole kernel
 * would be 100,000 lines of which we need 100. A type with a ___suffix is another kernel version's shape of it.
 */
#ifndef PORTCULLIS_VMLINUX_MIN_H
#define PORTCULLIS_VMLINUX_MIN_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qstr {
	u32 len;
	const unsigned char *name;
};

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
};

struct inode {
	unsigned short i_mode;
	unsigned int i_nlink;
	unsigned long i_ino;
	s64 i_size;
	struct super_block *i_sb;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct in6_addr {
	u8 bytes[16];
};

struct sock_common {
	u32 skc_daddr;
	u32 skc_rcv_saddr;
	u16 skc_dport;
	/* In host byte order. */
	u16 skc_num;
	unsigned short skc_family;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	u16 sk_protocol;
};

struct socket {
	struct sock *sk;
};

struct iovec {
	void *iov_base;
	u64 iov_len;
};

enum iter_type {
	ITER_UBUF,
	ITER_IOVEC,
};

struct iov_iter {
	u8 iter_type;
	u64 count;
	const struct iovec *__iov;
	void *ubuf;
};

/* Up to 6.3. */
struct iov_iter___6_3 {
	const struct iovec *iov;
};

struct msghdr {
	void *msg_name;
	struct iov_iter msg_iter;
};

struct ns_common {
	unsigned int inum;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
};

struct fs_struct {
	struct path root;
	struct path pwd;
};

struct mm_struct {
	unsigned long arg_start;
	unsigned long arg_end;
	struct file *exe_file;
};

struct kernfs_node {
	u64 id;
};

struct bpf_map {
	u32 id;
};

typedef unsigned int fmode_t;

struct cgroup {
	int level;
	struct kernfs_node *kn;
	/* Since 6.1: a flexible array, one entry a level. */
	struct cgroup *ancestors[];
};

/* Before 6.1. */
struct cgroup___ids {
	u64 ancestor_ids[1];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct tty_struct {
	char name[64];
};

struct signal_struct {
	struct tty_struct *tty;
};

typedef struct {
	u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct task_struct {
	int pid;
	int tgid;
	u64 start_boottime;
	unsigned int ptrace;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct signal_struct *signal;
	struct fs_struct *fs;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct mm_struct *mm;
	struct css_set *cgroups;
	const struct cred *real_cred;
};

struct linux_binprm {
	unsigned long p;
	struct file *file;
	int argc;
	const char *filename;
	/* Another string than filename once a script's interpreter has taken the script's place. */
	const char *interp;
	/* The beginning of the file, with zeroes after its end. */
	char buf[256];
};

/* Registers of the system call that is under way, by architecture. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long si;
	unsigned long dx;
	unsigned long cx;
	unsigned long orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	u64 regs[31];
};
struct pt_regs {
	union {
		struct user_pt_regs user_regs;
		struct {
			u64 regs[31];
		};
	};
	int syscallno;
};
#endif

#pragma clang attribute pop

#endif
