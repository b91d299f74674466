/* SPDX-License-Identifier: MIT */
/* Guests and front ends that break the rules. Nothing that they do may crash us or reach another device; a
 * guest's bad ring stops its own device until that is reset, a front end's bad message ends its connection.
 */
#include "tests/unit/lib_disk.h"
#include "tests/unit/lib_vhost_disk.h"
#include "tests/unit/lib_vhost_front.h"
#include "mirror/guestmem.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define T_IN  VIRTIO_BLK_T_IN
#define T_OUT VIRTIO_BLK_T_OUT
#define N     64 /* size of the rings */
#define W     VRING_DESC_F_WRITE
#define NEXT  VRING_DESC_F_NEXT
#define IND   VRING_DESC_F_INDIRECT

static struct vdisk vd;
static struct vf vf, good; /* the hostile guest; a guest of another device on the same engine */
static struct xm_vhost *second;

static int begin(void **state)
{
    (void)state;
    const char *why = vd_open(&vd, "disk", 2);
    if (why)
        fail_msg("%s", why);
    const char *path = vd.path;
    second = vd_second(&vd, "good");
    assert_non_null(second);
    assert_int_equal(vf_init(&good, 1, N), 0);
    assert_int_equal(vf_connect(&good, vd.path, 0), 0);
    assert_int_equal(vf_start(&good), 0);
    vd.path = path;
    assert_int_equal(vf_init(&vf, 2, N), 0);
    return 0;
}

static int end(void **state)
{
    vf_free(&vf);
    vf_free(&good);
    xm_vhost_free(second);
    vd_close(&vd);
    return lib_disk_clean(state);
}

static void check_good(void)
{
    assert_int_equal(vf_do(&good, 0, T_OUT, 0, VF_DATA, 4096), VIRTIO_BLK_S_OK);
    assert_int_equal(xm_vhost_broken(second), 0);
}

/* ---- rings ---- */

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

/* The guest resets the device: stopped, rings from new, started. */
static void reset_device(void)
{
    assert_int_equal(vf_stop(&vf), 0);
    for (unsigned i = 0; i < vf.queues; i++) {
        struct vf_queue *q = &vf.q[i];
        memset(vf.mem + q->area, 0, VF_Q_AREA);
        q->avail_idx = q->last_used = q->kicked = q->free_head = 0;
        q->free_count = N;
        q->pending = 0;
        memset(q->length, 0, sizeof q->length);
        for (uint16_t k = 0; k < N; k++)
            q->desc[k].next = (uint16_t)(k + 1);
    }
    /* A new in-flight region, too, as QEMU has it. */
    if (vf.inflight_fd >= 0)
        close(vf.inflight_fd);
    vf.inflight_fd = -1;
    assert_int_equal(vf_start(&vf), 0);
}

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
        check_good();
        /* All of its queues stand still. */
        struct vf_seg s = {VF_DATA, 4096, true};
        assert_true(vf_request(&vf, 1, T_IN, 0, &s, 1, NULL) >= 0);
        eventfd_write(vf.q[1].kick, 1);
        vd_held(&vd);
        vd_held(&vd);
        assert_int_equal(vf_used(&vf, 1, NULL, NULL, NULL, NULL), 0);
        reset_device();
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
    check_good();
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

/* ---- messages ---- */

struct raw {
    uint32_t request, flags, size;
    uint8_t payload[600];
};

static void send_raw(const struct raw *r, size_t len, const int *fds, unsigned n)
{
    struct iovec iov = {(void *)r, len};
    union {
        char buf[CMSG_SPACE(sizeof(int) * 32)];
        struct cmsghdr align;
    } c = {0};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n) {
        m.msg_control = c.buf;
        m.msg_controllen = CMSG_SPACE(sizeof(int) * n);
        struct cmsghdr *cm = CMSG_FIRSTHDR(&m);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * n);
        memcpy(CMSG_DATA(cm), fds, sizeof(int) * n);
    }
    assert_int_equal(sendmsg(vf.sock, &m, MSG_NOSIGNAL), (ssize_t)len);
}

