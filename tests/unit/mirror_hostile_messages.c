/* SPDX-License-Identifier: MIT */
/* Front ends whose messages break the rules: nothing that they send may crash us, leave a descriptor open
 * or reach another device; a bad message ends its connection. */
#include "tests/unit/lib_vhost_pair.h"
#include "mirror/guestmem.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

struct raw {
    uint32_t request, flags, size;
    uint8_t payload[600];
};

static bool try_raw(const struct raw *r, size_t len, const int *fds, unsigned n)
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
    return sendmsg(vf.sock, &m, MSG_NOSIGNAL) == (ssize_t)len;
}

static void send_raw(const struct raw *r, size_t len, const int *fds, unsigned n)
{
    assert_true(try_raw(r, len, fds, n));
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
        hostile_check_good();
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

/* They wait for each other, in more than one go: what is behind one that is refused is not done, and what
 * came with it is closed. */
static void test_many_without_an_answer_and_one_that_is_refused(void **state)
{
    static const struct raw refused[] = {{99, 1, 0, {0}},                       /* by its form */
                                         {8, 1, 8, {0, 0, 0, 0, 128, 0, 0, 0}}, /* of a ring that runs */
                                         {18, 1, 8, {9, 0, 0, 0, 1, 0, 0, 0}}}; /* of no ring */
    unsigned fds_before = 0;
    (void)state;

    for (size_t i = 0; i < 2 * sizeof refused / sizeof *refused; i++) {
        const struct raw *bad = &refused[i / 2], call = {13, 1, 8, {0}};
        uint64_t before = xm_vhost_broken(vd.vhost);
        struct pollfd p = {.events = POLLIN};
        char byte;

        assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
        assert_int_equal(vf_start(&vf), 0);
        for (int k = 0; k < 40; k++) {
            int fd = eventfd(0, EFD_CLOEXEC);
            try_raw(&call, 20, &fd, 1); /* it may have hung up */
            close(fd);
            if (k == (i % 2 ? 30 : 39))
                send_raw(bad, 12 + bad->size, NULL, 0);
        }
        p.fd = vf.sock;
        if (poll(&p, 1, LIMIT_HANG_MS) != 1 || read(vf.sock, &byte, 1) > 0)
            fail_msg("message %zu was not refused", i);
        vf_disconnect(&vf);
        hostile_check_good();
        assert_int_equal(xm_vhost_broken(vd.vhost), before + 1);
        for (struct limit l = limit_start(5); !xm_vhost_stopped(vd.vhost) && limit_wait(&l);)
            ;
        if (i == 0)
            fds_before = open_fds();
        for (struct limit l = limit_start(5); open_fds() > fds_before && limit_wait(&l);)
            ;
        assert_true(open_fds() <= fds_before);
    }
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
    hostile_check_good();
    hostile_reset();
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
    hostile_check_good();
    assert_int_equal(xm_vhost_broken(vd.vhost), 0);
}

int main(void)
{
    xm_log_open("test", XM_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_messages, hostile_begin, hostile_end),
        cmocka_unit_test_setup_teardown(test_many_without_an_answer_and_one_that_is_refused, hostile_begin,
                                        hostile_end),
        cmocka_unit_test_setup_teardown(test_rings_lose_their_memory, hostile_begin, hostile_end),
        cmocka_unit_test_setup_teardown(test_log_too_short, hostile_begin, hostile_end),
        cmocka_unit_test(test_log_bounds),
        cmocka_unit_test_setup_teardown(test_half_a_message, hostile_begin, hostile_end),
    };
    return cmocka_run_group_tests_name("mirror_hostile_messages", tests, NULL, NULL);
}
