/* SPDX-License-Identifier: MIT */
/* tests/unit/tests_run.c: the tests' own limits: they last longer on a machine that is busy, and who reaches
 * one is ended with all that he has started, and named. */
#include "tests/progress.h"
#include "tests/unit/lib_tmpdir.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static pid_t spinner[64];
static unsigned spinners;

static int teardown(void **state)
{
    while (spinners) {
        kill(spinner[--spinners], SIGKILL);
        waitpid(spinner[spinners], NULL, 0);
    }
    return tmpdir_remove(state);
}

static void spin(unsigned n)
{
    while (spinners < n) {
        pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                ;
        }
        spinner[spinners++] = pid;
    }
}

/* How much longer it lasts on a quiet machine nobody can tell here. */
static void a_limit_lasts_longer_on_a_busy_machine(void **state)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    (void)state;
    if (cpus > 16) {
        print_message("SKIPPED: %ld processors are too many to be kept busy\n", cpus);
        skip();
    }
    spin((unsigned)cpus * 4);
    struct limit l = limit_start(0.15);
    while (limit_wait(&l))
        ;
    assert_true(limit_elapsed(&l) > 0.15 * 2.5);
}

static void nothing_lasts_for_ever(void **state)
{
    (void)state;
    struct limit l = limit_start(0.01);
    l.left_ns = UINT64_MAX; /* as if the machine could do nothing at all */
    while (limit_wait(&l))
        ;
    assert_true(limit_elapsed(&l) >= 0.01 * LIMIT_CAP);
}

static const char *script(const char *name, const char *text)
{
    const char *path = tmpdir_write(name, text);

    assert_int_equal(chmod(path, 0755), 0);
    return path;
}

/* tests/run beside our folder, with both streams into the file "out". */
static int run(const char *args, char *said, size_t size)
{
    char self[200] = "", command[2000];

    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    *strrchr(self, '/') = 0;
    snprintf(command, sizeof command, "%s/../run %s >%s 2>&1", self, args, tmpdir_path("out"));
    int status = system(command);
    FILE *f = fopen(tmpdir_path("out"), "r");
    assert_non_null(f);
    said[fread(said, 1, size - 1, f)] = 0;
    fclose(f);
    return WEXITSTATUS(status);
}

static void outputs_are_whole_and_failures_come_last(void **state)
{
    char args[1500], said[4000];
    (void)state;
    const char *good = script("good", "#!/bin/sh\necho one; sleep 0.2; echo two\n");
    const char *bad = script("bad", "#!/bin/sh\necho alpha; sleep 0.1; echo beta; exit 3\n");
    snprintf(args, sizeof args, "-j 2 %s %s --alone %s", good, bad, good);
    assert_int_equal(run(args, said, sizeof said), 1);
    assert_non_null(strstr(said, "alpha\nbeta\n"));
    assert_non_null(strstr(said, "one\ntwo\n"));
    assert_non_null(strstr(said, "\nFAILED: bad(3)\n"));
    snprintf(args, sizeof args, "%s %s", good, good);
    assert_int_equal(run(args, said, sizeof said), 0);
    assert_null(strstr(said, "FAILED"));
}

static void who_reaches_his_limit_is_ended_with_all_that_he_started(void **state)
{
    char args[1500], said[4000], text[600];
    int fifo[2];
    (void)state;
    /* Its child, which is deaf to SIGTERM, has the pipe's other end as long as it lives. */
    assert_int_equal(pipe(fifo), 0);
    snprintf(text, sizeof text,
             "#!/bin/sh\ntrap 'echo cleaned up; exit 1' TERM\n(trap '' TERM; sleep 1000) & wait\n");
    snprintf(args, sizeof args, "-t 0.2 -j 2 %s", script("hangs", text));
    assert_int_equal(run(args, said, sizeof said), 1);
    close(fifo[1]);
    assert_non_null(strstr(said, "cleaned up"));
    assert_non_null(strstr(said, "FAILED: hangs(over its limit of 0.2 s of progress"));
    char c;
    assert_int_equal(read(fifo[0], &c, 1), 0);
    close(fifo[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_limit_lasts_longer_on_a_busy_machine, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(nothing_lasts_for_ever, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(outputs_are_whole_and_failures_come_last, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(who_reaches_his_limit_is_ended_with_all_that_he_started, tmpdir_make,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
