/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_inject.c: a process from which a userfaultfd was taken goes on as if nothing had been:
 * whatever it was waiting in, whatever signals it was getting, whatever it had in its registers. */
#include "memxfer/inject.h"
#include "tests/unit/lib_ramchild.h"
#include "tests/progress.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static struct ramchild child;

static void begin(void (*body)(struct ramchild *))
{
    ramchild_need_tracking();
    memset(&child, 0, sizeof child);
    ramchild_start(&child, 2u << 20, -1, body, 1);
}

static int teardown(void **state)
{
    (void)state;
    ramchild_kill(&child);
    return 0;
}

static unsigned descriptors(pid_t pid)
{
    char path[64];
    unsigned n = 0;

    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *d = opendir(path);
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void inject_once(void)
{
    struct xm_error e = {0};
    int fd = inject_uffd(child.pid, &e);

    if (fd < 0)
        fail_msg("%s", e.text);
    close(fd);
}

/* Injects n times, at moments that drift against whatever the child does in `period_us`. */
static void inject_often(unsigned n, unsigned period_us)
{
    while (!atomic_load(&child.page->steps))
        usleep(100);
    unsigned before = descriptors(child.pid);
    uint64_t steps = atomic_load(&child.page->steps);

    for (unsigned i = 0; i < n; i++) {
        inject_once();
        usleep((i * 37) % period_us);
    }
    /* It goes on. */
    struct limit l = limit_start(5);
    while (atomic_load(&child.page->steps) < steps + 3 && !limit_over(&l))
        usleep(100);
    assert_true(atomic_load(&child.page->steps) >= steps + 3);
    if (descriptors(child.pid) > before)
        fail_msg("descriptors are left in the process");
    ramchild_end(&child);
}

static void step(struct ramchild *c)
{
    atomic_fetch_add(&c->page->steps, 1);
}

/* ---- what a thread may be in ---- */

static void sleep_body(struct ramchild *c)
{
    while (!atomic_load(&c->page->quit)) {
        uint64_t start = xm_now();
        struct timespec t = {.tv_nsec = 3 * XM_NS_PER_MS}, left = {0};
        if (nanosleep(&t, &left) < 0)
            ramchild_error(c, "nanosleep: %m");
        if (xm_now() - start < 3 * XM_NS_PER_MS)
            ramchild_error(c, "nanosleep ended early");
        step(c);
    }
}

static void ppoll_body(struct ramchild *c)
{
    sigset_t mask, now;
    int p[2];

    if (pipe(p) < 0)
        _exit(1);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    while (!atomic_load(&c->page->quit)) {
        struct pollfd f = {.fd = p[0], .events = POLLIN};
        struct timespec t = {.tv_nsec = 2 * XM_NS_PER_MS};
        uint64_t start = xm_now();
        int r = ppoll(&f, 1, &t, &mask);
        if (r != 0 || xm_now() - start < 2 * XM_NS_PER_MS)
            ramchild_error(c, "ppoll: %d %m", r);
        pthread_sigmask(SIG_SETMASK, NULL, &now);
        if (sigismember(&now, SIGUSR2) || sigismember(&now, SIGTERM))
            ramchild_error(c, "the signal mask has changed");
        step(c);
    }
}

/* A thread that talks through pipes with another, in read(2). */
struct pipes {
    int to[2], back[2];
};

static void *echo(void *arg)
{
    struct pipes *p = arg;
    uint64_t n;

    while (read(p->to[0], &n, sizeof n) == sizeof n) {
        usleep(300);
        if (write(p->back[1], &n, sizeof n) != sizeof n)
            break;
    }
    return NULL;
}

static void read_body(struct ramchild *c)
{
    struct pipes p;
    pthread_t thread;
    uint64_t got;

    if (pipe(p.to) < 0 || pipe(p.back) < 0 || pthread_create(&thread, NULL, echo, &p))
        _exit(1);
    for (uint64_t n = 1; !atomic_load(&c->page->quit); n++) {
        if (write(p.to[1], &n, sizeof n) != sizeof n || read(p.back[0], &got, sizeof got) != sizeof got ||
            got != n)
            ramchild_error(c, "read: %m");
        step(c);
    }
    close(p.to[1]);
    pthread_join(thread, NULL);
}

static void futex_body(struct ramchild *c)
{
    uint32_t word = 0;

    while (!atomic_load(&c->page->quit)) {
        struct timespec t = {.tv_nsec = 2 * XM_NS_PER_MS};
        uint64_t start = xm_now();
        long r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
        if (r != -1 || errno != ETIMEDOUT || xm_now() - start < 2 * XM_NS_PER_MS)
            ramchild_error(c, "futex: %ld %m after %llu", r, (unsigned long long)(xm_now() - start));
        step(c);
    }
}

/* No system calls: results that depend on every register along the way. */
static void compute_body(struct ramchild *c)
{
    uint64_t expected = 0;

    while (!atomic_load(&c->page->quit)) {
        uint64_t a = 1, b = 2, d = 3, f = 4, g = 5, h = 6;
        double x = 1;
        for (unsigned i = 0; i < 20000; i++) {
            a = a * 3 + h;
            b ^= a >> 7;
            d += b * 5;
            f = (f << 9 | f >> 55) + d;
            g ^= f;
            h -= g * 11;
            x = x * 1.000001 + (double)(h & 3);
        }
        uint64_t sum = a ^ b ^ d ^ f ^ g ^ h ^ (uint64_t)x;
        if (!expected)
            expected = sum;
        if (sum != expected)
            ramchild_error(c, "a computation came out different");
        step(c);
    }
}

#define THROUGH(what, period)                                                                                \
    static void through_##what(void **state)                                                                 \
    {                                                                                                        \
        (void)state;                                                                                         \
        begin(what##_body);                                                                                  \
        inject_often(100, period);                                                                           \
    }
THROUGH(sleep, 3000)
THROUGH(ppoll, 2000)
THROUGH(read, 500)
THROUGH(futex, 2000)
THROUGH(compute, 300)

/* ---- signals ---- */

static struct ramchild *handled;

static void on_signal(int sig)
{
    (void)sig;
    atomic_fetch_add(&handled->page->signals, 1);
}

/* Real-time signals are queued: each must arrive, once, whatever call it finds the thread in. */
static void signals_body(struct ramchild *c)
{
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    int p[2];
    uint64_t n = 0;

    handled = c;
    sigaction(SIGRTMIN + 3, &sa, NULL);
    sa.sa_flags = 0;
    sigaction(SIGRTMIN + 4, &sa, NULL);
    if (pipe(p) < 0)
        _exit(1);
    atomic_store(&c->page->go, 1);
    while (!atomic_load(&c->page->quit)) {
        uint64_t before = atomic_load(&c->page->signals);
        struct pollfd f = {.fd = p[0], .events = POLLIN};
        int r = n++ % 2 ? usleep(500) : poll(&f, 1, 1);
        if (r < 0 && (errno != EINTR || atomic_load(&c->page->signals) == before))
            ramchild_error(c, "a call ended early without a signal: %m");
        step(c);
    }
}

struct shower {
    atomic_bool stop;
    uint64_t sent;
};

static void *shower_main(void *arg)
{
    struct shower *s = arg;

    while (!atomic_load(&s->stop)) {
        if (sigqueue(child.pid, SIGRTMIN + 3 + (int)(s->sent % 2), (union sigval){0}) == 0)
            s->sent++;
        usleep(30);
    }
    return NULL;
}

static void through_a_shower_of_signals(void **state)
{
    (void)state;
    struct shower s = {0};
    pthread_t thread;
    begin(signals_body);
    while (!atomic_load(&child.page->go))
        usleep(100);
    pthread_create(&thread, NULL, shower_main, &s);
    for (int i = 0; i < 200; i++) {
        inject_once();
        usleep((useconds_t)(i * 13 % 200));
    }
    atomic_store(&s.stop, true);
    pthread_join(thread, NULL);
    struct limit l = limit_start(3);
    while (atomic_load(&child.page->signals) < s.sent && !limit_over(&l))
        usleep(200);
    assert_true(s.sent > 100);
#ifndef __SANITIZE_THREAD__ /* which itself delivers signals late, and several as one */
    assert_int_equal(atomic_load(&child.page->signals), s.sent);
#endif
    ramchild_end(&child);
}

/* SIGSTOP cannot be blocked: it is not lost, and neither is SIGCONT. */
static void a_stopped_process_stays_stopped(void **state)
{
    (void)state;
    int status;
    begin(sleep_body);
    kill(child.pid, SIGSTOP);
    assert_int_equal(waitpid(child.pid, &status, WUNTRACED), child.pid);
    assert_true(WIFSTOPPED(status));
    inject_once();
    uint64_t before = atomic_load(&child.page->steps);
    usleep(20000);
    assert_int_equal(atomic_load(&child.page->steps), before);
    kill(child.pid, SIGCONT);
    inject_often(5, 1000);
}

/* ---- threads and sandboxes ---- */

static void *busy(void *arg)
{
    struct ramchild *c = arg;

    prctl(PR_SET_NAME, "CPU 0/TCG");
    c->page->arg[1] = (uint64_t)syscall(SYS_gettid);
    atomic_fetch_add(&c->page->go, 1);
    for (volatile uint64_t n = 0; !atomic_load(&c->page->quit); n++) {
    }
    return NULL;
}

static void *collector(void *arg)
{
    struct ramchild *c = arg;

    prctl(PR_SET_NAME, "call_rcu");
    c->page->arg[0] = (uint64_t)syscall(SYS_gettid);
    atomic_fetch_add(&c->page->go, 1);
    for (;;)
        pause();
    return NULL;
}

static void threads_body(struct ramchild *c)
{
    pthread_t vcpu, gc;

    pthread_create(&vcpu, NULL, busy, c);
    pthread_create(&gc, NULL, collector, c);
    sleep_body(c);
    pthread_join(vcpu, NULL);
}

static void picks_no_vcpu(void **state)
{
    (void)state;
    pid_t tids[8];
    begin(threads_body);
    while (atomic_load(&child.page->go) < 2)
        usleep(100);
    unsigned n = inject_pick_threads(child.pid, tids, 8);
    assert_true(n >= 2); /* a sanitizer has threads of its own */
    for (unsigned i = 0; i < n; i++)
        assert_int_not_equal(tids[i], child.page->arg[1]);
    assert_int_equal(tids[0], child.page->arg[0]);
    assert_int_equal(tids[1], child.pid);
    assert_int_equal(inject_pick_threads(child.pid, tids, 1), 1);
    assert_int_equal(tids[0], child.page->arg[0]);
    inject_often(50, 500);
}

/* Strict seccomp by a filter that kills for userfaultfd(2). */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

static void sandboxed_body(struct ramchild *c)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof code / sizeof *code, code};

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
        ramchild_error(c, "seccomp: %m");
    atomic_store(&c->page->go, 1);
    sleep_body(c);
}

