/* SPDX-License-Identifier: MIT */
/* tests/progress.c: see progress.h. */
#include "tests/progress.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE_NS  UINT64_C(50000000)
#define LONGEST_NS UINT64_C(100000000)

static uint64_t clock_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* What stands at the beginning of a line of /proc/stat, then a number. */
static unsigned long long field(const char *text, const char *name)
{
    const char *at = strstr(text, name);

    return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

struct load {
    unsigned long long busy, steal; /* tasks that run or wait for a disk; ticks of all processors */
};

/* The list of interrupts in the middle is long on large machines. */
static struct load look(void)
{
    static _Thread_local char text[65536];
    struct load load = {1, 0};
    size_t len = 0;
    ssize_t n;
    int fd = open("/proc/stat", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return load;
    while (len < sizeof(text) - 1 && (n = read(fd, text + len, sizeof(text) - 1 - len)) > 0)
        len += (size_t)n;
    close(fd);
    text[len] = 0;
    sscanf(text, "cpu %*u %*u %*u %*u %*u %*u %*u %llu", &load.steal);
    load.busy = field(text, "\nprocs_running ") + field(text, "\nprocs_blocked ");
    return load;
}

struct limit limit_start(double seconds)
{
    uint64_t now = clock_ns(), ns = (uint64_t)(seconds * 1e9);

    return (struct limit){ns, now, now, ns * LIMIT_CAP, look().steal};
}

static double share(struct limit *l, uint64_t elapsed_ns)
{
    struct load load = look();
    double cpus = (double)sysconf(_SC_NPROCESSORS_ONLN);
    double ticks = (double)elapsed_ns / 1e9 * (double)sysconf(_SC_CLK_TCK) * cpus;
    double stolen = (double)(load.steal - l->steal) / ticks;
    double part = (double)load.busy > cpus ? cpus / (double)load.busy : 1;

    l->steal = load.steal;
    return stolen < 0.9 ? part * (1 - stolen) : part * 0.1;
}

bool limit_over(struct limit *l)
{
    uint64_t now = clock_ns(), elapsed = now - l->sampled_ns, done;

    if (elapsed >= SAMPLE_NS) {
        done = (uint64_t)((double)(elapsed < LONGEST_NS ? elapsed : LONGEST_NS) * share(l, elapsed));
        l->left_ns -= done < l->left_ns ? done : l->left_ns;
        l->sampled_ns = now;
    }
    return l->left_ns == 0 || now - l->began_ns > l->cap_ns;
}

double limit_elapsed(const struct limit *l)
{
    return (double)(clock_ns() - l->began_ns) / 1e9;
}

bool limit_wait(struct limit *l)
{
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    return !limit_over(l);
}
