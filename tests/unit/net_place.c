/* SPDX-License-Identifier: MIT */
/* Payloads received in place: every byte where place() said, however they come in; nothing after a cut;
 * dropped() or frame(), one of them, once. */
#include "net/frame.h"
#include "tests/unit/lib_netpair.h"
#include "tests/progress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MEM   (1u << 20)
#define HEAD  128u
#define GUARD 0xee

/* The receiving end's memory. A frame's head names its pieces: pairs of u32 offset and length, until a
 * length of 0. */
static uint8_t mem[MEM];
static struct end a, b;
static unsigned places, drops;
static bool unwanted;
static struct xm_rx *placed; /* the last */

static uint32_t head(void *ctx, const struct xm_frame_hdr *h)
{
    (void)ctx;
    return h->type == XM_FRAME_RAM_PAGES ? HEAD : h->length;
}

static unsigned place(void *ctx, struct xm_rx *rx, struct iovec *piece)
{
    const uint32_t *table = rx->payload;
    unsigned n = 0;

    (void)ctx;
    pthread_mutex_lock(&b.lock);
    places++;
    placed = rx;
    for (; !unwanted && n < HEAD / 8 && table[2 * n + 1]; n++)
        piece[n] = (struct iovec){mem + table[2 * n], table[2 * n + 1]};
    pthread_cond_broadcast(&b.changed);
    pthread_mutex_unlock(&b.lock);
    return n;
}

static void dropped(void *ctx, struct xm_rx *rx)
{
    (void)ctx;
    pthread_mutex_lock(&b.lock);
    drops += rx == placed;
    placed = NULL;
    pthread_cond_broadcast(&b.changed);
    pthread_mutex_unlock(&b.lock);
}

static int setup(void **state)
{
    (void)state;
    end_init(&a, 0);
    end_init(&b, 100000);
    b.opts.sink.placer = (struct xm_placer){.head = head, .place = place, .dropped = dropped};
    end_open(&a);
    end_open(&b);
    memset(mem, GUARD, sizeof mem);
    places = drops = 0;
    unwanted = false;
    placed = NULL;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ends_free(&a, &b);
    return 0;
}

/* A frame whose pieces lie apart and in any order; returns its length. */
static uint32_t make(uint8_t *payload, unsigned pieces, uint32_t each, unsigned seed)
{
    uint32_t *table = (uint32_t *)(void *)payload, at = HEAD;

    memset(payload, 0, HEAD);
    for (unsigned i = 0; i < pieces; i++) {
        table[2 * i] = (i * 17 + 3) % pieces * (each + 64) + 32;
        table[2 * i + 1] = each;
        for (uint32_t k = 0; k < each; k++)
            payload[at + k] = (uint8_t)(k * 131 + i * 17 + seed);
        at += each;
    }
    return at;
}

static void is_there(const uint8_t *payload)
{
    const uint32_t *table = (const uint32_t *)(const void *)payload;
    static uint8_t should[MEM];

    memset(should, GUARD, sizeof should);
    for (uint32_t i = 0, at = HEAD; i < HEAD / 8 && table[2 * i + 1]; i++) {
        memcpy(should + table[2 * i], payload + at, table[2 * i + 1]);
        at += table[2 * i + 1];
    }
    assert_memory_equal(mem, should, sizeof mem);
}

static void send_and_wait(const void *payload, uint32_t length, uint64_t seq)
{
    struct xm_msg m = {.type = XM_FRAME_RAM_PAGES,
                       .length = length,
                       .payload = payload,
                       .seq = seq,
                       .extent = 4096,
                       .after = 1};
    assert_int_equal(0, xm_transport_call(xm_links_transport(a.links), &m, LIMIT_HANG_NS, NULL));
}

static void pieces_come_to_their_places(void **state)
{
    static uint8_t payload[MEM];
    uint64_t seq = 1;
    (void)state;
    end_join_tcp(&a, &b, 2, NULL);
    const uint32_t each[] = {1, 63, 64, 65, 4096, 20000, 60000};
    for (unsigned i = 0; i < sizeof each / sizeof *each; i++) {
        for (unsigned pieces = 1; pieces < 16; pieces += 7, seq++) {
            memset(mem, GUARD, sizeof mem);
            send_and_wait(payload, make(payload, pieces, each[i], i), seq);
            is_there(payload);
        }
    }
    assert_int_equal(places, seq - 1);
    assert_int_equal(drops, 0);
}

