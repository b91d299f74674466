/* SPDX-License-Identifier: MIT */
/* The agent's start, loop and end. See agent/agent.h for its threads.
 *
 * Start: directories, a lock against a second agent, ended jobs, the VMs that are there; the sockets come
 * last, so that who can connect finds everything. End (SIGTERM, SIGINT): no new connections, sockets shut
 * down, threads waited for; VMs and their migrations go on. Being killed is the same, less tidy.
 */
#include "agent/inventory.h"
#include "probe/probe.h"
#include "net/net.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define STACK (512u << 10)

/* ---- threads ---- */

int agent_thread(struct agent *a, void *(*run)(void *), void *arg, struct xm_error *e)
{
    pthread_attr_t attr;
    pthread_t t;

    agent_lock(a);
    a->threads++;
    agent_unlock(a);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int r = pthread_create(&t, &attr, run, arg);
    pthread_attr_destroy(&attr);
    if (r) {
        agent_thread_ends(a);
        return xm_error_errno(e, r, "cannot start a thread");
    }
    return 0;
}

void agent_thread_ends(struct agent *a)
{
    agent_lock(a);
    a->threads--;
    pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
}

bool agent_wait(struct agent *a, uint64_t deadline)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline / XM_NS_PER_S),
                          .tv_nsec = (long)(deadline % XM_NS_PER_S)};

    if (a->ending || xm_now() >= deadline)
        return false;
    if (deadline == UINT64_MAX)
        pthread_cond_wait(&a->changed, &a->lock);
    else
        pthread_cond_timedwait(&a->changed, &a->lock, &ts);
    return !a->ending;
}

bool agent_pause(struct agent *a, uint64_t ns)
{
    uint64_t until = xm_now() + ns;

    agent_lock(a);
    while (agent_wait(a, until))
        ;
    bool ending = a->ending;
    agent_unlock(a);
    return ending;
}

/* ---- start ---- */

/* What stands in them is believed: who may write there is this host. */
static int make_directories(struct agent *a, struct xm_error *e)
{
    const char *const dir[] = {a->conf.state_dir, a->conf.state_dir, a->conf.state_dir, a->conf.state_dir,
                               a->conf.state_dir, a->conf.run_dir,   a->conf.run_dir};
    static const char *const below[] = {"", "/vms", "/jobs", "/logs", "/left", "", "/vms"};
    int r = 0;

    for (int i = 0; !r && i < 7; i++) {
        char *path = xm_printf("%s%s", dir[i], below[i]);
        r = xm_mkdir_private(path, e);
        free(path);
    }
    return r ? xm_error_prefix(e, "run and state directories have to be this user's alone") : 0;
}

static int lock_run_dir(struct agent *a, struct xm_error *e)
{
    char *path = xm_printf("%s/agent.lock", a->conf.run_dir);
    int r = 0;

    a->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (a->lock_fd < 0)
        r = xm_error_errno(e, errno, "cannot open %s", path);
    else if (flock(a->lock_fd, LOCK_EX | LOCK_NB) < 0)
        r = xm_error_set(e, EBUSY, "another xmigrated runs with the run directory %s", a->conf.run_dir);
    free(path);
    return r;
}

static void agent_init(struct agent *a, struct config *conf)
{
    pthread_condattr_t attr;

    memset(a, 0, sizeof *a);
    a->conf = *conf; /* it owns the strings from now on */
    memset(conf, 0, sizeof *conf);
    a->lock_fd = -1;
    pthread_mutex_init(&a->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&a->changed, &attr);
    pthread_condattr_destroy(&attr);
    TAILQ_INIT(&a->vms);
    TAILQ_INIT(&a->jobs);
    LIST_INIT(&a->conns);
    LIST_INIT(&a->claims);
    LIST_INIT(&a->tidies);
}

static int open_sockets(struct agent *a, int *unix_fd, int *tcp_fd, struct xm_error *e)
{
    char *path = xm_printf("%s/agent.sock", a->conf.run_dir);
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    *tcp_fd = xm_tcp_listen(a->conf.listen_address, (uint16_t)a->conf.port, e);
    *unix_fd = *tcp_fd < 0 ? -1 : xm_unix_listen(path, e);
    free(path);
    if (*unix_fd < 0)
        return -1;
    a->port = a->conf.port;
    if (!a->port && !getsockname(*tcp_fd, (struct sockaddr *)&ss, &len)) {
        /* NOLINTNEXTLINE(clang-analyzer-core.*): getsockname has filled it */
        a->port = ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&ss)->sin6_port
                                                 : ((struct sockaddr_in *)(void *)&ss)->sin_port);
    }
    return 0;
}

/* ---- the loop ---- */

