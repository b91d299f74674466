/* SPDX-License-Identifier: MIT */
/* machine/late.c, in a network of the test's own: a bridge with a guest's tap, and a port to the rest of the
 * world. */
#include "machine/machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/progress.h"

#define HEAD 10 /* struct virtio_net_hdr */

static const unsigned char guest[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56}, router[6] = {0x52, 0x54, 0, 0, 0, 1},
                           other[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x57},
                           all[6] = {255, 255, 255, 255, 255, 255};
static struct machine vm;
static int world = -1, tap = -1; /* a packet socket outside; QEMU's end */

static int run(const char *command)
{
    const char *const argv[] = {"sh", "-c", command, NULL};
    return xm_run(argv, LIMIT_HANG_NS, NULL, NULL);
}

static int set_up(void **state)
{
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    struct vm_nic *nic = &vm.spec.nic[0];

    (void)state;
    *nic = (struct vm_nic){.name = "lan", .mac = "52:54:00:12:34:56", .bridge = "br0", .tap = "xmt-tap0"};
    vm.spec.nics = 1;
    if (geteuid() != 0 || unshare(CLONE_NEWNET | CLONE_NEWNS) < 0 ||
        run("mount --make-rprivate / && mount -t sysfs none /sys && ip link add br0 type bridge && "
            "ip link add up0 type veth peer name up1 && ip link set up0 master br0 && ip link set up0 up && "
            "ip link set up1 up && ip link set br0 up") != 0)
        return 0;
    tap = tap_create(nic, NULL);
    world = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    at.sll_ifindex = (int)if_nametoindex("up1");
    if (bind(world, (struct sockaddr *)&at, sizeof at) < 0)
        return -1;
    late_open(&vm);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    late_close(&vm);
    close(tap);
    close(world);
    return 0;
}

static void need_network(void)
{
    if (tap < 0 || !late_can(&vm)) {
        print_message("skipped: a network namespace with a bridge and a tap cannot be made here\n");
        skip();
    }
}

/* A frame whose last byte is `mark`. */
static size_t frame(unsigned char *f, const unsigned char *to, const unsigned char *from, unsigned char mark)
{
    memset(f, 0, 64);
    memcpy(f, to, 6);
    memcpy(f + 6, from, 6);
    f[12] = 0x88, f[13] = 0xb5;
    f[63] = mark;
    return 64;
}

static void comes(const unsigned char *to, const unsigned char *from, unsigned char mark)
{
    unsigned char f[64];
    size_t n = frame(f, to, from, mark);

    assert_int_equal(send(world, f, n, 0), n);
}

/* The mark of the next one with this protocol that QEMU would read; -1: there is none. */
static int qemu_reads(void)
{
    unsigned char f[2048];
    struct pollfd p = {.fd = tap, .events = POLLIN};

    while (poll(&p, 1, 200) > 0) {
        ssize_t n = read(tap, f, sizeof f);
        if (n == HEAD + 64 && f[HEAD + 12] == 0x88 && f[HEAD + 13] == 0xb5)
            return f[HEAD + 63];
    }
    return -1;
}

static int kept(uint64_t since)
{
    static unsigned char f[LATE_FRAME_MAX];
    ssize_t n = late_next(&vm, 0, since, f);

    return n < 0 ? -1 : n == HEAD + 64 ? f[HEAD + 63] : -2;
}

/* The kernel begins to stamp frames a moment after it was first asked to; until then they bear the time when
 * they are read. */
static void until_frames_are_stamped(void)
{
    for (struct limit l = limit_start(10);;) {
        comes(guest, router, 100);
        qemu_reads();
        poll(NULL, 0, 5);
        if (kept(xm_now()) < 0)
            return;
        assert_true(limit_wait(&l));
    }
}

static void what_is_for_the_guest_is_kept(void **state)
{
    (void)state;
    need_network();
    late_keep(&vm);
    until_frames_are_stamped();
    comes(guest, router, 101);
    assert_int_equal(qemu_reads(), 101);
    poll(NULL, 0, 20);
    uint64_t between = xm_now() - 10 * XM_NS_PER_MS;
    comes(guest, router, 1);
    late_trim(&vm, xm_now() - between);
    assert_int_equal(qemu_reads(), 1);
    assert_int_equal(kept(0), 1); /* the older one has gone */
    comes(guest, router, 1);
    poll(NULL, 0, 20);
    uint64_t stop = xm_now();
    comes(other, router, 2);
    comes(all, router, 3);
    comes(guest, router, 4);
    comes(guest, router, 5);
    assert_int_equal(qemu_reads(), 1); /* all have come by then */
    assert_int_equal(kept(stop), 4);
    assert_int_equal(kept(stop), 5);
    assert_int_equal(kept(stop), -1);
}

static void it_is_over_when_the_guest_is_behind_another_port(void **state)
{
    (void)state;
    need_network();
    assert_false(late_over(&vm));
    comes(all, guest, 6);
    for (struct limit l = limit_start(10); !late_over(&vm) && limit_wait(&l);)
        ;
    assert_true(late_over(&vm));
}

static void nothing_is_kept_after_it(void **state)
{
    (void)state;
    need_network();
    late_keep(&vm);
    comes(guest, router, 7);
    late_drop(&vm);
    comes(guest, router, 8);
    while (qemu_reads() >= 0)
        ;
    assert_int_equal(kept(0), -1);
    uint64_t stop = xm_now();
    late_keep(&vm); /* and again, for the next try */
    comes(guest, router, 9);
    qemu_reads();
    assert_int_equal(kept(stop), -1); /* the guest is behind the other port still */
    assert_int_equal(run("bridge fdb del 52:54:00:12:34:56 dev up0 master"), 0);
    comes(guest, router, 10);
    assert_int_equal(qemu_reads(), 10);
    assert_int_equal(kept(stop), 10);
}

static void the_guest_gets_what_is_its_own(void **state)
{
    unsigned char f[HEAD + 64] = {0};
    struct xm_error e = {0};

    (void)state;
    need_network();
    while (qemu_reads() >= 0)
        ;
    frame(f + HEAD, guest, router, 11);
    if (late_give(&vm, 0, f, sizeof f, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(qemu_reads(), 11);
    frame(f + HEAD, other, router, 12);
    assert_int_equal(late_give(&vm, 0, f, sizeof f, &e), -EPROTO);
    frame(f + HEAD, guest, router, 13);
    assert_int_equal(late_give(&vm, 1, f, sizeof f, &e), -EPROTO);
    assert_int_equal(late_give(&vm, 0, f, HEAD + 13, &e), -EPROTO);
    assert_int_equal(late_give(&vm, 0, f, LATE_FRAME_MAX + 1, &e), -EPROTO);
    f[0] = 1, f[6] = 0xff, f[7] = 0xff; /* a checksum beyond the frame: the kernel's answer */
    assert_true(late_give(&vm, 0, f, sizeof f, &e) < 0);
    assert_int_equal(qemu_reads(), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_for_the_guest_is_kept),
        cmocka_unit_test(it_is_over_when_the_guest_is_behind_another_port),
        cmocka_unit_test(nothing_is_kept_after_it),
        cmocka_unit_test(the_guest_gets_what_is_its_own),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
