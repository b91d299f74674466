/* SPDX-License-Identifier: MIT */
/* memxfer/tracker.c: which pages of its RAM a stock QEMU has written, told by the kernel: asynchronous
 * userfaultfd write-protection, read and re-armed with PAGEMAP_SCAN (Linux 6.7;
 * Documentation/admin-guide/mm/pagemap.rst).
 *
 * A page counts as written unless its entry in QEMU's page tables carries the protection bit. So what is not
 * mapped yet needs no arming: with its first touch it becomes an entry without the bit. (Where a page table
 * exists already, its empty entries are reported once, and get a marker: a few pages too many, never one too
 * few.) Armed at the start is what the memfd holds data for, by UFFDIO_WRITEPROTECT, which splits transparent
 * huge pages; the scan would protect these whole, and one write would then report 512 pages.
 *
 * A scan that re-arms tells KVM to forget its own mappings of the whole range it was called for, dirty or
 * not. So a first scan that changes nothing looks where something was written, and the second covers only
 * that, at most WINDOW at a time. Each is atomic per page: a write after the re-arming of a page is reported
 * by the next collect. (A GiB in ms, by CPU time, and in one re-arming pass: nothing dirty 0.35, 0.85; 1000
 * scattered pages 1.2, 1.0; all 12, 10. That is without KVM, which only adds to what re-arming costs.)
 *
 * Failures: the process has ended: -ESRCH. It has unmapped its RAM: seen by registering both ends again after
 * each collect. A mapping was replaced and has lost its protection: -EPERM from the scan, told as such; what
 * was written there is unknown, so the migration has to end (or begin anew).
 */
#include "memxfer/tracker.h"
#include "memxfer/inject.h"
#include "memxfer/uffd.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#define WINDOW     (2ull << 20)  /* re-arming: 5 ms a GiB of all dirty memory under KVM; 23 ms in one piece */
#define LOOK_SPAN  (1ull << 30)  /* looking: bounds one call to about a millisecond */
#define UNREGISTER (64ull << 20) /* half a millisecond with QEMU's address space locked */
/* Not more: the kernel gathers 512 at a time, and where it needed a second go, walk_end lags behind what was
 * reported (seen on 6.18): reported twice, not lost. */
#define REGIONS 512u

struct tracked {
    uint64_t va, end; /* in QEMU; a whole number of huge pages */
    uint64_t off;     /* of va in the memfd */
    uint64_t step;    /* the memfd's page size, XM_PAGE or that of hugetlbfs */
    int memfd;        /* the block's */
    unsigned block;
};

struct xm_tracker {
    pid_t pid;
    int uffd, pagemap;
    unsigned count;
    struct tracked range[16];
    struct scan_region look[REGIONS], armed[REGIONS];
};

static int no_process(struct xm_tracker *t, struct xm_error *e)
{
    return xm_error_set(e, ESRCH, "the QEMU process %d has ended", t->pid);
}

/* One call; retried when interrupted. Returns how many regions, or -errno. */
static int tracker_scan(struct xm_tracker *t, uint64_t start, uint64_t end, uint64_t flags,
                        struct scan_region *vec, uint64_t *walk_end, struct xm_error *e)
{
    struct scan_arg arg = {
        .size = sizeof arg,
        .flags = flags | SCAN_CHECK_WPASYNC,
        .start = start,
        .end = end,
        .vec = (uint64_t)(uintptr_t)vec,
        .vec_len = REGIONS,
        .category_mask = SCAN_WRITTEN,
        .return_mask = SCAN_WRITTEN,
    };
    int n;

    do {
        n = ioctl(t->pagemap, SCAN_IOCTL, &arg);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EPERM)
        return xm_error_set(e, EPERM,
                            "process %d has replaced a mapping of its RAM: writes to it could not be tracked",
                            t->pid);
    if (n < 0)
        return errno == ESRCH ? no_process(t, e)
                              : xm_error_errno(e, errno, "cannot read the dirty pages of process %d", t->pid);
    if (arg.walk_end <= start || arg.walk_end > end)
        return xm_error_set(e, arg.walk_end == 0 ? ESRCH : EPROTO,
                            "the dirty pages of process %d cannot be read (has it ended?)", t->pid);
    *walk_end = arg.walk_end;
    return n;
}

/* Registers memory, or, for what is registered, sees that it still is and changes nothing. */
static int register_memory(struct xm_tracker *t, uint64_t start, uint64_t end, struct xm_error *e)
{
    struct uffdio_register reg = {.range = {start, end - start}, .mode = UFFDIO_REGISTER_MODE_WP};

    if (ioctl(t->uffd, UFFDIO_REGISTER, &reg) == 0)
        return 0;
    if (errno == ESRCH)
        return no_process(t, e);
    return xm_error_errno(e, errno, "cannot watch the RAM of process %d%s", t->pid,
                          errno == EBUSY ? " (something else watches it with userfaultfd)" : "");
}

