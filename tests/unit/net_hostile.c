/* SPDX-License-Identifier: MIT */
/* Peers that have shaken hands and then break the rules, and wires that damage what they carry: a sentence,
 * never a crash or a hang. */
#include "tests/unit/lib_netpair.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct end a, b;

static int setup(void **state)
{
    (void)state;
    ends_open(&a, &b);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ends_free(&a, &b);
    return 0;
}

/* a's bundle must end, with a sentence that names the link and has `words` in it; the peer is told. */
static void expect_loss(int fd, const char *words)
{
    struct xm_frame_hdr h = {0};
    static uint8_t payload[XM_PAYLOAD_MAX];

    while (bare_recv(fd, &h, payload, sizeof payload) == 0 && h.type != XM_FRAME_ABORT) {
    }
    assert_int_equal(XM_FRAME_ABORT, h.type);
    assert_true(end_wait(&a, a.lost_events == 1));
    if (!strstr(a.lost_why.text, words) || !strstr(a.lost_why.text, "link bare"))
        fail_msg("'%s' lacks '%s'", a.lost_why.text, words);
    close(fd);
}

static void random_bytes(void **state)
{
    uint8_t junk[4096];
    unsigned seed = 1;

    (void)state;
    int fd = bare_peer(&a, NULL);
    for (size_t i = 0; i < sizeof junk; i++)
        junk[i] = (uint8_t)rand_r(&seed);
    send(fd, junk, sizeof junk, MSG_NOSIGNAL);
    expect_loss(fd, "no frame begins");
}

static void too_long_a_payload(void **state)
{
    (void)state;
    int fd = bare_peer(&a, NULL);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_DISK_DATA, .length = XM_PAYLOAD_MAX + 1}, NULL);
    expect_loss(fd, "bytes of payload");
}

static void a_payload_with_another_hash(void **state)
{
    static uint8_t data[8192];

    (void)state;
    int fd = bare_peer(&a, NULL);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_DISK_DATA, .length = 8192, .object = 5, .hash = 1},
              NULL);
    send(fd, data, sizeof data, MSG_NOSIGNAL);
    expect_loss(fd, "DISK_DATA frame of object 5 at offset 0");
}

static void an_object_that_does_not_exist(void **state)
{
    (void)state;
    a.refuse_object = 9;
    int fd = bare_peer(&a, NULL);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_DISK_FLUSH, .object = 9}, NULL);
    expect_loss(fd, "there is no disk 9");
    assert_int_equal(0, a.frames);
}

static void a_second_hello(void **state)
{
    uint32_t words[16] = {XM_PROTOCOL_VERSION};

    (void)state;
    int fd = bare_peer(&a, NULL);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_HELLO, .length = 64}, words);
    expect_loss(fd, "second HELLO");
}

static void an_answer_to_nothing(void **state)
{
    uint32_t ack[2] = {0x10007, 0};

    (void)state;
    int fd = bare_peer(&a, NULL);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_ACK, .length = 8}, ack);
    expect_loss(fd, "answer to frame 0x10007");
}

static void a_reply_to_nothing(void **state)
{
    (void)state;
    int fd = bare_peer(&a, NULL);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_REPLY, .length = 8, .id = 3}, "12345678");
    expect_loss(fd, "reply to frame 0x3");
}

/* Answers twice, with a status that is none, before the frame was sent, and to the slot's frame of another
 * time. */
static void answers_that_do_not_fit(void **state)
{
    struct xm_frame_hdr h;
    static uint8_t payload[XM_PAYLOAD_MAX];
    struct load load;
    pthread_t t;

    (void)state;
    for (int how = 0; how < 4; how++) {
        int fd = bare_peer(&a, NULL);
        /* Third time: more than the socket takes at once, so that the second frame cannot be sent wholly. */
        load_init(&load, xm_links_transport(a.links), 1, 8, 8, how == 2 ? XM_PAYLOAD_MAX : 4096);
        load.fixed = true;
        assert_int_equal(0, pthread_create(&t, NULL, load_thread, &load));
        assert_int_equal(0, bare_recv(fd, &h, payload, sizeof payload));
        uint32_t ack[4] = {h.id, 0, h.id, 0};
        if (how == 1)
            ack[1] = 5;
        if (how == 3)
            ack[0] += 0x10000;
        if (how == 2)
            ack[2]++; /* slots are fresh: the next frame has the next number */
        bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_ACK, .length = how == 3 ? 8 : 16}, ack);
        expect_loss(fd, how == 1 ? "status 0x5" : how == 2 ? "answer to frame 0x1," : "answer to frame 0");
        pthread_join(t, NULL);
        assert_true(load.failed > 0);
        assert_int_equal(-ECANCELED, load.status);
        assert_int_equal(0, load.twice);
        load_free(&load);
        a.lost_events = 0;
        end_reopen(&a);
    }
}

