/* SPDX-License-Identifier: MIT */
/* The guest is stopped for the switch-over, and then something hangs or dies: a destination costs the guest
 * its downtime budget and the grace, not link_timeout (one that only takes long: test_again.c); storage of
 * the source's that hangs, or a record that cannot be written, keeps it standing until they are back, and
 * not for good.
 *
 * The source's shim stops itself by a fault point when it has stopped the guest, so that the test can do
 * its worst at that very moment. No link is given up for ten minutes. */
#include "tests/progress.h"
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

SMALL_GROUP("switch",
            "XMIGRATE_FAULT='switch-stopped:*:stop' XM_LAB_GRACE=1s XM_LAB_DOWNTIME=100ms "
            "XM_LAB_LINK_TIMEOUT=600s ",
            .memory = 64)

static struct job move;

static void begin(void)
{
    need_lab();
    job_start(&move, "%s", xmigrate("a", "--json --with-storage web1 hostb"));
}

/* The guest is stopped, and so is the source's shim. */
static void until_it_stands(void)
{
    if (!wait_until(60, "grep -q '^State:.T' /proc/$(cat %s/a/run/vms/web1/shim.pid)/status",
                    lab_run_dir())) {
        char *out = NULL;
        job_end(&move, 1, &out);
        fail_msg("the guest was never stopped:\n%s", out ? out : "");
    }
}

static void shim_goes_on(void)
{
    sh(NULL, 5, "kill -CONT $(cat %s/a/run/vms/web1/shim.pid)", lab_run_dir());
}

/* From here on the guest has what is left of its budget, the grace, and what it takes to go on. The limit
 * counts what the machine could do; ten seconds is what the shortest of the waits before took. */
static void guest_must_go_on(void)
{
    const unsigned half_a_second = 250; /* of its ticks: more than a console can have kept back */
    struct limit l = limit_start(8);

    small_read(&guest);
    for (unsigned up = guest.now.up; guest.now.up < up + half_a_second; small_read(&guest))
        assert_true(limit_wait(&l));
}

static void guest_is_whole(const char *host)
{
    vm_must_run_at(host, "web1");
    small_must_be_whole(&guest, host);
    assert_int_equal(guest.boots, 1);
}

/* It failed, said that the VM is safe, and for how long it stood still. */
static void it_has_failed(const char *part)
{
    char *out = NULL;
    int code = job_end(&move, 60, &out);
    json_t *o = last_json(out);

    if (code != 1 || !strstr(string(o, "error"), part) || !truth(o, "vm_safe"))
        fail_msg("exit status %d: %s", code, *string(o, "error") ? string(o, "error") : out ? out : "");
    assert_true(number(o, "stood_ms") > 0);
    print_message("the guest stood still for %.0f ms: %s\n", number(o, "stood_ms"), string(o, "error"));
    json_decref(o);
    free(out);
    guest_is_whole("a");
}

static void b_is_clean(void)
{
    wait_until(40, "test ! -e %s/b/run/vms/web1", lab_run_dir());
    host_must_be_clean("b");
}

static void a_destination_that_is_killed(void **state)
{
    (void)state;
    begin();
    until_it_stands();
    sh(NULL, 5, "cd %s/b/run/vms/web1 && kill -9 $(cat shim.pid qemu.pid)", lab_run_dir());
    shim_goes_on();
    guest_must_go_on();
    it_has_failed("did not take the VM over within its downtime budget of 100.0 ms and 1.00 s more");
    b_is_clean();
}

static void a_destination_whose_shim_hangs(void **state)
{
    char shim[16] = "";

    (void)state;
    begin();
    until_it_stands();
    char *pid = NULL;
    sh(&pid, 5, "cat %s/b/run/vms/web1/shim.pid", lab_run_dir());
    snprintf(shim, sizeof shim, "%d", pid ? atoi(pid) : 0);
    free(pid);
    assert_int_equal(sh(NULL, 5, "kill -STOP %s", shim), 0);
    shim_goes_on();
    guest_must_go_on();
    sh(NULL, 5, "kill -CONT %s", shim);
    it_has_failed("did not take the VM over within its downtime budget of 100.0 ms and 1.00 s more");
    b_is_clean();
}

static void links_of_b(const char *how)
{
    for (const char *const *l = (const char *const[]){"control", "link1", "link2", NULL}; *l; l++)
        assert_int_equal(sh(NULL, 5, "ip -n %s-hostb link set %s %s", lab_prefix(), *l, how), 0);
}

