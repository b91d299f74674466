/* SPDX-License-Identifier: MIT */
/* Links: one a bundle, reduced to what a hand-off may see of it. They are up or down; down at once when the
 * other process ends, after SILENCE when it hangs or cannot be reached. Calls take time, may come twice, and
 * are lost with the links. */
#include "tests/sim/links.h"
#include "migrate/destination.h"
#include "migrate/source.h"
#include "shim/shim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SILENCE (10 * SEC)

static struct xm_links *all;

void links_reset(void)
{
    all = NULL;
}

/* ---- links that come and go ---- */

static void lost(void *arg)
{
    struct xm_links *l = arg;

    if (!l->error.code)
        xm_error_set(&l->error, ENOLINK, "the connection was lost");
    task_wake(l);
}

static void down(struct xm_links *l)
{
    struct xm_error e = {.code = ENOLINK, .text = "the connection was lost"};

    if (!l->up)
        return;
    l->up = false;
    if (fd_obj(l->fd) == l->socket)
        close(l->fd);
    l->fd = -1;
    if (l->o.event && !l->freed && l->proc->alive)
        l->o.event(l->o.event_ctx, 0, XM_LINK_DOWN, &e);
    if (l->o.link_timeout)
        after(l->o.link_timeout, lost, l);
    else
        lost(l);
    task_wake(l);
}

static bool hears(const struct xm_links *l)
{
    return l->peer && l->peer->proc->alive && !l->peer->proc->stopped &&
           reachable(l->proc->host, l->peer->proc->host);
}

struct silence {
    struct xm_links *l;
    unsigned turn;
};

static void silent_still(void *arg)
{
    struct silence *s = arg;

    if (s->l->silent && s->l->turn == s->turn)
        down(s->l);
}

void links_network_changed(void)
{
    for (struct xm_links *l = all; l; l = l->next) {
        if (!l->up || l->freed || !l->proc->alive)
            continue;
        if (l->socket->eof) {
            down(l);
        } else if (!hears(l) && !l->silent) {
            struct silence *s = sim_alloc(sizeof *s);
            l->silent = true;
            *s = (struct silence){l, ++l->turn};
            after(SILENCE, silent_still, s);
        } else if (hears(l)) {
            l->silent = false;
        }
    }
}

void links_process_gone(struct proc *p, bool silently)
{
    (void)silently;
    for (struct xm_links *l = all; l; l = l->next) {
        if (l->proc == p)
            l->freed = true;
    }
}

bool links_live(struct xm_links *l)
{
    return l->up && !l->freed && hears(l) && l->peer->up && !l->peer->freed;
}

struct proc *links_peer(struct xm_links *l)
{
    return links_live(l) ? l->peer->proc : NULL;
}

static void submit(struct xm_transport *t, struct xm_msg *m)
{
    (void)t, (void)m;
    sim_violated("the simulator has no frames of this kind");
}

struct xm_links *__wrap_xm_links_new(const struct xm_links_opts *o, struct xm_error *e)
{
    struct xm_links *l = calloc(1, sizeof *l);

    (void)e;
    l->o = *o;
    l->transport = (struct xm_transport){.submit = submit, .ctx = l};
    l->proc = proc_current();
    l->fd = -1;
    l->next = all;
    return all = l;
}

int __wrap_xm_links_add(struct xm_links *l, int fd, bool client, const char *name, struct xm_error *e)
{
    struct obj *o = fd_obj(fd);
    uint64_t deadline = sim_time() + 5 * SEC;

    (void)client;
    l->socket = o;
    l->fd = fd;
    o->links = l;
    sim_point("link");
    while (o->peer && !o->eof && !o->peer->links && sim_time() < deadline)
        task_sleep(MS);
    if (!o->peer || o->eof || !o->peer->links || o->peer->links->freed || l->freed) {
        close(fd);
        return xm_error_set(e, ETIMEDOUT, "link %s: no answer", name);
    }
    if (memcmp(o->peer->links->o.token, l->o.token, sizeof l->o.token) != 0) {
        close(fd);
        return xm_error_set(e, EACCES, "link %s: another token", name);
    }
    l->peer = o->peer->links;
    l->up = l->was_up = true;
    links_network_changed();
    return 0;
}

struct xm_transport *__wrap_xm_links_transport(struct xm_links *l)
{
    return &l->transport;
}

int __wrap_xm_links_up(struct xm_links *l)
{
    return l->up;
}

void __wrap_xm_links_error(struct xm_links *l, struct xm_error *e)
{
    *e = l->error;
}

void __wrap_xm_links_peer_said(struct xm_links *l, struct xm_error *e)
{
    *e = l->said;
}

struct word {
    struct xm_links *to;
    char text[300];
};

static void said(void *arg)
{
    struct word *word = arg;
    struct xm_links *l = word->to;

    if (l->freed || l->error.code)
        return;
    xm_error_set(&l->said, ECANCELED, "%s", word->text);
    xm_error_set(&l->error, ECANCELED, "%s", word->text);
    down(l);
}

