// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Portcullis in the kernel: what happens when something in a guarded container calls execve(2).
 *
 * Backend lsm (kernel 6.0): two programs on each container's own cgroup.
 *   pc_bprm_check      before the point of no return: a match that the policy blocks ends in EPERM.
 *   pc_bprm_committed  the exec is final, the new program has not run yet: reports what was let through, and remembers
 *                      the image for later signals' lineage.
 * Backend tracepoint (kernel 5.17, for bpf_loop): one program for the whole node.
 *   pc_sched_exec      the exec is final: reports, and ends with SIGKILL what the policy blocks, before its first
 *                      instruction in user space.
 *
 * Parts: maps.bpf.h, task.bpf.h (whose is it), identify.bpf.h (what is it), path/argv/process.bpf.h (what is to tell about
 * it), event.bpf.h (telling). Each helper's failure is counted.
 */
#include "vmlinux_min.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "abi.h"
#include "maps.bpf.h"
#include "task.bpf.h"
#include "path.bpf.h"
#include "argv.bpf.h"
#include "process.bpf.h"
#include "identify.bpf.h"
#include "event.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ALLOW 1
#define DENY 0 /* EPERM to the caller */

/* Whether the match is to be stopped here; otherwise says how it is reported. */
static __always_inline bool must_stop(const struct membership *m, const struct match *match, enum verdict *verdict)
{
	if (match->action != ACTION_BLOCK) {
		*verdict = VERDICT_DETECTED;
		return false;
	}
	*verdict = VERDICT_WOULD_BLOCK;
	return m->container.mode == MODE_ENFORCE;
}

/* The exec is final: report it, kill it if the policy says so, remember it. */
static __always_inline void executed(const struct execution *exec, enum backend backend)
{
	struct membership m = {};
	struct match match = {};
	enum verdict verdict;

	/* After a change of backend containers of both kinds run; each is one program's business. */
	if (!find_container(&m) || m.container.backend != backend)
		return;
	identify(&match, exec->bprm, m.container.policy);
	if (match.action != ACTION_IGNORE) {
		if (must_stop(&m, &match, &verdict)) {
			if (bpf_send_signal(9) == 0) {
				verdict = VERDICT_KILLED;
			} else {
				COUNT(signal_failed);
				verdict = VERDICT_DETECTED;
			}
		}
		emit(exec, &m, &match, verdict);
	}
	record_process(exec, &m);
}

SEC("lsm_cgroup/bprm_check_security")
int BPF_PROG(pc_bprm_check, struct linux_binprm *bprm)
{
	struct execution exec = { .bprm = bprm, .hook = HOOK_BPRM_CHECK };
	struct membership m = {};
	struct match match = {};
	enum verdict verdict;

	if (!find_container(&m) || m.container.backend != BACKEND_LSM)
		return ALLOW;
	identify(&match, bprm, m.container.policy);
	if (match.action == ACTION_IGNORE || !must_stop(&m, &match, &verdict))
		return ALLOW;
	exec.argc = bprm->argc;
	emit(&exec, &m, &match, VERDICT_BLOCKED);
	return DENY;
}

/* The kernel demands ALLOW from a hook that can't refuse. */
SEC("lsm_cgroup/bprm_committed_creds")
int BPF_PROG(pc_bprm_committed, struct linux_binprm *bprm)
{
	struct execution exec = {
		.bprm = bprm,
		.argv = bprm->p,
		.argc = bprm->argc,
		.hook = HOOK_BPRM_COMMITTED,
	};

	executed(&exec, BACKEND_LSM);
	return ALLOW;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(pc_sched_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct execution exec = {
		.bprm = bprm,
		.argv = BPF_CORE_READ(task, mm, arg_start),
		.argc = bprm->argc,
		.hook = HOOK_TRACEPOINT,
	};

	executed(&exec, BACKEND_TRACEPOINT);
	return 0;
}
