/* SPDX-License-Identifier: MIT */
/* A transition that is not in the table is refused, and the state stays: it used to be logged, and done. */
#include "migrate/destination.h"
#include "migrate/source.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

static void the_source_refuses(void **state)
{
    struct machine vm = {.spec.name = "web1"};
    struct source m = {.machine = &vm, .job = "1"};

    (void)state;
    for (int from = 0; from < SOURCE_STATES; from++) {
        bool ends = from == SOURCE_DONE || from == SOURCE_FAILED || from == SOURCE_UNKNOWN;
        m.state = (enum source_state)from;
        assert_int_equal(source_set_state(&m, SOURCE_PREPARE), -EPROTO);
        assert_int_equal(m.state, from);
        assert_true(strstr(m.error.text, source_step_name((enum source_state)from)) != NULL);
        /* What has been given away, or was over, does not fail afterwards. */
        int r = source_set_state(&m, SOURCE_FAILED);
        assert_int_equal(r, ends || from == SOURCE_SETTLE ? -EPROTO : 0);
        assert_int_equal(m.state, r ? from : SOURCE_FAILED);
    }
}

static void the_destination_refuses(void **state)
{
    struct machine vm = {.spec.name = "web1"};
    struct destination dst = {.machine = &vm, .job = "1", .source = "hosta"};
    struct xm_error e = {0};

    (void)state;
    for (int from = 0; from < DEST_STATES; from++) {
        dst.state = (enum dest_state)from;
        assert_int_equal(destination_set_state(&dst, DEST_WAITING, &e), -EPROTO);
        assert_int_equal(dst.state, from);
        /* The guest that runs here is not given up by anything. */
        int r = destination_set_state(&dst, DEST_FAILED, &e);
        assert_int_equal(r, from == DEST_RUNNING || from == DEST_FAILED ? -EPROTO : 0);
    }
    dst.state = DEST_LOADING;
    assert_int_equal(destination_set_state(&dst, DEST_RUNNING, &e), -EPROTO); /* nobody has given it to us */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_source_refuses),
        cmocka_unit_test(the_destination_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
