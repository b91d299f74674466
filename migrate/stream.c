/* SPDX-License-Identifier: MIT */
/* See stream.h. Source: at most IN_FLIGHT frames are held or unanswered, their buffers are the thread's own.
 * Destination: frames may come in any order by any link; those ahead of their turn wait in a list, duplicates
 * (offset below what was written) are answered and dropped. */
#include "migrate/stream.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define IN_FLIGHT 16
#define PIECE     (128u << 10)

/* QEMU's section about itself (migration/global_state.c, the same from 7.2 to 11): the length of its name and
 * the name; instance, version, and the size of the text, 4 bytes each; the text, with its end. */
#define STATE_SECTION "\013globalstate"
enum { STATE_NAME = sizeof STATE_SECTION - 1, STATE_TEXT = STATE_NAME + 12 };

struct piece {
    struct xm_msg msg;
    struct stream *s;
    bool busy;
    uint8_t data[PIECE];
};

struct stream {
    pthread_t thread;
    struct xm_mailbox mailbox; /* the thread's */
    int fd;                    /* to QEMU */
    _Atomic bool stop;
    _Atomic uint64_t offset; /* bytes sent, or written to QEMU */
    pthread_mutex_t lock;    /* protects error */
    struct xm_error error;
    /* source */
    struct xm_transport *to;
    unsigned attempt;
    struct piece *piece;
    unsigned busy;               /* held or unanswered */
    _Atomic bool hold;           /* set by another thread, ended by this one */
    STAILQ_HEAD(, xm_post) held; /* posts of messages that are not submitted yet */
    struct piece *filling;       /* the last of these, while it has room */
    struct xm_post release;
    unsigned state_at;                 /* bytes of that section that have been seen */
    char state_next[STREAM_STATE_MAX]; /* being read */
    char state[STREAM_STATE_MAX];      /* under the lock, as the next */
    bool sent;                         /* QEMU has closed it */
    /* destination */
    STAILQ_HEAD(, xm_post) early; /* posts of frames ahead of their turn */
    bool ended;
};

static void set_error(struct stream *s, const struct xm_error *e)
{
    pthread_mutex_lock(&s->lock);
    if (!s->error.code)
        s->error = *e;
    pthread_mutex_unlock(&s->lock);
}

void stream_error(struct stream *s, struct xm_error *e)
{
    pthread_mutex_lock(&s->lock);
    *e = s->error;
    pthread_mutex_unlock(&s->lock);
}

uint64_t stream_bytes(const struct stream *s)
{
    return s->offset;
}

/* ---- source ---- */

static void piece_ended(struct xm_post *p)
{
    struct xm_msg *msg = xm_container_of(p, struct xm_msg, post);
    struct piece *pc = xm_container_of(msg, struct piece, msg);
    struct xm_error e = {0};

    pc->busy = false;
    pc->s->busy--;
    free(msg->reply);
    if (msg->status) {
        xm_error_errno(&e, -msg->status, "the destination refuses QEMU's device state");
        set_error(pc->s, &e);
    }
}

static void submit_held(struct xm_post *p)
{
    struct stream *s = xm_container_of(p, struct stream, release);

    s->hold = false;
    s->filling = NULL;
    for (struct xm_post *held; !s->stop && (held = STAILQ_FIRST(&s->held));) {
        STAILQ_REMOVE_HEAD(&s->held, next);
        s->to->submit(s->to, xm_container_of(held, struct xm_msg, post));
    }
}

/* What was held goes nowhere any more. */
static void drop_held(struct stream *s)
{
    s->filling = NULL;
    for (; !STAILQ_EMPTY(&s->held); s->busy--)
        STAILQ_REMOVE_HEAD(&s->held, next);
}

void stream_hold(struct stream *s)
{
    s->hold = true;
}

void stream_release(struct stream *s)
{
    s->release.run = submit_held;
    xm_mailbox_post(&s->mailbox, &s->release);
}

/* NULL: told to stop. */
static struct piece *free_piece(struct stream *s)
{
    while (!s->stop) {
        for (unsigned i = 0; i < IN_FLIGHT; i++) {
            if (!s->piece[i].busy)
                return &s->piece[i];
        }
        xm_mailbox_wait(&s->mailbox, -1);
    }
    return NULL;
}

