/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Sockets of programs that are no tools: who may open them unnoticed, and who may not. */
#ifndef PORTCULLIS_SOCKET_H
#define PORTCULLIS_SOCKET_H

#define SOCK_RAW 3
#define SOCK_PACKET 10
#define AF_PACKET 17
#define TCP_SYN_SENT 2
#define TCP_LISTEN 10

/*
 * A process that runs a shell or an interpreter. Kept with the task, and handed on when it forks: `sh -c '(…) &'` leaves
 * children without a parent that executed anything. All other processes have none, so they pay for one look.
 */
struct talker {
	/* KIND_SHELL, KIND_INTERPRETER, or both. */
	enum kind kinds;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct talker);
} talkers SEC(".maps");

static __always_inline void remember_talker(const struct execution *exec)
{
	struct task_struct *leader = bpf_get_current_task_btf()->group_leader;
	enum kind kinds = exec->match.kinds & (KIND_SHELL | KIND_INTERPRETER);
	struct talker *talker;

	if (!kinds) {
		bpf_task_storage_delete(&talkers, leader);
		return;
	}
	talker = bpf_task_storage_get(&talkers, leader, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (talker)
		talker->kinds = kinds;
	else
		COUNT(process_storage_failed);
}

static __always_inline void hand_on_talker(struct task_struct *parent, struct task_struct *child)
{
	struct talker *talker;

	/* A thread shares its leader's. */
	if (child->pid != child->tgid)
		return;
	talker = bpf_task_storage_get(&talkers, parent->group_leader, NULL, 0);
	if (talker && !bpf_task_storage_get(&talkers, child, talker, BPF_LOCAL_STORAGE_GET_F_CREATE))
		COUNT(process_storage_failed);
}

/* The behaviour that a connection of the current process is; 0 when it is nobody's business. */
static __always_inline u32 connecting_behaviour(void)
{
	struct talker *talker = bpf_task_storage_get(&talkers, bpf_get_current_task_btf()->group_leader, NULL, 0);

	if (!talker)
		return 0;
	return talker->kinds & KIND_SHELL ? SHELL_SOCKET : INTERPRETER_SOCKET;
}

/* The address given to connect(2), which the kernel has copied. False when it is none of the internet's. */
static __always_inline bool read_address(struct endpoint *to, u64 sockaddr)
{
	/* struct sockaddr_in and sockaddr_in6 (linux/in.h, linux/in6.h): family, port, then the address at 4 or at 8. */
	u16 head[2] = {};

	bpf_probe_read_kernel(head, sizeof(head), (void *)sockaddr);
	to->family = head[0];
	to->port = bpf_ntohs(head[1]);
	if (to->family == AF_INET)
		return bpf_probe_read_kernel(to->address, 4, (void *)(sockaddr + 4)) == 0;
	if (to->family == AF_INET6)
		return bpf_probe_read_kernel(to->address, 16, (void *)(sockaddr + 8)) == 0;
	return false;
}

/* A socket that sees, or forges, more than its own traffic. */
static __always_inline bool is_raw(int family, int type)
{
	return family == AF_PACKET || ((family == AF_INET || family == AF_INET6) && (type == SOCK_RAW || type == SOCK_PACKET));
}

/* What runs in the current process, for a finding about what it does. */
static __always_inline void fill_running(struct execution *exec)
{
	struct task_struct *task = bpf_get_current_task_btf();

	exec->file = (u64)BPF_CORE_READ(task, mm, exe_file);
	exec->argv = BPF_CORE_READ(task, mm, arg_start);
	exec->argv_end = BPF_CORE_READ(task, mm, arg_end);
	exec->match.place = place_of(exec->file);
}

#endif
