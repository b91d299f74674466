/* Connections: one thread each, from the first line to the last answer.
 *
 * On the unix socket lines of JSON come at once. Over TCP the first line says what the connection is, and is
 * read byte for byte up to its end (by peeking), because after «link» the next byte already belongs to the
 * shim. Whoever connects over TCP is held to the configuration by address, before and after that line; and to
 * sizes, counts and times: a peer that is silent, endless or talkative costs one thread for some seconds, and
 * at most TCP_MAX of them.
 */
#include "agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define UNIX_MAX       256
#define TCP_MAX        64
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

static void serve(struct conn *c)
{
    struct xm_error e = {0};
    json_t *request;

    while (!c->dead) {
        uint64_t deadline = c->peer ? xm_now() + MESSAGE_NS : UINT64_MAX;
        request = xm_jsonl_recv(&c->js, deadline, &e);
        if (!request)
            break;
        conn_event(c, verb_run(c, request));
        json_decref(request);
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
        uint64_t now = xm_now();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (now >= deadline)
            return xm_error_set(e, ETIMEDOUT, "it did not say what it is within 5 s");
        if (poll(&p, 1, (int)((deadline - now) / XM_NS_PER_MS + 1)) <= 0)
            continue;
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

    if (!known_peer(a, &c->from) && !link_welcome(a, &c->from)) {
        xm_error_set(e, EACCES, "no [peer] has this address");
        return false;
    }
    if (first_line(c->js.fd, line, e) < 0)
        return false;
    if (!strcmp(line, "XMIG/1 control")) {
        if (known_peer(a, &c->from))
            return true;
        xm_error_set(e, EACCES, "no [peer] has this address");
    } else if (sscanf(line, "XMIG/1 link %65s %64s%c", token, name, &rest) == 2) {
        int fd = c->js.fd;
        agent_lock(a);
        c->js.fd = -1;
        agent_unlock(a);
        link_arrived(a, &c->from, token, name, fd);
    } else {
        xm_error_set(e, EPROTO, "its first line is none of this version's");
    }
    return false;
}

static void serve_peer(struct conn *c)
{
    struct xm_error e = {0};

    if (introduced(c, &e))
        serve(c);
    else if (e.code)
        xm_log(XM_LOG_WARN, "closed a connection from %s: %s", address_format(&c->from).s, e.text);
}

/* ---- life ---- */

static void *conn_main(void *arg)
{
    struct conn *c = arg;
    struct agent *a = c->agent;

    if (c->peer)
        serve_peer(c);
    else
        serve(c);
    agent_lock(a);
    LIST_REMOVE(c, link);
    *(c->peer ? &a->tcp_conns : &a->unix_conns) -= 1;
    xm_jsonl_close(&c->js); /* under the lock: agent_stop shuts down the sockets in the list */
    agent_unlock(a);
    free(c);
    agent_thread_ends(a);
    return NULL;
}

static void keep_alive(int fd)
{
    int on = 1, idle = 10, interval = 5, count = 3;

    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void conn_accept(struct agent *a, int listen_fd, bool peer)
{
    struct sockaddr_storage ss = {0};
    socklen_t len = sizeof ss;
    struct xm_error e = {0};
    int fd = accept4(listen_fd, (struct sockaddr *)&ss, &len, SOCK_CLOEXEC);
    struct conn *c = fd < 0 ? NULL : calloc(1, sizeof *c);

    if (!c) {
        if (fd >= 0)
            close(fd);
        else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            xm_log(XM_LOG_ERROR, "cannot accept a connection: %s", strerror(errno));
        return;
    }
    c->agent = a;
    c->peer = peer;
    xm_jsonl_init(&c->js, fd);
    if (peer) {
        c->js.limits = &xm_json_request;
        address_of(&c->from, (struct sockaddr *)&ss);
        keep_alive(fd);
    }
    agent_lock(a);
    unsigned *count = peer ? &a->tcp_conns : &a->unix_conns;
    bool room = *count < (peer ? TCP_MAX : UNIX_MAX) && !a->ending;
    if (room) {
        (*count)++;
        LIST_INSERT_HEAD(&a->conns, c, link);
    }
    agent_unlock(a);
    if (room && agent_thread(a, conn_main, c, &e) == 0)
        return;
    xm_log(XM_LOG_WARN, "refused a connection: %s", room ? e.text : "too many are open");
    agent_lock(a);
    if (room) {
        (*count)--;
        LIST_REMOVE(c, link);
    }
    agent_unlock(a);
    xm_jsonl_close(&c->js);
    free(c);
}
