/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PID 1 of the virtual machine: runs the command in /vm/argv (NUL-terminated strings), copies its output to the virtio
 * console, reaps orphans, and ends the machine with the command's exit status.
 *
 * The output goes through a pipe so that the command does not take the console for a terminal, and is complete when the
 * machine ends: the console's driver waits for the host to have taken each write.
 *
 * The status is written to QEMU's debug console (port 0xe9, a file on the host), then the machine ends through
 * isa-debug-exit (port 0xf4): 0 for success, 1 for any other status. A machine that ends any other way has not succeeded.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define STATUS_PORT 0xe9
#define EXIT_PORT 0xf4

static int console = -1;

static void finish(int status)
{
	char text[16];

	sync();
	if (console >= 0)
		tcdrain(console);
	snprintf(text, sizeof(text), "%d\n", status);
	if (iopl(3) == 0) {
		for (const char *c = text; *c; c++)
			outb(*c, STATUS_PORT);
		outl(status ? 1 : 0, EXIT_PORT);
	}
	/* Not reached; PID 1 ending is a panic, and a panic is a failure. */
	_exit(1);
}

static void fail(const char *what)
{
	fprintf(stderr, "vm/run: %s: %s\n", what, strerror(errno));
	finish(125);
}

static char **read_argv(void)
{
	static char buf[1 << 20];
	static char *argv[4096];
	size_t used = 0, argc = 0;
	ssize_t n;
	int fd = open("/vm/argv", O_RDONLY);

	if (fd < 0)
		fail("/vm/argv");
	while ((n = read(fd, buf + used, sizeof(buf) - 1 - used)) > 0)
		used += n;
	close(fd);
	for (char *arg = buf; arg < buf + used && argc < 4095; arg += strlen(arg) + 1)
		argv[argc++] = arg;
	return argv;
}

static void open_console(void)
{
	struct termios raw;

	console = open("/dev/hvc0", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (console < 0)
		fail("/dev/hvc0");
	if (tcgetattr(console, &raw) == 0) {
		cfmakeraw(&raw);
		tcsetattr(console, TCSANOW, &raw);
	}
}

static pid_t start(char **argv, int output)
{
	pid_t pid = fork();
	int null;

	if (pid < 0)
		fail("fork");
	if (pid > 0)
		return pid;
	setsid();
	null = open("/dev/null", O_RDONLY);
	dup2(null, 0);
	dup2(output, 1);
	dup2(output, 2);
	close(null);
	execvp(argv[0], argv);
	fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Copies what is there; returns 0 at the end of the input. */
static int copy(int from)
{
	char buf[4096];
	ssize_t n = read(from, buf, sizeof(buf));

	if (n < 0)
		return errno == EINTR;
	for (ssize_t done = 0; done < n;) {
		ssize_t w = write(console, buf + done, n - done);

		if (w < 0 && errno != EINTR)
			fail("write to the console");
		if (w > 0)
			done += w;
	}
	return n > 0;
}

/* Reaps everything; returns true once the command itself was among it. */
static int reap(pid_t command, int *status)
{
	int found = 0, s;
	pid_t pid;

	while ((pid = waitpid(-1, &s, WNOHANG)) > 0) {
		if (pid != command)
			continue;
		found = 1;
		*status = WIFSIGNALED(s) ? 128 + WTERMSIG(s) : WEXITSTATUS(s);
	}
	return found;
}

int main(void)
{
	int out[2], status = 125, ended = 0;
	char **argv = read_argv();
	pid_t command;

	open_console();
	if (pipe2(out, O_CLOEXEC))
		fail("pipe2");
	command = start(argv, out[1]);
	close(out[1]);
	/* The command's background processes may keep the pipe open: its own end is what counts. */
	for (;;) {
		struct pollfd p = { .fd = out[0], .events = POLLIN };
		int ready = poll(&p, 1, ended ? 0 : 20);

		if (ready > 0 && !copy(out[0])) {
			/* All closed their output; only the end is awaited. */
			p.fd = -1;
			close(out[0]);
			out[0] = -1;
		}
		if (ready <= 0 && ended)
			break;
		if (!ended)
			ended = reap(command, &status);
	}
	finish(status);
}
