// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What cuts a container off from the network: attached to its cgroup while that is wanted, so every socket that was opened
 * in it loses its packets both ways, connections that exist already included. An object of its own, without maps: it is
 * loaded when somebody asks for it, and no node has to take it otherwise.
 */
#include <stdbool.h>
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* LOOPBACK_IFINDEX of net/flow.h: every network namespace begins with its loopback device, which can't be removed. */
#define LOOPBACK_IFINDEX 1

#define PASS 1
#define DROP 0

static __always_inline int only_loopback(const struct __sk_buff *packet)
{
	return packet->ifindex == LOOPBACK_IFINDEX ? PASS : DROP;
}

/* The device is the one that the packet leaves by. */
SEC("cgroup_skb/egress")
int pc_isolate_egress(struct __sk_buff *packet)
{
	return only_loopback(packet);
}

/* The one that it came by. */
SEC("cgroup_skb/ingress")
int pc_isolate_ingress(struct __sk_buff *packet)
{
	return only_loopback(packet);
}
