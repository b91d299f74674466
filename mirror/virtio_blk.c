/* SPDX-License-Identifier: MIT */
#include "mirror/virtio_blk.h"

#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512

uint64_t blk_features(const struct blk_dev *d)
{
    uint64_t f = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE |
                 1ull << VIRTIO_BLK_F_TOPOLOGY | 1ull << VIRTIO_BLK_F_MQ | 1ull << VIRTIO_BLK_F_FLUSH |
                 1ull << VIRTIO_BLK_F_CONFIG_WCE;

    if (d->read_only)
        return f | 1ull << VIRTIO_BLK_F_RO;
    return f | 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
}

void blk_config(const struct blk_dev *d, unsigned queues, bool wce, struct virtio_blk_config *c)
{
    memset(c, 0, sizeof *c);
    c->capacity = d->sectors;
    c->seg_max = BLK_SEG_MAX;
    c->blk_size = d->block;
    /* Files and caches work in pages: say so, that partitions and file systems line up with them. */
    while ((d->block << c->physical_block_exp) < 4096)
        c->physical_block_exp++;
    c->min_io_size = (uint16_t)(XM_MAX(4096, d->block) / d->block);
    c->wce = wce;
    c->num_queues = (uint16_t)queues;
    c->max_discard_sectors = c->max_write_zeroes_sectors = BLK_ZERO_MAX_SECTORS;
    c->max_discard_seg = c->max_write_zeroes_seg = BLK_ZERO_MAX_SEGS;
    c->discard_sector_alignment = d->block / SECTOR;
    c->write_zeroes_may_unmap = 1;
}

/* ---- pieces of guest memory ---- */

struct pieces {
    struct iovec *iov;
    int n;
};

/* Copies len bytes from the front of p to `to` and takes them off. The caller knows that they are there. */
static void take_front(struct pieces *p, void *to, size_t len)
{
    for (uint8_t *at = to; len;) {
        size_t part = XM_MIN(len, p->iov->iov_len);
        memcpy(at, p->iov->iov_base, part);
        at += part;
        len -= part;
        p->iov->iov_base = (uint8_t *)p->iov->iov_base + part;
        p->iov->iov_len -= part;
        if (!p->iov->iov_len) {
            p->iov++;
            p->n--;
        }
    }
}

/* Takes the last byte off. The caller knows that there is one. */
static uint8_t *take_last(struct pieces *p)
{
    struct iovec *last = &p->iov[p->n - 1];
    uint8_t *at = (uint8_t *)last->iov_base + --last->iov_len;

    if (!last->iov_len)
        p->n--;
    return at;
}

/* ---- the end of a request ---- */

static void blk_finish(struct blk_req *r, uint8_t status)
{
    uint32_t len = 1;

    if (r->type == VIRTIO_BLK_T_IN || r->type == VIRTIO_BLK_T_GET_ID) {
        /* Also after an error: part of it may have been read. */
        for (int i = 0; i < r->iovcnt; i++)
            guestmem_dirty(r->mem, r->iov[i].iov_base, r->iov[i].iov_len);
        if (status == VIRTIO_BLK_S_OK)
            len += r->in_len;
    }
    __atomic_store_n(r->status, status, __ATOMIC_RELAXED);
    guestmem_dirty(r->mem, r->status, 1);
    free(r->heap);
    r->heap = NULL;
    free(r->seg_list);
    r->seg_list = NULL;
    r->done(r, len);
}

static void blk_submit(struct blk_req *r, enum xm_io_op op, void (*done)(struct xm_breq *, int))
{
    r->b.op = op;
    r->b.done = done;
    xm_disk_submit(r->dev->disk, &r->b);
}

