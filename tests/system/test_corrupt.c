/* SPDX-License-Identifier: MIT */
/* A man in the middle of the links flips one bit: the frame's checksum finds it, the migration ends, the VM
 * is safe at the source. */
#include "tests/system/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

LAB_GROUP("corrupt", "XM_LAB_PROXY=yes" LAB_SMALL)

static void move_through(const char *harm, const char *after, int expected)
{
    struct job proxy;
    char *out = NULL;
    json_t *o;
    int code;

    job_start(&proxy, "%s",
              on_host("b", "build/guest/xm-client proxy 10.8.0.2,10.1.0.2,10.2.0.2 7070 %s %s", harm, after));
    assert_true(wait_until(10, "ip netns exec %s-hostb ss -ltn | grep -q 10.2.0.2:7070", lab_prefix()));
    code = xmigrate_run("a", expected, NULL, "--json --with-storage web1 hostb");
    job_signal(&proxy, SIGTERM);
    assert_int_equal(job_end(&proxy, 10, &out), 0);
    o = last_json(out);
    free(out);
    /* The test would prove nothing if the frames did not pass here. */
    assert_true(number(o, "links") >= 2);
    assert_true(number(o, "harms") == (strcmp(harm, "none") ? 1 : 0));
    json_decref(o);
    assert_int_equal(code, expected);
}

static void a_flipped_bit_ends_it_safely(void **state)
{
    (void)state;
    need_lab();
    move_through("corrupt", "40M", 1);
    vm_must_run_at("a", "web1");
    guest_verify();
    host_must_be_clean("b");
}

/* Near the end, in the memory's rounds. */
static void a_late_flipped_bit_too(void **state)
{
    (void)state;
    need_lab();
    move_through("corrupt", "460M", 1);
    vm_must_run_at("a", "web1");
    guest_verify();
    host_must_be_clean("b");
}

static void an_honest_middleman_is_no_harm(void **state)
{
    (void)state;
    need_lab();
    move_through("none", "0", 0);
    vm_must_run_at("b", "web1");
    guest_verify();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flipped_bit_ends_it_safely),
        cmocka_unit_test(a_late_flipped_bit_too),
        cmocka_unit_test(an_honest_middleman_is_no_harm),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
