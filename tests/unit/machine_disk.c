/* SPDX-License-Identifier: MIT */
/* One disk's threads: how they open its file, and what gives way to whom. */
#include "machine/machine.h"
#include "tests/progress.h"
#include "tests/unit/lib_tmpdir.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (1u << 20)

/* A process that looks like the VM's QEMU: it names the run directory. */
static pid_t leave_qemu(const char *run_dir)
{
    char text[32], *dir = xm_printf("%s/", run_dir), *path = xm_printf("%s/qemu.pid", run_dir);
    pid_t pid = fork();

    if (!pid) {
        execl("/bin/sh", "sh", "-c", "while test -e \"$0\"; do sleep 1; done", dir, NULL);
        _exit(127);
    }
    assert_int_equal(xm_file_replace(path, text, (size_t)snprintf(text, sizeof text, "%d\n", pid), NULL), 0);
    for (struct limit l = limit_start(10); !qemu_is_left(run_dir) && limit_wait(&l);)
        ;
    assert_true(qemu_is_left(run_dir));
    free(path);
    free(dir);
    return pid;
}

static int opens(const char *run_dir, const char *path, uint64_t *size)
{
    struct machine vm = {.run_dir = (char *)run_dir, .engine = XM_ENGINE_LIBAIO};
    struct vm_disk spec = {.name = "root", .path = (char *)path, .size = SIZE};
    struct machine_disk d = {.machine = &vm, .spec = &spec};
    struct xm_disk_status st;
    struct xm_error e = {0};
    int r = machine_disk_start(&d, &e);

    if (r)
        return r;
    xm_disk_status(d.disk, &st);
    assert_int_equal(st.size, d.file->size);
    *size = st.size;
    machine_disk_stop(&d);
    return 0;
}

/* What broke: the file was enlarged under a running VM, its shim died, and the next one refused the disk: the
 * guest's requests stood until the file was made smaller again, which many storages cannot do. */
static void a_file_that_was_enlarged_is_served_to_the_qemu_that_has_it(void **state)
{
    char run_dir[300], path[300];
    uint64_t size = 0;

    (void)state;
    snprintf(run_dir, sizeof run_dir, "%s/run", tmpdir_path(""));
    snprintf(path, sizeof path, "%s", tmpdir_write("disk.raw", ""));
    assert_int_equal(xm_mkdir_all(run_dir, NULL), 0);
    assert_int_equal(truncate(path, SIZE), 0);
    assert_int_equal(opens(run_dir, path, &size), 0);
    assert_int_equal(size, SIZE);
    assert_int_equal(truncate(path, 2 * SIZE), 0);
    assert_int_equal(opens(run_dir, path, &size), -EINVAL);
    pid_t qemu = leave_qemu(run_dir);
    int larger = opens(run_dir, path, &size);
    assert_int_equal(truncate(path, SIZE / 2), 0);
    int smaller = opens(run_dir, path, &size);
    kill(qemu, SIGKILL);
    waitpid(qemu, NULL, 0);
    assert_int_equal(larger, 0);
    assert_int_equal(size, SIZE);
    assert_int_equal(smaller, -EINVAL);
}

/* Threads of this process that give way to this one. */
static unsigned in_background(void)
{
    DIR *d = opendir("/proc/self/task");
    int own = getpriority(PRIO_PROCESS, 0);
    unsigned n = 0;

    for (struct dirent *f; d && (f = readdir(d));)
        n += f->d_name[0] != '.' && getpriority(PRIO_PROCESS, (id_t)atoi(f->d_name)) > own;
    if (d)
        closedir(d);
    return n;
}

/* What broke: the vhost-user thread of each disk was made by the disk's thread, inherited its place behind
 * all others, and kept it for good. QEMU waits for it in the switch-over: 'cont' took longer on a host that
 * was busy, and so did the stop when the VM moved on. */
static void of_a_disk_that_is_filled_one_thread_gives_way(void **state)
{
    char run_dir[300], path[300];
    struct machine vm = {.run_dir = run_dir, .engine = XM_ENGINE_LIBAIO, .spec.vcpus = 1, .incoming = true};
    struct vm_disk spec = {.name = "root", .path = path, .size = SIZE};
    struct machine_disk d = {.machine = &vm, .spec = &spec};
    struct xm_error e = {0};

    (void)state;
    snprintf(run_dir, sizeof run_dir, "%s", tmpdir_path(""));
    snprintf(path, sizeof path, "%s", tmpdir_write("disk.raw", ""));
    assert_int_equal(truncate(path, SIZE), 0);
    if (machine_disk_start(&d, &e) < 0 || machine_disk_serve(&d, &e) < 0)
        fail_msg("%s", e.text);
    unsigned n = in_background();
    machine_disk_stop(&d);
    assert_int_equal(n, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_file_that_was_enlarged_is_served_to_the_qemu_that_has_it,
                                        tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(of_a_disk_that_is_filled_one_thread_gives_way, tmpdir_make,
                                        tmpdir_remove),
    };

    return cmocka_run_group_tests_name("machine_disk", tests, NULL, NULL);
}
