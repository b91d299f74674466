/* SPDX-License-Identifier: MIT */
/* What a VM is stands in one place: after moves, stops, agents' ends and boots, `start NAME` on its owner
 * boots the disks that it has, and nothing else does. The tests go on with one guest, the one without an
 * operating system, each where the one before has left it: at a, b, a, b, a. One with Linux is there for
 * what needs one: its console, and that it powers off.
 *
 * Which disk it is tell marks that were written to each when it was new, behind what the guest uses; and the
 * guest finds there what it had been told to be written. */
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "tests/progress.h"

#define MARK_AT 2 /* MiB, of 4 */

SMALL_GROUP("inventory", "")

/* ---- words ---- */

static void vm_must_be(const char *host, const char *name, const char *state, const char *why)
{
    json_t *o = NULL;
    const json_t *vm;

    assert_int_equal(xmigrate_run(host, 0, &o, "--json show %s", name), 0);
    vm = json_object_get(o, "vm");
    assert_string_equal(string(vm, "state"), state);
    if (*why)
        assert_string_equal(string(json_object_get(vm, "ended"), "why"), why);
    json_decref(o);
}

static void must_be(const char *host, const char *state, const char *why)
{
    vm_must_be(host, "web1", state, why);
}

static void must_stop(const char *host, const char *name, const char *why)
{
    char is[32] = "";

    for (struct limit l = limit_start(20); strcmp(is, "stopped") && limit_wait(&l);)
        vm_state(host, name, is, sizeof(is));
    vm_must_be(host, name, "stopped", why);
}

/* Refused with exit status 3, in a sentence with both texts. */
static void must_refuse(const char *host, const char *words, const char *text, const char *other)
{
    json_t *o = NULL;

    assert_int_equal(xmigrate_run(host, 3, &o, "--json %s", words), 3);
    if (!strstr(string(o, "error"), text) || !strstr(string(o, "error"), other))
        fail_msg("%s was refused with: %s", words, string(o, "error"));
    json_decref(o);
}

static const char *start_spec(void)
{
    static char words[200];

    snprintf(words, sizeof(words), "start %s/web1.ini", lab_run_dir());
    return words;
}

static const char *spec_path(const char *host)
{
    static char path[600];

    snprintf(path, sizeof(path), "%s/%s/ds1/web1-1.img", lab_store_dir(), host);
    return path;
}

static void must_come(const char *host)
{
    small_must_be_whole(&guest, host);
    vm_must_run_at(host, "web1");
}

static void disks_must_be_right(const char *host)
{
    const char *const disks[] = {"one", "two"};

    for (size_t i = 0; i < 2; i++) {
        char path[512];
        disk_path(host, "web1", disks[i], path, sizeof(path));
        if (sh(NULL, 10,
               "dd if=%s bs=1M skip=%d count=1 iflag=direct status=none | head -c 40 | grep -q 'mark of disk "
               "%zu'",
               path, MARK_AT, i + 1) != 0)
            fail_msg("%s is not the disk '%s' that the VM had", path, disks[i]);
    }
}

static void agent_again(const char *host)
{
    sh(NULL, 5, "kill -9 $(cat %s/%s/agent.pid)", lab_run_dir(), host);
    assert_int_equal(sh(NULL, 30, "tests/system/lab.sh agent %s", host), 0);
}

/* All processes at once, and what is made of memory. */
static void reboot(const char *host)
{
    /* Again and again: one that was being started when the others were listed lives on. */
    assert_true(wait_until(30, "p=$(ip netns pids %s-host%s); test -z \"$p\" || { kill -9 $p; false; }",
                           lab_prefix(), host));
    assert_int_equal(sh(NULL, 10,
                        "rm -rf %s/%s/run; for t in $(ip -n %s-host%s -o link show type tun | cut -d: -f2); "
                        "do ip -n %s-host%s link del $t; done",
                        lab_run_dir(), host, lab_prefix(), host, lab_prefix(), host),
                     0);
    assert_int_equal(sh(NULL, 30, "tests/system/lab.sh agent %s", host), 0);
    /* Killed before this, the next agent would go on with it. */
    assert_true(wait_until(60, "grep -q '\"autostart\": true' %s/%s/run/boot.json", lab_run_dir(), host));
}

