/* SPDX-License-Identifier: MIT */
/* Descriptors; sockets that carry whole JSON objects, in order, with delays; poll.
 *
 * Between hosts a partition holds back what is sent; a connection that was cut off for KEEPALIVE ends on
 * both sides. A process that is killed closes its sockets, unless its host lost its power: then nobody is
 * told. */
#include "tests/sim/sim.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FD_FIRST  100
#define FDS       6000
#define KEEPALIVE (25 * SEC)

static struct {
    struct obj *obj;
    struct proc *owner;
} fds[FDS];
static int fds_used;

void fds_reset(void)
{
    memset(fds, 0, (size_t)fds_used * sizeof *fds);
    fds_used = 0;
}

struct obj *obj_new(enum kind kind)
{
    struct obj *o = sim_alloc(sizeof *o);

    memset(o, 0, sizeof *o);
    o->kind = kind;
    o->proc = proc_current();
    o->host = o->proc ? o->proc->host : NULL;
    o->last = &o->first;
    return o;
}

int fd_new(struct obj *o, struct proc *owner)
{
    if (fds_used == FDS) {
        sim_violated("more than %d descriptors", FDS);
        fds_used--;
    }
    o->refs++;
    fds[fds_used].obj = o;
    fds[fds_used].owner = owner;
    return FD_FIRST + fds_used++;
}

struct obj *fd_obj(int fd)
{
    return fd >= FD_FIRST && fd < FD_FIRST + fds_used ? fds[fd - FD_FIRST].obj : NULL;
}

/* Who waits for several descriptors is woken by each change of any. */
static const char pollers;

void obj_changed(struct obj *o)
{
    task_wake(o);
    task_wake(&pollers);
}

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

void obj_put(struct obj *o)
{
    if (--o->refs > 0)
        return;
    if (o->kind == FD_SOCKET && o->peer && !o->broken) {
        struct obj *peer = o->peer;
        peer->peer = NULL;
        if (!o->network || reachable(o->host, peer->host))
            at(XM_MAX(peer->last_arrival, sim_time()) + between(20, 200) * XM_NS_PER_US, closed_far, peer);
    }
    if (o->kind == FD_LISTEN) {
        o->eof = true;
        for (unsigned i = 0; i < o->pendings; i++)
            obj_put(o->pending[i]);
        o->pendings = 0;
    }
}

static void fd_close(int i)
{
    struct obj *o = fds[i].obj;

    fds[i].obj = NULL;
    if (o)
        obj_put(o);
}

void fds_close_all(struct proc *p)
{
    for (int i = 0; i < fds_used; i++) {
        if (fds[i].owner == p && fds[i].obj)
            fd_close(i);
    }
}

void sockets_of_process_gone(struct proc *p)
{
    for (int i = 0; i < fds_used; i++) {
        if (fds[i].obj && fds[i].obj->kind == FD_PID && fds[i].obj->proc == p)
            obj_changed(fds[i].obj);
    }
}

int __wrap_close(int fd)
{
    if (!fd_obj(fd)) {
        errno = EBADF;
        return -1;
    }
    fd_close(fd - FD_FIRST);
    return 0;
}

int __wrap_fcntl(int fd, int what, ...)
{
    struct obj *o = fd_obj(fd);

    if (what == F_OFD_SETLK && o && o->kind == FD_FILE && o->inode->user && o->inode->user->alive) {
        errno = EAGAIN;
        return -1;
    }
    return what == F_DUPFD_CLOEXEC && o ? fd_new(o, proc_current()) : 0;
}