/* Frames in place among others, from several threads' worth of messages: each answer belongs to its own. */
static void they_mix_with_other_frames(void **state)
{
    static uint8_t payload[MEM];
    struct load load;
    pthread_t t;
    (void)state;
    end_join_tcp(&a, &b, 1, NULL);
    load_init(&load, xm_links_transport(a.links), 1, 3000, 64, 30000);
    assert_int_equal(0, pthread_create(&t, NULL, load_thread, &load));
    for (unsigned i = 0; i < 100; i++) {
        uint32_t length = make(payload, 1 + i % 15, 1 + i * 521 % 50000, i);
        memset(mem, GUARD, sizeof mem);
        send_and_wait(payload, length, 50000 + i);
        is_there(payload);
    }
    pthread_join(t, NULL);
    assert_int_equal(0, load.failed);
    load_free(&load);
}

/* ---- a peer that sends by the byte ---- */

static uint8_t wire[64 + MEM];

/* Header and payload as they go over the wire. */
static size_t encode(const uint8_t *payload, uint32_t length)
{
    int fd[2];
    struct xm_frame_hdr h = {
        .type = XM_FRAME_RAM_PAGES, .length = length, .seq = 1, .extent = 4096, .after = 1, .id = 1};

    net_socketpair(fd);
    int big = 2 * MEM;
    setsockopt(fd[0], SOL_SOCKET, SO_SNDBUFFORCE, &big, sizeof big);
    bare_send(fd[0], &h, payload);
    assert_int_equal(64 + length, recv(fd[1], wire, 64 + length, MSG_WAITALL));
    close(fd[0]);
    close(fd[1]);
    return 64 + length;
}

static void write_all(int fd, const void *bytes, size_t len)
{
    assert_int_equal(len, send(fd, bytes, len, MSG_NOSIGNAL));
}

/* Until so many bytes have come. */
static void wait_for_bytes(uint64_t n)
{
    struct limit l = limit_start(10);
    struct xm_link_info info = {0};

    while (xm_links_info(b.links, &info, 1) == 1 && info.wire_rx < n)
        assert_false(limit_over(&l));
}

static void bytes_may_come_one_by_one(void **state)
{
    static uint8_t payload[MEM];
    (void)state;
    size_t len = encode(payload, make(payload, 5, 100, 9));
    int fd = bare_peer(&b, NULL);
    for (size_t i = 0; i < len; i++)
        write_all(fd, wire + i, 1);
    assert_true(end_wait(&b, b.frames == 1));
    is_there(payload);
    close(fd);
}

static void after_a_cut_nothing_is_written(void **state)
{
    static uint8_t payload[MEM];
    (void)state;
    uint32_t length = make(payload, 1, 100000, 9);
    size_t len = encode(payload, length), half = 64 + HEAD + 50000;
    int fd = bare_peer(&b, NULL);
    write_all(fd, wire, half);
    assert_true(end_wait(&b, placed));
    wait_for_bytes(half);
    xm_rx_cut(placed);
    assert_int_equal(mem[32 + 49999], payload[HEAD + 49999]);
    memset(mem, GUARD, sizeof mem); /* newer pages */
    write_all(fd, wire + half, len - half);
    assert_true(end_wait(&b, b.frames == 1));
    for (size_t i = 0; i < sizeof mem; i++)
        assert_int_equal(mem[i], GUARD);
    assert_int_equal(drops, 0);
    close(fd);
}

static void what_nobody_wants_is_passed_by(void **state)
{
    static uint8_t payload[MEM];
    (void)state;
    end_join_tcp(&a, &b, 1, NULL);
    unwanted = true;
    send_and_wait(payload, make(payload, 3, 50000, 1), 1);
    for (size_t i = 0; i < sizeof mem; i++)
        assert_int_equal(mem[i], GUARD);
    unwanted = false;
    send_and_wait(payload, make(payload, 3, 50000, 2), 2); /* and the wire is still in step */
    is_there(payload);
}