/* ---- the tests ---- */

/* With the manual's own example, file= in a datastore: after a move it names what is not the VM's. */
static void moved_and_stopped_it_starts_at_its_owner(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(
        sh(NULL, 10,
           "for d in 1 2; do { echo \"mark of disk $d\"; head -c 1M /dev/zero; } | head -c 1M | "
           "dd of=%s/a/ds1/web1-$d.img bs=1M seek=%d conv=notrunc oflag=direct iflag=fullblock status=none "
           "|| "
           "exit 1; done",
           lab_store_dir(), MARK_AT),
        0);
    disks_must_be_right("a");
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage web1 hostb:ds1"), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop --force web1"), 0);
    must_be("b", "stopped", "forced");

    must_refuse("a", "start web1", "hostb", "epoch 2");
    must_refuse("a", start_spec(), "hostb", "epoch 2");
    must_refuse("b", start_spec(), spec_path("b"), "/web1-one.raw in the record");
    assert_int_equal(sh(NULL, 5, "test -e %s", spec_path("b")), 1);
    assert_int_equal(sh(NULL, 5, "test -e %s", spec_path("a")), 1);

    agent_again("b");
    agent_again("a");
    must_refuse("a", "start web1", "hostb", "epoch 2");
    assert_int_equal(xmigrate_run("b", 0, NULL, "start web1"), 0);
    must_come("b");
    disks_must_be_right("b");
}

