/* SPDX-License-Identifier: MIT */
/* What one request needs from the kernel: alignment, bouncing, short transfers, retries, ways to make zeros.
 * See transfer.h.
 *
 * A request whose memory is aligned goes to the kernel with the caller's own iovec. A request that is not is
 * cut into pieces of at most BOUNCE_MAX, each read into (or gathered in) an aligned buffer; a READ of partial
 * blocks reads the whole blocks around it, which are inside the file since its size is a multiple of the
 * block.
 */
#include "blkcopy/transfer.h"
#include "base/base.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

/* One bounced request in flight costs at most this much memory; 1 MiB is past what the disk gains from size.
 */
#define BOUNCE_MAX   (1u << 20)
#define BOUNCE_ALIGN 4096u
#define ZEROS_MAX    (1u << 20)
/* Transient answers (EINTR, EAGAIN) in a row until they are believed. */
#define RETRIES_MAX 1000u

struct bounce {
    uint64_t start;       /* in the file, a multiple of its block */
    size_t len, got, cap; /* the piece: its bytes, those done, the buffer's size; len 0: no piece yet */
    char *data;
};

static char zeros[ZEROS_MAX] __attribute__((aligned(4096)));

static bool is_aligned(uint64_t x, uint32_t to)
{
    return to <= 1 || x % to == 0;
}

/* Also checks that the iovec holds what it promises: 0 or -EINVAL. */
static int judge_iov(struct xm_io *io)
{
    const struct xm_file *f = io->file;
    uint64_t sum = 0;
    bool aligned = is_aligned(io->offset | io->length, f->block);

    if (io->iovcnt <= 0)
        return -EINVAL;
    for (int i = 0; i < io->iovcnt; i++) {
        if (__builtin_add_overflow(sum, io->iov[i].iov_len, &sum))
            return -EINVAL;
        aligned = aligned && is_aligned((uintptr_t)io->iov[i].iov_base, f->mem_align) &&
                  is_aligned(io->iov[i].iov_len, f->block);
    }
    io->unaligned = !aligned;
    return sum == io->length ? 0 : -EINVAL;
}

int transfer_begin(struct xm_io *io)
{
    const struct xm_file *f = io->file;

    io->progress = 0;
    io->bounce = NULL;
    io->res = 0;
    io->unaligned = false;
    io->retries = 0;
    if (io->op == XM_IO_FLUSH)
        return 1;
    if (io->op != XM_IO_READ && io->op != XM_IO_WRITE && io->op != XM_IO_ZERO)
        return -EINVAL;
    if (io->offset > f->size || io->length > f->size - io->offset)
        return -EINVAL;
    if (io->op != XM_IO_READ) {
        if (f->read_only)
            return -EROFS;
        if (!is_aligned(io->offset | io->length, f->block))
            return -EINVAL;
    }
    if (io->length == 0)
        return 0;
    if (io->op != XM_IO_ZERO && judge_iov(io) < 0)
        return -EINVAL;
    return 1;
}

/* Copies n bytes between the request's memory, from `at` on, and buf. */
static void copy_iov(const struct xm_io *io, uint64_t at, char *buf, size_t n, bool to_iov)
{
    for (int i = 0; n && i < io->iovcnt; i++) {
        size_t len = io->iov[i].iov_len;
        if (at >= len) {
            at -= len;
            continue;
        }
        char *mem = (char *)io->iov[i].iov_base + at;
        size_t now = XM_MIN(len - at, n);
        if (to_iov)
            memcpy(mem, buf, now);
        else
            memcpy(buf, mem, now);
        buf += now;
        n -= now;
        at = 0;
    }
}

static int bounce_step(struct xm_io *io, struct step *s)
{
    uint32_t block = XM_MAX(io->file->block, 1u);
    uint64_t from = io->offset + io->progress, end = io->offset + io->length;
    struct bounce *b = io->bounce;

    if (!b) {
        size_t cap = XM_MIN(XM_ROUND_UP(end, block) - XM_ROUND_DOWN(from, block), (uint64_t)BOUNCE_MAX);
        b = calloc(1, sizeof(*b));
        if (!b)
            return -ENOMEM;
        b->cap = cap;
        b->data = aligned_alloc(BOUNCE_ALIGN, XM_ROUND_UP(cap, BOUNCE_ALIGN));
        if (!b->data) {
            free(b);
            return -ENOMEM;
        }
        io->bounce = b;
    }
    if (b->len == 0) {
        b->start = XM_ROUND_DOWN(from, block);
        b->len = XM_MIN(XM_ROUND_UP(end, block) - b->start, b->cap);
        b->got = 0;
        if (io->op == XM_IO_WRITE)
            copy_iov(io, io->progress, b->data, b->len, false);
    }
    io->vec[0] = (struct iovec){b->data + b->got, b->len - b->got};
    s->iov = io->vec;
    s->iovcnt = 1;
    s->offset = b->start + b->got;
    s->length = b->len - b->got;
    return 0;
}

