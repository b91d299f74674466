/* SPDX-License-Identifier: MIT */
/* A guest's tap on a bridge that carries the host's own traffic: the host's address and frame size stay. In
 * a network namespace of the test's own. */
#include "machine/qemu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_bridge_stays_as_it_is)};

    return cmocka_run_group_tests_name("machine_tap", tests, set_up, NULL);
}