static void moved_back_and_after_a_boot_likewise(void **state)
{
    (void)state;
    need_lab();
    /* What broke: after the boot it was told since when it ran here the time before. */
    assert_int_equal(
        sh(NULL, 5, "sed -i 's/\"at\": [0-9]*/\"at\": 1/' %s/a/state/vms/web1/life.json", lab_run_dir()), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage web1 hosta:ds2"), 0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "--storage-only web1 ds1"), 0);
    assert_int_equal(sh(NULL, 5, "grep -q '\"at\": [0-9][0-9]' %s/a/state/vms/web1/life.json", lab_run_dir()),
                     0);
    reboot("a");
    must_be("a", "stopped", "reboot");
    must_refuse("a", start_spec(), spec_path("a"), "/web1-one.raw in the record");
    must_refuse("b", "start web1", "hosta", "epoch 3");
    assert_int_equal(xmigrate_run("a", 0, NULL, "start web1"), 0);
    must_come("a");
    disks_must_be_right("a");
}

/* Autostart is the VM's, wherever it is: set at a, it counts at b. Not for one that is stopped on purpose. */
static void autostart_goes_with_it(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(xmigrate_run("a", 0, NULL, "set web1 --autostart yes"), 0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage web1 hostb:ds1"), 0);
    agent_again("b"); /* which adopts it by its definition */
    reboot("b");
    must_come("b");
    disks_must_be_right("b");
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop --force web1"), 0);
    agent_again("b");
    must_be("b", "stopped", "forced");
    reboot("a"); /* which gave it away */
    assert_int_not_equal(xmigrate_run("a", 1, NULL, "--json show web1"), 0);
    must_be("b", "stopped", "forced");
}

/* Nobody makes an empty disk in the directory below; and it starts by itself when that is mounted. */
static void with_its_datastore_unmounted_nothing_is_made(void **state)
{
    char path[512];
    const char *ds;

    (void)state;
    need_lab();
    disk_path("b", "web1", "one", path, sizeof(path));
    ds = strstr(path, "/ds2/") ? "ds2" : "ds1";
    assert_int_equal(sh(NULL, 10, "umount %s/b/%s", lab_store_dir(), ds), 0);
    must_refuse("b", "start web1", path, "mounted");
    assert_int_equal(xmigrate_run("b", 0, NULL, "recover web1"), 0); /* starts nothing that was stopped */
    reboot("b");                                                     /* autostart */
    must_be("b", "stopped", "");
    int left = sh(NULL, 5, "test -z \"$(ls -A %s/b/%s)\"", lab_store_dir(), ds);
    assert_int_equal(
        sh(NULL, 20, "mount -o loop,discard %s/b-%s.img %s/b/%s", lab_store_dir(), ds, lab_store_dir(), ds),
        0);
    assert_int_equal(left, 0);
    agent_again("b"); /* which knows of it */
    must_come("b");
    disks_must_be_right("b");
    assert_int_equal(xmigrate_run("b", 0, NULL, "set web1 --autostart no"), 0);
}

/* ---- console, log, edit ---- */

/* What `xmigrate console` says on a terminal, until it contains the text. */
static bool terminal_says(int fd, char *all, size_t size, const char *text)
{
    size_t n = strlen(all);

    for (struct limit l = limit_start(20); limit_wait(&l);) {
        ssize_t got = n < size - 1 ? read(fd, all + n, size - 1 - n) : 0;
        if (got > 0)
            all[n += (size_t)got] = 0;
        if (strstr(all, text))
            return true;
    }
    return false;
}

/* One with Linux, in a second VM. */
static void start_linux(const char *host)
{
    assert_int_equal(sh(NULL, 5,
                        "printf '[vm]\\nname = linux1\\nmemory = 256M\\nvcpus = 1\\naccel = tcg\\nkernel = "
                        "%%s\\ninitrd = %%s\\n"
                        "append = console=ttyS0 quiet no_timer_check xm.seed=7 xm.ip=" GUEST "/24\\n"
                        "[nic lan]\\nbridge = br0\\n' $PWD/build/guest/kernel/vmlinuz "
                        "$PWD/build/guest/initramfs >%s/linux1.ini",
                        lab_run_dir()),
                     0);
    assert_int_equal(xmigrate_run(host, 0, NULL, "start %s/linux1.ini", lab_run_dir()), 0);
    guest_must_come(host, "linux1");
}

static void the_console_is_a_terminal_until_its_escape(void **state)
{
    char all[65536] = "", *out = NULL;
    struct termios line;
    int fd, status = 0;

    (void)state;
    need_lab();
    start_linux("b");
    pid_t pid = forkpty(&fd, NULL, NULL, NULL);
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", xmigrate("b", "console linux1"), (char *)NULL);
        _exit(127);
    }
    assert_true(pid > 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    bool connected = terminal_says(fd, all, sizeof(all), "control-] ends it");
    for (struct limit l = limit_start(10); !tcgetattr(fd, &line) && line.c_lflag & ICANON && limit_wait(&l);)
        ;
    assert_true(write(fd, "status\n", 7) == 7);
    bool answered = terminal_says(fd, all, sizeof(all), "uptime_ms");
    int second = sh(&out, 10, "%s", xmigrate("b", "console linux1"));
    assert_true(write(fd, "\x1d", 1) == 1);
    terminal_says(fd, all, sizeof(all), "the VM runs on");
    for (struct limit l = limit_start(10); waitpid(pid, &status, WNOHANG) == 0;) {
        if (!limit_wait(&l))
            kill(pid, SIGKILL);
    }
    close(fd);
    if (!connected || !answered || !WIFEXITED(status) || WEXITSTATUS(status))
        fail_msg("status %#x; it said: %s", status, all);
    assert_int_equal(second, 1);
    assert_non_null(strstr(out, "another `xmigrate console linux1` is connected"));
    free(out);
    vm_must_run_at("b", "linux1");
}

static void the_ends_of_a_guest_are_told_apart(void **state)
{
    char *out = NULL;

    (void)state;
    need_lab();
    /* Not a terminal: what is written goes in, what the guest says comes out until it ends. */
    assert_int_equal(sh(&out, 60, "echo quit | %s", xmigrate("b", "console linux1")), 0);
    assert_non_null(strstr(out, "the console was closed"));
    free(out);
    must_stop("b", "linux1", "guest");
    assert_int_equal(sh(&out, 10, "%s", xmigrate("b", "log linux1")), 0);
    assert_non_null(strstr(out, "linux1-console.log <=="));
    assert_non_null(strstr(out, "XMGUEST READY"));
    free(out);

    assert_int_equal(xmigrate_run("b", 0, NULL, "start linux1"), 0);
    guest_must_come("b", "linux1");
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop linux1"), 0);
    vm_must_be("b", "linux1", "stopped", "user");
    assert_int_equal(xmigrate_run("b", 0, NULL, "undefine linux1"), 0);

    assert_int_equal(sh(NULL, 5, "kill -9 $(cat %s/b/run/vms/web1/qemu.pid)", lab_run_dir()), 0);
    must_stop("b", "web1", "died");
}

static void edit_changes_the_definition_of_a_stopped_one(void **state)
{
    char *out = NULL;

    (void)state;
    need_lab();
    assert_int_equal(sh(&out, 20, "EDITOR='sed -i s/16M/24M/' %s", xmigrate("b", "edit web1")), 0);
    free(out);
    assert_int_equal(sh(NULL, 20, "%s | grep -q 'memory = 24M'", xmigrate("b", "dump web1")), 0);
    assert_int_equal(sh(&out, 20, "EDITOR='sed -i s/24M/nonsense/' %s", xmigrate("b", "edit web1")), 2);
    assert_non_null(strstr(out, "What you wrote is in "));
    assert_int_equal(sh(NULL, 5, "rm $(sed -n 's/^What you wrote is in //p' <<EOF\n%s\nEOF\n)", out), 0);
    free(out);
    assert_int_equal(sh(&out, 20, "EDITOR=true %s", xmigrate("b", "edit web1")), 0);
    assert_non_null(strstr(out, "Nothing has been changed"));
    free(out);
    assert_int_equal(xmigrate_run("b", 0, NULL, "start web1"), 0);
    must_come("b");
    disks_must_be_right("b");
    assert_int_equal(sh(&out, 20, "EDITOR='sed -i s/24M/16M/' %s", xmigrate("b", "edit web1")), 3);
    assert_non_null(strstr(out, "when it is stopped"));
    assert_null(strstr(out, "What you wrote")); /* said before the editor opens */
    free(out);
}

static void undefined_and_defined_again_it_is_whole(void **state)
{
    (void)state;
    need_lab();
    assert_int_equal(sh(NULL, 20, "%s >%s/dump.ini", xmigrate("b", "dump web1"), lab_run_dir()), 0);
    must_refuse("b", "undefine web1", "stopped", "");
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop --force web1"), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "undefine web1"), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "define %s/dump.ini", lab_run_dir()), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "start web1"), 0);
    must_come("b");
    disks_must_be_right("b");
    /* And a host that remembers the one before takes it: it is of a later epoch. */
    assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage web1 hosta:ds1"), 0);
    vm_must_run_at("a", "web1");
    disks_must_be_right("a");
    host_must_be_clean("b");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moved_and_stopped_it_starts_at_its_owner),
        cmocka_unit_test(moved_back_and_after_a_boot_likewise),
        cmocka_unit_test(autostart_goes_with_it),
        cmocka_unit_test(with_its_datastore_unmounted_nothing_is_made),
        cmocka_unit_test(the_console_is_a_terminal_until_its_escape),
        cmocka_unit_test(the_ends_of_a_guest_are_told_apart),
        cmocka_unit_test(edit_changes_the_definition_of_a_stopped_one),
        cmocka_unit_test(undefined_and_defined_again_it_is_whole),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
