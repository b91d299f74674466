/* SPDX-License-Identifier: MIT */
/* A guest's requests through vhost-user-blk: our front-end client against our back end, and the client itself
 * against qemu-storage-daemon's. */
#include "tests/unit/lib_disk.h"
#include "tests/unit/lib_vhost_disk.h"
#include "tests/unit/lib_vhost_front.h"
#include "mirror/vhost_inflight.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define T_IN         VIRTIO_BLK_T_IN
#define T_OUT        VIRTIO_BLK_T_OUT
#define OK           VIRTIO_BLK_S_OK
#define IOERR        VIRTIO_BLK_S_IOERR
#define UNSUPP       VIRTIO_BLK_S_UNSUPP
#define NO_EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)

static void fill(uint8_t *p, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = (uint8_t)(seed >> 24);
    }
}

/* One disk, one guest, ready. */
static struct vdisk vd;
static struct vf vf;
static bool vd_up;

static void connect_front(unsigned queues, uint16_t size, uint64_t without)
{
    const char *why = vd_open(&vd, "disk", queues);
    if (why)
        fail_msg("%s", why);
    vd_up = true;
    assert_int_equal(vf_init(&vf, queues, size), 0);
    assert_int_equal(vf_connect(&vf, vd.path, without), 0);
}

static void begin(unsigned queues, uint16_t size, uint64_t without)
{
    connect_front(queues, size, without);
    assert_int_equal(vf_start(&vf), 0);
}

static int end(void **state)
{
    if (vd_up) {
        vf_free(&vf);
        vd_close(&vd);
    }
    vd_up = false;
    vd_kind = XM_ENGINE_AUTO;
    return lib_disk_clean(state);
}

/* So many requests wait at the gate, and the engine has been through a turn since. */
static void wait_held(unsigned n)
{
    while (vd_held(&vd) != n)
        usleep(100);
    vd_held(&vd);
}

static void wait_stopped(struct xm_vhost *v)
{
    for (struct limit l = limit_start(5); !xm_vhost_stopped(v) && limit_wait(&l);)
        ;
    assert_true(xm_vhost_stopped(v));
}

/* ---- against any back end ---- */

static void check_basic(struct vf *f)
{
    uint8_t *a = f->mem + VF_DATA, *b = a + (1 << 20);

    for (unsigned q = 0; q < f->queues; q++) {
        fill(a, 65536, q + 1);
        memset(b, 0, 65536);
        assert_int_equal(vf_do(f, q, T_OUT, 8 + q * 128, VF_DATA, 65536), OK);
        assert_int_equal(vf_do(f, q, T_IN, 8 + q * 128, VF_DATA + (1 << 20), 65536), OK);
        assert_memory_equal(a, b, 65536);
        assert_int_equal(vf_do(f, q, VIRTIO_BLK_T_FLUSH, 0, 0, 0), OK);
    }
    struct virtio_blk_discard_write_zeroes z = {.sector = 8, .num_sectors = 64};
    memcpy(a, &z, sizeof z);
    assert_int_equal(vf_do(f, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, VF_DATA, sizeof z), OK);
    assert_int_equal(vf_do(f, 0, T_IN, 8, VF_DATA + (1 << 20), 65536), OK);
    memset(a, 0, 32768);
    assert_memory_equal(a, b, 32768);
    fill(a, 65536, 1);
    assert_memory_equal(a + 32768, b + 32768, 32768);
    /* Out of range, and a type that nobody knows. */
    assert_int_equal(vf_do(f, 0, T_IN, VD_SIZE / 512, VF_DATA, 512), IOERR);
    assert_int_equal(vf_do(f, 0, T_IN, UINT64_MAX / 512 - 1, VF_DATA, 4096), IOERR);
    assert_int_equal(vf_do(f, 0, T_OUT, VD_SIZE / 512 - 1, VF_DATA, 1024), IOERR);
    assert_int_equal(vf_do(f, 0, 99, 0, VF_DATA, 512), UNSUPP);
}

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
            fill(f->mem + off, 4096, n + 7);
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
        fill(want, sizeof want, i + 7);
        assert_memory_equal(f->mem + VF_DATA + i * 4096ul, want, 4096);
    }
}

