/* SPDX-License-Identifier: MIT */
/* One shim of a VM at a time. A second one would write its number over the first one's (shim.pid), and fail
 * at its socket: the guest would go on with a shim that the agent takes for dead. The agent does not start
 * one beside another that it sees, yet two of its threads may, or one of them may have given up a start that
 * was slow.
 *
 * The lock ends with the process. An older xmigrate's shim has none, and is found by its number. */
#include "shim/shim.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* One that was killed may have its files open for a moment more. */
#define PATIENCE (2 * XM_NS_PER_S)

/* 0: none. A number may have been given to somebody else since: a shim names its directory on its command
 * line. */
static pid_t other(const char *run_dir)
{
    char *path = xm_printf("%s/shim.pid", run_dir), *dir = xm_printf("%s/", run_dir), *text = NULL;
    char proc[64];
    size_t len = 0;
    pid_t pid = xm_file_read(path, 64, &text, &len, NULL) < 0 ? 0 : (pid_t)atoi(text);

    free(text);
    text = NULL;
    snprintf(proc, sizeof proc, "/proc/%d/cmdline", pid);
    if (pid == getpid() || pid <= 1 || xm_file_read(proc, 1 << 20, &text, &len, NULL) < 0 ||
        !memmem(text, len, dir, strlen(dir)))
        pid = 0;
    free(text);
    free(dir);
    free(path);
    return pid;
}

static int refuse(const char *run_dir, struct xm_error *e)
{
    pid_t pid = other(run_dir);

    return pid ? xm_error_set(e, EBUSY, "it has a shim already (process %d)", pid)
               : xm_error_set(e, EBUSY, "another shim of it is just being started, or ends");
}

int shim_only(const char *run_dir, struct xm_error *e)
{
    char *path = xm_printf("%s/shim.lock", run_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), r = 0;
    uint64_t until = xm_now() + PATIENCE;

    if (fd < 0)
        r = xm_error_errno(e, errno, "cannot open %s", path);
    while (!r && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            r = xm_error_errno(e, errno, "cannot lock %s", path);
        else if (xm_now() > until)
            r = refuse(run_dir, e);
        else
            poll(NULL, 0, 20);
    }
    if (!r && other(run_dir))
        r = refuse(run_dir, e);
    if (r && fd >= 0)
        close(fd);
    free(path);
    return r ? r : fd;
}
