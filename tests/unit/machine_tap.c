/* SPDX-License-Identifier: MIT */
/* A guest's tap on a bridge that carries the host's own traffic: the host's address and frame size stay. In
 * a network namespace of the test's own. */
#include "machine/qemu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/progress.h"

static bool apart; /* in a namespace of our own */

static int ip(const char *args)
{
    char command[200];

    snprintf(command, sizeof command, "ip %s", args);
    const char *const argv[] = {"sh", "-c", command, NULL};
    return xm_run(argv, LIMIT_HANG_NS, NULL, NULL);
}

static void of_link(const char *link, const char *what, char *to, size_t size)
{
    char path[100];

    snprintf(path, sizeof path, "/sys/class/net/%s/%s", link, what);
    const char *const argv[] = {"cat", path, NULL};
    char *out = NULL;
    to[0] = 0;
    if (xm_run(argv, LIMIT_HANG_NS, &out, NULL) == 0)
        snprintf(to, size, "%.*s", (int)strcspn(out, "\n"), out);
    free(out);
}

/* /sys shows the devices of the namespace that it was mounted in. */
static int set_up(void **state)
{
    (void)state;
    apart = geteuid() == 0 && unshare(CLONE_NEWNET | CLONE_NEWNS) == 0 &&
            xm_run((const char *const[]){"mount", "--make-rprivate", "/", NULL}, LIMIT_HANG_NS, NULL, NULL) ==
                0 &&
            xm_run((const char *const[]){"mount", "-t", "sysfs", "none", "/sys", NULL}, LIMIT_HANG_NS, NULL,
                   NULL) == 0 &&
            access("/dev/net/tun", R_OK | W_OK) == 0 && ip("link add br0 type bridge") == 0 &&
            ip("link add up0 address f4:00:00:00:00:01 mtu 9000 type veth peer name up1") == 0 &&
            ip("link set up0 master br0") == 0 && ip("link set up0 up") == 0 && ip("link set br0 up") == 0;
    return 0;
}

static void the_bridge_stays_as_it_is(void **state)
{
    struct vm_nic nic = {.name = "lan", .mac = "52:54:00:12:34:56", .bridge = "br0", .tap = "xmt-tap0"};
    char address[32], mtu[16];
    struct xm_error e = {0};

    (void)state;
    if (!apart) {
        print_message("skipped: a network namespace with a bridge and a tap cannot be made here\n");
        skip();
    }
    of_link("br0", "address", address, sizeof address);
    assert_string_equal(address, "f4:00:00:00:00:01");
    int fd = tap_create(&nic, &e);
    if (fd < 0)
        fail_msg("%s", e.text);
    of_link("xmt-tap0", "address", address, sizeof address);
    assert_string_equal(address, "fe:54:00:12:34:56");
    of_link("br0", "address", address, sizeof address);
    assert_string_equal(address, "f4:00:00:00:00:01");
    of_link("br0", "mtu", mtu, sizeof mtu);
    assert_string_equal(mtu, "9000");
    of_link("xmt-tap0", "mtu", mtu, sizeof mtu);
    assert_string_equal(mtu, "9000");
    close(fd);
    assert_int_equal(tap_delete(&nic, &e), 0);
    of_link("br0", "address", address, sizeof address);
    assert_string_equal(address, "f4:00:00:00:00:01");
}

/* To everybody on the bridge, by its other port. */
static void broadcast(int frames)
{
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex("up1")};
    unsigned char frame[60] = {255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 0x88, 0xb5};
    int s = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));

    assert_true(s >= 0);
    for (int i = 0; i < frames; i++)
        assert_int_equal(sendto(s, frame, sizeof frame, 0, (const void *)&to, sizeof to), sizeof frame);
    close(s);
}

/* A guest that runs elsewhere while it is moved hears all that there; its tap here is on the bridge, too. It
 * once heard it a second time when it had come: up to 1000 frames, the oldest. */
static void what_came_before_the_guest_is_forgotten(void **state)
{
    struct vm_nic nic = {.name = "lan", .mac = "52:54:00:12:34:56", .bridge = "br0", .tap = "xmt-tap1"};
    struct vm_spec vm = {.nics = 1, .nic = {nic}};
    struct xm_error e = {0};
    struct qemu q = {0};

    (void)state;
    if (!apart) {
        print_message("skipped: a network namespace with a bridge and a tap cannot be made here\n");
        skip();
    }
    assert_int_equal(ip("link set up1 up"), 0);
    int fd = tap_create(&nic, &e);
    if (fd < 0)
        fail_msg("%s", e.text);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK | fcntl(fd, F_GETFL)), 0);
    pid_t pid = fork(); /* QEMU's part */
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(fd, QEMU_FD_TAP);
        pause();
        _exit(0);
    }
    char path[60];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, QEMU_FD_TAP);
    struct limit l = limit_start(10);
    while (access(path, F_OK) < 0)
        assert_true(limit_wait(&l));
    q.pid = pid;
    q.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    assert_true(q.pidfd >= 0);
    broadcast(1500);
    struct pollfd there = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&there, 1, 0), 1);
    taps_forget(&q, &vm);
    assert_int_equal(poll(&there, 1, 0), 0);
    broadcast(1); /* what comes from then on is for the guest */
    assert_int_equal(poll(&there, 1, 1000), 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(q.pidfd);
    close(fd);
    assert_int_equal(tap_delete(&nic, &e), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_bridge_stays_as_it_is),
                                       cmocka_unit_test(what_came_before_the_guest_is_forgotten)};

    return cmocka_run_group_tests_name("machine_tap", tests, set_up, NULL);
}
