/* SPDX-License-Identifier: MIT */
/* The storage plane whole and real: kernel I/O, files and block devices, two links over TCP, the writer on a
 * thread of its own, and a guest that writes while its disk is copied. Both images must end the same. */
#include "tests/unit/lib_disk.h"
#include "tests/unit/lib_netpair.h"
#include "mirror/mirror.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define MIB      (1u << 20)
#define SIZE     (48ull * MIB)
#define DEPTH    16
#define BUF      (256u << 10)
#define ALIGN    4096u
#define OBJECT   1
#define REQUESTS 3000

enum backing { ON_FILES, ON_LOOPS };
struct variant {
    enum xm_engine_kind kind;
    enum backing on;
};

/* ---- the far side: a thread with engine, disk and writer; frames come from link threads ---- */

struct far {
    struct xm_engine *engine;
    struct xm_file file;
    struct xm_writer *writer;
    struct xm_links *links;
    pthread_t thread;
    sem_t ready;
    bool stop;
    enum xm_engine_kind kind;
    uint64_t frames;
};

struct far_frame {
    struct xm_wreq wreq;
    struct xm_rx *rx;
};

static void far_answered(struct xm_wreq *w, int status, const void *reply, uint32_t reply_len)
{
    struct far_frame *f = xm_container_of(w, struct far_frame, wreq);

    xm_rx_done(f->rx, status, reply, reply_len);
    free(f);
}

static void far_run(struct xm_post *p)
{
    struct xm_rx *rx = xm_container_of(p, struct xm_rx, post);
    struct far *far = rx->owner;
    struct far_frame *f = calloc(1, sizeof *f);

    f->rx = rx;
    f->wreq.hdr = rx->hdr;
    f->wreq.payload = rx->payload;
    f->wreq.done = far_answered;
    far->frames++;
    xm_writer_submit(far->writer, &f->wreq);
}

static int far_check(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    (void)ctx;
    return h->object == OBJECT ? 0 : xm_error_set(e, EPROTO, "no such disk");
}

static void far_frame(void *ctx, struct xm_rx *rx)
{
    struct far *far = ctx;

    rx->owner = far;
    rx->post.run = far_run;
    xm_mailbox_post(&far->engine->mailbox, &rx->post);
}

static void *far_thread(void *arg)
{
    struct far *far = arg;

    far->engine = xm_engine_open(far->kind, 64, NULL);
    if (far->engine)
        far->writer = xm_writer_new(far->engine, &far->file, NULL);
    sem_post(&far->ready);
    while (far->engine && !far->stop)
        xm_engine_turn(far->engine);
    xm_writer_free(far->writer);
    xm_engine_free(far->engine);
    return NULL;
}

static void far_cancel(void *arg)
{
    xm_writer_cancel(((struct far *)arg)->writer);
}

static void far_stop(void *arg)
{
    ((struct far *)arg)->stop = true;
}

/* ---- the test's world ---- */

struct guest {
    struct xm_breq breq;
    struct iovec iov[2];
    uint8_t *buf;
};

static struct world {
    struct far far;
    struct xm_engine *engine;
    struct xm_file file;
    struct xm_disk *disk;
    struct xm_replica *replica;
    struct xm_links *links;
    int fd[2];
    struct guest guest[DEPTH];
    unsigned left, busy, failed, random;
    bool off, quiesced, pivoted;
    int status;
    char why[300];
    struct xm_timer guard;
    bool late;
} w;

static void guard_fired(struct xm_timer *t)
{
    (void)t;
    w.late = true;
}

static void turn_until(const bool *flag)
{
    while (!*flag && !w.late)
        xm_engine_turn(w.engine);
    if (w.late)
        fail_msg("nothing more happened within 20 s");
}

