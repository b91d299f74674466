/* SPDX-License-Identifier: MIT */
/* net/link_rx.c: what a link receives.
 *
 * Many small frames come with one recv into link.rx.ahead; a large payload is received where it will stay, in
 * an aligned buffer of the pool (or where the sink has a place for it: link_place.c), and the same recv takes
 * the next header along into link.rx.ahead. So the bytes of large payloads are copied once, by the kernel,
 * and a header costs no system call of its own.
 *
 * Everything that comes is judged before it has an effect: the header by frame_decode and the sink's check(),
 * the payload by its hash, an answer by the frame that it names (which must be under way and wholly sent).
 * What fails that ends the whole bundle, with a sentence, since the sides no longer agree about what was
 * applied; a connection that only ends, ends the link.
 */
#include "net/bundle.h"

#include <ctype.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define TURN_BYTES ((size_t)1 << 20)  /* received before answers and messages are looked at again */
#define LARGE      ((size_t)16 << 10) /* payloads from here on are not read ahead of */
#define HEAD_MIN   ((size_t)64)       /* the least head of a payload that is received in place */
#define STATUS_MAX 4095

/* "DISK_DATA frame of object 3 at offset 4096" */
static const char *frame_told(char text[static 100], const struct xm_frame_hdr *h)
{
    snprintf(text, 100, "%s frame of object %u at offset %llu", frame_kind(h->type)->name, h->object,
             (unsigned long long)h->offset);
    return text;
}

static bool status_of(uint32_t wire, int *status)
{
    *status = (int)wire;
    return *status <= 0 && *status >= -STATUS_MAX;
}

static int on_ack(struct link *l)
{
    uint64_t bytes = 0;
    int err = 0;

    for (uint32_t at = 0; at < l->rx.hdr.length && !err; at += 8) {
        uint32_t wire[2];
        int status;
        memcpy(wire, l->rx.own + at, sizeof wire);
        struct slot *s = link_slot_of(l, le32toh(wire[0]));
        if (!s || !status_of(le32toh(wire[1]), &status)) {
            err = s ? link_violation(l, EPROTO, "an answer with the status %#x, which is none",
                                     le32toh(wire[1]))
                    : link_violation(l, EPROTO,
                                     "an answer to frame %#x, which was not sent or is answered already",
                                     le32toh(wire[0]));
            break;
        }
        struct xm_msg *m = link_slot_take(l, s);
        bytes += m->length;
        msg_end(m, status);
    }
    if (bytes)
        queue_answered(l->bundle, bytes);
    return err;
}

static int on_reply(struct link *l)
{
    struct slot *s = link_slot_of(l, l->rx.hdr.id);
    int status;

    if (!s || !status_of((uint32_t)l->rx.hdr.extent, &status))
        return link_violation(l, EPROTO, "a reply to frame %#x, which it does not fit", l->rx.hdr.id);
    struct xm_msg *m = link_slot_take(l, s);
    uint32_t bytes = m->length;
    m->reply = l->rx.reply;
    m->reply_len = l->rx.hdr.length;
    l->rx.reply = NULL;
    msg_end(m, status);
    queue_answered(l->bundle, bytes);
    return 0;
}

static int on_abort(struct link *l)
{
    struct xm_error said = {0};
    char text[ABORT_MAX + 1];
    uint32_t n = 0;

    for (; n < l->rx.hdr.length && n < ABORT_MAX; n++)
        text[n] = isprint(l->rx.own[n]) || l->rx.own[n] >= 0x80 ? (char)l->rx.own[n] : '?';
    text[n] = 0;
    xm_error_set(&said,
                 l->rx.hdr.extent && l->rx.hdr.extent <= STATUS_MAX ? (int)l->rx.hdr.extent : ECANCELED, "%s",
                 text);
    bundle_ended_by_peer(l->bundle, &said);
    return -ECANCELED;
}

