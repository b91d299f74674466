/* SPDX-License-Identifier: MIT */
/* net/queue.c: the one queue that all links of a bundle take from.
 *
 * Happy path: a submitter appends (urgent or bulk) and, when some link sleeps with room in its window, wakes
 * one. The link takes a pull's worth of messages in one go, and wakes the next sleeper when it leaves
 * something. No system call while links are busy.
 *
 * What came back from a link that failed (`again`) goes first and is not held up by windows, and of each
 * class (urgent, bulk) a link may always have one frame under way, window or not. Both are needed: a receiver
 * holds frames back until their predecessor is applied, so the windows may be full of frames that wait for
 * just the one that has no room. With these two rules the oldest message not yet applied can always be sent:
 * it is under way, or in `again`, or first of its class with nothing of that class under way (queues are
 * first in, first out), and whatever it waits for was applied before.
 */
#include "net/bundle.h"

static bool room_fits(const struct link *l, const struct room *r, uint32_t length)
{
    return r->frames < l->window_frames && (r->bytes + length <= l->window_bytes || !r->bytes);
}

/* The next message that the link has room for; it stays in its queue. */
static struct msgs *next_queue(struct xm_links *b, const struct link *l, const struct room *r)
{
    struct xm_msg *m;

    if (r->frames >= SLOTS_MAX)
        return NULL;
    if (!STAILQ_EMPTY(&b->queue.again))
        return &b->queue.again;
    if ((m = STAILQ_FIRST(&b->queue.urgent)) && (room_fits(l, r, m->length) || !r->urgent))
        return &b->queue.urgent;
    if ((m = STAILQ_FIRST(&b->queue.bulk)) && (room_fits(l, r, m->length) || !r->bulk))
        return &b->queue.bulk;
    return NULL;
}

/* With the lock held. A link that sleeps and has room for what is there; the caller calls link_wake after
 * unlocking. */
static struct link *pick_sleeper(struct xm_links *b, const struct link * not )
{
    for (int i = 0; i < b->links; i++) {
        struct link *l = b->link[(b->next_wake + i) % b->links];
        if (l != not &&l->locked.up && l->locked.wants && next_queue(b, l, &l->locked.room)) {
            l->locked.wants = false;
            b->next_wake = l->number + 1;
            return l;
        }
    }
    return NULL;
}

static bool queue_has_any(const struct xm_links *b)
{
    return !STAILQ_EMPTY(&b->queue.again) || !STAILQ_EMPTY(&b->queue.urgent) || !STAILQ_EMPTY(&b->queue.bulk);
}

void queue_submit(struct xm_transport *t, struct xm_msg *m)
{
    struct xm_links *b = t->ctx;
    struct link *sleeper = NULL;
    int status = frame_judge_msg(m);

    m->status = 0;
    m->reply = NULL;
    m->reply_len = 0;
    m->hashed = false;
    if (status < 0) {
        msg_end(m, status);
        return;
    }
    pthread_mutex_lock(&b->lock);
    if (b->end.lost || b->end.closing) {
        status = b->end.status;
    } else {
        if (m->urgent)
            STAILQ_INSERT_TAIL(&b->queue.urgent, m, link);
        else
            STAILQ_INSERT_TAIL(&b->queue.bulk, m, link);
        b->queue.bytes += m->length;
        b->queue.bytes_max = XM_MAX(b->queue.bytes_max, b->queue.bytes);
        sleeper = pick_sleeper(b, NULL);
    }
    pthread_mutex_unlock(&b->lock);
    if (sleeper)
        link_wake(sleeper);
    if (status < 0)
        msg_end(m, status);
}

void queue_take(struct link *l, struct msgs *to)
{
    struct xm_links *b = l->bundle;
    struct room r = l->slots.room;
    struct link *sleeper = NULL;
    struct msgs *from;
    unsigned n = 0, again = 0;
    uint64_t bytes = 0;

    pthread_mutex_lock(&b->lock);
    uint64_t now = b->queue.bucket.rate ? xm_now() : 0;
    /* OUT_MAX / 2 leaves places for answers. */
    while (n < OUT_MAX / 2 && !b->end.lost && !b->end.closing &&
           (!b->queue.bucket.rate || now >= b->queue.hold_until) && (from = next_queue(b, l, &r))) {
        struct xm_msg *m = STAILQ_FIRST(from);
        if (n && bytes + m->length > OUT_BYTES)
            break;
        STAILQ_REMOVE_HEAD(from, link);
        STAILQ_INSERT_TAIL(to, m, link);
        n++;
        again += from == &b->queue.again;
        bytes += m->length;
        r.frames++;
        r.bytes += m->length;
        if (m->urgent)
            r.urgent++;
        else
            r.bulk++;
        if (b->queue.bucket.rate)
            b->queue.hold_until = now + xm_bucket_take(&b->queue.bucket, m->length + FRAME_HDR, now);
    }
    if (n) {
        b->queue.bytes -= bytes;
        if (queue_has_any(b))
            sleeper = pick_sleeper(b, l);
    }
    pthread_mutex_unlock(&b->lock);
    if (again)
        atomic_fetch_add_explicit(&l->any.resent, again, memory_order_relaxed);
    if (sleeper)
        link_wake(sleeper);
}

bool queue_sleep(struct link *l, uint64_t *until)
{
    struct xm_links *b = l->bundle;
    struct room r = l->slots.room;
    bool idle = tx_idle(l);

    pthread_mutex_lock(&b->lock);
    bool work = idle && next_queue(b, l, &r);
    if (work && b->queue.bucket.rate && b->queue.hold_until > xm_now()) {
        *until = b->queue.hold_until;
        work = false;
    }
    if (!work) {
        l->locked.wants = idle && *until == UINT64_MAX;
        l->locked.room = r;
        atomic_store(&l->any.asleep, true);
    }
    pthread_mutex_unlock(&b->lock);
    return !work;
}

void queue_answered(struct xm_links *b, uint64_t bytes)
{
    pthread_mutex_lock(&b->lock);
    xm_meter_add(&b->answered, bytes, xm_now());
    pthread_mutex_unlock(&b->lock);
}

void queue_kick(struct xm_links *b)
{
    pthread_mutex_lock(&b->lock);
    struct link *sleeper = queue_has_any(b) ? pick_sleeper(b, NULL) : NULL;
    pthread_mutex_unlock(&b->lock);
    if (sleeper)
        link_wake(sleeper);
}