void __wrap_xm_links_abort(struct xm_links *l, const char *reason)
{
    if (l->error.code)
        return;
    sim_point("abort links");
    if (links_live(l)) {
        struct word *word = sim_alloc(sizeof *word);
        word->to = l->peer;
        snprintf(word->text, sizeof word->text, "%s", reason);
        after(between(100, 1500) * XM_NS_PER_US, said, word);
        /* The other end finds the connection closed after these words. */
        l->socket->peer->last_arrival = XM_MAX(l->socket->peer->last_arrival, sim_time() + 2 * MS);
    }
    xm_error_set(&l->error, ECANCELED, "%s", reason);
    down(l);
}

void __wrap_xm_links_free(struct xm_links *l)
{
    l->o.event = NULL;
    down(l);
    while (l->serving)
        task_wait(l, sim_time() + 10 * MS);
    l->freed = true;
}

void __wrap_xm_links_set_rate(struct xm_links *l, uint64_t rate)
{
    (void)l, (void)rate;
}

void __wrap_xm_links_set_background(struct xm_links *l, bool yes)
{
    (void)l, (void)yes;
}

unsigned long __wrap_xm_links_serving(struct xm_links *l)
{
    return l->serving;
}

double __wrap_xm_links_rate(struct xm_links *l)
{
    (void)l;
    return 1e9;
}

uint64_t __wrap_xm_links_wire_bytes(struct xm_links *l)
{
    (void)l;
    return 0;
}

uint64_t __wrap_xm_links_queued(struct xm_links *l, uint64_t *max)
{
    (void)l;
    if (max)
        *max = 0;
    return 0;
}

/* ---- calls ---- */

struct call {
    struct xm_links *from;
    uint8_t type;
    uint64_t seq, attempt;
    char *payload;
    uint32_t length;
    bool answered;
    int status;
    char *reply;
    uint32_t reply_len;
};

struct answer {
    struct call *call;
    int status;
    char *reply;
    uint32_t reply_len;
};

static uint64_t wire(void)
{
    return !w.ending && chance(w.slow) ? between(1, 15000) * MS : between(100, 1500) * XM_NS_PER_US;
}

static void answer_arrives(void *arg)
{
    struct answer *a = arg;
    struct call *c = a->call;

    if (c->from->freed || !c->from->up || c->answered)
        return;
    if (!hears(c->from)) {
        after(50 * MS, answer_arrives, a);
        return;
    }
    c->answered = true;
    c->status = a->status;
    c->reply = a->reply;
    c->reply_len = a->reply_len;
    task_wake(c->from);
}

static void answer(struct call *c, int status, const void *reply, uint32_t len)
{
    struct answer *a = sim_alloc(sizeof *a);

    *a = (struct answer){.call = c, .status = status, .reply_len = len};
    if (len) {
        a->reply = malloc(len);
        memcpy(a->reply, reply, len);
    }
    after(wire(), answer_arrives, a);
}

static void *serve_call(void *arg)
{
    struct call *c = arg;
    struct xm_links *l = c->from->peer;
    struct xm_frame_hdr hdr = {.type = c->type, .length = c->length, .seq = c->seq, .after = c->attempt};
    struct xm_digest none = {0};
    struct xm_error e = {0};

    if (!l || l->freed || !l->up)
        return NULL;
    if (c->type != XM_FRAME_CALL) {
        struct destination *dst = l->proc->shim ? l->proc->shim->destination : NULL;
        bool old = dst && dst->attempt != c->attempt;
        if (dst && !old)
            dst->sealed |= c->type == XM_FRAME_DISK_DIGEST;
        answer(c, old ? -ECANCELED : 0, &none, old ? 0 : sizeof none);
        return NULL;
    }
    l->serving++;
    struct xm_rx *rx = calloc(1, sizeof *rx);
    rx->hdr = hdr;
    rx->payload = malloc(c->length + 1);
    memcpy(rx->payload, c->payload, c->length);
    rx->transport = c;
    if (l->o.sink.check(l->o.sink.ctx, &hdr, &e) < 0)
        sim_violated("a call is refused as a frame: %s", e.text);
    l->o.sink.frame(l->o.sink.ctx, rx);
    return NULL;
}

static void call_arrives(void *arg)
{
    struct call *c = arg;
    struct xm_links *l = c->from;

    if (!l->up || l->freed || !l->peer || l->peer->freed || (l->peer->was_up && !l->peer->up))
        return;
    if (!hears(l) || !l->peer->up)
        after(l->peer->was_up ? 50 * MS : MS, call_arrives, c);
    else
        task_new(l->peer->proc, serve_call, c);
}

void __wrap_xm_rx_done(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    struct call *c = rx->transport;

    sim_point("answer");
    c->from->peer->serving--;
    answer(c, status, reply, len);
    free(rx->payload);
    free(rx);
}

