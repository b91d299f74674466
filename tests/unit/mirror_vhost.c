/* SPDX-License-Identifier: MIT */
/* A guest's requests through vhost-user-blk: our front-end client against our back end, and the client itself
 * against qemu-storage-daemon's. */
#include "tests/unit/lib_vhost_pair.h"
#include "tests/progress.h"

#include "mirror/vhost_msg.h"

#include <linux/sockios.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NO_EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)

/* ---- against any back end ---- */

/* Many requests at once on all queues, in several segments, each in a slot of its own on disk; then all is
 * read back. */
static void run_many(struct vf *f, uint32_t type, unsigned rounds)
{
    for (unsigned n = 0; n < rounds * f->queues; n++) {
        unsigned q = n % f->queues;
        uint64_t off = VF_DATA + (uint64_t)n * 4096;
        struct vf_seg s[3] = {
            {off, 512, type == T_IN}, {off + 512, 1536, type == T_IN}, {off + 2048, 2048, type == T_IN}};
        if (type == T_OUT)
            pair_fill(f->mem + off, 4096, n + 7);
        while (vf_request(f, q, type, (uint64_t)n * 8, s, 3, NULL) < 0) {
            vf_kick(f, q);
            uint8_t status = OK;
            int got = vf_used(f, q, NULL, &status, NULL, NULL);
            assert_true(got >= 0);
            assert_int_equal(status, OK);
            if (!got)
                assert_true(vf_wait(f, q, LIMIT_HANG_MS));
        }
        if (n % 5 == 0)
            vf_kick(f, q);
    }
    for (unsigned q = 0; q < f->queues; q++) {
        vf_kick(f, q);
        while (f->q[q].pending) {
            uint8_t status = OK;
            if (!vf_used(f, q, NULL, &status, NULL, NULL))
                assert_true(vf_wait(f, q, LIMIT_HANG_MS));
            assert_int_equal(status, OK);
        }
    }
}

static void check_many(struct vf *f)
{
    unsigned n = 1000 / f->queues;

    run_many(f, T_OUT, n);
    memset(f->mem + VF_DATA, 0, 4096ul * n * f->queues);
    run_many(f, T_IN, n);
    for (unsigned i = 0; i < n * f->queues; i++) {
        uint8_t want[4096];
        pair_fill(want, sizeof want, i + 7);
        assert_memory_equal(f->mem + VF_DATA + i * 4096ul, want, 4096);
    }
}

static void test_requests(void **state)
{
    (void)state;
    pair_begin(2, 128, 0);
    pair_check_basic(&vf);
    check_many(&vf);
    vf.indirect = true;
    pair_check_basic(&vf);
    check_many(&vf);
    assert_int_equal(xm_vhost_broken(vd.vhost), 0);
}

/* A guest of QEMU's. */
static void test_requests_of_a_quiet_front_end(void **state)
{
    (void)state;
    pair_connect(4, 128, 0);
    vf.quiet = true;
    for (int life = 0; life < 3; life++) { /* it reboots */
        assert_int_equal(vf_start(&vf), 0);
        pair_check_basic(&vf);
        check_many(&vf);
        assert_int_equal(vf_stop(&vf), 0);
    }
    vf_disconnect(&vf);
    assert_int_equal(xm_vhost_broken(vd.vhost), 0);
}

struct hold {
    struct xm_post post;
    sem_t begun, go;
};

static void hold_engine(struct xm_post *p)
{
    struct hold *h = xm_container_of(p, struct hold, post);

    sem_post(&h->begun);
    while (sem_wait(&h->go) < 0) {
    }
}

/* Each was handed to the engine's thread by itself, and waited for: 20 times two wake-ups for each disk while
 * the guest stood still. */
static void test_messages_without_an_answer_are_handed_over_together(void **state)
{
    struct hold h = {.post.run = hold_engine};
    int unread = 1;
    (void)state;

    pair_begin(2, 128, 0);
    vf.quiet = true;
    sem_init(&h.begun, 0, 0);
    sem_init(&h.go, 0, 0);
    xm_mailbox_post(&vd.engine->mailbox, &h.post);
    while (sem_wait(&h.begun) < 0) {
    }
    uint32_t on[20 * 5];
    for (unsigned i = 0; i < 20; i++) {
        const uint32_t enable[] = {VHOST_SET_VRING_ENABLE, VHOST_FLAG_VERSION, 8, i % 2, 1};
        memcpy(on + i * 5ul, enable, sizeof enable);
    }
    assert_int_equal(send(vf.sock, on, sizeof on, MSG_NOSIGNAL), sizeof on);
    for (struct limit l = limit_start(5); unread && limit_wait(&l);)
        assert_int_equal(ioctl(vf.sock, SIOCOUTQ, &unread), 0);
    sem_post(&h.go);
    assert_int_equal(unread, 0);
    vf.quiet = false;
    pair_check_basic(&vf);
    sem_destroy(&h.begun);
    sem_destroy(&h.go);
}

