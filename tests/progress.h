/* SPDX-License-Identifier: MIT */
/* tests/progress.h: time limits of tests that count what the machine could do, not seconds.
 *
 * A limit runs by the share of a processor that a task which wants to run gets: on a quiet machine as the
 * clock does, on two processors with ten tasks that run five times slower. Every 50 ms /proc/stat is asked
 * for the tasks that run or wait for a disk, and for the time that the hypervisor gave to others ("steal").
 * Where nobody asked for longer (the asker had no processor either, or the machine stood still), that time
 * counts as 100 ms at most.
 *
 * A limit is for what hangs: no test asserts by it that something was fast. */
#ifndef XM_TESTS_PROGRESS_H
#define XM_TESTS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct limit {
    uint64_t left_ns;              /* of progress */
    uint64_t began_ns, sampled_ns; /* CLOCK_MONOTONIC */
    uint64_t cap_ns;               /* real time after which it is over whatever the machine did */
    uint64_t steal;                /* ticks, at the last sample */
};

/* Of one thread. Nothing to free. The cap is LIMIT_CAP times the seconds. */
#define LIMIT_CAP 20
struct limit limit_start(double seconds);
/* To be asked again and again while waiting, at least every 100 ms; cheap when asked more often. */
bool limit_over(struct limit *);
double limit_elapsed(const struct limit *); /* real seconds since its start */

/* limit_over with a pause of 5 ms before, for loops: for (l = limit_start(10); !done() && limit_wait(&l);) */
bool limit_wait(struct limit *);

/* For calls that take a deadline by the clock (xm_now() + LIMIT_HANG_NS, poll's timeout): only what hangs
 * reaches it, also where a processor is shared by twenty. */
#define LIMIT_HANG_MS 200000
#define LIMIT_HANG_NS (LIMIT_HANG_MS * UINT64_C(1000000))

#endif
