/* SPDX-License-Identifier: MIT */
/* What QEMU is handed at its start (enum qemu_fd), opened by who may.
 *
 * Files that QEMU opens by the name of the descriptor (kernel, initrd, a firmware that is no flash: it knows
 * no other way for them) have to be readable by everybody, or else QEMU gets a copy of them in memory, which
 * stays as long as it runs. */
#include "machine/qemu.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_MAX (1ull << 30)

static int opened(struct hand *h, int number, int fd, const char *path, struct xm_error *e)
{
    if (fd < 0)
        return xm_error_errno(e, errno, "cannot open %s", path);
    h->fd[number] = fd;
    return 0;
}

static int open_file(struct hand *h, int number, const char *path, int flags, struct xm_error *e)
{
    return opened(h, number, open(path, flags | O_CLOEXEC), path, e);
}

/* The name tells xm_ram_find that this is RAM. */
static int make_ram(struct hand *h, const struct vm_spec *vm, const struct qemu_place *at, struct xm_error *e)
{
    if (at->ram)
        return opened(h, QEMU_FD_RAM, fcntl(at->ram, F_DUPFD_CLOEXEC, 3), "the VM's memory", e);
    int fd = memfd_create(XM_RAM_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    h->fd[QEMU_FD_RAM] = fd;
    /* Sealed as QEMU seals its own, so that it does not shrink under us. */
    if (fd < 0 || ftruncate(fd, (off_t)vm->memory) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return xm_error_errno(e, errno, "cannot make %s of RAM", xm_format_size(vm->memory).s);
    return 0;
}

/* ---- files that QEMU opens anew ---- */

static int copy_whole(int from, off_t size, const char *path, struct xm_error *e)
{
    int fd = size > (off_t)COPY_MAX ? -1 : memfd_create("xmigrate-copy", MFD_CLOEXEC);

    if (fd < 0)
        return xm_error_set(e, EFBIG, "%s is for its owner alone, and cannot be copied for QEMU's user",
                            path);
    for (off_t at = 0; at < size;) {
        char buf[65536];
        ssize_t n = pread(from, buf, sizeof buf, at);
        if (n <= 0 || write(fd, buf, (size_t)n) != n) {
            xm_error_errno(e, n < 0 ? errno : EIO, "cannot copy %s for QEMU's user", path);
            close(fd);
            return -e->code;
        }
        at += n;
    }
    return fd;
}

static int open_readable(struct hand *h, int number, const char *path, const struct qemu_user *u,
                         struct xm_error *e)
{
    struct stat st;
    int r = path ? open_file(h, number, path, O_RDONLY, e) : 0;

    if (!path || r || !u || !u->uid || (fstat(h->fd[number], &st) == 0 && st.st_mode & S_IROTH))
        return r;
    int copy = copy_whole(h->fd[number], st.st_size, path, e);
    close(h->fd[number]);
    h->fd[number] = copy;
    return copy < 0 ? copy : 0;
}

static int open_boot(struct hand *h, const struct vm_spec *vm, const struct qemu_place *at,
                     struct xm_error *e)
{
    int r = open_readable(h, QEMU_FD_KERNEL, vm->kernel, at->user, e);

    if (!r)
        r = open_readable(h, QEMU_FD_INITRD, vm->initrd, at->user, e);
    if (r || !vm->firmware)
        return r;
    if (!vm->nvram)
        return open_readable(h, QEMU_FD_FIRMWARE, vm->firmware, at->user, e);
    r = open_file(h, QEMU_FD_FIRMWARE, vm->firmware, O_RDONLY, e);
    if (!r)
        r = open_file(h, QEMU_FD_NVRAM, at->nvram, O_RDWR, e);
    if (!r)
        r = open_file(h, QEMU_FD_NVRAM_READ, at->nvram, O_RDONLY, e);
    return r;
}

/* ---- sockets ---- */

static int bind_socket(struct hand *h, int number, const char *run_dir, const char *name, struct xm_error *e)
{
    char *path = xm_printf("%s/%s", run_dir, name);

    unlink(path);
    int fd = xm_unix_bind(path, e);
    free(path);
    h->fd[number] = fd;
    return XM_MIN(fd, 0);
}

static int open_directory(struct hand *h, const struct qemu_place *at, struct xm_error *e)
{
    int r = open_file(h, QEMU_FD_DIR, at->run_dir, O_PATH | O_DIRECTORY, e);

    return r ? r : open_file(h, QEMU_FD_MARK, "/dev/null", O_RDONLY, e);
}

/* ---- all of it ---- */

int hand_open(struct hand *h, const struct vm_spec *vm, const struct qemu_place *at, struct xm_error *e)
{
    for (int i = 0; i < QEMU_FD_END; i++)
        h->fd[i] = -1;
    int r = make_ram(h, vm, at, e);
    if (!r && at->console && (h->fd[QEMU_FD_CONSOLE] = fcntl(at->console, F_DUPFD_CLOEXEC, 3)) < 0)
        r = xm_error_errno(e, errno, "cannot pass the console on");
    if (!r)
        r = open_directory(h, at, e);
    if (!r)
        r = bind_socket(h, QEMU_FD_QMP, at->run_dir, "qmp.sock", e);
    if (!r)
        r = bind_socket(h, QEMU_FD_SERIAL, at->run_dir, "serial.sock", e);
    if (!r && vm->devices.guest_agent)
        r = bind_socket(h, QEMU_FD_AGENT, at->run_dir, "qga.sock", e);
    if (!r)
        r = open_boot(h, vm, at, e);
    for (unsigned i = 0; !r && i < vm->cdroms; i++)
        r = open_file(h, QEMU_FD_CDROM + (int)i, vm->cdrom[i].path, O_RDONLY, e);
    for (unsigned i = 0; !r && i < vm->nics; i++)
        r = XM_MIN(h->fd[QEMU_FD_TAP + i] = tap_create(&vm->nic[i], e), 0);
    return r;
}

void hand_close(struct hand *h)
{
    for (int i = 0; i < QEMU_FD_END; i++) {
        if (h->fd[i] >= 0)
            close(h->fd[i]);
        h->fd[i] = -1;
    }
}

bool hand_over(const struct hand *h)
{
    int away[QEMU_FD_END];

    /* First away from those numbers, all of them. */
    for (int i = 3; i < QEMU_FD_END; i++) {
        away[i] = h->fd[i] < 0 ? -1 : fcntl(h->fd[i], F_DUPFD_CLOEXEC, QEMU_FD_END);
        if (h->fd[i] >= 0 && away[i] < 0)
            return false;
    }
    for (int i = 3; i < QEMU_FD_END; i++) {
        if (away[i] >= 0 && dup2(away[i], i) != i)
            return false;
    }
    return true;
}
