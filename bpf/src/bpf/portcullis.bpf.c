// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Portcullis in the kernel: what happens when something in a guarded container calls execve(2), or opens a socket that
 * programs of its kind have no business with.
 *
 * Backend lsm (kernel 6.0): eight programs on each container's own cgroup. A kernel attaches cgroups' programs to ten
 * different hooks at most.
 *   pc_bprm_check      before the point of no return: a match that the policy blocks ends in EPERM, and so does whatever is
 *                      executed in a locked container.
 *   pc_bprm_committed  the exec is final, the new program has not run yet: reports what was let through, ends with SIGKILL
 *                      what only the true argv shows, and remembers the image for later signals' lineage.
 *   pc_mmap_file       a file is mapped as code: a match that the policy blocks ends in EPERM.
 *   pc_socket_connect  a shell or an interpreter connects a socket: the same.
 *   pc_socket_create   something opens a raw or packet socket: the same.
 *   pc_socket_bind, pc_socket_listen, pc_socket_sendmsg
 *                      and the two before: what a reported process does is told.
 * Backend tracepoint (kernel 5.17, for bpf_loop): two programs for the whole node.
 *   pc_sched_exec      the exec is final: reports, and ends with SIGKILL what the policy blocks, and whatever is executed in a
 *                      locked container, before its first instruction in user space.
 *   pc_tcp_connect     a shell or an interpreter connects by TCP, the only protocol whose connecting has a tracepoint;
 *                      SIGKILL comes before it can send anything. What a reported process connects, or listens on, is told.
 * Both:
 *   pc_sched_fork      a shell's child is a shell, and a reported process's child is that process's doing.
 *   pc_cgroup_attach   something in a guarded container moves a process of it out of its cgroup.
 * For the whole node with the backend lsm: what a guarded container does to its guard ends in EPERM.
 *   pc_bpf, pc_bpf_map, pc_unlink, pc_rmdir, pc_rename
 *
 * Parts: maps.bpf.h, task.bpf.h (whose is it), identify.bpf.h (what is it) with fingerprint.bpf.h (by its content),
 * command.bpf.h (by what it was told to run), comm.bpf.h (by a pattern of its comm) and place.bpf.h (where it is),
 * except.bpf.h (may it all the same), socket.bpf.h (what does it do) and activity.bpf.h (after it was reported), path/argv/process.bpf.h (what is to tell about it), event.bpf.h (telling), protect.bpf.h (what is done to the
 * guard itself). Each helper's failure is counted.
 */
#include "vmlinux_min.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "abi.h"
#include "maps.bpf.h"
#include "task.bpf.h"
#include "path.bpf.h"
#include "argv.bpf.h"
#include "process.bpf.h"
#include "fingerprint.bpf.h"
#include "command.bpf.h"
#include "place.bpf.h"
#include "socket.bpf.h"
#include "comm.bpf.h"
#include "identify.bpf.h"
#include "except.bpf.h"
#include "activity.bpf.h"
#include "event.bpf.h"
#include "protect.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PROT_EXEC 4

#define ALLOW 1
#define DENY 0 /* EPERM to the caller */

/* Whether the match is to be stopped here; otherwise says how it is reported. */
static __always_inline bool must_stop(struct execution *exec)
{
	if (exec->match.action != ACTION_BLOCK) {
		exec->verdict = VERDICT_DETECTED;
		return false;
	}
	exec->verdict = VERDICT_WOULD_BLOCK;
	return exec->in.container.mode == MODE_ENFORCE;
}

/* After a change of backend containers of both kinds run; each is one program's business. */
static __always_inline bool is_ours(struct execution *exec, enum backend backend)
{
	return find_container(&exec->in) && exec->in.container.backend == backend;
}

/* An argument of the program as an integer; read through the context, as a kernel pointer can't become one otherwise. */
static __always_inline u64 argument(void *ctx, u32 index)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (u64 *)ctx + index);
	return value;
}

static __always_inline void fill_execution(struct execution *exec, u64 address)
{
	struct linux_binprm *bprm = (void *)address;

	exec->bprm = address;
	exec->file = (u64)BPF_CORE_READ(bprm, file);
	exec->filename = (u64)BPF_CORE_READ(bprm, filename);
	exec->argc = BPF_CORE_READ(bprm, argc);
}

/* Ends the process. What it has executed is final, so it can't be refused any more. */
static __always_inline void kill_process(struct execution *exec)
{
	if (bpf_send_signal(9) == 0) {
		exec->verdict = VERDICT_KILLED;
	} else {
		COUNT(signal_failed);
		exec->verdict = VERDICT_DETECTED;
	}
}

