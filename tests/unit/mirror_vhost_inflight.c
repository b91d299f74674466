/* SPDX-License-Identifier: MIT */
/* Back ends and connections that end under a guest's requests: by the in-flight region each is done once
 * more, answered once, and none is forgotten. */
#include "tests/unit/lib_vhost_pair.h"
#include "mirror/vhost_inflight.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void wait_stopped(struct xm_vhost *v)
{
    for (struct limit l = limit_start(5); !xm_vhost_stopped(v) && limit_wait(&l);)
        ;
    assert_true(xm_vhost_stopped(v));
}

/* ---- reconnecting ---- */

/* In the middle of a ring of 256 on a queue that is ready. */
static void resubmits_after_a_hang_up(void)
{
    unsigned answered[64] = {0}, n = 0;

    for (unsigned i = 0; i < 32; i++) {
        pair_fill(vf.mem + VF_DATA + i * 4096, 4096, i);
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
    pair_wait_held(16);
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
    pair_check_basic(&vf);
}

static void test_resubmits_after_a_hang_up(void **state)
{
    (void)state;
    pair_begin(1, 256, 0);
    resubmits_after_a_hang_up();
}

/* QEMU 10.0.13 asks for an in-flight region of `queue-size` (128), while its guest's rings have 1024 whatever
 * that says. */
static void test_region_serves_rings_larger_than_asked_for(void **state)
{
    (void)state;
    pair_connect(2, 256, 0);
    vf.inflight_asked = 128;
    assert_int_equal(vf_start(&vf), 0);
    resubmits_after_a_hang_up();
}

/* An earlier version of ours made regions as large as they were asked for; its QEMU lives on. */
static void test_region_of_an_earlier_version(void **state)
{
    (void)state;
    pair_connect(2, 256, 0);
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
                pair_fill(f.mem + s.off, 4096, seq);
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
        pair_fill(want, sizeof want, version[b]);
        assert_int_equal(vf_do(&f, 0, T_IN, b * 8ull, VF_DATA, 4096), OK);
        assert_memory_equal(f.mem + VF_DATA, want, 4096);
    }
    vf_free(&f);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
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
        cmocka_unit_test_teardown(test_resubmits_after_a_hang_up, pair_end),
        cmocka_unit_test_teardown(test_region_serves_rings_larger_than_asked_for, pair_end),
        cmocka_unit_test_teardown(test_region_of_an_earlier_version, pair_end),
        cmocka_unit_test_teardown(test_survives_kills, pair_end),
        cmocka_unit_test(test_inflight_new_region_takes_the_rings_index),
        cmocka_unit_test(test_inflight_repairs_the_last_batch),
        cmocka_unit_test(test_inflight_keeps_order_and_forgets_batches_not_told),
        cmocka_unit_test(test_inflight_of_a_hostile_front_end),
    };
    return cmocka_run_group_tests_name("mirror_vhost_inflight", tests, NULL, NULL);
}
