/* SPDX-License-Identifier: MIT */
/* What a VM writes about itself, bounded: its guest's console, and what QEMU and the shim say.
 *
 * The console is QEMU's to write (a chardev's logfile: it writes whether or not somebody listens, and drops
 * what a full disk does not take), through a descriptor that we open, appending. So we cut the file under it:
 * what is there is copied to FILE.1, and the file made empty. What is written between the two is lost; a pipe
 * to us would lose nothing, and stop the guest when we hang. A file is at most LIMIT and what comes within a
 * second; with FILE.1 twice that.
 *
 * Whatever fails here fails nothing else: a file that cannot be kept is cut all the same.
 *
 * The console's file is in the state directory (not in RAM, as the run directory is), named after the VM.
 * Where that cannot be opened when QEMU starts, QEMU, which keeps what it was given, has one in the run
 * directory for as long as it lives, and what is in that goes over as soon as the other can be written.
 * It stays on its host: a VM that moves begins, or goes on with, one at its destination. */
#include "machine/machine.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONSOLE_LIMIT (1u << 20)
#define LOG_LIMIT     (256u << 10)
#define CONSOLE_HERE  "console.log" /* in the run directory; versions before this one had QEMU write there */

static char *console_path(const struct machine *vm)
{
    return xm_printf("%s/%s-console.log", vm->log_dir, vm->spec.name);
}

static int open_to_append(const char *path, struct xm_error *e)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);

    return fd < 0 ? xm_error_errno(e, errno, "cannot open %s", path) : fd;
}

static int open_console(const struct machine *vm, struct xm_error *e)
{
    char *path = console_path(vm);
    int r = xm_mkdir_all(vm->log_dir, e);

    if (!r)
        r = open_to_append(path, e);
    free(path);
    return r;
}

int machine_console_open(struct machine *vm)
{
    struct xm_error e = {0}, ignored = {0};
    int fd = open_console(vm, &e);

    if (fd >= 0)
        return fd;
    char *path = xm_printf("%s/" CONSOLE_HERE, vm->run_dir);
    fd = open_to_append(path, &ignored);
    if (fd < 0)
        xm_log(XM_LOG_WARN, "VM %s: its console is not recorded: %s", vm->spec.name, e.text);
    else
        xm_log(XM_LOG_WARN, "VM %s: its console is recorded in %s for now: %s", vm->spec.name, path, e.text);
    free(path);
    return fd;
}

/* The last `max` bytes. False: not all of them are there. */
static bool copy_end(int from, off_t size, size_t max, int to)
{
    off_t at = size > (off_t)max ? size - (off_t)max : 0;
    char buf[16384];
    ssize_t n;

    while (at < size && (n = pread(from, buf, XM_MIN(sizeof buf, (size_t)(size - at)), at)) > 0) {
        if (write(to, buf, (size_t)n) != n)
            return false;
        at += n;
    }
    return at >= size;
}

/* What is in the run directory goes over. What cannot stays, and is kept bounded there. */
static void console_move(struct machine *vm)
{
    char *path = xm_printf("%s/" CONSOLE_HERE, vm->run_dir);
    int from = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    struct xm_error ignored = {0};
    struct stat st, before;

    free(path);
    bool some = from >= 0 && !fstat(from, &st) && S_ISREG(st.st_mode) && st.st_size;
    int to = some ? open_console(vm, &ignored) : -1;
    if (to >= 0 && !fstat(to, &before)) {
        bool whole = copy_end(from, st.st_size, CONSOLE_LIMIT, to);
        if (ftruncate(whole ? from : to, whole ? 0 : before.st_size) < 0)
            xm_log(XM_LOG_DEBUG, "VM %s: its console could not be cut: %s", vm->spec.name, strerror(errno));
    }
    if (to >= 0)
        close(to);
    if (from >= 0)
        close(from);
}

void machine_console_end(struct machine *vm)
{
    struct stat st;

    if (!vm->log_dir) /* its configuration could not be read */
        return;
    console_move(vm);
    char *path = console_path(vm);
    if (lstat(path, &st) == 0 && S_ISREG(st.st_mode) && !st.st_size)
        unlink(path);
    free(path);
}

bool machine_log_cut(const char *path, size_t limit)
{
    int fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    /* By its blocks, too: whoever has it open can have room without a byte in it (fallocate). */
    bool cut =
        fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode) &&
        (st.st_size > (off_t)limit || (uint64_t)st.st_blocks * 512 > 2 * (uint64_t)limit + (64u << 10));

    if (cut) {
        char *old = xm_printf("%s.1", path);
        int to = open(old, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (to < 0 || !copy_end(fd, st.st_size, limit, to))
            unlink(old);
        if (to >= 0)
            close(to);
        free(old);
        cut = ftruncate(fd, 0) == 0;
    }
    if (fd >= 0)
        close(fd);
    return cut;
}

void machine_logs_turn(struct machine *vm)
{
    static const char *const own[] = {"shim.log", "qemu.log", CONSOLE_HERE};
    char *path = console_path(vm);

    console_move(vm);
    machine_log_cut(path, CONSOLE_LIMIT);
    free(path);
    for (unsigned i = 0; i < 3; i++) {
        path = xm_printf("%s/%s", vm->run_dir, own[i]);
        machine_log_cut(path, LOG_LIMIT);
        free(path);
    }
}
