/* SPDX-License-Identifier: MIT */
/* QEMU's device state over the links: whatever order frames come in, and however often, QEMU reads the bytes
 * as they were sent. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "migrate/stream.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/progress.h"

#define TOTAL (3u << 20)

/* A transport that holds messages back and gives them to a receiving stream in another order, some twice. */
struct shuffle {
    struct xm_transport transport;
    struct stream *to;
    pthread_mutex_t lock;
    struct xm_msg *held[8];
    unsigned n, seed;
    int refuse; /* -errno for all */
};

struct parcel {
    struct xm_rx rx;
    struct xm_msg *msg; /* ended by this copy; NULL: a duplicate */
};

static void parcel_done(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    struct parcel *p = xm_container_of(rx, struct parcel, rx);

    (void)reply, (void)len;
    if (p->msg) {
        p->msg->status = status;
        xm_mailbox_post(p->msg->home, &p->msg->post);
    }
    free(rx->payload);
    free(p);
}

static void deliver(struct shuffle *s, struct xm_msg *m, bool duplicate)
{
    struct parcel *p = calloc(1, sizeof *p);

    p->msg = duplicate ? NULL : m;
    p->rx.done = parcel_done;
    xm_frame_of_msg(&p->rx.hdr, m, 0, 0);
    if (m->length) {
        p->rx.payload = malloc(m->length);
        memcpy(p->rx.payload, m->payload, m->length);
    }
    stream_frame(s->to, &p->rx);
}

static void release(struct shuffle *s)
{
    while (s->n) {
        unsigned i = (s->seed = s->seed * 1103515245 + 12345) / 65536 % s->n;
        struct xm_msg *m = s->held[i];
        s->held[i] = s->held[--s->n];
        if (s->seed % 3 == 0)
            deliver(s, m, true);
        deliver(s, m, false);
    }
}

static void submit(struct xm_transport *t, struct xm_msg *m)
{
    struct shuffle *s = t->ctx;

    pthread_mutex_lock(&s->lock);
    if (s->refuse) {
        m->status = s->refuse;
        xm_mailbox_post(m->home, &m->post);
    } else {
        s->held[s->n++] = m;
        if (s->n == 8 || (m->flags & XM_FLAG_END) || m->length < 4096)
            release(s);
    }
    pthread_mutex_unlock(&s->lock);
}

