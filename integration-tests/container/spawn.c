// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Executes programs as benches/node tells it to, and tells what that took. Static; containers mount the directory that it is in at
 * /bench, with copies of it called noop and nc.
 *
 *   spawn NAME     reads commands from the FIFO NAME.in beside it, answers each by a line in NAME.out:
 *
 *     time FILE TIMES          forks, executes FILE and waits for its end, so often: nanoseconds, and those of them on a CPU
 *     pace FILE RATE TIMES     does the same at so many a second, each time with another argument; what is late is caught up with:
 *                              nanoseconds
 *     end
 *
 *   noop, nc       do nothing
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <libgen.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000L

static long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

static long on_cpu(int who)
{
	struct rusage usage;

	getrusage(who, &usage);
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * SECOND +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000L;
}

static void execute(const char *file, const char *argument)
{
	pid_t pid = fork();

	if (pid == 0) {
		execl(file, file, argument, (char *)NULL);
		_exit(126);
	}
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		err(2, "%s", file);
}

static void time_it(FILE *out, const char *file, long times)
{
	long begun = now(), used = on_cpu(RUSAGE_SELF) + on_cpu(RUSAGE_CHILDREN);

	for (long i = 0; i < times; i++)
		execute(file, NULL);
	fprintf(out, "%ld %ld\n", now() - begun, on_cpu(RUSAGE_SELF) + on_cpu(RUSAGE_CHILDREN) - used);
}

static void pace(FILE *out, const char *file, long rate, long times)
{
	/* Unlike those of other commands, whenever they are. */
	static long number;
	char argument[24];
	long begun = now();

	for (long i = 0; i < times; i++) {
		long due = begun + i * (SECOND / rate), wait = due - now();
		struct timespec pause = { wait / SECOND, wait % SECOND };

		if (wait > 0)
			nanosleep(&pause, NULL);
		snprintf(argument, sizeof(argument), "%ld", number++);
		execute(file, argument);
	}
	fprintf(out, "%ld\n", now() - begun);
}

/* Always the same, so that no container has the better one. */
static void stay_on_one_cpu(cpu_set_t *all)
{
	cpu_set_t last;
	int cpu = CPU_SETSIZE - 1;

	while (cpu > 0 && !CPU_ISSET(cpu, all))
		cpu--;
	CPU_ZERO(&last);
	CPU_SET(cpu, &last);
	sched_setaffinity(0, sizeof(last), &last);
}

/* Where everything lies decides how many page tables a fork has to copy: a hundredth of it all, another one in each container. */
static void lie_where_all_do(char **argv)
{
	int persona = personality(0xffffffff);

	if (persona & ADDR_NO_RANDOMIZE)
		return;
	if (personality(persona | ADDR_NO_RANDOMIZE) >= 0)
		execv("/proc/self/exe", argv);
	err(2, "personality");
}

/* Opened for both, so that neither end waits for the other to open it, and none sees an end. */
static FILE *open_fifo(const char *name, const char *suffix, const char *mode)
{
	char path[256];
	FILE *file;
	int fd;

	snprintf(path, sizeof(path), "%s.%s", name, suffix);
	fd = open(path, O_RDWR | O_CLOEXEC);
	file = fd < 0 ? NULL : fdopen(fd, mode);
	if (!file)
		err(2, "%s", path);
	setlinebuf(file);
	return file;
}

int main(int argc, char **argv)
{
	char line[256], file[128];
	cpu_set_t all;
	FILE *in, *out;
	long rate, times;

	if (strcmp(basename(argv[0]), "spawn"))
		return 0;
	if (argc != 2)
		return 2;
	lie_where_all_do(argv);
	if (chdir(dirname(argv[0])))
		return 2;
	in = open_fifo(argv[1], "in", "r");
	out = open_fifo(argv[1], "out", "w");
	sched_getaffinity(0, sizeof(all), &all);
	while (fgets(line, sizeof(line), in)) {
		if (sscanf(line, "time %127s %ld", file, &times) == 2) {
			stay_on_one_cpu(&all);
			time_it(out, file, times);
			sched_setaffinity(0, sizeof(all), &all);
		} else if (sscanf(line, "pace %127s %ld %ld", file, &rate, &times) == 3 && rate > 0) {
			pace(out, file, rate, times);
		} else {
			return strcmp(line, "end\n") ? 2 : 0;
		}
	}
	return 1;
}