static void begin_piece(struct stream *s, struct piece *pc)
{
    pc->busy = true;
    s->busy++;
    pc->msg = (struct xm_msg){
        .post.run = piece_ended,
        .home = &s->mailbox,
        .type = XM_FRAME_STREAM,
        .urgent = true,
        .offset = s->offset,
        .after = s->attempt,
    };
}

/* What a guest writes into QEMU's own memory (a display's) may look like it; the devices come after that. */
static void find_runstate(struct stream *s, const uint8_t *p, size_t n)
{
    for (const uint8_t *end = p + n; p < end; p++) {
        if (!s->state_at && !(p = memchr(p, STATE_SECTION[0], (size_t)(end - p))))
            return;
        if (s->state_at < STATE_NAME) {
            bool first = *p == STATE_SECTION[0];
            s->state_at = *p == (uint8_t)STATE_SECTION[s->state_at] ? s->state_at + 1 : first;
            continue;
        }
        unsigned at = s->state_at++ - STATE_NAME;
        if (at < STATE_TEXT - STATE_NAME)
            continue;
        at -= STATE_TEXT - STATE_NAME;
        s->state_next[at] = (char)*p;
        if (*p && at + 1 < STREAM_STATE_MAX)
            continue;
        s->state_next[at] = 0;
        s->state_at = 0;
        pthread_mutex_lock(&s->lock);
        memcpy(s->state, s->state_next, sizeof s->state);
        pthread_mutex_unlock(&s->lock);
    }
}

bool stream_runstate(struct stream *s, char state[STREAM_STATE_MAX])
{
    pthread_mutex_lock(&s->lock);
    memcpy(state, s->state, sizeof s->state);
    bool all = s->sent;
    pthread_mutex_unlock(&s->lock);
    return all;
}

/* n bytes more have been read into it; none: it is the last. */
static void piece_read(struct stream *s, struct piece *pc, uint32_t n)
{
    pc->msg.length += n;
    pc->msg.payload = pc->msg.length ? pc->data : NULL;
    pc->msg.flags = n ? 0 : XM_FLAG_END;
    s->offset += n;
    if (s->hold) {
        if (pc != s->filling)
            STAILQ_INSERT_TAIL(&s->held, &pc->msg.post, next);
        s->filling = pc->msg.length < PIECE ? pc : NULL;
    } else {
        s->to->submit(s->to, &pc->msg);
    }
}

/* Waits for something to read on fd, or the end. */
static bool readable(struct stream *s, int fd)
{
    while (!s->stop) {
        struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = s->mailbox.fd, .events = POLLIN}};
        if (poll(p, 2, -1) < 0)
            continue;
        if (p[1].revents)
            xm_mailbox_run(&s->mailbox);
        if (p[0].revents)
            return !s->stop;
    }
    return false;
}

static void *send_main(void *arg)
{
    struct stream *s = arg;
    bool end = false;

    pthread_setname_np(pthread_self(), "stream");
    while (!end && readable(s, s->fd)) {
        struct piece *pc = s->filling ? s->filling : free_piece(s);
        if (!pc)
            break;
        if (pc != s->filling)
            begin_piece(s, pc);
        ssize_t n;
        do {
            n = read(s->fd, pc->data + pc->msg.length, PIECE - pc->msg.length);
        } while (n < 0 && (errno == EINTR || errno == EAGAIN));
        end = n <= 0;
        find_runstate(s, pc->data + pc->msg.length, n > 0 ? (size_t)n : 0);
        piece_read(s, pc, n > 0 ? (uint32_t)n : 0);
    }
    pthread_mutex_lock(&s->lock);
    s->sent = true;
    pthread_mutex_unlock(&s->lock);
    for (;;) {
        if (s->stop)
            drop_held(s);
        if (!s->busy)
            return NULL;
        xm_mailbox_wait(&s->mailbox, -1);
    }
}

/* ---- destination ---- */

static void write_frame(struct stream *s, struct xm_rx *rx)
{
    const uint8_t *p = rx->payload;
    size_t left = rx->hdr.length;
    struct xm_error e = {0};

    while (left) {
        ssize_t n = send(s->fd, p, left, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int code = errno;
            xm_error_errno(&e, code, "QEMU at the destination does not take the device state");
            set_error(s, &e);
            xm_rx_done(rx, -code, NULL, 0);
            return;
        }
        p += n;
        left -= (size_t)n;
    }
    s->offset += rx->hdr.length;
    if (rx->hdr.flags & XM_FLAG_END) {
        s->ended = true;
        shutdown(s->fd, SHUT_WR);
    }
    xm_rx_done(rx, 0, NULL, 0);
}

