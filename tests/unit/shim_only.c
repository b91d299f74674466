/* SPDX-License-Identifier: MIT */
/* There is one shim of a VM at a time. What broke: a second one wrote its number over the first one's before
 * it failed, and the agent took the first one for dead. */
#include "shim/shim.h"
#include "tests/progress.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[300];

static int set_up(void **state)
{
    int r = tmpdir_make(state);

    snprintf(dir, sizeof dir, "%s", tmpdir_path("x"));
    *strrchr(dir, '/') = 0;
    return r;
}

static void is_refused(const char *why)
{
    struct xm_error e = {0};

    assert_int_equal(shim_only(dir, &e), -EBUSY);
    if (!strstr(e.text, why))
        fail_msg("%s", e.text);
}

static void is_let_in(void)
{
    struct xm_error e = {0};
    int fd = shim_only(dir, &e);

    if (fd < 0)
        fail_msg("%s", e.text);
    close(fd);
}

/* As a shim: who started it has the lock, and goes. */
static pid_t begin_shim(void)
{
    pid_t pid, child = -1;
    int tell[2];

    assert_int_equal(pipe(tell), 0);
    if (!(pid = fork())) {
        if (shim_only(dir, NULL) >= 0 && !(child = fork())) {
            child = getpid();
            if (write(tell[1], &child, sizeof child) == sizeof child)
                poll(NULL, 0, LIMIT_HANG_MS);
        }
        _exit(0);
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(read(tell[0], &child, sizeof child), sizeof child);
    close(tell[0]);
    close(tell[1]);
    return child;
}

static void a_second_one_is_refused(void **state)
{
    char pid[20];
    (void)state;

    is_let_in();
    pid_t first = begin_shim();
    is_refused("another shim of it is just being started");
    snprintf(pid, sizeof pid, "%d\n", first);
    tmpdir_write("shim.pid", pid);
    is_refused("another shim of it"); /* whose command line is this program's, here */
    kill(first, SIGKILL);
    is_let_in(); /* as soon as it has gone */
}

/* As an xmigrate from before the lock has left it. */
static void an_older_one_is_found_by_its_number(void **state)
{
    char *config = xm_printf("%s/shim.json", dir), pid[20];
    (void)state;

    tmpdir_write("shim.json", "{}");
    pid_t first = fork();
    if (!first) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execlp("tail", "tail", "-f", config, NULL);
        _exit(1);
    }
    snprintf(pid, sizeof pid, "%d\n", first);
    tmpdir_write("shim.pid", pid);
    char *proc = xm_printf("/proc/%d/cmdline", first), *text = NULL;
    size_t len;
    bool runs = false;
    for (struct limit l = limit_start(10); !runs && limit_wait(&l);) {
        runs = !xm_file_read(proc, 1 << 16, &text, &len, NULL) && memmem(text, len, config, strlen(config));
        free(text);
        text = NULL;
    }
    is_refused("it has a shim already (process ");
    kill(first, SIGKILL);
    waitpid(first, NULL, 0);
    is_let_in();
    free(proc);
    free(config);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tmpdir_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_second_one_is_refused),
        TEST(an_older_one_is_found_by_its_number),
    };

    return cmocka_run_group_tests_name("shim: one of a VM", tests, NULL, NULL);
}
