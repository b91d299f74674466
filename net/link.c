/* SPDX-License-Identifier: MIT */
/* net/link.c: one link: a connected socket and the thread that sends and receives on it.
 *
 * Happy path, over and over: receive what has come, queue the answers that handlers have given meanwhile,
 * take messages, send; when none of it moved, say so to the queue and sleep in poll on the socket and on
 * `wake`.
 *
 * Failures:
 * - The connection ends, resets, or nothing is heard for opts.silence (the other side sends PING at least
 * every tenth of that): the link is down. Its unanswered messages go back to the queue's head, and other
 * links send them again. The receiver may have seen them already; it tells by (object, seq). Answers that we
 * still owed on it are dropped: the peer asks again on another link.
 * - It was the last link: its thread stays for link_timeout to see whether another one comes, then the bundle
 * is lost (-ENOLINK).
 * - The peer breaks the protocol, or bytes were damaged: the bundle is lost, the peer is told why.
 * - The bundle is lost or freed: what we owe is said within GOODBYE_TIME, then every message ends. The socket
 * is closed only after the other side has (or GOODBYE_TIME later), since closing with unread bytes resets the
 * connection, and the peer might not get to read our ABORT.
 */
#include "net/bundle.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

struct link *link_new(struct xm_links *b, int fd, const char *name)
{
    struct link *l = calloc(1, sizeof *l);
    int one = 1, unsent = (int)UNSENT_BYTES;

    if (!l)
        return NULL;
    l->bundle = b;
    l->fd = fd;
    l->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (l->wake < 0) {
        free(l);
        return NULL;
    }
    snprintf(l->name, sizeof l->name, "%s", name ? name : "");
    TAILQ_INIT(&l->slots.flying);
    TAILQ_INIT(&l->slots.idle);
    l->tx.answers_tail = &l->tx.answers;
    l->rx.heard = l->tx.spoke = xm_now();
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* not for unix sockets */
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
    /* Where this host cannot, its own choice stays. */
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, CONGESTION, sizeof CONGESTION - 1);
    return l;
}

/* The thread has ended, or never was. */
void link_free(struct link *l)
{
    for (struct xm_rx *rx = atomic_load(&l->any.answered), *next; rx; rx = next) {
        next = rx->next_ack;
        free(rx->payload);
        free(rx);
    }
    if (l->fd >= 0)
        close(l->fd);
    close(l->wake);
    place_free(l);
    free(l);
}

void link_wake(struct link *l)
{
    if (atomic_load(&l->any.asleep) && atomic_exchange(&l->any.asleep, false))
        eventfd_write(l->wake, 1);
}