enum fd_kind { NONE, EVENT, MEM, PIPE, NULLDEV };
static const struct msg_case {
    const char *name;
    uint32_t request, flags, size;
    uint64_t payload[12];
    unsigned fds;
    enum fd_kind kind;
    bool started; /* sent while rings run */
} msg_cases[] = {
    {"unknown request", 99, 1, 0, {0}, 0, NONE, false},
    {"request 0", 0, 1, 0, {0}, 0, NONE, false},
    {"version 0", 1, 0, 0, {0}, 0, NONE, false},
    {"a reply", 1, 5, 0, {0}, 0, NONE, false},
    {"huge payload", 2, 1, 0xffffffff, {0}, 0, NONE, false},
    {"features with a descriptor", 1, 1, 0, {0}, 1, EVENT, false},
    {"features too short", 2, 1, 4, {0}, 0, NONE, false},
    {"features not offered", 2, 1, 8, {1ull << 34}, 0, NONE, false},
    {"protocol features not offered", 16, 1, 8, {1ull << 13}, 0, NONE, false},
    {"queue 2 of 2: size", 8, 1, 8, {2 | 64ull << 32}, 0, NONE, false},
    {"queue 4 billion: size", 8, 1, 8, {0xffffffff | 64ull << 32}, 0, NONE, false},
    {"size 0", 8, 1, 8, {0}, 0, NONE, false},
    {"size 100", 8, 1, 8, {100ull << 32}, 0, NONE, false},
    {"size 65536", 8, 1, 8, {65536ull << 32}, 0, NONE, false},
    {"size while running", 8, 1, 8, {128ull << 32}, 0, NONE, true},
    {"address of queue 7", 9, 1, 40, {7}, 0, NONE, false},
    {"address while running", 9, 1, 40, {0, VF_UVA1, VF_UVA1, VF_UVA1}, 0, NONE, true},
    {"base of 65536", 10, 1, 8, {65536ull << 32}, 0, NONE, false},
    {"base while running", 10, 1, 8, {5ull << 32}, 0, NONE, true},
    {"base of queue 200", 11, 1, 8, {200}, 0, NONE, false},
    {"enable queue 9", 18, 1, 8, {9 | 1ull << 32}, 0, NONE, false},
    {"enable with 2", 18, 1, 8, {2ull << 32}, 0, NONE, false},
    {"kick without descriptor", 12, 1, 8, {0}, 0, NONE, false},
    {"kick by polling", 12, 1, 8, {0x100}, 0, NONE, false},
    {"kick of queue 255", 12, 1, 8, {255}, 1, EVENT, false},
    {"kick by a pipe", 12, 1, 8, {0}, 1, PIPE, false},
    {"kick by a file", 12, 1, 8, {0}, 1, MEM, false},
    {"call by a pipe", 13, 1, 8, {0}, 1, PIPE, false},
    {"call with two descriptors", 13, 1, 8, {0}, 2, EVENT, false},
    {"call says none and brings one", 13, 1, 8, {0x100}, 1, EVENT, false},
    {"err by a device", 14, 1, 8, {0}, 1, NULLDEV, false},
    {"twenty descriptors", 13, 1, 8, {0}, 20, EVENT, false},
    {"memory: count without regions", 5, 1, 8, {1}, 1, MEM, false},
    {"memory: nine regions", 5, 1, 8 + 9 * 32, {9}, 8, MEM, false},
    {"memory: descriptors missing", 5, 1, 40, {1, 0, 4096, 0, 0}, 0, NONE, false},
    {"memory: empty region", 5, 1, 40, {1, 0, 0, 0, 0}, 1, MEM, false},
    {"memory: larger than its file", 5, 1, 40, {1, 0, 1ull << 30, 0, 0}, 1, MEM, false},
    {"memory: offset beyond its file", 5, 1, 40, {1, 0, 4096, 0, 1ull << 30}, 1, MEM, false},
    {"memory: offset wraps", 5, 1, 40, {1, 0, 4096, 0, UINT64_MAX - 100}, 1, MEM, false},
    {"memory: address wraps", 5, 1, 40, {1, UINT64_MAX - 100, 4096, 0, 0}, 1, MEM, false},
    {"memory: user address wraps", 5, 1, 40, {1, 0, 4096, UINT64_MAX - 100, 0}, 1, MEM, false},
    {"memory: twice the same", 5, 1, 72, {2, 0, 8192, 0, 0, 4096, 8192, 0, 0}, 2, MEM, false},
    {"memory: no file", 5, 1, 40, {1, 0, 4096, 0, 0}, 1, PIPE, false},
    {"log without descriptor", 6, 1, 16, {4096, 0}, 0, NONE, false},
    {"log larger than its file", 6, 1, 16, {1ull << 30, 0}, 1, MEM, false},
    {"log in a pipe", 6, 1, 16, {4096, 0}, 1, PIPE, false},
    {"configuration beyond its end", 24, 1, 12 + 8, {255 | 8ull << 32, 0}, 0, NONE, false},
    {"configuration of another size", 24, 1, 12 + 8, {0 | 4ull << 32, 0}, 0, NONE, false},
    {"configuration offset wraps", 24, 1, 12 + 8, {0xfffffffe | 8ull << 32, 0}, 0, NONE, false},
    {"writes the capacity", 25, 1, 12 + 8, {0 | 8ull << 32, 0}, 0, NONE, false},
    {"in-flight for no queue", 31, 1, 24, {0, 0, 0}, 0, NONE, false},
    {"in-flight for 60000 queues", 31, 1, 24, {0, 0, 60000 | 64 << 16}, 0, NONE, false},
    {"in-flight for queues of 60000", 31, 1, 24, {0, 0, 1 | 60000u << 16}, 0, NONE, false},
    {"in-flight region too small", 32, 1, 24, {100, 0, 2 | 64 << 16}, 1, MEM, false},
    {"in-flight region beyond its file", 32, 1, 24, {1ull << 20, 1ull << 30, 2 | 64 << 16}, 1, MEM, false},
    {"in-flight region while running", 32, 1, 24, {65536, 0, 2 | 64 << 16}, 1, MEM, true},
};

