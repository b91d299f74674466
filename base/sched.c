/* SPDX-License-Identifier: MIT */
#include "base/sched.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#define BACKGROUND_NICE 10

void xm_sched_background(pid_t tid, bool background)
{
    if (!tid)
        tid = gettid();
    sched_setscheduler(tid, background ? SCHED_BATCH : SCHED_OTHER, &(struct sched_param){0});
    setpriority(PRIO_PROCESS, (id_t)tid, background ? BACKGROUND_NICE : 0);
}