/* ---- sockets ---- */

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

    if (o->eof || o->broken || o->refs == 0)
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
    for (int i = 0; i < fds_used; i++) {
        struct obj *o = fds[i].obj;
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
    for (int i = 0; i < fds_used; i++) {
        struct obj *o = fds[i].obj;
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

/* ---- events, processes, signals ---- */

int __wrap_eventfd(unsigned value, int flags)
{
    struct obj *o = obj_new(FD_EVENT);

    (void)flags;
    o->count = value;
    return fd_new(o, proc_current());
}

int __wrap_eventfd_write(int fd, eventfd_t value)
{
    struct obj *o = fd_obj(fd);

    if (!o)
        return -1;
    o->count += value;
    obj_changed(o);
    return 0;
}

int __wrap_eventfd_read(int fd, eventfd_t *value)
{
    struct obj *o = fd_obj(fd);

    if (!o || !o->count) {
        errno = EAGAIN;
        return -1;
    }
    *value = o->count;
    o->count = 0;
    return 0;
}

int __wrap_signalfd(int fd, const void *set, int flags)
{
    struct obj *o = obj_new(FD_SIGNAL);

    (void)fd, (void)set, (void)flags;
    proc_current()->signals = o;
    return fd_new(o, o->proc);
}

long __wrap_syscall(long number, ...)
{
    va_list ap;
    va_start(ap, number);
    int first = va_arg(ap, int), second = va_arg(ap, int);
    va_end(ap);
    if (number == SYS_pidfd_open) {
        struct proc *p = proc_of(first);
        if (!p || !p->alive || p->host != proc_current()->host) {
            errno = ESRCH;
            return -1;
        }
        struct obj *o = obj_new(FD_PID);
        o->proc = p;
        return fd_new(o, proc_current());
    }
    struct obj *o = fd_obj(first);
    if (number == SYS_pidfd_send_signal && o && o->kind == FD_PID) {
        sim_point("signal");
        if (second == SIGKILL && o->proc->alive)
            proc_kill(o->proc, "by its pidfd");
        return 0;
    }
    errno = ENOSYS;
    return -1;
}

int __wrap_kill(pid_t pid, int sig)
{
    struct proc *p = proc_of(pid < 0 ? -pid : pid);

    if (p && p->alive && sig == SIGKILL)
        proc_kill(p, "by kill");
    return 0;
}

pid_t __wrap_waitpid(pid_t pid, int *status, int options)
{
    (void)status, (void)options;
    return pid;
}

static short state_of(const struct obj *o)
{
    switch (o->kind) {
    case FD_SOCKET:
        return o->first ? POLLIN : o->eof ? POLLIN | POLLHUP : 0;
    case FD_LISTEN:
        return o->pendings ? POLLIN : 0;
    case FD_EVENT:
        return o->count ? POLLIN : 0;
    case FD_PID:
        return o->proc->alive ? 0 : POLLIN;
    case FD_SIGNAL:
        return o->proc->term ? POLLIN : 0;
    default:
        return 0;
    }
}

static int look(struct pollfd *p, nfds_t n)
{
    int ready = 0;

    for (nfds_t i = 0; i < n; i++) {
        struct obj *o = p[i].fd < 0 ? NULL : fd_obj(p[i].fd);
        p[i].revents = p[i].fd < 0 ? 0 : !o ? POLLNVAL : (short)(state_of(o) & (p[i].events | POLLHUP));
        ready += p[i].revents != 0;
    }
    return ready;
}

int __wrap_poll(struct pollfd *p, nfds_t n, int timeout)
{
    uint64_t deadline = timeout < 0 ? NEVER : sim_time() + (uint64_t)timeout * MS;
    static uint64_t last;
    static unsigned spins;
    int ready;

    /* Who finds something ready again and again burns time as well. */
    spins = last == sim_time() ? spins + 1 : 0;
    last = sim_time();
    if (spins > 500)
        task_sleep(MS);

    while (!(ready = look(p, n)) && timeout && sim_time() < deadline) {
        if (n == 1 && fd_obj(p[0].fd))
            task_wait(fd_obj(p[0].fd), deadline);
        else if (n == 0)
            task_wait(NULL, deadline);
        else
            task_wait(&pollers, deadline);
    }
    return ready;
}
