/* SPDX-License-Identifier: MIT */
/* Whatever a peer sends: the receiving path of a link, without its thread, fed through a socketpair.
 *
 *   make run-fuzz-frames [FUZZ_SECONDS=60]     (Makefile.fuzz; a find is run again by giving its file to the
 * program)
 *
 * The link has messages under way, so that answers can hit some. Input: a byte whose bit 0 says whose side
 * it is: 0 a destination's, 1 a source's, which serves nothing (no sink). Then steps, the first byte of each
 * says which:
 * - 0..199: a frame: type, flags, object, length (3 bytes), id (4), a byte whose bits 0 to 3 say which of
 * offset, extent, seq and after follow (8 bytes each), the payload. Checksums are made right, except that bit
 * 4 spoils the header's, bit 5 the payload's; without bit 6 the fields of RAM_PAGES are made to fit. What is missing of the payload at the end of the input is
 * zeros.
 * - 200..229: up to 63 bytes go as they are.
 * - 230..254: handlers answer what they hold.
 * - 255: the peer hangs up.
 *
 * Must hold: no report of a sanitizer, no hang, each message ends exactly once, every received frame
 * freed, no answer longer than its request may have. RAM_PAGES and RAM_DIGEST go to a real receiving side of
 * 64 pages, in place. */
#include "memxfer/memxfer.h"
#include "net/bundle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define MESSAGES 6

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *at;
    size_t left;
};

static STAILQ_HEAD(, xm_rx) held;
static unsigned ended;
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

static bool is_ram(uint8_t type)
{
    return type == XM_FRAME_RAM_PAGES || type == XM_FRAME_RAM_DIGEST;
}

static int check(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    if (is_ram(h->type))
        return xm_ramsink_check(ctx, h, e);
    return h->object > 200 ? xm_error_set(e, ENODEV, "no such object") : 0;
}

static void frame(void *ctx, struct xm_rx *rx)
{
    if (is_ram(rx->hdr.type)) {
        xm_ramsink_frame(ctx, rx);
        return;
    }
    must(!rx->payload == !rx->hdr.length, "payload and length differ");
    must((uintptr_t)rx->payload % 4096 == 0, "payload is not aligned");
    must(frame_hash(rx->payload, rx->hdr.length) == rx->hdr.hash, "a payload without its hash came through");
    STAILQ_INSERT_TAIL(&held, rx, link);
}

static void on_ended(struct xm_post *p)
{
    struct xm_msg *m = xm_container_of(p, struct xm_msg, post);
    ended++;
    must(m->reply_len <= frame_kind(m->type)->reply_max, "a reply that is too long");
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
        if (l->rx.starved)
            answer_held();
        while (recv(peer, drain, sizeof drain, MSG_DONTWAIT) > 0) {
        }
        if (n < 0 && errno != EAGAIN)
            return;
    }
}

/* Runs that fit each other, or nearly so. */
static void make_table(struct xm_frame_hdr *h, uint8_t *payload, struct input *in)
{
    uint32_t runs = 1 + (uint32_t)take(in, 1) % 7, pages = 0, at = 0;

    memset(payload, 0, 128);
    for (uint32_t i = 0; i < runs; i++) {
        uint8_t b = (uint8_t)take(in, 1);
        uint32_t first = at + (i ? b >> 6 : 0), count = 1 + b % 5, zero = (uint32_t)(b >> 5 & 1) << 31;
        uint32_t run[2] = {first, count | zero};
        memcpy(payload + 8 + 8 * i, run, sizeof run);
        at = first + count;
        pages += zero ? 0 : count;
    }
    memcpy(payload, &runs, 4);
    memcpy(payload + 4, &pages, 4);
    uint8_t spoil = (uint8_t)take(in, 1);
    if (spoil > 200)
        payload[spoil % 64] ^= (uint8_t)take(in, 1);
    h->flags = 0;
    h->object = 0;
    h->offset = h->offset % 16 * XM_PAGE;
    h->extent = at * XM_PAGE;
    h->seq = 1 + h->seq % 8;
    h->after = 1 + h->after % 3;
    h->length = 64 + pages * XM_PAGE;
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
    if (h.type == XM_FRAME_RAM_PAGES && !(more & 64))
        make_table(&h, wire + 64, in);
    else if (h.length <= XM_PAYLOAD_MAX)
        memcpy(wire + 64, in->at, XM_MIN(h.length, in->left));
    size_t len = h.length <= XM_PAYLOAD_MAX ? h.length : 0, given = XM_MIN(len, in->left);
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
    static struct xm_ram ram;
    if (!ram.blocks) {
        int memfd = memfd_create("ram", MFD_CLOEXEC);
        must(!ftruncate(memfd, 64 * XM_PAGE) && !xm_ram_add(&ram, "ram", memfd, 0, NULL), "memory");
    }
    struct xm_ramsink *ramsink = xm_ramsink_new(&ram, NULL);
    struct xm_links_opts o = {.sink = {check, frame, ramsink, xm_ramsink_placer(ramsink)},
                              .window_bytes = 65536};
    struct input in = {data, size};
    if (take(&in, 1) & 1)
        memset(&o.sink, 0, sizeof o.sink);
    struct xm_links *b = xm_links_new(&o, NULL);
    static const uint8_t types[] = {XM_FRAME_DISK_FLUSH, XM_FRAME_CALL, XM_FRAME_DISK_HASH};
    struct xm_msg msg[MESSAGES];
    struct xm_mailbox box;
    int fd[2];

    STAILQ_INIT(&held);
    ended = 0;
    failed = 0;
    must(b && xm_mailbox_init(&box) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0,
         "setting up");
    struct link *l = link_new(b, fd[0], "fuzz");
    must(l, "a link");
    l->window_bytes = 65536;
    l->window_frames = MESSAGES - 2; /* so two stay in the queue */
    for (int i = 0; i < MESSAGES; i++) {
        uint8_t type = types[i % 3];
        msg[i] = (struct xm_msg){.post.run = on_ended,
                                 .home = &box,
                                 .type = type,
                                 .length = type == XM_FRAME_CALL ? 2 : 0,
                                 .payload = "{}",
                                 .seq = 1};
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
    for (struct slot *s; (s = TAILQ_FIRST(&l->slots.flying));)
        msg_end(link_slot_take(l, s), -ECANCELED);
    answer_held();
    xm_links_free(b);
    for (unsigned i = 0; i < l->slots.n; i += SLOT_BLOCK)
        free(l->slots.block[i / SLOT_BLOCK]);
    free(l->slots.block);
    link_free(l);
    xm_mailbox_run(&box);
    xm_ramsink_free(ramsink);
    must(ended == MESSAGES, "a message did not end exactly once");
    xm_mailbox_destroy(&box);
    close(fd[1]);
    return 0;
}