static void test_requests_on_libaio(void **state)
{
    vd_kind = XM_ENGINE_LIBAIO;
    test_requests(state);
}

static void test_requests_without_event_index(void **state)
{
    (void)state;
    pair_begin(4, 64, NO_EVENT_IDX);
    pair_check_basic(&vf);
    check_many(&vf);
    assert_int_equal(xm_vhost_broken(vd.vhost), 0);
}

/* What our client takes for granted holds for a back end that others wrote. */
static void test_client_against_qemu(void **state)
{
    char blockdev[512], export[512];
    (void)state;

    if (access("/usr/bin/qemu-storage-daemon", X_OK)) {
        print_message("skipped: there is no qemu-storage-daemon here\n");
        skip();
    }
    const char *img = lib_path("qemu.img"), *sock = lib_path("qemu.sock");
    FILE *made = fopen(img, "w");
    assert_non_null(made);
    assert_int_equal(ftruncate(fileno(made), VD_SIZE), 0);
    fclose(made);
    snprintf(blockdev, sizeof blockdev, "driver=file,node-name=n,discard=unmap,filename=%s", img);
    snprintf(export, sizeof export,
             "type=vhost-user-blk,id=e,node-name=n,writable=on,num-queues=2,addr.type=unix,addr.path=%s",
             sock);
    pid_t pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/usr/bin/qemu-storage-daemon", "qemu-storage-daemon", "--blockdev", blockdev, "--export",
              export, NULL);
        _exit(127);
    }
    struct vf f;
    bool ok = !vf_init(&f, 2, 128) && !vf_connect(&f, sock, 0) && !vf_start(&f);
    if (ok) {
        pair_check_basic(&f);
        check_many(&f);
        f.indirect = true;
        check_many(&f);
        ok = !vf_stop(&f);
    }
    vf_free(&f);
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
    assert_true(ok);
}

/* ---- ours in particular ---- */

static void test_buffer_over_two_regions(void **state)
{
    (void)state;
    pair_begin(1, 128, 0);
    uint64_t off = VF_SPLIT - 8192;
    pair_fill(vf.mem + off, 16384, 5);
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, off, 16384), OK);
    memset(vf.mem + off, 0, 16384);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, off, 16384), OK);
    uint8_t want[16384];
    pair_fill(want, sizeof want, 5);
    assert_memory_equal(vf.mem + off, want, sizeof want);
}

static void test_get_id(void **state)
{
    (void)state;
    pair_begin(1, 16, 0);
    memset(vf.mem + VF_DATA, 'x', 32);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_GET_ID, 0, VF_DATA, 20), OK);
    assert_memory_equal(vf.mem + VF_DATA, "serial-0123456789abcxxxx", 24);
}

/* The header in two parts, data of one request in one descriptor with it, the status behind the data in one
 * buffer: all of it allowed. */
static void test_any_layout(void **state)
{
    struct virtio_blk_outhdr h = {.type = T_OUT, .sector = 16};
    uint8_t *m;
    (void)state;

    pair_begin(1, 16, 0);
    m = vf.mem + VF_DATA;
    memcpy(m, &h, sizeof h);
    pair_fill(m + 16, 512, 3);
    struct vf_seg w[] = {{VF_DATA, 7, false}, {VF_DATA + 7, 9 + 512, false}, {VF_DATA + 8192, 1, true}};
    m[8192] = 0xff;
    assert_true(vf_add(&vf, 0, w, 3, NULL) >= 0);
    vf_kick(&vf, 0);
    while (!vf_used(&vf, 0, NULL, NULL, NULL, NULL))
        assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
    assert_int_equal(m[8192], OK);

    h.type = T_IN;
    memcpy(m + 4096, &h, sizeof h);
    struct vf_seg r[] = {
        {VF_DATA + 4096, 16, false}, {VF_DATA + 16384, 100, true}, {VF_DATA + 16484, 413, true}};
    uint32_t len = 0;
    m[16384 + 512] = 0xff;
    assert_true(vf_add(&vf, 0, r, 3, NULL) >= 0);
    vf_kick(&vf, 0);
    while (!vf_used(&vf, 0, NULL, NULL, NULL, &len))
        assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
    assert_int_equal(m[16384 + 512], OK);
    assert_int_equal(len, 513);
    assert_memory_equal(m + 16384, m + 16, 512);
}

