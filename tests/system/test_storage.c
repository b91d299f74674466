/* SPDX-License-Identifier: MIT */
/* Moves of the disks alone, of the VM alone, and the nightly rebalancing. */
#include "tests/progress.h"
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Enough on the second disk for a datastore to be over its target with it. */
SMALL_GROUP("storage", "", .fill = 170)

static void both_disks_must_lie_in(const char *host, const char *where)
{
    char want[600], path[512];
    const char *disks[] = {"one", "two"};

    snprintf(want, sizeof(want), "%s/%s/", lab_store_dir(), where);
    for (int i = 0; i < 2; i++) {
        disk_path(host, "web1", disks[i], path, sizeof(path));
        if (strncmp(path, want, strlen(want)) != 0)
            fail_msg("disk %s is %s, not in %s", disks[i], path, want);
    }
}

/* Disk files of the VM on a host, in whatever datastore. */
static int count_files(const char *host, const char *vm)
{
    char *out = NULL;
    int n = -1;

    if (sh(&out, 10, "find %s/%s/ds1 %s/%s/ds2 -name '*%s*' -type f | wc -l", lab_store_dir(), host,
           lab_store_dir(), host, vm) == 0)
        n = atoi(out);
    free(out);
    return n;
}

/* Host A's ds2 lies on blocks of 4096 bytes from here on. */
static void a_disk_keeps_its_blocks_on_storage_with_larger_ones(void **state)
{
    char *out = NULL;
    const char *store = lab_store_dir();

    (void)state;
    need_lab();
    assert_int_equal(
        sh(NULL, 20,
           "umount %s/a/ds2 && dev=$(losetup --find --show --direct-io=on -b 4096 %s/a-ds2.img) && "
           "mount -o discard $dev %s/a/ds2 && losetup -d $dev",
           store, store, store),
        0);
    /* An image that was made for blocks of 512: its guest would not find its partitions. */
    assert_int_equal(
        sh(NULL, 20,
           "truncate -s 1M %s/a/ds2/gpt.img && printf 'EFI PART' | dd of=%s/a/ds2/gpt.img bs=512 "
           "seek=1 conv=notrunc status=none && printf '[vm]\nname = gpt1\nmemory = 64M\n[disk "
           "root]\ndatastore = ds2\nfile = gpt.img\n' >%s/gpt1.ini",
           store, store, lab_run_dir()),
        0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "define %s/gpt1.ini", lab_run_dir()), 0);
    assert_int_equal(sh(NULL, 20, "%s | grep -q 'block_size = 512'", xmigrate("a", "dump gpt1")), 0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "undefine gpt1"), 0);
    assert_int_equal(sh(NULL, 5, "rm %s/a/ds2/gpt.img", store), 0);
    assert_int_equal(sh(&out, 30, "%s", xmigrate("a", "--storage-only --dry-run web1 ds2")), 0);
    if (!strstr(out, "blocks of 512 bytes"))
        fail_msg("%s", out);
    free(out);
    assert_int_equal(xmigrate_run("a", 0, NULL, "--storage-only web1 ds2"), 0);
    small_must_be_whole(&guest, "a");
    /* What its next start will show it. */
    assert_int_equal(sh(NULL, 20, "test $(%s | grep -c 'block_size = 512') = 2", xmigrate("a", "dump web1")),
                     0);
    /* Away from there again, to a host whose storage has small ones. */
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage web1 hostb"), 0);
    small_must_be_whole(&guest, "b");
    assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage web1 hosta:ds1"), 0);
}

static void disks_move_under_a_running_vm(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(xmigrate_run("a", 0, NULL, "--storage-only web1 ds2"), 0);
    both_disks_must_lie_in("a", "a/ds2");
    vm_must_run_at("a", "web1");
    small_must_be_whole(&guest, "a");
    assert_int_equal(sh(NULL, 5, "test -z \"$(find %s/a/ds1 -type f)\"", lab_store_dir()), 0);
}

static int used_percent(const char *datastore)
{
    char *out = NULL;
    int used;

    assert_int_equal(sh(&out, 5, "df --output=pcent %s/%s | tail -n 1", lab_store_dir(), datastore), 0);
    used = atoi(out);
    free(out);
    return used;
}

