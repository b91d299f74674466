/* SPDX-License-Identifier: MIT */
/* Crashes around the hand-off, at named points in the code (base/fault.h): in the end the VM runs on exactly
 * one host, with its data whole, and which host that is follows from the point. Each test has a VM of its own
 * on the lab's two hosts, with the small guest (small.h): it says how often it began anew, and what it then
 * finds of what it had written. */
#include "tests/progress.h"
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

LAB_GROUP("handoff", "XM_LAB_VM=none XM_LAB_FAULTS=yes")

static struct small guest;

static void restart_agent(const char *host)
{
    sh(NULL, 5, "kill -9 $(cat %s/%s/agent.pid)", lab_run_dir(), host);
    assert_int_equal(sh(NULL, 30, "XM_LAB_FAULTS=yes tests/system/lab.sh agent %s", host), 0);
}

/* The next one on that host who comes there. */
static void arm(const char *host, const char *fault)
{
    assert_int_equal(sh(NULL, 5, "echo %s >%s/%s/fault.new && mv %s/%s/fault.new %s/%s/fault", fault,
                        lab_run_dir(), host, lab_run_dir(), host, lab_run_dir(), host),
                     0);
}

static bool struck(const char *host)
{
    return sh(NULL, 5, "test ! -e %s/%s/fault", lab_run_dir(), host) == 0;
}

static void start_vm(const char *name)
{
    static const struct small_options usual;

    small_must_start(&guest, "a", name, &usual);
}

static bool runs_at(const char *host, const char *name)
{
    char state[32];

    vm_state(host, name, state, sizeof(state));
    return strcmp(state, "running") == 0;
}

static bool knows_nothing(const char *host, const char *name)
{
    char state[32];

    vm_state(host, name, state, sizeof(state));
    return !*state;
}

static void comes_to_rest(const char *home, const char *name)
{
    const char *other = *home == 'a' ? "b" : "a";

    for (struct limit l = limit_start(60);
         !(runs_at(home, name) && knows_nothing(other, name)) && limit_wait(&l);) {
    }
}

static void end_vm(const char *host, const char *name)
{
    small_free(&guest);
    assert_int_equal(xmigrate_run(host, 0, NULL, "stop --force %s", name), 0);
    /* Refused while a journal is open; that is over within seconds. */
    assert_true(wait_until(20, "%s", xmigrate(host, "undefine %s", name)));
    assert_int_equal(sh(NULL, 10, "rm -f %s/?/ds?/%s-*", lab_store_dir(), name), 0);
}

/* Moves the VM with a fault on one host and sees where it comes to run. */
static void scenario(const char *name, const char *fault_host, const char *fault, const char *home)
{
    const char *other = *home == 'a' ? "b" : "a";
    char *out = NULL;
    int code;

    start_vm(name);
    arm(fault_host, fault);
    code = sh(&out, 120, "%s", xmigrate("a", "--json --with-storage %s hostb", name));
    if (*home == 'a')
        assert_int_not_equal(code, 0);
    assert_true(struck(fault_host));
    /* Nobody asks for anything: the agents settle it. */
    comes_to_rest(home, name);
    if (!runs_at(home, name)) {
        fprintf(stderr, "%s: the move ended with %d:\n%s\n", fault, code, out ? out : "");
        xmigrate_run("a", 0, NULL, "--json show %s", name);
        xmigrate_run("b", 0, NULL, "--json show %s", name);
    }
    free(out);
    vm_must_run_at(home, name);
    small_must_be_whole(&guest, home);
    assert_int_equal(guest.boots, 1);
    host_must_be_clean(other);
    end_vm(home, name);
}

static void failure_with_the_vm_stopped(void **state)
{
    (void)state;
    need_lab();
    scenario("vm1", "a", "switch-stopped:1:error", "a");
}

static void source_shim_dies_with_the_vm_stopped(void **state)
{
    (void)state;
    need_lab();
    scenario("vm2", "a", "switch-stopped:1:kill", "a");
}

static void source_shim_dies_before_its_record(void **state)
{
    (void)state;
    need_lab();
    scenario("vm3", "a", "handoff-before-record:1:kill", "a");
}

/* Given, and nobody told the destination: it has to ask. */
static void source_shim_dies_after_its_record(void **state)
{
    (void)state;
    need_lab();
    scenario("vm4", "a", "handoff-after-record:1:kill", "b");
}

