/* SPDX-License-Identifier: MIT */
/* net/call.c: xm_transport_call: submit, wait, return the answer.
 *
 * The transport owns a message until it has ended, which may be long after the caller's patience has ended.
 * So what is submitted is a copy on the heap, payload included. When the caller gives up, the copy goes to a
 * list of orphans, which every later call, and the end of a bundle, clears of those that have ended
 * meanwhile.
 */
#include "net/bundle.h"

#include <stdlib.h>
#include <string.h>

struct call {
    struct xm_mailbox box;
    struct xm_msg msg;
    bool ended;
    LIST_ENTRY(call) link;
    uint8_t payload[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects orphans */
static LIST_HEAD(, call) orphans = LIST_HEAD_INITIALIZER(orphans);

static void call_ended(struct xm_post *p)
{
    xm_container_of(p, struct call, msg.post)->ended = true;
}

static void call_free(struct call *c)
{
    xm_mailbox_destroy(&c->box);
    free(c->msg.reply);
    free(c);
}

void calls_sweep(void)
{
    pthread_mutex_lock(&lock);
    for (struct call *c = LIST_FIRST(&orphans), *next; c; c = next) {
        next = LIST_NEXT(c, link);
        xm_mailbox_run(&c->box);
        if (c->ended) {
            LIST_REMOVE(c, link);
            call_free(c);
        }
    }
    pthread_mutex_unlock(&lock);
}

/* How often a caller without a time of its own is asked whether it still waits. */
#define ASK_EVERY 200 /* ms */

/* Until the answer is there, or the deadline, or `over` says so. */
static void call_await(struct call *c, uint64_t deadline, bool (*over)(void *), void *ctx)
{
    for (uint64_t now; !c->ended && (now = xm_now()) < deadline;) {
        uint64_t ms = XM_MIN((deadline - now) / XM_NS_PER_MS + 1, over ? ASK_EVERY : 3600000u);
        if (over && over(ctx))
            return;
        xm_mailbox_wait(&c->box, (int)ms);
    }
}

static int call_run(struct xm_transport *t, struct xm_msg *m, uint64_t timeout_ns, bool (*over)(void *),
                    void *ctx, struct xm_error *e)
{
    const struct frame_kind *k = frame_kind(m->type);
    const char *name = k ? k->name : "unknown";
    uint64_t now = xm_now(), deadline = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    struct call *c = malloc(sizeof *c + m->length);
    int err = c ? xm_mailbox_init(&c->box) : -ENOMEM;

    calls_sweep();
    m->reply = NULL;
    m->reply_len = 0;
    if (err < 0) {
        free(c);
        m->status = err;
        return xm_error_errno(e, -err, "calling the other side (%s)", name);
    }
    c->msg = *m;
    c->msg.home = &c->box;
    c->msg.post.run = call_ended;
    c->ended = false;
    if (m->length) {
        memcpy(c->payload, m->payload, m->length);
        c->msg.payload = c->payload;
    }
    t->submit(t, &c->msg);
    call_await(c, deadline, over, ctx);
    if (!c->ended) {
        pthread_mutex_lock(&lock);
        LIST_INSERT_HEAD(&orphans, c, link);
        pthread_mutex_unlock(&lock);
        m->status = over ? -ECANCELED : -ETIMEDOUT;
        if (over)
            return xm_error_set(e, ECANCELED, "the answer of the other side (%s) is not waited for any more",
                                name);
        return xm_error_set(e, ETIMEDOUT, "the other side has not answered (%s) within %s", name,
                            xm_format_time(timeout_ns).s);
    }
    m->status = c->msg.status;
    m->hash = c->msg.hash;
    m->reply = c->msg.reply;
    m->reply_len = c->msg.reply_len;
    c->msg.reply = NULL;
    call_free(c);
    if (m->status < 0)
        xm_error_errno(e, -m->status, "calling the other side (%s)", name);
    return m->status;
}

int xm_transport_call(struct xm_transport *t, struct xm_msg *m, uint64_t timeout_ns, struct xm_error *e)
{
    return call_run(t, m, timeout_ns, NULL, NULL, e);
}

int xm_transport_call_until(struct xm_transport *t, struct xm_msg *m, bool (*over)(void *), void *ctx,
                            struct xm_error *e)
{
    return call_run(t, m, UINT64_MAX, over, ctx, e);
}
