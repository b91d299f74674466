/* SPDX-License-Identifier: MIT */
/* A QEMU is asked what it knows, whole, also when its answers are read late. This program is QEMU's wrapper
 * then: it holds the answers up in a pipe that is small. */
#include "probe/probe.h"
#include "tests/progress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define QEMU "qemu-system-x86_64"

/* Reads nothing before the pipe is full, and then still waits whether QEMU ends, which loses what it has not
 * written. */
static int wrap(char **argv)
{
    int out[2], status = 0;
    char buf[4096];
    ssize_t n;

    if (pipe2(out, O_CLOEXEC) < 0 || fcntl(out[1], F_SETPIPE_SZ, 4096) < 0)
        return 1;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(out[1], 1);
        argv[0] = (char *)QEMU;
        execvp(QEMU, argv);
        _exit(127);
    }
    bool ended = false;
    for (struct pollfd p = {.fd = out[1], .events = POLLOUT}; !ended && poll(&p, 1, 0) == 1;) {
        ended = waitpid(pid, &status, WNOHANG) == pid;
        poll(NULL, 0, 5);
    }
    for (int i = 0; !ended && i < 50; i++) {
        ended = waitpid(pid, &status, WNOHANG) == pid;
        poll(NULL, 0, 5);
    }
    close(out[1]);
    while ((n = read(out[0], buf, sizeof buf)) > 0) {
        if (write(1, buf, (size_t)n) != n)
            return 1;
    }
    if (!ended)
        waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
}

static char self[300];

static void answers_that_are_read_late_are_whole(void **state)
{
    (void)state;
    struct xm_error e = {0};
    char full[128];

    const struct qemu_facts *direct = qemu_facts(QEMU, &e), *late = qemu_facts(self, &e);
    if (!direct || !late)
        fail_msg("%s", e.text);
    assert_string_equal(late->version, direct->version);
    assert_true(json_equal(late->machines, direct->machines));
    assert_int_equal(late->reconnect_ms, direct->reconnect_ms);
    assert_true(qemu_facts_machine(late, "q35", full));
    json_t *cpu = qemu_facts_cpu(QEMU, "tcg", "max", &e), *cpu_late = qemu_facts_cpu(self, "tcg", "max", &e);
    if (!cpu || !cpu_late)
        fail_msg("%s", e.text);
    assert_true(json_array_size(cpu) > 10);
    assert_true(json_equal(cpu, cpu_late));
    json_decref(cpu);
    json_decref(cpu_late);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_that_are_read_late_are_whole),
    };

    if (argc > 1)
        return wrap(argv);
    signal(SIGPIPE, SIG_IGN);
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0 || !qemu_facts(QEMU, NULL)) {
        printf("skipped: " QEMU " is not installed\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
