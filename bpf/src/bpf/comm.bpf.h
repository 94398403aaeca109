/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What an executable is by its comm: the last component of the path given to execve(2), cut to 15 bytes. A name says little
 * of a file, so only policies that ask for it by a pattern look at it.
 */
#ifndef PORTCULLIS_COMM_H
#define PORTCULLIS_COMM_H

/*
 * The id of the policy's longest pattern that comm matches; 0 for none. Once the exec is final the kernel has set comm, and
 * nothing can have changed it yet; before that it is still the caller's, and the name that it is invoked by tells it in advance.
 *
 * Not inline, so that its key takes no room on the caller's stack; not static, so that the verifier looks at it once.
 */
__attribute__((noinline)) u32 comm_pattern(const struct execution *exec, const struct name_key *invoked)
{
	struct comm_key key = { .bits = 8 * (sizeof(key) - sizeof(key.bits)) };
	u32 *pattern;

	if (!exec || !invoked)
		return 0;
	key.policy = exec->in.container.policy;
	if (exec->argv)
		bpf_get_current_comm(key.comm, COMM_LEN);
	else
		__builtin_memcpy(key.comm, invoked->name, COMM_LEN - 1);
	pattern = bpf_map_lookup_elem(&comm_patterns, &key);
	return pattern ? *pattern : 0;
}

#endif
