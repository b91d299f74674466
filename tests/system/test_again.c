/* SPDX-License-Identifier: MIT */
/* A switch-over that takes too long is given up, the guest goes on, and the next one moves it: nothing
 * that was copied before is lost. Whatever dies in between leaves the VM where it is, and the next move
 * works. */
#include "tests/progress.h"
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

SMALL_GROUP("again", "XM_LAB_FAULTS=yes XM_LAB_GRACE=20s XM_LAB_DOWNTIME=100ms ", .memory = 64)

static struct job move;

static void fault(const char *host, const char *text)
{
    assert_int_equal(sh(NULL, 5, "echo '%s' > %s/%s/fault", text, lab_run_dir(), host), 0);
}

static void begin(void)
{
    need_lab();
    job_start(&move, "%s", xmigrate("a", "--json --with-storage web1 hostb"));
}

/* The guest is stopped, and so is the source's shim (fault point switch-stopped). */
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

/* As the guest's own clock tells. */
static void guest_must_go_on(void)
{
    const unsigned half_a_second = 250;
    struct limit l = limit_start(10);

    small_read(&guest);
    for (unsigned up = guest.now.up; guest.now.up < up + half_a_second; small_read(&guest))
        assert_true(limit_wait(&l));
}

/* At the second try; its disks were not copied again. */
static void it_comes(void)
{
    char *out = NULL;
    int code = job_end(&move, 90, &out);
    json_t *o = last_json(out);

    if (code != 0 || number(o, "given_up_switches") != 1)
        fail_msg("exit status %d: %s\n%s", code, string(o, "error"), out ? out : "");
    print_message("the guest stood still for %.0f ms, and for %.0f ms at the second try: %s\n",
                  number(o, "given_up_ms"), number(o, "downtime_ms"), string(o, "given_up"));
    assert_true(number(o, "given_up_ms") >= 100);
    assert_true(number(json_object_get(o, "phases_s"), "memory") * 1000 > number(o, "given_up_ms"));
    json_decref(o);
    free(out);
    vm_must_run_at("b", "web1");
}

/* For the next test. */
static void it_goes_back(void)
{
    small_must_be_whole(&guest, "b");
    assert_int_equal(guest.boots, 1);
    assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage --downtime 5000 web1 hosta"), 0);
    small_must_be_whole(&guest, "a");
    host_must_be_clean("b");
}

static void it_has_moved(void)
{
    it_comes();
    it_goes_back();
}

static void a_load_that_takes_long(void **state)
{
    (void)state;
    begin();
    fault("b", "loaded:1:delay=700");
    it_has_moved();
}

/* Its disks, last pages and digests are late, and so is its word. */
static void stands_still(void)
{
    char *b = NULL;

    begin();
    fault("a", "switch-stopped:1:stop");
    until_it_stands();
    assert_int_equal(sh(&b, 5, "cat %s/b/run/vms/web1/shim.pid", lab_run_dir()), 0);
    int pid = atoi(b);
    free(b);
    assert_int_equal(sh(NULL, 5, "kill -STOP %d", pid), 0);
    fault("a", "again:1:stop");
    shim_goes_on();
    assert_true(wait_until(60, "test ! -e %s/a/fault", lab_run_dir()));
    until_it_stands();
    sh(NULL, 5, "kill -CONT %d", pid);
    shim_goes_on();
}

static void a_destination_that_stands_still(void **state)
{
    (void)state;
    stands_still();
    it_has_moved();
}

/* Its own QEMU is the slow one, and lets the guest go on by itself when its stream is cut: not before the
 * destination has taken its promise back, and takes what the guest writes. */