/* Reports a match where nothing can be refused any more, and kills the process if the policy says so. */
static __always_inline void report_or_kill(struct execution *exec)
{
	if (must_stop(exec))
		kill_process(exec);
	emit(exec);
}

/* Reports a match. The answer to the kernel. */
static __always_inline int report_or_deny(struct execution *exec)
{
	bool stop = must_stop(exec);

	if (stop)
		exec->verdict = VERDICT_BLOCKED;
	emit(exec);
	return stop ? DENY : ALLOW;
}

/*
 * Whether an exec is to be refused because its container is locked; otherwise the match stays as it is. The runtime gets as
 * far as the program that it was to start, which is no longer its own exec: so whoever asked for that gets an answer.
 * Not inline, so that nothing of it is on the stack when the execution is judged.
 */
__attribute__((noinline)) int is_locked_out(struct execution *exec)
{
	if (!exec || is_runtime(&exec->in.container))
		return false;
	exec->match.tool = LOCKED;
	exec->match.action = ACTION_BLOCK;
	exec->match.rule = NO_RULE;
	exec->match.place = place_of(exec->file);
	return true;
}

static __always_inline bool is_locked(struct execution *exec)
{
	return exec->in.container.flags & CONTAINER_LOCKED && is_locked_out(exec);
}

/* The exec is final: report it, kill it if the policy says so, remember it. */
static __always_inline void executed(struct execution *exec)
{
	judge(exec);
	if (exec->excepted[0])
		count_excepted(exec);
	if (exec->match.action != ACTION_IGNORE)
		report_or_kill(exec);
	record_process(exec);
	remember_talker(exec);
}

SEC("lsm_cgroup/bprm_check_security")
int BPF_PROG(pc_bprm_check, struct linux_binprm *bprm)
{
	struct execution exec = { .hook = HOOK_BPRM_CHECK };

	if (!is_ours(&exec, BACKEND_LSM))
		return ALLOW;
	fill_execution(&exec, argument(ctx, 0));
	if (!is_locked(&exec)) {
		judge(&exec);
		if (exec.match.action == ACTION_IGNORE || !must_stop(&exec))
			return ALLOW;
	}
	exec.verdict = VERDICT_BLOCKED;
	emit(&exec);
	return DENY;
}

/* The kernel demands ALLOW from a hook that can't refuse. */
SEC("lsm_cgroup/bprm_committed_creds")
int BPF_PROG(pc_bprm_committed, struct linux_binprm *bprm)
{
	struct execution exec = { .hook = HOOK_BPRM_COMMITTED };

	if (!is_ours(&exec, BACKEND_LSM))
		return ALLOW;
	fill_execution(&exec, argument(ctx, 0));
	exec.argv = bprm->p;
	executed(&exec);
	return ALLOW;
}

/*
 * Code of a tool mapped into a process that executed something else: a dynamic loader that was told to run it. The loader
 * may have been given any link's name; here the file is known.
 */
SEC("lsm_cgroup/mmap_file")
int BPF_PROG(pc_mmap_file, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct execution exec = { .hook = HOOK_MMAP };
	struct process *process;
	u32 tool;

	if (!file || !(prot & PROT_EXEC))
		return ALLOW;
	exec.file = argument(ctx, 0);
	tool = tool_by_resolved_name(exec.file);
	if (!tool)
		return ALLOW;
	/* The kernel itself maps what is executed, after it was let through. */
	if (BPF_CORE_READ(task, mm, exe_file, f_inode) == BPF_CORE_READ(file, f_inode))
		return ALLOW;
	if (!is_ours(&exec, BACKEND_LSM))
		return ALLOW;
	process = bpf_task_storage_get(&processes, task->group_leader, NULL, 0);
	/* What the loader's own argv told, and was excepted. */
	if (process)
		__builtin_memcpy(exec.excepted, process->excepted, sizeof(exec.excepted));
	consider(&exec, tool, BY_MAPPING);
	if (may_pass(&exec))
		return ALLOW;
	/* The loader's own argv told it already. */
	if (process && process->tool == exec.match.tool && exec.in.container.mode != MODE_ENFORCE)
		return ALLOW;
	fill_running(&exec);
	/* What is mapped, not what maps it. */
	exec.file = argument(ctx, 0);
	exec.match.place = place_of(exec.file);
	return report_or_deny(&exec);
}