/* A whole frame is there. */
static int rx_finish(struct link *l)
{
    char what[100];
    bool intact =
        l->rx.state == RX_PLACE ? place_intact(l) : frame_hash(l->rx.to, l->rx.hdr.length) == l->rx.hdr.hash;

    if (!intact)
        return link_violation(l, EBADMSG,
                              "the payload of a %s does not have its checksum: damaged on the way",
                              frame_told(what, &l->rx.hdr));
    l->rx.state = RX_HEADER;
    switch (l->rx.hdr.type) {
    case XM_FRAME_ACK:
        return on_ack(l);
    case XM_FRAME_REPLY:
        return on_reply(l);
    case XM_FRAME_ABORT:
        return on_abort(l);
    case XM_FRAME_PING:
        return 0;
    case XM_FRAME_HELLO:
        return link_violation(l, EPROTO, "a second HELLO");
    default: {
        struct xm_rx *rx = l->rx.frame;
        l->rx.frame = NULL;
        l->rx.unanswered++;
        l->rx.unanswered_bytes += rx->hdr.length;
        atomic_fetch_add(&l->bundle->rx_open, 1);
        l->bundle->opts.sink.frame(l->bundle->opts.sink.ctx, rx);
        return 0;
    }
    }
}

static void links_rx_done(struct xm_rx *rx, int status, const void *reply, uint32_t reply_len)
{
    struct link *l = rx->transport;
    struct xm_links *b = l->bundle;
    void *copy = NULL;

    rx->status = status > 0 ? -status : status;
    if (rx->status < -STATUS_MAX)
        rx->status = -EIO;
    if (reply_len > XM_PAYLOAD_MAX || (reply_len && !(copy = malloc(reply_len)))) {
        rx->status = reply_len > XM_PAYLOAD_MAX ? -EMSGSIZE : -ENOMEM;
        reply_len = 0;
    }
    if (reply_len)
        memcpy(copy, reply, reply_len); /* it may lie in the payload */
    xm_bufpool_put(b->pool, rx->payload, rx->buffered);
    rx->payload = copy;
    rx->hdr.length = reply_len;
    if (atomic_load(&b->starved) && atomic_exchange(&b->starved, false))
        bundle_wake(b);
    rx->next_ack = atomic_load_explicit(&l->any.answered, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&l->any.answered, &rx->next_ack, rx)) {
    }
    link_wake(l);
    /* From here on bundle and link may be gone. */
    if (atomic_fetch_sub(&b->rx_open, 1) == 1)
        sem_post(&b->rx_drained);
}

void xm_rx_done(struct xm_rx *rx, int status, const void *reply, uint32_t reply_len)
{
    rx->done(rx, status, reply, reply_len);
}

/* What of the peer's frames may be unanswered on this link, by so many links that there were. */
static const char *window_passed(const struct link *l, uint64_t links)
{
    const struct xm_links_opts *o = &l->bundle->opts;

    if (l->rx.unanswered + 1 > XM_MIN(links * (o->window_frames + 2), (uint64_t)SLOTS_MAX))
        return "frames";
    return l->rx.unanswered_bytes + l->rx.hdr.length > links * (o->window_bytes + 2 * XM_PAYLOAD_MAX)
               ? "bytes"
               : NULL;
}

/* A peer's window holds back all but one urgent and one bulk frame, and what it gets back from a link that
 * failed (queue.c): each link that there was may have left a window of that, one more that is just shaking
 * hands included. It counts a frame until our answer is there, we until the answer is sent: never more
 * than the peer. */
static int judge_window(struct link *l)
{
    struct xm_links *b = l->bundle;

    if (!window_passed(l, 1))
        return 0;
    pthread_mutex_lock(&b->lock);
    uint64_t links = (uint64_t)b->links + 1;
    pthread_mutex_unlock(&b->lock);
    const char *what = window_passed(l, links);
    return what ? link_violation(
                      l, EPROTO,
                      "more %s that are not answered yet than its window allows (%u frames, %zu bytes)", what,
                      b->opts.window_frames, b->opts.window_bytes)
                : 0;
}

/* The header of a request: what a sink is asked for. */
static int begin_request(struct link *l)
{
    struct xm_links *b = l->bundle;
    struct xm_error e = {0};
    char what[100];

    if (!b->opts.sink.frame)
        return link_violation(l, EPROTO, "%s is refused: this side asks, and serves nothing",
                              frame_told(what, &l->rx.hdr));
    if (l->rx.hdr.flags & XM_FLAG_HEAD && !b->opts.sink.placer.head)
        return link_violation(l, EPROTO, "%s is refused: nobody here judges what its hash leaves out",
                              frame_told(what, &l->rx.hdr));
    int err = judge_window(l);
    if (err < 0)
        return err;
    if (b->opts.sink.check && b->opts.sink.check(b->opts.sink.ctx, &l->rx.hdr, &e) < 0)
        return link_violation(l, e.code ? e.code : EPROTO, "%s is refused: %.300s",
                              frame_told(what, &l->rx.hdr), e.text);
    l->rx.frame = calloc(1, sizeof *l->rx.frame);
    if (!l->rx.frame)
        return xm_error_set(&l->why, ENOMEM, "no memory for a frame");
    l->rx.frame->hdr = l->rx.hdr;
    l->rx.frame->asked = l->rx.hdr.length;
    l->rx.frame->done = links_rx_done;
    l->rx.frame->cut = place_cut;
    l->rx.frame->transport = l;
    if (b->opts.sink.placer.head)
        l->rx.head = XM_MIN(l->rx.head, b->opts.sink.placer.head(b->opts.sink.placer.ctx, &l->rx.hdr));
    l->rx.frame->buffered = l->rx.head;
    l->rx.state = l->rx.head ? RX_BUFFER : RX_PAYLOAD;
    return 0;
}

