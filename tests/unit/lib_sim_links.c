/* SPDX-License-Identifier: MIT */
/* The links of lib_sim.h. */
#include "lib_sim.h"
#include "net/net.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* One transmission of a message. When its link is lost it goes on without the message. */
struct sim_frame {
    struct sim_event event;
    struct sim_links *links;
    unsigned link;
    struct xm_msg *msg; /* NULL: given back to the queue, nobody listens to the answer */
    struct xm_wreq wreq;
    bool at_peer;
    int status;
    void *reply;
    uint32_t reply_len;
    TAILQ_ENTRY(sim_frame) all;
};

static void pump(struct sim_links *l);

static void frame_free(struct sim_frame *f)
{
    TAILQ_REMOVE(&f->links->frames, f, all);
    free(f->wreq.payload);
    free(f->reply);
    free(f);
}

static void ack_arrives(struct sim_event *e)
{
    struct sim_frame *f = xm_container_of(e, struct sim_frame, event);
    struct sim_links *l = f->links;
    struct xm_msg *m = f->msg;

    if (m) {
        l->link[f->link].inflight--;
        l->unanswered -= m->length;
        /* Invariant 4: nobody touched the private copy. */
        l->changed += m->length && XXH3_64bits(m->payload, m->length) != f->wreq.hdr.hash;
        m->status = f->status;
        m->hash = f->wreq.hdr.hash;
        m->reply = f->reply;
        m->reply_len = f->reply_len;
        f->reply = NULL;
    }
    frame_free(f);
    if (m)
        m->post.run(&m->post);
    pump(l);
}

static void answered(struct xm_wreq *w, int status, const void *reply, uint32_t reply_len)
{
    struct sim_frame *f = xm_container_of(w, struct sim_frame, wreq);
    struct sim_links *l = f->links;

    f->status = status;
    if (reply_len) {
        f->reply = malloc(reply_len);
        assert(f->reply);
        memcpy(f->reply, reply, reply_len);
        f->reply_len = reply_len;
    }
    f->event.fire = ack_arrives;
    if (!l->hold_acks)
        sim_event_set(l->sim, &f->event, sim_between(l->sim, l->delay_min, l->delay_max));
}

static void frame_arrives(struct sim_event *e)
{
    struct sim_frame *f = xm_container_of(e, struct sim_frame, event);

    f->at_peer = true;
    f->links->reordered += f->wreq.hdr.seq > 0 && f->wreq.hdr.seq < f->links->last_arrived;
    f->links->last_arrived = XM_MAX(f->links->last_arrived, f->wreq.hdr.seq);
    f->wreq.done = answered;
    xm_writer_submit(f->links->writer, &f->wreq);
}

/* How long until all of the frame has left. */
static uint64_t serialize(struct sim_links *l, uint32_t length)
{
    if (!l->rate)
        return 0;
    l->wire_free = XM_MAX(l->wire_free, l->sim->now) + length * XM_NS_PER_S / l->rate;
    return l->wire_free - l->sim->now;
}

static void transmit(struct sim_links *l, unsigned link, struct xm_msg *m)
{
    struct sim_frame *f = calloc(1, sizeof *f);

    assert(f);
    f->links = l;
    f->link = link;
    f->msg = m;
    f->event.fire = frame_arrives;
    xm_frame_of_msg(&f->wreq.hdr, m, 1, m->length ? XXH3_64bits(m->payload, m->length) : 0);
    if (m->length) {
        f->wreq.payload = malloc(m->length);
        assert(f->wreq.payload);
        memcpy(f->wreq.payload, m->payload, m->length);
    }
    TAILQ_INSERT_TAIL(&l->frames, f, all);
    l->link[link].inflight++;
    l->sent++;
    l->sent_bytes += m->length;
    l->unanswered += m->length;
    l->unanswered_max = XM_MAX(l->unanswered_max, l->unanswered);
    sim_event_set(l->sim, &f->event,
                  serialize(l, m->length) + sim_between(l->sim, l->delay_min, l->delay_max));
}

static struct xm_msg *take(struct sim_msgs *q)
{
    struct xm_msg *m = STAILQ_FIRST(q);

    if (m)
        STAILQ_REMOVE_HEAD(q, link);
    return m;
}

