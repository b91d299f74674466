/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_overtaken.c: pages that are changed between their hash and their sending, by whom it may
 * be, arrive in the end; pages that were damaged on the way end the migration. */
#include "memxfer/memxfer.h"
#include "memxfer/pages.h"
#include "tests/unit/lib_ramchild.h"
#include "tests/unit/lib_ramwire.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define PAGES 512u

static struct world {
    struct ramchild child;
    struct xm_ram from, to;
    int to_fd;
    struct xm_ramsink *sink;
    struct ramwire wire;
    struct xm_precopy *precopy;
} w;

static atomic_ullong at; /* the page that on_the_way was about */
static atomic_int left;  /* how many frames it still acts on */

/* Fills its memory; then changes a page whenever it is told to. */
static void change_on_order(struct ramchild *c)
{
    for (uint64_t p = 0; p < c->size / XM_PAGE; p++)
        memset(c->ram + p * XM_PAGE, (int)(p | 1), XM_PAGE);
    atomic_store(&c->page->go, 0);
    while (!atomic_load(&c->page->quit)) {
        if (atomic_load(&c->page->go) == 1) {
            c->ram[c->page->arg[0] * XM_PAGE + 99]++;
            atomic_store(&c->page->go, 0);
        }
        usleep(20);
    }
}

/* Any thread. */
static void order(uint64_t page)
{
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

    pthread_mutex_lock(&one_at_a_time);
    w.child.page->arg[0] = page;
    atomic_store(&w.child.page->go, 1);
    while (atomic_load(&w.child.page->go))
        usleep(20);
    pthread_mutex_unlock(&one_at_a_time);
}

/* Its first page is a page of data: of all frames here. */
static bool its_turn(const struct xm_msg *m)
{
    if (atomic_fetch_sub(&left, 1) <= 0)
        return false;
    atomic_store(&at, m->offset >> XM_PAGE_SHIFT);
    return true;
}

static void guest_writes(const struct xm_msg *m)
{
    if (its_turn(m))
        order(m->offset >> XM_PAGE_SHIFT);
}

/* As a disk read into guest memory: marked when the request ends. */
static void driver_writes(const struct xm_msg *m)
{
    if (its_turn(m))
        w.from.block[0].map[m->offset + 77]++;
}

static void balloon_takes(const struct xm_msg *m)
{
    if (its_turn(m))
        fallocate(w.child.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)m->offset, XM_PAGE);
}

static int setup(void **state)
{
    struct xm_error e = {0};

    (void)state;
    memset(&w, 0, sizeof w);
    ramchild_need_tracking();
    ramchild_start(&w.child, PAGES * XM_PAGE, -1, change_on_order, 1);
    order(0); /* it has filled them */
    w.from.pid = w.child.pid;
    assert_int_equal(xm_ram_add(&w.from, "ram", w.child.memfd, atomic_load(&w.child.page->va), &e), 0);
    w.to_fd = memfd_create("to", MFD_CLOEXEC);
    assert_int_equal(ftruncate(w.to_fd, PAGES * XM_PAGE), 0);
    assert_int_equal(xm_ram_add(&w.to, "ram", w.to_fd, 0, &e), 0);
    w.sink = xm_ramsink_new(&w.to, &e);
    assert_non_null(w.sink);
    ramwire_start(&w.wire, w.sink, 1);
    w.precopy = xm_precopy_new(&w.from, &w.wire.transport, &e);
    if (!w.precopy)
        fail_msg("%s", e.text);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (w.precopy) {
        xm_precopy_free(w.precopy);
        ramwire_stop(&w.wire);
        xm_ramsink_free(w.sink);
        ramchild_end(&w.child);
        xm_ram_close(&w.from);
        xm_ram_close(&w.to);
        close(w.to_fd);
    }
    return 0;
}

static struct xm_round run(bool final)
{
    struct xm_error e = {0};
    struct xm_round r;

    if (xm_precopy_round(w.precopy, final, NULL, NULL, &r, &e) < 0)
        fail_msg("%s", e.text);
    return r;
}

/* A round whose first `frames` frames are interfered with. */
static struct xm_round run_with(void (*what)(const struct xm_msg *), int frames)
{
    atomic_store(&left, frames);
    w.wire.on_the_way = what;
    struct xm_round r = run(false);
    w.wire.on_the_way = NULL;
    return r;
}

static void ends_damaged(bool final)
{
    struct xm_error e = {0};

    assert_int_equal(xm_precopy_round(w.precopy, final, NULL, NULL, NULL, &e), -EBADMSG);
    assert_non_null(strstr(e.text, "damaged on the way"));
    assert_non_null(strstr(e.text, "RAM block ram"));
}

static void all_is_right(void)
{
    struct xm_digest sent, applied;

    assert_memory_equal(w.from.block[0].map, w.to.block[0].map, PAGES * XM_PAGE);
    xm_precopy_digest(w.precopy, &sent);
    ramwire_digest(&w.wire, &applied);
    assert_true(xm_digest_equal(&sent, &applied));
    assert_int_equal(atomic_load(&w.wire.refused), 0);
}

