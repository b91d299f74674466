/* SPDX-License-Identifier: MIT */
/* A disk whose file system is full (a tmpfs of our own), behind the whole vhost-user device: the guest's
 * write waits for room, and has no error. mirror/room.c. */
#include "tests/unit/lib_disk.h"
#include "tests/unit/lib_vhost_disk.h"
#include "tests/unit/lib_vhost_front.h"
#include "mirror/vhost_ring.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <linux/vhost_types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OK    VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR
#define ROOM  (4u << 20)
#define BLOCK 65536u

static struct vdisk vd;
static struct vf vf;
static bool up;
static char ballast[256];

/* All the room there is goes to another file. */
static void fill_up(void)
{
    static char block[4096];
    int fd = open(ballast, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    memset(block, 1, sizeof block);
    while (write(fd, block, sizeof block) > 0) {
    }
    close(fd);
}

static void begin(unsigned queues, uint64_t without)
{
    snprintf(ballast, sizeof ballast, "%s/ballast", lib_tmpfs("small", ROOM));
    const char *why = vd_open(&vd, "small/disk", queues);
    if (why)
        fail_msg("%s", why);
    up = true;
    assert_int_equal(vf_init(&vf, queues, 64), 0);
    assert_int_equal(vf_connect(&vf, vd.path, without), 0);
    assert_int_equal(vf_start(&vf), 0);
    memset(vf.mem + VF_DATA, 0x5a, 4 * BLOCK);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_OUT, 0, VF_DATA, BLOCK), OK);
    fill_up();
}

static int end(void **state)
{
    if (up) {
        vf_free(&vf);
        vd_close(&vd);
    }
    up = false;
    return lib_disk_clean(state);
}

static void write_block(unsigned queue, unsigned n)
{
    struct vf_seg s = {VF_DATA, BLOCK, false};

    assert_true(vf_request(&vf, queue, VIRTIO_BLK_T_OUT, n * (uint64_t)BLOCK / 512, &s, 1, NULL) >= 0);
    vf_kick(&vf, queue);
}

static unsigned waiting(void)
{
    struct xm_disk_status st;

    xm_disk_status(vd.disk, &st);
    return st.waiting;
}

static void until_waiting(unsigned n)
{
    for (struct limit l = limit_start(10); waiting() != n && limit_wait(&l);)
        ;
    assert_int_equal(waiting(), n);
}

/* So many answers come, and each is this. */
static void answers(unsigned queue, unsigned n, uint8_t want)
{
    uint8_t status;

    for (struct limit l = limit_start(10); n && limit_wait(&l);) {
        if (!vf_used(&vf, queue, NULL, &status, NULL, NULL)) {
            vf_wait(&vf, queue, 100);
            continue;
        }
        assert_int_equal(status, want);
        n--;
    }
    assert_int_equal(n, 0);
}

static void none_is_answered(unsigned queue)
{
    assert_int_equal(vf_used(&vf, queue, NULL, NULL, NULL, NULL), 0);
}

/* What broke: the guest had an I/O error from each. */
static void writes_wait_until_there_is_room(void **state)
{
    (void)state;
    begin(1, 0);
    for (unsigned i = 1; i < 4; i++)
        write_block(0, i);
    until_waiting(3);
    none_is_answered(0);
    /* What needs no room goes on. */
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_IN, 0, VF_DATA + BLOCK, BLOCK), OK);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_OUT, 0, VF_DATA, BLOCK), OK);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0), OK);
    until_waiting(3);
    unlink(ballast);
    answers(0, 3, OK);
    assert_int_equal(waiting(), 0);
    for (unsigned i = 1; i < 4; i++) {
        memset(vf.mem + VF_DATA + BLOCK, 0, BLOCK);
        assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_IN, i * (uint64_t)BLOCK / 512, VF_DATA + BLOCK, BLOCK),
                         OK);
        assert_memory_equal(vf.mem + VF_DATA, vf.mem + VF_DATA + BLOCK, BLOCK);
    }
}

/* Room for one is no room for all: the others wait again. */
static void who_finds_none_waits_again(void **state)
{
    struct stat st;
    (void)state;

    begin(1, 0);
    for (unsigned i = 1; i < 4; i++)
        write_block(0, i);
    until_waiting(3);
    assert_int_equal(stat(ballast, &st), 0);
    assert_int_equal(truncate(ballast, st.st_size - BLOCK), 0);
    answers(0, 1, OK);
    until_waiting(2);
    none_is_answered(0);
    unlink(ballast);
    answers(0, 2, OK);
}

/* QEMU stops the rings of a guest that is paused, or powers off, and waits for that. */
static void a_ring_that_stops_waits_for_no_room(void **state)
{
    uint32_t base;
    (void)state;

    begin(2, 0);
    write_block(0, 1);
    write_block(1, 2);
    until_waiting(2);
    assert_int_equal(vf_stop_one(&vf, 0, &base), 0);
    assert_int_equal(waiting(), 2); /* the other ring's, and the one that is kept */
    none_is_answered(0);
    assert_int_equal(vf_stop(&vf), 0);
    assert_int_equal(waiting(), 2);
    none_is_answered(1);
    /* The guest goes on: they are in the in-flight region. */
    assert_int_equal(vf_start(&vf), 0);
    until_waiting(2);
    unlink(ballast);
    answers(0, 1, OK);
    answers(1, 1, OK);
}

