/* SPDX-License-Identifier: MIT */
/* memxfer/inject.h: system calls of another process, made by that process itself. Private to memxfer. */
#ifndef XM_MEMXFER_INJECT_H
#define XM_MEMXFER_INJECT_H

#include "base/base.h"
#include <sys/types.h>

/* Makes one thread of the process call userfaultfd(2) and takes the descriptor over; nothing stays behind in
 * the process. Returns the descriptor (close-on-exec) or -errno: -ESRCH: no such process or it ended
 * meanwhile; -EPERM: not allowed, the sentence says by what; -ENOSYS: not on this architecture or kernel;
 * -EBUSY: somebody else traces it. Any thread. */
int inject_uffd(pid_t pid, struct xm_error *);

struct inject_call {
    long nr;
    uint64_t arg[3];
    int64_t result; /* of the kernel: a negative errno is the call's own failure */
};
/* Makes one thread of the process do these calls, one after the other. 0, or -errno as above: then some
 * may have been done. The thread stands still for others meanwhile: calls that take milliseconds, not
 * seconds. */
int inject_calls(pid_t pid, struct inject_call *, unsigned n, struct xm_error *);

/* What they are made of (inject_target.c). */

/* Address of a system call instruction in the process's executable memory. */
int inject_find_syscall(pid_t pid, uint64_t *address, struct xm_error *);
/* Fills tids, best first, with threads that may be stopped for a moment: no vCPUs (running guest code or
 * named so), nothing that cannot be stopped. Returns how many. */
unsigned inject_pick_threads(pid_t pid, pid_t *tids, unsigned max);
/* A number from /proc/PID/task/TID/status ("TracerPid", "Seccomp"), or -1. */
long inject_thread_status(pid_t pid, pid_t tid, const char *key);

#endif
