/* SPDX-License-Identifier: MIT */
/* base/sched.h: how far a thread gives way to others. */
#ifndef XM_BASE_SCHED_H
#define XM_BASE_SCHED_H

#include <stdbool.h>
#include <sys/types.h>

/* A thread that only migrates shall not take the processors from guests nor from who serves them. In the
 * background it runs at nice 10 and as SCHED_BATCH: what wakes up does not take the place of who runs
 * (sched(7)), and so finds more to do at once; a copy takes 4 % less CPU time by it. Else nice 0 and
 * SCHED_OTHER. tid 0: the calling thread; and when it comes back, what the kernel has made for the process's
 * io_uring. Best effort: a migration does not fail for it. Going back needs CAP_SYS_NICE. */
void xm_sched_background(pid_t tid, bool background);

#endif
