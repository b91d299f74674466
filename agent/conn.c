/* SPDX-License-Identifier: MIT */
/* Connections: one thread each, from the first line to the last answer.
 *
 * On the unix socket lines of JSON come at once. Over TCP the first line says what the connection is, and is
 * read byte for byte up to its end (by peeking), because after «link» the next byte already belongs to the
 * shim. Whoever connects over TCP is held to the configuration by address, before there is a thread for it
 * and after that line; and to sizes, counts and times.
 *
 * Nobody is kept out by connections that say nothing: a new one of an address that has PER_ADDRESS takes
 * the place of that address's connection that has been idle longest (it waits for its first line or next
 * message), and when all TCP_MAX are taken, of whoever's. Only requests that are being served keep their
 * places; an address has at most PER_ADDRESS of them. */
#include "agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define UNIX_MAX       256
#define TCP_MAX        128
#define PER_ADDRESS    16
#define FIRST_LINE_MAX 200
#define FIRST_LINE_NS  (5 * XM_NS_PER_S)
#define MESSAGE_NS     (30 * XM_NS_PER_S) /* for a peer's whole next message */

void conn_event(struct conn *c, json_t *event)
{
    if (c->dead)
        json_decref(event);
    else if (xm_jsonl_send(c->js.fd, event, -1, NULL) < 0)
        c->dead = true; /* who asked has gone; what it asked for goes on */
}

static void set_idle(struct conn *c, bool idle)
{
    agent_lock(c->agent);
    c->idle_since = idle ? xm_now() : 0;
    agent_unlock(c->agent);
}

static void serve(struct conn *c)
{
    struct xm_error e = {0};
    json_t *request;

    while (!c->dead) {
        uint64_t deadline = c->peer ? xm_now() + MESSAGE_NS : UINT64_MAX;
        request = xm_jsonl_recv(&c->js, deadline, &e);
        if (!request)
            break;
        set_idle(c, false);
        conn_event(c, verb_run(c, request));
        json_decref(request);
        set_idle(c, true);
    }
    /* What was no message gets an answer too, when there is anybody to read it. */
    if (!c->dead && e.code != ECONNRESET && e.code != ENOTCONN && e.code != ETIMEDOUT)
        conn_event(c, refusal(EXIT_USAGE, "%s", e.text));
}

/* ---- TCP ---- */

static bool known_peer(struct agent *a, const struct address *from)
{
    for (unsigned i = 0; i < a->conf.peers; i++) {
        if (address_equal(&a->conf.peer[i].parsed, from))
            return true;
    }
    return false;
}

