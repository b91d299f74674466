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

static bool is_called(pid_t tid, const char *name)
{
    char path[64], comm[32];
    int fd;

    snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, comm, sizeof comm - 1);
    if (fd >= 0)
        close(fd);
    return n > 0 && (size_t)n == strlen(name) + 1 && !strncmp(comm, name, strlen(name));
}

/* The kernel's own threads for what io_uring does not do at once: they began with what we had then, and stay
 * as long as there is work. */
static void set_workers(bool background)
{
    char name[16];
    DIR *d = opendir("/proc/self/task");

    snprintf(name, sizeof name, "iou-wrk-%d", gettid());
    for (struct dirent *f; d && (f = readdir(d));) {
        pid_t tid = atoi(f->d_name);
        if (tid > 0 && is_called(tid, name))
            set(tid, background);
    }
    if (d)
        closedir(d);
}

void xm_sched_background(pid_t tid, bool background)
{
    set(tid ? tid : gettid(), background);
    if (!tid)
        set_workers(background);
}
