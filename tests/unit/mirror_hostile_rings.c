/* SPDX-License-Identifier: MIT */
/* Guests whose rings break the rules, each in its way and at random. Nothing that they do may crash us or
 * reach another device: a bad ring stops its own device until that is reset. */
#include "tests/unit/lib_vhost_pair.h"
#include "tests/progress.h"

#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define N    HOSTILE_RING
#define W    VRING_DESC_F_WRITE
#define NEXT VRING_DESC_F_NEXT
#define IND  VRING_DESC_F_INDIRECT

static struct vring_desc *d;
static const uint64_t data = VF_GPA + VF_DATA, header = VF_GPA + VF_DATA + 8192,
                      table = VF_GPA + VF_DATA + 16384;

static struct vring_desc desc(uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
    return (struct vring_desc){.addr = addr, .len = len, .flags = (uint16_t)flags, .next = (uint16_t)next};
}

static void avail(uint16_t head)
{
    struct vf_queue *q = &vf.q[0];
    q->avail->ring[q->avail_idx++ % N] = head;
    q->avail->idx = q->avail_idx;
}

static void good_request(void)
{
    d[0] = desc(header, 16, NEXT, 1);
    d[1] = desc(data, 4096, NEXT | W, 2);
    d[2] = desc(data + 4096, 1, W, 0);
}

static struct vring_desc *good_table(void)
{
    struct vring_desc *t = (void *)(vf.mem + VF_DATA + 16384);
    t[0] = desc(header, 16, NEXT, 1);
    t[1] = desc(data, 4096, NEXT | W, 2);
    t[2] = desc(data + 4096, 1, W, 0);
    d[0] = desc(table, 48, IND, 0);
    return t;
}

static void head_beyond_table(void)
{
    good_request();
    d[N] = d[0];
    avail(N);
}
static void index_far_ahead(void)
{
    good_request();
    vf.q[0].avail->idx = (uint16_t)(vf.q[0].avail_idx + N + 1);
}
static void index_behind(void)
{
    vf.q[0].avail->idx = (uint16_t)(vf.q[0].avail_idx - 1);
}
static void same_head_twice(void)
{
    vd_gate(&vd, true);
    good_request();
    avail(0);
    avail(0);
}
static void loop_of_one(void)
{
    d[0] = desc(header, 16, NEXT, 0);
    avail(0);
}
static void loop_of_three(void)
{
    good_request();
    d[2].flags |= NEXT;
    d[2].next = 1;
    avail(0);
}
static void next_beyond_table(void)
{
    good_request();
    d[1].next = N;
    d[N] = d[2]; /* all is well but for the place */
    avail(0);
}
static void buffer_nowhere(void)
{
    good_request();
    d[1].addr = 0x1000;
    avail(0);
}
static void buffer_past_end(void)
{
    good_request();
    d[1].addr = VF_GPA + VF_MEM - 2048;
    avail(0);
}
static void buffer_wraps(void)
{
    good_request();
    d[1] = desc(UINT64_MAX - 100, 4096, NEXT | W, 2);
    avail(0);
}
static void header_nowhere(void)
{
    good_request();
    d[0].addr = 0;
    avail(0);
}
static void status_nowhere(void)
{
    good_request();
    d[2].addr = VF_GPA + VF_MEM;
    avail(0);
}
static void header_too_short(void)
{
    good_request();
    d[0].len = 15;
    avail(0);
}
static void header_writable(void)
{
    good_request();
    d[0].flags |= W;
    avail(0);
}
static void no_status(void)
{
    d[0] = desc(header, 16, NEXT, 1);
    d[1] = desc(data, 4096, 0, 0);
    avail(0);
}
static void empty_status(void)
{
    d[0] = desc(header, 16, NEXT, 1);
    d[1] = desc(data, 0, W, 0);
    avail(0);
}
static void empty_chain(void)
{
    d[0] = desc(header, 0, 0, 0);
    avail(0);
}
static void readable_after_writable(void)
{
    good_request();
    d[2].flags |= NEXT;
    d[2].next = 3;
    d[3] = desc(data, 512, 0, 0);
    avail(0);
}
static void more_than_4_gib(void)
{
    for (unsigned i = 0; i < N; i++)
        d[i] = desc(VF_GPA, VF_MEM, W | (i + 1 < N ? NEXT : 0), i + 1);
    d[0] = desc(header, 16, NEXT, 1);
    for (unsigned i = 1; i < N; i++)
        d[i].len = VF_MEM;
    /* 63 × 64 MiB are less than 4 GiB: a table holds no more than the ring, so each buffer twice. */
    d[0].len = VF_MEM;
    d[1].flags &= (uint16_t)~W;
    for (unsigned i = 2; i < N; i++)
        d[i].flags |= W;
    d[N - 1].next = 2;
    d[N - 1].flags |= NEXT;
    avail(0);
}
static void indirect_nowhere(void)
{
    good_table();
    d[0].addr = 0x123;
    avail(0);
}
static void indirect_over_end(void)
{
    good_table();
    d[0].addr = VF_GPA + VF_MEM - 16;
    avail(0);
}
static void indirect_empty(void)
{
    good_table();
    d[0].len = 0;
    avail(0);
}
static void indirect_odd_length(void)
{
    good_table();
    d[0].len = 47;
    avail(0);
}
static void indirect_with_next(void)
{
    good_table();
    d[0].flags |= NEXT;
    avail(0);
}
static void indirect_nested(void)
{
    struct vring_desc *t = good_table();
    t[1] = desc(table, 48, IND, 0);
    avail(0);
}
static void indirect_itself(void)
{
    struct vring_desc *t = good_table();
    t[0] = desc(table, 48, IND, 0);
    avail(0);
}
static void indirect_loop(void)
{
    struct vring_desc *t = good_table();
    t[2].flags |= NEXT;
    t[2].next = 1;
    avail(0);
}
static void indirect_next_beyond(void)
{
    struct vring_desc *t = good_table();
    t[1].next = 3;
    t[3] = t[2];
    avail(0);
}
static void indirect_longer_than_ring(void)
{
    struct vring_desc *t = good_table();
    for (unsigned i = 0; i <= N; i++)
        t[i] = desc(i ? data : header, 16, (i ? W : 0u) | (i < N ? NEXT : 0u), i + 1);
    d[0].len = (N + 1) * 16;
    avail(0);
}