static void frame_run(struct xm_post *post)
{
    struct xm_rx *rx = xm_container_of(post, struct xm_rx, post);
    struct stream *s = rx->owner;

    if (s->stop) {
        xm_rx_done(rx, -ECANCELED, NULL, 0);
        return;
    }
    if (rx->hdr.offset < s->offset || s->ended) { /* resent: it was written already */
        xm_rx_done(rx, 0, NULL, 0);
        return;
    }
    STAILQ_INSERT_TAIL(&s->early, post, next);
    /* Bounded by the sender's IN_FLIGHT: the one whose turn it is is found by looking. */
    for (struct xm_post *p = STAILQ_FIRST(&s->early), *next; p; p = next) {
        struct xm_rx *r = xm_container_of(p, struct xm_rx, post);
        next = STAILQ_NEXT(p, next);
        if (r->hdr.offset > s->offset)
            continue;
        STAILQ_REMOVE(&s->early, p, xm_post, next);
        if (r->hdr.offset < s->offset || s->ended)
            xm_rx_done(r, 0, NULL, 0);
        else
            write_frame(s, r);
        next = STAILQ_FIRST(&s->early);
    }
}

void stream_frame(struct stream *s, struct xm_rx *rx)
{
    rx->owner = s;
    rx->post.run = frame_run;
    xm_mailbox_post(&s->mailbox, &rx->post);
}

static void *receive_main(void *arg)
{
    struct stream *s = arg;

    pthread_setname_np(pthread_self(), "stream");
    while (!s->stop)
        xm_mailbox_wait(&s->mailbox, -1);
    xm_mailbox_run(&s->mailbox);
    for (struct xm_post *p; (p = STAILQ_FIRST(&s->early));) {
        STAILQ_REMOVE_HEAD(&s->early, next);
        xm_rx_done(xm_container_of(p, struct xm_rx, post), -ECANCELED, NULL, 0);
    }
    return NULL;
}

/* ---- both ---- */

static struct stream *stream_new(void *(*fn)(void *), int fd, struct xm_transport *to, unsigned attempt,
                                 struct xm_error *e)
{
    struct stream *s = calloc(1, sizeof *s);

    if (!s || xm_mailbox_init(&s->mailbox) < 0 || (to && !(s->piece = calloc(IN_FLIGHT, sizeof *s->piece)))) {
        free(s);
        close(fd);
        xm_error_set(e, ENOMEM, "no memory for the device state's stream");
        return NULL;
    }
    for (unsigned i = 0; to && i < IN_FLIGHT; i++)
        s->piece[i].s = s;
    pthread_mutex_init(&s->lock, NULL);
    STAILQ_INIT(&s->early);
    STAILQ_INIT(&s->held);
    s->fd = fd;
    s->to = to;
    s->attempt = attempt;
    if (pthread_create(&s->thread, NULL, fn, s)) {
        xm_mailbox_destroy(&s->mailbox);
        free(s->piece);
        free(s);
        close(fd);
        xm_error_set(e, EAGAIN, "no thread for the device state's stream");
        return NULL;
    }
    return s;
}

struct stream *stream_send(int fd, struct xm_transport *to, unsigned attempt, struct xm_error *e)
{
    return stream_new(send_main, fd, to, attempt, e);
}

struct stream *stream_receive(int fd, struct xm_error *e)
{
    return stream_new(receive_main, fd, NULL, 0, e);
}

void stream_stop(struct stream *s)
{
    s->stop = true;
    shutdown(s->fd, SHUT_RDWR); /* a write to a QEMU that does not read ends too */
}

static void stop_run(struct xm_post *p)
{
    (void)p; /* it was only to wake the thread */
}

void stream_free(struct stream *s)
{
    struct xm_post wake = {.run = stop_run};

    if (!s)
        return;
    stream_stop(s);
    xm_mailbox_post(&s->mailbox, &wake);
    pthread_join(s->thread, NULL);
    xm_mailbox_run(&s->mailbox);
    close(s->fd);
    xm_mailbox_destroy(&s->mailbox);
    pthread_mutex_destroy(&s->lock);
    free(s->piece);
    free(s);
}
