/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

static int pair[2];

static int setup(void **state)
{
    (void)state;
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
}

static int teardown(void **state)
{
    (void)state;
    if (pair[0] >= 0)
        close(pair[0]);
    close(pair[1]);
    return 0;
}

static void what_is_ready_is_told_at_once(void **state)
{
    (void)state;
    assert_int_equal(xm_wait_fd(pair[0], POLLOUT, UINT64_MAX), 0);
    assert_int_equal(write(pair[1], "x", 1), 1);
    assert_int_equal(xm_wait_fd(pair[0], POLLIN, UINT64_MAX), 0);
}

static void a_deadline_that_has_passed_looks_once(void **state)
{
    (void)state;
    assert_int_equal(xm_wait_fd(pair[0], POLLIN, 0), -ETIMEDOUT);
    assert_int_equal(write(pair[1], "x", 1), 1);
    assert_int_equal(xm_wait_fd(pair[0], POLLIN, 0), 0);
}

static void it_waits_until_the_deadline_and_not_less(void **state)
{
    uint64_t deadline = xm_now() + 1500 * XM_NS_PER_US;

    (void)state;
    assert_int_equal(xm_wait_fd(pair[0], POLLIN, deadline), -ETIMEDOUT);
    assert_true(xm_now() >= deadline);
}

static void the_other_end_closed_ends_the_wait(void **state)
{
    (void)state;
    close(pair[0]);
    pair[0] = -1;
    assert_int_equal(xm_wait_fd(pair[1], POLLIN, UINT64_MAX), 0);
}

static void on_signal(int nr)
{
    (void)nr;
    /* Ready only now: whoever comes back before has not waited on. */
    if (write(pair[1], "x", 1) != 1)
        _exit(1);
}

static void *kill_main(void *waiter)
{
    pthread_kill(*(pthread_t *)waiter, SIGUSR1);
    return NULL;
}

static void a_signal_does_not_end_it(void **state)
{
    struct sigaction act = {.sa_handler = on_signal}, before;
    pthread_t self = pthread_self(), killer;

    (void)state;
    sigaction(SIGUSR1, &act, &before);
    assert_int_equal(pthread_create(&killer, NULL, kill_main, &self), 0);
    assert_int_equal(xm_wait_fd(pair[0], POLLIN, UINT64_MAX), 0);
    pthread_join(killer, NULL);
    sigaction(SIGUSR1, &before, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_ready_is_told_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_deadline_that_has_passed_looks_once, setup, teardown),
        cmocka_unit_test_setup_teardown(it_waits_until_the_deadline_and_not_less, setup, teardown),
        cmocka_unit_test_setup_teardown(the_other_end_closed_ends_the_wait, setup, teardown),
        cmocka_unit_test_setup_teardown(a_signal_does_not_end_it, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
