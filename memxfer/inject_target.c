/* SPDX-License-Identifier: MIT */
/* memxfer/inject_target.c: where in another process a system call can be made, and by which of its threads.
 */
#include "memxfer/inject.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* So much of its code is looked at: a QEMU has one in its first megabytes. */
#define LOOK_AT (256ull << 20)

#define KVM_RUN_REQUEST 0xae80u
#define IOCTL_NUMBER    16 /* x86-64 */

/* Looks for the two bytes 0f 05 in [start, end) of the process. They need not be an instruction of the
 * program's own: nothing but these two bytes is ever executed. Returns the address or 0. */
static uint64_t find_in(int mem, uint64_t start, uint64_t end)
{
    uint8_t buf[4096 + 1];
    uint8_t last = 0;

    for (uint64_t at = start; at < end; at += 4096) {
        ssize_t n = pread(mem, buf + 1, XM_MIN(4096, end - at), (off_t)at);
        if (n <= 0)
            break;
        buf[0] = last;
        for (ssize_t i = at == start; i < n; i++) {
            if (buf[i] == 0x0f && buf[i + 1] == 0x05)
                return at + (uint64_t)i - 1;
        }
        last = buf[n];
    }
    return 0;
}

int inject_find_syscall(pid_t pid, uint64_t *address, struct xm_error *e)
{
    char path[64], line[600];

    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int mem = open(path, O_RDONLY | O_CLOEXEC);
    if (mem < 0)
        return xm_error_errno(e, errno, "cannot read the memory of process %d", pid);
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    if (!maps) {
        int err = errno;
        close(mem);
        return xm_error_errno(e, err, "cannot read %s", path);
    }
    *address = 0;
    uint64_t left = LOOK_AT;
    while (!*address && left && fgets(line, sizeof line, maps)) {
        uint64_t start, end;
        char perm[8];
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &start, &end, perm) != 3 || perm[0] != 'r' ||
            perm[2] != 'x')
            continue;
        if (!strstr(line,
                    "[vsyscall]")) /* that page is emulated: executing in it is not what it looks like */
            *address = find_in(mem, start, start + XM_MIN(end - start, left));
        left -= XM_MIN(end - start, left);
    }
    fclose(maps);
    close(mem);
    if (!*address)
        return xm_error_set(e, ENOEXEC, "process %d has no system call instruction that could be borrowed",
                            pid);
    return 0;
}

static size_t read_task_file(pid_t pid, pid_t tid, const char *name, char *buf, size_t size)
{
    char path[80];

    snprintf(path, sizeof path, "/proc/%d/task/%d/%s", pid, tid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);
    if (fd >= 0)
        close(fd);
    buf[n > 0 ? n : 0] = 0;
    return n > 0 ? (size_t)n : 0;
}

long inject_thread_status(pid_t pid, pid_t tid, const char *key)
{
    char text[4096];
    size_t len = strlen(key);

    read_task_file(pid, tid, "status", text, sizeof text);
    for (char *line = text, *end; line && *line; line = end ? end + 1 : NULL) {
        end = strchr(line, '\n');
        if (!strncmp(line, key, len) && line[len] == ':')
            return strtol(line + len + 1, NULL, 10);
    }
    return -1;
}

/* 0 is best; -1: leave it alone. */
static int judge_thread(pid_t pid, pid_t tid)
{
    char text[512];

    read_task_file(pid, tid, "stat", text, sizeof text);
    const char *state = strrchr(text, ')');
    if (!state || !state[1] || strchr("DZXtI", state[2]))
        return -1; /* in uninterruptible sleep, dead, or traced */
    read_task_file(pid, tid, "comm", text, sizeof text);
    if (!strncmp(text, "CPU ", 4))
        return -1; /* a vCPU of a QEMU with debug-threads=on */
    if (!strncmp(text, "call_rcu", 8))
        return 0; /* QEMU's garbage collector: nobody waits for it */
    read_task_file(pid, tid, "syscall", text, sizeof text);
    char *args;
    long nr = strtol(text, &args, 10);
    bool in_call = args != text;
    if (in_call && nr == IOCTL_NUMBER) {
        strtoull(args, &args, 16);
        if (strtoull(args, &args, 16) == KVM_RUN_REQUEST)
            return -1;
    }
    if (tid == pid)
        return 1;           /* QEMU's main loop is never a vCPU */
    return in_call ? 2 : 3; /* running: perhaps in guest code */
}

unsigned inject_pick_threads(pid_t pid, pid_t *tids, unsigned max)
{
    char path[64];
    unsigned count = 0;
    int rank[64];

    max = XM_MIN(max, 64);
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return 0;
    for (struct dirent *d; (d = readdir(dir));) {
        pid_t tid = (pid_t)strtol(d->d_name, NULL, 10);
        int r = tid > 0 ? judge_thread(pid, tid) : -1;
        unsigned at = count;
        if (r < 0)
            continue;
        while (at > 0 && rank[at - 1] > r)
            at--;
        if (at == max)
            continue;
        count = XM_MIN(count + 1, max);
        for (unsigned i = count - 1; i > at; i--) {
            rank[i] = rank[i - 1];
            tids[i] = tids[i - 1];
        }
        rank[at] = r;
        tids[at] = tid;
    }
    closedir(dir);
    return count;
}
