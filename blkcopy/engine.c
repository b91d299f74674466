/* SPDX-License-Identifier: MIT */
/* The part of the I/O engine that all implementations share: timers, counting, the choice of one. */
#include "blkcopy/engine.h"
#include "base/base.h"

#include <stdlib.h>

#define DEPTH_MAX 4096u

int xm_engine_init(struct xm_engine *e, const struct xm_engine_ops *ops)
{
    e->ops = ops;
    TAILQ_INIT(&e->timers);
    e->firing = 0;
    e->inflight = 0;
    e->before_wait = NULL;
    e->before_wait_ctx = NULL;
    return xm_mailbox_init(&e->mailbox);
}

void xm_engine_fini(struct xm_engine *e)
{
    xm_mailbox_destroy(&e->mailbox);
}

void xm_engine_own(struct xm_engine *e)
{
    xm_mailbox_own(&e->mailbox);
}

void xm_engine_submit(struct xm_engine *e, struct xm_io *io)
{
    e->inflight++;
    e->ops->submit(e, io);
}

void xm_engine_end(struct xm_engine *e, struct xm_io *io, int res)
{
    e->inflight--;
    io->done(io, res);
}

int xm_engine_watch(struct xm_engine *e, struct xm_watch *w)
{
    return e->ops->watch(e, w);
}

void xm_engine_unwatch(struct xm_engine *e, struct xm_watch *w)
{
    if (w->active)
        e->ops->unwatch(e, w);
}

void xm_engine_turn(struct xm_engine *e)
{
    e->ops->turn(e);
}

uint64_t xm_engine_now(struct xm_engine *e)
{
    return e->ops->now ? e->ops->now(e) : xm_now();
}

void xm_engine_free(struct xm_engine *e)
{
    if (e)
        e->ops->free(e);
}

void xm_engine_timer_set(struct xm_engine *e, struct xm_timer *t, uint64_t when)
{
    struct xm_timer *before;

    xm_engine_timer_cancel(e, t);
    /* What a firing timer sets, itself included, is not due in this pass: no timer can starve the others. */
    t->when = e->firing && when <= e->firing ? e->firing + 1 : when;
    t->armed = true;
    /* From the end: most timers are set for later than those that are there. Equal times fire in the order
     * they were set. */
    TAILQ_FOREACH_REVERSE(before, &e->timers, xm_timers, link)
    {
        if (before->when <= t->when)
            break;
    }
    if (before)
        TAILQ_INSERT_AFTER(&e->timers, before, t, link);
    else
        TAILQ_INSERT_HEAD(&e->timers, t, link);
}

void xm_engine_timer_cancel(struct xm_engine *e, struct xm_timer *t)
{
    if (!t->armed)
        return;
    TAILQ_REMOVE(&e->timers, t, link);
    t->armed = false;
}

unsigned xm_engine_fire_timers(struct xm_engine *e)
{
    struct xm_timer *t;
    unsigned fired = 0;

    if (TAILQ_EMPTY(&e->timers))
        return 0;
    uint64_t now = xm_engine_now(e);
    e->firing = now;
    while ((t = TAILQ_FIRST(&e->timers)) && t->when <= now) {
        xm_engine_timer_cancel(e, t);
        fired++;
        t->fire(t);
    }
    e->firing = 0;
    return fired;
}

uint64_t engine_patience(struct xm_engine *e)
{
    struct xm_timer *t = TAILQ_FIRST(&e->timers);

    if (!t)
        return UINT64_MAX;
    uint64_t now = xm_engine_now(e);
    return t->when > now ? t->when - now : 0;
}

void engine_end_all(struct xm_engine *e, struct requests *ended)
{
    struct requests todo = TAILQ_HEAD_INITIALIZER(todo);
    struct xm_io *io;

    TAILQ_CONCAT(&todo, ended, link);
    while ((io = TAILQ_FIRST(&todo))) {
        TAILQ_REMOVE(&todo, io, link);
        xm_engine_end(e, io, io->res);
    }
}

struct xm_engine *xm_engine_open(enum xm_engine_kind kind, unsigned depth, struct xm_error *e)
{
    struct xm_error why = {0};

    if (depth == 0 || depth > DEPTH_MAX) {
        xm_error_set(e, EINVAL, "an I/O engine of depth %u: it must be 1 to %u", depth, DEPTH_MAX);
        return NULL;
    }
    if (kind == XM_ENGINE_LIBAIO)
        return aio_open(depth, e);
    struct xm_engine *engine = uring_open(depth, &why);
    if (engine)
        return engine;
    if (kind == XM_ENGINE_AUTO) {
        xm_log(XM_LOG_INFO, "%s; using libaio instead", why.text);
        engine = aio_open(depth, e);
        if (!engine)
            xm_error_prefix(e, "%s", why.text);
        return engine;
    }
    if (e)
        *e = why;
    return NULL;
}