static void a_host_that_falls_silent(void **state)
{
    (void)state;
    begin();
    until_it_stands();
    links_of_b("down");
    shim_goes_on();
    guest_must_go_on();
    links_of_b("up");
    it_has_failed("did not take the VM over within its downtime budget of 100.0 ms and 1.00 s more");
    b_is_clean();
}

/* What broke: QEMU's monitor hangs as long as the disks do, and after one try nobody let the guest go on. */
static void storage_of_the_source_hangs(void **state)
{
    char *out = NULL;

    (void)state;
    begin();
    if (!job_saw(&move, "\"memory\"", 60))
        fail_msg("it never came to the memory");
    assert_int_equal(sh(NULL, 20, "fsfreeze -f %s/a/ds1", lab_store_dir()), 0);
    int code = job_end(&move, 90, &out);
    json_t *o = last_json(out);
    if (code != 4 || !strstr(string(o, "error"), "does not go on here: ") ||
        strstr(string(o, "error"), "memory of its own") || truth(o, "vm_safe"))
        fail_msg("exit status %d:\n%s", code, out ? out : "");
    json_decref(o);
    free(out);
    assert_int_equal(sh(NULL, 20, "fsfreeze -u %s/a/ds1", lab_store_dir()), 0);
    guest_is_whole("a");
    b_is_clean();
}

/* Nothing was said to anybody: it is written over as soon as that can be done, though the destination has
 * gone. */
static void a_record_that_cannot_be_written(void **state)
{
    (void)state;
    begin();
    until_it_stands();
    if (sh(NULL, 5, "chattr +i %s/a/state/vms/web1/owner.json", lab_run_dir()) != 0) {
        shim_goes_on();
        job_end(&move, 60, NULL);
        fprintf(stderr, "skipped: no file here can be made immutable\n");
        skip();
    }
    shim_goes_on();
    assert_true(job_saw(&move, "\"handoff\"", 30));
    sh(NULL, 5, "cd %s/b/run/vms/web1 && kill -9 $(cat shim.pid qemu.pid)", lab_run_dir());
    assert_true(wait_until(20, "test ! -e /proc/$(cat %s/b/run/vms/web1/shim.pid)/exe", lab_run_dir()));
    assert_false(job_saw(&move, "\"unknown\"", 2));
    assert_int_equal(sh(NULL, 5, "chattr -i %s/a/state/vms/web1/owner.json", lab_run_dir()), 0);
    guest_must_go_on();
    it_has_failed("the VM could not be handed over and is this host's");
    b_is_clean();
}

/* Seen: the destination waited for it for a minute, and refused every further move of that VM. */
static void the_agent_dies_between_prepare_and_the_shim(void **state)
{
    (void)state;
    need_lab();
    sh(NULL, 5, "kill -9 $(cat %s/a/agent.pid)", lab_run_dir());
    assert_int_equal(sh(NULL, 30, "XMIGRATE_FAULT=launch:1:kill tests/system/lab.sh agent a"), 0);
    begin();
    assert_int_equal(job_end(&move, 60, NULL), 4);
    assert_int_equal(sh(NULL, 30, "XMIGRATE_FAULT= tests/system/lab.sh agent a"), 0);
    begin();
    until_it_stands();
    shim_goes_on();
    char *out = NULL;
    int code = job_end(&move, 60, &out);
    if (code != 0)
        fail_msg("exit status %d:\n%s", code, out ? out : "");
    free(out);
    guest_is_whole("b");
}

/* Whatever a test that failed has left as it was. */
static int take_back(void **state)
{
    (void)state;
    sh(NULL, 20, "fsfreeze -u %s/a/ds1", lab_store_dir());
    sh(NULL, 5, "chattr -i %s/a/state/vms/web1/owner.json", lab_run_dir());
    sh(NULL, 5, "for l in control link1 link2; do ip -n %s-hostb link set $l up; done", lab_prefix());
    shim_goes_on();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_destination_that_is_killed, take_back),
        cmocka_unit_test_teardown(a_destination_whose_shim_hangs, take_back),
        cmocka_unit_test_teardown(a_host_that_falls_silent, take_back),
        cmocka_unit_test_teardown(storage_of_the_source_hangs, take_back),
        cmocka_unit_test_teardown(a_record_that_cannot_be_written, take_back),
        cmocka_unit_test_teardown(the_agent_dies_between_prepare_and_the_shim, take_back),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
