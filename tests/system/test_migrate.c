/* SPDX-License-Identifier: MIT */
/* The whole path: a guest at work moves with its disks, and nothing notices but the report. */
#include "tests/progress.h"
#include "tests/system/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each verification reads what the records span, under TCG: it has to be enough to be copied while it
 * changes. */
LAB_GROUP("move", "XM_LAB_FAULTS=yes XM_LAB_APPEND='xm.disk=vda:rate=4M:span=96M:trim=16M:prefilled "
                  "xm.disk=vdb:rate=2M:span=32M:prefilled xm.mem=64M:rate=16M' ")

/* What watches the guest from outside while it moves. */
struct watchers {
    struct job echo, beat, pulse;
};

static void watch_begin(struct watchers *w)
{
    job_start(&w->echo, "%s", as_client("echo %s 0", GUEST));
    job_start(&w->beat, "%s", as_client("heartbeat %s 0", GUEST));
    job_start(&w->pulse, "%s", as_client("pulse %s 0", GUEST));
}

/* Both TCP connections have lived; returns the longest silence, in ms. */
static double watch_end(struct watchers *w)
{
    char *out = NULL;
    double gap;
    json_t *o;

    job_signal(&w->echo, SIGTERM);
    job_signal(&w->beat, SIGTERM);
    job_signal(&w->pulse, SIGTERM);
    assert_int_equal(job_end(&w->echo, 10, NULL), 0);
    assert_int_equal(job_end(&w->beat, 10, NULL), 0);
    assert_int_equal(job_end(&w->pulse, 10, &out), 0);
    o = last_json(out);
    gap = number(o, "longest_gap_ms");
    json_decref(o);
    free(out);
    return gap;
}

static void report_must_be_whole(const json_t *done, const char *from, const char *to)
{
    static const char *const numbers[] = {
        "total_s", "downtime_ms", "downtime_budget_ms", "disk_bytes", "ram_bytes", "wire_bytes", "rounds"};

    assert_string_equal(string(done, "event"), "done");
    assert_string_equal(string(done, "vm"), "web1");
    assert_string_equal(string(done, "source"), from);
    assert_string_equal(string(done, "destination"), to);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (number(done, numbers[i]) <= 0)
            fail_msg("the report has no %s", numbers[i]);
    assert_non_null(json_object_get(done, "mirror"));
    assert_non_null(json_object_get(done, "digest"));
}

static void busy_guest_moves_with_its_disks(void **state)
{
    char src_system[512], src_data[512], system[512], data[512];
    struct watchers w;
    json_t *done = NULL;
    char *out = NULL;
    double gap;

    (void)state;
    need_lab();
    disk_path("a", "web1", "system", src_system, sizeof(src_system));
    disk_path("a", "web1", "data", src_data, sizeof(src_data));
    assert_string_not_equal(src_system, "");
    watch_begin(&w);
    assert_int_equal(xmigrate_run("a", 0, &done, "--json --with-storage --keep-source web1 hostb"), 0);
    vm_must_run_at("b", "web1");
    gap = watch_end(&w);
    report_must_be_whole(done, "hosta", "hostb");
    assert_string_equal(json_string_value(json_array_get(json_object_get(done, "kept_disks"), 1)), src_data);
    print_message("downtime: report %.1f ms, longest silence outside %.1f ms; total %.2f s\n",
                  number(done, "downtime_ms"), gap, number(done, "total_s"));
    /* Not of our making on a busy machine; the bench has it. But a network that has forgotten the guest is
     * dark until ARP asks. */
    assert_true(gap < 15000);
    assert_true(number(done, "downtime_ms") <= gap + 20); /* no longer than was seen */
    json_decref(done);
    guest_verify();
    disk_path("b", "web1", "system", system, sizeof(system));
    disk_path("b", "web1", "data", data, sizeof(data));
    assert_int_equal(sh(NULL, 60, "build/guest/xm-client compare %s %s vda 7 96M 16M", src_system, system),
                     0);
    assert_int_equal(sh(NULL, 60, "build/guest/xm-client compare %s %s vdb 7 32M 0", src_data, data), 0);
    /* The source keeps the disks, as asked, and the definition that they were in. */
    assert_int_equal(sh(&out, 10, "%s", xmigrate("a", "dump web1")), 0);
    assert_non_null(strstr(out, "note: VM web1 is hostb's"));
    assert_non_null(strstr(out, "[disk data]"));
    free(out);
    assert_int_equal(sh(NULL, 10, "EDITOR=true %s", xmigrate("a", "edit web1")), 1);
    assert_int_equal(sh(NULL, 10, "rm %s", src_data), 0);
    host_must_be_clean("a");
}