static int make_fd(enum fd_kind kind, int *other)
{
    int p[2];

    *other = -1;
    switch (kind) {
    case EVENT:
        return eventfd(0, EFD_CLOEXEC);
    case MEM:
        p[0] = memfd_create("m", MFD_CLOEXEC);
        assert_int_equal(ftruncate(p[0], 1 << 20), 0);
        return p[0];
    case PIPE:
        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        *other = p[0];
        return p[1];
    default:
        return open("/dev/null", O_RDWR | O_CLOEXEC);
    }
}

static unsigned open_fds(void)
{
    unsigned n = 0;
    for (int i = 0; i < 1024; i++)
        n += fcntl(i, F_GETFD) >= 0;
    return n;
}

static void test_messages(void **state)
{
    unsigned fds_before = 0;
    (void)state;

    for (size_t i = 0; i < sizeof msg_cases / sizeof *msg_cases; i++) {
        const struct msg_case *c = &msg_cases[i];
        struct raw r = {c->request, c->flags, c->size, {0}};
        uint64_t before = xm_vhost_broken(vd.vhost);
        int fds[32], other = -1;

        assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
        if (c->started)
            assert_int_equal(vf_start(&vf), 0);
        memcpy(r.payload, c->payload, sizeof c->payload);
        for (unsigned k = 0; k < c->fds; k++)
            fds[k] = k ? dup(fds[0]) : make_fd(c->kind, &other);
        send_raw(&r, 12 + (c->size < sizeof r.payload ? c->size : 0), fds, c->fds);
        for (unsigned k = 0; k < c->fds; k++)
            close(fds[k]);
        if (other >= 0)
            close(other);
        struct pollfd p = {.fd = vf.sock, .events = POLLIN};
        char byte;
        if (poll(&p, 1, LIMIT_HANG_MS) != 1 || read(vf.sock, &byte, 1) > 0)
            fail_msg("%s was not refused", c->name);
        vf_disconnect(&vf);
        assert_int_equal(xm_vhost_broken(vd.vhost), before + 1);
        check_good();
        if (i == 0)
            fds_before = open_fds();
    }
    /* It comes again, and no descriptor has stayed. */
    assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
    assert_int_equal(vf_start(&vf), 0);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 4096), VIRTIO_BLK_S_OK);
    vf_disconnect(&vf);
    for (struct limit l = limit_start(5); !xm_vhost_stopped(vd.vhost) && limit_wait(&l);)
        ;
    for (struct limit l = limit_start(5); open_fds() > fds_before + 1 && limit_wait(&l);)
        ;
    assert_true(open_fds() <= fds_before + 1); /* the guest's in-flight region */
}

