/* Crashes around the hand-off, at named points in the code (base/fault.h): in the end the VM runs on exactly
 * one host, with its data whole, and which host that is follows from the point. Each test has a VM of its own
 * on the lab's two hosts. */
#include "tests/progress.h"
#include "tests/system/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each VM finds its disks as the one before has left them: no record of an earlier VM is taken for one of its
 * own. */
LAB_GROUP("handoff", "XM_LAB_VM=no XM_LAB_APPEND='xm.disk=vda:rate=4M:span=128M:trim=16M:name=system "
                     "xm.disk=vdb:rate=2M:span=64M:name=data "
                     "xm.mem=32M:rate=8M'")

static void restart_agent(const char *host, const char *fault)
{
    sh(NULL, 5, "kill -9 $(cat %s/%s/agent.pid)", lab_run_dir(), host);
    assert_int_equal(sh(NULL, 30, "XMIGRATE_FAULT=%s tests/system/lab.sh agent %s", fault, host), 0);
}

static void start_vm(const char *name)
{
    assert_int_equal(
        sh(NULL, 10,
           "sed 's/web1/%s/g' %s/web1.ini >%s/%s.ini && truncate -s 256M %s/a/ds1/%s-data.img && "
           "ip -n %s-client neigh flush all",
           name, lab_run_dir(), lab_run_dir(), name, lab_store_dir(), name, lab_prefix()),
        0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s/%s.ini", lab_run_dir(), name), 0);
    guest_must_come("a", name);
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

/* Moves the VM with a fault on one host and sees where it comes to run. */
static void scenario(const char *name, const char *fault_host, const char *fault, const char *home)
{
    const char *other = *home == 'a' ? "b" : "a";
    char *out = NULL;
    int code;

    restart_agent("a", *fault_host == 'a' ? fault : "");
    restart_agent("b", *fault_host == 'b' ? fault : "");
    start_vm(name);
    code = sh(&out, 120, "%s", xmigrate("a", "--json --with-storage %s hostb", name));
    if (*home == 'a')
        assert_int_not_equal(code, 0);
    /* The fault has struck, and strikes no more. */
    restart_agent("a", "");
    restart_agent("b", "");
    for (struct limit l = limit_start(30);
         !(runs_at(home, name) && knows_nothing(other, name)) && limit_wait(&l);) {
        sh(NULL, 30, "%s", xmigrate("b", "recover %s", name));
        sh(NULL, 30, "%s", xmigrate("a", "recover %s", name));
    }
    if (!runs_at(home, name)) {
        fprintf(stderr, "%s: the move ended with %d:\n%s\n", fault, code, out ? out : "");
        xmigrate_run("a", 0, NULL, "--json show %s", name);
        xmigrate_run("b", 0, NULL, "--json show %s", name);
    }
    free(out);
    vm_must_run_at(home, name);
    guest_verify();
    host_must_be_clean_but(other, ".img");
    assert_int_equal(xmigrate_run(home, 0, NULL, "stop --force %s", name), 0);
    assert_int_equal(sh(NULL, 10, "rm -f %s/?/ds?/%s-*", lab_store_dir(), name), 0);
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

/* So that one that fails does not take the others with it. */
static int stop_all(void **state)
{
    (void)state;
    for (int i = 1; i <= 5; i++) {
        sh(NULL, 20, "%s", xmigrate("a", "stop --force vm%d", i));
        sh(NULL, 20, "%s", xmigrate("b", "stop --force vm%d", i));
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
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
