/* SPDX-License-Identifier: MIT */
/* mirror/vhost_drain.c: how the control thread has something done on the engine's thread, and waits for
 * requests in flight around it. */
#include "mirror/vhost_handle.h"

#include <time.h>

#define DRAIN_NOTICE_S 10

static void run_job(void *arg)
{
    struct job *j = arg;
    j->ret = j->fn(j);
}

int vhost_on_engine(struct job *j, int (*fn)(struct job *))
{
    j->fn = fn;
    xm_mailbox_call(&j->dev->engine->mailbox, run_job, j);
    return j->ret;
}

static bool is_drained(const struct xm_breq *b, void *arg)
{
    const struct ring *r = xm_container_of(b, const struct blk_req, b)->owner;
    const struct xm_vhost *d = arg;

    return d->draining == DRAIN_ALL || d->draining == (int)r->index;
}

static int after_drain(struct job *j)
{
    xm_disk_room_refuse(j->dev->disk, NULL, NULL);
    return j->after(j);
}

static int begin_drain(struct job *j)
{
    int err = j->before(j);

    if (err)
        return err;
    j->dev->draining = j->which;
    xm_disk_room_refuse(j->dev->disk, is_drained, j->dev);
    if (rings_idle(j->dev, j->which))
        return after_drain(j);
    j->dev->drain = j->which;
    j->waits = true;
    return 0;
}

int vhost_drained(struct job *j, int which, int (*before)(struct job *), int (*after)(struct job *))
{
    j->which = which;
    j->before = before;
    j->after = after;
    j->waits = false;
    int err = vhost_on_engine(j, begin_drain);
    if (!j->waits)
        return err;
    while (j->waits) {
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        ts.tv_sec += DRAIN_NOTICE_S;
        if (!sem_timedwait(&j->dev->drained, &ts))
            j->waits = false;
        else if (errno == ETIMEDOUT)
            xm_log(XM_LOG_WARN, "%s: requests have been in flight for %d s; still waiting for them",
                   j->dev->path, DRAIN_NOTICE_S);
    }
    return vhost_on_engine(j, after_drain);
}