/* A new memory table in which the rings are not. */
static void test_rings_lose_their_memory(void **state)
{
    struct raw r = {5, 9, 40, {0}};
    uint64_t region[5] = {1, VF_GPA, 1 << 20, 0x123456000, 0};
    struct pollfd p = {.fd = vf.q[0].err, .events = POLLIN};
    (void)state;

    assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
    assert_int_equal(vf_start(&vf), 0);
    vd_gate(&vd, true);
    struct vf_seg s = {VF_DATA, 4096, true};
    assert_true(vf_request(&vf, 0, T_IN, 0, &s, 1, NULL) >= 0);
    vf_kick(&vf, 0);
    while (vd_held(&vd) != 1)
        usleep(100);
    memcpy(r.payload, region, sizeof region);
    send_raw(&r, 52, &vf.memfd, 1);
    vd_gate(&vd, false);
    assert_int_equal(read(vf.sock, &r, 20), 20);
    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
    assert_true(xm_vhost_stopped(vd.vhost));
    assert_int_equal(vf_used(&vf, 0, NULL, NULL, NULL, NULL), 1); /* it was answered before */
    check_good();
    reset_device();
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 4096), VIRTIO_BLK_S_OK);
}

/* A dirty log that ends long before the guest's memory does. */
static void test_log_too_short(void **state)
{
    struct raw r = {6, 1, 16, {0}};
    uint64_t log[2] = {4096, 0};
    int fd = memfd_create("log", MFD_CLOEXEC);
    (void)state;

    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
    assert_int_equal(vf_start(&vf), 0);
    memcpy(r.payload, log, sizeof log);
    send_raw(&r, 28, &fd, 1);
    assert_int_equal(read(vf.sock, &r, 20), 20);
    assert_int_equal(vf_set_features(&vf, vf.want | 1ull << 26), 0);
    assert_int_equal(vf_set_addr(&vf, 0, true), 0);
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 65536), VIRTIO_BLK_S_OK);
    uint8_t page[4096], zero[4096] = {0};
    assert_int_equal(pread(fd, page, sizeof page, 0), sizeof page);
    assert_memory_equal(page, zero, sizeof page);
    close(fd);
}

static void test_log_bounds(void **state)
{
    uint8_t bytes[64] = {0}, want[64] = {[31] = 0x80};
    struct dirtylog l = {.base = bytes, .size = 32};
    (void)state;

    dirtylog_mark(&l, 255 * 4096, 3 * 4096);
    dirtylog_mark(&l, 256 * 4096, 1);
    dirtylog_mark(&l, UINT64_MAX - 10, 100);
    dirtylog_mark(&l, 0, 0);
    assert_memory_equal(bytes, want, sizeof want);
}

static void test_half_a_message(void **state)
{
    struct raw r = {2, 1, 8, {0}};
    (void)state;

    for (size_t len = 1; len < 20; len++) {
        assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
        send_raw(&r, len, NULL, 0);
        vf_disconnect(&vf);
    }
    check_good();
    assert_int_equal(xm_vhost_broken(vd.vhost), 0);
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
            reset_device();
            broken = xm_vhost_broken(vd.vhost);
        }
        if (cases % 64 == 0) {
            reset_device();
            check_good();
        }
    }
    print_message("%llu cases, %llu of them broke the device\n", (unsigned long long)cases,
                  (unsigned long long)broken);
    assert_true(broken > 0);
    reset_device();
    assert_int_equal(vf_do(&vf, 0, T_IN, 0, VF_DATA, 4096), VIRTIO_BLK_S_OK);
    check_good();
}

int main(void)
{
    xm_log_open("test", XM_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rings, begin, end),
        cmocka_unit_test_setup_teardown(test_indirect_not_negotiated, begin, end),
        cmocka_unit_test_setup_teardown(test_in_flight_ends, begin, end),
        cmocka_unit_test_setup_teardown(test_messages, begin, end),
        cmocka_unit_test_setup_teardown(test_rings_lose_their_memory, begin, end),
        cmocka_unit_test_setup_teardown(test_log_too_short, begin, end),
        cmocka_unit_test(test_log_bounds),
        cmocka_unit_test_setup_teardown(test_half_a_message, begin, end),
        cmocka_unit_test_setup_teardown(test_random_rings, begin, end),
    };
    return cmocka_run_group_tests_name("mirror_vhost_hostile", tests, NULL, NULL);
}
