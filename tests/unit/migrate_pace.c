/* SPDX-License-Identifier: MIT */
/* Whether the copy of the disks comes to an end beside a guest that writes. Time and disks are numbers. */
#include "migrate/pace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MB 1000000ull

static struct pace pace;
static struct pace_sample now;

static int set_up(void **state)
{
    (void)state;
    pace_reset(&pace);
    now = (struct pace_sample){.at = 77 * XM_NS_PER_S, .left = 100000 * MB};
    return 0;
}

/* So long: the second side takes `taken` a second, of which `mirrored` are guest writes, and the guest makes
 * `undone` absent again. */
static void goes(unsigned seconds, uint64_t taken, uint64_t mirrored, uint64_t undone)
{
    for (unsigned i = 0; i < 2 * seconds; i++) {
        now.at += XM_NS_PER_S / 2;
        now.taken += taken / 2;
        now.guest += (mirrored + undone) / 2;
        now.left = now.left + undone / 2 - (taken - mirrored) / 2;
        pace_look(&pace, &now);
    }
}

static void must_be_about(double value, double want)
{
    if (value < want * 0.99 || value > want * 1.01)
        fail_msg("%f, should be %f", value, want);
}

static void an_idle_guest(void **state)
{
    (void)state;
    assert_true(pace_eta(&pace) < 0);
    assert_true(pace_rate(&pace) == 0);
    goes(2, 100 * MB, 0, 0);
    must_be_about(pace_eta(&pace), (double)now.left / 100e6); /* before a window is over */
    must_be_about(pace_rate(&pace), 100e6);
    goes(60, 100 * MB, 0, 0);
    must_be_about(pace_eta(&pace), (double)now.left / 100e6);
    assert_false(pace_outrun(&pace));
}

/* What broke: the time left was what is left by the link's rate, and stayed the same for ever. */
static void a_guest_that_writes_takes_its_share(void **state)
{
    (void)state;
    goes(100, 100 * MB, 40 * MB, 30 * MB);
    assert_false(pace_outrun(&pace));
    must_be_about(pace_eta(&pace), (double)now.left / 30e6);
    must_be_about(pace.needed, 70e6);
    must_be_about(pace.had, 100e6);
}

static void a_guest_that_outruns_it_is_told_after_its_patience(void **state)
{
    (void)state;
    goes(6, 100 * MB, 10 * MB, 85 * MB);
    assert_true(pace_outrun(&pace));
    assert_false(pace_stuck(&pace));
    goes(20, 100 * MB, 10 * MB, 95 * MB);
    assert_false(pace_stuck(&pace));
    assert_true(pace_eta(&pace) < 0);
    goes(10, 100 * MB, 10 * MB, 95 * MB);
    assert_true(pace_stuck(&pace));
}

/* Nothing goes absent again, but guest writes take all of the link. */
static void a_copy_that_starves(void **state)
{
    (void)state;
    goes(40, 100 * MB, 100 * MB, 0);
    assert_true(pace_stuck(&pace));
    assert_true(pace_eta(&pace) < 0);
}

static void a_guest_that_rests_now_and_then(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++) {
        goes(25, 100 * MB, 10 * MB, 95 * MB);
        assert_true(pace_outrun(&pace));
        assert_false(pace_stuck(&pace));
        goes(10, 100 * MB, 10 * MB, 10 * MB);
        assert_false(pace_outrun(&pace));
    }
}

/* Links that are down, storage that hangs: that is not the guest's doing, and others judge it. */
static void nothing_moves(void **state)
{
    (void)state;
    goes(100, 0, 0, 50 * MB);
    assert_false(pace_outrun(&pace));
    assert_true(pace_eta(&pace) < 0);
    goes(100, 0, 0, 0);
    assert_false(pace_outrun(&pace));
}

/* What broke: half of the image was a hole, and the copy stood at 20 % a second before its end. */
static void holes_are_no_work(void **state)
{
    struct pace_disk d = {.size = 1000 * MB, .allocated = 400 * MB, .chunk = MB, .missing = 1000 * MB};

    (void)state;
    assert_int_equal(pace_disk_total(&d), 400 * MB);
    assert_int_equal(pace_disk_left(&d), 400 * MB);
    d.copied = 200 * MB; /* the front half; all holes are behind it */
    d.missing = 800 * MB;
    assert_int_equal(pace_disk_left(&d), 200 * MB);
    d.again = 50 * MB;
    assert_int_equal(pace_disk_left(&d), 250 * MB);
    d.again = 0;
    d.missing = 30 * MB; /* holes first */
    assert_int_equal(pace_disk_left(&d), 30 * MB);
    d.copied = 500 * MB; /* the guest has written more: never all of it before it is all there */
    assert_int_equal(pace_disk_left(&d), MB);
    d.missing = 0;
    assert_int_equal(pace_disk_left(&d), 0);
    /* What broke: a new, empty disk counted whole, was copied at once, and all seemed nearly done. */
    d = (struct pace_disk){.size = 1000 * MB, .chunk = MB, .missing = 1000 * MB};
    assert_int_equal(pace_disk_total(&d), MB);
    assert_int_equal(pace_disk_left(&d), MB);
    d.missing = 0;
    assert_int_equal(pace_disk_left(&d), 0);
    d = (struct pace_disk){.size = 1000 * MB, .missing = 700 * MB, .copied = 100 * MB};
    assert_int_equal(pace_disk_total(&d), 1000 * MB);
    assert_int_equal(pace_disk_left(&d), 700 * MB); /* not known */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(holes_are_no_work, set_up),
        cmocka_unit_test_setup(an_idle_guest, set_up),
        cmocka_unit_test_setup(a_guest_that_writes_takes_its_share, set_up),
        cmocka_unit_test_setup(a_guest_that_outruns_it_is_told_after_its_patience, set_up),
        cmocka_unit_test_setup(a_copy_that_starves, set_up),
        cmocka_unit_test_setup(a_guest_that_rests_now_and_then, set_up),
        cmocka_unit_test_setup(nothing_moves, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