static void a_qemu_of_the_source_that_is_slow(void **state)
{
    char *a = NULL;

    (void)state;
    begin();
    fault("a", "switch-stopped:1:stop");
    until_it_stands();
    assert_int_equal(sh(&a, 5, "cat %s/a/run/vms/web1/qemu.pid", lab_run_dir()), 0);
    int pid = atoi(a);
    free(a);
    assert_int_equal(sh(NULL, 5, "kill -STOP %d", pid), 0);
    fault("a", "again:1:delay=1000");
    shim_goes_on();
    assert_true(wait_until(60, "test ! -e %s/a/fault", lab_run_dir()));
    assert_int_equal(sh(NULL, 5, "kill -CONT %d", pid), 0);
    it_has_moved();
}

/* Its stream was cut, before its shim has come to end it. */
static void a_qemu_of_the_destination_that_ends_by_itself(void **state)
{
    (void)state;
    fault("b", "again-told:1:delay=1000");
    stands_still();
    it_has_moved();
}

static void stp(bool yes)
{
    assert_int_equal(sh(NULL, 10, "ip -n %s-hostb link set br0 type bridge stp_state %d forward_delay 200",
                        lab_prefix(), yes),
                     0);
}

/* The new QEMU's ports are new to it: the guest was cut off for two forward delays. */
static void a_bridge_that_listens_once_more(void **state)
{
    char *out = NULL;

    (void)state;
    stp(true);
    begin();
    fault("b", "loaded:1:delay=700");
    it_comes();
    assert_int_equal(sh(&out, 10, "ip -n %s-hostb -d link show type tun", lab_prefix()), 0);
    if (!out || !strstr(out, "state forwarding"))
        fail_msg("the guest has come before its port passes anything: %s", out ? out : "");
    free(out);
    stp(false);
    it_goes_back();
}

/* It is killed, and another one started. */
static void a_qemu_of_the_destination_that_hangs(void **state)
{
    (void)state;
    begin();
    fault("a", "switch-stopped:1:stop");
    until_it_stands();
    assert_int_equal(sh(NULL, 5, "kill -STOP $(cat %s/b/run/vms/web1/qemu.pid)", lab_run_dir()), 0);
    shim_goes_on();
    guest_must_go_on();
    it_has_moved();
}

/* Links and disks that are filled at nice 10. Those that had come to the first place for the switch-over
 * stayed there for all of the memory. */
static void other_guests_come_first_once_more(void **state)
{
    (void)state;
    begin();
    fault("b", "loaded:1:delay=700");
    fault("a", "again-resumed:1:stop");
    assert_true(wait_until(60, "test ! -e %s/a/fault", lab_run_dir()));
    until_it_stands();
    assert_true(wait_until(20, "test $(ps -T -o ni= -p $(cat %s/b/run/vms/web1/shim.pid) | grep -c 10) -ge 3",
                           lab_run_dir()));
    shim_goes_on();
    it_has_moved();
}

/* What broke: an abort came to nothing until the destination had not answered for 10 s, and the job's end was
 * told as that. */
static void an_abort_is_heard_while_the_destination_says_nothing(void **state)
{
    static const char *const points[] = {"begin-taken", "incoming-promised"};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        char *out = NULL, *pid = NULL, stop[80];
        json_t *o = NULL, *list;
        need_lab();
        snprintf(stop, sizeof stop, "%s:1:stop", points[i]);
        fault("b", stop);
        begin();
        assert_true(wait_until(60, "test ! -e %s/b/fault", lab_run_dir()));
        assert_int_equal(sh(&pid, 5, "cat %s/b/run/vms/web1/shim.pid", lab_run_dir()), 0);
        assert_int_equal(xmigrate_run("a", 0, &o, "--json jobs"), 0);
        list = json_object_get(o, "jobs");
        const char *job = string(json_array_get(list, json_array_size(list) - 1), "job");
        assert_int_equal(xmigrate_run("a", 0, NULL, "abort %s", job), 0);
        json_decref(o);
        assert_int_equal(job_end(&move, 60, &out), 1);
        sh(NULL, 5, "kill -CONT %s", pid);
        o = last_json(out);
        assert_string_equal(string(o, "error"), "aborted: by its user");
        json_decref(o);
        free(out);
        free(pid);
        vm_must_run_at("a", "web1");
        small_must_be_whole(&guest, "a");
        host_must_be_clean("b");
    }
}

