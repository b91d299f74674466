/* SPDX-License-Identifier: MIT */
/* A guest's memory behind vhost-user-blk: rings that are stopped and tables that change while requests are in
 * flight, and that exactly those pages are marked that the device wrote. */
#include "tests/unit/lib_vhost_pair.h"
#include "tests/progress.h"

#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static void test_get_vring_base_waits(void **state)
{
    struct vf_seg s = {VF_DATA, 4096, true};
    uint32_t v[2] = {0, 0}, h[5];
    (void)state;

    pair_begin(2, 64, 0);
    vd_gate(&vd, true);
    for (int i = 0; i < 5; i++)
        assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    pair_wait_held(5);
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

/* Begun with by a front end whose guest stands still, and saved by it as it was begun. */
static void test_rings_are_untouched_until_they_take_something(void **state)
{
    struct vf_seg s = {VF_DATA, 4096, true};
    (void)state;

    pair_begin(2, 64, 0);
    assert_int_equal(vf_do(&vf, 1, T_IN, 0, VF_DATA, 4096), OK);
    assert_false(xm_vhost_rests(vd.vhost));
    assert_int_equal(vf_stop(&vf), 0);
    assert_true(xm_vhost_rests(vd.vhost));
    assert_int_equal(vf_start(&vf), 0);
    assert_false(xm_vhost_stopped(vd.vhost));
    assert_true(xm_vhost_rests(vd.vhost));
    vd_gate(&vd, true);
    assert_true(vf_request(&vf, 1, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 1);
    pair_wait_held(1);
    assert_false(xm_vhost_rests(vd.vhost));
    vd_gate(&vd, false);
    while (!vf_used(&vf, 1, NULL, NULL, NULL, NULL))
        assert_true(vf_wait(&vf, 1, LIMIT_HANG_MS));
    assert_false(xm_vhost_rests(vd.vhost));
}

static void test_memory_table_changes_while_rings_run(void **state)
{
    (void)state;
    pair_begin(2, 64, 0);
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

    pair_begin(1, 64, 0);
    vd_gate(&vd, true);
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    pair_wait_held(1);
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
    pair_wait_held(1);
    vd_gate(&vd, false);
    assert_int_equal(read(vf.sock, reply, sizeof reply), sizeof reply);
    assert_int_equal(reply[3], 0);
    while (vf.q[0].pending) {
        if (!vf_used(&vf, 0, NULL, NULL, NULL, NULL))
            assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
    }
}

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

    pair_begin(1, 64, 0);
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

    pair_begin(1, 64, 0);
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

int main(void)
{
    xm_log_open("test", XM_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_get_vring_base_waits, pair_end),
        cmocka_unit_test_teardown(test_rings_are_untouched_until_they_take_something, pair_end),
        cmocka_unit_test_teardown(test_memory_table_changes_while_rings_run, pair_end),
        cmocka_unit_test_teardown(test_memory_table_waits_for_requests, pair_end),
        cmocka_unit_test_teardown(test_dirty_pages_are_exact, pair_end),
        cmocka_unit_test_teardown(test_log_pages_are_exact, pair_end),
    };
    return cmocka_run_group_tests_name("mirror_vhost_memory", tests, NULL, NULL);
}