static void a_link_that_dies_drops_what_it_had(void **state)
{
    static uint8_t payload[MEM];
    (void)state;
    uint32_t length = make(payload, 2, 3000, 9);
    for (size_t cut = 64 + HEAD; cut < 64 + length; cut += 3000) {
        encode(payload, length);
        unsigned before = drops;
        int fd = bare_peer(&b, NULL);
        write_all(fd, wire, cut);
        assert_true(end_wait(&b, placed));
        close(fd);
        assert_true(end_wait(&b, drops == before + 1));
        end_free(&b);
        end_init(&b, 10);
        b.opts.sink.placer = (struct xm_placer){.head = head, .place = place, .dropped = dropped};
        end_open(&b);
    }
    assert_int_equal(0, b.frames);
}

static void damage_in_place_is_seen(void **state)
{
    static uint8_t payload[MEM];
    (void)state;
    for (int where = 0; where < 2; where++) {
        size_t len = encode(payload, make(payload, 3, 5000, 9));
        wire[where ? len - 1 : 64 + HEAD - 1] ^= 4;
        int fd = bare_peer(&b, NULL);
        write_all(fd, wire, len);
        assert_true(end_wait(&b, b.lost_events == 1));
        assert_non_null(strstr(b.lost_why.text, "damaged on the way"));
        assert_true(end_wait(&b, drops == 1));
        assert_int_equal(0, b.frames);
        close(fd);
        teardown(NULL);
        setup(NULL);
    }
}

/* ---- frames whose hash is that of their head alone ---- */

static size_t encode_head(const uint8_t *payload, uint32_t length)
{
    frame_encode(wire, &(struct xm_frame_hdr){.type = XM_FRAME_RAM_PAGES,
                                              .flags = XM_FLAG_HEAD,
                                              .length = length,
                                              .seq = 1,
                                              .extent = 4096,
                                              .after = 1,
                                              .id = 1,
                                              .hash = frame_hash(payload, HEAD)});
    memcpy(wire + 64, payload, length);
    return 64 + length;
}

static void what_is_behind_a_head_is_the_sinks_to_judge(void **state)
{
    static uint8_t payload[MEM];
    (void)state;
    uint32_t length = make(payload, 3, 5000, 9);
    size_t len = encode_head(payload, length);
    payload[length - 1] ^= 4;
    wire[len - 1] ^= 4;
    int fd = bare_peer(&b, NULL);
    write_all(fd, wire, len);
    assert_true(end_wait(&b, b.frames == 1));
    is_there(payload);
    assert_true(end_wait(&b, b.lost_events == 0));
    close(fd);
}

static void a_damaged_head_places_nothing(void **state)
{
    static uint8_t payload[MEM];
    (void)state;
    size_t len = encode_head(payload, make(payload, 3, 5000, 9));
    wire[64 + 3] ^= 4; /* where the first piece goes */
    int fd = bare_peer(&b, NULL);
    write_all(fd, wire, len);
    assert_true(end_wait(&b, b.lost_events == 1));
    assert_non_null(strstr(b.lost_why.text, "damaged on the way"));
    assert_int_equal(places, 0);
    assert_int_equal(b.frames, 0);
    close(fd);
}

static void who_places_nothing_takes_no_such_frame(void **state)
{
    static uint8_t payload[MEM];
    (void)state;
    end_free(&b);
    end_init(&b, 10);
    end_open(&b);
    size_t len = encode_head(payload, make(payload, 3, 5000, 9));
    int fd = bare_peer(&b, NULL);
    write_all(fd, wire, len);
    assert_true(end_wait(&b, b.lost_events == 1));
    assert_non_null(strstr(b.lost_why.text, "is refused"));
    close(fd);
}

/* A message in pieces, with the number of times that it was completed in its head. */
static struct {
    struct xm_msg msg;
    struct xm_mailbox box;
    uint8_t head[HEAD], data[2][50000];
    struct iovec piece[2];
    bool ended;
} parted;

static void parted_complete(struct xm_msg *m)
{
    (void)m;
    parted.head[HEAD - 1]++;
}

static void parted_ended(struct xm_post *post)
{
    (void)post;
    parted.ended = true;
}