/* The header of a reply: of a frame that is under way, and no longer than that one's reply may be. */
static int begin_reply(struct link *l)
{
    struct slot *s = link_slot_of(l, l->rx.hdr.id);

    if (!s || l->rx.hdr.extent > UINT32_MAX)
        return link_violation(l, EPROTO, "a reply to frame %#x, which it does not fit", l->rx.hdr.id);
    const struct frame_kind *k = frame_kind(s->msg->type);
    if (l->rx.hdr.length > k->reply_max)
        return link_violation(l, EPROTO, "a reply of %u bytes to a %s frame, %u are allowed",
                              l->rx.hdr.length, k->name, k->reply_max);
    free(l->rx.reply);
    l->rx.to = l->rx.reply = malloc(l->rx.hdr.length);
    return l->rx.reply ? 0
                       : xm_error_set(&l->why, ENOMEM, "no memory for a reply of %u bytes", l->rx.hdr.length);
}

/* A header has come. */
static int rx_begin(struct link *l)
{
    struct xm_error e = {0};
    uint8_t *wire = l->rx.ahead + l->rx.ahead_at;
    int err = frame_decode(&l->rx.hdr, wire, &e);

    l->rx.ahead_at += FRAME_HDR;
    l->rx.ahead_n -= FRAME_HDR;
    if (err < 0)
        return link_violation(l, e.code, "%s", e.text);
    l->rx.got = 0;
    l->rx.head = l->rx.hdr.length;
    l->rx.state = RX_PAYLOAD;
    l->rx.to = l->rx.own;
    if (l->rx.hdr.type == XM_FRAME_REPLY)
        return begin_reply(l);
    if (frame_kind(l->rx.hdr.type)->request)
        return begin_request(l);
    if (l->rx.hdr.length > sizeof l->rx.own) /* the table of kinds forbids it */
        return link_violation(l, EPROTO, "a frame longer than there is room for");
    return 0;
}

/* Gets a buffer for the payload. Without one the link does not read on, and is woken when one comes back. */
static bool find_buffer(struct link *l)
{
    struct xm_links *b = l->bundle;
    void *buf = xm_bufpool_get(b->pool, l->rx.head);

    if (!buf) {
        atomic_store(&b->starved, true);
        buf = xm_bufpool_get(b->pool, l->rx.head); /* one may have come back just before */
    }
    l->rx.starved = !buf;
    if (!buf)
        return false;
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): RX_BUFFER is entered with a frame only (begin) */
    l->rx.to = l->rx.frame->payload = buf;
    l->rx.state = RX_PAYLOAD;
    return true;
}

/* The kernel could not write to where the data of a frame goes. EFAULT: a page of it cannot be had. */
static int cannot_place(struct link *l, int err)
{
    char what[100];

    if (err == EFAULT)
        return link_violation(l, ENOMEM, "there is no memory where a %s goes", frame_told(what, &l->rx.hdr));
    return link_violation(l, err, "a %s cannot be put where it goes: %s", frame_told(what, &l->rx.hdr),
                          strerror(err));
}

/* What was read ahead becomes payload, as much of it as belongs there. */
static int take_ahead(struct link *l)
{
    struct iovec from = {l->rx.ahead + l->rx.ahead_at, l->rx.ahead_n};
    ssize_t took;

    if (l->rx.state == RX_PLACE) {
        struct iovec piece[XM_PIECES_MAX];
        unsigned n = place_lock(l, piece);
        /* By the kernel: memory that is short there is an error then, and no signal. */
        took = process_vm_writev(getpid(), &from, 1, piece, n, 0);
        int err = took < 0 ? errno : EFAULT;
        place_took(l, took > 0 ? (size_t)took : 0);
        if (took <= 0)
            return cannot_place(l, err);
    } else {
        took = (ssize_t)XM_MIN(l->rx.ahead_n, (size_t)(l->rx.head - l->rx.got));
        memcpy(l->rx.to + l->rx.got, from.iov_base, (size_t)took);
        l->rx.got += (uint32_t)took;
    }
    l->rx.ahead_at += (size_t)took;
    l->rx.ahead_n -= (size_t)took;
    return 0;
}