static void agent(const char *host, const char *faults)
{
    sh(NULL, 5, "kill -9 $(cat %s/%s/agent.pid)", lab_run_dir(), host);
    assert_int_equal(
        sh(NULL, 30, "XM_LAB_FAULTS=no XMIGRATE_FAULT=%s tests/system/lab.sh agent %s", faults, host), 0);
}

/* One of the two dies there. The source's shim is the VM's: what it was started with, it has. */
static void dies(const char *side, const char *point)
{
    char late[120], kills[80];
    char *out = NULL;

    need_lab();
    snprintf(kills, sizeof kills, "%s:1:kill", point);
    snprintf(late, sizeof late, "loaded:1:delay=700%s%s", *side == 'b' ? "," : "", *side == 'b' ? kills : "");
    agent("b", late);
    begin();
    if (*side == 'a')
        fault("a", kills);
    int code = job_end(&move, 90, &out);
    if (code == 0)
        fail_msg("it has moved:\n%s", out);
    if (!strcmp(point, "wait-anew")) { /* the source has heard its answer */
        json_t *o = last_json(out);
        if (number(o, "given_up_switches") != 1 || number(o, "given_up_ms") < 100)
            fail_msg("that the guest stood still is not told:\n%s", out);
        json_decref(o);
    }
    free(out);
    agent("b", "");
    assert_true(wait_until(60, "%s", xmigrate("a", "--json recover web1")));
    vm_must_run_at("a", "web1");
    small_must_be_whole(&guest, "a");
    assert_true(wait_until(60, "test ! -e %s/b/run/vms/web1", lab_run_dir()));
    host_must_be_clean("b");
    assert_int_equal(guest.boots, 1);
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage --downtime 5000 web1 hostb"), 0);
    small_must_be_whole(&guest, "b");
    assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage --downtime 5000 web1 hosta"), 0);
    small_must_be_whole(&guest, "a");
}

static void the_destination_dies_when_it_has_taken_its_promise_back(void **state)
{
    (void)state;
    dies("b", "again-withdrawn");
}

static void the_destination_dies_between_two_qemus(void **state)
{
    (void)state;
    dies("b", "wait-anew");
}

static void the_source_dies_before_the_guest_goes_on(void **state)
{
    (void)state;
    dies("a", "again-answered");
}

static void the_source_dies_when_the_guest_goes_on(void **state)
{
    (void)state;
    dies("a", "again-resumed");
}

/* Whatever a test that failed has left as it was. */
static int take_back(void **state)
{
    (void)state;
    sh(NULL, 5, "rm -f %s/a/fault %s/b/fault", lab_run_dir(), lab_run_dir());
    shim_goes_on();
    stp(false);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_load_that_takes_long, take_back),
        cmocka_unit_test_teardown(a_destination_that_stands_still, take_back),
        cmocka_unit_test_teardown(a_qemu_of_the_source_that_is_slow, take_back),
        cmocka_unit_test_teardown(a_qemu_of_the_destination_that_ends_by_itself, take_back),
        cmocka_unit_test_teardown(a_bridge_that_listens_once_more, take_back),
        cmocka_unit_test_teardown(a_qemu_of_the_destination_that_hangs, take_back),
        cmocka_unit_test_teardown(other_guests_come_first_once_more, take_back),
        cmocka_unit_test_teardown(an_abort_is_heard_while_the_destination_says_nothing, take_back),
        cmocka_unit_test_teardown(the_destination_dies_when_it_has_taken_its_promise_back, take_back),
        cmocka_unit_test_teardown(the_destination_dies_between_two_qemus, take_back),
        cmocka_unit_test_teardown(the_source_dies_before_the_guest_goes_on, take_back),
        cmocka_unit_test_teardown(the_source_dies_when_the_guest_goes_on, take_back),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