static void io_done(struct xm_breq *b, int status)
{
    struct blk_req *r = xm_container_of(b, struct blk_req, b);

    r->no_room = (b->op == XM_IO_WRITE || b->op == XM_IO_ZERO) && xm_is_no_room(status);
    blk_finish(r, status ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
}

/* ---- read, write, flush ---- */

static void start_flush(struct blk_req *r)
{
    r->b.offset = r->b.length = 0;
    r->b.iov = NULL;
    r->b.iovcnt = 0;
    blk_submit(r, XM_IO_FLUSH, io_done);
}

/* Without a write-back cache a write is durable before it is done. */
static void blk_write_done(struct xm_breq *b, int status)
{
    struct blk_req *r = xm_container_of(b, struct blk_req, b);

    if (status || r->dev->writeback)
        io_done(b, status);
    else
        start_flush(r);
}

static bool in_disk(const struct blk_dev *d, uint64_t sector, uint64_t count)
{
    return sector <= d->sectors && count <= d->sectors - sector;
}

static void start_io(struct blk_req *r, uint64_t sector, uint64_t len)
{
    bool write = r->type == VIRTIO_BLK_T_OUT;

    if (len % SECTOR || !in_disk(r->dev, sector, len / SECTOR) || (write && r->dev->read_only)) {
        blk_finish(r, VIRTIO_BLK_S_IOERR);
        return;
    }
    if (!len) {
        blk_finish(r, VIRTIO_BLK_S_OK);
        return;
    }
    r->b.offset = sector * SECTOR;
    r->b.length = len;
    r->b.iov = r->iov;
    r->b.iovcnt = r->iovcnt;
    blk_submit(r, write ? XM_IO_WRITE : XM_IO_READ, write ? blk_write_done : io_done);
}

/* ---- discard, write zeroes: one segment after the other ---- */

static void next_segment(struct blk_req *r);

static void segment_done(struct xm_breq *b, int status)
{
    struct blk_req *r = xm_container_of(b, struct blk_req, b);

    if (status)
        io_done(b, status);
    else
        next_segment(r);
}

static void next_segment(struct blk_req *r)
{
    while (r->seg < r->segs && !r->seg_list[r->seg].num_sectors)
        r->seg++;
    if (r->seg == r->segs) {
        if (r->dev->writeback)
            blk_finish(r, VIRTIO_BLK_S_OK);
        else
            start_flush(r);
        return;
    }
    const struct virtio_blk_discard_write_zeroes *s = &r->seg_list[r->seg++];
    r->b.unmap = r->type == VIRTIO_BLK_T_DISCARD || (s->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
    r->b.offset = (uint64_t)s->sector * SECTOR;
    r->b.length = (uint64_t)s->num_sectors * SECTOR;
    r->b.iov = NULL;
    r->b.iovcnt = 0;
    blk_submit(r, XM_IO_ZERO, segment_done);
}

static uint8_t check_segments(const struct blk_req *r)
{
    uint32_t flags = r->type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;

    for (unsigned i = 0; i < r->segs; i++) {
        const struct virtio_blk_discard_write_zeroes *s = &r->seg_list[i];
        if (s->flags & ~flags)
            return VIRTIO_BLK_S_UNSUPP;
        if (s->num_sectors > BLK_ZERO_MAX_SECTORS || !in_disk(r->dev, s->sector, s->num_sectors))
            return VIRTIO_BLK_S_IOERR;
    }
    return VIRTIO_BLK_S_OK;
}

static void start_segments(struct blk_req *r, struct pieces *out, uint64_t len)
{
    size_t one = sizeof(struct virtio_blk_discard_write_zeroes);

    if (r->dev->read_only || !len || len % one || len / one > BLK_ZERO_MAX_SEGS) {
        blk_finish(r, VIRTIO_BLK_S_IOERR);
        return;
    }
    r->segs = (unsigned)(len / one);
    r->seg = 0;
    r->seg_list = malloc(len);
    if (!r->seg_list) {
        blk_finish(r, VIRTIO_BLK_S_IOERR);
        return;
    }
    take_front(out, r->seg_list, len);
    uint8_t status = check_segments(r);
    if (status != VIRTIO_BLK_S_OK)
        blk_finish(r, status);
    else
        next_segment(r);
}

/* ---- the beginning ---- */

static void start_get_id(struct blk_req *r)
{
    size_t left = VIRTIO_BLK_ID_BYTES;
    const char *from = r->dev->serial;

    for (int i = 0; i < r->iovcnt && left; i++) {
        size_t part = XM_MIN(left, r->iov[i].iov_len);
        memcpy(r->iov[i].iov_base, from, part);
        r->iov[i].iov_len = part; /* what is marked dirty */
        from += part;
        left -= part;
        if (!left)
            r->iovcnt = i + 1;
    }
    r->in_len = VIRTIO_BLK_ID_BYTES - (uint32_t)left;
    blk_finish(r, VIRTIO_BLK_S_OK);
}

/* The pieces of the chain are in scratch memory; the request keeps its own. */
static bool keep_pieces(struct blk_req *r, const struct pieces *p)
{
    r->iov = r->inline_iov;
    r->iovcnt = p->n;
    if (p->n > BLK_INLINE_IOV) {
        r->iov = r->heap = malloc((size_t)p->n * sizeof *p->iov);
        if (!r->heap) {
            r->iovcnt = 0;
            return false;
        }
    }
    memcpy(r->iov, p->iov, (size_t)p->n * sizeof *p->iov);
    return true;
}

int blk_start(struct blk_req *r, const struct blk_dev *dev, const struct guestmem *mem, struct chain *chain,
              struct xm_error *e)
{
    struct virtio_blk_outhdr h;
    struct pieces out = {chain->iov, chain->out}, in = {chain->iov + chain->out, chain->in};

    if (chain->out_len < sizeof h)
        return xm_error_set(e, EPROTO, "a block request has a header of %llu bytes",
                            (unsigned long long)chain->out_len);
    if (!chain->in_len)
        return xm_error_set(e, EPROTO, "a block request has no place for its status");

    take_front(&out, &h, sizeof h);
    r->dev = dev;
    r->mem = mem;
    r->head = chain->head;
    r->type = h.type;
    r->status = take_last(&in);
    r->in_len = (uint32_t)chain->in_len - 1;
    r->no_room = false;
    r->iovcnt = 0;
    r->heap = NULL;
    r->seg_list = NULL;
    r->b.unmap = false;

    switch (h.type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
    case VIRTIO_BLK_T_GET_ID:
        if (!keep_pieces(r, h.type == VIRTIO_BLK_T_OUT ? &out : &in))
            blk_finish(r, VIRTIO_BLK_S_IOERR);
        else if (h.type == VIRTIO_BLK_T_GET_ID)
            start_get_id(r);
        else
            start_io(r, h.sector, h.type == VIRTIO_BLK_T_IN ? r->in_len : chain->out_len - sizeof h);
        break;
    case VIRTIO_BLK_T_FLUSH:
        start_flush(r);
        break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        start_segments(r, &out, chain->out_len - sizeof h);
        break;
    default:
        blk_finish(r, VIRTIO_BLK_S_UNSUPP);
        break;
    }
    return 0;
}
