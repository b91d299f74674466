/* SPDX-License-Identifier: MIT */
#include "mirror/guestmem.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define PAGE_SHIFT 12

int map_shared(int fd, uint64_t offset, uint64_t size, void **map, size_t *map_len, uint8_t **at,
               const char *what, bool sealed, struct xm_error *e)
{
    struct stat st;
    struct statfs fs;
    int seals = sealed ? fcntl(fd, F_GET_SEALS) : F_SEAL_SHRINK;

    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return xm_error_set(e, EPERM, "%s is in a file that could become smaller (no F_SEAL_SHRINK)", what);
    /* Of huge pages there may be none left when we look at a hole. */
    if (sealed && (fstatfs(fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC))
        return xm_error_set(e, EPERM, "%s is in a file of another kind than the memory of our VMs", what);
    if (fstat(fd, &st) < 0)
        return xm_error_errno(e, errno, "cannot look at the descriptor of %s", what);
    /* Beyond the file's end a mapping is a SIGBUS waiting for us. */
    if (!S_ISREG(st.st_mode) || !size || offset > (uint64_t)st.st_size ||
        size > (uint64_t)st.st_size - offset)
        return xm_error_set(e, EINVAL, "%s: %llu bytes at %llu are not all in its file of %lld bytes", what,
                            (unsigned long long)size, (unsigned long long)offset, (long long)st.st_size);
    /* hugetlbfs wants whole huge pages, which it tells as its block size. */
    uint64_t align = (uint64_t)st.st_blksize;
    if (align < 4096 || align > (1ull << 30) || (align & (align - 1)))
        align = 4096;
    uint64_t start = XM_ROUND_DOWN(offset, align);
    size_t len = (size_t)XM_ROUND_UP(offset - start + size, align);
    void *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)start);
    if (m == MAP_FAILED)
        return xm_error_errno(e, errno, "cannot map %s (%zu bytes)", what, len);
    *map = m;
    *map_len = len;
    *at = (uint8_t *)m + (offset - start);
    return 0;
}

int dirtylog_map(struct dirtylog *l, int fd, uint64_t size, uint64_t offset, bool sealed, struct xm_error *e)
{
    l->size = size;
    return map_shared(fd, offset, size, &l->map, &l->map_len, &l->base, "the dirty log", sealed, e);
}

void dirtylog_unmap(struct dirtylog *l)
{
    if (l->map)
        munmap(l->map, l->map_len);
    *l = (struct dirtylog){0};
}

void dirtylog_mark(const struct dirtylog *l, uint64_t gpa, uint64_t len)
{
    if (!len || gpa + len < gpa)
        return;
    uint64_t last = (gpa + len - 1) >> PAGE_SHIFT;
    for (uint64_t page = gpa >> PAGE_SHIFT; page <= last && page / 8 < l->size; page++)
        __atomic_fetch_or(&l->base[page / 8], (uint8_t)(1u << (page % 8)), __ATOMIC_RELEASE);
}

static bool regions_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
    return a < b + blen && b < a + alen;
}

static int region_init(struct guestmem *m, const struct vhost_region *v, int fd,
                       const struct xm_guest_mem_ops *ops, struct xm_error *e)
{
    struct guestmem_region *r = &m->region[m->count];
    struct stat st;

    if (!v->size || v->gpa + v->size < v->gpa || v->uva + v->size < v->uva)
        return xm_error_set(e, EINVAL, "guest memory of %llu bytes at %#llx is no range",
                            (unsigned long long)v->size, (unsigned long long)v->gpa);
    for (unsigned i = 0; i < m->count; i++) {
        if (regions_overlap(v->gpa, v->size, m->region[i].gpa, m->region[i].size))
            return xm_error_set(e, EINVAL, "guest memory at %#llx is given twice",
                                (unsigned long long)v->gpa);
    }
    *r = (struct guestmem_region){.gpa = v->gpa, .size = v->size, .uva = v->uva, .fd_offset = v->offset};
    int err =
        map_shared(fd, v->offset, v->size, &r->map, &r->map_len, &r->host, "guest memory", ops->sealed, e);
    if (err)
        return err;
    m->count++;
    if (ops->bitmap && !fstat(fd, &st))
        r->bitmap = ops->bitmap(ops->ctx, fd, (uint64_t)st.st_size);
    return 0;
}

