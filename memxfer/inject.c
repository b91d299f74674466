/* SPDX-License-Identifier: MIT */
/* memxfer/inject.c: borrows a thread of a running process for some system calls.
 *
 * The happy path, some 100 us long for a userfaultfd and as long as its calls take for others (warm.c: up to
 * 64 of madvise, some ms), of which one thread of the process notices nothing but the time:
 *
 * 1. PTRACE_SEIZE and PTRACE_INTERRUPT a thread that is not a vCPU. It stops on its way back to user mode,
 *    before it has looked at signals and before an interrupted system call is restarted.
 *
 * 2. All its signals but SIGTRAP are blocked. Its registers are kept, and replaced by those of
 *    the first call, with rip at some «syscall» instruction that its code already has, and orig_rax -1: we
 *    are not in an interrupted system call.
 *
 * 3. It runs from system-call stop to system-call stop, for each call. For a userfaultfd we take its new
 *    descriptor with pidfd_getfd, and make it close its own.
 *
 * 4. PTRACE_INTERRUPT once more brings it to the same place as in 1. There its own registers are put back,
 *    with orig_rax and the kernel's internal -ERESTART code in rax, and its signal mask. After the detach
 *    the kernel itself delivers what signals have come, and restarts the interrupted call by its own rules.
 *
 * What can go wrong:
 *
 * -  The first stop is one for a signal: the signal is delivered and the interrupt repeated.
 *
 * -  SIGSTOP, which cannot be blocked, comes in between: it is passed on; the thread finishes our calls,
 *    and stops after them.
 *
 * -  The process dies: nothing to restore, -ESRCH.
 *
 * -  The thread does not stop within STOP_TIMEOUT (uninterruptible sleep): it is let go, the next is tried.
 *
 * -  The thread cannot be brought back to the place of 1: its registers are put back as the kernel would
 *    have left them, with rip rewound by 2 for an interrupted call.
 *
 * -  Seccomp of a sandboxed VMM: suspended while we trace (needs CAP_SYS_ADMIN).
 *
 * -  We ourselves are killed while the thread is stopped: it would run on with our registers. That is a
 *    window as long as the happy path: 100 us once a migration at the source; at the destination some ms, dozens
 *    of times, in a QEMU to which no guest can have been given yet (warm.c).
 *
 * All of it is done on a thread of its own: ptrace belongs to the thread that attached, and when that thread
 * ends, the kernel detaches whatever is still attached. Exit states are only looked at (WNOWAIT): they
 * belong to the process's parent.
 */
#include "memxfer/inject.h"
#include "memxfer/uffd.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#if !defined(__x86_64__)

int inject_uffd(pid_t pid, struct xm_error *e)
{
    return xm_error_set(e, ENOSYS, "process %d: tracking memory from outside is written for x86-64 only",
                        pid);
}

int inject_calls(pid_t pid, struct inject_call *call, unsigned n, struct xm_error *e)
{
    (void)call, (void)n;
    return inject_uffd(pid, e);
}

#else

#define STOP_TIMEOUT (2 * XM_NS_PER_S)
#define SIGNAL_TRIES 1000
#define THREAD_TRIES 8
#define USER_CS_64   0x33
#define RSEQ_CS_AT   8 /* offset of rseq_cs in struct rseq */

/* The kernel's internal error codes of interrupted system calls (include/linux/errno.h). */
enum { RESTARTSYS = 512, RESTARTNOINTR = 513, RESTARTNOHAND = 514, RESTART_RESTARTBLOCK = 516 };

enum stop { STOP_TRAP, STOP_SYSCALL, STOP_SIGNAL };

struct injection {
    pid_t pid, tid;
    uint64_t insn;                /* a syscall instruction in the process */
    struct user_regs_struct regs; /* the thread's own */
    uint64_t mask;
    uint64_t rseq_at; /* where the thread says that it is in a restartable sequence; 0: it is in none */
    uint64_t rseq_cs; /* what it says there */
    bool away;        /* it has left the stop in which regs were taken */
    int (*job)(struct injection *);
    int uffd;
    struct inject_call *call;
    unsigned calls;
    struct xm_error error;
};

static long inject_trace(const struct injection *j, enum __ptrace_request request, uintptr_t address,
                         uintptr_t data)
{
    return ptrace(request, j->tid, (void *)address, (void *)data);
}

static int ptrace_failed(struct injection *j, const char *what)
{
    int err = errno;

    if (err == ESRCH)
        return xm_error_set(&j->error, ESRCH, "thread %d of process %d has ended", j->tid, j->pid);
    return xm_error_errno(&j->error, err, "thread %d of process %d: %s", j->tid, j->pid, what);
}

