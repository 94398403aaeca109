// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Executes nc without end while faults happen, and keeps exact count. Static; tests/faults has containers mount the directory
 * that it is in, with copies of it called nc and noop, at /fault.
 *
 *   fault life COUNTS                        executes nc again and again
 *   fault flood COUNTS TIMES                 executes nc so often, each time with another argument
 *   fault execs COUNTS TIMES EVERY WORKERS   executes noop so often, but each time whose number EVERY divides nc; by so many processes
 *   fault bomb COUNTS SECONDS                forks without restraint; what it forks executes nc
 *   nc …                                     leaves the file /fault/ran: it was not stopped
 *   noop                                     does nothing
 *
 * COUNTS is a file of struct counts, mapped by all, and what is awaited of them outlives them all. What has come to its end waits
 * to be killed.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REFUSED 126

struct counts {
	/* Executions of nc about to be, and of those the ones that are known to have been stopped. */
	unsigned long begun, stopped;
	/* Executions of noop that ended well. */
	unsigned long harmless;
	/* Executions of either that ended in another way. */
	unsigned long odd;
	/* 1 when all is done. */
	unsigned long finished;
};

static struct counts *counts;

static void count(unsigned long *what)
{
	__atomic_fetch_add(what, 1, __ATOMIC_SEQ_CST);
}

static void map_counts(const char *file)
{
	int fd = open(file, O_RDWR | O_CREAT, 0600);

	if (fd < 0 || ftruncate(fd, sizeof(*counts)) < 0)
		err(2, "%s", file);
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (counts == MAP_FAILED)
		err(2, "mapping %s", file);
	close(fd);
}

static int was_stopped(int status)
{
	return WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == REFUSED;
}

static void execute_nc(const char *argument)
{
	count(&counts->begun);
	execl("/fault/nc", "nc", "-h", argument, (char *)NULL);
	_exit(errno == EPERM ? REFUSED : 1);
}

static void try_nc(const char *argument)
{
	int status;
	pid_t pid = vfork();

	if (pid == 0)
		execute_nc(argument);
	if (pid > 0 && waitpid(pid, &status, 0) == pid)
		count(was_stopped(status) ? &counts->stopped : &counts->odd);
}

static void try_noop(void)
{
	int status;
	pid_t pid = vfork();

	if (pid == 0) {
		execl("/fault/noop", "noop", (char *)NULL);
		_exit(1);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		count(&counts->odd);
	else
		count(&counts->harmless);
}

static void flood(unsigned long times)
{
	char argument[24];

	for (unsigned long i = 0; i < times; i++) {
		snprintf(argument, sizeof(argument), "%lu", i);
		try_nc(argument);
	}
}

static void execs(unsigned long times, unsigned long every, unsigned long workers)
{
	for (unsigned long worker = 0; worker < workers; worker++) {
		if (fork())
			continue;
		for (unsigned long i = worker; i < times; i += workers) {
			if (i % every)
				try_noop();
			else
				try_nc(NULL);
		}
		_exit(0);
	}
	while (wait(NULL) > 0)
		;
}

static void reap(int options)
{
	int status;

	while (waitpid(-1, &status, options) > 0)
		if (status)
			count(was_stopped(status) ? &counts->stopped : &counts->odd);
}

/* All but the first end soon, so that there is room for others and for nc. */
static void bomb(int seconds)
{
	pid_t first = getpid();
	time_t end = time(NULL) + seconds;

	for (int i = 0; time(NULL) < end && (i < 8 || getpid() == first); i++) {
		pid_t pid = fork();

		if (pid < 0)
			usleep(1000);
		if (pid == 0 && fork() == 0)
			execute_nc(NULL);
		reap(WNOHANG);
	}
	reap(0);
	if (getpid() != first)
		_exit(0);
}

int main(int argc, char **argv)
{
	const char *name = basename(argv[0]);

	if (strcmp(name, "noop") == 0)
		return 0;
	if (strcmp(name, "nc") == 0)
		return open("/fault/ran", O_WRONLY | O_CREAT, 0600) < 0;
	if (argc < 3)
		return 2;
	map_counts(argv[2]);
	if (strcmp(argv[1], "life") == 0) {
		for (;;) {
			try_nc(NULL);
			usleep(20000);
		}
	}
	if (strcmp(argv[1], "flood") == 0 && argc == 4)
		flood(strtoul(argv[3], NULL, 10));
	else if (strcmp(argv[1], "execs") == 0 && argc == 6)
		execs(strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10), strtoul(argv[5], NULL, 10));
	else if (strcmp(argv[1], "bomb") == 0 && argc == 4)
		bomb(atoi(argv[3]));
	else
		return 2;
	count(&counts->finished);
	for (;;)
		pause();
}
