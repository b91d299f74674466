/* SPDX-License-Identifier: MIT */
#include "mirror/vhost_turn.h"

#include <stdlib.h>

/* How long the rings are watched before we sleep. bench-vhost in memory, 4 KiB at depth 1: p50 14 us with it,
 * 33 us without, qemu-storage-daemon 19 us. Of the guests that came back while watched, 19 of 20 did within
 * 16 us; one request in 8 came from a thread that was queued behind us on our CPU and could only run when we
 * slept, which is why it is not longer. (sched_yield instead hands the CPU to whoever computes on it, for
 * milliseconds.) */
#define TURN_POLL_NS 16000u
/* A guest whose kick woke us this soon after we went to sleep would have been seen by watching: half of it is
 * our own waking up. */
#define TURN_QUICK_NS 64000u
#define TURN_CREDIT   4
/* With more requests in flight a wake-up is for several of them. */
#define TURN_FEW 2

TAILQ_HEAD(rings, ring);

struct turn {
    struct xm_engine *engine;
    struct rings rings; /* have something to tell or to look at */
    LIST_HEAD(, ring) running;
    unsigned users;
    unsigned credit; /* how often we may watch in vain: the guest came back soon when we had nothing to do */
    uint64_t idle_since;                      /* we sleep with nothing in flight since; 0: not so */
    void (*next)(struct xm_engine *, void *); /* whoever had the hook before us */
    void *next_ctx;
    LIST_ENTRY(turn) link;
};
static LIST_HEAD(, turn) turns = LIST_HEAD_INITIALIZER(turns);
static pthread_mutex_t turns_lock =
    PTHREAD_MUTEX_INITIALIZER; /* protects the list; each turn is its engine's thread's */

void turn_add(struct turn *t, struct ring *r)
{
    if (!r->listed) {
        r->listed = true;
        TAILQ_INSERT_TAIL(&t->rings, r, link);
    }
}

void turn_remove(struct turn *t, struct ring *r)
{
    if (r->listed)
        TAILQ_REMOVE(&t->rings, r, link);
    r->listed = false;
}

void turn_running(struct turn *t, struct ring *r, bool on)
{
    if (on)
        LIST_INSERT_HEAD(&t->running, r, run_link);
    else
        LIST_REMOVE(r, run_link);
}

void turn_woken(struct turn *t)
{
    if (t->idle_since) {
        if (xm_now() - t->idle_since < TURN_QUICK_NS)
            t->credit = XM_MAX(t->credit, 1);
        else
            t->credit = 0;
        t->idle_since = 0;
    }
}

static struct ring *find_work(struct turn *t)
{
    struct ring *r;

    LIST_FOREACH (r, &t->running, run_link) {
        if (ring_has_work(r))
            return r;
    }
    return NULL;
}

static bool guests_wait(struct turn *t)
{
    struct ring *r;

    LIST_FOREACH (r, &t->running, run_link) {
        if (ring_waits(r))
            return true;
    }
    return false;
}

/* Neither with the engine nor, for all that it has done, on its way to another host. */
static bool nothing_in_flight(struct turn *t)
{
    return !t->engine->inflight && !guests_wait(t);
}

/* Watches all rings for a moment. True: one has got something, which was taken. */
static bool watch_rings(struct turn *t)
{
    uint64_t until = xm_now() + TURN_POLL_NS;
    struct ring *r;

    do {
        for (int i = 0; i < 32; i++) {
            r = find_work(t);
            if (r) {
                t->credit = TURN_CREDIT;
                turn_add(t, r);
                return ring_catch_up(r, false);
            }
            xm_relax();
        }
    } while (xm_now() < until);
    t->credit--;
    return false;
}

static void turn_end(struct xm_engine *e, void *ctx)
{
    struct turn *t = ctx;
    struct ring *r;
    bool told = !TAILQ_EMPTY(&t->rings), took = false, idle = told && nothing_in_flight(t);
    bool watch = idle && t->credit;

    TAILQ_FOREACH (r, &t->rings, link) {
        took |= ring_catch_up(r, watch);
    }
    if (watch && !took)
        took = watch_rings(t);
    while ((r = TAILQ_FIRST(&t->rings))) {
        turn_remove(t, r);
        ring_sleep(r);
    }
    e->watched = told && !idle && !took && e->inflight > 0 && e->inflight <= TURN_FEW && guests_wait(t);
    if (told)
        t->idle_since = idle && !took ? xm_now() : 0;
    if (t->next)
        t->next(e, t->next_ctx);
}

struct turn *turn_get(struct xm_engine *e)
{
    struct turn *t;

    pthread_mutex_lock(&turns_lock);
    LIST_FOREACH (t, &turns, link) {
        if (t->engine == e)
            break;
    }
    if (!t && (t = calloc(1, sizeof *t))) {
        t->engine = e;
        TAILQ_INIT(&t->rings);
        LIST_INIT(&t->running);
        t->next = e->before_wait;
        t->next_ctx = e->before_wait_ctx;
        e->before_wait_ctx = t;
        e->before_wait = turn_end;
        LIST_INSERT_HEAD(&turns, t, link);
    }
    if (t)
        t->users++;
    pthread_mutex_unlock(&turns_lock);
    return t;
}

void turn_put(struct turn *t)
{
    pthread_mutex_lock(&turns_lock);
    /* Somebody may have put a hook of his own before ours, with ours as its next: then it stays, for as long
     * as the engine does. */
    if (!--t->users && t->engine->before_wait == turn_end && t->engine->before_wait_ctx == t) {
        t->engine->before_wait = t->next;
        t->engine->before_wait_ctx = t->next_ctx;
        LIST_REMOVE(t, link);
        free(t);
    }
    pthread_mutex_unlock(&turns_lock);
}