static void parted_submit(void)
{
    memset(&parted, 0, sizeof parted);
    xm_mailbox_init(&parted.box);
    xm_mailbox_own(&parted.box);
    for (unsigned i = 0; i < 2; i++)
        parted.piece[i] = (struct iovec){parted.data[i], sizeof parted.data[i]};
    for (unsigned k = 0; k < sizeof parted.data; k++)
        parted.data[k / 50000][k % 50000] = (uint8_t)(k * 7 + k / 1000);
    uint32_t *table = (uint32_t *)(void *)parted.head;
    table[0] = 100;
    table[1] = sizeof parted.data;
    parted.msg = (struct xm_msg){.post.run = parted_ended,
                                 .home = &parted.box,
                                 .type = XM_FRAME_RAM_PAGES,
                                 .flags = XM_FLAG_HEAD,
                                 .length = HEAD + sizeof parted.data,
                                 .payload = parted.head,
                                 .piece = parted.piece,
                                 .pieces = 2,
                                 .apart = sizeof parted.data,
                                 .complete = parted_complete,
                                 .extent = 4096,
                                 .seq = 1,
                                 .after = 1};
    xm_links_transport(a.links)->submit(xm_links_transport(a.links), &parted.msg);
}

static void parted_wait(void)
{
    struct limit l = limit_start(10);

    while (!parted.ended && !limit_over(&l))
        xm_mailbox_wait(&parted.box, 20);
    assert_true(parted.ended);
    assert_int_equal(parted.msg.status, 0);
    xm_mailbox_destroy(&parted.box);
}

static void pieces_are_sent_from_where_they_lie(void **state)
{
    (void)state;
    end_join_tcp(&a, &b, 1, NULL);
    assert_int_equal(xm_links_transport(a.links)->features, XM_FEATURE_HEAD);
    parted_submit();
    parted_wait();
    assert_int_equal(parted.head[HEAD - 1], 1);
    assert_int_equal(parted.msg.hash, xm_hash(parted.head, HEAD));
    assert_memory_equal(mem + 100, parted.data, sizeof parted.data);
    assert_int_equal(mem[99], GUARD);
}

/* Its pieces have changed meanwhile; what the receiver is told of them has not. */
static void a_frame_that_is_sent_again_has_its_first_head(void **state)
{
    static uint8_t one[MEM], two[MEM];
    struct xm_frame_hdr h1, h2;
    (void)state;
    end_free(&a);
    end_init(&a, 0);
    a.opts.link_timeout = 20 * XM_NS_PER_S;
    end_open(&a);
    int fd = bare_peer(&a, NULL);
    parted_submit();
    assert_int_equal(bare_recv(fd, &h1, one, sizeof one), 0);
    close(fd);
    assert_true(end_wait(&a, a.down_events == 1));
    parted.data[1][1000]++;
    fd = bare_peer(&a, NULL);
    assert_int_equal(bare_recv(fd, &h2, two, sizeof two), 0);
    assert_int_equal(h1.hash, h2.hash);
    assert_int_equal(h2.hash, xm_hash(two, HEAD));
    assert_memory_equal(one, two, HEAD);
    assert_int_equal(two[HEAD - 1], 1);
    assert_int_equal(two[HEAD + 51000], (uint8_t)(one[HEAD + 51000] + 1));
    const uint32_t ack[2] = {h2.id, 0};
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_ACK, .length = sizeof ack}, ack);
    parted_wait();
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pieces_come_to_their_places, setup, teardown),
        cmocka_unit_test_setup_teardown(they_mix_with_other_frames, setup, teardown),
        cmocka_unit_test_setup_teardown(bytes_may_come_one_by_one, setup, teardown),
        cmocka_unit_test_setup_teardown(after_a_cut_nothing_is_written, setup, teardown),
        cmocka_unit_test_setup_teardown(what_nobody_wants_is_passed_by, setup, teardown),
        cmocka_unit_test_setup_teardown(a_link_that_dies_drops_what_it_had, setup, teardown),
        cmocka_unit_test_setup_teardown(damage_in_place_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_behind_a_head_is_the_sinks_to_judge, setup, teardown),
        cmocka_unit_test_setup_teardown(a_damaged_head_places_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(who_places_nothing_takes_no_such_frame, setup, teardown),
        cmocka_unit_test_setup_teardown(pieces_are_sent_from_where_they_lie, setup, teardown),
        cmocka_unit_test_setup_teardown(a_frame_that_is_sent_again_has_its_first_head, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
