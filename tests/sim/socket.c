/* SPDX-License-Identifier: MIT */
/* Sockets that carry whole JSON objects, in order, with delays.
 *
 * Between hosts a partition holds back what is sent; a connection that was cut off for KEEPALIVE ends on
 * both sides. */
#include "tests/sim/sim.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define KEEPALIVE (25 * SEC)

void socket_eof(struct obj *o)
{
    o->eof = true;
    obj_changed(o);
    links_network_changed();
}

static void closed_far(void *arg)
{
    socket_eof(arg);
}

/* Nobody has this end open any more: the other end is told. */
void socket_closed(struct obj *o)
{
    if (!o->peer)
        return;
    struct obj *peer = o->peer;
    peer->peer = NULL;
    if (!o->network || reachable(o->host, peer->host))
        at(XM_MAX(peer->last_arrival, sim_time()) + between(20, 200) * XM_NS_PER_US, closed_far, peer);
}

struct obj *socket_pair(struct proc *client, struct proc *server, bool network)
{
    struct obj *c = obj_new(FD_SOCKET), *s = obj_new(FD_SOCKET);

    c->proc = client;
    c->host = s->far = client->host;
    c->client = true;
    s->proc = server;
    s->host = c->far = server->host;
    c->peer = s;
    s->peer = c;
    c->network = s->network = network;
    return c;
}

static uint64_t latency(const struct obj *o)
{
    if (!o->network)
        return between(5, 60) * XM_NS_PER_US;
    return !w.ending && chance(w.slow) ? between(1, 12000) * MS : between(100, 1500) * XM_NS_PER_US;
}

struct flight {
    struct obj *to;
    struct message m;
    uint64_t since;
    struct host *from, *at;
};

static void arrive(void *arg)
{
    struct flight *f = arg;
    struct obj *o = f->to;

    if (o->eof || o->refs == 0)
        return;
    if (o->network && !reachable(f->from, f->at)) {
        if (sim_time() - f->since > KEEPALIVE) {
            o->eof = true;
            obj_changed(o);
            return;
        }
        after(200 * MS, arrive, f);
        return;
    }
    f->m.next = NULL;
    *o->last = &f->m;
    o->last = &f->m.next;
    obj_changed(o);
}

/* What the sender keeps a part of is copied: no two processes change the same memory. */
static void unshare_parts(json_t *o)
{
    const char *key;
    json_t *v;
    size_t i;

    json_object_foreach (o, key, v) {
        if (!json_is_object(v) && !json_is_array(v))
            continue;
        if (v->refcount > 1)
            json_object_set_new(o, key, json_deep_copy(v));
        else
            unshare_parts(v);
    }
    if (!json_is_array(o))
        return;
    json_array_foreach (o, i, v) {
        if (!json_is_object(v) && !json_is_array(v))
            continue;
        if (v->refcount > 1)
            json_array_set_new(o, i, json_deep_copy(v));
        else
            unshare_parts(v);
    }
}

/* Takes the reference. */
static json_t *unshared(json_t *o)
{
    if (o->refcount == 1) {
        unshare_parts(o);
        return o;
    }
    json_t *copy = json_deep_copy(o);
    json_decref(o);
    return copy;
}

void socket_send(struct obj *from, json_t *o, struct obj *passed)
{
    struct obj *to = from->peer;

    if (!to) {
        json_decref(o);
        return;
    }
    struct flight *f = sim_alloc(sizeof *f);
    *f = (struct flight){.to = to,
                         .m = {.json = unshared(o), .passed = passed},
                         .since = sim_time(),
                         .from = from->host,
                         .at = to->host};
    if (passed)
        passed->refs++;
    to->last_arrival = XM_MAX(sim_time() + latency(from), to->last_arrival + 1);
    at(to->last_arrival, arrive, f);
}

static void cut_off(void *arg)
{
    struct obj *o = arg;

    if (!o->eof && o->refs && !reachable(o->host, o->far))
        socket_eof(o);
}

void sockets_of_network_changed(void)
{
    for (int fd = FD_FIRST; fd < fds_end(); fd++) {
        struct obj *o = fd_obj(fd);
        if (!o || o->kind != FD_SOCKET || !o->network || o->eof)
            continue;
        if (!reachable(o->host, o->far))
            after(KEEPALIVE, cut_off, o);
        else if (!o->peer)
            after(MS, closed_far, o); /* it had been closed while nobody could be told */
    }
}

static struct message *receive(struct obj *o)
{
    struct message *m = o->first;

    if (m && !(o->first = m->next))
        o->last = &o->first;
    return m;
}

/* ---- base/jsonl.h, by whole objects ---- */

void __wrap_xm_jsonl_close(struct xm_jsonl *j)
{
    if (j->fd >= 0)
        __wrap_close(j->fd);
    j->fd = -1;
}

int __wrap_xm_jsonl_send(int fd, json_t *o, int pass_fd, struct xm_error *e)
{
    struct obj *s = fd_obj(fd);

    if (!o)
        return xm_error_set(e, EINVAL, "no JSON");
    sim_point("send");
    s = fd_obj(fd);
    if (!s || s->eof || !s->peer) {
        json_decref(o);
        return xm_error_set(e, EPIPE, "cannot send: the other side has closed");
    }
    if (s->qemu) {
        json_t *answer = qemu_says(s->qemu, s, o);
        if (answer)
            socket_send(s->peer, answer, NULL);
        json_decref(o);
        return 0;
    }
    socket_send(s, o, fd_obj(pass_fd));
    return 0;
}

int __wrap_xm_jsonl_fill(struct xm_jsonl *j, struct xm_error *e)
{
    struct obj *o = fd_obj(j->fd);

    if (!o)
        return xm_error_set(e, EBADF, "closed");
    return o->first || !o->eof;
}