static void destination_shim_dies_after_its_record(void **state)
{
    (void)state;
    need_lab();
    scenario("vm5", "b", "run-after-record:1:kill", "b");
}

/* A VM that has once come by a migration moves on, and its shim dies right after the record. Then all the
 * rest dies, too: what shim.json says of the first migration must not be taken for the second one. */
static void all_die_between_the_records(const char *name, bool power_cut)
{
    char *out = NULL;

    start_vm(name);
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage %s hostb", name), 0);
    arm("b", "handoff-after-record:1:kill");
    assert_int_not_equal(sh(&out, 120, "%s", xmigrate("b", "--with-storage %s hosta", name)), 0);
    free(out);
    for (int i = 0; i < 2; i++) {
        const char *host = i ? "b" : "a";
        sh(NULL, 5, "kill -9 $(cat %s/%s/agent.pid)", lab_run_dir(), host);
        kill_process(host, name, "shim");
        if (power_cut)
            kill_process(host, name, "qemu");
    }
    restart_agent("a");
    restart_agent("b");
    comes_to_rest("a", name);
    vm_must_run_at("a", name);
    small_must_be_whole(&guest, "a");
    assert_int_equal(guest.boots, power_cut ? 2 : 1);
    host_must_be_clean("b");
    end_vm("a", name);
}

static void everything_but_the_guest_dies_between_the_records(void **state)
{
    (void)state;
    need_lab();
    all_die_between_the_records("vm6", false);
}

static void power_is_cut_between_the_records(void **state)
{
    (void)state;
    need_lab();
    all_die_between_the_records("vm7", true);
}

/* What broke: the VM was the destination's, which had nothing but its disks left, and started it from
 * those; its guest stood whole at the source. */
static void power_is_cut_at_the_destination(void **state)
{
    (void)state;
    need_lab();
    start_vm("vm9");
    arm("a", "handoff-after-record:1:stop");
    assert_int_equal(xmigrate_run("a", 0, NULL, "--detach --with-storage vm9 hostb"), 0);
    for (struct limit l = limit_start(60); !struck("a") && limit_wait(&l);) {
    }
    assert_true(struck("a"));
    sh(NULL, 5, "kill -9 $(cat %s/b/agent.pid)", lab_run_dir());
    kill_process("b", "vm9", "shim");
    kill_process("b", "vm9", "qemu");
    kill_process("a", "vm9", "shim");
    restart_agent("b");
    comes_to_rest("a", "vm9");
    vm_must_run_at("a", "vm9");
    small_must_be_whole(&guest, "a");
    assert_int_equal(guest.boots, 1);
    host_must_be_clean("b");
    end_vm("a", "vm9");
}

static bool is_paused_at(const char *host, const char *name)
{
    char state[32];

    vm_state(host, name, state, sizeof(state));
    return strcmp(state, "paused") == 0;
}

static bool is_known_at(const char *host, const char *name)
{
    char state[32];

    vm_state(host, name, state, sizeof(state));
    return *state;
}

