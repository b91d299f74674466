/* SPDX-License-Identifier: MIT */
/* JSON lines over real sockets: pieces, several at once, too long, no JSON, descriptors, time-outs. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/unit/lib_tmpdir.h"
#include "tests/progress.h"

static struct xm_jsonl j;
static int peer;

static int set_up(void **state)
{
    (void)state;
    int s[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) < 0)
        return -1;
    xm_jsonl_init(&j, s[0]);
    peer = s[1];
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    xm_jsonl_close(&j);
    if (peer >= 0)
        close(peer);
    return 0;
}

static void say(const char *text)
{
    assert_int_equal(write(peer, text, strlen(text)), strlen(text));
}

static void expect_int(json_t *o, const char *key, int64_t value)
{
    assert_non_null(o);
    assert_int_equal(xm_json_int(o, key, -999), value);
    json_decref(o);
}

static void a_line_in_pieces_comes_out_when_it_is_whole(void **state)
{
    (void)state;
    bool bad;
    const char *line = "{\"a\":1}\r\n";

    for (const char *s = line; *s; s++) {
        assert_null(xm_jsonl_next(&j, &bad, NULL));
        assert_false(bad);
        say((char[]){*s, 0});
        assert_int_equal(xm_jsonl_fill(&j, NULL), 1);
    }
    expect_int(xm_jsonl_next(&j, &bad, NULL), "a", 1);
    assert_null(xm_jsonl_next(&j, &bad, NULL));
}

static void several_lines_in_one_read_come_out_one_by_one(void **state)
{
    (void)state;
    bool bad;

    say("{\"a\":1}\n{\"a\":2}\n{\"a\":");
    assert_int_equal(xm_jsonl_fill(&j, NULL), 1);
    expect_int(xm_jsonl_next(&j, &bad, NULL), "a", 1);
    expect_int(xm_jsonl_next(&j, &bad, NULL), "a", 2);
    assert_null(xm_jsonl_next(&j, &bad, NULL));
    say("3}\n");
    assert_int_equal(xm_jsonl_fill(&j, NULL), 1);
    expect_int(xm_jsonl_next(&j, &bad, NULL), "a", 3);
}

static void what_is_no_object_is_bad(void **state)
{
    (void)state;
    static const char *const lines[] = {"\n",
                                        "[1]\n",
                                        "\"x\"\n",
                                        "{\"a\":1\n",
                                        "{\"a\":1}{\"b\":2}\n",
                                        "{\"a\":1,\"a\":2}\n",
                                        "hello\n",
                                        "{\"a\":\"\xff\"}\n"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        struct xm_error e = {0};
        bool bad = false;
        say(lines[i]);
        assert_int_equal(xm_jsonl_fill(&j, NULL), 1);
        assert_null(xm_jsonl_next(&j, &bad, &e));
        assert_true(bad);
        assert_int_equal(e.code, EPROTO);
    }
}

static void nesting_without_end_is_refused(void **state)
{
    (void)state;
    static char deep[200000];
    struct xm_error e = {0};

    memset(deep, '[', sizeof deep - 2);
    memcpy(deep, "{\"a\":", 5);
    deep[sizeof deep - 2] = '\n';
    fcntl(peer, F_SETFL, O_NONBLOCK);
    int big = 1 << 20;
    setsockopt(peer, SOL_SOCKET, SO_SNDBUFFORCE, &big, sizeof big);
    say(deep);
    assert_null(xm_jsonl_recv(&j, xm_now() + LIMIT_HANG_NS, &e));
    assert_int_equal(e.code, EMSGSIZE);
}

struct flood {
    int fd;
    size_t bytes;
    bool newline;
};

static void *flood(void *arg)
{
    struct flood *f = arg;
    static char x[65536];
    memset(x, 'x', sizeof x);
    for (size_t left = f->bytes; left;) {
        ssize_t n = send(f->fd, x, XM_MIN(left, sizeof x), MSG_NOSIGNAL);
        if (n < 0)
            return NULL;
        left -= (size_t)n;
    }
    if (f->newline && send(f->fd, "\n", 1, MSG_NOSIGNAL) < 0)
        return NULL;
    return NULL;
}

static void too_long_a_line_ends_the_matter_with_bounded_memory(void **state)
{
    (void)state;
    struct flood f = {peer, 3 * XM_JSONL_MAX, false};
    struct xm_error e = {0};
    pthread_t t;

    assert_int_equal(pthread_create(&t, NULL, flood, &f), 0);
    assert_null(xm_jsonl_recv(&j, xm_now() + LIMIT_HANG_NS, &e));
    assert_int_equal(e.code, EMSGSIZE);
    assert_true(j.cap <= XM_JSONL_MAX + 65536);
    shutdown(j.fd, SHUT_RDWR);
    pthread_join(t, NULL);
}

static int parse(const char *text, const struct xm_json_limits *limits, struct xm_error *e)
{
    *e = (struct xm_error){0};
    json_t *o = xm_json_parse(text, strlen(text), limits, e);

    json_decref(o);
    return o ? 0 : -e->code;
}

/* A megabyte of "[0,0,…" made 16 MB of values, and one of "[[[[" went as deep as the parser's stack. */
static void depth_and_number_of_values_are_bounded(void **state)
{
    (void)state;
    static const struct xm_json_limits few = {1000, 3, 5};
    struct xm_error e;

    assert_int_equal(parse("{\"a\":[[1]]}", &few, &e), 0);
    assert_int_equal(parse("{\"a\":[[[1]]]}", &few, &e), -EMSGSIZE);
    assert_non_null(strstr(e.text, "nested more than 3 deep"));
    assert_int_equal(parse("{\"a\":[1,2],\"b\":1,\"c\":3}", &few, &e), 0);
    assert_int_equal(parse("{\"a\":[1,2],\"b\":1,\"c\":3,\"d\":4}", &few, &e), -EMSGSIZE);
    assert_non_null(strstr(e.text, "more than 5 values"));
    /* What stands in quotes is no value. */
    assert_int_equal(parse("{\"a\":\"[[[[[,,,,,,{{{\\\",[[[[\\\\\",\"]\":1}", &few, &e), 0);
    assert_int_equal(parse("]]]]{\"a\":[[[1]]]}", &few, &e), -EMSGSIZE);

    char *big = malloc(XM_JSONL_MAX + 1);
    memset(big, '[', XM_JSONL_MAX);
    big[XM_JSONL_MAX] = 0;
    assert_int_equal(parse(big, &xm_json_local, &e), -EMSGSIZE);
    for (size_t i = 0; i < XM_JSONL_MAX; i++)
        big[i] = "0,"[i % 2];
    big[0] = '[';
    assert_int_equal(parse(big, &xm_json_answer, &e), -EMSGSIZE);
    assert_int_equal(parse(big, &xm_json_request, &e), -EMSGSIZE);
    free(big);
}