/* 1 GiB with 384 MiB of data in it must not become 1 GiB. */
static void thin_disk_stays_thin(void **state)
{
    char system[512];

    (void)state;
    need_lab();
    disk_path("b", "web1", "system", system, sizeof(system));
    assert_int_equal(sh(NULL, 10, "test $(stat -c %%s %s) = 1073741824", system), 0);
    assert_int_equal(sh(NULL, 10, "test $(($(stat -c %%b %s) * 512)) -lt 500000000", system), 0);
}

/* All that is copied of the thin disk of 1 GiB is its data, and at the end all of that is. */
static void progress_must_count_data(const char *lines)
{
    int64_t done = -1, total = -1;
    const char *at;

    for (const char *l = lines; (l = strstr(l, "\"bytes_done\":")); l++) {
        done = atoll(strchr(l, ':') + 1);
        assert_non_null(at = strstr(l, "\"bytes_total\":"));
        total = atoll(strchr(at, ':') + 1);
        assert_true(done <= total);
    }
    print_message("progress: %lld of %lld bytes at the end\n", (long long)done, (long long)total);
    assert_true(done == total && total > 100 << 20 && total < 1 << 30);
}

/* With the guest's writers at rest over the switch, both sides' disks are the same to the last byte. */
static void resting_disks_are_identical(void **state)
{
    char src_system[512], src_data[512], system[512], data[512];
    struct job move;
    char *out = NULL;

    (void)state;
    need_lab();
    disk_path("b", "web1", "system", src_system, sizeof(src_system));
    disk_path("b", "web1", "data", src_data, sizeof(src_data));
    /* The writers rest only when the copying has begun: so the mirror had work, and its last writes are
     * compared too. */
    job_start(&move, "%s", xmigrate("b", "--json --with-storage --keep-source --downtime 200 web1 hosta"));
    assert_true(job_saw(&move, "\"disks\"", 30));
    guest_must("pause");
    assert_int_equal(job_end(&move, 120, &out), 0);
    progress_must_count_data(out);
    free(out);
    vm_must_run_at("a", "web1");
    disk_path("a", "web1", "system", system, sizeof(system));
    disk_path("a", "web1", "data", data, sizeof(data));
    assert_int_equal(sh(NULL, 60, "cmp %s %s", src_system, system), 0);
    assert_int_equal(sh(NULL, 60, "cmp %s %s", src_data, data), 0);
    guest_must("resume");
    guest_verify();
    assert_int_equal(sh(NULL, 10, "rm %s %s", src_system, src_data), 0);
    host_must_be_clean("b");
    /* What its switches took has come with it. */
    assert_int_equal(sh(&out, 20, "%s", xmigrate("a", "check --with-storage web1 hostb")), 0);
    if (!strstr(out, "in its switch-over, by its last moves"))
        fail_msg("%s", out);
    free(out);
}

static void without_keep_source_nothing_is_left(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage web1 hostb"), 0);
    vm_must_run_at("b", "web1");
    guest_verify();
    host_must_be_clean("a");
}

/* One datagram, which nobody sends again, and the answer to it. What broke: it was the tap's of a guest that
 * had gone, and a TCP connection waited 200 ms and more for its retransmission. */