int link_violation(struct link *l, int code, const char *fmt, ...)
{
    char what[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    xm_error_set(&l->why, code, "link %s: %s", l->name, what);
    bundle_lose(l->bundle, -ECANCELED, true, &l->why);
    return -code;
}

static void sleep_until(struct link *l, uint64_t until, bool *timed_out)
{
    struct pollfd p[2] = {{.fd = l->wake, .events = POLLIN}, {.fd = l->fd}};
    uint64_t now = xm_now();
    uint64_t wait = until > now ? until - now : 0;
    struct timespec ts = {(time_t)(wait / XM_NS_PER_S), (long)(wait % XM_NS_PER_S)};
    eventfd_t ignored;

    p[1].events = (short)((l->rx.starved ? 0 : POLLIN) | (l->tx.blocked ? POLLOUT : 0));
    int n = ppoll(p, 2, &ts, NULL);
    atomic_store(&l->any.asleep, false);
    if (n > 0 && p[0].revents)
        eventfd_read(l->wake, &ignored);
    if (n > 0 && p[1].revents & (POLLOUT | POLLERR | POLLHUP))
        l->tx.blocked = false;
    l->hung = n > 0 && p[1].revents & (POLLERR | POLLHUP);
    *timed_out = n == 0;
}

/* Nothing moved. Returns when something may have, -errno when the link is to be given up. */
static int wait_for_work(struct link *l)
{
    uint64_t silence = l->bundle->opts.silence, until = UINT64_MAX;
    bool timed_out;

    if (!queue_sleep(l, &until))
        return 0;
    /* A full socket takes no answers either: only poll tells when it is not full any more. */
    if ((atomic_load(&l->any.answered) && !l->tx.blocked) || atomic_load(&l->bundle->ending)) {
        atomic_store(&l->any.asleep, false);
        return 0;
    }
    until = XM_MIN(until, l->tx.spoke + silence / 10);
    until = XM_MIN(until, l->rx.heard + silence);
    sleep_until(l, until, &timed_out);
    if (l->hung && l->rx.starved) /* else reading finds out, and reads first what there still is */
        return xm_error_set(&l->why, ECONNRESET, "the other side closed the connection");
    if (!timed_out)
        return 0;
    uint64_t now = xm_now();
    /* Judged only when poll has found nothing: this process may have been stopped for a while. */
    if (now >= l->rx.heard + silence && !l->rx.starved)
        return xm_error_set(&l->why, ETIMEDOUT, "nothing was heard from the other side for %s",
                            xm_format_time(now - l->rx.heard).s);
    if (now >= l->tx.spoke + silence / 10) {
        l->tx.spoke = now;
        if (tx_idle(l))
            tx_frame(l, XM_FRAME_PING, 0, NULL, 0);
    }
    return 0;
}

static int link_turn(struct link *l)
{
    int received = rx_receive(l);
    bool moved = received > 0;

    if (received < 0)
        return received;
    if (!l->tx.blocked) {
        tx_answers(l);
        /* What is taken goes out before whatever urgent comes next. */
        if (l->tx.n < OUT_MAX / 2 && tx_unsent(l) < UNSENT_BYTES)
            tx_messages(l);
        if (!tx_idle(l)) {
            moved = true;
            int err = tx_send(l);
            if (err < 0) {
                /* The peer may have said why, just before. */
                xm_error_errno(&l->why, -err, "sending");
                struct xm_error why = l->why;
                while (rx_receive(l) > 0) {
                }
                if (!atomic_load(&l->bundle->ending))
                    l->why = why;
                return err;
            }
        }
    }
    return moved ? 0 : wait_for_work(l);
}

/* Sends what is queued, for GOODBYE_TIME at most; when freed, also the answers that handlers still give. */
static void link_flush(struct link *l, bool answers)
{
    uint64_t deadline = xm_now() + GOODBYE_TIME;
    bool timed_out = false;

    while (!timed_out && !l->hung && xm_now() < deadline) {
        if (answers)
            tx_answers(l);
        if (tx_send(l) < 0 || (tx_idle(l) && (!answers || (!l->rx.unanswered && !l->tx.answers))))
            return;
        atomic_store(&l->any.asleep, true);
        if (!(answers && atomic_load(&l->any.answered))) {
            l->rx.starved = true; /* not reading any more */
            sleep_until(l, deadline, &timed_out);
        }
    }
}

static void link_linger(struct link *l)
{
    uint64_t deadline = xm_now() + GOODBYE_TIME;

    shutdown(l->fd, SHUT_WR);
    while (xm_now() < deadline && !xm_wait_fd(l->fd, POLLIN, deadline)) {
        ssize_t n = recv(l->fd, l->rx.ahead, sizeof l->rx.ahead, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return;
    }
}

static void say_goodbye(struct link *l)
{
    struct xm_links *b = l->bundle;

    pthread_mutex_lock(&b->lock);
    bool tell = b->end.lost && b->end.tell_peer, lost = b->end.lost;
    struct xm_error why = b->end.why;
    pthread_mutex_unlock(&b->lock);
    if (lost) {
        tx_cut(l); /* no more data */
        if (!tell)
            return;
        tx_frame(l, XM_FRAME_ABORT, (uint64_t)why.code, why.text,
                 XM_MAX((uint32_t)strnlen(why.text, ABORT_MAX), 1u));
    }
    link_flush(l, !lost);
    link_linger(l);
}

/* Unanswered messages: back to the queue, or, when the bundle has ended, to their owners. */
static void link_give_back(struct link *l)
{
    struct xm_links *b = l->bundle;
    struct msgs back = STAILQ_HEAD_INITIALIZER(back);
    struct slot *s;
    struct xm_msg *m;
    uint64_t bytes = 0;

    while ((s = TAILQ_FIRST(&l->slots.flying))) {
        m = link_slot_take(l, s);
        bytes += m->length;
        STAILQ_INSERT_TAIL(&back, m, link);
    }
    pthread_mutex_lock(&b->lock);
    l->locked.up = l->locked.wants = false;
    if (--b->up == 0) {
        b->down_since = xm_now();
        b->end.last_why = l->why;
    }
    bool ended = b->end.lost || b->end.closing;
    int status = b->end.status;
    if (!ended) {
        STAILQ_CONCAT(&back, &b->queue.again);
        STAILQ_CONCAT(&b->queue.again, &back);
        b->queue.bytes += bytes;
        b->queue.bytes_max = XM_MAX(b->queue.bytes_max, b->queue.bytes);
    }
    pthread_mutex_unlock(&b->lock);
    while ((m = STAILQ_FIRST(&back))) {
        STAILQ_REMOVE_HEAD(&back, link);
        msg_end(m, status);
    }
}

/* Holds the place while no link is up. */
static void wait_for_other_links(struct xm_links *b)
{
    bool late = false;

    pthread_mutex_lock(&b->lock);
    while (!b->up && !b->end.lost && !b->end.closing && !late) {
        uint64_t deadline = b->down_since + b->opts.link_timeout;
        struct timespec ts = {(time_t)(deadline / XM_NS_PER_S), (long)(deadline % XM_NS_PER_S)};
        if (xm_now() >= deadline)
            late = true;
        else
            pthread_cond_timedwait(&b->changed, &b->lock, &ts);
    }
    pthread_mutex_unlock(&b->lock);
    if (late)
        bundle_lose(b, -ENOLINK, false, NULL);
}

static void tell_lost(struct xm_links *b)
{
    pthread_mutex_lock(&b->lock);
    bool tell = b->end.lost && !b->end.closing && !b->end.told;
    b->end.told = b->end.told || tell;
    struct xm_error why = b->end.why;
    pthread_mutex_unlock(&b->lock);
    if (tell && b->opts.event)
        b->opts.event(b->opts.event_ctx, -1, XM_LINK_DOWN, &why);
}

static void link_set_tid(struct link *l, pid_t tid)
{
    struct xm_links *b = l->bundle;

    pthread_mutex_lock(&b->lock);
    l->locked.tid = tid;
    if (tid && b->background)
        xm_sched_background(tid, true);
    pthread_mutex_unlock(&b->lock);
}

void xm_links_set_background(struct xm_links *b, bool background)
{
    pthread_mutex_lock(&b->lock);
    b->background = background;
    for (int i = 0; i < b->links; i++) {
        if (b->link[i]->locked.tid)
            xm_sched_background(b->link[i]->locked.tid, background);
    }
    pthread_mutex_unlock(&b->lock);
}

/* A switch that drops what is larger than its own packets lets the handshake and PINGs pass: the other side
 * hears nothing, and closes; we hear it all the time. */
static void tell_stuck(struct link *l)
{
    uint64_t since = l->tx.stuck ? xm_now() - l->tx.stuck : 0;
    char text[sizeof l->why.text];

    if (!l->why.code || l->why.code == ETIMEDOUT || since < l->bundle->opts.silence / 2)
        return;
    memcpy(text, l->why.text, sizeof text);
    xm_error_set(&l->why, l->why.code,
                 "%.300s; of what was sent nothing had got through for %s (do large packets, MTU?)", text,
                 xm_format_time(since).s);
}

void *link_main(void *arg)
{
    struct link *l = arg;
    struct xm_links *b = l->bundle;

    link_set_tid(l, gettid());
    if (b->opts.event)
        b->opts.event(b->opts.event_ctx, l->number, XM_LINK_UP, &(struct xm_error){0});
    while (!atomic_load_explicit(&b->ending, memory_order_relaxed) && link_turn(l) == 0) {
    }
    bool ended = atomic_load(&b->ending);
    if (ended)
        say_goodbye(l);
    else
        tell_stuck(l);
    link_set_tid(l, 0);
    tx_drop(l);
    rx_drop(l);
    close(l->fd);
    l->fd = -1;
    pthread_mutex_lock(&b->lock);
    if (ended && b->end.why.code)
        l->why = b->end.why;
    else
        xm_error_prefix(&l->why, "link %s", l->name);
    pthread_mutex_unlock(&b->lock);
    link_give_back(l);
    queue_kick(b);
    if (b->opts.event)
        b->opts.event(b->opts.event_ctx, l->number, XM_LINK_DOWN, &l->why);
    wait_for_other_links(b);
    tell_lost(b);

    for (unsigned i = 0; i < l->slots.n; i += SLOT_BLOCK)
        free(l->slots.block[i / SLOT_BLOCK]);
    free(l->slots.block);
    pthread_mutex_lock(&b->lock);
    l->locked.ended = true;
    pthread_mutex_unlock(&b->lock);
    return NULL;
}