static int call_until(struct xm_transport *t, struct xm_msg *m, uint64_t timeout, bool (*over)(void *),
                      void *ctx, struct xm_error *e)
{
    struct xm_links *l = t->ctx;
    struct call *c = sim_alloc(sizeof *c);
    uint64_t deadline = sim_time() + timeout;

    sim_point("call");
    *c = (struct call){.from = l,
                       .type = m->type,
                       .seq = m->seq,
                       .attempt = m->after,
                       .length = m->length,
                       .payload = sim_alloc(m->length + 1)};
    if (m->length)
        memcpy(c->payload, m->payload, m->length);
    if (m->type == XM_FRAME_CALL)
        sim_trace("  call %.*s", (int)m->length, (const char *)m->payload);
    after(wire(), call_arrives, c);
    if (!w.ending && chance(w.duplicate))
        after(wire(), call_arrives, c);
    while (!c->answered && !l->error.code && sim_time() < deadline && !(over && over(ctx)))
        task_wait(l, over ? sim_time() + 200 * MS : deadline);
    if (!c->answered) {
        if (l->error.code)
            return xm_error_set(e, l->error.code, "%s", l->error.text);
        return xm_error_set(e, ETIMEDOUT, "no answer in time");
    }
    if (m->type == XM_FRAME_CALL)
        sim_trace("  answer %.*s", (int)c->reply_len, c->reply ? c->reply : "");
    m->status = c->status;
    m->reply = c->reply;
    m->reply_len = c->reply_len;
    return c->status;
}

int __wrap_xm_transport_call(struct xm_transport *t, struct xm_msg *m, uint64_t timeout, struct xm_error *e)
{
    return call_until(t, m, timeout, NULL, NULL, e);
}

int __wrap_xm_transport_calls(struct xm_transport *t, struct xm_msg *m, unsigned n, uint64_t timeout,
                              struct xm_error *e)
{
    int r = 0;

    for (unsigned i = 0; i < n && r >= 0; i++)
        r = __wrap_xm_transport_call(t, &m[i], timeout, e);
    return r;
}

int __wrap_xm_transport_call_until(struct xm_transport *t, struct xm_msg *m, bool (*over)(void *), void *ctx,
                                   struct xm_error *e)
{
    struct xm_links *l = t->ctx;
    uint64_t until = sim_time() + between(1, 20) * MS;

    if (m->type == XM_FRAME_CALL)
        return call_until(t, m, NEVER / 2, over, ctx, e);
    while (sim_time() < until || !links_live(l)) {
        if (over(ctx))
            return xm_error_set(e, ECANCELED, "it is over");
        task_sleep(10 * MS);
    }
    struct proc *far = m->type == XM_FRAME_DISK_FLUSH ? links_peer(l) : NULL;
    if (far && machine_inode(far))
        file_flushed(far->host, machine_inode(far));
    return 0;
}

/* ---- device state ---- */

struct stream {
    struct xm_links *l;
    bool held; /* what QEMU writes stays here */
};

int __wrap_qmp_make_stream(struct qmp *q, const char *name, uint64_t timeout_ns, struct xm_error *e)
{
    json_t *args = json_pack("{s:s}", "fdname", name);

    return qmp_do(q, "getfd", args, timeout_ns, e) < 0 ? -EIO
                                                       : 0; /* no descriptor: the stream is a stand-in */
}

struct stream *__wrap_stream_send(int fd, struct xm_transport *to, unsigned attempt, struct xm_error *e)
{
    struct stream *s = calloc(1, sizeof *s);

    (void)fd, (void)attempt, (void)e;
    s->l = to->ctx;
    return s;
}

struct stream *__wrap_stream_receive(int fd, struct xm_error *e)
{
    (void)fd, (void)e;
    return calloc(1, sizeof(struct stream));
}

void __wrap_stream_hold(struct stream *s)
{
    s->held = sin_committed != LOAD_BEFORE_PAGES;
}

void __wrap_stream_release(struct stream *s)
{
    sim_point("release");
    s->held = false;
}

void __wrap_stream_frame(struct stream *s, struct xm_rx *rx)
{
    (void)s, (void)rx;
}

void __wrap_stream_stop(struct stream *s)
{
    (void)s;
}

void __wrap_stream_free(struct stream *s)
{
    free(s);
}

bool __wrap_stream_runstate(struct stream *s, char state[STREAM_STATE_MAX])
{
    (void)s;
    state[0] = 0;
    return true;
}

uint64_t __wrap_stream_bytes(const struct stream *s)
{
    (void)s;
    return 0;
}

void __wrap_stream_error(struct stream *s, struct xm_error *e)
{
    (void)s;
    e->code = 0;
}

struct xm_links *stream_links(struct proc *shim)
{
    struct source *m = shim->shim ? shim->shim->source : NULL;

    return m && m->stream ? m->stream->l : NULL;
}

bool stream_held(struct proc *shim)
{
    struct source *m = shim->shim ? shim->shim->source : NULL;

    return m && m->stream && m->stream->held;
}