/* Re-arms [start, end), at most WINDOW or one huge page, and reports what was written in it. */
static int tracker_rearm(struct xm_tracker *t, const struct tracked *r, uint64_t start, uint64_t end,
                         struct xm_bitmap *dirty, uint64_t *pages, struct xm_error *e)
{
    while (start < end) {
        int n = tracker_scan(t, start, end, SCAN_WP_MATCHING, t->armed, &start, e);
        if (n < 0)
            return n;
        for (int i = 0; i < n; i++) {
            uint64_t first = (t->armed[i].start - r->va + r->off) >> XM_PAGE_SHIFT;
            uint64_t count = (t->armed[i].end - t->armed[i].start) >> XM_PAGE_SHIFT;
            if (dirty)
                xm_bitmap_set(dirty, first, count);
            *pages += count;
        }
    }
    return 0;
}

/* dirty NULL and arm false: only counts. */
static int collect_range(struct xm_tracker *t, const struct tracked *r, bool arm, struct xm_bitmap *dirty,
                         uint64_t *pages, struct xm_error *e)
{
    uint64_t window = XM_MAX(WINDOW, r->step);

    for (uint64_t pos = r->va; pos < r->end;) {
        uint64_t span = XM_MIN(r->end, XM_ROUND_DOWN(pos + LOOK_SPAN, LOOK_SPAN));
        int n = tracker_scan(t, pos, span, 0, t->look, &pos, e);
        if (n < 0)
            return n;
        for (int i = 0; i < n; i++) {
            uint64_t start = t->look[i].start, end = t->look[i].end;
            if (!arm) {
                *pages += (end - start) >> XM_PAGE_SHIFT;
                continue;
            }
            while (start < end) {
                /* Up to the window's end, and all further regions that lie in it. */
                uint64_t limit = XM_ROUND_DOWN(start, window) + window;
                uint64_t stop = XM_MIN(end, limit);
                while (stop < limit && i + 1 < n && t->look[i + 1].start < limit) {
                    i++;
                    end = t->look[i].end;
                    stop = XM_MIN(end, limit);
                }
                int err = tracker_rearm(t, r, start, stop, dirty, pages, e);
                if (err < 0)
                    return err;
                start = stop;
            }
        }
    }
    return 0;
}

int xm_tracker_collect(struct xm_tracker *t, struct xm_bitmap *dirty, uint64_t *pages, struct xm_error *e)
{
    uint64_t count = 0;

    for (unsigned i = 0; i < t->count; i++) {
        const struct tracked *range = &t->range[i];
        int r = collect_range(t, range, true, dirty ? &dirty[range->block] : NULL, &count, e);
        /* A scan of what the process has unmapped finds nothing and does not complain. */
        uint64_t part = XM_MIN(range->step, range->end - range->va);
        if (!r)
            r = register_memory(t, range->va, range->va + part, e);
        if (!r)
            r = register_memory(t, range->end - part, range->end, e);
        if (r < 0)
            return r;
    }
    if (pages)
        *pages = count;
    return 0;
}

int tracker_peek(struct xm_tracker *t, uint64_t *pages, struct xm_error *e)
{
    *pages = 0;
    for (unsigned i = 0; i < t->count; i++) {
        int r = collect_range(t, &t->range[i], false, NULL, pages, e);
        if (r < 0)
            return r;
    }
    return 0;
}

static int tracker_protect(struct xm_tracker *t, uint64_t start, uint64_t end, struct xm_error *e)
{
    struct uffdio_writeprotect wp = {.range = {start, end - start}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};

    while (ioctl(t->uffd, UFFDIO_WRITEPROTECT, &wp) < 0) {
        if (errno == ESRCH)
            return no_process(t, e);
        if (errno != EAGAIN &&
            errno != EINTR) /* EAGAIN: the process is changing its mappings at this moment */
            return xm_error_errno(e, errno, "cannot protect the RAM of process %d", t->pid);
    }
    return 0;
}