static void half_a_header_and_silence(void **state)
{
    (void)state;
    a.opts.silence = 500 * XM_NS_PER_MS; /* the handshake is to be faster */
    end_reopen(&a);
    int fd = bare_peer(&a, NULL);
    send(fd, "XMF1 and then nothing", 20, MSG_NOSIGNAL);
    assert_true(end_wait(&a, a.lost_events == 1));
    assert_int_equal(ENOLINK, a.lost_why.code);
    close(fd);
}

static void the_end_in_the_middle_of_a_payload(void **state)
{
    uint8_t data[1000] = {0};

    (void)state;
    int fd = bare_peer(&a, NULL);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_DISK_DATA, .length = 100000}, NULL);
    send(fd, data, sizeof data, MSG_NOSIGNAL);
    close(fd);
    assert_true(end_wait(&a, a.lost_events == 1));
    assert_non_null(strstr(a.lost_why.text, "middle of a frame"));
    assert_int_equal(0, a.frames);
}

static void an_abort_with_control_characters(void **state)
{
    (void)state;
    int fd = bare_peer(&a, NULL);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_ABORT, .length = 9, .extent = ENOSPC},
              "\033[2Jfull\n");
    assert_true(end_wait(&a, a.lost_events == 1));
    assert_string_equal("the other side ended the transfer: ?[2Jfull?", a.lost_why.text);
    assert_int_equal(ENOSPC, a.lost_why.code);
    close(fd);
}

/* 20 links within their windows: two payloads beyond the window each. */
static void *flood(void *arg)
{
    static uint8_t payload[XM_PAYLOAD_MAX];
    for (uint64_t i = 0; i < 40; i++)
        bare_send(((int *)arg)[i % 20],
                  &(struct xm_frame_hdr){.type = XM_FRAME_DISK_DATA, .length = sizeof payload, .seq = i},
                  payload);
    return NULL;
}

/* All of it together fills the pool; then nothing is read any more, until buffers come back. */
static void buffers_are_bounded(void **state)
{
    int fd[20];
    pthread_t t;

    (void)state;
    a.opts.window_bytes = 65536;
    a.hold = true;
    end_reopen(&a);
    for (int i = 0; i < 20; i++)
        fd[i] = bare_peer(&a, NULL);
    assert_int_equal(0, pthread_create(&t, NULL, flood, fd));
    assert_true(end_wait(&a, a.frames == 33)); /* 16 windows of 64 KiB + 2 MiB */
    poll(NULL, 0, 50);
    assert_int_equal(33, a.frames);
    end_release(&a);
    assert_true(end_wait(&a, a.frames == 40));
    pthread_join(t, NULL);
    for (int i = 0; i < 20; i++)
        close(fd[i]);
}

/* 512 frames are advertised, and two more may come. With a second link those of the first may come again. */
static void more_frames_than_the_window(void **state)
{
    (void)state;
    a.hold = true;
    int fd = bare_peer(&a, NULL);
    for (int i = 0; i < 2 * 514; i++)
        bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_DISK_FLUSH}, NULL);
    assert_true(end_wait(&a, a.frames == 2 * 514));
    assert_int_equal(0, a.lost_events);
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_DISK_FLUSH}, NULL);
    expect_loss(fd, "more frames that are not answered yet");
    assert_int_equal(2 * 514, a.frames);
}

static void more_bytes_than_the_window(void **state)
{
    static uint8_t payload[XM_PAYLOAD_MAX];

    (void)state;
    a.opts.window_bytes = 65536;
    a.hold = true;
    end_reopen(&a);
    int fd = bare_peer(&a, NULL);
    for (int i = 0; i < 5; i++)
        bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_DISK_DATA, .length = sizeof payload}, payload);
    expect_loss(fd, "more bytes that are not answered yet");
    assert_int_equal(4, a.frames);
}

/* The source of a migration has no sink: 64 bytes from its destination called NULL. */
static void a_request_to_who_serves_nothing(void **state)
{
    static const uint8_t types[] = {XM_FRAME_DISK_DATA, XM_FRAME_DISK_ZERO, XM_FRAME_DISK_FLUSH,
                                    XM_FRAME_DISK_HASH, XM_FRAME_RAM_PAGES, XM_FRAME_RAM_DIGEST,
                                    XM_FRAME_STREAM,    XM_FRAME_CALL};

    (void)state;
    memset(&a.opts.sink, 0, sizeof a.opts.sink);
    for (unsigned i = 0; i < sizeof types; i++) {
        end_reopen(&a);
        a.lost_events = 0;
        bool carries = types[i] == XM_FRAME_DISK_DATA || types[i] >= XM_FRAME_RAM_PAGES;
        int fd = bare_peer(&a, NULL);
        bare_send(
            fd,
            &(struct xm_frame_hdr){.type = types[i], .length = carries && types[i] != XM_FRAME_RAM_DIGEST},
            carries ? "x" : NULL);
        expect_loss(fd, "this side asks, and serves nothing");
    }
}