static void test_requests(void **state)
{
    (void)state;
    begin(2, 128, 0);
    check_basic(&vf);
    check_many(&vf);
    vf.indirect = true;
    check_basic(&vf);
    check_many(&vf);
    assert_int_equal(xm_vhost_broken(vd.vhost), 0);
}

static void test_requests_on_libaio(void **state)
{
    vd_kind = XM_ENGINE_LIBAIO;
    test_requests(state);
}

static void test_requests_without_event_index(void **state)
{
    (void)state;
    begin(4, 64, NO_EVENT_IDX);
    check_basic(&vf);
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
        check_basic(&f);
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
    begin(1, 128, 0);
    uint64_t off = VF_SPLIT - 8192;
    fill(vf.mem + off, 16384, 5);
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, off, 16384), OK);
    memset(vf.mem + off, 0, 16384);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, off, 16384), OK);
    uint8_t want[16384];
    fill(want, sizeof want, 5);
    assert_memory_equal(vf.mem + off, want, sizeof want);
}

static void test_get_id(void **state)
{
    (void)state;
    begin(1, 16, 0);
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

    begin(1, 16, 0);
    m = vf.mem + VF_DATA;
    memcpy(m, &h, sizeof h);
    fill(m + 16, 512, 3);
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

    begin(1, 16, 0);
    m = vf.mem + VF_DATA;
    fill(m, 1 << 20, 9);
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
    begin(1, 16, 0);
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

    begin(1, 64, 0);
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, VF_DATA, 4096), OK);
    eventfd_read(q->call, &v);
    /* Call at the fourth from here. */
    vd_gate(&vd, true);
    q->avail->ring[vf.size] = (uint16_t)(q->last_used + 3);
    struct vf_seg s = {VF_DATA, 4096, true};
    for (int i = 0; i < 3; i++)
        assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    wait_held(3);
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

    begin(1, 64, 0);
    vd_gate(&vd, true);
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    assert_true(vf_kick(&vf, 0));
    wait_held(1);
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    assert_true(vf_kick(&vf, 0)); /* it slept */
    wait_held(2);
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

    begin(3, 16, 0);
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

static void test_get_vring_base_waits(void **state)
{
    struct vf_seg s = {VF_DATA, 4096, true};
    uint32_t v[2] = {0, 0}, h[5];
    (void)state;

    begin(2, 64, 0);
    vd_gate(&vd, true);
    for (int i = 0; i < 5; i++)
        assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    wait_held(5);
    h[0] = 11;
    h[1] = 1;
    h[2] = 8;
    memcpy(h + 3, v, 8);
    assert_int_equal(write(vf.sock, h, 20), 20);
    struct pollfd p = {.fd = vf.sock, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 50), 0);
    vd_gate(&vd, false);
    assert_int_equal(read(vf.sock, h, 20), 20);
    assert_int_equal(h[4], 5);
    /* All of it was answered before. */
    uint8_t status;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(vf_used(&vf, 0, NULL, &status, NULL, NULL), 1);
        assert_int_equal(status, OK);
    }
    assert_false(xm_vhost_stopped(vd.vhost)); /* the other queue runs */
    assert_int_equal(vf_stop_one(&vf, 1, NULL), 0);
    assert_true(xm_vhost_stopped(vd.vhost));
    /* A stopped ring is not served. */
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    eventfd_write(vf.q[0].kick, 1);
    usleep(20000);
    assert_int_equal(vf_used(&vf, 0, NULL, NULL, NULL, NULL), 0);
    assert_int_equal(vf_start(&vf), 0);
    while (!vf_used(&vf, 0, NULL, NULL, NULL, NULL))
        assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
}

static void test_memory_table_changes_while_rings_run(void **state)
{
    (void)state;
    begin(2, 64, 0);
    struct vf_seg s = {VF_DATA, 4096, true};
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 8; i++) {
            if (vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) < 0)
                break;
        }
        vf_kick(&vf, 0);
        assert_int_equal(vf_send_mem_table(&vf), 0);
        while (vf.q[0].pending) {
            if (!vf_used(&vf, 0, NULL, NULL, NULL, NULL))
                assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
        }
    }
    assert_int_equal(xm_vhost_broken(vd.vhost), 0);
}