/* Protects what the memfd holds data for. */
static int arm_populated(struct xm_tracker *t, const struct tracked *r, struct xm_error *e)
{
    uint64_t size = r->end - r->va, window = XM_MAX(WINDOW, r->step);

    for (uint64_t pos = 0; pos < size;) {
        off_t data = lseek(r->memfd, (off_t)(r->off + pos), SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0;
        off_t hole = data < 0 ? -1 : lseek(r->memfd, data, SEEK_HOLE);
        /* A file system that cannot tell (hugetlbfs): all of it. */
        uint64_t start = data < 0 ? pos : XM_ROUND_DOWN((uint64_t)data - r->off, window);
        uint64_t end = hole < 0 ? size : XM_MIN(size, XM_ROUND_UP((uint64_t)hole - r->off, window));
        for (start = XM_MAX(start, pos); start < end; start = pos) {
            pos = XM_MIN(end, start + window);
            int err = tracker_protect(t, r->va + start, r->va + pos, e);
            if (err < 0)
                return err;
        }
    }
    return 0;
}

/* The kernel refuses what it has had since 6.7. */
static int kernel_lacks(const char *what, struct xm_error *e)
{
    struct utsname u = {0};
    unsigned major = 0, minor = 0;

    if (uname(&u) == 0 && sscanf(u.release, "%u.%u", &major, &minor) == 2 &&
        (major < 6 || (major == 6 && minor < 7)))
        return xm_error_set(e, ENOSYS, "this kernel cannot track guest memory: Linux 6.7 or newer is needed");
    return xm_error_set(
        e, ENOSYS,
        "%s is refused, though this kernel is new enough (6.7): it is not built into it, or a "
        "sandbox (a container's seccomp filter, say) forbids it",
        what);
}

static int open_uffd(struct xm_tracker *t, struct xm_error *e)
{
    struct uffdio_api api = {.api = UFFD_API, .features = WP_ASYNC | WP_UNPOPULATED | WP_HUGETLBFS_SHMEM};

    t->uffd = inject_uffd(t->pid, e);
    if (t->uffd < 0)
        return t->uffd;
    if (ioctl(t->uffd, UFFDIO_API, &api) < 0)
        return kernel_lacks("asynchronous write protection by userfaultfd(2)", e);
    return 0;
}

static int add_range(struct xm_tracker *t, const struct xm_ram *ram, unsigned block, struct xm_error *e)
{
    const struct xm_ram_block *b = &ram->block[block];
    struct tracked *r = &t->range[t->count];
    struct stat st;

    if (!b->qemu_va)
        return xm_error_set(e, EINVAL, "RAM block %s is mapped by no process", b->name);
    if (fstat(b->memfd, &st) < 0)
        return xm_error_errno(e, errno, "RAM block %s", b->name);
    *r = (struct tracked){
        .va = b->qemu_va,
        .end = b->qemu_va + (b->size - b->qemu_off),
        .off = b->qemu_off,
        .step = XM_MAX((uint64_t)st.st_blksize, XM_PAGE),
        .memfd = b->memfd,
        .block = block,
    };
    int err = register_memory(t, r->va, r->end, e);
    if (err < 0)
        return xm_error_prefix(e, "RAM block %s", b->name);
    t->count++;
    return arm_populated(t, r, e);
}

int xm_tracker_open(struct xm_tracker **out, const struct xm_ram *ram, struct xm_error *e)
{
    struct xm_tracker *t = calloc(1, sizeof *t);
    char path[64];
    int r = 0;

    *out = NULL;
    if (!t)
        return xm_error_set(e, ENOMEM, "no memory for tracking");
    t->pid = ram->pid;
    t->uffd = -1;
    snprintf(path, sizeof path, "/proc/%d/pagemap", t->pid);
    t->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (t->pagemap < 0)
        r = xm_error_errno(e, errno, "cannot open %s%s", path,
                           errno == EACCES || errno == EPERM ? " (run as root)" : "");
    if (!r) { /* a scan of nothing tells whether there are scans */
        struct scan_arg probe = {.size = sizeof probe};
        if (ioctl(t->pagemap, SCAN_IOCTL, &probe) < 0 && errno == ENOTTY)
            r = kernel_lacks("the ioctl PAGEMAP_SCAN", e);
    }
    if (!r)
        r = open_uffd(t, e);
    for (unsigned i = 0; i < ram->blocks && !r; i++)
        r = add_range(t, ram, i, e);
    if (r < 0) {
        xm_tracker_close(t);
        return r;
    }
    *out = t;
    return 0;
}

void xm_tracker_close(struct xm_tracker *t)
{
    if (!t)
        return;
    for (unsigned i = 0; i < t->count; i++) {
        const struct tracked *r = &t->range[i];
        uint64_t step = XM_MAX(UNREGISTER, r->step);
        /* In pieces: each locks QEMU's address space for as long as it takes, and a TiB would take seconds.
         */
        for (uint64_t pos = r->va; pos < r->end; pos += step) {
            struct uffdio_range piece = {pos, XM_MIN(step, r->end - pos)};
            if (ioctl(t->uffd, UFFDIO_UNREGISTER, &piece) < 0)
                break; /* it has gone; the rest ends with the descriptor */
        }
    }
    if (t->uffd >= 0)
        close(t->uffd);
    if (t->pagemap >= 0)
        close(t->pagemap);
    free(t);
}