/* Who sends a line decides how long it may be. */
static void a_line_is_as_long_as_its_sender_may(void **state)
{
    (void)state;
    struct flood f = {peer, 2 * xm_json_request.bytes, false};
    struct xm_error e = {0};
    pthread_t t;

    j.limits = &xm_json_request;
    assert_int_equal(pthread_create(&t, NULL, flood, &f), 0);
    assert_null(xm_jsonl_recv(&j, xm_now() + LIMIT_HANG_NS, &e));
    assert_int_equal(e.code, EMSGSIZE);
    assert_true(j.cap <= xm_json_request.bytes + 65536);
    shutdown(j.fd, SHUT_RDWR);
    pthread_join(t, NULL);
}

static void *send_largest(void *arg)
{
    char *big = malloc(XM_JSONL_MAX);
    memset(big, 'y', XM_JSONL_MAX);
    big[XM_JSONL_MAX - 8] = 0; /* {"a":"..."} makes 8 more */
    int err = xm_jsonl_send(*(int *)arg, json_pack("{s:s}", "a", big), -1, NULL);
    free(big);
    return (void *)(intptr_t)err;
}

static void the_longest_line_allowed_passes_and_one_more_does_not(void **state)
{
    (void)state;
    pthread_t t;
    void *err;
    char *big = malloc(XM_JSONL_MAX);

    assert_int_equal(pthread_create(&t, NULL, send_largest, &peer), 0);
    json_t *o = xm_jsonl_recv(&j, xm_now() + LIMIT_HANG_NS, NULL);
    pthread_join(t, &err);
    assert_null(err);
    assert_non_null(o);
    assert_int_equal(strlen(xm_json_str(o, "a", "")), XM_JSONL_MAX - 8);
    json_decref(o);
    memset(big, 'y', XM_JSONL_MAX);
    big[XM_JSONL_MAX - 7] = 0;
    assert_int_equal(xm_jsonl_send(peer, json_pack("{s:s}", "a", big), -1, NULL), -EMSGSIZE);
    free(big);
}

static void the_end_is_told_after_the_last_line(void **state)
{
    (void)state;
    struct xm_error e = {0};

    say("{\"a\":1}\n{\"half");
    close(peer);
    peer = -1;
    expect_int(xm_jsonl_recv(&j, UINT64_MAX, &e), "a", 1);
    assert_null(xm_jsonl_recv(&j, UINT64_MAX, &e));
    assert_int_equal(e.code, ECONNRESET);
    assert_non_null(strstr(e.text, "in the middle"));
    assert_int_equal(xm_jsonl_fill(&j, &e), 0);
}

static void silence_is_a_time_out(void **state)
{
    (void)state;
    struct xm_error e = {0};
    uint64_t t = xm_now();

    assert_null(xm_jsonl_recv(&j, t + 20 * XM_NS_PER_MS, &e));
    assert_int_equal(e.code, ETIMEDOUT);
    assert_true(xm_now() - t >= 20 * XM_NS_PER_MS);
}

static ino_t inode_of(int fd)
{
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    return st.st_ino;
}