static bool thread_dead(const struct injection *j)
{
    siginfo_t info = {0};

    if (waitid(P_PID, (id_t)j->tid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0)
        return errno == ECHILD;
    /* The ptrace stop that we wait for may be what it tells. */
    return info.si_pid == j->tid && info.si_code != CLD_TRAPPED && info.si_code != CLD_STOPPED;
}

/* Waits until the thread is in a ptrace stop. PTRACE_GETSIGINFO tells it, and which: a wait could be taken
 * from us by another thread of ours that waits for its child QEMU. */
static int wait_stop(struct injection *j, enum stop *stop, int *sig)
{
    uint64_t deadline = xm_now() + STOP_TIMEOUT;
    siginfo_t info;

    for (unsigned i = 1; inject_trace(j, PTRACE_GETSIGINFO, 0, (uintptr_t)&info) < 0; i++) {
        if (errno != ESRCH)
            return ptrace_failed(j, "cannot look at its stop");
        if (i % 64 == 0 && thread_dead(j))
            return xm_error_set(&j->error, ESRCH, "process %d ended", j->pid);
        if (i % 64 == 0 && xm_now() > deadline)
            return xm_error_set(&j->error, ETIMEDOUT, "thread %d of process %d does not stop", j->tid,
                                j->pid);
        if (i < 2000)
            sched_yield(); /* it usually takes tens of microseconds */
        else
            nanosleep(&(struct timespec){.tv_nsec = XM_NS_PER_MS}, NULL);
    }
    *sig = info.si_signo;
    if (info.si_code == (SIGTRAP | 0x80))
        *stop = STOP_SYSCALL;
    else if (info.si_code >> 8 == PTRACE_EVENT_STOP)
        *stop = STOP_TRAP;
    else
        *stop = STOP_SIGNAL;
    return 0;
}

/* Runs the thread until the wanted kind of stop. Signals on the way are delivered, except those our own
 * instruction might have caused. */
static int run_until(struct injection *j, enum __ptrace_request request, enum stop wanted)
{
    enum stop stop = STOP_TRAP;
    int sig = 0;

    for (int i = 0; i < SIGNAL_TRIES; i++) {
        if (inject_trace(j, request, 0, (uintptr_t)sig) < 0)
            return ptrace_failed(j, "cannot be resumed");
        int r = wait_stop(j, &stop, &sig);
        if (r < 0)
            return r;
        if (stop == wanted)
            return 0;
        if (stop == STOP_SIGNAL &&
            (sig == SIGSEGV || sig == SIGBUS || sig == SIGILL || sig == SIGTRAP || sig == SIGSYS))
            return xm_error_set(&j->error, EFAULT,
                                "process %d: the borrowed instruction failed with signal %d", j->pid, sig);
        if (stop != STOP_SIGNAL)
            sig = 0;
    }
    return xm_error_set(&j->error, EAGAIN, "thread %d of process %d is flooded with signals", j->tid, j->pid);
}

/* Makes the stopped thread do one system call. */
static int remote_syscall(struct injection *j, long nr, const uint64_t arg[3], int64_t *result)
{
    struct user_regs_struct regs = j->regs;
    int r;

    regs.rip = j->insn;
    regs.rax = (unsigned long long)nr;
    regs.orig_rax = (unsigned long long)-1;
    regs.rdi = arg[0];
    regs.rsi = arg[1];
    regs.rdx = arg[2];
    if (inject_trace(j, PTRACE_SETREGS, 0, (uintptr_t)&regs) < 0)
        return ptrace_failed(j, "cannot set its registers");
    j->away = true;
    struct user_regs_struct at_entry;
    if ((r = run_until(j, PTRACE_SYSCALL, STOP_SYSCALL)) < 0)
        return r;
    if (inject_trace(j, PTRACE_GETREGS, 0, (uintptr_t)&at_entry) < 0)
        return ptrace_failed(j, "cannot read its registers");
    /* Its sandbox is suspended, and another thread of it may have rewritten the code: no other call gets
     * through. */
    bool is_ours = at_entry.orig_rax == (unsigned long long)nr && at_entry.rdi == arg[0] &&
                   at_entry.rsi == arg[1] && at_entry.rdx == arg[2];
    if (!is_ours) {
        at_entry.orig_rax = (unsigned long long)-1;
        if (inject_trace(j, PTRACE_SETREGS, 0, (uintptr_t)&at_entry) < 0)
            return ptrace_failed(j, "cannot set its registers");
    }
    if ((r = run_until(j, PTRACE_SYSCALL, STOP_SYSCALL)) < 0)
        return r;
    if (!is_ours)
        return xm_error_set(&j->error, EFAULT, "process %d has changed the instruction that was borrowed",
                            j->pid);
    if (inject_trace(j, PTRACE_GETREGS, 0, (uintptr_t)&regs) < 0)
        return ptrace_failed(j, "cannot read its registers");
    *result = (int64_t)regs.rax;
    return 0;
}

/* A thread that is interrupted within a restartable sequence (rseq(2)) has to start that sequence anew.
 * Returning to user mode with our rip makes the kernel forget that it was in one: we remember for it. */
static void save_rseq(struct injection *j)
{
    struct __ptrace_rseq_configuration conf = {0};

    if ((int64_t)j->regs.orig_rax >= 0) /* never within a system call */
        return;
    if (inject_trace(j, PTRACE_GET_RSEQ_CONFIGURATION, sizeof conf, (uintptr_t)&conf) < 0 ||
        !conf.rseq_abi_pointer)
        return;
    errno = 0;
    long cs = inject_trace(j, PTRACE_PEEKDATA, conf.rseq_abi_pointer + RSEQ_CS_AT, 0);
    if (!errno && cs) {
        j->rseq_at = conf.rseq_abi_pointer + RSEQ_CS_AT;
        j->rseq_cs = (uint64_t)cs;
    }
}

/* As the kernel does it for an interrupted system call when no handler is run. */
static void rewind_syscall(struct user_regs_struct *regs)
{
    if ((int64_t)regs->orig_rax < 0)
        return;
    switch (-(int64_t)regs->rax) {
    case RESTARTSYS:
    case RESTARTNOINTR:
    case RESTARTNOHAND:
        regs->rax = regs->orig_rax;
        regs->rip -= 2;
        break;
    case RESTART_RESTARTBLOCK:
        regs->rax = SYS_restart_syscall;
        regs->rip -= 2;
        break;
    default:
        break;
    }
    regs->orig_rax = (unsigned long long)-1;
}

/* Puts everything back and lets go. */
static void inject_restore(struct injection *j)
{
    struct user_regs_struct regs = j->regs;
    struct xm_error first = j->error;

    if (j->away) {
        inject_trace(j, PTRACE_INTERRUPT, 0, 0);
        if (run_until(j, PTRACE_CONT, STOP_TRAP) < 0)
            rewind_syscall(&regs);
        j->error = first;
    }
    if (j->rseq_at)
        inject_trace(j, PTRACE_POKEDATA, j->rseq_at, j->rseq_cs);
    if (inject_trace(j, PTRACE_SETREGS, 0, (uintptr_t)&regs) < 0 && errno != ESRCH)
        xm_log(XM_LOG_ERROR, "thread %d of process %d: its registers cannot be put back: %s", j->tid, j->pid,
               strerror(errno));
    inject_trace(j, PTRACE_SETSIGMASK, sizeof j->mask, (uintptr_t)&j->mask);
}

static int take_uffd(struct injection *j)
{
    const uint64_t flags[3] = {O_CLOEXEC | O_NONBLOCK | UFFD_USER_ONLY};
    int64_t remote = -1, closed;
    int r = remote_syscall(j, SYS_userfaultfd, flags, &remote);

    if (r)
        return r;
    if (remote < 0)
        return xm_error_errno(&j->error, (int)-remote, "process %d may not call userfaultfd(2)%s", j->pid,
                              remote == -EPERM ? " (a security policy of its host forbids it)"
                              : remote == -ENOSYS
                                  ? " (it is not built into this kernel, or a sandbox forbids it)"
                                  : "");
    int pidfd = (int)syscall(SYS_pidfd_open, j->pid, 0);
    j->uffd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, (int)remote, 0);
    if (j->uffd < 0)
        r = xm_error_errno(&j->error, errno, "cannot take over the userfaultfd of process %d", j->pid);
    if (pidfd >= 0)
        close(pidfd);
    /* Ours is the last one now: should we die, protection ends and QEMU just runs on. */
    const uint64_t fd[3] = {(uint64_t)remote};
    int c = remote_syscall(j, SYS_close, fd, &closed);
    return r ? r : c;
}