/* What is in flight ends in the old memory before the new takes its place. */
static void test_memory_table_waits_for_requests(void **state)
{
    struct vf_seg s = {VF_DATA, 4096, true};
    struct {
        uint32_t request, flags, size, count, padding;
        uint64_t gpa, len, uva, offset;
    } __attribute__((packed)) m = {5, 1 | 8, 40, 1, 0, VF_GPA, VF_SPLIT, VF_UVA1, 0};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } c = {0};
    struct iovec iov = {&m, sizeof m};
    struct msghdr h = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf};
    uint32_t reply[5];
    (void)state;

    begin(1, 64, 0);
    vd_gate(&vd, true);
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    wait_held(1);
    *CMSG_FIRSTHDR(&h) = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(CMSG_FIRSTHDR(&h)), &vf.memfd, sizeof vf.memfd);
    assert_int_equal(sendmsg(vf.sock, &h, 0), sizeof m);
    struct pollfd p = {.fd = vf.sock, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 50), 0);
    /* Nothing is taken meanwhile. */
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    eventfd_write(vf.q[0].kick, 1);
    vd_held(&vd);
    wait_held(1);
    vd_gate(&vd, false);
    assert_int_equal(read(vf.sock, reply, sizeof reply), sizeof reply);
    assert_int_equal(reply[3], 0);
    while (vf.q[0].pending) {
        if (!vf_used(&vf, 0, NULL, NULL, NULL, NULL))
            assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
    }
}

/* ---- dirty pages ---- */

static void expect_pages(const uint64_t *want, size_t n)
{
    for (uint64_t page = 0; page < VF_MEM / 4096; page++) {
        bool in = false;
        for (size_t i = 0; i < n; i++)
            in |= want[i] == page;
        if (in != xm_bitmap_test(&vd.bitmap, page))
            fail_msg("page %llu is %smarked", (unsigned long long)page, in ? "not " : "");
    }
}

static void test_dirty_pages_are_exact(void **state)
{
    uint64_t data = VF_DATA / 4096;
    (void)state;

    begin(1, 64, 0);
    uint64_t used = (vf.q[0].area + 20480) / 4096;
    assert_int_equal(vf_do(&vf, 0, T_OUT, 0, VF_DATA, 4096), OK);
    uint64_t status = vf_header_off(&vf, 0, 0) / 4096;
    expect_pages((uint64_t[]){used, status}, 2);
    /* A read: its data too, here from the middle of one page to that of another, over the border of two
     * regions. */
    xm_bitmap_clear(&vd.bitmap, 0, vd.bitmap.bits);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_SPLIT - 512, 4096), OK);
    expect_pages((uint64_t[]){used, status, VF_SPLIT / 4096 - 1, VF_SPLIT / 4096}, 4);
    xm_bitmap_clear(&vd.bitmap, 0, vd.bitmap.bits);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_GET_ID, 0, VF_DATA + 4096 - 10, 20), OK);
    expect_pages((uint64_t[]){used, status, data, data + 1}, 4);
}

static bool logged(uint64_t page)
{
    return vf.log[page / 8] >> (page % 8) & 1;
}

static void test_log_pages_are_exact(void **state)
{
    uint64_t base = VF_GPA / 4096, data = base + VF_DATA / 4096;
    (void)state;

    begin(1, 64, 0);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA + 40960, 4096), OK);
    assert_int_equal(vf_start_log(&vf), 0);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 8192), OK);
    uint64_t used = base + (vf.q[0].area + 20480) / 4096, status = base + vf_header_off(&vf, 0, 0) / 4096;
    for (uint64_t p = 0; p < vf.log_size * 8; p++) {
        if (logged(p) != (p == used || p == status || p == data || p == data + 1))
            fail_msg("page %llu is %slogged", (unsigned long long)(p - base), logged(p) ? "" : "not ");
    }
    /* Off again. */
    assert_int_equal(vf_set_features(&vf, vf.want), 0);
    memset(vf.log, 0, vf.log_size);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 8192), OK);
    for (uint64_t i = 0; i < vf.log_size; i++)
        assert_int_equal(vf.log[i], 0);
}

