/* SPDX-License-Identifier: MIT */
#include "base/sched.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define BACKGROUND_NICE 10

static void set(pid_t tid, bool background)
{
    sched_setscheduler(tid, background ? SCHED_BATCH : SCHED_OTHER, &(struct sched_param){0});
    setpriority(PRIO_PROCESS, (id_t)tid, background ? BACKGROUND_NICE : 0);
}

#define WORKER "iou-wrk-" /* and who it works for, by a number that another PID namespace does not know */

static bool is_worker(pid_t tid)
{
    char path[64], comm[sizeof WORKER - 1];

    snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, comm, sizeof comm);
    if (fd >= 0)
        close(fd);
    return n == sizeof comm && !memcmp(comm, WORKER, sizeof comm);
}

/* The kernel's own threads for what io_uring does not do at once: they began with what their thread had then,
 * and stay as long as there is work. */
static void workers_come_along(void)
{
    DIR *d = opendir("/proc/self/task");

    for (struct dirent *f; d && (f = readdir(d));) {
        pid_t tid = atoi(f->d_name);
        if (tid > 0 && is_worker(tid))
            set(tid, false);
    }
    if (d)
        closedir(d);
}

void xm_sched_background(pid_t tid, bool background)
{
    set(tid ? tid : gettid(), background);
    if (!tid && !background)
        workers_come_along();
}