static void test_discard_segments(void **state)
{
    struct virtio_blk_discard_write_zeroes z[20] = {{.sector = 0, .num_sectors = 8},
                                                    {.sector = 64, .num_sectors = 0},
                                                    {.sector = 128, .num_sectors = 16}};
    uint8_t *m, want[65536];
    (void)state;

    pair_begin(1, 16, 0);
    m = vf.mem + VF_DATA;
    pair_fill(m, 1 << 20, 9);
    memcpy(want, m, sizeof want);
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, VF_DATA, 1 << 20), OK);
    memcpy(m, z, 3 * sizeof *z);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_DISCARD, 0, VF_DATA, 3 * sizeof *z), OK);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 131072), OK);
    memset(want, 0, 4096);
    assert_memory_equal(m, want, 65536);
    for (int i = 0; i < 8192; i++)
        assert_int_equal(m[65536 + i], 0);

    /* Flags that are not its own, too many segments, half a segment, none, beyond the disk. */
    z[0].flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    memcpy(m, z, sizeof z);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_DISCARD, 0, VF_DATA, sizeof *z), UNSUPP);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, VF_DATA, sizeof *z), OK);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, VF_DATA, 17 * sizeof *z), IOERR);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, VF_DATA, 24), IOERR);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, 0, 0), IOERR);
    z[0] = (struct virtio_blk_discard_write_zeroes){.sector = VD_SIZE / 512 - 4, .num_sectors = 8};
    memcpy(m, z, sizeof *z);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, VF_DATA, sizeof *z), IOERR);
    assert_int_equal(xm_vhost_broken(vd.vhost), 0);
}

static void test_io_error_is_told(void **state)
{
    (void)state;
    pair_begin(1, 16, 0);
    vd_fail(&vd, EIO);
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, VF_DATA, 4096), IOERR);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 4096), IOERR);
    vd_fail(&vd, 0);
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, VF_DATA, 4096), OK);
}

static void test_calls_only_when_wanted(void **state)
{
    struct vf_queue *q = &vf.q[0];
    struct pollfd p;
    eventfd_t v;
    (void)state;

    pair_begin(1, 64, 0);
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, VF_DATA, 4096), OK);
    eventfd_read(q->call, &v);
    /* Call at the fourth from here. */
    vd_gate(&vd, true);
    q->avail->ring[vf.size] = (uint16_t)(q->last_used + 3);
    struct vf_seg s = {VF_DATA, 4096, true};
    for (int i = 0; i < 3; i++)
        assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    pair_wait_held(3);
    vd_gate(&vd, false);
    for (int n = 0; n < 3;)
        n += vf_used(&vf, 0, NULL, NULL, NULL, NULL);
    p = (struct pollfd){.fd = q->call, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 20), 0);
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
}

/* Before it sleeps the device asks for the next kick, and for no other. */
static void test_kicks_only_when_needed(void **state)
{
    struct vf_seg s = {VF_DATA, 4096, true};
    (void)state;

    pair_begin(1, 64, 0);
    vd_gate(&vd, true);
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    assert_true(vf_kick(&vf, 0));
    pair_wait_held(1);
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    assert_true(vf_kick(&vf, 0)); /* it slept */
    pair_wait_held(2);
    vd_gate(&vd, false);
    while (vf.q[0].pending)
        vf_used(&vf, 0, NULL, NULL, NULL, NULL);
}

static void test_config(void **state)
{
    struct {
        uint32_t offset, size, flags;
        uint8_t data[256];
    } c = {0, sizeof(struct virtio_blk_config), 0, {0}};
    struct virtio_blk_config blk;
    (void)state;

    pair_begin(3, 16, 0);
    assert_int_equal(vf_msg(&vf, 24, &c, 12 + c.size, NULL, 0, &c, sizeof c, NULL), (int)(12 + sizeof blk));
    memcpy(&blk, c.data, sizeof blk);
    assert_int_equal(blk.capacity, VD_SIZE / 512);
    assert_int_equal(blk.num_queues, 3);
    assert_int_equal(blk.seg_max, 126);
    assert_int_equal(blk.wce, 1);
    assert_true(blk.max_discard_sectors && blk.max_write_zeroes_sectors && blk.max_write_zeroes_seg);

    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, VF_DATA, 4096), OK);
    assert_int_equal(vd_submitted(&vd, XM_IO_FLUSH), 0);
    /* Without a write-back cache each write is flushed before it is done. */
    c.offset = offsetof(struct virtio_blk_config, wce);
    c.size = 1;
    c.data[0] = 0;
    assert_int_equal(vf_msg(&vf, 25, &c, 13, NULL, 0, NULL, 0, NULL), 0);
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, VF_DATA, 4096), OK);
    assert_int_equal(vd_submitted(&vd, XM_IO_FLUSH), 1);
    /* Nothing else of it can be written. */
    c.offset = 0;
    c.size = 8;
    assert_int_equal(vf_msg(&vf, 25, &c, 20, NULL, 0, NULL, 0, NULL), -1);
}

