/* SPDX-License-Identifier: MIT */
/* Descriptors, whatever is behind them: the table of all processes', events, signals, processes' own, and
 * poll. A process that is killed closes its descriptors, unless its host lost its power: then nobody is
 * told. */
#include "tests/sim/sim.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FDS 6000

static struct {
    struct obj *obj;
    struct proc *owner;
} fds[FDS];
static int fds_used;

void fds_reset(void)
{
    memset(fds, 0, (size_t)fds_used * sizeof *fds);
    fds_used = 0;
}

struct obj *obj_new(enum kind kind)
{
    struct obj *o = sim_alloc(sizeof *o);

    memset(o, 0, sizeof *o);
    o->kind = kind;
    o->proc = proc_current();
    o->host = o->proc ? o->proc->host : NULL;
    o->last = &o->first;
    return o;
}

int fd_new(struct obj *o, struct proc *owner)
{
    if (fds_used == FDS) {
        sim_violated("more than %d descriptors", FDS);
        fds_used--;
    }
    o->refs++;
    fds[fds_used].obj = o;
    fds[fds_used].owner = owner;
    return FD_FIRST + fds_used++;
}

struct obj *fd_obj(int fd)
{
    return fd >= FD_FIRST && fd < FD_FIRST + fds_used ? fds[fd - FD_FIRST].obj : NULL;
}

int fds_end(void)
{
    return FD_FIRST + fds_used;
}

/* Who waits for several descriptors is woken by each change of any. */
static const char pollers;

void obj_changed(struct obj *o)
{
    task_wake(o);
    task_wake(&pollers);
}

void obj_put(struct obj *o)
{
    if (--o->refs > 0)
        return;
    if (o->kind == FD_SOCKET)
        socket_closed(o);
    if (o->kind == FD_LISTEN) {
        o->eof = true;
        for (unsigned i = 0; i < o->pendings; i++)
            obj_put(o->pending[i]);
        o->pendings = 0;
    }
}

static void fd_close(int i)
{
    struct obj *o = fds[i].obj;

    fds[i].obj = NULL;
    if (o)
        obj_put(o);
}

void fds_close_all(struct proc *p)
{
    for (int i = 0; i < fds_used; i++) {
        if (fds[i].owner == p && fds[i].obj)
            fd_close(i);
    }
}

void sockets_of_process_gone(struct proc *p)
{
    for (int i = 0; i < fds_used; i++) {
        if (fds[i].obj && fds[i].obj->kind == FD_PID && fds[i].obj->proc == p)
            obj_changed(fds[i].obj);
    }
}

int __wrap_close(int fd)
{
    if (!fd_obj(fd)) {
        errno = EBADF;
        return -1;
    }
    fd_close(fd - FD_FIRST);
    return 0;
}

int __wrap_fcntl(int fd, int what, ...)
{
    struct obj *o = fd_obj(fd);

    if (what == F_OFD_SETLK && o && o->kind == FD_FILE && o->inode->user && o->inode->user->alive) {
        errno = EAGAIN;
        return -1;
    }
    return what == F_DUPFD_CLOEXEC && o ? fd_new(o, proc_current()) : 0;
}

/* ---- events, processes, signals ---- */

int __wrap_eventfd(unsigned value, int flags)
{
    struct obj *o = obj_new(FD_EVENT);

    (void)flags;
    o->count = value;
    return fd_new(o, proc_current());
}

int __wrap_eventfd_write(int fd, eventfd_t value)
{
    struct obj *o = fd_obj(fd);

    if (!o)
        return -1;
    o->count += value;
    obj_changed(o);
    return 0;
}

int __wrap_eventfd_read(int fd, eventfd_t *value)
{
    struct obj *o = fd_obj(fd);

    if (!o || !o->count) {
        errno = EAGAIN;
        return -1;
    }
    *value = o->count;
    o->count = 0;
    return 0;
}

int __wrap_signalfd(int fd, const void *set, int flags)
{
    struct obj *o = obj_new(FD_SIGNAL);

    (void)fd, (void)set, (void)flags;
    proc_current()->signals = o;
    return fd_new(o, o->proc);
}

long __wrap_syscall(long number, ...)
{
    va_list ap;
    va_start(ap, number);
    int first = va_arg(ap, int), second = va_arg(ap, int);
    va_end(ap);
    if (number == SYS_pidfd_open) {
        struct proc *p = proc_of(first);
        if (!p || !p->alive || p->host != proc_current()->host) {
            errno = ESRCH;
            return -1;
        }
        struct obj *o = obj_new(FD_PID);
        o->proc = p;
        return fd_new(o, proc_current());
    }
    struct obj *o = fd_obj(first);
    if (number == SYS_pidfd_send_signal && o && o->kind == FD_PID) {
        sim_point("signal");
        if (second == SIGKILL && o->proc->alive)
            proc_kill(o->proc, "by its pidfd");
        return 0;
    }
    errno = ENOSYS;
    return -1;
}

int __wrap_kill(pid_t pid, int sig)
{
    struct proc *p = proc_of(pid < 0 ? -pid : pid);

    if (p && p->alive && sig == SIGKILL)
        proc_kill(p, "by kill");
    return 0;
}

pid_t __wrap_waitpid(pid_t pid, int *status, int options)
{
    (void)status, (void)options;
    return pid;
}

static short state_of(const struct obj *o)
{
    switch (o->kind) {
    case FD_SOCKET:
        return o->first ? POLLIN : o->eof ? POLLIN | POLLHUP : 0;
    case FD_LISTEN:
        return o->pendings ? POLLIN : 0;
    case FD_EVENT:
        return o->count ? POLLIN : 0;
    case FD_PID:
        return o->proc->alive ? 0 : POLLIN;
    case FD_SIGNAL:
        return o->proc->term ? POLLIN : 0;
    default:
        return 0;
    }
}

static int look(struct pollfd *p, nfds_t n)
{
    int ready = 0;

    for (nfds_t i = 0; i < n; i++) {
        struct obj *o = p[i].fd < 0 ? NULL : fd_obj(p[i].fd);
        p[i].revents = p[i].fd < 0 ? 0 : !o ? POLLNVAL : (short)(state_of(o) & (p[i].events | POLLHUP));
        ready += p[i].revents != 0;
    }
    return ready;
}

int __wrap_poll(struct pollfd *p, nfds_t n, int timeout)
{
    uint64_t deadline = timeout < 0 ? NEVER : sim_time() + (uint64_t)timeout * MS;
    static uint64_t last;
    static unsigned spins;
    int ready;

    /* Who finds something ready again and again burns time as well. */
    spins = last == sim_time() ? spins + 1 : 0;
    last = sim_time();
    if (spins > 500)
        task_sleep(MS);

    while (!(ready = look(p, n)) && timeout && sim_time() < deadline) {
        if (n == 1 && fd_obj(p[0].fd))
            task_wait(fd_obj(p[0].fd), deadline);
        else if (n == 0)
            task_wait(NULL, deadline);
        else
            task_wait(&pollers, deadline);
    }
    return ready;
}