/* ---- reconnecting ---- */

/* In the middle of a ring of 256 on a queue that is ready. */
static void resubmits_after_a_hang_up(void)
{
    unsigned answered[64] = {0}, n = 0;

    for (unsigned i = 0; i < 32; i++) {
        fill(vf.mem + VF_DATA + i * 4096, 4096, i);
        struct vf_seg s = {VF_DATA + i * 4096, 4096, false};
        if (i == 16) { /* the first half is answered before, out of the guest's sight */
            vf_kick(&vf, 0);
            for (int w = 0; __atomic_load_n(&vf.q[0].used->idx, __ATOMIC_ACQUIRE) != 16; w++) {
                assert_in_range(w, 0, 50000); /* the ring never started */
                usleep(100);
            }
            vd_gate(&vd, true);
        }
        assert_true(vf_request(&vf, 0, T_OUT, i * 8, &s, 1, &answered[i]) >= 0);
    }
    vf_kick(&vf, 0);
    wait_held(16);
    vf_disconnect(&vf);
    while (xm_vhost_connected(vd.vhost))
        usleep(100);
    /* Whatever became of them on the disk, the guest has not heard of it. */
    vd_gate(&vd, false);
    wait_stopped(vd.vhost);
    assert_int_equal(vf.q[0].used->idx, 16);
    eventfd_t v;
    eventfd_read(vf.q[0].call, &v);

    assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
    assert_int_equal(vf_start(&vf), 0);
    /* It calls once by itself. */
    struct pollfd p = {.fd = vf.q[0].call, .events = POLLIN};
    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
    while (vf.q[0].pending) {
        void *cookie;
        uint8_t status;
        if (!vf_used(&vf, 0, NULL, &status, &cookie, NULL)) {
            assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
            continue;
        }
        assert_int_equal(status, OK);
        ++*(unsigned *)cookie;
        n++;
    }
    assert_int_equal(n, 32);
    for (int i = 0; i < 32; i++)
        assert_int_equal(answered[i], 1);
    check_basic(&vf);
}

static void test_resubmits_after_a_hang_up(void **state)
{
    (void)state;
    begin(1, 256, 0);
    resubmits_after_a_hang_up();
}

/* QEMU 10.0.13 asks for an in-flight region of `queue-size` (128), while its guest's rings have 1024 whatever
 * that says. */
static void test_region_serves_rings_larger_than_asked_for(void **state)
{
    (void)state;
    connect_front(2, 256, 0);
    vf.inflight_asked = 128;
    assert_int_equal(vf_start(&vf), 0);
    resubmits_after_a_hang_up();
}

