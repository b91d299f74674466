/* SPDX-License-Identifier: MIT */
/* tests/bench/bench.h: what every benchmark shares: two hosts out of network namespaces, disks, processes
 * that end with us, statistics, and the rows of build/bench/results.json.
 *
 * A program measures one or more of the benches that `make bench-NAME` knows; NAME is its first argument.
 * XM_BENCH_RUNS (5): runs of each side. XM_BENCH_SHRINK (1): divides all sizes, to try a bench out. */
#ifndef XM_BENCH_H
#define XM_BENCH_H

#include "base/base.h"
#include <sys/types.h>

/* Begins a bench: its old rows go from results.json. Rows, notes and failures from now on are its. */
void bench_begin(const char *name);
unsigned bench_runs(void);
/* Three fifths of that: where a run tells little that is new (a small spread, a goal far off), and takes
 * long. */
unsigned bench_runs_few(void);
uint64_t bench_size(uint64_t full); /* shrunk, a multiple of 1 MiB */

/* Two namespaces «A» and «B» joined by `links` veth pairs: 10.(50+i).0.1 and .2. Gone at exit, also after a
 * signal. */
int bench_hosts(unsigned links);
int bench_enter(char host); /* the calling process (single-threaded) lives in that namespace from now on */
const char *bench_ns(char host);
/* The namespaces are others' (a lab's). */
void bench_use_ns(const char *a, const char *b);

/* Runs a shell command; 0 when it succeeds. Says the command when it fails. */
int bench_run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Its first line of output, without the newline; empty when it fails. Static storage. */
const char *bench_ask(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* exec'ed by sh; killed at exit. */
pid_t bench_spawn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
pid_t bench_fork(void); /* like fork; the child is killed when we end */
void bench_kill(pid_t);
int bench_wait(pid_t); /* its exit status */
/* To be run by sh when we end, whatever the reason; before namespaces and directories go. */
void bench_at_exit(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A scratch directory under build/bench (on the real disk) or /dev/shm; removed at exit. */
const char *bench_dir(bool in_memory);
/* A loop device over a new sparse file of that size in memory; detached at exit. Its path, static storage per
 * call. */
const char *bench_loop(const char *name, uint64_t size);
/* The loop device reads as zeros: they are written, so that it keeps its memory. */
int bench_clear(const char *dev);
/* 0 when two files or devices hold the same in their first size bytes, or come to it within so many seconds.
 * Read without the page cache, which would take as much memory again. */
int bench_same(const char *a, const char *b, uint64_t size, unsigned seconds);
/* For what takes much new memory while it is timed: so much of it is there for the next two seconds. A
 * virtual machine that reports its free pages gives them back to its own host two seconds after they were
 * freed, and waits for each when it is needed again (here 2 s a GiB, where memory that is there takes 0.1).
 */
void bench_touch(uint64_t bytes);
int bench_fill_random(const char *path, uint64_t size);

/* CPU seconds: of ended children that were waited for; of the whole machine since boot; of one process. */
double bench_cpu_children(void);
double bench_cpu_machine(void);
double bench_cpu_of(pid_t);

/* Statistics over the runs of one side. */
struct bench_stat {
    double v[64];
    unsigned n;
};
void bench_add(struct bench_stat *, double);
double bench_median(const struct bench_stat *);
double bench_min(const struct bench_stat *);
double bench_max(const struct bench_stat *);

/* One row of results.json, and a line on stdout. goal: the ratio ours/peer to reach. */
void bench_result(const char *unit, const struct bench_stat *ours, const struct bench_stat *peer,
                  const char *peer_name, double goal, bool higher_is_better);
/* Beside peers of several versions: the row is the pair whose peer did best, by its median; the others stand
 * in «beside». Peers that were not measured are passed over. */
struct bench_pair {
    const char *version;
    const struct bench_stat *ours, *peer;
};
void bench_result_better(const char *unit, const struct bench_pair *, unsigned pairs, const char *peer_name,
                         double goal, bool higher_is_better);
/* Goes into the next row: what the figures alone do not say. */
void bench_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A row that says why; the bench counts as not met. */
void bench_unable(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same, and the end. */
void bench_die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif
