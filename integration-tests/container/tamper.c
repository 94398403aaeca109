// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What an intruder with CAP_SYS_ADMIN, CAP_BPF and the node's bpffs tries against the guard of the container that it is in:
 *
 *   tamper BPFFS CGROUPFS     each attempt is a line: what, a tab, and "done" or the name of the error
 *
 * BPFFS has the pins of one version (…/v6), CGROUPFS is the node's hierarchy. Some attempts are harmless if they succeed,
 * others take the guard away: what comes first is what does least.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int bpf(enum bpf_cmd cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

static void say(const char *what, int result)
{
	printf("%s\t%s\n", what, result < 0 ? strerrorname_np(errno) : "done");
	fflush(stdout);
}

static int map_info(int fd, struct bpf_map_info *info)
{
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(*info), .info = (unsigned long)info } };

	return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
}

/* Empties the table of containers, so that no program finds any. */
static int empty(int fd)
{
	unsigned long key;
	union bpf_attr next = { .map_fd = fd, .next_key = (unsigned long)&key };

	if (bpf(BPF_MAP_GET_NEXT_KEY, &next) < 0)
		return -1;
	union bpf_attr delete = { .map_fd = fd, .key = (unsigned long)&key };
	return bpf(BPF_MAP_DELETE_ELEM, &delete);
}

static int get_map(unsigned int id)
{
	union bpf_attr attr = { .map_id = id };

	return bpf(BPF_MAP_GET_FD_BY_ID, &attr);
}

static int get_link(unsigned int id)
{
	union bpf_attr attr = { .link_id = id };

	return bpf(BPF_LINK_GET_FD_BY_ID, &attr);
}

static int detach(int fd)
{
	union bpf_attr attr = { .link_detach = { .link_fd = fd } };

	return bpf(BPF_LINK_DETACH, &attr);
}

static int get_pinned(const char *path)
{
	union bpf_attr attr = { .pathname = (unsigned long)path };

	return bpf(BPF_OBJ_GET, &attr);
}

/* An own map is nobody's business. */
static int own_map(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1 };
	int fd = bpf(BPF_MAP_CREATE, &attr);
	struct bpf_map_info info = {};

	if (fd < 0 || map_info(fd, &info) < 0)
		return -1;
	return get_map(info.id);
}

static int own_pin(void)
{
	union bpf_attr create = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1 };
	union bpf_attr pin = { .pathname = (unsigned long)"/tmp/bpf/own", .bpf_fd = bpf(BPF_MAP_CREATE, &create) };

	mkdir("/tmp/bpf", 0700);
	if (mount("bpf", "/tmp/bpf", "bpf", 0, NULL) < 0 || bpf(BPF_OBJ_PIN, &pin) < 0)
		return -1;
	return unlink("/tmp/bpf/own");
}

static void by_id(void)
{
	union bpf_attr next = {};
	int found = -1;

	while (bpf(BPF_MAP_GET_NEXT_ID, &next) == 0) {
		struct bpf_map_info info = {};
		int fd = get_map(next.next_id);

		next.start_id = next.next_id;
		if (fd < 0) {
			/* Ours, as far as can be told from here. */
			found = -1;
			continue;
		}
		if (map_info(fd, &info) == 0 && strcmp(info.name, "containers") == 0) {
			found = fd;
			break;
		}
		close(fd);
	}
	errno = EPERM;
	say("the table of containers by its id", found);
	memset(&next, 0, sizeof(next));
	if (bpf(BPF_LINK_GET_NEXT_ID, &next) == 0)
		say("a link by its id", get_link(next.next_id));
}

/* The first entry of a directory that is none of the usual two. */
static const char *entry(const char *directory)
{
	static char path[PATH_MAX];
	struct dirent *entry;
	DIR *open = opendir(directory);

	while (open && (entry = readdir(open)))
		if (entry->d_name[0] != '.') {
			snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
			closedir(open);
			return path;
		}
	return "/nonexistent";
}

static int move(const char *procs, int pid)
{
	int fd = open(procs, O_WRONLY);
	char text[16];

	return fd < 0 ? -1 : write(fd, text, snprintf(text, sizeof(text), "%d", pid));
}

int main(int argc, char **argv)
{
	char path[PATH_MAX], links[PATH_MAX];
	int fd;

	if (argc != 3)
		return 2;
	say("a map of one's own by its id", own_map());
	say("a pin of one's own on a bpffs of one's own", own_pin());
	by_id();
	snprintf(path, sizeof(path), "%s/maps/containers", argv[1]);
	fd = get_pinned(path);
	say("the table of containers by its pin", fd);
	if (fd >= 0)
		say("an entry of that", empty(fd));
	snprintf(links, sizeof(links), "%s/links", argv[1]);
	snprintf(path, sizeof(path), "%s", entry(links));
	snprintf(path, sizeof(path), "%s", entry(strdupa(path)));
	fd = get_pinned(path);
	say("a link by its pin", fd);
	if (fd >= 0)
		say("detaching that", detach(fd));
	say("unpinning a link", unlink(path));
	snprintf(path, sizeof(path), "%s/programs/pc_bprm_check", argv[1]);
	say("unpinning a program", unlink(path));
	snprintf(path, sizeof(path), "%s/gone", argv[1]);
	say("renaming a directory of pins", rename(links, path));
	snprintf(path, sizeof(path), "%s-gone", argv[1]);
	say("renaming all of them", rename(argv[1], path));
	snprintf(path, sizeof(path), "%s/cgroup.procs", argv[2]);
	say("leaving the cgroup", move(path, getpid()));
	return 0;
}
