/* SPDX-License-Identifier: MIT */
/* How far a thread gives way: itself, and the kernel's threads that do its io_uring requests. */
#include "base/sched.h"
#include "tests/progress.h"

#include <dirent.h>
#include <errno.h>
#include <liburing.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The nice value of a worker of ours; -100: there is none. */
static int worker_nice(pid_t *worker)
{
    DIR *d = opendir("/proc/self/task");
    int nice = -100;

    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        char path[300], comm[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", f->d_name);
        FILE *c = fopen(path, "re");
        if (c && fgets(comm, sizeof comm, c) && !strncmp(comm, "iou-wrk-", 8)) {
            *worker = atoi(f->d_name);
            nice = getpriority(PRIO_PROCESS, (id_t)*worker);
        }
        if (c)
            fclose(c);
    }
    closedir(d);
    return nice;
}

/* What broke: the flushes of a VM that had come were done at nice 10 for good. */
static void the_kernels_workers_come_along(void **state)
{
    struct io_uring ring;
    struct io_uring_cqe *cqe;
    pid_t worker = 0;
    char byte;
    int fd[2];
    (void)state;

    if (io_uring_queue_init(4, &ring, 0) < 0) {
        print_message("skipped: no io_uring here\n");
        skip();
    }
    assert_int_equal(pipe(fd), 0);
    xm_sched_background(0, true);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    io_uring_prep_read(sqe, fd[0], &byte, 1, 0);
    sqe->flags |= IOSQE_ASYNC; /* a worker waits for the byte */
    assert_int_equal(io_uring_submit(&ring), 1);
    for (struct limit l = limit_start(10); worker_nice(&worker) == -100 && limit_wait(&l);) {
    }
    assert_int_equal(worker_nice(&worker), 10);
    xm_sched_background(0, false);
    int own = getpriority(PRIO_PROCESS, 0), its = worker_nice(&worker);
    assert_int_equal(write(fd[1], "x", 1), 1);
    assert_int_equal(io_uring_wait_cqe(&ring, &cqe), 0);
    io_uring_queue_exit(&ring);
    close(fd[0]);
    close(fd[1]);
    if (own) {
        print_message("skipped: no right to be nicer no more\n");
        skip();
    }
    assert_int_equal(its, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_kernels_workers_come_along)};
    return cmocka_run_group_tests_name("base_sched", tests, NULL, NULL);
}
