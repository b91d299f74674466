/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_ramchild.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

void ramchild_start(struct ramchild *c, uint64_t size, int fd, void (*body)(struct ramchild *), uint64_t seed)
{
    c->size = size;
    c->seed = seed * 0x9e3779b97f4a7c15ull + 1;
    c->page = mmap(NULL, sizeof *c->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(c->page != MAP_FAILED);
    c->memfd = fd >= 0 ? fd : memfd_create("test-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(c->memfd >= 0);
    assert_int_equal(ftruncate(c->memfd, (off_t)size), 0);
    if (fd < 0) /* as the shim makes it */
        assert_int_equal(fcntl(c->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    fflush(NULL);
    pid_t parent = getpid();
    c->pid = fork();
    assert_true(c->pid >= 0);
    if (c->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        c->ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, c->memfd, 0);
        if (c->ram == MAP_FAILED)
            _exit(1);
        atomic_store(&c->page->va, (uintptr_t)c->ram);
        atomic_store(&c->page->ready, 1);
        body(c);
        _exit(0);
    }
    while (!atomic_load(&c->page->ready)) {
        assert_int_equal(waitpid(c->pid, NULL, WNOHANG), 0);
        sched_yield();
    }
}

void ramchild_kill(struct ramchild *c)
{
    if (c->pid > 0) {
        kill(c->pid, SIGKILL);
        waitpid(c->pid, NULL, 0);
        c->pid = 0;
        munmap(c->page, sizeof *c->page);
        close(c->memfd);
    }
}

void ramchild_end(struct ramchild *c)
{
    struct limit l = limit_start(20);
    int status = 0;
    pid_t got;

    atomic_store(&c->page->quit, 1);
    while ((got = waitpid(c->pid, &status, WNOHANG)) == 0 && !limit_over(&l))
        usleep(200);
    bool ended = got == c->pid;
    if (!ended) {
        kill(c->pid, SIGKILL);
        waitpid(c->pid, &status, 0);
    }
    c->pid = 0;
    unsigned long long errors = atomic_load(&c->page->errors);
    if (errors)
        print_error("the child process: %s (%llu errors)\n", c->page->error, errors);
    munmap(c->page, sizeof *c->page);
    close(c->memfd);
    assert_true(ended);
    assert_int_equal(status, 0);
    assert_int_equal(errors, 0);
}

void ramchild_pause(struct ramchild *c, bool pause)
{
    atomic_store(&c->page->pause, pause);
    while (pause && !atomic_load(&c->page->paused)) {
        assert_int_equal(waitpid(c->pid, NULL, WNOHANG), 0);
        sched_yield();
    }
    while (!pause && atomic_load(&c->page->paused))
        sched_yield();
}

bool ramchild_gate(struct ramchild *c)
{
    while (atomic_load(&c->page->pause) && !atomic_load(&c->page->quit)) {
        atomic_store(&c->page->paused, 1);
        sched_yield();
    }
    atomic_store(&c->page->paused, 0);
    return !atomic_load(&c->page->quit);
}

void ramchild_error(struct ramchild *c, const char *fmt, ...)
{
    va_list ap;

    if (atomic_fetch_add(&c->page->errors, 1))
        return;
    va_start(ap, fmt);
    vsnprintf(c->page->error, sizeof c->page->error, fmt, ap);
    va_end(ap);
}

uint64_t ramchild_random(struct ramchild *c)
{
    c->seed ^= c->seed << 13;
    c->seed ^= c->seed >> 7;
    c->seed ^= c->seed << 17;
    return c->seed;
}

static void wait_for_end(struct ramchild *c)
{
    while (ramchild_gate(c))
        usleep(100);
}

void ramchild_need_tracking(void)
{
    struct ramchild c;
    struct xm_ram ram = {0};
    struct xm_tracker *t = NULL;
    struct xm_error e = {0};

    ramchild_start(&c, 2u << 20, -1, wait_for_end, 1);
    ram.pid = c.pid;
    assert_int_equal(xm_ram_add(&ram, "ram", c.memfd, atomic_load(&c.page->va), &e), 0);
    int r = xm_tracker_open(&t, &ram, &e);
    xm_tracker_close(t);
    xm_ram_close(&ram);
    ramchild_end(&c);
    if (r == -ENOSYS || r == -EPERM || r == -EACCES) {
        print_message("skipped: %s\n", e.text);
        skip();
    }
    if (r < 0)
        fail_msg("%s", e.text);
}
