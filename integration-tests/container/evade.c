/*
 * Executes a program in ways that hide what it is. The tests' image has it, static, as /opt/evade.
 *
 *   evade as NAME FILE ARGUMENT…   argv[0] is NAME
 *   evade fd FILE ARGUMENT…        through /proc/self/fd
 *   evade fexecve FILE ARGUMENT…   through a file descriptor alone
 *   evade memfd FILE ARGUMENT…     a copy in memory
 *   evade deleted FILE ARGUMENT…   a copy that is deleted before
 *   evade socket FILE ARGUMENT…    with a TCP socket as standard input
 *   evade connected FILE ARG…      the same, connected to a listener on loopback
 *   evade open raw|packet          opens such a socket and says so
 *   evade traced FILE ARGUMENT…    by a process that another one traces
 *   evade race TRIES FILE GOOD BAD [ARGUMENT…]
 *                                  executes FILE as `busybox ARGUMENT… GOOD` while another process turns GOOD into BAD and
 *                                  back; prints how often each ran (BAD must end with status 1), was refused, was killed
 *   evade spawn TIMES              executes itself so often and waits for each; prints the microseconds of all
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void copy(int to, const char *file)
{
	int from = open(file, O_RDONLY);
	ssize_t n;

	if (from < 0)
		err(2, "%s", file);
	while ((n = sendfile(to, from, NULL, 1 << 20)) > 0)
		;
	if (n < 0)
		err(2, "copying %s", file);
	close(from);
}

static int fresh_memfd(const char *file)
{
	int fd = memfd_create("innocent", MFD_CLOEXEC);

	copy(fd, file);
	return fd;
}

static int deleted(const char *file)
{
	int to = open("gone", O_CREAT | O_WRONLY | O_TRUNC, 0755);
	int fd;

	copy(to, file);
	close(to);
	fd = open("gone", O_RDONLY | O_CLOEXEC);
	unlink("gone");
	return fd;
}

static void connect_to_itself(int sock)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(listener, (void *)&address, len) || listen(listener, 1) || getsockname(listener, (void *)&address, &len) ||
	    connect(sock, (void *)&address, len))
		err(2, "loopback");
}

/* Ends like the traced process. */
static void trace(const char *file, char **argv)
{
	int status = 0;
	pid_t pid = fork();

	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			err(2, "ptrace");
		execve(file, argv, environ);
		err(126, "%s", file);
	}
	while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status))
		ptrace(PTRACE_CONT, pid, NULL, NULL);
	if (WIFSIGNALED(status))
		exit(128 + WTERMSIG(status));
	exit(WEXITSTATUS(status));
}

static void race(int tries, const char *file, const char *good, const char *bad, char **before)
{
	char *name = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *argv[16] = { "busybox" };
	int argc = 1;
	int ran_good = 0, ran_bad = 0, refused = 0, killed = 0, other = 0;
	pid_t flipper;

	while (*before && argc < 14)
		argv[argc++] = *before++;
	argv[argc] = name;
	strcpy(name, good);
	flipper = fork();
	if (!flipper)
		for (;;) {
			strcpy(name, bad);
			strcpy(name, good);
		}
	for (int i = 0; i < tries; i++) {
		int status = 0;
		pid_t pid = fork();

		if (!pid) {
			int null = open("/dev/null", O_RDWR);

			dup2(null, 1);
			dup2(null, 2);
			execve(file, argv, environ);
			_exit(errno == EPERM ? 126 : 125);
		}
		waitpid(pid, &status, 0);
		if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
			killed++;
		else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
			ran_good++;
		else if (WIFEXITED(status) && WEXITSTATUS(status) == 1)
			ran_bad++;
		else if (WIFEXITED(status) && WEXITSTATUS(status) == 126)
			refused++;
		else
			other++;
	}
	kill(flipper, SIGKILL);
	printf("good %d bad %d refused %d killed %d other %d\n", ran_good, ran_bad, refused, killed, other);
	exit(0);
}

static void spawn(int times)
{
	char *argv[] = { "evade", "end", "now", NULL };
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < times; i++) {
		pid_t pid = fork();

		if (!pid) {
			execve("/opt/evade", argv, environ);
			_exit(126);
		}
		waitpid(pid, NULL, 0);
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%ld\n", (to.tv_sec - from.tv_sec) * 1000000 + (to.tv_nsec - from.tv_nsec) / 1000);
	exit(0);
}

int main(int argc, char **argv)
{
	const char *way = argc > 2 ? argv[1] : "";
	const char *file = argv[2];
	char **rest = argv + 2;

	if (!strcmp(way, "end"))
		return 0;
	if (!strcmp(way, "open")) {
		int sock = strcmp(argv[2], "raw") ? socket(AF_PACKET, SOCK_DGRAM, 0) : socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);

		if (sock < 0)
			err(126, "socket");
		printf("opened\n");
		return 0;
	}
	if (!strcmp(way, "spawn"))
		spawn(atoi(argv[2]));
	if (!strcmp(way, "as") && argc > 3) {
		file = argv[3];
		argv[3] = argv[2];
		execve(file, argv + 3, environ);
	} else if (!strcmp(way, "fd")) {
		char path[64];

		/* Not O_CLOEXEC: the path must lead somewhere until the end. */
		snprintf(path, sizeof(path), "/proc/self/fd/%d", open(file, O_RDONLY));
		execve(path, rest, environ);
	} else if (!strcmp(way, "fexecve")) {
		execveat(open(file, O_RDONLY | O_CLOEXEC), "", rest, environ, AT_EMPTY_PATH);
	} else if (!strcmp(way, "memfd")) {
		execveat(fresh_memfd(file), "", rest, environ, AT_EMPTY_PATH);
	} else if (!strcmp(way, "deleted")) {
		execveat(deleted(file), "", rest, environ, AT_EMPTY_PATH);
	} else if (!strcmp(way, "socket") || !strcmp(way, "connected")) {
		int sock = socket(AF_INET, SOCK_STREAM, 0);

		if (!strcmp(way, "connected"))
			connect_to_itself(sock);
		dup2(sock, 0);
		execve(file, rest, environ);
	} else if (!strcmp(way, "race") && argc >= 6) {
		race(atoi(argv[2]), argv[3], argv[4], argv[5], argv + 6);
	} else if (!strcmp(way, "traced")) {
		trace(file, rest);
	} else {
		errx(2, "see its source");
	}
	err(126, "%s", file);
}