/* Ours, and QEMU's. */
static void pair(int fd[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
}

static void *write_all(void *arg)
{
    int fd = *(int *)arg;

    for (unsigned at = 0; at < TOTAL;) {
        uint32_t word[256];
        for (unsigned i = 0; i < 256; i++)
            word[i] = at / 4 + i;
        assert_int_equal(write(fd, word, sizeof word), sizeof word);
        at += sizeof word;
    }
    close(fd);
    return NULL;
}

/* Frames shuffled and doubled between two streams: the reader sees one stream, whole and in order, and its
 * end. */
static void test_in_order_once(void **state)
{
    struct shuffle s = {.lock = PTHREAD_MUTEX_INITIALIZER, .seed = 7};
    struct xm_error e = {0};
    int in[2], out[2];
    pthread_t t;

    s.transport = (struct xm_transport){.submit = submit, .ctx = &s};
    (void)state;
    pair(in), pair(out);
    s.to = stream_receive(out[0], &e);
    assert_non_null(s.to);
    int reader = out[1];
    struct stream *from = stream_send(in[0], &s.transport, 0, &e);
    assert_non_null(from);
    int writer = in[1];
    assert_int_equal(pthread_create(&t, NULL, write_all, &writer), 0);
    for (uint32_t word, i = 0; i < TOTAL / 4; i++) {
        assert_int_equal(recv(reader, &word, 4, MSG_WAITALL), 4);
        assert_int_equal(word, i);
    }
    char more;
    assert_int_equal(read(reader, &more, 1), 0);
    pthread_join(t, NULL);
    stream_free(from);
    assert_int_equal(stream_bytes(s.to), TOTAL);
    stream_free(s.to);
    close(reader);
}

/* What is written while it is held goes when it is let go, and not before; what went before is not held. */
static void test_held_until_released(void **state)
{
    struct shuffle s = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct xm_error e = {0};
    int in[2], out[2];
    char got[8] = "";

    s.transport = (struct xm_transport){.submit = submit, .ctx = &s};
    (void)state;
    pair(in), pair(out);
    s.to = stream_receive(out[0], &e);
    struct stream *from = stream_send(in[0], &s.transport, 0, &e);
    int reader = out[1], writer = in[1];
    assert_int_equal(write(writer, "one", 3), 3);
    assert_int_equal(recv(reader, got, 3, MSG_WAITALL), 3);
    stream_hold(from);
    assert_int_equal(write(writer, "two", 3), 3);
    for (struct limit l = limit_start(5); stream_bytes(from) < 6 && limit_wait(&l);)
        ;
    close(writer);
    assert_int_equal(stream_bytes(from), 6); /* read, */
    assert_int_equal(stream_bytes(s.to), 3); /* and not sent */
    stream_release(from);
    assert_int_equal(recv(reader, got, 4, MSG_WAITALL), 3);
    assert_memory_equal(got, "two", 3);
    stream_free(from);
    stream_free(s.to);
    close(reader);
}

/* Held when the migration ends, with more than its buffers take: QEMU finds its socket closed, nothing is
 * sent. */
static void test_held_for_good(void **state)
{
    struct shuffle s = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct xm_error e = {0};
    int in[2];
    char much[1 << 16] = "";
    size_t written = 0;

    s.transport = (struct xm_transport){.submit = submit, .ctx = &s};
    (void)state;
    pair(in);
    struct stream *from = stream_send(in[0], &s.transport, 0, &e);
    int writer = in[1];
    stream_hold(from);
    for (struct limit l = limit_start(5); written <= 2 << 20 && limit_wait(&l);) {
        ssize_t n = send(writer, much, sizeof much, MSG_DONTWAIT | MSG_NOSIGNAL);
        written += n > 0 ? (size_t)n : 0;
    }
    assert_true(written > 2 << 20);
    stream_stop(from);
    assert_true(send(writer, much, 1, MSG_NOSIGNAL) < 0);
    stream_free(from);
    assert_int_equal(s.n, 0);
    close(writer);
}

/* A refused frame is an error of the stream, and freeing it does not hang. */
static void test_refused(void **state)
{
    struct shuffle s = {.lock = PTHREAD_MUTEX_INITIALIZER, .refuse = -ENOLINK};
    struct xm_error e = {0};
    int in[2];

    s.transport = (struct xm_transport){.submit = submit, .ctx = &s};
    (void)state;
    pair(in);
    struct stream *from = stream_send(in[0], &s.transport, 0, &e);
    int writer = in[1];
    assert_int_equal(write(writer, "x", 1), 1);
    for (struct limit l = limit_start(5); !e.code && limit_wait(&l);)
        stream_error(from, &e);
    assert_int_equal(e.code, ENOLINK);
    stream_free(from);
    close(writer);
}

/* In whatever pieces it comes; the last one counts. */
static void test_the_runstate_is_read(void **state)
{
    static const struct {
        const char *says, *is;
    } cases[] = {
        {"running", "running"}, {"paused", "paused"}, {"a-state-that-nobody-knows", "a-state-that-no"}};
    (void)state;

    for (unsigned i = 0; i < 3; i++) {
        struct shuffle s = {.lock = PTHREAD_MUTEX_INITIALIZER, .refuse = -ECANCELED};
        struct xm_error e = {0};
        char text[400] = "\x0bglobal\x0bglobalstate", was[STREAM_STATE_MAX] = "?";
        size_t at = 19 + 12;
        int in[2];
        s.transport = (struct xm_transport){.submit = submit, .ctx = &s};
        pair(in);
        struct stream *from = stream_send(in[0], &s.transport, 0, &e);
        assert_non_null(from);
        assert_false(stream_runstate(from, was));
        assert_string_equal(was, "");
        memcpy(text + at, cases[i].says, strlen(cases[i].says));
        for (size_t n = 0; n < sizeof text; n++) {
            assert_int_equal(write(in[1], text + n, 1), 1);
            if (i == 1)
                usleep(100);
        }
        close(in[1]);
        for (struct limit l = limit_start(10); !stream_runstate(from, was) && limit_wait(&l);)
            ;
        assert_string_equal(was, cases[i].is);
        stream_free(from);
    }
}

/* Freed before QEMU ever wrote. */
static void test_nobody_came(void **state)
{
    struct shuffle s = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct xm_error e = {0};
    int in[2];

    s.transport = (struct xm_transport){.submit = submit, .ctx = &s};
    (void)state;
    pair(in);
    struct stream *from = stream_send(in[0], &s.transport, 0, &e);
    assert_non_null(from);
    stream_free(from);
    close(in[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_in_order_once),        cmocka_unit_test(test_held_until_released),
        cmocka_unit_test(test_held_for_good),        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_the_runstate_is_read), cmocka_unit_test(test_nobody_came),
    };
    return cmocka_run_group_tests_name("migrate_stream", tests, NULL, NULL);
}
