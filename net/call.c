/* SPDX-License-Identifier: MIT */
/* net/call.c: xm_transport_call: submit, wait, return the answer.
 *
 * The transport owns a message until it has ended, which may be long after the caller's patience has ended.
 * So what is submitted is a copy on the heap, payload included. When the caller gives up, the copy goes to a
 * list of orphans, which every later call, and the end of a bundle, clears of those that have ended
 * meanwhile.
 */
#include "net/bundle.h"

#include <assert.h>
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

/* NULL: m->status says why not. */
static struct call *call_begin(struct xm_transport *t, struct xm_msg *m)
{
    struct call *c = malloc(sizeof *c + m->length);

    m->status = c ? xm_mailbox_init(&c->box) : -ENOMEM;
    m->reply = NULL;
    m->reply_len = 0;
    if (m->status < 0) {
        free(c);
        return NULL;
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
    return c;
}

/* Takes the call, ended or not. m->status and the answer. */
static void call_end(struct call *c, struct xm_msg *m, int not_ended)
{
    if (!c->ended) {
        pthread_mutex_lock(&lock);
        LIST_INSERT_HEAD(&orphans, c, link);
        pthread_mutex_unlock(&lock);
        m->status = not_ended;
        return;
    }
    m->status = c->msg.status;
    m->hash = c->msg.hash;
    m->reply = c->msg.reply;
    m->reply_len = c->msg.reply_len;
    c->msg.reply = NULL;
    call_free(c);
}

static int call_failed(const struct xm_msg *m, bool ended, uint64_t timeout_ns, struct xm_error *e)
{
    const struct frame_kind *k = frame_kind(m->type);
    const char *name = k ? k->name : "unknown";

    if (ended)
        xm_error_errno(e, -m->status, "calling the other side (%s)", name);
    else if (m->status == -ECANCELED)
        xm_error_set(e, ECANCELED, "the answer of the other side (%s) is not waited for any more", name);
    else
        xm_error_set(e, ETIMEDOUT, "the other side has not answered (%s) within %s", name,
                     xm_format_time(timeout_ns).s);
    return m->status;
}

static int calls_run(struct xm_transport *t, struct xm_msg *m, unsigned n, uint64_t timeout_ns,
                     bool (*over)(void *), void *ctx, struct xm_error *e)
{
    uint64_t now = xm_now(), deadline = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    struct call *c[XM_CALLS_MAX];
    int r = 0;

    assert(n <= XM_CALLS_MAX);
    calls_sweep();
    for (unsigned i = 0; i < n; i++)
        c[i] = call_begin(t, &m[i]);
    for (unsigned i = 0; i < n; i++) {
        bool ended = true;
        if (c[i]) {
            call_await(c[i], deadline, over, ctx);
            ended = c[i]->ended;
            call_end(c[i], &m[i], over ? -ECANCELED : -ETIMEDOUT);
        }
        if (m[i].status < 0 && !r)
            r = call_failed(&m[i], ended, timeout_ns, e);
    }
    return r ? r : m[n - 1].status;
}

int xm_transport_call(struct xm_transport *t, struct xm_msg *m, uint64_t timeout_ns, struct xm_error *e)
{
    return calls_run(t, m, 1, timeout_ns, NULL, NULL, e);
}

int xm_transport_calls(struct xm_transport *t, struct xm_msg *m, unsigned n, uint64_t timeout_ns,
                       struct xm_error *e)
{
    return calls_run(t, m, n, timeout_ns, NULL, NULL, e);
}

int xm_transport_call_until(struct xm_transport *t, struct xm_msg *m, bool (*over)(void *), void *ctx,
                            struct xm_error *e)
{
    return calls_run(t, m, 1, UINT64_MAX, over, ctx, e);
}