/* It has a second monitor, for its user. */
static void start_vm_with_monitor(const char *name)
{
    for (int i = 0; i < 2; i++)
        assert_int_equal(sh(NULL, 5,
                            "grep -q 'extra = -qmp' %s/%s/xmigrated.conf || echo 'extra = -qmp "
                            "tcp:127.0.0.1:4444,server=on,wait=off' >>%s/%s/xmigrated.conf",
                            lab_run_dir(), i ? "b" : "a", lab_run_dir(), i ? "b" : "a"),
                         0);
    restart_agent("a");
    restart_agent("b");
    start_vm(name);
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force %s", name), 0);
    assert_int_equal(
        sh(NULL, 20,
           "%s | sed 's|^.vm.$|&\\nextra = -qmp\\nextra = tcp:127.0.0.1:4444,server=on,wait=off|' "
           ">%s/%s.more.ini",
           xmigrate("a", "dump %s", name), lab_run_dir(), name),
        0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s/%s.more.ini", lab_run_dir(), name), 0);
    assert_null(small_ready(&guest, 'a'));
}

/* Its user has paused it, and nobody else lets it go on: not the shim that comes after a killed one, not a
 * move, not a move that fails with the VM stopped. */
static void a_paused_vm_stays_paused(void **state)
{
    char *out = NULL;
    json_t *o;
    struct limit l;

    (void)state;
    need_lab();
    start_vm_with_monitor("vm8");
    vm_monitor("a", "stop", "STOP");
    assert_true(is_paused_at("a", "vm8"));
    /* Seen: it ran on after a move that had failed before anybody stopped it. */
    arm("b", "owner-save:1:error");
    assert_int_equal(xmigrate_run("a", 1, NULL, "--with-storage vm8 hostb"), 1);
    assert_true(struck("b"));
    assert_true(is_paused_at("a", "vm8"));
    /* Seen with QEMU 10, which starts a paused guest's disks for the new shim: «still has a running ring». */
    shim_is_killed("a", "vm8");
    for (l = limit_start(60); !is_paused_at("a", "vm8") && limit_wait(&l);) {
    }
    for (l = limit_start(30); is_known_at("b", "vm8") && limit_wait(&l);) { /* its shim there ends */
    }
    assert_int_equal(xmigrate_run("a", 0, &o, "--json --with-storage vm8 hostb"), 0);
    assert_true(truth(o, "paused"));
    json_decref(o);
    assert_true(is_paused_at("b", "vm8"));
    arm("b", "switch-stopped:1:error");
    assert_int_equal(xmigrate_run("b", 1, NULL, "--with-storage vm8 hosta"), 1);
    assert_true(struck("b"));
    assert_true(is_paused_at("b", "vm8"));
    shim_is_killed("b", "vm8");
    for (l = limit_start(60); !is_paused_at("b", "vm8") && limit_wait(&l);) {
    }
    assert_true(is_paused_at("b", "vm8"));
    /* Seen: two minutes of waiting, and the guest went down as soon as it was continued. */
    assert_int_equal(sh(&out, 4, "%s", xmigrate("b", "stop vm8")), 1);
    assert_non_null(strstr(out, "its guest cannot power itself off"));
    free(out);
    vm_monitor("b", "cont", "RESUME");
    /* Seen with QEMU 7.2: it did not notice that this one had died, and its disks stood still for good. The
     * next shim stops the guest for that; here it dies then. Seen: the guest counted as paused by its user.
     */
    arm("b", "machine-stopped:1:kill");
    shim_is_killed("b", "vm8");
    for (l = limit_start(30); !(struck("b") && runs_at("b", "vm8")) && limit_wait(&l);) {
    }
    sh(NULL, 5, "rm -f %s/b/fault", lab_run_dir()); /* QEMU 10 notices */
    vm_must_run_at("b", "vm8");
    small_must_be_whole(&guest, "b");
    assert_int_equal(guest.boots, 2);
    end_vm("b", "vm8");
}

/* Its user stops it when it has just been asked whether he has. What broke: QEMU's word for that was taken
 * for that of our own stop, and its guest ran at the destination; or here, when the move failed. */
static void a_guest_that_its_user_stops_in_the_switch_stays_stopped(void **state)
{
    struct job move;
    char *out = NULL;

    (void)state;
    need_lab();
    start_vm_with_monitor("vm6");
    for (int fails = 1; fails >= 0; fails--) {
        arm("a", "switch-asked:1:delay=5000");
        job_start(&move, "%s", xmigrate("a", "--json --with-storage vm6 hostb"));
        assert_true(wait_until(60, "test ! -e %s/a/fault", lab_run_dir()));
        vm_monitor("a", "stop", "STOP");
        if (fails)
            arm("a", "switch-stopped:1:error");
        assert_int_equal(job_end(&move, 60, &out), fails);
        free(out);
        for (struct limit l = limit_start(30); !is_paused_at(fails ? "a" : "b", "vm6") && limit_wait(&l);) {
        }
        assert_true(is_paused_at(fails ? "a" : "b", "vm6"));
        vm_monitor(fails ? "a" : "b", "cont", "RESUME");
        if (fails)
            host_must_be_clean("b");
    }
    vm_must_run_at("b", "vm6");
    small_must_be_whole(&guest, "b");
    assert_int_equal(guest.boots, 2);
    end_vm("b", "vm6");
}

/* Its user lets it go on when everything has been sent: what it does from then on is in no copy. Seen: it ran
 * here until its QEMU was ended, and at the destination from the switch on. */
static void a_guest_that_its_user_lets_go_on_in_the_switch_stays(void **state)
{
    struct job move;
    char *out = NULL;

    (void)state;
    need_lab();
    start_vm_with_monitor("vm7");
    for (int paused = 0; paused < 2; paused++) {
        if (paused)
            vm_monitor("a", "stop", "STOP");
        arm("a", paused ? "handoff-before-record:1:stop" : "switch-loaded:1:stop");
        job_start(&move, "%s", xmigrate("a", "--json --with-storage vm7 hostb"));
        assert_true(wait_until(60, "test ! -e %s/a/fault", lab_run_dir()));
        vm_monitor("a", "cont", "RESUME");
        assert_int_equal(sh(NULL, 5, "kill -CONT $(cat %s/a/run/vms/vm7/shim.pid)", lab_run_dir()), 0);
        assert_int_equal(job_end(&move, 60, &out), 1);
        assert_non_null(strstr(out, "was let go on here"));
        free(out);
        vm_must_run_at("a", "vm7");
        small_must_be_whole(&guest, "a");
    }
    assert_int_equal(guest.boots, 2);
    host_must_be_clean("b");
    end_vm("a", "vm7");
}

/* Given away, and its destination says nothing: it stands still here, and looks paused. What broke: its user
 * let it go on, and it ran on both hosts for as long as the hand-off was open. */
static void a_guest_that_was_given_away_is_not_let_go_on(void **state)
{
    struct job move;
    size_t heard;

    (void)state;
    need_lab();
    start_vm_with_monitor("vm11");
    for (int later = 0; later < 2; later++) {
        arm("b", "run-running:1:stop");
        job_start(&move, "%s", xmigrate("a", "--json --with-storage vm11 hostb"));
        assert_true(wait_until(60, "test ! -e %s/b/fault", lab_run_dir()));
        if (later)
            assert_int_equal(job_end(&move, 60, NULL), 4);
        vm_monitor("a", "cont", "RESUME");
        if (!later) /* while its source waits for the answer */
            assert_int_equal(job_end(&move, 60, NULL), 4);
        assert_true(wait_until(20, "grep -q 'is stopped again' %s/a/run/vms/vm11/shim.log", lab_run_dir()));
        assert_true(small_ticks(&guest, 'b', 30)); /* what it said until then has been heard */
        small_read(&guest);
        heard = guest.console[0].heard;
        assert_true(small_ticks(&guest, 'b', 30));
        assert_true(small_ticks(&guest, 'b', 30));
        small_read(&guest);
        assert_int_equal(guest.console[0].heard, heard);
        assert_int_equal(sh(NULL, 5, "kill -CONT $(cat %s/b/run/vms/vm11/shim.pid)", lab_run_dir()), 0);
        vm_must_run_at("b", "vm11");
        host_must_be_clean("a");
        assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage vm11 hosta"), 0);
        assert_null(small_ready(&guest, 'a'));
    }
    end_vm("a", "vm11");
}

/* So that one that fails does not take the others with it. */
static int stop_all(void **state)
{
    (void)state;
    small_free(&guest);
    for (int i = 1; i <= 9; i++) {
        sh(NULL, 20, "%s", xmigrate("a", "stop --force vm%d", i));
        sh(NULL, 20, "%s", xmigrate("b", "stop --force vm%d", i));
        sh(NULL, 20, "%s", xmigrate("a", "undefine --force vm%d", i));
        sh(NULL, 20, "%s", xmigrate("b", "undefine --force vm%d", i));
    }
    sh(NULL, 10, "rm -f %s/?/ds?/vm*", lab_store_dir());
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(failure_with_the_vm_stopped, stop_all),
        cmocka_unit_test_teardown(source_shim_dies_with_the_vm_stopped, stop_all),
        cmocka_unit_test_teardown(source_shim_dies_before_its_record, stop_all),
        cmocka_unit_test_teardown(source_shim_dies_after_its_record, stop_all),
        cmocka_unit_test_teardown(destination_shim_dies_after_its_record, stop_all),
        cmocka_unit_test_teardown(everything_but_the_guest_dies_between_the_records, stop_all),
        cmocka_unit_test_teardown(power_is_cut_between_the_records, stop_all),
        cmocka_unit_test_teardown(power_is_cut_at_the_destination, stop_all),
        cmocka_unit_test_teardown(a_paused_vm_stays_paused, stop_all),
        cmocka_unit_test_teardown(a_guest_that_its_user_stops_in_the_switch_stays_stopped, stop_all),
        cmocka_unit_test_teardown(a_guest_that_its_user_lets_go_on_in_the_switch_stays, stop_all),
        cmocka_unit_test_teardown(a_guest_that_was_given_away_is_not_let_go_on, stop_all),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