struct guestmem *guestmem_new(const struct vu_msg *msg, const struct xm_guest_mem_ops *ops,
                              struct xm_error *e)
{
    struct guestmem *m = calloc(1, sizeof *m);

    if (!m) {
        xm_error_set(e, ENOMEM, "no memory for a memory table");
        return NULL;
    }
    for (unsigned i = 0; i < msg->p.mem.count; i++) {
        if (region_init(m, &msg->p.mem.region[i], msg->fd[i], ops, e)) {
            guestmem_free(m);
            return NULL;
        }
    }
    return m;
}

void guestmem_free(struct guestmem *m)
{
    if (!m)
        return;
    for (unsigned i = 0; i < m->count; i++)
        munmap(m->region[i].map, m->region[i].map_len);
    free(m);
}

void *guestmem_at(const struct guestmem *m, uint64_t gpa, uint64_t len)
{
    for (unsigned i = 0; i < m->count; i++) {
        const struct guestmem_region *r = &m->region[i];
        uint64_t off = gpa - r->gpa;
        if (gpa >= r->gpa && off < r->size)
            return len <= r->size - off ? r->host + off : NULL;
    }
    return NULL;
}

void *guestmem_at_user(const struct guestmem *m, uint64_t uva, uint64_t len)
{
    for (unsigned i = 0; i < m->count; i++) {
        const struct guestmem_region *r = &m->region[i];
        uint64_t off = uva - r->uva;
        if (uva >= r->uva && off < r->size)
            return len <= r->size - off ? r->host + off : NULL;
    }
    return NULL;
}

int guestmem_map(const struct guestmem *m, uint64_t gpa, uint64_t len, struct iovec *iov, int max)
{
    int n = 0;

    while (len) {
        const struct guestmem_region *r = m->region, *end = r + m->count;
        while (r < end && !(gpa >= r->gpa && gpa - r->gpa < r->size))
            r++;
        if (r == end)
            return -EFAULT;
        if (n == max)
            return -E2BIG;
        uint64_t off = gpa - r->gpa, part = XM_MIN(len, r->size - off);
        iov[n++] = (struct iovec){r->host + off, (size_t)part};
        gpa += part; /* cannot wrap: part lies in the region, whose end does not */
        len -= part;
    }
    return n;
}

static const struct guestmem_region *region_of(const struct guestmem *m, const uint8_t *host)
{
    for (unsigned i = 0; i < m->count; i++) {
        if (host >= m->region[i].host && host < m->region[i].host + m->region[i].size)
            return &m->region[i];
    }
    return NULL;
}

static void mark_tracked(const struct guestmem_region *r, uint64_t off, uint64_t len)
{
    uint64_t first = (r->fd_offset + off) >> PAGE_SHIFT, last = (r->fd_offset + off + len - 1) >> PAGE_SHIFT;
    xm_bitmap_set(r->bitmap, first, last - first + 1);
}

void guestmem_dirty_tracked(const struct guestmem *m, const void *host, uint64_t len)
{
    const struct guestmem_region *r = len ? region_of(m, host) : NULL;

    if (r && r->bitmap)
        mark_tracked(r, (uint64_t)((const uint8_t *)host - r->host), len);
}

void guestmem_dirty(const struct guestmem *m, const void *host, uint64_t len)
{
    const struct guestmem_region *r = len ? region_of(m, host) : NULL;

    if (!r)
        return;
    uint64_t off = (uint64_t)((const uint8_t *)host - r->host);
    if (r->bitmap)
        mark_tracked(r, off, len);
    if (m->log)
        dirtylog_mark(m->log, r->gpa + off, len);
}
