/* SPDX-License-Identifier: MIT */
/* tests/unit/tests_scripts.c: what the scripts behind `make deps`, `make lab` and `make demo` say to a
 * newcomer. */
#include "tests/unit/lib_tmpdir.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

/* A shell command in the project's directory, both streams into `said`. Returns its status. */
static int sh(const char *command, char said[4000])
{
    char line[2000];

    snprintf(line, sizeof line, "{ %s ; } >%s 2>&1 </dev/null", command, tmpdir_path("out"));
    int status = system(line);
    FILE *f = fopen(tmpdir_path("out"), "r");
    assert_non_null(f);
    said[fread(said, 1, 3999, f)] = 0;
    fclose(f);
    return WEXITSTATUS(status);
}

static void must(int status, const char *part, const char *command)
{
    char said[4000];
    int is = sh(command, said);

    if (is != status || !strstr(said, part))
        fail_msg("%s: status %d, says: %s", command, is, said);
}

/* «/run/xm-lab.lock: Permission denied», of a lock that he knew nothing of. */
static void who_is_not_root_is_told_that_a_lab_needs_it(void **state)
{
    (void)state;
    char said[4000];

    if (getuid() != 0) {
        must(1, "lab: needs root", "tests/system/lab.sh up");
        return;
    }
    if (sh("setpriv --reuid=65534 --clear-groups test -r tests/system/lab.sh", said) != 0) {
        print_message("SKIPPED: other users cannot read this tree\n");
        skip();
    }
    must(1, "lab: needs root", "setpriv --reuid=65534 --clear-groups tests/system/lab.sh up");
    must(1, "lab: needs root", "setpriv --reuid=65534 --clear-groups tests/system/lab.sh down");
}

/* It was said last: not to him whose test guests' kernel could not be downloaded. */
static void an_older_kernel_is_told_whatever_cannot_be_downloaded(void **state)
{
    (void)state;
    char said[4000], command[1000];

    if (sh("command -v apt-get && command -v setarch", said) != 0) {
        print_message("SKIPPED: no Debian\n");
        skip();
    }
    /* A tree of its own, since ours may have that kernel; no source of packages, so that nothing is asked of
     * the network. */
    snprintf(command, sizeof command,
             "d=%s && mkdir -p $d/tests $d/lists/partial && cp tests/*.sh $d/tests && "
             "printf 'Dir::Etc::sourcelist \"/dev/null\";\\nDir::Etc::sourceparts \"/dev/null\";\\n"
             "Dir::State::lists \"%%s/lists\";\\n' $d >$d/apt.conf && "
             "APT_CONFIG=$d/apt.conf XMIGRATE_TEST_CACHE=$d/cache setarch --uname-2.6 $d/tests/deps.sh",
             tmpdir_path(""));
    must(1, "moving a VM's memory needs 6.7 or newer", command);
}

/* On a fresh machine nothing compiles before what it needs is there. */
static void make_installs_before_it_compiles(void **state)
{
    (void)state;
    static const char *const what[] = {"bench", "bench-links", "check", "demo", "lab"};
    char said[4000], command[200];

    for (size_t i = 0; i < sizeof what / sizeof *what; i++) {
        snprintf(command, sizeof command, "env -u MAKEFLAGS -u MAKELEVEL make -n B=%s %s | head -n 1",
                 tmpdir_path("new"), what[i]);
        if (sh(command, said) != 0 || strncmp(said, "tests/deps.sh", 13) != 0)
            fail_msg("make %s begins with: %s", what[i], said);
    }
}

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

/* The first command that a newcomer tries failed when his machine had something else to do. */
static void a_pause_is_a_fault_on_a_quiet_machine_alone(void **state)
{
    (void)state;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    char said[4000];

    assert_int_equal(sh("tests/system/stillness.sh 49.9", said), 0);
    assert_string_equal(said, "");
    must(1, "and this one is quiet", "XM_BENCH_BUSY=101 tests/system/stillness.sh 76.3"); /* never reached */
    if (cpus > 64) {
        print_message("SKIPPED: %ld processors are too many to be kept busy\n", cpus);
        skip();
    }
    while (spinners < (unsigned)cpus) {
        pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                ;
        }
        spinner[spinners++] = pid;
    }
    must(0, "the machine is loaded", "tests/system/stillness.sh 76.3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(who_is_not_root_is_told_that_a_lab_needs_it, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(an_older_kernel_is_told_whatever_cannot_be_downloaded, tmpdir_make,
                                        teardown),
        cmocka_unit_test_setup_teardown(make_installs_before_it_compiles, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(a_pause_is_a_fault_on_a_quiet_machine_alone, tmpdir_make, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
