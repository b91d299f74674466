/* SPDX-License-Identifier: MIT */
/* The receiving side of a guest's memory alone: each frame once, never an old one, at the place that it was
 * given, and answered when it is in RAM. */
#include "memxfer/memxfer.h"
#include "tests/unit/lib_ramwire.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static int last_status;

static void note_status(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    (void)reply;
    (void)len;
    (void)rx;
    last_status = status;
}

static void note_cut(struct xm_rx *rx)
{
    rx->is_cut = true;
}

/* A frame with page 5 as a link brings it: the head, and where the page goes. */
struct brought {
    struct xm_rx rx;
    uint8_t payload[64 + 4096] __attribute__((aligned(4096)));
    uint8_t *place; /* NULL: nobody wants it */
};

static void bring(struct xm_ramsink *s, struct brought *f, uint64_t seq, uint64_t round, uint32_t claimed)
{
    struct xm_placer p = xm_ramsink_placer(s);
    struct iovec piece[XM_PIECES_MAX];
    const uint32_t head[4] = {1, 1, 0, claimed};

    memset(f, 0, sizeof *f);
    memcpy(f->payload, head, sizeof head);
    f->rx = (struct xm_rx){.hdr = {.type = XM_FRAME_RAM_PAGES,
                                   .offset = 5 * 4096,
                                   .extent = 4096,
                                   .length = sizeof f->payload,
                                   .seq = seq,
                                   .after = round},
                           .payload = f->payload,
                           .done = note_status,
                           .cut = note_cut};
    assert_int_equal(p.head(p.ctx, &f->rx.hdr), 64);
    if (p.place(p.ctx, &f->rx, piece)) {
        assert_int_equal(piece[0].iov_len, 4096);
        f->place = piece[0].iov_base;
    }
}

/* The rest comes. Returns the answer. */
static int complete(struct xm_ramsink *s, struct brought *f, uint8_t fill)
{
    if (f->place && !f->rx.is_cut)
        memset(f->place, fill, 4096);
    last_status = 1;
    xm_ramsink_frame(s, &f->rx);
    return last_status;
}

static void send_table(struct xm_ramsink *s, uint64_t seq, uint64_t round, uint8_t fill, uint32_t claimed)
{
    static struct brought f;
    bring(s, &f, seq, round, claimed);
    complete(s, &f, fill);
}

static void the_sink_takes_each_frame_once_and_never_an_old_one(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct xm_ram ram = {0};
    struct xm_digest d;
    struct ramwire wire = {0};
    int fd = memfd_create("to", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, 16 * 4096), 0);
    assert_int_equal(xm_ram_add(&ram, "ram", fd, 0, &e), 0);
    wire.sink = xm_ramsink_new(&ram, &e);
    uint8_t *page = ram.block[0].map + 5 * 4096;

    send_table(wire.sink, 1, 1, 0xaa, 1);
    assert_int_equal(last_status, 0);
    assert_int_equal(page[7], 0xaa);
    send_table(wire.sink, 2, 2, 0xbb, 1);
    assert_int_equal(page[7], 0xbb);
    send_table(wire.sink, 1, 1, 0xaa, 1); /* again, late: answered, not applied */
    assert_int_equal(last_status, 0);
    assert_int_equal(page[7], 0xbb);
    page[7] = 0xcc; /* a VM runs there already */
    send_table(wire.sink, 2, 2, 0xbb, 1);
    assert_int_equal(last_status, 0);
    assert_int_equal(page[7], 0xcc);
    /* Forged ones change nothing. */
    send_table(wire.sink, 3, 3, 0xdd, 2);
    assert_int_equal(last_status, -EPROTO);
    send_table(wire.sink, 3 + 4096, 3, 0xdd, 1); /* 3 has not come yet */
    assert_int_equal(last_status, -EPROTO);
    send_table(wire.sink, 4, 3, 0xcc, 1);
    assert_int_equal(last_status, 0);
    send_table(wire.sink, 4 + 4096, 3, 0xdd, 1); /* noted in the same place as 4 */
    assert_int_equal(last_status, -EPROTO);
    page[8] = 0;
    send_table(wire.sink, 3 + 4095, 3, 0xcc, 1);
    assert_int_equal(last_status, 0);
    assert_int_equal(page[8], 0xcc);
    struct xm_frame_hdr h = {
        .type = XM_FRAME_RAM_PAGES, .object = 1, .extent = 4096, .length = 4160, .seq = 9, .after = 3};
    assert_int_equal(xm_ramsink_check(wire.sink, &h, &e), -EPROTO);
    h.object = 0;
    assert_int_equal(xm_ramsink_check(wire.sink, &h, &e), 0);
    h.offset = 16 * 4096;
    assert_int_equal(xm_ramsink_check(wire.sink, &h, &e), -EPROTO);
    h.type = XM_FRAME_DISK_DATA;
    assert_int_equal(xm_ramsink_check(wire.sink, &h, &e), -EPROTO);
    assert_int_equal(page[7], 0xcc);
    ramwire_digest(&wire, &d);
    assert_int_equal(d.frames, 4);
    xm_ramsink_free(wire.sink);
    xm_ram_close(&ram);
    close(fd);
}