static void fill(const char *path)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    uint8_t *buf = malloc(MIB);

    assert_true(fd >= 0);
    for (unsigned m = 0; m < SIZE / MIB; m++) {
        if (m % 4 == 1)
            continue; /* a hole in a file */
        for (unsigned i = 0; i < MIB; i += 8) {
            uint64_t word = m % 4 == 2 && i >= MIB / 2 ? 0 : (m * 7919ull + i) * 0x9e3779b97f4a7c15u;
            memcpy(buf + i, &word, 8);
        }
        assert_int_equal(pwrite(fd, buf, MIB, (off_t)m * MIB), MIB);
    }
    fsync(fd);
    close(fd);
    free(buf);
}

static void open_files(const struct variant *v)
{
    struct xm_error e = {0};
    int rc;

    if (v->on == ON_FILES) {
        assert_int_equal(xm_file_open(&w.file, lib_path("source"), XM_FILE_CREATE, SIZE, &e), 0);
        rc = xm_file_open(&w.far.file, lib_path("target"), XM_FILE_CREATE, SIZE, &e);
    } else {
        assert_int_equal(xm_file_open(&w.file, lib_loop("source", SIZE), 0, 0, &e), 0);
        rc = xm_file_open(&w.far.file, lib_loop("target", SIZE), 0, 0, &e);
    }
    if (rc < 0)
        fail_msg("%s", e.text);
    fill(w.file.path);
}

static void join(void)
{
    struct xm_links_opts here = {.link_timeout = 2 * XM_NS_PER_S}, there = here;
    struct end a = {0}, b = {0};
    int fd[2], result;

    here.sink = (struct xm_sink){.check = far_check, .frame = far_frame, .ctx = &w.far};
    there.sink = here.sink;
    a.links = w.links = xm_links_new(&here, NULL);
    b.links = w.far.links = xm_links_new(&there, NULL);
    for (unsigned i = 0; i < 2; i++) {
        net_tcp_pair(fd);
        w.fd[i] = fd[0];
        assert_true(end_join(&a, &b, fd, &result, NULL, NULL) >= 0);
        assert_true(result >= 0);
    }
}

static void world_open(const struct variant *v, bool near)
{
    struct xm_error e = {0};

    memset(&w, 0, sizeof w);
    w.file.fd = w.far.file.fd = -1;
    w.engine = xm_engine_open(v->kind, 64, &e);
    if (!w.engine) {
        print_message("SKIPPED: %s\n", e.text);
        skip();
    }
    open_files(v);
    if (near) {
        w.far.writer = xm_writer_new(w.engine, &w.far.file, NULL);
        w.replica = xm_replica_near(w.engine, w.far.writer, MIB);
    } else {
        w.far.kind = v->kind;
        sem_init(&w.far.ready, 0, 0);
        assert_int_equal(pthread_create(&w.far.thread, NULL, far_thread, &w.far), 0);
        sem_wait(&w.far.ready);
        assert_non_null(w.far.writer);
        join();
        w.replica = xm_replica_far(w.engine, xm_links_transport(w.links), OBJECT, MIB);
    }
    w.disk = xm_disk_new(w.engine, &w.file, NULL, &e);
    assert_non_null(w.disk);
    for (unsigned i = 0; i < DEPTH; i++)
        assert_int_equal(posix_memalign((void **)&w.guest[i].buf, ALIGN, BUF), 0);
    w.guard.fire = guard_fired;
    xm_engine_timer_set(w.engine, &w.guard, xm_now() + LIMIT_HANG_NS);
}

static void is_off(void *arg)
{
    (void)arg;
    w.off = true;
}