/* An earlier version of ours made regions as large as they were asked for; its QEMU lives on. */
static void test_region_of_an_earlier_version(void **state)
{
    (void)state;
    connect_front(2, 256, 0);
    vf.inflight_size = 2 * vhost_inflight_bytes(256);
    vf.inflight_fd = memfd_create("vhost-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(vf.inflight_fd, (off_t)vf.inflight_size), 0);
    assert_int_equal(fcntl(vf.inflight_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    assert_int_equal(vf_start(&vf), 0);
    resubmits_after_a_hang_up();
}

/* A back end of its own process, which may be killed. */
static pid_t spawn_backend(const char **path)
{
    struct vdisk child;

    fflush(NULL);
    *path = lib_path("kill.sock");
    unlink(*path);
    pid_t pid = fork();
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char *why = vd_open(&child, "kill", 2);
    if (why)
        fprintf(stderr, "%s\n", why);
    for (;;)
        pause();
}

/* Killed again and again under load: each request is answered once, and the disk holds the last that was
 * written. */
static void test_survives_kills(void **state)
{
    enum { BLOCKS = 2048, DEPTH = 24 };
    static uint32_t version[BLOCKS], written[DEPTH * 2];
    uint64_t free_slots = (1ull << (DEPTH * 2)) - 1;
    static uint8_t busy[BLOCKS];
    const char *path;
    uint32_t rnd = 12345, seq = 1;
    struct vf f;
    (void)state;

    pid_t pid = spawn_backend(&path);
    assert_int_equal(vf_init(&f, 2, 128), 0);
    assert_int_equal(vf_connect(&f, path, 0), 0);
    assert_int_equal(vf_start(&f), 0);
    static uint32_t slot_block[DEPTH * 2];
    unsigned answered = 0, kills = 0;
    while (kills < 12) {
        for (unsigned q = 0; q < 2; q++) {
            while (free_slots && f.q[q].pending < DEPTH) {
                unsigned slot = (unsigned)__builtin_ctzll(free_slots);
                rnd = rnd * 1664525u + 1013904223u;
                uint32_t b = (rnd >> 8) % BLOCKS;
                if (busy[b])
                    continue;
                struct vf_seg s = {VF_DATA + slot * 4096ull, 4096, false};
                fill(f.mem + s.off, 4096, seq);
                assert_true(vf_request(&f, q, T_OUT, b * 8ull, &s, 1, (void *)(uintptr_t)slot) >= 0);
                busy[b] = 1;
                slot_block[slot] = b;
                written[slot] = seq++;
                free_slots &= ~(1ull << slot);
            }
            vf_kick(&f, q);
            uint8_t status;
            void *cookie;
            int got;
            while ((got = vf_used(&f, q, NULL, &status, &cookie, NULL)) == 1) {
                unsigned slot = (unsigned)(uintptr_t)cookie;
                assert_int_equal(status, OK);
                assert_false(free_slots >> slot & 1); /* once */
                busy[slot_block[slot]] = 0;
                version[slot_block[slot]] = written[slot];
                free_slots |= 1ull << slot;
                answered++;
            }
            assert_int_equal(got, 0);
        }
        if (answered >= 400) {
            answered = 0;
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            vf_disconnect(&f);
            kills++;
            pid = spawn_backend(&path);
            assert_int_equal(vf_connect(&f, path, 0), 0);
            assert_int_equal(vf_start(&f), 0);
        }
    }
    for (unsigned q = 0; q < 2; q++) {
        void *cookie;
        while (f.q[q].pending) {
            int got = vf_used(&f, q, NULL, NULL, &cookie, NULL);
            assert_true(got >= 0);
            if (got) {
                unsigned slot = (unsigned)(uintptr_t)cookie;
                version[slot_block[slot]] = written[slot];
            } else {
                assert_true(vf_wait(&f, q, LIMIT_HANG_MS));
            }
        }
    }
    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint8_t want[4096] = {0};
        if (!version[b])
            continue;
        fill(want, sizeof want, version[b]);
        assert_int_equal(vf_do(&f, 0, T_IN, b * 8ull, VF_DATA, 4096), OK);
        assert_memory_equal(f.mem + VF_DATA, want, 4096);
    }
    vf_free(&f);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
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

    begin(1, 16, 0);
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

/* ---- the in-flight region by itself ---- */

static struct inflight_queue *region(uint16_t num)
{
    struct inflight_queue *q = calloc(1, vhost_inflight_bytes(num));
    assert_non_null(q);
    return q;
}

static void test_inflight_new_region_takes_the_rings_index(void **state)
{
    struct inflight_queue *q = region(64);
    uint16_t heads[64];
    uint64_t counter;
    (void)state;

    assert_int_equal(vhost_inflight_resume(q, 64, 1234, heads, &counter), -1);
    assert_int_equal(q->used_idx, 1234);
    assert_int_equal(q->version, 1);
    assert_int_equal(q->desc_num, 64);
    free(q);
}

static void test_inflight_repairs_the_last_batch(void **state)
{
    struct inflight_queue *q = region(64);
    uint16_t heads[64];
    uint64_t counter;
    (void)state;

    vhost_inflight_resume(q, 64, 65534, heads, &counter);
    for (uint16_t h = 10; h < 16; h++)
        vhost_inflight_take(q, h, counter++);
    /* 12, 10 and 15 are in the used ring and its index says so; then we died. */
    vhost_inflight_batch(q, 12);
    vhost_inflight_batch(q, 10);
    vhost_inflight_batch(q, 15);
    assert_int_equal(vhost_inflight_resume(q, 64, 1, heads, &counter), 3);
    assert_int_equal(heads[0], 11);
    assert_int_equal(heads[1], 13);
    assert_int_equal(heads[2], 14);
    assert_int_equal(q->used_idx, 1);
    assert_int_equal(counter, 5);
    free(q);
}

static void test_inflight_keeps_order_and_forgets_batches_not_told(void **state)
{
    struct inflight_queue *q = region(8);
    uint16_t heads[8];
    uint64_t counter;
    (void)state;

    vhost_inflight_resume(q, 8, 7, heads, &counter);
    vhost_inflight_take(q, 5, 100);
    vhost_inflight_take(q, 0, 101);
    vhost_inflight_take(q, 3, 102);
    vhost_inflight_batch(q, 0); /* written, but the index was not */
    assert_int_equal(vhost_inflight_resume(q, 8, 7, heads, &counter), 3);
    assert_int_equal(heads[0], 5);
    assert_int_equal(heads[1], 0);
    assert_int_equal(heads[2], 3);
    assert_int_equal(counter, 103);
    free(q);
}

static void test_inflight_of_a_hostile_front_end(void **state)
{
    struct inflight_queue *q = region(8);
    uint16_t heads[8];
    uint64_t counter;
    (void)state;

    vhost_inflight_resume(q, 8, 7, heads, &counter);
    q->last_batch_head = 60000;
    q->desc[2].next = 2;
    assert_int_equal(vhost_inflight_resume(q, 8, 12, heads, &counter), 0);
    q->last_batch_head = 2;
    assert_int_equal(vhost_inflight_resume(q, 8, 20, heads, &counter), 0);
    q->desc[1].inflight = 1;
    assert_int_equal(vhost_inflight_resume(q, 8, 500, heads, &counter), -1); /* of another life of the ring */
    free(q);
}

int main(void)
{
    xm_log_open("test", XM_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_requests, end),
        cmocka_unit_test_teardown(test_requests_on_libaio, end),
        cmocka_unit_test_teardown(test_requests_without_event_index, end),
        cmocka_unit_test_teardown(test_client_against_qemu, end),
        cmocka_unit_test_teardown(test_buffer_over_two_regions, end),
        cmocka_unit_test_teardown(test_get_id, end),
        cmocka_unit_test_teardown(test_any_layout, end),
        cmocka_unit_test_teardown(test_discard_segments, end),
        cmocka_unit_test_teardown(test_io_error_is_told, end),
        cmocka_unit_test_teardown(test_calls_only_when_wanted, end),
        cmocka_unit_test_teardown(test_kicks_only_when_needed, end),
        cmocka_unit_test_teardown(test_config, end),
        cmocka_unit_test_teardown(test_get_vring_base_waits, end),
        cmocka_unit_test_teardown(test_memory_table_changes_while_rings_run, end),
        cmocka_unit_test_teardown(test_memory_table_waits_for_requests, end),
        cmocka_unit_test_teardown(test_dirty_pages_are_exact, end),
        cmocka_unit_test_teardown(test_log_pages_are_exact, end),
        cmocka_unit_test_teardown(test_resubmits_after_a_hang_up, end),
        cmocka_unit_test_teardown(test_region_serves_rings_larger_than_asked_for, end),
        cmocka_unit_test_teardown(test_region_of_an_earlier_version, end),
        cmocka_unit_test_teardown(test_survives_kills, end),
        cmocka_unit_test_teardown(test_free_on_the_engines_thread, end),
        cmocka_unit_test_teardown(test_bad_options, end),
        cmocka_unit_test(test_inflight_new_region_takes_the_rings_index),
        cmocka_unit_test(test_inflight_repairs_the_last_batch),
        cmocka_unit_test(test_inflight_keeps_order_and_forgets_batches_not_told),
        cmocka_unit_test(test_inflight_of_a_hostile_front_end),
    };
    return cmocka_run_group_tests_name("mirror_vhost", tests, NULL, NULL);
}