static void a_place_is_taken_back_in_time(void **state)
{
    (void)state;
    static struct brought one, again, other;
    struct xm_error e = {0};
    struct xm_ram ram = {0};
    struct xm_digest d;
    struct ramwire wire = {0};
    int fd = memfd_create("to", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, 16 * 4096), 0);
    assert_int_equal(xm_ram_add(&ram, "ram", fd, 0, &e), 0);
    wire.sink = xm_ramsink_new(&ram, &e);
    struct xm_placer p = xm_ramsink_placer(wire.sink);
    const uint8_t *page = ram.block[0].map + 5 * 4096;

    /* The same frame by another link: whoever is whole first counts, and both are answered alike. */
    for (uint64_t seq = 1; seq <= 2; seq++) {
        bool newcomer_first = seq == 1;
        bring(wire.sink, &one, seq, 1, 1);
        bring(wire.sink, &again, seq, 1, 1);
        assert_ptr_equal(one.place, page);
        assert_true(again.place && again.place != page);
        if (newcomer_first) {
            assert_int_equal(complete(wire.sink, &again, 0xaa), 0);
            assert_true(one.rx.is_cut);
            assert_int_equal(complete(wire.sink, &one, 0xbb), 0);
            assert_int_equal(page[9], 0xaa);
        } else {
            assert_int_equal(complete(wire.sink, &one, 0xcc), 0);
            assert_false(one.rx.is_cut);
            assert_int_equal(complete(wire.sink, &again, 0xbb), 0);
            assert_int_equal(page[9], 0xcc);
        }
        assert_int_equal(page[4095], page[0]);
    }
    /* The link that had the place dies: another one gets it, and the copy is still good. */
    bring(wire.sink, &one, 3, 1, 1);
    bring(wire.sink, &again, 3, 1, 1);
    p.dropped(p.ctx, &one.rx);
    bring(wire.sink, &other, 3, 1, 1);
    assert_ptr_equal(other.place, page);
    assert_int_equal(complete(wire.sink, &again, 0xdd), 0);
    assert_true(other.rx.is_cut);
    assert_int_equal(complete(wire.sink, &other, 0xbb), 0);
    assert_int_equal(page[9], 0xdd);
    /* All of them die. */
    bring(wire.sink, &one, 4, 1, 1);
    bring(wire.sink, &again, 4, 1, 1);
    p.dropped(p.ctx, &again.rx);
    p.dropped(p.ctx, &one.rx);
    bring(wire.sink, &other, 4, 1, 1);
    assert_int_equal(complete(wire.sink, &other, 0xee), 0);
    assert_int_equal(page[9], 0xee);
    /* A newer round has begun. */
    bring(wire.sink, &one, 5, 1, 1);
    bring(wire.sink, &again, 5, 1, 1);
    bring(wire.sink, &other, 6, 2, 1);
    assert_true(one.rx.is_cut);
    assert_int_equal(complete(wire.sink, &other, 0xdd), 0);
    assert_int_equal(complete(wire.sink, &one, 0xbb), 0); /* as duplicates */
    assert_int_equal(complete(wire.sink, &again, 0xbb), 0);
    bring(wire.sink, &one, 5, 1, 1);
    assert_null(one.place);
    assert_int_equal(complete(wire.sink, &one, 0xbb), 0);
    assert_int_equal(page[9], 0xdd);
    /* The digest is asked for: the VM may run next. */
    bring(wire.sink, &one, 7, 2, 1);
    bring(wire.sink, &again, 7, 2, 1);
    ramwire_digest(&wire, &d);
    assert_true(one.rx.is_cut);
    assert_int_equal(d.frames, 5);
    assert_int_equal(complete(wire.sink, &one, 0xbb), -EPROTO);
    assert_int_equal(complete(wire.sink, &again, 0xbb), -EPROTO);
    bring(wire.sink, &one, 8, 3, 1);
    assert_null(one.place);
    assert_int_equal(complete(wire.sink, &one, 0xbb), -EPROTO);
    bring(wire.sink, &one, 6, 2, 1); /* late, by a link that was given up */
    assert_int_equal(complete(wire.sink, &one, 0xbb), 0);
    assert_int_equal(page[9], 0xdd);
    ramwire_digest(&wire, &d);
    assert_int_equal(d.frames, 5);
    xm_ramsink_free(wire.sink);
    xm_ram_close(&ram);
    close(fd);
}