static int teardown(void **state)
{
    if (w.disk) {
        w.late = false;
        xm_disk_mirror_off(w.disk, is_off, NULL);
        while (!w.off || w.busy > 0)
            xm_engine_turn(w.engine);
        xm_engine_timer_cancel(w.engine, &w.guard);
        xm_disk_free(w.disk);
        xm_replica_free(w.replica);
    }
    xm_links_free(w.links);
    /* What waits for a frame that was lost with the links would wait for ever, and xm_links_free for it. */
    if (w.far.engine)
        xm_mailbox_call(&w.far.engine->mailbox, far_cancel, &w.far);
    xm_links_free(w.far.links);
    if (w.far.engine) {
        xm_mailbox_call(&w.far.engine->mailbox, far_stop, &w.far);
        pthread_join(w.far.thread, NULL);
    } else {
        xm_writer_free(w.far.writer);
    }
    xm_engine_free(w.engine);
    for (unsigned i = 0; i < DEPTH; i++)
        free(w.guest[i].buf);
    if (w.file.fd >= 0)
        xm_file_close(&w.file);
    if (w.far.file.fd >= 0)
        xm_file_close(&w.far.file);
    memset(&w, 0, sizeof w);
    return lib_disk_clean(state);
}

/* ---- the guest ---- */

static void guest_next(struct guest *g);

static void guest_done(struct xm_breq *b, int status)
{
    struct guest *g = xm_container_of(b, struct guest, breq);

    w.failed += status < 0;
    w.busy--;
    guest_next(g);
}

static unsigned chance(unsigned n)
{
    w.random = w.random * 1103515245u + 12345u;
    return w.random / 65536 % n;
}

static void guest_next(struct guest *g)
{
    struct xm_breq *b = &g->breq;
    unsigned kind = chance(10);
    uint64_t length = chance(20) == 0 ? BUF : ALIGN * (1 + chance(4));

    if (w.left == 0)
        return;
    w.left--;
    w.busy++;
    *b = (struct xm_breq){.op = kind < 7   ? XM_IO_WRITE
                                : kind < 8 ? XM_IO_READ
                                : kind < 9 ? XM_IO_ZERO
                                           : XM_IO_FLUSH,
                          .unmap = chance(2),
                          .offset =
                              chance(2) ? chance(64) * ALIGN : chance((SIZE - BUF) / ALIGN) * (uint64_t)ALIGN,
                          .length = length,
                          .done = guest_done};
    memset(g->buf, (int)(1 + w.left % 250), length);
    g->iov[0] = (struct iovec){g->buf, length / 2};
    g->iov[1] = (struct iovec){g->buf + length / 2, length / 2};
    b->iov = g->iov;
    b->iovcnt = 2;
    if (b->op == XM_IO_FLUSH)
        b->offset = b->length = 0;
    xm_disk_submit(w.disk, b);
}

static void guest_start(unsigned requests)
{
    w.left = requests;
    w.random = 1;
    for (unsigned i = 0; i < DEPTH; i++)
        guest_next(&w.guest[i]);
}

static void guest_finish(void)
{
    while ((w.left > 0 || w.busy > 0) && !w.late)
        xm_engine_turn(w.engine);
    assert_false(w.late);
    assert_int_equal(w.failed, 0);
}

/* ---- checks ---- */

static void quiesced(void *arg, int status, const char *why)
{
    w.status = status;
    snprintf(w.why, sizeof w.why, "%s", why ? why : "");
    *(bool *)arg = true;
}

static void quiesce(void)
{
    xm_disk_quiesce(w.disk, quiesced, &w.quiesced);
    turn_until(&w.quiesced);
    if (w.status < 0)
        fail_msg("does not quiesce: %s", w.why);
}

static void assert_same_images(void)
{
    uint8_t *a = NULL, *b = NULL;

    assert_int_equal(posix_memalign((void **)&a, ALIGN, MIB), 0);
    assert_int_equal(posix_memalign((void **)&b, ALIGN, MIB), 0);
    for (uint64_t at = 0; at < SIZE; at += MIB) {
        assert_int_equal(pread(w.file.fd, a, MIB, (off_t)at), MIB);
        assert_int_equal(pread(w.far.file.fd, b, MIB, (off_t)at), MIB);
        if (memcmp(a, b, MIB) != 0)
            fail_msg("the disks differ within MiB %llu", (unsigned long long)(at / MIB));
    }
    free(a);
    free(b);
}