/* SIGHUP is no way to end it, and the configuration is what it was when it started. */
static bool is_the_end(int signal_fd)
{
    struct signalfd_siginfo info;

    if (read(signal_fd, &info, sizeof info) != sizeof info || info.ssi_signo != SIGHUP)
        return true;
    xm_log(XM_LOG_WARN,
           "the configuration is read when xmigrated starts: start it again; VMs and migrations go on");
    return false;
}

static int loop(struct agent *a, int unix_fd, int tcp_fd, int signal_fd, struct xm_error *e)
{
    int ep = epoll_create1(EPOLL_CLOEXEC);
    const int fds[] = {unix_fd, tcp_fd, signal_fd};

    if (ep < 0)
        return xm_error_errno(e, errno, "epoll");
    for (int i = 0; i < 3; i++)
        epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &(struct epoll_event){.events = EPOLLIN, .data.fd = fds[i]});
    for (;;) {
        struct epoll_event ev;
        int n = epoll_wait(ep, &ev, 1, -1);
        if (n < 0 && errno != EINTR)
            break;
        if (n > 0 && ev.data.fd == signal_fd && is_the_end(signal_fd))
            break;
        if (n > 0 && ev.data.fd != signal_fd)
            conn_accept(a, ev.data.fd, ev.data.fd == tcp_fd);
    }
    close(ep);
    return 0;
}

/* ---- end ---- */

static void stop_threads(struct agent *a)
{
    struct conn *c;
    struct vm *vm;

    agent_lock(a);
    a->ending = true;
    LIST_FOREACH (c, &a->conns, link) {
        if (c->js.fd >= 0)
            shutdown(c->js.fd, SHUT_RD); /* an answer that is on its way may still go out */
    }
    TAILQ_FOREACH (vm, &a->vms, link) {
        if (vm->watch_fd >= 0)
            shutdown(vm->watch_fd, SHUT_RDWR);
    }
    pthread_cond_broadcast(&a->changed);
    uint64_t until = xm_now() + 5 * XM_NS_PER_S;
    struct timespec ts = {.tv_sec = (time_t)(until / XM_NS_PER_S), .tv_nsec = (long)(until % XM_NS_PER_S)};
    while (a->threads && xm_now() < until)
        pthread_cond_timedwait(&a->changed, &a->lock, &ts);
    bool all = !a->threads;
    agent_unlock(a);
    if (!all) { /* one that waits for a QEMU to boot: it may not find its data freed */
        xm_log(XM_LOG_WARN, "a request is not finished; its VM is found again by the next agent");
        _exit(0);
    }
}

static void agent_free(struct agent *a)
{
    while (!TAILQ_EMPTY(&a->vms))
        vm_forget(TAILQ_FIRST(&a->vms));
    jobs_free(a);
    json_decref(a->autostart_waiting);
    json_decref(a->left);
    if (a->lock_fd >= 0)
        close(a->lock_fd);
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->lock);
    config_free(&a->conf);
}

int agent_run(struct config *conf, struct xm_error *e)
{
    static struct agent agent;
    struct agent *a = &agent;
    int unix_fd = -1, tcp_fd = -1, signal_fd = -1;
    sigset_t set;

    agent_init(a, conf);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* before there are threads */
    signal(SIGPIPE, SIG_IGN);
    int r = make_directories(a, e);
    if (!r)
        r = lock_run_dir(a, e);
    if (!r && (signal_fd = signalfd(-1, &set, SFD_CLOEXEC)) < 0)
        r = xm_error_errno(e, errno, "signalfd");
    if (!r)
        leftovers_at_start(a);
    if (!r)
        r = inventory_boot(a, e);
    if (!r)
        r = left_start(a, e); /* who cleans up from here on may wait for it */
    if (!r) {
        struct xm_error no = {0};
        if (probe_tracking(&no) < 0)
            xm_log(XM_LOG_WARN, "host %s can move disks alone, and no VM to or from it: %s", a->conf.name,
                   no.text);
        if (!qemu_present(VM_QEMU))
            xm_log(XM_LOG_WARN,
                   "host %s has no program " VM_QEMU
                   " (in Debian: package qemu-system-x86): it can run no VM "
                   "that names no other",
                   a->conf.name);
        jobs_load(a);
        vms_adopt(a);
        jobs_settle(a);
        r = open_sockets(a, &unix_fd, &tcp_fd, e);
        if (!r)
            r = tidy_start(a, e);
        if (!r)
            r = leftovers_start(a, e);
    }
    if (!r) {
        xm_log(XM_LOG_INFO, "host %s: ready, port %u", a->conf.name, a->port);
        inventory_autostart(a);
        r = loop(a, unix_fd, tcp_fd, signal_fd, e);
    }
    if (tcp_fd >= 0)
        close(tcp_fd);
    if (unix_fd >= 0) {
        char *path = xm_printf("%s/agent.sock", a->conf.run_dir);
        unlink(path);
        free(path);
        close(unix_fd);
    }
    if (signal_fd >= 0)
        close(signal_fd);
    stop_threads(a);
    agent_free(a);
    return r;
}
