/* SPDX-License-Identifier: MIT */
/* probe/tracking.c: can this process track another one's memory, with this kernel and the rights that it has?
 * Tried on a child of our own in the very way in which a QEMU is tracked, so that whatever stands in the way
 * is met before anything is copied. */
#include "memxfer/memxfer.h"
#include "probe/probe.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_MS 10000
#define PROBE_PAGES 16u
#define PROBE_PAGE  5u /* written after the memory was armed */

/* A filter that allows everything: the kernel asks no more than that there is one. */
static bool enter_sandbox(void)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog prog = {1, &allow};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

/* In the child: only system calls, since the process it was forked from may have threads. Writes the page
 * when told, and says so. */
static _Noreturn void child_main(pid_t parent, const struct qemu_user *user, bool sandboxed, uint8_t *map,
                                 int go, int done)
{
    char c;
    const char c0 = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* No listener or lock of the parent's may outlive it here. */
    if (dup2(go, 0) < 0 || dup2(done, 1) < 0 || syscall(SYS_close_range, 2u, ~0u, 0u) < 0)
        _exit(1); /* in the forked child only */
    if (user && !qemu_user_become(user))
        _exit(1); /* in the forked child only */
    /* Said before it is tracked: the tracker looks whether there is a filter, and who it is. */
    if ((sandboxed && !enter_sandbox()) || write(1, &c0, 1) != 1)
        _exit(1); /* in the forked child only */
    while (getppid() == parent && read(0, &c, 1) == 1) {
        map[PROBE_PAGE * XM_PAGE] = 1;
        if (write(1, &c, 1) != 1)
            break;
    }
    _exit(0); /* in the forked child only */
}

static int track(const struct xm_ram *ram, int go, int done, struct xm_error *e)
{
    struct xm_bitmap dirty = {0};
    struct xm_tracker *t = NULL;
    uint64_t pages = 0;
    char c = 0;
    int r = xm_tracker_open(&t, ram, e);

    if (!r && xm_bitmap_init(&dirty, PROBE_PAGES) < 0)
        r = xm_error_set(e, ENOMEM, "no memory");
    if (!r)
        r = xm_tracker_collect(t, &dirty, &pages, e);
    if (!r)
        xm_bitmap_clear(&dirty, 0, PROBE_PAGES);
    struct pollfd answer = {.fd = done, .events = POLLIN};
    if (!r && (write(go, &c, 1) != 1 || poll(&answer, 1, PATIENCE_MS) <= 0 || read(done, &c, 1) != 1))
        r = xm_error_set(e, EIO, "the process to try it on does not answer");
    if (!r)
        r = xm_tracker_collect(t, &dirty, &pages, e);
    if (!r && (pages != 1 || !xm_bitmap_test(&dirty, PROBE_PAGE)))
        r = xm_error_set(e, EPROTO, "the kernel does not report what was written (%llu pages)",
                         (unsigned long long)pages);
    xm_tracker_close(t);
    xm_bitmap_destroy(&dirty);
    return r;
}

static int wait_ready(int done, struct xm_error *e)
{
    struct pollfd p = {.fd = done, .events = POLLIN};
    char c;

    if (poll(&p, 1, PATIENCE_MS) <= 0 || read(done, &c, 1) != 1)
        return xm_error_set(e, EIO, "the process to try it on does not become what it has to be");
    return 0;
}

static int probe(const struct qemu_user *user, bool sandboxed, int ramfd, uint8_t *map, int go[2],
                 int done[2], struct xm_error *e)
{
    struct xm_ram ram = {0};
    pid_t parent = getpid(), pid = fork();

    if (pid == 0) {
        close(go[1]);
        child_main(parent, user, sandboxed, map, go[0], done[1]);
    }
    if (pid < 0)
        return xm_error_errno(e, errno, "cannot fork");
    close(done[1]); /* so that its end is seen */
    done[1] = -1;
    ram.pid = pid;
    int r = wait_ready(done[0], e);
    if (!r)
        r = xm_ram_add(&ram, "probe", ramfd, (uint64_t)(uintptr_t)map, e);
    if (!r)
        r = track(&ram, go[1], done[0], e);
    xm_ram_close(&ram);
    /* Its QEMU has to be ended like this, too. Where it cannot be, it ends when nobody tells it anything. */
    if (kill(pid, SIGKILL) < 0)
        r = r ? r : xm_error_errno(e, errno, "the process to try it on cannot be ended");
    close(go[1]);
    go[1] = -1;
    waitpid(pid, NULL, 0);
    return r;
}

static void close_pair(int p[2])
{
    for (int i = 0; i < 2; i++) {
        if (p[i] >= 0)
            close(p[i]);
    }
}

static int probe_on(const struct qemu_user *user, bool sandboxed, struct xm_error *e)
{
    int go[2] = {-1, -1}, done[2] = {-1, -1};
    int fd = memfd_create("xmigrate-probe", MFD_CLOEXEC);
    struct utsname u = {0};
    struct xm_error why = {0};
    uint8_t *map = MAP_FAILED;
    int r = 0;

    if (fd < 0 || ftruncate(fd, PROBE_PAGES * XM_PAGE) < 0 || pipe2(go, O_CLOEXEC) < 0 ||
        pipe2(done, O_CLOEXEC) < 0)
        r = xm_error_errno(&why, errno, "cannot prepare it");
    if (!r)
        map = mmap(NULL, PROBE_PAGES * XM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!r && map == MAP_FAILED)
        r = xm_error_errno(&why, errno, "cannot map memory");
    if (!r) {
        memset(map, 0, PROBE_PAGES * XM_PAGE); /* there, so that it is armed */
        r = probe(user, sandboxed, fd, map, go, done, &why);
    }
    if (map != MAP_FAILED)
        munmap(map, PROBE_PAGES * XM_PAGE);
    close_pair(go);
    close_pair(done);
    if (fd >= 0)
        close(fd);
    uname(&u);
    return r ? xm_error_set(e, -r, "the memory of VMs cannot be tracked on this kernel (%s): %s", u.release,
                            why.text)
             : 0;
}

int probe_tracking(struct xm_error *e)
{
    return probe_on(NULL, false, e);
}

int probe_tracking_as(const struct qemu_user *user, struct xm_error *e)
{
    return probe_on(user, false, e);
}

int probe_tracking_sandboxed(struct xm_error *e)
{
    return probe_on(NULL, true, e);
}