/* What the other side says it has applied. */
static void assert_same_digest(void)
{
    struct xm_msg m = {.type = XM_FRAME_DISK_DIGEST, .object = OBJECT, .urgent = true};
    struct xm_digest here, there;

    assert_int_equal(xm_transport_call(xm_links_transport(w.links), &m, LIMIT_HANG_NS, NULL), 0);
    assert_int_equal(m.reply_len, sizeof there);
    memcpy(&there, m.reply, sizeof there);
    free(m.reply);
    xm_replica_digest(w.replica, &here);
    assert_true(xm_digest_equal(&here, &there));
    assert_true(here.frames > 0);
}

static void mirror_on(void)
{
    struct xm_error e = {0};

    if (xm_disk_mirror_on(w.disk, w.replica, w.far.file.reads_zero_new, &e) < 0)
        fail_msg("%s", e.text);
}

/* ---- tests ---- */

static void test_guest_writes_while_its_disk_is_copied(void **state)
{
    world_open(*state, false);
    guest_start(REQUESTS);
    mirror_on();
    guest_finish();
    quiesce();
    assert_same_digest();
    assert_same_images();
}

static void test_thin_disk_stays_thin(void **state)
{
    world_open(*state, false);
    if (!w.far.file.reads_zero_new)
        skip();
    mirror_on();
    quiesce();
    assert_same_images();
    assert_true(xm_file_allocated(&w.far.file) <= xm_file_allocated(&w.file));
}

static void test_a_link_fails_under_way(void **state)
{
    world_open(*state, false);
    mirror_on();
    guest_start(REQUESTS);
    while (w.left > REQUESTS / 2 && !w.late)
        xm_engine_turn(w.engine);
    shutdown(w.fd[1], SHUT_RDWR);
    guest_finish();
    quiesce();
    assert_int_equal(xm_links_up(w.links), 1);
    assert_same_digest();
    assert_same_images();
}

static void test_all_links_lost_is_not_the_guests_trouble(void **state)
{
    struct xm_disk_status st;

    world_open(*state, false);
    mirror_on();
    guest_start(REQUESTS);
    while (w.left > REQUESTS / 2 && !w.late)
        xm_engine_turn(w.engine);
    xm_links_abort(w.links, "the test says so");
    guest_finish();
    xm_disk_quiesce(w.disk, quiesced, &w.quiesced);
    turn_until(&w.quiesced);
    assert_true(w.status < 0);
    xm_disk_status(w.disk, &st);
    assert_int_equal(st.errors, 0);
}

static void test_storage_only_pivot_under_load(void **state)
{
    world_open(*state, true);
    mirror_on();
    guest_start(REQUESTS);
    xm_disk_pivot(w.disk, &w.far.file, NULL, quiesced, &w.pivoted);
    turn_until(&w.pivoted);
    assert_int_equal(w.status, 0);
    assert_ptr_equal(xm_disk_file(w.disk), &w.far.file);
    guest_finish();
}

#define V(name, kind, on)                                                                                    \
    {                                                                                                        \
#name " (" #kind ", " #on ")", name, NULL, teardown, (void *)&(struct variant)                       \
        {                                                                                                    \
            XM_ENGINE_##kind, ON_##on                                                                        \
        }                                                                                                    \
    }
#define ALL(name) V(name, URING, FILES), V(name, LIBAIO, FILES), V(name, URING, LOOPS), V(name, LIBAIO, LOOPS)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ALL(test_guest_writes_while_its_disk_is_copied),
        V(test_thin_disk_stays_thin, URING, FILES),
        V(test_thin_disk_stays_thin, LIBAIO, FILES),
        V(test_a_link_fails_under_way, URING, FILES),
        V(test_a_link_fails_under_way, LIBAIO, LOOPS),
        V(test_all_links_lost_is_not_the_guests_trouble, URING, FILES),
        V(test_storage_only_pivot_under_load, URING, FILES),
        V(test_storage_only_pivot_under_load, LIBAIO, LOOPS),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
