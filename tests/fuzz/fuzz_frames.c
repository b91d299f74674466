/* Whatever a peer sends: the receiving path of a link, without its thread, fed through a socketpair.
 *
 *   make run-fuzz-frames [FUZZ_SECONDS=60]     (Makefile.fuzz; a find is run again by giving its file to the
 * program)
 *
 * The link has messages under way, so that answers can hit some. Input: steps, the first byte of each says
 * which:
 * - 0..199: a frame: type, flags, object, length (3 bytes), id (4), a byte whose bits 0 to 3 say which of
 * offset, extent, seq and after follow (8 bytes each), the payload. Checksums are made right, except that bit
 * 4 spoils the header's, bit 5 the payload's. What is missing of the payload at the end of the input is
 * zeros.
 * - 200..229: up to 63 bytes go as they are.
 * - 230..254: handlers answer what they hold.
 * - 255: the peer hangs up.
 *
 * Must hold: no report of a sanitizer, no hang, each message settled exactly once, every received frame
 * freed. */
#include "net/bundle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MESSAGES 6

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *at;
    size_t left;
};

static STAILQ_HEAD(, xm_rx) held;
static unsigned settled;
static int failed; /* what rx_receive said when it refused to go on */

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "fuzz_frames: %s\n", what);
        abort();
    }
}

static uint64_t take(struct input *in, size_t bytes)
{
    uint64_t v = 0;

    for (size_t i = 0; i < bytes && in->left; i++, in->left--)
        v |= (uint64_t)*in->at++ << 8 * i;
    return v;
}

static int check(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    (void)ctx;
    return h->object > 200 ? xm_error_set(e, ENODEV, "no such object") : 0;
}

static void frame(void *ctx, struct xm_rx *rx)
{
    (void)ctx;
    must(!rx->payload == !rx->hdr.length, "payload and length differ");
    must((uintptr_t)rx->payload % 4096 == 0, "payload is not aligned");
    must(frame_hash(rx->payload, rx->hdr.length) == rx->hdr.hash, "a payload without its hash came through");
    STAILQ_INSERT_TAIL(&held, rx, link);
}

static void on_settled(struct xm_post *p)
{
    struct xm_msg *m = xm_container_of(p, struct xm_msg, post);
    settled++;
    free(m->reply);
    m->reply = NULL;
}

static void answer_held(void)
{
    struct xm_rx *rx;

    while ((rx = STAILQ_FIRST(&held))) {
        STAILQ_REMOVE_HEAD(&held, link);
        xm_rx_done(rx, rx->hdr.seq % 3 ? 0 : -EIO, "reply", rx->hdr.type == XM_FRAME_CALL ? 5 : 0);
    }
}

/* Sends it to the link, which reads whenever the socket is full, and at the end. */
static void feed(struct link *l, int peer, const void *bytes, size_t len)
{
    uint8_t drain[4096];
    int got;

    for (const uint8_t *p = bytes; len && !failed;) {
        ssize_t n = send(peer, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
        while ((got = rx_receive(l)) > 0) {
        }
        failed = got;
        if (l->starved)
            answer_held();
        while (recv(peer, drain, sizeof drain, MSG_DONTWAIT) > 0) {
        }
        if (n < 0 && errno != EAGAIN)
            return;
    }
}

static void feed_frame(struct link *l, int peer, uint8_t type, struct input *in)
{
    static uint8_t wire[64 + XM_PAYLOAD_MAX];
    struct xm_frame_hdr h = {.type = type % XM_FRAME_TYPE_MAX};

    h.flags = (uint8_t)take(in, 1);
    h.object = (uint16_t)take(in, 1);
    h.length = (uint32_t)take(in, 3);
    h.id = (uint32_t)take(in, 4);
    uint64_t more = take(in, 1);
    h.offset = more & 1 ? take(in, 8) : 0;
    h.extent = more & 2 ? take(in, 8) : 0;
    h.seq = more & 4 ? take(in, 8) : 0;
    h.after = more & 8 ? take(in, 8) : 0;
    size_t len = h.length <= XM_PAYLOAD_MAX ? h.length : 0, given = XM_MIN(len, in->left);
    memcpy(wire + 64, in->at, given);
    memset(wire + 64 + given, 0, len - given);
    in->at += given;
    in->left -= given;
    h.hash = frame_hash(wire + 64, len) ^ (more >> 5 & 1);
    frame_encode(wire, &h);
    wire[63] ^= (uint8_t)(more >> 4 & 1);
    feed(l, peer, wire, 64 + len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct xm_links_opts o = {.sink = {check, frame, NULL}, .window_bytes = 65536};
    struct xm_links *b = xm_links_new(&o, NULL);
    struct xm_msg msg[MESSAGES];
    struct input in = {data, size};
    struct xm_mailbox box;
    int fd[2];

    STAILQ_INIT(&held);
    settled = 0;
    failed = 0;
    must(b && xm_mailbox_init(&box) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0,
         "setting up");
    struct link *l = link_new(b, fd[0], "fuzz");
    must(l, "a link");
    l->window_bytes = 65536;
    l->window_frames = MESSAGES - 2; /* so two stay in the queue */
    for (int i = 0; i < MESSAGES; i++) {
        msg[i] = (struct xm_msg){.post.run = on_settled, .home = &box, .type = XM_FRAME_DISK_FLUSH, .seq = 1};
        xm_links_transport(b)->submit(xm_links_transport(b), &msg[i]);
    }
    tx_messages(l);
    must(tx_send(l) == 0, "sending");

    while (in.left && !failed) {
        uint8_t step = (uint8_t)take(&in, 1);
        if (step < 200) {
            feed_frame(l, fd[1], step, &in);
        } else if (step < 230) {
            size_t n = XM_MIN(in.left, (size_t)step % 64);
            feed(l, fd[1], in.at, n);
            in.at += n;
            in.left -= n;
        } else if (step < 255) {
            answer_held();
            tx_answers(l);
            tx_messages(l);
            failed = tx_send(l);
        } else {
            shutdown(fd[1], SHUT_RDWR);
            while ((failed = rx_receive(l)) > 0) {
            }
        }
        xm_mailbox_run(&box);
    }
    /* The end, as link_main does it. */
    tx_drop(l);
    rx_drop(l);
    for (struct slot *s; (s = TAILQ_FIRST(&l->flying));)
        msg_settle(link_slot_take(l, s), -ECANCELED);
    answer_held();
    xm_links_free(b);
    for (unsigned i = 0; i < l->slots; i += SLOT_BLOCK)
        free(l->block[i / SLOT_BLOCK]);
    free(l->block);
    link_free(l);
    xm_mailbox_run(&box);
    must(settled == MESSAGES, "a message was not settled exactly once");
    xm_mailbox_destroy(&box);
    close(fd[1]);
    return 0;
}