static const struct ring_case {
    const char *name;
    void (*make)(void);
} ring_cases[] = {
#define C(x)                                                                                                 \
    {                                                                                                        \
#x, x                                                                                                \
    }
    C(head_beyond_table),
    C(index_far_ahead),
    C(index_behind),
    C(same_head_twice),
    C(loop_of_one),
    C(loop_of_three),
    C(next_beyond_table),
    C(buffer_nowhere),
    C(buffer_past_end),
    C(buffer_wraps),
    C(header_nowhere),
    C(status_nowhere),
    C(header_too_short),
    C(header_writable),
    C(no_status),
    C(empty_status),
    C(empty_chain),
    C(readable_after_writable),
    C(more_than_4_gib),
    C(indirect_nowhere),
    C(indirect_over_end),
    C(indirect_empty),
    C(indirect_odd_length),
    C(indirect_with_next),
    C(indirect_nested),
    C(indirect_itself),
    C(indirect_loop),
    C(indirect_next_beyond),
    C(indirect_longer_than_ring),
};

static void test_rings(void **state)
{
    (void)state;
    assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
    assert_int_equal(vf_start(&vf), 0);
    d = vf.q[0].desc;
    for (size_t i = 0; i < sizeof ring_cases / sizeof *ring_cases; i++) {
        uint64_t before = xm_vhost_broken(vd.vhost);
        eventfd_t v;
        memset(vf.mem + VF_DATA, 0, 65536);
        ring_cases[i].make();
        eventfd_write(vf.q[0].kick, 1);
        struct pollfd p = {.fd = vf.q[0].err, .events = POLLIN};
        if (poll(&p, 1, LIMIT_HANG_MS) != 1)
            fail_msg("%s was not noticed", ring_cases[i].name);
        eventfd_read(vf.q[0].err, &v);
        assert_int_equal(xm_vhost_broken(vd.vhost), before + 1);
        vd_gate(&vd, false);
        hostile_check_good();
        /* All of its queues stand still. */
        struct vf_seg s = {VF_DATA, 4096, true};
        assert_true(vf_request(&vf, 1, T_IN, 0, &s, 1, NULL) >= 0);
        eventfd_write(vf.q[1].kick, 1);
        vd_held(&vd);
        vd_held(&vd);
        assert_int_equal(vf_used(&vf, 1, NULL, NULL, NULL, NULL), 0);
        hostile_reset();
        assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 4096), VIRTIO_BLK_S_OK);
        assert_int_equal(vf_do(&vf, 1, T_IN, 0, VF_DATA, 4096), VIRTIO_BLK_S_OK);
    }
}

static void test_indirect_not_negotiated(void **state)
{
    (void)state;
    assert_int_equal(vf_connect(&vf, vd.path, 1ull << VIRTIO_RING_F_INDIRECT_DESC), 0);
    assert_int_equal(vf_start(&vf), 0);
    d = vf.q[0].desc;
    good_table();
    avail(0);
    eventfd_write(vf.q[0].kick, 1);
    struct pollfd p = {.fd = vf.q[0].err, .events = POLLIN};
    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
    hostile_check_good();
}

/* Requests in flight when a ring breaks are finished and answered. */
static void test_in_flight_ends(void **state)
{
    struct vf_seg s = {VF_DATA, 4096, true};
    uint8_t status = 0xff;
    (void)state;

    assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
    assert_int_equal(vf_start(&vf), 0);
    d = vf.q[0].desc;
    vd_gate(&vd, true);
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    while (vd_held(&vd) != 1)
        usleep(100);
    avail(N + 3);
    eventfd_write(vf.q[0].kick, 1);
    struct pollfd p = {.fd = vf.q[0].err, .events = POLLIN};
    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
    assert_false(xm_vhost_stopped(vd.vhost));
    vd_gate(&vd, false);
    assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
    while (!vf_used(&vf, 0, NULL, &status, NULL, NULL))
        assert_true(vf_wait(&vf, 0, LIMIT_HANG_MS));
    assert_int_equal(status, VIRTIO_BLK_S_OK);
}