/* What broke: a digest was in its link's thread while its switch-over was given up, and the memory of the
 * next try was refused. */
static void a_digest_of_a_switch_over_that_was_given_up_closes_nothing(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct xm_ram ram = {0};
    struct xm_rx digest = {.hdr.type = XM_FRAME_RAM_DIGEST, .done = note_status};
    int fd = memfd_create("to", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, 16 * 4096), 0);
    assert_int_equal(xm_ram_add(&ram, "ram", fd, 0, &e), 0);
    struct xm_ramsink *s = xm_ramsink_new(&ram, &e);

    send_table(s, 1, 1, 0xaa, 1);
    xm_ramsink_frame(s, &digest);
    assert_int_equal(last_status, 0);
    send_table(s, 2, 2, 0xbb, 1);
    assert_int_equal(last_status, -EPROTO);
    xm_ramsink_reopen(s);
    xm_ramsink_frame(s, &digest);
    assert_int_equal(last_status, -ECANCELED);
    send_table(s, 2, 2, 0xbb, 1);
    assert_int_equal(last_status, 0);
    digest.hdr.after = 1;
    xm_ramsink_frame(s, &digest);
    assert_int_equal(last_status, 0);
    send_table(s, 3, 2, 0xcc, 1);
    assert_int_equal(last_status, -EPROTO);
    xm_ramsink_free(s);
    xm_ram_close(&ram);
    close(fd);
}

static void ignore_status(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    (void)rx, (void)status, (void)reply, (void)len;
}

/* A zero run over much populated memory takes some milliseconds. */
#define SLOW (256u << 20)

struct second {
    pthread_t thread;
    struct xm_ramsink *sink;
    uint32_t type;
    int memfd;
    bool last_page_was_clear;
};

static void zero_all(struct xm_ramsink *s)
{
    static const uint32_t table[16] = {1, 0, 0, SLOW / XM_PAGE | 0x80000000u};
    uint8_t *payload = aligned_alloc(4096, 4096);
    memcpy(payload, table, sizeof table);
    struct xm_rx rx = {
        .hdr = {.type = XM_FRAME_RAM_PAGES, .extent = SLOW, .length = sizeof table, .seq = 1, .after = 1},
        .payload = payload,
        .done = ignore_status};
    xm_ramsink_frame(s, &rx);
    free(payload);
}

/* Not through the mapping, where the kernel would have us wait for the end of the punch. */
static uint8_t byte_at(int fd, uint64_t offset)
{
    uint8_t b;

    assert_int_equal(pread(fd, &b, 1, (off_t)offset), 1);
    return b;
}

static void *second_main(void *arg)
{
    struct second *s = arg;
    while (byte_at(s->memfd, 0)) { /* until the first has begun */
    }
    if (s->type == XM_FRAME_RAM_PAGES) {
        zero_all(s->sink);
    } else {
        struct xm_rx rx = {.hdr.type = XM_FRAME_RAM_DIGEST, .done = ignore_status};
        xm_ramsink_frame(s->sink, &rx);
    }
    s->last_page_was_clear = byte_at(s->memfd, SLOW - 1) == 0;
    return NULL;
}

static void an_answer_means_that_it_is_in_ram(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct xm_error e = {0};
        struct xm_ram ram = {0};
        struct second s = {.type = i ? XM_FRAME_RAM_PAGES : XM_FRAME_RAM_DIGEST};
        int fd = memfd_create("to", MFD_CLOEXEC);
        assert_int_equal(ftruncate(fd, SLOW), 0);
        assert_int_equal(xm_ram_add(&ram, "ram", fd, 0, &e), 0);
        assert_int_equal(fallocate(fd, 0, 0, SLOW), 0);
        ram.block[0].map[0] = ram.block[0].map[SLOW - 1] = 1;
        s.sink = xm_ramsink_new(&ram, &e);
        s.memfd = fd;
        pthread_create(&s.thread, NULL, second_main, &s);
        zero_all(s.sink);
        pthread_join(s.thread, NULL);
        assert_true(s.last_page_was_clear);
        xm_ramsink_free(s.sink);
        xm_ram_close(&ram);
        close(fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_sink_takes_each_frame_once_and_never_an_old_one),
        cmocka_unit_test(a_place_is_taken_back_in_time),
        cmocka_unit_test(a_digest_of_a_switch_over_that_was_given_up_closes_nothing),
        cmocka_unit_test(an_answer_means_that_it_is_in_ram),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