static void a_front_end_that_goes_does_not_wait(void **state)
{
    (void)state;
    begin(1, 0);
    write_block(0, 1);
    until_waiting(1);
    vf_disconnect(&vf);
    until_waiting(0);
    assert_int_equal(vf_connect(&vf, vd.path, 0), 0);
    assert_int_equal(vf_start(&vf), 0);
    until_waiting(1);
    unlink(ballast);
    answers(0, 1, OK);
}

static void *stop_the_ring(void *unused)
{
    (void)unused;
    return vf_stop(&vf) ? &vf : NULL;
}

/* A flush is not tried again: it has its error, also while its ring stops. Left in the in-flight region it
 * would have been lost by a move. */
static void a_flush_has_its_error(void **state)
{
    pthread_t stops;
    void *failed;
    (void)state;

    begin(1, 0);
    vd_gate(&vd, true);
    vd_fail_flush(&vd, ENOSPC);
    assert_true(vf_request(&vf, 0, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL) >= 0);
    vf_kick(&vf, 0);
    for (struct limit l = limit_start(10); vd_held(&vd) != 1 && limit_wait(&l);)
        ;
    assert_int_equal(pthread_create(&stops, NULL, stop_the_ring, NULL), 0);
    /* Only the flush is left of «rings that run + requests in flight». */
    for (struct limit l = limit_start(10);
         __atomic_load_n(&vd.vhost->any.busy, __ATOMIC_ACQUIRE) != 1 && limit_wait(&l);)
        ;
    vd_gate(&vd, false);
    pthread_join(stops, &failed);
    assert_null(failed);
    answers(0, 1, IOERR);
}

struct quiesce {
    sem_t done;
    int status;
};

static void quiesced(void *arg, int status, const char *why)
{
    struct quiesce *q = arg;

    (void)why;
    q->status = status;
    sem_post(&q->done);
}

static void quiesce(void *arg)
{
    xm_disk_quiesce(vd.disk, quiesced, arg);
}

static int try_quiesce(void)
{
    struct quiesce q;

    sem_init(&q.done, 0, 0);
    xm_mailbox_call(&vd.engine->mailbox, quiesce, &q);
    sem_wait(&q.done);
    return q.status;
}

/* The switch of a migration: the guest stands, its rings are stopped; what has not been written would be lost
 * where it goes. */
static void a_guest_whose_write_waited_is_not_taken_elsewhere(void **state)
{
    (void)state;
    begin(1, 0);
    write_block(0, 1);
    until_waiting(1);
    assert_int_equal(vf_stop(&vf), 0);
    assert_int_equal(try_quiesce(), -ENOSPC);
    unlink(ballast);
    assert_int_equal(try_quiesce(), -ENOSPC);
    assert_int_equal(vf_start(&vf), 0);
    answers(0, 1, OK);
    assert_int_equal(vf_stop(&vf), 0);
    assert_int_equal(try_quiesce(), -EINVAL); /* nothing is mirrored here: it went on to ask that */
}

/* Of two rings one is stopped, and the other still has something to write, as while QEMU stops them one after
 * the other. */
static void what_another_ring_writes_hides_nothing(void **state)
{
    uint32_t base;
    (void)state;

    begin(2, 0);
    write_block(0, 1);
    until_waiting(1);
    assert_int_equal(vf_stop_one(&vf, 0, &base), 0);
    assert_int_equal(vf_do(&vf, 1, VIRTIO_BLK_T_OUT, 0, VF_DATA, BLOCK), OK);
    assert_int_equal(vf_stop(&vf), 0);
    assert_int_equal(try_quiesce(), -ENOSPC);
    assert_int_equal(vf_start(&vf), 0);
    unlink(ballast);
    answers(0, 1, OK);
    assert_int_equal(vf_stop(&vf), 0);
    assert_int_equal(try_quiesce(), -EINVAL);
}

/* A table of the guest's memory comes while its rings run. What broke: the write had an I/O error. */
static void other_memory_is_no_error(void **state)
{
    (void)state;
    begin(1, 0);
    write_block(0, 1);
    until_waiting(1);
    assert_int_equal(vf_send_mem_table(&vf), 0);
    none_is_answered(0);
    assert_int_equal(vf_do(&vf, 0, VIRTIO_BLK_T_OUT, 0, VF_DATA, BLOCK), OK);
    until_waiting(1);
    unlink(ballast);
    answers(0, 1, OK);
}

int main(void)
{
#define T(f) cmocka_unit_test_teardown(f, end)
    const struct CMUnitTest tests[] = {
        T(writes_wait_until_there_is_room),
        T(who_finds_none_waits_again),
        T(a_ring_that_stops_waits_for_no_room),
        T(a_front_end_that_goes_does_not_wait),
        T(a_flush_has_its_error),
        T(a_guest_whose_write_waited_is_not_taken_elsewhere),
        T(what_another_ring_writes_hides_nothing),
        T(other_memory_is_no_error),
    };
    return cmocka_run_group_tests_name("mirror_room", tests, NULL, NULL);
}
