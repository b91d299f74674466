/* SPDX-License-Identifier: MIT */
/* A guest under KVM (small.h) goes back and forth ten times with its two disks. At each new host it checks
 * all of its RAM and all sectors, and tells so on its console. Skipped where there is no KVM, or one that
 * runs this guest under plain QEMU no better than under us. */
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MOVES 10
#define VM    "kvm1"
#define CPU   "host,-arch-capabilities"

/* Slow enough for a KVM that emulates each instruction. */
static const struct small_options under_kvm = {
    .accel = "kvm", .cpu = CPU, .append = "ram=4000 disk=250 span=512", .no_nic = true};

static int lab_setup(void **state)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    bool works = kvm >= 0 && ioctl(kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION;

    (void)state;
    if (kvm >= 0)
        close(kvm);
    return works ? lab_group_setup("kvm", "XM_LAB_VM=none XM_LAB_PARTIAL_KVM=yes XM_LAB_KVM=yes") : 0;
}

static int lab_teardown(void **state)
{
    (void)state;
    return lab_down();
}

/* Is it this machine's KVM, and nothing of ours? */
static bool runs_in_plain_qemu(void)
{
    struct job qemu;

    job_start(&qemu,
              "exec qemu-system-x86_64 -nodefaults -display none -vga none -machine q35 -accel kvm -cpu " CPU
              " -m 16M -kernel build/guest/kvmguest -serial stdio");
    bool runs = job_saw(&qemu, "\nup ", 120);
    job_signal(&qemu, SIGKILL);
    job_end(&qemu, 5, NULL);
    return runs;
}

static void start_guest(struct small *g)
{
    const char *why = small_start(g, "a", VM, &under_kvm);

    if (why && !runs_in_plain_qemu()) {
        print_message("skipped: this machine's KVM does not run the guest under plain QEMU either: %s\n",
                      why);
        skip();
    }
    if (why)
        fail_msg("the guest does not start: %s", why);
}

/* Its QEMU is no root, and has come to /dev/kvm by that one's group. */
static void qemu_must_be_a_user(const char *host)
{
    assert_int_equal(sh(NULL, 5,
                        "s=/proc/$(cat %s/%s/run/vms/" VM
                        "/qemu.pid)/status; grep -q '^Uid:.2100' $s && grep -q "
                        "'^Groups:.2099999999 $' $s",
                        lab_run_dir(), host),
                     0);
}

/* ---- the test ---- */

static void ten_moves_under_kvm(void **state)
{
    struct small g;

    (void)state;
    if (!*lab_prefix() && access("/dev/kvm", F_OK) != 0) {
        print_message("skipped: this machine has no /dev/kvm\n");
        skip();
    }
    if (!*lab_prefix() && geteuid() == 0) {
        print_message("skipped: /dev/kvm cannot be used\n");
        skip();
    }
    need_lab();
    start_guest(&g);
    qemu_must_be_a_user("a");
    for (int i = 0; i < MOVES; i++) {
        const char *from = i % 2 ? "b" : "a", *to = i % 2 ? "a" : "b";
        json_t *done = NULL;
        assert_int_equal(xmigrate_run(from, 0, &done, "--json --with-storage " VM " host%s", to), 0);
        vm_must_run_at(to, VM);
        small_must_be_whole(&g, to);
        qemu_must_be_a_user(to);
        print_message("move %d: %.2f s, downtime %.1f ms\n", i + 1, number(done, "total_s"),
                      number(done, "downtime_ms"));
        json_decref(done);
        host_must_be_clean(from);
    }
    print_message("rounds: %u through RAM, %u through the disks\n", g.now.rounds, g.now.sweeps);
    assert_int_equal(g.boots, 1);
    small_free(&g);
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force " VM), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(ten_moves_under_kvm)};

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
