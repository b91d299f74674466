/* SPDX-License-Identifier: MIT */
/* The small guest's own judgement (small.h): a guest that ended at once finds all that it had been told to be
 * done, and one that is given an old copy of a disk says so. */
#include "tests/system/harness.h"
#include "tests/system/small.h"

LAB_GROUP("small", "XM_LAB_VM=none")

static struct small guest;

static void stop(const char *name)
{
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force %s", name), 0);
    small_read(&guest);
}

static void start_again(const char *name)
{
    const char *why;

    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s", name), 0);
    if ((why = small_ready(&guest, 'a')))
        fail_msg("%s", why);
}

static void what_was_acknowledged_is_found_again(void **state)
{
    static const struct small_options usual;
    (void)state;

    need_lab();
    small_must_start(&guest, "a", "vm1", &usual);
    for (unsigned n = 2; n < 5; n++) {
        stop("vm1");
        start_again("vm1");
        assert_int_equal(guest.boots, n);
        small_must_be_whole(&guest, "a");
    }
    for (unsigned i = 0; i < SMALL_PARTS; i++)
        assert_true(guest.kept[i].said && guest.was_synced[i] && guest.was_acked[i] >= guest.was_synced[i]);
    stop("vm1");
}

/* Of the second disk, as it was a moment ago. */
static void an_old_disk_is_seen(void **state)
{
    char path[512];
    const char *lost;
    (void)state;

    need_lab();
    disk_path("a", "vm1", "two", path, sizeof path);
    assert_int_equal(sh(NULL, 10, "cp %s %s/old.img", path, lab_run_dir()), 0);
    start_again("vm1");
    small_must_be_whole(&guest, "a");
    stop("vm1");
    assert_int_equal(sh(NULL, 10, "cp %s/old.img %s", lab_run_dir(), path), 0);
    start_again("vm1");
    lost = small_lost(&guest, true);
    if (!lost)
        fail_msg("it says nothing of its old disk");
    print_message("%s\n", lost);
    stop("vm1");
    small_free(&guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_acknowledged_is_found_again),
        cmocka_unit_test(an_old_disk_is_seen),
    };
    return cmocka_run_group_tests_name("the small guest", tests, lab_setup, lab_teardown);
}