static void no_op(struct xm_timer *t)
{
    (void)t;
}

/* Made and freed on the engine's own thread, which nobody else turns; a front end is there meanwhile. */
static void test_free_on_the_engines_thread(void **state)
{
    struct xm_engine *engine = xm_engine_open(XM_ENGINE_AUTO, 8, NULL);
    struct xm_file file;
    struct vf f;
    (void)state;

    assert_int_equal(xm_file_open(&file, lib_path("own.img"), XM_FILE_CREATE, 1 << 20, NULL), 0);
    struct xm_disk *disk = xm_disk_new(engine, &file, NULL, NULL);
    struct xm_vhost_opts o = {.socket_path = lib_path("own.sock"), .queues = 1};
    struct xm_vhost *v = xm_vhost_new(disk, &o, NULL);
    assert_non_null(v);
    assert_int_equal(vf_init(&f, 1, 16), 0);
    pid_t pid = fork();
    if (!pid)
        _exit(vf_connect(&f, o.socket_path, 0) || vf_start(&f) || vf_do(&f, 0, T_IN, 0, VF_DATA, 4096));
    int status;
    struct xm_timer tick = {.fire = no_op};
    while (!waitpid(pid, &status, WNOHANG)) {
        xm_engine_timer_set(engine, &tick, xm_engine_now(engine) + 10 * XM_NS_PER_MS);
        xm_engine_turn(engine);
    }
    xm_engine_timer_cancel(engine, &tick);
    assert_int_equal(status, 0);
    xm_vhost_free(v);
    vf_free(&f);
    xm_disk_free(disk);
    xm_engine_free(engine);
    xm_file_close(&file);
}

static void test_bad_options(void **state)
{
    struct xm_error e = {0};
    (void)state;

    pair_begin(1, 16, 0);
    struct xm_vhost_opts o = {.socket_path = lib_path("x.sock"), .queues = 0};
    assert_null(xm_vhost_new(vd.disk, &o, &e));
    assert_true(*e.text);
    o.queues = 17;
    assert_null(xm_vhost_new(vd.disk, &o, &e));
    o.queues = 1;
    o.socket_path = "/proc/nowhere/x.sock";
    assert_null(xm_vhost_new(vd.disk, &o, &e));
    assert_non_null(strstr(e.text, "x.sock"));
}

int main(void)
{
    xm_log_open("test", XM_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_requests, pair_end),
        cmocka_unit_test_teardown(test_requests_of_a_quiet_front_end, pair_end),
        cmocka_unit_test_teardown(test_messages_without_an_answer_are_handed_over_together, pair_end),
        cmocka_unit_test_teardown(test_requests_on_libaio, pair_end),
        cmocka_unit_test_teardown(test_requests_without_event_index, pair_end),
        cmocka_unit_test_teardown(test_client_against_qemu, pair_end),
        cmocka_unit_test_teardown(test_buffer_over_two_regions, pair_end),
        cmocka_unit_test_teardown(test_get_id, pair_end),
        cmocka_unit_test_teardown(test_any_layout, pair_end),
        cmocka_unit_test_teardown(test_discard_segments, pair_end),
        cmocka_unit_test_teardown(test_io_error_is_told, pair_end),
        cmocka_unit_test_teardown(test_calls_only_when_wanted, pair_end),
        cmocka_unit_test_teardown(test_kicks_only_when_needed, pair_end),
        cmocka_unit_test_teardown(test_config, pair_end),
        cmocka_unit_test_teardown(test_free_on_the_engines_thread, pair_end),
        cmocka_unit_test_teardown(test_bad_options, pair_end),
    };
    return cmocka_run_group_tests_name("mirror_vhost", tests, NULL, NULL);
}