static int do_calls(struct injection *j)
{
    int r = 0;

    for (unsigned i = 0; !r && i < j->calls; i++)
        r = remote_syscall(j, j->call[i].nr, j->call[i].arg, &j->call[i].result);
    return r;
}

/* The thread is stopped at a place from which it can be restored. */
static int inject_borrow(struct injection *j)
{
    uint64_t blocked = ~(1ull << (SIGTRAP - 1));

    if (inject_trace(j, PTRACE_GETREGS, 0, (uintptr_t)&j->regs) < 0)
        return ptrace_failed(j, "cannot read its registers");
    if (j->regs.cs != USER_CS_64)
        return xm_error_set(&j->error, ENOTSUP, "process %d is no 64-bit program", j->pid);
    if (inject_trace(j, PTRACE_GETSIGMASK, sizeof j->mask, (uintptr_t)&j->mask) < 0)
        return ptrace_failed(j, "cannot read its signal mask");
    save_rseq(j);
    int r = inject_trace(j, PTRACE_SETSIGMASK, sizeof blocked, (uintptr_t)&blocked) < 0
                ? ptrace_failed(j, "cannot block its signals")
                : 0;
    if (!r)
        r = j->job(j);
    inject_restore(j);
    return r;
}

/* Attaches and gets the thread to where the kernel has stopped it for us, not for a signal. */
static int inject_seize(struct injection *j)
{
    long options = PTRACE_O_TRACESYSGOOD;
    enum stop stop = STOP_TRAP;
    int sig = 0;

    if (inject_thread_status(j->pid, j->tid, "Seccomp") > 0)
        options |= PTRACE_O_SUSPEND_SECCOMP;
    if (inject_trace(j, PTRACE_SEIZE, 0, (uintptr_t)options) < 0) {
        int err = errno;
        long tracer = inject_thread_status(j->pid, j->tid, "TracerPid");
        if (err == ESRCH)
            return ptrace_failed(j, "");
        if (err == EPERM && tracer > 0)
            return xm_error_set(&j->error, EBUSY,
                                "process %d is traced by process %ld (a debugger?): end that first", j->pid,
                                tracer);
        return xm_error_errno(&j->error, err, "process %d cannot be traced%s", j->pid,
                              err != EPERM ? ""
                              : options & PTRACE_O_SUSPEND_SECCOMP
                                  ? " (it is sandboxed by seccomp: CAP_SYS_ADMIN is needed, without a "
                                    "seccomp filter of our own)"
                                  : " (run as root or with CAP_SYS_PTRACE; see kernel.yama.ptrace_scope)");
    }
    for (int i = 0; i < SIGNAL_TRIES; i++) {
        if (inject_trace(j, PTRACE_INTERRUPT, 0, 0) < 0)
            return ptrace_failed(j, "cannot be interrupted");
        int r = wait_stop(j, &stop, &sig);
        if (r < 0 || stop == STOP_TRAP)
            return r;
        /* It was about to handle a signal: it shall, then we try again. */
        if (inject_trace(j, PTRACE_CONT, 0, stop == STOP_SIGNAL ? (uintptr_t)sig : 0) < 0)
            return ptrace_failed(j, "cannot be resumed");
    }
    return xm_error_set(&j->error, EAGAIN, "thread %d of process %d is flooded with signals", j->tid, j->pid);
}