/* ---- random ---- */

static uint64_t rnd_state;
static uint32_t rnd(uint32_t below)
{
    rnd_state = rnd_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rnd_state >> 33) % below;
}

static struct vring_desc random_desc(void)
{
    static const uint32_t lens[] = {0, 1, 15, 16, 17, 48, 512, 513, 4096, 65536, 0x7fffffff, 0xffffffff};
    uint64_t addr = VF_GPA + (rnd(4) ? VF_DATA + rnd(65536) * 16 : rnd(2) ? rnd(VF_Q_AREA * 2) : rnd(VF_MEM));
    if (!rnd(40))
        addr = (uint64_t)rnd(UINT32_MAX) << rnd(40);
    return desc(addr, lens[rnd(rnd(6) ? 9 : 12)], rnd(3) ? rnd(4) : rnd(8), rnd(rnd(20) ? N : 65536));
}

/* A request that is nearly right, so that the deeper checks are reached. */
static void random_request(uint16_t head)
{
    static const uint32_t types[] = {T_IN, T_OUT, 4, 8, 11, 13, 99};
    unsigned n = 1 + rnd(5);
    uint16_t at = head;
    struct virtio_blk_outhdr h = {.type = types[rnd(7)],
                                  .sector = rnd(10) ? rnd(VD_SIZE / 512) : (uint64_t)rnd(UINT32_MAX) << 32};
    uint64_t off = VF_DATA + rnd(65536) * 16;
    memcpy(vf.mem + off, &h, sizeof h);
    d[at] = desc(VF_GPA + off, 16, NEXT, (at + 1) % N);
    bool w = h.type == T_IN || h.type == 8;
    for (unsigned i = 0; i < n; i++) {
        at = (uint16_t)((at + 1) % N);
        d[at] = desc(VF_GPA + VF_DATA + rnd(1 << 20), 1u << rnd(14), NEXT | (w ? W : 0), (at + 1) % N);
    }
    at = (uint16_t)((at + 1) % N);
    d[at] = desc(VF_GPA + VF_DATA + rnd(1 << 20), 1, W, 0);
    if (!rnd(3)) { /* move it into a table */
        uint64_t t = VF_DATA + (1 << 21) + head * 1024u;
        for (unsigned i = 0; i < n + 2; i++) {
            struct vring_desc x = d[(head + i) % N];
            x.next = (uint16_t)(i + 1);
            memcpy(vf.mem + t + i * 16, &x, 16);
        }
        d[head] = desc(VF_GPA + t, (n + 2) * 16, IND, 0);
    }
    while (!rnd(3)) { /* and then something goes wrong */
        if (rnd(2))
            d[rnd(N)] = random_desc();
        else
            vf.mem[VF_DATA + rnd(1 << 22)] ^= (uint8_t)(1u << rnd(8));
    }
}

static void random_case(void)
{
    struct vf_queue *q = &vf.q[0];
    unsigned n = 1 + rnd(6);

    for (unsigned i = 0; i < n; i++) {
        uint16_t head = (uint16_t)rnd(N);
        random_request(head);
        avail(rnd(100) ? head : (uint16_t)rnd(65536));
    }
    if (!rnd(50))
        q->avail->idx = (uint16_t)rnd(65536);
    eventfd_write(q->kick, 1);
    vd_held(&vd); /* let it look */
    if (xm_vhost_broken(vd.vhost)) {
        /* what is in the rings meanwhile is the device's own writing, too: reads may land there */
    }
}

static void test_random_rings(void **state)
{
    uint64_t cases = 0; /* some 1500 a second */
    const char *seed = getenv("XM_TEST_SEED");
    (void)state;

    rnd_state = seed ? strtoull(seed, NULL, 0) : 1;
    assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
    assert_int_equal(vf_start(&vf), 0);
    d = vf.q[0].desc;
    uint64_t broken = 0;
    while (cases < 3500) {
        random_case();
        cases++;
        if (xm_vhost_broken(vd.vhost) != broken) {
            hostile_reset();
            broken = xm_vhost_broken(vd.vhost);
        }
        if (cases % 64 == 0) {
            hostile_reset();
            hostile_check_good();
        }
    }
    print_message("%llu cases, %llu of them broke the device\n", (unsigned long long)cases,
                  (unsigned long long)broken);
    assert_true(broken > 0);
    hostile_reset();
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 4096), VIRTIO_BLK_S_OK);
    hostile_check_good();
}

int main(void)
{
    xm_log_open("test", XM_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rings, hostile_begin, hostile_end),
        cmocka_unit_test_setup_teardown(test_indirect_not_negotiated, hostile_begin, hostile_end),
        cmocka_unit_test_setup_teardown(test_in_flight_ends, hostile_begin, hostile_end),
        cmocka_unit_test_setup_teardown(test_random_rings, hostile_begin, hostile_end),
    };
    return cmocka_run_group_tests_name("mirror_hostile_rings", tests, NULL, NULL);
}