/* What is sent again may pass the windows: frames in them may wait for it. */
static void pump(struct sim_links *l)
{
    unsigned first = (unsigned)sim_below(l->sim, l->count);
    struct xm_msg *m;

    for (unsigned i = 0; i < l->count; i++) {
        unsigned link = (first + i) % l->count;
        if (!l->link[link].up)
            continue;
        while ((m = take(&l->again)))
            transmit(l, link, m);
        while (l->link[link].inflight < l->window && ((m = take(&l->urgent)) || (m = take(&l->bulk))))
            transmit(l, link, m);
    }
}

static void end_dead(struct sim_links *l, struct xm_msg *m)
{
    m->status = l->dead;
    xm_mailbox_post(m->home, &m->post);
}

static void links_submit(struct xm_transport *t, struct xm_msg *m)
{
    struct sim_links *l = t->ctx;

    if (l->dead) {
        end_dead(l, m);
        return;
    }
    if (m->urgent)
        STAILQ_INSERT_TAIL(&l->urgent, m, link);
    else
        STAILQ_INSERT_TAIL(&l->bulk, m, link);
    pump(l);
}

struct sim_links *sim_links_new(struct sim *s, struct xm_writer *w, unsigned count)
{
    struct sim_links *l = calloc(1, sizeof *l);

    assert(l && count <= SIM_LINKS_MAX);
    l->transport.submit = links_submit;
    l->transport.ctx = l;
    l->sim = s;
    l->writer = w;
    l->count = count;
    l->window = 16;
    l->delay_min = 20 * XM_NS_PER_US;
    l->delay_max = 300 * XM_NS_PER_US;
    STAILQ_INIT(&l->again);
    STAILQ_INIT(&l->urgent);
    STAILQ_INIT(&l->bulk);
    TAILQ_INIT(&l->frames);
    for (unsigned i = 0; i < count; i++)
        l->link[i].up = true;
    return l;
}

void sim_links_free(struct sim_links *l)
{
    assert(TAILQ_EMPTY(&l->frames));
    free(l);
}

unsigned sim_links_alive(const struct sim_links *l)
{
    unsigned n = 0;

    for (unsigned i = 0; i < l->count; i++)
        n += l->link[i].up;
    return n;
}

static void abandon(struct sim_links *l, struct sim_frame *f)
{
    f->msg = NULL;
    if (f->at_peer)
        return; /* its answer goes nowhere */
    if (sim_chance(l->sim, l->dup_late)) {
        sim_event_set(l->sim, &f->event, sim_between(l->sim, 0, 20 * l->delay_max));
    } else {
        sim_event_cancel(l->sim, &f->event);
        frame_free(f);
    }
}

void sim_links_down(struct sim_links *l, unsigned link)
{
    struct sim_frame *f, *next;

    if (!l->link[link].up)
        return;
    l->link[link].up = false;
    l->link[link].inflight = 0;
    for (f = TAILQ_FIRST(&l->frames); f; f = next) {
        next = TAILQ_NEXT(f, all);
        if (f->link != link || !f->msg)
            continue;
        STAILQ_INSERT_TAIL(&l->again, f->msg, link);
        l->unanswered -= f->msg->length;
        l->resent++;
        abandon(l, f);
    }
    pump(l);
}

void sim_links_up(struct sim_links *l, unsigned link)
{
    l->link[link].up = true;
    pump(l);
}

void sim_links_kill(struct sim_links *l, int status)
{
    struct sim_frame *f, *next;
    struct xm_msg *m;

    l->dead = status;
    for (f = TAILQ_FIRST(&l->frames); f; f = next) {
        next = TAILQ_NEXT(f, all);
        if (!f->msg)
            continue;
        end_dead(l, f->msg);
        abandon(l, f);
    }
    while ((m = take(&l->again)) || (m = take(&l->urgent)) || (m = take(&l->bulk)))
        end_dead(l, m);
}

void sim_links_go(struct sim_links *l)
{
    struct sim_frame *f;

    l->hold_acks = false;
    TAILQ_FOREACH (f, &l->frames, all)
        if (f->at_peer && f->event.fire == ack_arrives && !f->event.armed)
            sim_event_set(l->sim, &f->event, sim_between(l->sim, l->delay_min, l->delay_max));
}
