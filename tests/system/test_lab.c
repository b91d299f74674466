/* SPDX-License-Identifier: MIT */
/* The lab itself: nothing of a killed or refused `up` stands in the way of the next, and `down` leaves
 * nothing. */
#include "tests/system/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

LAB_GROUP("lab", "XM_LAB_VM=no")

static void nothing_must_be_left(void)
{
    assert_int_equal(sh(NULL, 5, "ip netns list | grep -q '^%s-'", lab_prefix()), 1);
    /* But what goes by itself when somebody else's mount namespace does. */
    assert_int_equal(
        sh(NULL, 5, "losetup -l -n -O AUTOCLEAR,BACK-FILE | grep -q '^ *0 .*/%s/'", lab_prefix()), 1);
    assert_int_equal(sh(NULL, 5, "grep -q '/%s/' /proc/mounts", lab_prefix()), 1);
    assert_int_equal(sh(NULL, 5, "test -e %s || test -e %s", lab_run_dir(), lab_store_dir()), 1);
}

static void down(void)
{
    char *out = NULL;
    int code = sh(&out, 30, "tests/system/lab.sh down");

    if (code != 0)
        fprintf(stderr, "down -> %d: %s\n", code, out ? out : "");
    free(out);
    assert_int_equal(code, 0);
}

static void a_second_up_refuses(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(sh(NULL, 20, "XM_LAB_VM=no tests/system/lab.sh up"), 1);
    assert_int_equal(xmigrate_run("a", 0, NULL, "list"), 0); /* and does no harm to the first */
}

static void a_killed_up_is_cleaned_up(void **state)
{
    static const char *const after[] = {"0.1", "0.4", "1"};
    char *out = NULL;
    int code;

    (void)state;
    need_lab();
    for (int i = 0; i < 3; i++) {
        down();
        nothing_must_be_left();
        sh(NULL, 30, "XM_LAB_VM=no timeout -s KILL %s tests/system/lab.sh up", after[i]);
        code = sh(&out, 60, "XM_LAB_VM=no tests/system/lab.sh up");
        if (code != 0)
            fprintf(stderr, "killed after %s s, then: %s\n", after[i], out ? out : "");
        free(out);
        assert_int_equal(code, 0);
    }
    assert_int_equal(xmigrate_run("a", 0, NULL, "list"), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "list"), 0);
}

static void down_leaves_nothing_and_can_be_repeated(void **state)
{
    (void)state;
    need_lab();
    down();
    nothing_must_be_left();
    down();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_up_refuses),
        cmocka_unit_test(a_killed_up_is_cleaned_up),
        cmocka_unit_test(down_leaves_nothing_and_can_be_repeated),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