/* The caller's own iovec, or what is left of it: from the middle of an element on, that one and the next,
 * copied to vec. */
static void direct_step(struct xm_io *io, struct step *s)
{
    uint64_t skip = io->progress;
    int i = 0;

    while (skip && skip >= io->iov[i].iov_len)
        skip -= io->iov[i++].iov_len;
    if (skip == 0) {
        s->iov = io->iov + i;
        s->iovcnt = XM_MIN(io->iovcnt - i, IOV_MAX);
    } else {
        io->vec[0] = (struct iovec){(char *)io->iov[i].iov_base + skip, io->iov[i].iov_len - skip};
        s->iovcnt = 1;
        if (i + 1 < io->iovcnt) {
            io->vec[1] = io->iov[i + 1];
            s->iovcnt = 2;
        }
        s->iov = io->vec;
    }
    s->offset = io->offset + io->progress;
    s->length = io->length - io->progress;
}

static void zero_step(struct xm_io *io, struct step *s)
{
    const struct xm_file *f = io->file;

    s->offset = io->offset + io->progress;
    s->length = io->length - io->progress;
    if (io->unmap && !f->no_punch) {
        s->way = WAY_PUNCH;
        s->mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    } else if (!f->no_zero_range) {
        s->way = WAY_ZERO_RANGE;
        s->mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    } else {
        s->way = WAY_WRITE_ZEROS;
        s->length = XM_MIN(s->length, (uint64_t)ZEROS_MAX);
        io->vec[0] = (struct iovec){zeros, s->length};
        s->iov = io->vec;
        s->iovcnt = 1;
    }
}

int transfer_step(struct xm_io *io, struct step *s)
{
    int rc = 0;

    s->fd = io->file->fd;
    switch (io->op) {
    case XM_IO_FLUSH:
        s->way = WAY_SYNC;
        break;
    case XM_IO_ZERO:
        zero_step(io, s);
        break;
    default:
        s->way = io->op == XM_IO_READ ? WAY_READ : WAY_WRITE;
        if (io->unaligned)
            rc = bounce_step(io, s);
        else
            direct_step(io, s);
    }
    io->way = (uint8_t)s->way;
    return rc;
}

void transfer_drop(struct xm_io *io)
{
    if (!io->bounce)
        return;
    free(io->bounce->data);
    free(io->bounce);
    io->bounce = NULL;
}

static bool transfer_over(struct xm_io *io, int res)
{
    transfer_drop(io);
    io->res = res;
    return true;
}

static bool transfer_failed(struct xm_io *io, int code)
{
    if ((code == -EINTR || code == -EAGAIN) && io->retries < RETRIES_MAX) {
        io->retries++;
        return false;
    }
    /* Other requests may be on the same way: each learns it for itself, from the way it has taken. */
    if (code == -EOPNOTSUPP && io->way == WAY_PUNCH) {
        io->file->no_punch = true;
        return false;
    }
    if (code == -EOPNOTSUPP && io->way == WAY_ZERO_RANGE) {
        io->file->no_zero_range = true;
        return false;
    }
    return transfer_over(io, code);
}

bool transfer_advance(struct xm_io *io, int64_t res)
{
    uint32_t block = XM_MAX(io->file->block, 1u);

    if (res < 0)
        return transfer_failed(io, (int)res);
    if (io->way == WAY_SYNC || io->way == WAY_PUNCH || io->way == WAY_ZERO_RANGE)
        return transfer_over(io, 0);
    /* What goes on after a short transfer has to begin at a block again; 0 bytes: the file has shrunk under
     * us. */
    uint64_t n = (uint64_t)res;
    struct bounce *b = io->bounce;
    uint64_t left = b ? b->len - b->got : io->length - io->progress;
    if (n > left)
        n = left;
    if (n < left)
        n = XM_ROUND_DOWN(n, block);
    if (n == 0)
        return transfer_over(io, -EIO);
    io->retries = 0;
    if (b) {
        b->got += n;
        if (b->got < b->len)
            return false;
        uint64_t skip = io->offset + io->progress - b->start;
        n = XM_MIN(b->len - skip, io->length - io->progress);
        if (io->op == XM_IO_READ)
            copy_iov(io, io->progress, b->data + skip, n, true);
        b->len = 0;
    }
    io->progress += n;
    return io->progress == io->length && transfer_over(io, 0);
}