static void *inject_main(void *arg)
{
    struct injection *j = arg;

    if (inject_seize(j) == 0)
        inject_borrow(j);
    inject_trace(j, PTRACE_DETACH, 0, 0);
    return NULL; /* what is attached still is detached by the end of this thread */
}

static int inject(struct injection *j, struct xm_error *e)
{
    pid_t tids[THREAD_TRIES];
    int r = inject_find_syscall(j->pid, &j->insn, e);

    if (r < 0)
        return r;
    unsigned n = inject_pick_threads(j->pid, tids, THREAD_TRIES);
    if (!n)
        return xm_error_set(e, ESRCH, "process %d has no thread that could be stopped for a moment", j->pid);
    for (unsigned i = 0; i < n; i++) {
        pthread_t thread;
        memset(&j->error, 0, sizeof j->error);
        j->tid = tids[i];
        j->away = false;
        j->rseq_at = 0;
        if ((r = pthread_create(&thread, NULL, inject_main, j)))
            return xm_error_errno(e, r, "cannot start a thread");
        pthread_join(thread, NULL);
        if (!j->error.code)
            return 0;
        if (j->uffd >= 0)
            close(j->uffd);
        j->uffd = -1;
        if (j->error.code != ESRCH && j->error.code != ETIMEDOUT && j->error.code != EAGAIN)
            break;
    }
    if (e)
        *e = j->error;
    return -j->error.code;
}

int inject_uffd(pid_t pid, struct xm_error *e)
{
    struct injection j = {.pid = pid, .job = take_uffd, .uffd = -1};
    int r = inject(&j, e);

    return r ? r : j.uffd;
}

int inject_calls(pid_t pid, struct inject_call *call, unsigned n, struct xm_error *e)
{
    struct injection j = {.pid = pid, .job = do_calls, .uffd = -1, .call = call, .calls = n};

    return inject(&j, e);
}

#endif