/* Both disks lie in ds2 with a filler beside them, so that it is over its target of 60 %. */
static void rebalancing_brings_it_below_the_target(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(sh(NULL, 10, "fallocate -l 1650M %s/a/ds2/filler", lab_store_dir()), 0);
    assert_true(used_percent("a/ds2") > 60);
    assert_int_equal(xmigrate_run("a", 0, NULL, "--json rebalance --dry-run"), 0);
    assert_true(used_percent("a/ds2") > 60); /* dry */
    assert_int_equal(xmigrate_run("a", 0, NULL, "rebalance"), 0);
    assert_true(used_percent("a/ds2") <= 60);
    assert_true(used_percent("a/ds1") <= 60);
    small_must_be_whole(&guest, "a");
    assert_int_equal(sh(NULL, 5, "rm %s/a/ds2/filler", lab_store_dir()), 0);
}

static void the_vm_alone_moves_on_shared_storage(void **state)
{
    json_t *done = NULL;

    (void)state;
    need_lab();
    sh(NULL, 5, "rm -f %s/a/ds2/filler", lab_store_dir()); /* a failure may have left it */
    if (sh(NULL, 20, "%s", xmigrate("a", "--json show web1")) == 0)
        assert_int_equal(xmigrate_run("a", 0, NULL, "--storage-only web1 shared"), 0);
    both_disks_must_lie_in("a", "shared");
    assert_int_equal(xmigrate_run("a", 0, &done, "--json web1 hostb"), 0);
    assert_true(number(done, "disk_bytes") == 0);
    json_decref(done);
    vm_must_run_at("b", "web1");
    both_disks_must_lie_in("b", "shared");
    small_must_be_whole(&guest, "b");
    host_must_be_clean("a");
}

/* What is not shared is refused, though a path of that name may well exist. */
static void storage_of_its_own_is_no_shared_storage(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(xmigrate_run("b", 0, NULL, "--storage-only web1 ds1"), 0);
    assert_int_equal(xmigrate_run("b", 3, NULL, "web1 hosta"), 3);
    vm_must_run_at("b", "web1");
    small_must_be_whole(&guest, "b");
}

/* Of what a move printed; returns how long it took. What broke: 99 % of the last move, then 5 %; a rate of 0;
 * and 98 % until all had been read again. */
