/* tests/bench/bench.h: what every benchmark shares: two hosts out of network namespaces, disks, statistics,
 * results.json. */
#ifndef XM_BENCH_H
#define XM_BENCH_H

#include "base/base.h"
#include <sys/types.h>

/* Two namespaces «A» and «B» joined by `links` veth pairs: 10.(50+i).0.1 and .2. Gone at exit, also after a
 * signal. */
int bench_hosts(unsigned links);
int bench_enter(char host); /* the calling process (single-threaded) lives in that namespace from now on */
const char *bench_ns(char host);

/* Runs a shell command; 0 when it succeeds. Says the command when it fails. */
int bench_run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
pid_t bench_spawn(const char *fmt, ...)
    __attribute__((format(printf, 1, 2))); /* exec'ed by sh; killed at exit */
void bench_kill(pid_t);

/* A scratch directory under build/bench (on the real disk) or /dev/shm; removed at exit. */
const char *bench_dir(bool in_memory);
/* A loop device over a new sparse file of that size in memory; detached at exit. Returns its path (static
 * storage per call). */
const char *bench_loop(const char *name, uint64_t size);
int bench_fill_random(const char *path, uint64_t size);

/* Statistics over the runs of one side. */
struct bench_stat {
    double v[64];
    unsigned n;
};
void bench_add(struct bench_stat *, double);
double bench_median(const struct bench_stat *);
double bench_min(const struct bench_stat *);
double bench_max(const struct bench_stat *);

/* One line of results.json, and on stdout. goal: ratio ours/peer to reach (>= when higher is better, else
 * <=). */
void bench_result(const char *name, const char *unit, const struct bench_stat *ours,
                  const struct bench_stat *peer, const char *peer_name, double goal, bool higher_is_better);
void bench_unable(const char *name, const char *why);

#endif