static void a_descriptor_comes_along_and_only_the_last_is_kept(void **state)
{
    (void)state;
    int a[2], b[2];

    assert_int_equal(pipe(a) | pipe(b), 0);
    assert_int_equal(xm_jsonl_send(peer, json_pack("{s:i}", "a", 1), a[0], NULL), 0);
    expect_int(xm_jsonl_recv(&j, UINT64_MAX, NULL), "a", 1);
    int first = j.passed_fd;
    assert_true(first >= 0 && first != a[0]);
    assert_true(fcntl(first, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(inode_of(first), inode_of(a[0]));
    assert_int_equal(xm_jsonl_send(peer, json_pack("{s:i}", "a", 2), b[0], NULL), 0);
    expect_int(xm_jsonl_recv(&j, UINT64_MAX, NULL), "a", 2);
    assert_int_equal(inode_of(j.passed_fd), inode_of(b[0]));
    assert_int_equal(fcntl(first, F_GETFD), -1); /* nobody took it: closed, not leaked */
    close(a[0]);
    close(a[1]);
    close(b[0]);
    close(b[1]);
}

static void sending_to_who_has_gone_is_an_error_and_no_signal(void **state)
{
    (void)state;
    struct xm_error e = {0};

    xm_jsonl_close(&j);
    assert_int_equal(xm_jsonl_send(peer, json_object(), -1, &e), -EPIPE);
    assert_int_equal(xm_jsonl_send(peer, NULL, -1, &e), -ENOMEM);
    assert_int_equal(xm_jsonl_fill(&j, &e), -ENOTCONN);
}

static void listening_replaces_a_stale_socket_but_no_living_one(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct stat st;
    const char *path = tmpdir_path("s.sock");

    assert_int_equal(tmpdir_make(state), 0);
    path = tmpdir_path("s.sock");
    mode_t was = umask(0);
    int a = xm_unix_listen(path, &e);
    umask(was);
    assert_true(a >= 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(xm_unix_listen(path, &e), -EADDRINUSE);
    int c = xm_unix_connect(path, &e);
    assert_true(c >= 0);
    close(c);
    close(a);
    assert_int_equal(xm_unix_connect(path, &e), -ECONNREFUSED);
    a = xm_unix_listen(path, &e);
    assert_true(a >= 0);
    close(a);
    assert_int_equal(xm_unix_listen(tmpdir_write("file", "precious"), &e), -EEXIST);
    assert_int_equal(access(tmpdir_path("file"), F_OK), 0);
    /* A VM and a disk whose names are as long as they may be. */
    char *far = xm_printf("%s/%0150d", tmpdir_path(""), 0), *in = xm_printf("%s/disk.sock", far);
    assert_int_equal(mkdir(far, 0700), 0);
    a = xm_unix_listen(in, &e);
    if (a < 0)
        fail_msg("%s", e.text);
    c = xm_unix_connect(in, &e);
    assert_true(c >= 0);
    close(c);
    close(a);
    assert_int_equal(stat(in, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(unlink(in), 0);
    assert_int_equal(rmdir(far), 0);
    free(far);
    free(in);
    far = xm_printf("%s/%0120d", tmpdir_path(""), 0);
    assert_int_equal(xm_unix_listen(far, &e), -ENAMETOOLONG);
    free(far);
    tmpdir_remove(state);
}

static void fields_of_another_type_count_as_missing(void **state)
{
    (void)state;
    json_t *o = json_pack("{s:s s:i s:f s:b s:n}", "s", "x", "i", 3, "f", 1.5, "b", 1, "n");

    assert_string_equal(xm_json_str(o, "s", "-"), "x");
    assert_string_equal(xm_json_str(o, "i", "-"), "-");
    assert_null(xm_json_str(o, "n", NULL));
    assert_int_equal(xm_json_int(o, "i", 7), 3);
    assert_int_equal(xm_json_int(o, "f", 7), 7);
    assert_true(xm_json_real(o, "f", 0) == 1.5 && xm_json_real(o, "i", 0) == 3 &&
                xm_json_real(o, "s", 2) == 2);
    assert_true(xm_json_bool(o, "b", false) && !xm_json_bool(o, "i", false) && xm_json_bool(NULL, "b", true));
    json_decref(o);
}

#define PAIR(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PAIR(a_line_in_pieces_comes_out_when_it_is_whole),
        PAIR(several_lines_in_one_read_come_out_one_by_one),
        PAIR(what_is_no_object_is_bad),
        PAIR(nesting_without_end_is_refused),
        PAIR(too_long_a_line_ends_the_matter_with_bounded_memory),
        cmocka_unit_test(depth_and_number_of_values_are_bounded),
        PAIR(a_line_is_as_long_as_its_sender_may),
        PAIR(the_longest_line_allowed_passes_and_one_more_does_not),
        PAIR(the_end_is_told_after_the_last_line),
        PAIR(silence_is_a_time_out),
        PAIR(a_descriptor_comes_along_and_only_the_last_is_kept),
        PAIR(sending_to_who_has_gone_is_an_error_and_no_signal),
        cmocka_unit_test(listening_replaces_a_stale_socket_but_no_living_one),
        cmocka_unit_test(fields_of_another_type_count_as_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