/* Works off what was read ahead. */
static int rx_consume(struct link *l)
{
    for (;;) {
        int err = 0;
        if (l->rx.state == RX_HEADER) {
            if (l->rx.ahead_n < FRAME_HDR)
                return 0;
            err = rx_begin(l);
        }
        if (!err && l->rx.state == RX_BUFFER && !find_buffer(l))
            return 0;
        while (!err && l->rx.got < l->rx.hdr.length) {
            if (l->rx.state == RX_PAYLOAD && l->rx.got == l->rx.head)
                err = place_begin(l);
            else if (l->rx.ahead_n)
                err = take_ahead(l);
            else
                return 0;
        }
        if (!err)
            err = rx_finish(l);
        if (err)
            return err;
    }
}

static ssize_t rx_read(struct link *l, size_t *asked)
{
    struct iovec piece[XM_PIECES_MAX + 1];
    struct msghdr msg = {.msg_iov = piece};
    bool place = l->rx.state == RX_PLACE;
    /* After a large payload only the next header (and the table of a RAM frame), so that not much of the
     * payload behind it has to be copied. */
    size_t ahead = l->rx.hdr.length >= LARGE ? FRAME_HDR + (place ? HEAD_MIN : 0) : AHEAD_BYTES, rest = 0;

    if (l->rx.ahead_n)
        memmove(l->rx.ahead, l->rx.ahead + l->rx.ahead_at, l->rx.ahead_n); /* a part of a header */
    l->rx.ahead_at = 0;
    if (place)
        msg.msg_iovlen = place_lock(l, piece);
    else if (l->rx.state == RX_PAYLOAD)
        piece[msg.msg_iovlen++] = (struct iovec){l->rx.to + l->rx.got, l->rx.head - l->rx.got};
    for (unsigned i = 0; i < msg.msg_iovlen; i++)
        rest += piece[i].iov_len;
    *asked = rest;
    if (l->rx.state == RX_HEADER || l->rx.got + rest == l->rx.hdr.length) {
        piece[msg.msg_iovlen++] = (struct iovec){l->rx.ahead + l->rx.ahead_n, ahead - l->rx.ahead_n};
        *asked += ahead - l->rx.ahead_n;
    }
    ssize_t n = recvmsg(l->fd, &msg, MSG_DONTWAIT);
    size_t direct = n > 0 ? XM_MIN((size_t)n, rest) : 0;
    if (place)
        place_took(l, direct);
    else
        l->rx.got += (uint32_t)direct;
    if (n > 0)
        l->rx.ahead_n += (size_t)n - direct;
    return n;
}

int rx_receive(struct link *l)
{
    size_t all = 0, asked;
    int err = rx_consume(l); /* it may have waited for a buffer */

    while (!err && !l->rx.starved && all < TURN_BYTES) {
        ssize_t n = rx_read(l, &asked);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0 && errno == EFAULT && l->rx.state == RX_PLACE)
            return cannot_place(l, errno);
        if (n < 0)
            return xm_error_errno(&l->why, errno, "receiving");
        if (n == 0)
            return xm_error_set(&l->why, ECONNRESET,
                                l->rx.state == RX_HEADER && !l->rx.ahead_n
                                    ? "the other side closed the connection"
                                    : "the connection ended in the middle of a frame");
        all += (size_t)n;
        err = rx_consume(l);
        if ((size_t)n < asked)
            break;
    }
    if (all) {
        l->rx.heard = xm_now();
        atomic_fetch_add_explicit(&l->any.wire_rx, all, memory_order_relaxed);
    }
    return err ? err : all > 0;
}

void rx_drop(struct link *l)
{
    if (l->rx.frame) {
        if (l->rx.state == RX_PLACE)
            l->bundle->opts.sink.placer.dropped(l->bundle->opts.sink.placer.ctx, l->rx.frame);
        xm_bufpool_put(l->bundle->pool, l->rx.frame->payload, l->rx.frame->buffered);
        free(l->rx.frame);
        l->rx.frame = NULL;
    }
    free(l->rx.reply);
    l->rx.reply = NULL;
}