static void a_page_that_the_guest_changes_is_sent_again(void **state)
{
    (void)state;
    struct xm_round r = run_with(guest_writes, 3);
    assert_int_equal(r.pages_data, PAGES);
    assert_int_equal(r.pages_overtaken, 3);
    assert_int_equal(atomic_load(&w.wire.direct), PAGES / PAGES_BATCH);
    r = run_with(guest_writes, 1);
    assert_int_equal(r.pages_dirty, 3); /* and not all that were in a frame with it */
    assert_int_equal(r.pages_overtaken, 1);
    r = run(true);
    assert_int_equal(r.pages_data, 1);
    assert_int_equal(r.pages_overtaken, 0);
    all_is_right();
}

static void a_damaged_page_ends_it(void **state)
{
    (void)state;
    atomic_store(&w.wire.damage, true);
    struct xm_round r = run(false);
    assert_int_equal(r.pages_overtaken, 1);
    assert_int_equal(ramwire_digest_status(&w.wire), -EBADMSG);
    ends_damaged(true);
}

static void damage_is_mended_and_not_forgotten(void **state)
{
    (void)state;
    run(false);
    order(5);
    atomic_store(&w.wire.damage, true);
    struct xm_round r = run(false);
    assert_int_equal(r.pages_overtaken, 1);
    r = run(false);
    assert_int_equal(r.pages_data, 1); /* though nobody wrote to it */
    assert_memory_equal(w.from.block[0].map, w.to.block[0].map, PAGES * XM_PAGE);
    run(false);
    ends_damaged(true);
}

static void in_the_last_round_nothing_is_forgiven(void **state)
{
    (void)state;
    run(false);
    order(7);
    order(9);
    atomic_store(&w.wire.damage, true);
    ends_damaged(true);
    assert_int_equal(ramwire_digest_status(&w.wire), -EBADMSG);
}

static void a_disk_read_that_ends_late_explains_its_page(void **state)
{
    (void)state;
    struct xm_round r = run_with(driver_writes, 1);
    assert_int_equal(r.pages_overtaken, 1);
    r = run(false);
    assert_int_equal(r.pages_data, 1);
    run(false);
    xm_bitmap_set(xm_ram_bitmap(&w.from, w.child.memfd), atomic_load(&at), 1); /* the request has ended */
    r = run(true);
    assert_int_equal(r.pages_data, 1);
    all_is_right();
}

static void a_balloon_explains_its_page(void **state)
{
    (void)state;
    struct xm_round r = run_with(balloon_takes, 1);
    assert_int_equal(r.pages_overtaken, 1);
    run(false);
    run(true);
    all_is_right();
}

static void a_peer_without_the_feature_gets_copies(void **state)
{
    (void)state;
    w.wire.transport.features = 0;
    run_with(guest_writes, 1);
    assert_int_equal(atomic_load(&w.wire.direct), 0);
    order(3);
    run(true);
    all_is_right();
}

/* Memory that could become smaller under us is not read through a mapping. */
static void unsealed_memory_is_copied(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct ramchild c = {0};
    struct xm_ram from = {0}, to = {0};
    struct ramwire wire;
    ramchild_need_tracking();
    int loose = memfd_create("loose", MFD_CLOEXEC), fd = memfd_create("to", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, PAGES * XM_PAGE), 0);
    ramchild_start(&c, PAGES * XM_PAGE, loose, change_on_order, 1);
    from.pid = c.pid;
    assert_int_equal(xm_ram_add(&from, "ram", loose, atomic_load(&c.page->va), &e), 0);
    assert_int_equal(xm_ram_add(&to, "ram", fd, 0, &e), 0);
    struct xm_ramsink *sink = xm_ramsink_new(&to, &e);
    ramwire_start(&wire, sink, 1);
    struct xm_precopy *p = xm_precopy_new(&from, &wire.transport, &e);
    assert_non_null(p);
    assert_int_equal(xm_precopy_round(p, false, NULL, NULL, NULL, &e), 0);
    assert_int_equal(xm_precopy_round(p, true, NULL, NULL, NULL, &e), 0);
    assert_int_equal(atomic_load(&wire.direct), 0);
    xm_precopy_free(p);
    ramwire_stop(&wire);
    xm_ramsink_free(sink);
    ramchild_end(&c); /* closes `loose` */
    xm_ram_close(&from);
    xm_ram_close(&to);
    close(fd);
}

/* What a balloon or a hole punch leaves is not populated again by being looked at. */
static void holes_stay_holes(void **state)
{
    (void)state;
    struct stat st;
    run(false);
    for (uint64_t p = 64; p < 128; p += 2) { /* written to, and taken away */
        order(p);
        assert_int_equal(fallocate(w.child.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                   (off_t)(p * XM_PAGE), XM_PAGE),
                         0);
        xm_bitmap_set(xm_ram_bitmap(&w.from, w.child.memfd), p, 1);
    }
    struct xm_round r = run(false);
    assert_int_equal(r.pages_zero, 32);
    assert_int_equal(r.pages_data, 0);
    run(true);
    assert_int_equal(fstat(w.child.memfd, &st), 0);
    assert_int_equal(st.st_blocks / 8, PAGES - 32);
    assert_int_equal(fstat(w.to_fd, &st), 0);
    assert_int_equal(st.st_blocks / 8, PAGES - 32);
    all_is_right();
}