/* The same of a socket that the current process connects to exec->match.remote. */
static __always_inline int judge_connection(struct execution *exec)
{
	u32 behaviour = connecting_behaviour();

	if (!behaviour || !is_ours(exec, BACKEND_LSM))
		return ALLOW;
	fill_running(exec);
	consider(exec, behaviour, BY_SOCKET);
	return may_pass(exec) ? ALLOW : report_or_deny(exec);
}

SEC("lsm_cgroup/socket_connect")
int BPF_PROG(pc_socket_connect, struct socket *sock, struct sockaddr *address, int addrlen)
{
	struct execution exec = { .hook = HOOK_SOCKET_CONNECT };

	if (!connecting_behaviour() && !current_mark(BACKEND_LSM))
		return ALLOW;
	if (!read_address(&exec.match.remote, argument(ctx, 1)))
		return ALLOW;
	if (judge_connection(&exec) == DENY)
		return DENY;
	tell(BACKEND_LSM, OPERATION_CONNECT, (u64)BPF_CORE_READ(sock, sk), &exec.match.remote);
	return ALLOW;
}

/* The same of a raw socket that the current process opens. */
static __always_inline int judge_raw_socket(struct execution *exec)
{
	struct task_struct *leader = bpf_get_current_task_btf()->group_leader;
	struct process *process;

	if (!is_ours(exec, BACKEND_LSM) || is_runtime(&exec->in.container))
		return ALLOW;
	fill_running(exec);
	consider(exec, RAW_SOCKET, BY_SOCKET);
	if (may_pass(exec))
		return ALLOW;
	process = bpf_task_storage_get(&processes, leader, NULL, 0);
	/* A tool was reported, and this is what such tools do. */
	if (process && process->tool && exec->match.action != ACTION_BLOCK)
		return ALLOW;
	return report_or_deny(exec);
}

SEC("lsm_cgroup/socket_create")
int BPF_PROG(pc_socket_create, int family, int type, int protocol, int kern)
{
	struct execution exec = { .hook = HOOK_SOCKET_CREATE };

	if (kern || !is_raw(family, type))
		return ALLOW;
	if (judge_raw_socket(&exec) == DENY)
		return DENY;
	tell(BACKEND_LSM, OPERATION_RAW_SOCKET, 0, &exec.match.remote);
	return ALLOW;
}

SEC("lsm_cgroup/socket_bind")
int BPF_PROG(pc_socket_bind, struct socket *sock, struct sockaddr *address, int addrlen)
{
	struct endpoint endpoint = {};

	if (current_mark(BACKEND_LSM) && read_address(&endpoint, argument(ctx, 1)))
		tell(BACKEND_LSM, OPERATION_BIND, (u64)BPF_CORE_READ(sock, sk), &endpoint);
	return ALLOW;
}

SEC("lsm_cgroup/socket_listen")
int BPF_PROG(pc_socket_listen, struct socket *sock, int backlog)
{
	struct endpoint endpoint = {};
	u64 sk;

	if (!current_mark(BACKEND_LSM))
		return ALLOW;
	sk = (u64)BPF_CORE_READ(sock, sk);
	if (read_local(&endpoint, sk))
		tell(BACKEND_LSM, OPERATION_LISTEN, sk, &endpoint);
	return ALLOW;
}

