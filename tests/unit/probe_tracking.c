/* SPDX-License-Identifier: MIT */
/* Whether memory can be tracked here is known before anything is copied: with all that it needs, and with
 * each part of it denied. */
#include "memxfer/memxfer.h"
#include "probe/probe.h"
#include "tests/unit/lib_deny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/personality.h>
#include <sys/wait.h>
#include <unistd.h>

static void it_can(void **state)
{
    (void)state;
    struct xm_error e = {0};

    for (int i = 0; i < 20; i++) {
        if (probe_tracking(&e) < 0 || probe_tracking_sandboxed(&e) < 0)
            fail_msg("%s", e.text);
    }
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
}

/* In a process of its own, since what is denied stays denied. older: uname(2) tells a release 2.6 in it. */
static void must_say_with(bool older, enum deny what, const char *part)
{
    struct xm_error e = {0};
    int p[2], status;

    assert_int_equal(pipe(p), 0);
    pid_t pid = fork();
    if (pid == 0) {
        bool done = (!older || personality(UNAME26) >= 0) && deny(what) == 0;
        int r = done ? probe_tracking(&e) : 1;
        _exit(write(p[1], e.text, sizeof e.text) != sizeof e.text || r >= 0);
    }
    assert_int_equal(read(p[0], e.text, sizeof e.text), sizeof e.text);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(p[0]);
    close(p[1]);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    if (strncmp(e.text, "the memory of VMs cannot be tracked on this kernel (", 52) || !strstr(e.text, part))
        fail_msg("it says: %s", e.text);
}

static void an_older_kernel_is_named(void **state)
{
    (void)state;
    must_say_with(true, DENY_SCAN, "Linux 6.7 or newer is needed");
}

/* «Linux 6.7 or newer is needed» was said by a 6.18 in a sandbox. */
static void a_kernel_that_is_new_enough_is_not_sent_for_a_newer_one(void **state)
{
    (void)state;
    must_say_with(false, DENY_SCAN, "PAGEMAP_SCAN is refused, though this kernel is new enough");
}

static void a_policy_that_forbids_it_is_told(void **state)
{
    (void)state;
    must_say_with(false, DENY_PTRACE, "cannot be traced");
}

/* A sandbox can be suspended by CAP_SYS_ADMIN alone: without it, QEMU is not put into one. */
static void a_sandbox_that_cannot_be_suspended_is_told(void **state)
{
    (void)state;
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[2];
    struct xm_error e = {0};
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        syscall(SYS_capget, &head, caps);
        caps[0].effective &= ~(1u << CAP_SYS_ADMIN);
        caps[0].permitted &= ~(1u << CAP_SYS_ADMIN);
        if (syscall(SYS_capset, &head, caps) < 0 || probe_tracking(&e) < 0)
            _exit(1);
        _exit(probe_tracking_sandboxed(&e) == 0 || !strstr(e.text, "sandboxed by seccomp") ? 2 : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_can),
        cmocka_unit_test(an_older_kernel_is_named),
        cmocka_unit_test(a_kernel_that_is_new_enough_is_not_sent_for_a_newer_one),
        cmocka_unit_test(a_policy_that_forbids_it_is_told),
        cmocka_unit_test(a_sandbox_that_cannot_be_suspended_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