/* ---- the receiving side alone ---- */

static struct {
    int status;
    uint32_t len;
    uint8_t bits;
} answer;

static void note_answer(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    (void)rx;
    answer.status = status;
    answer.len = len;
    answer.bits = len ? *(const uint8_t *)reply : 0;
}

/* Pages 5 and 6, said to be full of 0xaa and 0xbb, that come as `five` and `six`. */
static void bring(struct xm_ramsink *s, uint64_t seq, uint64_t round, int five, int six)
{
    static uint8_t said[2][XM_PAGE], head[64];
    struct xm_placer p = xm_ramsink_placer(s);
    struct iovec piece[XM_PIECES_MAX];
    const uint32_t table[4] = {1, 2, 0, 2};

    memset(said[0], 0xaa, XM_PAGE);
    memset(said[1], 0xbb, XM_PAGE);
    const uint64_t hash[2] = {xm_hash(said[0], XM_PAGE), xm_hash(said[1], XM_PAGE)};
    memset(head, 0, sizeof head);
    memcpy(head, table, sizeof table);
    memcpy(head + sizeof table, hash, sizeof hash);
    struct xm_rx rx = {.hdr = {.type = XM_FRAME_RAM_PAGES,
                               .flags = XM_FLAG_HEAD,
                               .offset = 5 * XM_PAGE,
                               .extent = 2 * XM_PAGE,
                               .length = 64 + 2 * XM_PAGE,
                               .seq = seq,
                               .after = round},
                       .payload = head,
                       .done = note_answer};
    struct xm_error e = {0};
    assert_int_equal(xm_ramsink_check(s, &rx.hdr, &e), 0);
    assert_int_equal(p.head(p.ctx, &rx.hdr), 64);
    if (p.place(p.ctx, &rx, piece)) {
        assert_int_equal(piece[0].iov_len, 2 * XM_PAGE);
        memset(piece[0].iov_base, five, XM_PAGE);
        memset((uint8_t *)piece[0].iov_base + XM_PAGE, six, XM_PAGE);
    }
    memset(&answer, 0xff, sizeof answer);
    xm_ramsink_frame(s, &rx);
}

static void answers(uint32_t len, uint8_t bits)
{
    assert_int_equal(answer.status, 0);
    assert_int_equal(answer.len, len);
    assert_int_equal(answer.bits, bits);
}

static void torn_pages_are_told_and_no_vm_runs_on_them(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct xm_ram ram = {0};
    struct ramwire wire = {0};
    int fd = memfd_create("to", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, 16 * XM_PAGE), 0);
    assert_int_equal(xm_ram_add(&ram, "ram", fd, 0, &e), 0);
    wire.sink = xm_ramsink_new(&ram, &e);
    bring(wire.sink, 1, 1, 0xaa, 0xbb);
    answers(0, 0);
    bring(wire.sink, 2, 1, 0xaa, 0xbc);
    answers(1, 2);
    bring(wire.sink, 2, 1, 0xaa,
          0xbb); /* its link had failed: it is not received again, and answered alike */
    answers(1, 2);
    bring(wire.sink, 3, 2, 0xcc, 0xdd);
    answers(1, 3);
    assert_int_equal(ramwire_digest_status(&wire), -EBADMSG);
    xm_ramsink_free(wire.sink);

    wire.sink = xm_ramsink_new(&ram, &e);
    bring(wire.sink, 1, 1, 0xab, 0xbb);
    answers(1, 1);
    bring(wire.sink, 2, 2, 0xaa, 0xbb);
    answers(0, 0);
    assert_int_equal(ramwire_digest_status(&wire), 0);
    bring(wire.sink, 2, 2, 0xcc, 0xdd); /* by a link that was given up: answered, and not taken */
    answers(0, 0);
    bring(wire.sink, 3, 2, 0xaa, 0xbb); /* of a guest that goes on at its source */
    assert_int_equal(answer.status, -EPROTO);
    xm_ramsink_free(wire.sink);
    xm_ram_close(&ram);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_page_that_the_guest_changes_is_sent_again, setup, teardown),
        cmocka_unit_test_setup_teardown(a_damaged_page_ends_it, setup, teardown),
        cmocka_unit_test_setup_teardown(damage_is_mended_and_not_forgotten, setup, teardown),
        cmocka_unit_test_setup_teardown(in_the_last_round_nothing_is_forgiven, setup, teardown),
        cmocka_unit_test_setup_teardown(a_disk_read_that_ends_late_explains_its_page, setup, teardown),
        cmocka_unit_test_setup_teardown(a_balloon_explains_its_page, setup, teardown),
        cmocka_unit_test_setup_teardown(a_peer_without_the_feature_gets_copies, setup, teardown),
        cmocka_unit_test_setup_teardown(holes_stay_holes, setup, teardown),
        cmocka_unit_test(unsealed_memory_is_copied),
        cmocka_unit_test(torn_pages_are_told_and_no_vm_runs_on_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