json_t *__wrap_xm_jsonl_next(struct xm_jsonl *j, bool *bad, struct xm_error *e)
{
    struct obj *o = fd_obj(j->fd);
    struct message *m = o ? receive(o) : NULL;

    (void)bad, (void)e;
    if (!m)
        return NULL;
    if (m->passed) {
        j->passed_fd = fd_new(m->passed, proc_current());
        m->passed->refs--;
        m->passed->proc = proc_current();
    }
    return m->json;
}

json_t *__wrap_xm_jsonl_recv(struct xm_jsonl *j, uint64_t deadline, struct xm_error *e)
{
    for (;;) {
        struct obj *o = fd_obj(j->fd);
        if (!o) {
            xm_error_set(e, ENOTCONN, "closed");
            return NULL;
        }
        if (o->first)
            return __wrap_xm_jsonl_next(j, NULL, e);
        if (o->eof) {
            xm_error_set(e, ECONNRESET, "the other side has closed the connection");
            return NULL;
        }
        if (sim_time() >= deadline) {
            xm_error_set(e, ETIMEDOUT, "no answer in time");
            return NULL;
        }
        task_wait(o, deadline);
    }
}

static struct obj *listener(const char *path)
{
    for (int fd = FD_FIRST; fd < fds_end(); fd++) {
        struct obj *o = fd_obj(fd);
        if (o && o->kind == FD_LISTEN && !o->eof && !strcmp(o->path, path) && o->host == proc_current()->host)
            return o;
    }
    return NULL;
}

int __wrap_xm_unix_connect(const char *path, struct xm_error *e)
{
    struct proc *me = proc_current();
    struct host *h = me->host;
    const char *name = strrchr(path, '/');

    sim_point("connect");
    if (!strcmp(name, "/agent.sock")) {
        if (!h->agent || !h->agent->alive || !h->listening)
            return xm_error_set(e, ECONNREFUSED, "%s: nobody listens", path);
        struct obj *c = socket_pair(me, h->agent, false);
        c->peer->server_fd = fd_new(c->peer, h->agent);
        agent_connected(h, c->peer);
        return fd_new(c, me);
    }
    if (!strcmp(name, "/qmp.sock")) {
        struct proc *q = proc_find(h, QEMU);
        if (!q)
            return xm_error_set(e, ECONNREFUSED, "%s: nobody listens", path);
        struct obj *c = socket_pair(me, q, false);
        c->qemu = q;
        c->peer->refs++;
        int fd = fd_new(c, me);
        qemu_greets(q, c->peer);
        return fd;
    }
    struct obj *l = listener(path);
    if (!l || l->pendings == 16)
        return xm_error_set(e, ECONNREFUSED, "cannot connect to %s", path);
    struct obj *c = socket_pair(me, l->proc, false);
    c->peer->refs++;
    l->pending[l->pendings++] = c->peer;
    obj_changed(l);
    return fd_new(c, me);
}

int __wrap_xm_unix_listen(const char *path, struct xm_error *e)
{
    struct obj *o = obj_new(FD_LISTEN);

    (void)e;
    snprintf(o->path, sizeof o->path, "%s", path);
    file_put(o->host, path, "", 0);
    return fd_new(o, o->proc);
}

int __wrap_accept4(int fd, void *address, void *len, int flags)
{
    struct obj *l = fd_obj(fd);

    (void)address, (void)len, (void)flags;
    if (!l || !l->pendings) {
        errno = EAGAIN;
        return -1;
    }
    struct obj *o = l->pending[0];
    memmove(l->pending, l->pending + 1, --l->pendings * sizeof *l->pending);
    int new = fd_new(o, proc_current());
    o->refs--;
    return new;
}

int __wrap_shutdown(int fd, int how)
{
    struct obj *o = fd_obj(fd);

    (void)how;
    if (o && o->kind == FD_SOCKET) {
        o->eof = true;
        obj_changed(o);
        links_network_changed();
    }
    return 0;
}

ssize_t __wrap_send(int fd, const void *data, size_t len, int flags)
{
    struct obj *o = fd_obj(fd);

    (void)flags;
    if (!o || o->eof) {
        errno = EPIPE;
        return -1;
    }
    agent_heard_preamble(o, data, len);
    return (ssize_t)len;
}

int __wrap_getsockname(int fd, struct sockaddr *address, socklen_t *len)
{
    struct obj *o = fd_obj(fd);
    struct sockaddr_in in = {.sin_family = AF_INET};

    inet_pton(AF_INET, o->host->address, &in.sin_addr);
    memcpy(address, &in, XM_MIN(sizeof in, *len));
    return 0;
}

int __wrap_xm_tcp_connect(const char *local, const char *remote, uint16_t port, uint64_t timeout,
                          struct xm_error *e)
{
    struct proc *me = proc_current();
    struct host *there = &w.host[0];

    (void)local, (void)port;
    for (int i = 0; i < w.hosts; i++) {
        if (!strcmp(w.host[i].address, remote))
            there = &w.host[i];
    }
    sim_point("tcp connect");
    uint64_t deadline = sim_time() + timeout;
    while (!reachable(me->host, there) && sim_time() < deadline)
        task_sleep(XM_MIN(500 * MS, deadline - sim_time()));
    if (!reachable(me->host, there))
        return xm_error_set(e, ETIMEDOUT, "%s: no answer", remote);
    task_sleep(between(100, 1500) * XM_NS_PER_US);
    if (!there->agent || !there->agent->alive || !there->listening)
        return xm_error_set(e, ECONNREFUSED, "%s: nobody listens", remote);
    struct obj *c = socket_pair(me, there->agent, true);
    c->peer->server_fd = fd_new(c->peer, there->agent);
    return fd_new(c, me);
}