/* Who asked for data to be written wants no megabyte for an answer. */
static void a_reply_longer_than_the_request_has(void **state)
{
    static uint8_t payload[XM_PAYLOAD_MAX];
    struct xm_frame_hdr h;
    struct load load;
    pthread_t t;

    (void)state;
    int fd = bare_peer(&a, NULL);
    load_init(&load, xm_links_transport(a.links), 1, 1, 1, 4096);
    assert_int_equal(0, pthread_create(&t, NULL, load_thread, &load));
    assert_int_equal(0, bare_recv(fd, &h, payload, sizeof payload));
    bare_send(fd, &(struct xm_frame_hdr){.type = XM_FRAME_REPLY, .length = 1, .id = h.id}, "x");
    expect_loss(fd, "a reply of 1 bytes to a DISK_DATA frame, 0 are allowed");
    pthread_join(t, NULL);
    assert_int_equal(-ECANCELED, load.status);
    load_free(&load);
}

/* ---- a wire that flips a bit ---- */

struct wire {
    int from, to;
    uint64_t flip; /* the byte that is damaged; UINT64_MAX: none */
};

static void *wire_thread(void *arg)
{
    struct wire *w = arg;
    uint8_t buf[65536];
    uint64_t at = 0;

    for (ssize_t n; (n = recv(w->from, buf, sizeof buf, 0)) > 0; at += (uint64_t)n) {
        if (w->flip >= at && w->flip < at + (uint64_t)n)
            buf[w->flip - at] ^= 4;
        for (ssize_t sent = 0; sent < n;) {
            ssize_t m = send(w->to, buf + sent, (size_t)(n - sent), MSG_NOSIGNAL);
            if (m <= 0)
                break;
            sent += m;
        }
    }
    shutdown(w->to, SHUT_WR);
    return NULL;
}

static void one_flipped_bit(uint64_t to_b, uint64_t to_a)
{
    int left[2], right[2], fd[2];
    pthread_t t[3];
    struct load load;

    net_socketpair(left);
    net_socketpair(right);
    struct wire w[2] = {{left[1], right[1], to_b}, {right[1], left[1], to_a}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(0, pthread_create(&t[i], NULL, wire_thread, &w[i]));
    fd[0] = left[0];
    fd[1] = right[0];
    assert_true(end_join(&a, &b, fd, NULL, NULL, NULL) >= 0);
    load_init(&load, xm_links_transport(a.links), 1, UINT64_MAX, 32, 20000);
    assert_int_equal(0, pthread_create(&t[2], NULL, load_thread, &load));
    struct end *finder = to_b != UINT64_MAX ? &b : &a, *other = finder == &b ? &a : &b;
    assert_true(end_wait(finder, finder->lost_events == 1));
    assert_true(end_wait(other, other->lost_events == 1));
    pthread_join(t[2], NULL);
    assert_int_equal(-ECANCELED, load.status);
    if (!strstr(finder->lost_why.text, "damaged on the way") &&
        !strstr(finder->lost_why.text, "no frame begins"))
        fail_msg("%s", finder->lost_why.text);
    assert_non_null(strstr(other->lost_why.text, finder->lost_why.text));
    load_free(&load);
    a.lost_events = b.lost_events = 0;
    end_reopen(&a);
    end_reopen(&b);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    close(left[1]);
    close(right[1]);
}

static void flipped_bits_are_found(void **state)
{
    (void)state;
    /* HELLOs are the first 128 bytes. Then: of the first frame (1 byte of payload) header and payload;
     * payloads further on; and of the answers. */
    uint64_t data[] = {128, 133, 150, 180, 192, 300000, 1000001};
    uint64_t answers[] = {128, 150, 192, 196, 5000};
    for (size_t i = 0; i < sizeof data / sizeof *data; i++)
        one_flipped_bit(data[i], UINT64_MAX);
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
        one_flipped_bit(UINT64_MAX, answers[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(random_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(too_long_a_payload, setup, teardown),
        cmocka_unit_test_setup_teardown(a_payload_with_another_hash, setup, teardown),
        cmocka_unit_test_setup_teardown(an_object_that_does_not_exist, setup, teardown),
        cmocka_unit_test_setup_teardown(a_second_hello, setup, teardown),
        cmocka_unit_test_setup_teardown(an_answer_to_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_reply_to_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(answers_that_do_not_fit, setup, teardown),
        cmocka_unit_test_setup_teardown(half_a_header_and_silence, setup, teardown),
        cmocka_unit_test_setup_teardown(the_end_in_the_middle_of_a_payload, setup, teardown),
        cmocka_unit_test_setup_teardown(an_abort_with_control_characters, setup, teardown),
        cmocka_unit_test_setup_teardown(buffers_are_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(more_frames_than_the_window, setup, teardown),
        cmocka_unit_test_setup_teardown(more_bytes_than_the_window, setup, teardown),
        cmocka_unit_test_setup_teardown(a_request_to_who_serves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_reply_longer_than_the_request_has, setup, teardown),
        cmocka_unit_test_setup_teardown(flipped_bits_are_found, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