/* Datagrams only. Where a connected socket's go was told when it was connected, so of those only questions are. */
SEC("lsm_cgroup/socket_sendmsg")
int BPF_PROG(pc_socket_sendmsg, struct socket *sock, struct msghdr *message, int size)
{
	struct endpoint endpoint = {};
	u64 sk, name;

	if (!current_mark(BACKEND_LSM))
		return ALLOW;
	sk = (u64)BPF_CORE_READ(sock, sk);
	if (transport_of(sk) != TRANSPORT_UDP)
		return ALLOW;
	name = (u64)BPF_CORE_READ(message, msg_name);
	if (name ? !read_address(&endpoint, name) : !read_remote(&endpoint, sk))
		return ALLOW;
	if (endpoint.port == DNS_PORT)
		tell_question(name ? OPERATION_SEND : OPERATION_QUESTION, sk, argument(ctx, 1), &endpoint);
	else if (name)
		tell(BACKEND_LSM, OPERATION_SEND, sk, &endpoint);
	return ALLOW;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(pc_sched_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct execution exec = { .hook = HOOK_TRACEPOINT };

	if (!is_ours(&exec, BACKEND_TRACEPOINT))
		return 0;
	fill_execution(&exec, argument(ctx, 2));
	exec.argv = BPF_CORE_READ(task, mm, arg_start);
	if (is_locked(&exec)) {
		kill_process(&exec);
		emit(&exec);
		return 0;
	}
	executed(&exec);
	return 0;
}

/* Reports a connection where the policy wants to know of it. Whether the process goes on. */
static __always_inline bool judge_tcp_connection(struct execution *exec)
{
	u32 behaviour = connecting_behaviour();

	if (!behaviour || !is_ours(exec, BACKEND_TRACEPOINT))
		return true;
	fill_running(exec);
	consider(exec, behaviour, BY_SOCKET);
	if (may_pass(exec))
		return true;
	report_or_kill(exec);
	return exec->verdict != VERDICT_KILLED;
}

/* States change in interrupts as well, but a connection is begun, and a socket listens, by the process that wants it. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(pc_tcp_connect, const struct sock *sock, int old_state, int new_state)
{
	struct execution exec = { .hook = HOOK_TCP_CONNECT };
	u64 sk = argument(ctx, 0);

	if (new_state != TCP_SYN_SENT && new_state != TCP_LISTEN)
		return 0;
	if (!connecting_behaviour() && !current_mark(BACKEND_TRACEPOINT))
		return 0;
	if (new_state == TCP_LISTEN) {
		if (read_local(&exec.match.remote, sk))
			tell(BACKEND_TRACEPOINT, OPERATION_LISTEN, sk, &exec.match.remote);
		return 0;
	}
	if (read_remote(&exec.match.remote, sk) && judge_tcp_connection(&exec))
		tell(BACKEND_TRACEPOINT, OPERATION_CONNECT, sk, &exec.match.remote);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(pc_sched_fork, struct task_struct *parent, struct task_struct *child)
{
	hand_on_talker(parent, child);
	hand_on_mark(parent, child);
	return 0;
}

/* Links of others are reached by ids; detaching one, or giving it another program, takes a descriptor that came from there. */
SEC("lsm/bpf")
int BPF_PROG(pc_bpf, int cmd, union bpf_attr *attr, unsigned int size)
{
	if (cmd != BPF_LINK_GET_FD_BY_ID && cmd != BPF_LINK_DETACH && cmd != BPF_LINK_UPDATE)
		return 0;
	return refuse_tampering(HOOK_BPF);
}

/* Whichever way a process gets a descriptor of a map: by its id or its pin. */
SEC("lsm/bpf_map")
int BPF_PROG(pc_bpf_map, struct bpf_map *map, fmode_t mode)
{
	u32 id = map->id;

	if (!bpf_map_lookup_elem(&own_maps, &id))
		return 0;
	return refuse_tampering(HOOK_BPF);
}

SEC("lsm/inode_unlink")
int BPF_PROG(pc_unlink, struct inode *directory, struct dentry *dentry)
{
	return is_own_pin(directory, dentry) ? refuse_tampering(HOOK_PIN) : 0;
}

SEC("lsm/inode_rmdir")
int BPF_PROG(pc_rmdir, struct inode *directory, struct dentry *dentry)
{
	return is_own_pin(directory, dentry) ? refuse_tampering(HOOK_PIN) : 0;
}

/* From among the pins, or onto one of them. */
SEC("lsm/inode_rename")
int BPF_PROG(pc_rename, struct inode *from, struct dentry *old, struct inode *to, struct dentry *new)
{
	return is_own_pin(from, old) || is_own_pin(to, new) ? refuse_tampering(HOOK_PIN) : 0;
}

/*
 * Before a process, or all of a thread group, comes into another cgroup. No hook can refuse it: whoever does it ends with
 * SIGKILL in enforce mode. The runtime brings processes in, and comes from outside.
 */
SEC("fentry/cgroup_attach_task")
int BPF_PROG(pc_cgroup_attach, struct cgroup *to, struct task_struct *leader, bool threadgroup)
{
	struct execution exec = { .hook = HOOK_CGROUP };

	if (!find_container(&exec.in) || is_runtime(&exec.in.container))
		return 0;
	if (is_below(argument(ctx, 0), exec.in.container.cgroup_id, exec.in.container.level) || !is_member(leader, &exec.in))
		return 0;
	fill_running(&exec);
	exec.match.tool = CGROUP_ESCAPE;
	exec.match.action = ACTION_BLOCK;
	exec.match.rule = NO_RULE;
	report_or_kill(&exec);
	return 0;
}