static void what_comes_while_it_stands_follows_it(void **state)
{
    struct job move, ask;
    char *out = NULL, now[32];

    (void)state;
    need_lab();
    vm_state("b", "web1", now, sizeof(now));
    const char *from = strcmp(now, "running") ? "a" : "b", *to = *from == 'a' ? "b" : "a";
    assert_int_equal(sh(NULL, 5, "echo switch-stopped:1:stop >%s/%s/fault", lab_run_dir(), from), 0);
    job_start(&move, "%s", xmigrate(from, "--json --with-storage --downtime 30s web1 host%s", to));
    if (!wait_until(60, "grep -q '^State:.T' /proc/$(cat %s/%s/run/vms/web1/shim.pid)/status", lab_run_dir(),
                    from))
        fail_msg("the guest was never stopped");
    job_start(&ask,
              "exec tests/system/lab.sh run client bash -c "
              "'exec 3<>/dev/udp/%s/7002; printf beat >&3; echo sent; head -c 8 <&3 | wc -c'",
              GUEST);
    assert_true(job_saw(&ask, "sent", 10));
    assert_int_equal(sh(NULL, 5, "kill -CONT $(cat %s/%s/run/vms/web1/shim.pid)", lab_run_dir(), from), 0);
    assert_int_equal(job_end(&ask, 20, NULL), 0);
    assert_int_equal(job_end(&move, 60, &out), 0);
    json_t *o = last_json(out);
    assert_true(number(o, "late_frames") > 0);
    json_decref(o);
    free(out);
    vm_must_run_at(to, "web1");
    assert_int_equal(xmigrate_run(to, 0, NULL, "--with-storage web1 host%s", from), 0);
    vm_must_run_at(from, "web1");
}

static void refusals_change_nothing(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(xmigrate_run("b", 3, NULL, "--with-storage web1 nowhere"), 3);
    assert_int_equal(xmigrate_run("b", 3, NULL, "--with-storage web1 hosta:nosuchstore"), 3);
    assert_int_not_equal(xmigrate_run("b", 3, NULL, "--with-storage nosuchvm hosta"), 0);
    /* No room: the datastore has 3 GiB. */
    assert_int_equal(sh(NULL, 30, "fallocate -l 2700M %s/a/ds2/filler", lab_store_dir()), 0);
    assert_int_equal(xmigrate_run("b", 3, NULL, "--with-storage web1 hosta:ds2"), 3);
    assert_int_equal(sh(NULL, 10, "rm %s/a/ds2/filler", lab_store_dir()), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "check --with-storage web1 hosta"), 0);
    vm_must_run_at("b", "web1");
    guest_verify();
    host_must_be_clean("a");
}

/* Seen: exit status 4, and the advice to ask `recover` whose the VM is. It is here, and stopped. */
static void the_guest_powers_down_while_its_disks_move(void **state)
{
    struct job move, quit;
    char *out = NULL, now[32] = "";
    json_t *o;

    (void)state;
    need_lab();
    job_start(&move, "%s", xmigrate("b", "--json --with-storage --bandwidth 5M web1 hosta"));
    assert_true(job_saw(&move, "\"disks\"", 60));
    job_start(&quit, "%s", as_client("cmd %s quit", GUEST));
    assert_int_equal(job_end(&move, 120, &out), 1);
    job_end(&quit, 1, NULL); /* it is not answered any more */
    o = last_json(out);
    if (!strstr(string(o, "error"), "its guest powered itself down") || !truth(o, "stopped") ||
        !truth(o, "vm_safe"))
        fail_msg("it says: %s", string(o, "error"));
    json_decref(o);
    free(out);
    for (struct limit l = limit_start(60); strcmp(now, "stopped") != 0 && limit_wait(&l);)
        vm_state("b", "web1", now, sizeof(now));
    host_must_be_clean("a");
    assert_int_equal(xmigrate_run("b", 0, NULL, "start web1"), 0);
    guest_must_come("b", "web1");
}

static void stop_powers_the_guest_down(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop web1"), 0);
    assert_int_equal(sh(NULL, 10, "rm -f %s/b/ds1/*.img %s/b/ds1/web1* %s/b/ds2/web1*", lab_store_dir(),
                        lab_store_dir(), lab_store_dir()),
                     0);
    host_must_be_clean("b");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(busy_guest_moves_with_its_disks),
        cmocka_unit_test(thin_disk_stays_thin),
        cmocka_unit_test(resting_disks_are_identical),
        cmocka_unit_test(without_keep_source_nothing_is_left),
        cmocka_unit_test(what_comes_while_it_stands_follows_it),
        cmocka_unit_test(refusals_change_nothing),
        cmocka_unit_test(the_guest_powers_down_while_its_disks_move),
        cmocka_unit_test(stop_powers_the_guest_down),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