/* The first line, without its end. 0 or -errno; nothing behind the line is taken. */
static int first_line(int fd, char line[FIRST_LINE_MAX], struct xm_error *e)
{
    uint64_t deadline = xm_now() + FIRST_LINE_NS;
    size_t have = 0;

    for (;;) {
        int waited = xm_wait_fd(fd, POLLIN, deadline);
        if (waited == -ETIMEDOUT)
            return xm_error_set(e, ETIMEDOUT, "it did not say what it is within 5 s");
        if (waited < 0)
            return xm_error_errno(e, -waited, "its first line cannot be waited for");
        ssize_t n = recv(fd, line + have, FIRST_LINE_MAX - have, MSG_PEEK | MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            return xm_error_set(e, ECONNRESET, "it closed before it said what it is");
        const char *end = memchr(line + have, '\n', (size_t)n);
        size_t take = end ? (size_t)(end - line) - have + 1 : (size_t)n;
        if (recv(fd, line + have, take, MSG_DONTWAIT) != (ssize_t)take)
            return xm_error_set(e, EIO, "its first line cannot be read");
        have += take;
        if (end) {
            line[have - 1] = 0;
            return 0;
        }
        if (have == FIRST_LINE_MAX)
            return xm_error_set(e, EMSGSIZE, "its first line does not end");
    }
}

/* What the connection says it is. True: serve its messages; else it has been handed on or *e says why not. */
static bool introduced(struct conn *c, struct xm_error *e)
{
    struct agent *a = c->agent;
    char line[FIRST_LINE_MAX], token[2 * 32 + 2], name[CONFIG_NAME_MAX + 2], rest;

    if (first_line(c->js.fd, line, e) < 0)
        return false;
    if (!strcmp(line, "XMIG/1 control")) {
        if (known_peer(a, &c->from))
            return true;
        xm_error_set(e, EACCES, "no [peer] has this address");
    } else if (sscanf(line, "XMIG/1 link %65s %64s%c", token, name, &rest) == 2) {
        agent_lock(a);
        int fd = c->js.fd;
        c->js.fd = -1;
        c->idle_since = 0;
        agent_unlock(a);
        link_arrived(a, &c->from, token, name, fd);
    } else {
        xm_error_set(e, EPROTO, "its first line is none of this version's");
    }
    return false;
}

static void serve_peer(struct conn *c)
{
    static struct xm_log_limit limit;
    struct xm_error e = {0};

    if (introduced(c, &e))
        serve(c);
    else if (e.code)
        xm_log_limited(&limit, XM_LOG_WARN, "closed a connection from %s: %s", address_format(&c->from).s,
                       e.text);
}

/* ---- life ---- */

/* Under the lock. */
static void delist(struct conn *c)
{
    struct agent *a = c->agent;

    LIST_REMOVE(c, link);
    if (!c->dropped)
        *(c->peer ? &a->tcp_conns : &a->unix_conns) -= 1;
}

static void *conn_main(void *arg)
{
    struct conn *c = arg;
    struct agent *a = c->agent;

    if (c->peer)
        serve_peer(c);
    else
        serve(c);
    agent_lock(a);
    delist(c);
    xm_jsonl_close(&c->js); /* under the lock: agent_stop shuts down the sockets in the list */
    agent_unlock(a);
    free(c);
    agent_thread_ends(a);
    return NULL;
}

void conn_keep_alive(int fd)
{
    int on = 1, idle = 10, interval = 5, count = 3;

    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Under the lock. The one that has been idle longest, of this address alone (NULL: of any). */
static struct conn *longest_idle(struct agent *a, const struct address *of)
{
    struct conn *c, *found = NULL;

    LIST_FOREACH (c, &a->conns, link) {
        if (!c->peer || c->dropped || !c->idle_since || c->js.fd < 0 || (of && !address_equal(&c->from, of)))
            continue;
        if (!found || c->idle_since < found->idle_since)
            found = c;
    }
    return found;
}

/* Under the lock. */
static unsigned count_of(struct agent *a, const struct address *from)
{
    struct conn *c;
    unsigned n = 0;

    LIST_FOREACH (c, &a->conns, link)
        n += c->peer && !c->dropped && address_equal(&c->from, from);
    return n;
}

/* Under the lock: is there a place for it, if need be an idle one's? */
static bool make_place(struct agent *a, const struct address *from, struct xm_error *e)
{
    bool many = count_of(a, from) >= PER_ADDRESS;

    if (!many && a->tcp_conns < TCP_MAX)
        return true;
    struct conn *old = longest_idle(a, many ? from : NULL);
    if (!old) {
        xm_error_set(e, EBUSY,
                     many ? "it has %u requests here that are not finished"
                          : "%u requests of other hosts are not finished",
                     many ? PER_ADDRESS : TCP_MAX);
        return false;
    }
    old->dropped = true;
    shutdown(old->js.fd, SHUT_RDWR); /* its thread sees its end */
    a->tcp_conns--;
    return true;
}

/* Under the lock. */
static bool enlist(struct agent *a, struct conn *c, struct xm_error *e)
{
    if (a->ending) {
        xm_error_set(e, ECANCELED, "the agent ends");
        return false;
    }
    if (c->peer ? !make_place(a, &c->from, e) : a->unix_conns >= UNIX_MAX) {
        if (!c->peer)
            xm_error_set(e, EBUSY, "%u connections of this host are open", UNIX_MAX);
        return false;
    }
    *(c->peer ? &a->tcp_conns : &a->unix_conns) += 1;
    c->idle_since = xm_now();
    LIST_INSERT_HEAD(&a->conns, c, link);
    return true;
}

static void not_accepted(int err)
{
    static struct xm_log_limit limit;

    if (err == EAGAIN || err == EINTR || err == ECONNABORTED)
        return;
    xm_log_limited(&limit, XM_LOG_ERROR, "cannot accept a connection: %s", strerror(err));
    poll(NULL, 0, 50); /* out of descriptors or memory: it stays in the queue, and is tried again at once */
}

void conn_accept(struct agent *a, int listen_fd, bool peer)
{
    static struct xm_log_limit limit;
    struct sockaddr_storage ss = {0};
    socklen_t len = sizeof ss;
    struct xm_error e = {0};
    int fd = accept4(listen_fd, (struct sockaddr *)&ss, &len, SOCK_CLOEXEC);
    struct conn *c = fd < 0 ? NULL : calloc(1, sizeof *c);

    if (!c) {
        not_accepted(fd < 0 ? errno : ENOMEM);
        if (fd >= 0)
            close(fd);
        return;
    }
    c->agent = a;
    c->peer = peer;
    xm_jsonl_init(&c->js, fd);
    bool known = true, listed = false;
    if (peer) {
        c->js.limits = &xm_json_request;
        address_of(&c->from, (struct sockaddr *)&ss);
        conn_keep_alive(fd);
        known = known_peer(a, &c->from) || link_welcome(a, &c->from);
    }
    if (!known) {
        xm_error_set(&e, EACCES, "no [peer] has this address");
    } else {
        agent_lock(a);
        listed = enlist(a, c, &e);
        agent_unlock(a);
    }
    if (listed && agent_thread(a, conn_main, c, &e) == 0)
        return;
    xm_log_limited(&limit, XM_LOG_WARN, "refused a connection from %s: %s",
                   peer ? address_format(&c->from).s : "this host", e.text);
    agent_lock(a);
    if (listed)
        delist(c);
    agent_unlock(a);
    xm_jsonl_close(&c->js);
    free(c);
}