static double progress_must_be_its_own(char *out)
{
    bool first = true, rate = false, verified = false;
    double took = 0;

    for (char *line = strtok(out, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *o = json_loads(line, 0, NULL);
        if (!strcmp(string(o, "event"), "progress") && !strcmp(string(o, "state"), "disks")) {
            if (first && number(o, "bytes_done") * 10 > number(o, "bytes_total"))
                fail_msg("%s", line);
            first = false;
            rate |= number(o, "rate") > 0;
            verified |= number(o, "verify_total") > 0;
        }
        took = number(o, "total_s");
        json_decref(o);
    }
    assert_true(!first && rate && verified);
    return took;
}

/* Both disks have some 180 MiB in all: at 60 MB/s they are over in 3 s, and something fills the datastore
 * meanwhile. */
static void min_free_stays_free_and_the_rate_holds(void **state)
{
    struct job move;
    char *out = NULL;
    (void)state;

    need_lab();
    sh(NULL, 30, "cd %s/b/ds2 && fallocate -l $(($(stat -f -c '%%a * %%S' .) - (300 << 20))) .full",
       lab_store_dir());
    job_start(&move, "%s", xmigrate("b", "--json --storage-only --bandwidth 60MB web1 ds2"));
    bool copies = job_saw(&move, "\"disks\"", 60);
    sh(NULL, 30, "fallocate -l 200M %s/b/ds2/.more", lab_store_dir());
    int code = job_end(&move, 60, &out);
    sh(NULL, 30, "rm -f %s/b/ds2/.full %s/b/ds2/.more", lab_store_dir(), lab_store_dir());
    if (!copies || code != 1 || !strstr(out, "datastore 'ds2' on hostb is full: 64.00 MiB of it stay free"))
        fail_msg("exit status %d: %s", code, out);
    free(out);
    both_disks_must_lie_in("b", "b/ds1");
    assert_int_equal(count_files("b", "web1"), 2);
    job_start(&move, "%s", xmigrate("b", "--json --storage-only --verify --bandwidth 60MB web1 ds2"));
    assert_int_equal(job_end(&move, 60, &out), 0);
    double took = progress_must_be_its_own(out);
    if (took < 2)
        fail_msg("170 MiB at 60 MB/s took %.1f s", took);
    free(out);
    both_disks_must_lie_in("b", "b/ds2");
    vm_must_run_at("b", "web1");
    small_must_be_whole(&guest, "b");
}

/* The shim dies at the moment of the swap, right before or after the new path is durable: the next one has
 * the disk that holds all that the guest was told to be written, and what is left of the other one goes. */
/* One of its two disks is there already. What broke: that one counted as left to be copied, to the end. */
static void the_rest_moves(void)
{
    struct job move;
    char *out = NULL;
    bool told = false;

    shim_is_killed("a", "web1"); /* it was started with the fault, too */
    vm_must_run_at("a", "web1");
    job_start(&move, "%s", xmigrate("a", "--json --storage-only web1 ds2"));
    if (job_end(&move, 60, &out) != 0)
        fail_msg("%s", out);
    for (char *line = strtok(out, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *o = json_loads(line, 0, NULL), *disks = json_object_get(o, "disks");
        if (!strcmp(string(o, "event"), "progress") && json_array_size(disks) != 1)
            fail_msg("%s", line);
        told |= disks != NULL;
        json_decref(o);
    }
    free(out);
    assert_true(told);
    both_disks_must_lie_in("a", "a/ds2");
}

static void dies_in_the_swap(const char *point)
{
    int left = -1;

    sh(NULL, 5, "kill -9 $(cat %s/a/agent.pid)", lab_run_dir());
    assert_int_equal(sh(NULL, 30, "XMIGRATE_FAULT=%s:1:kill tests/system/lab.sh agent a", point), 0);
    /* A shim with the fault: it comes by a move. */
    assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage web1 hosta:ds1"), 0);
    sh(NULL, 60, "%s", xmigrate("a", "--storage-only web1 ds2"));
    sh(NULL, 5, "kill -9 $(cat %s/a/agent.pid)", lab_run_dir());
    assert_int_equal(sh(NULL, 30, "tests/system/lab.sh agent a"), 0);
    vm_must_run_at("a", "web1");
    small_must_be_whole(&guest, "a");
    for (struct limit l = limit_start(30); left != 2 && limit_wait(&l);)
        left = count_files("a", "web1");
    assert_int_equal(left, 2);
    if (!strcmp(point, "pivot-after-record"))
        the_rest_moves();
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage web1 hostb:ds1"), 0);
    vm_must_run_at("b", "web1");
    small_must_be_whole(&guest, "b");
}

static void the_shim_dies_before_the_new_path_is_recorded(void **state)
{
    (void)state;
    need_lab();
    dies_in_the_swap("pivot-before-record");
}

static void the_shim_dies_after_the_new_path_is_recorded(void **state)
{
    (void)state;
    need_lab();
    dies_in_the_swap("pivot-after-record");
}

/* The state directory's file system fails after spec.json has been renamed, and again when the old path is
 * written: which one will stand there after a power cut is not known. The disk stays where it is, and
 * nothing is deleted that it needs; when the state directory can be written again, the record is right
 * again. */
static void where_the_disk_is_cannot_be_recorded(void **state)
{
    const char *run = lab_run_dir(), *store = lab_store_dir();
    char *out = NULL;
    int left = -1;

    (void)state;
    need_lab();
    if (sh(NULL, 20, "%s", xmigrate("a", "--json show web1")) == 0)
        assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage web1 hostb:ds1"), 0);
    sh(NULL, 5, "kill -9 $(cat %s/a/agent.pid)", run);
    assert_int_equal(sh(NULL, 30, "XMIGRATE_FAULT=@%s/a/fault tests/system/lab.sh agent a", run), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage web1 hosta:ds1"), 0);
    sh(NULL, 5, "echo 'renamed-spec.json:*:error' > %s/a/fault", run);
    int code = sh(&out, 60, "%s", xmigrate("a", "--storage-only web1 ds2"));
    if (code != 1 || !strstr(out, "is not to be stopped before"))
        fail_msg("exit status %d: %s", code, out);
    free(out);
    /* Whichever path spec.json has now: nor does an agent that has just started, and looks for what is left.
     */
    sh(NULL, 5, "kill -9 $(cat %s/a/agent.pid)", run);
    assert_int_equal(sh(NULL, 30, "tests/system/lab.sh agent a"), 0);
    vm_must_run_at("a", "web1");
    small_must_be_whole(&guest, "a");
    assert_int_equal(
        sh(NULL, 5, "! ls -l /proc/$(cat %s/a/vms/web1/shim.pid)/fd | grep 'raw (deleted)'", run), 0);
    both_disks_must_lie_in("a", "a/ds1");
    sh(NULL, 5, "rm -f %s/a/fault", run);
    for (struct limit l = limit_start(30); left != 2 && limit_wait(&l);)
        left = count_files("a", "web1");
    assert_int_equal(left, 2);
    /* The next shim goes by what is recorded. */
    sh(NULL, 5, "kill -9 $(cat %s/a/vms/web1/shim.pid)", run);
    small_must_be_whole(&guest, "a");
    both_disks_must_lie_in("a", "a/ds1");
    assert_int_equal(sh(NULL, 5, "test -z \"$(find %s/a/ds2 -name '*web1*' -type f)\"", store), 0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage web1 hostb:ds1"), 0);
    vm_must_run_at("b", "web1");
    small_must_be_whole(&guest, "b");
}

static bool says_no_room(void)
{
    char *out = NULL;
    bool says = sh(&out, 20, "%s", xmigrate("a", "list")) == 0 && strstr(out, "no room");

    free(out);
    return says;
}

/* Its disks have nothing yet, and its datastore has no room for anything: it has no I/O error, which it
 * would tell. Where there is room it goes on. */
static void a_guest_without_room_waits_for_it(void **state)
{
    static const struct small_options no_nic = {.no_nic = true};
    struct small g;
    char spec[256], *out = NULL;
    bool waits = false;
    (void)state;

    need_lab();
    small_init(&g, "full1");
    snprintf(spec, sizeof spec, "%s/full1.ini", lab_run_dir());
    assert_true(small_write_spec(&g, spec, &no_nic));
    assert_int_equal(sh(NULL, 20, "%s", xmigrate("a", "define %s", spec)), 0);
    sh(NULL, 30,
       "cd %s/a/ds1 && fallocate -l $(($(stat -f -c '%%f * %%S' .) - (8 << 20))) .full; "
       "head -c 64M /dev/zero >.rest",
       lab_store_dir());
    int code = sh(&out, 30, "%s", xmigrate("a", "start full1"));
    for (struct limit l = limit_start(20); !code && !waits && limit_wait(&l);)
        waits = says_no_room();
    char *moved = NULL;
    int there = sh(&moved, 60, "%s", xmigrate("a", "--with-storage full1 hostb:ds2"));
    int beside = sh(NULL, 60, "%s", xmigrate("a", "--storage-only full1 ds2"));
    const char *why = beside ? NULL : small_ready(&g, 'a');
    if (!beside && !why)
        why = small_check(&g);
    bool still = says_no_room();
    sh(NULL, 30, "rm -f %s/a/ds1/.full %s/a/ds1/.rest; %s; %s; rm -f %s/a/ds2/*full1*", lab_store_dir(),
       lab_store_dir(), xmigrate("a", "stop --force full1"), xmigrate("a", "undefine full1"),
       lab_store_dir());
    small_free(&g);
    if (code || !waits)
        fail_msg("it does not wait for room: %s", out);
    if (there != 1 || !strstr(moved, "there is no room in the file system of"))
        fail_msg("exit status %d: %s", there, moved);
    free(out);
    free(moved);
    assert_int_equal(beside, 0);
    if (why || still)
        fail_msg("where there is room: %s", why ? why : "it waits still");
}

/* What both hosts reach is full, and the guest is paused: its write is in QEMU here alone. What broke: the VM
 * moved, and nobody would ever have answered it; and still so when its shim had been killed meanwhile. (The
 * file that tells who reaches a datastore needs room, too, which a guest that runs would have had first.) */
static void a_guest_without_room_does_not_move_alone(void **state)
{
    static const struct small_options no_nic = {.no_nic = true};
    struct small g;
    char spec[256], dir[512], *out = NULL, *moved = NULL, *anew = NULL;
    bool waits = false;
    (void)state;

    need_lab();
    small_init(&g, "full2");
    snprintf(spec, sizeof spec, "%s/full2.ini", lab_run_dir());
    snprintf(dir, sizeof dir, "%s/shared", lab_store_dir());
    assert_true(small_write_spec(&g, spec, &no_nic));
    assert_int_equal(sh(NULL, 20,
                        "cp -a %s/.xmigrate-datastore %s.mark; mount -t tmpfs -o size=100M tmpfs %s && "
                        "{ mv %s.mark %s/.xmigrate-datastore || :; } && "
                        "sed -i 's/= ds1/= shared/; s|^.vm.$|&\\nextra = -qmp\\nextra = "
                        "tcp:127.0.0.1:4444,server=on,wait=off|' %s",
                        dir, dir, dir, dir, dir, spec),
                     0);
    assert_int_equal(
        sh(NULL, 30,
           "sed -i '/^.peer/a extra = -qmp tcp:127.0.0.1:4444,server=on,wait=off' %s/b/xmigrated.conf; "
           "kill -9 $(cat %s/b/agent.pid); tests/system/lab.sh agent b",
           lab_run_dir(), lab_run_dir()),
        0);
    int code = sh(&out, 30, "%s", xmigrate("a", "define %s", spec));
    sh(NULL, 30, "head -c 200M /dev/zero >%s/.full", dir);
    if (!code)
        code = sh(&out, 30, "%s", xmigrate("a", "start full2"));
    for (struct limit l = limit_start(20); !code && !waits && limit_wait(&l);)
        waits = says_no_room();
    if (waits)
        vm_monitor("a", "stop", "STOP");
    sh(NULL, 5, "truncate -s -64K %s/.full", dir);
    int there = sh(&moved, 60, "%s", xmigrate("a", "full2 hostb")), again = 1;
    if (waits && there) {
        sh(NULL, 30, "head -c 200M /dev/zero >>%s/.full", dir);
        vm_monitor("a", "cont", "RESUME");
        waits = says_no_room();
        for (struct limit l = limit_start(20); !waits && limit_wait(&l);)
            waits = says_no_room();
        vm_monitor("a", "stop", "STOP");
        sh(NULL, 5, "truncate -s -64K %s/.full", dir);
        shim_is_killed("a", "full2");
        again = sh(&anew, 60, "%s", xmigrate("a", "full2 hostb"));
    }
    sh(NULL, 5, "rm -f %s/.full", dir);
    const char *host = there && again ? "a" : "b", *why = NULL;
    if (waits && there)
        vm_monitor(host, "cont", "RESUME");
    if (waits && there)
        why = small_ready(&g, *host);
    if (waits && there && !why)
        why = small_check(&g);
    sh(NULL, 30, "%s; %s; umount -l %s", xmigrate(host, "stop --force full2"),
       xmigrate(host, "undefine full2"), dir);
    small_free(&g);
    if (code || !waits)
        fail_msg("it does not wait for room: %s", out);
    if (there != 1 || !strstr(moved, "there is no room in the file system of"))
        fail_msg("exit status %d: %s", there, moved);
    /* QEMU 10 gives the disk of a paused guest to the new shim, which may have done it by now. */
    if (again && (again != 1 || !strstr(anew, "is not done yet")))
        fail_msg("with another shim, exit status %d: %s", again, anew);
    free(out);
    free(moved);
    free(anew);
    if (why)
        fail_msg("where there is room: %s", why);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_disk_keeps_its_blocks_on_storage_with_larger_ones),
        cmocka_unit_test(disks_move_under_a_running_vm),
        cmocka_unit_test(rebalancing_brings_it_below_the_target),
        cmocka_unit_test(the_vm_alone_moves_on_shared_storage),
        cmocka_unit_test(storage_of_its_own_is_no_shared_storage),
        cmocka_unit_test(min_free_stays_free_and_the_rate_holds),
        cmocka_unit_test(a_guest_without_room_waits_for_it),
        cmocka_unit_test(a_guest_without_room_does_not_move_alone),
        cmocka_unit_test(the_shim_dies_before_the_new_path_is_recorded),
        cmocka_unit_test(the_shim_dies_after_the_new_path_is_recorded),
        cmocka_unit_test(where_the_disk_is_cannot_be_recorded),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
