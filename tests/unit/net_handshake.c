/* SPDX-License-Identifier: MIT */
/* Handshakes that are to fail: another token, another version, strangers, and who says nothing. A sentence
 * on both sides, and the bundles are none the worse for it. */
#include "tests/unit/lib_netpair.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
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

static void another_token_is_refused_on_both_sides(void **state)
{
    struct xm_error ea = {0}, eb = {0};
    int fd[2], result;

    (void)state;
    a.opts.token[31] = 1;
    end_reopen(&a);
    net_tcp_pair(fd);
    assert_int_equal(-EACCES, end_join(&a, &b, fd, &result, &ea, &eb));
    assert_int_equal(-EACCES, result);
    assert_non_null(strstr(ea.text, "token"));
    assert_non_null(strstr(eb.text, "token"));
    /* And the bundles are none the worse for it. */
    assert_int_equal(0, a.lost_events + b.lost_events);
}

struct client {
    int fd, result;
    struct xm_error e;
};

static void *add_server(void *arg)
{
    struct client *c = arg;
    c->result = xm_links_add(b.links, c->fd, false, "stranger", &c->e);
    return NULL;
}

/* Sends what it is given to a server, and returns what becomes of the handshake; the answer is in *text. */
static int shake_with(const void *bytes, size_t len, bool hang_up, char *text)
{
    int fd[2];
    struct client c = {0};
    pthread_t t;

    net_socketpair(fd);
    c.fd = fd[1];
    assert_int_equal(0, pthread_create(&t, NULL, add_server, &c));
    if (len)
        assert_int_equal(len, send(fd[0], bytes, len, MSG_NOSIGNAL));
    if (hang_up)
        shutdown(fd[0], SHUT_WR);
    pthread_join(t, NULL);
    close(fd[0]);
    strcpy(text, c.e.text);
    return c.result;
}

static int shake_hello(const uint32_t *words, size_t len, char *text)
{
    struct client c = {0};
    struct xm_frame_hdr h = {.type = XM_FRAME_HELLO, .length = (uint32_t)len}, back;
    char answer[512] = "";
    int fd[2];
    pthread_t t;

    net_socketpair(fd);
    c.fd = fd[1];
    assert_int_equal(0, pthread_create(&t, NULL, add_server, &c));
    bare_send(fd[0], &h, words);
    assert_int_equal(0, bare_recv(fd[0], &back, answer, sizeof answer));
    pthread_join(t, NULL);
    close(fd[0]);
    strcpy(text, c.e.text);
    if (c.result < 0) {
        assert_int_equal(XM_FRAME_ABORT, back.type);
        assert_non_null(strstr(text, answer));
    } else {
        assert_int_equal(XM_FRAME_HELLO, back.type);
    }
    return c.result;
}

static void handshakes_are_judged(void **state)
{
    const uint32_t good[128] = {XM_PROTOCOL_VERSION, 0, 0, XM_PAYLOAD_MAX, 1 << 20, 0, 64};
    uint32_t w[128];
    char text[500];

    (void)state;
    b.opts.link_timeout = 60 * XM_NS_PER_S;
    end_reopen(&b);
    assert_true(shake_hello(good, 64, text) >= 0);
    memcpy(w, good, sizeof w);
    w[0] = 2;
    assert_int_equal(-EPROTONOSUPPORT, shake_hello(w, 64, text));
    assert_non_null(strstr(text, "version 2"));
    memcpy(w, good, sizeof w);
    w[1] = 4;
    assert_int_equal(-EPROTONOSUPPORT, shake_hello(w, 64, text));
    memcpy(w, good, sizeof w);
    w[2] = 0xffffffff; /* optional features that we do not know */
    w[100] = 77;       /* and more words than we know */
    assert_true(shake_hello(w, 512, text) >= 0);
    memcpy(w, good, sizeof w);
    w[3] = 4096;
    assert_int_equal(-EPROTO, shake_hello(w, 64, text));
    memcpy(w, good, sizeof w);
    w[4] = 0;
    assert_int_equal(-EPROTO, shake_hello(w, 64, text));
}

static void strangers_are_sent_away(void **state)
{
    char text[500];
    uint8_t junk[200];

    (void)state;
    memset(junk, 'G', sizeof junk);
    assert_int_equal(-EBADMSG, shake_with(junk, sizeof junk, false, text));
    assert_non_null(strstr(text, "link stranger"));
    assert_int_equal(-ECONNRESET, shake_with(NULL, 0, true, text));
    assert_int_equal(-ECONNRESET, shake_with(junk, 20, true, text));
    b.opts.silence = 100 * XM_NS_PER_MS;
    end_reopen(&b);
    assert_int_equal(-ETIMEDOUT, shake_with(NULL, 0, false, text));
    assert_int_equal(-ETIMEDOUT, shake_with(junk, 63, false, text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(another_token_is_refused_on_both_sides, setup, teardown),
        cmocka_unit_test_setup_teardown(handshakes_are_judged, setup, teardown),
        cmocka_unit_test_setup_teardown(strangers_are_sent_away, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