static void a_sandbox_is_suspended(void **state)
{
    (void)state;
    begin(sandboxed_body);
    while (!atomic_load(&child.page->go))
        usleep(100);
    inject_often(20, 1000);
}

/* ---- failures ---- */

static void a_missing_process_is_told(void **state)
{
    (void)state;
    struct xm_error e = {0};
    begin(sleep_body);
    pid_t pid = child.pid;
    ramchild_kill(&child);
    assert_true(inject_uffd(pid, &e) < 0);
    assert_true(e.text[0]);
}

static void another_tracer_is_told(void **state)
{
    (void)state;
    struct xm_error e = {0};
    int p[2];
    char c;
    begin(sleep_body);
    assert_int_equal(pipe(p), 0);
    pid_t debugger = fork();
    if (debugger == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (ptrace(PTRACE_SEIZE, child.pid, NULL, NULL) == 0 && write(p[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    assert_int_equal(read(p[0], &c, 1), 1);
    assert_int_equal(inject_uffd(child.pid, &e), -EBUSY);
    char number[16];
    snprintf(number, sizeof number, "%d", debugger);
    assert_non_null(strstr(e.text, number));
    kill(debugger, SIGKILL);
    waitpid(debugger, NULL, 0);
    close(p[0]);
    close(p[1]);
    inject_often(3, 1000);
}

static void *kill_soon(void *arg)
{
    usleep(*(useconds_t *)arg);
    kill(child.pid, SIGKILL);
    return NULL;
}

static void a_process_may_die_meanwhile(void **state)
{
    (void)state;
    for (useconds_t us = 0; us < 600; us += 20) {
        pthread_t thread;
        begin(sleep_body);
        pthread_create(&thread, NULL, kill_soon, &us);
        for (int i = 0; i < 1000; i++) {
            int fd = inject_uffd(child.pid, NULL);
            if (fd < 0)
                break;
            close(fd);
            assert_true(i < 999);
        }
        pthread_join(thread, NULL);
        ramchild_kill(&child);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(through_sleep, teardown),
        cmocka_unit_test_teardown(through_ppoll, teardown),
        cmocka_unit_test_teardown(through_read, teardown),
        cmocka_unit_test_teardown(through_futex, teardown),
        cmocka_unit_test_teardown(through_compute, teardown),
        cmocka_unit_test_teardown(through_a_shower_of_signals, teardown),
        cmocka_unit_test_teardown(a_stopped_process_stays_stopped, teardown),
        cmocka_unit_test_teardown(picks_no_vcpu, teardown),
        cmocka_unit_test_teardown(a_sandbox_is_suspended, teardown),
        cmocka_unit_test_teardown(a_missing_process_is_told, teardown),
        cmocka_unit_test_teardown(another_tracer_is_told, teardown),
        cmocka_unit_test_teardown(a_process_may_die_meanwhile, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
