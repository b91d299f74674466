/* SPDX-License-Identifier: MIT */
/* Frames of an incoming migration, as link threads bring them: judged by what this side has, then handed to
 * the thread that owns what they are about. RAM is written right here: its pages belong to nobody until the
 * VM runs. */
#include "migrate/destination.h"

#include <stdlib.h>

struct disk_frame {
    struct xm_wreq req;
    struct xm_rx *rx;
};

static void disk_frame_done(struct xm_wreq *req, int status, const void *reply, uint32_t len)
{
    struct disk_frame *f = xm_container_of(req, struct disk_frame, req);
    xm_rx_done(f->rx, status, reply, len);
    free(f);
}

/* Bytes that the file may grow by. What is unmapped takes none, where holes can be made. */
static uint64_t grows_by(const struct xm_frame_hdr *h, const struct xm_file *f)
{
    if (h->type == XM_FRAME_DISK_DATA)
        return h->length;
    return h->type == XM_FRAME_DISK_ZERO && (!(h->flags & XM_FLAG_UNMAP) || f->no_punch) ? h->extent : 0;
}

/* False: it must not be written, and the migration ends. The source is told why before it sees that the
 * frame failed. */
static bool has_room(struct destination *dst, const struct machine_disk *d, const struct xm_frame_hdr *h)
{
    uint64_t bytes = grows_by(h, d->file);
    struct xm_error e = {0};

    if (!bytes || space_take(&dst->space, bytes, &e) == 0)
        return true;
    destination_fail(dst, e.text);
    xm_links_abort(dst->links, e.text);
    return false;
}

static void disk_frame_run(struct xm_post *p)
{
    struct xm_rx *rx = xm_container_of(p, struct xm_rx, post);
    struct destination *dst = rx->owner;
    struct machine_disk *d = &dst->machine->disk[rx->hdr.object];
    bool room = d->writer && has_room(dst, d, &rx->hdr);
    struct disk_frame *f = room ? calloc(1, sizeof *f) : NULL;

    if (!f) {
        xm_rx_done(rx, room ? -ENOMEM : d->writer ? -ENOSPC : -ECANCELED, NULL, 0);
        return;
    }
    f->rx = rx;
    f->req.hdr = rx->hdr;
    if (f->req.hdr.type == XM_FRAME_DISK_DIGEST)
        f->req.hdr.after = 0; /* the number of a switch-over, and no write's */
    f->req.payload = rx->payload;
    f->req.done = disk_frame_done;
    xm_writer_submit(d->writer, &f->req);
}

int destination_check_frame(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    struct destination *dst = ctx;
    struct machine *vm = dst->machine;

    dst->heard = xm_now();
    if (h->type >= XM_FRAME_RAM_PAGES && h->type < XM_FRAME_STREAM)
        return xm_ramsink_check(dst->ramsink, h, e);
    if (h->type >= XM_FRAME_STREAM)
        return 0; /* bounded by the table of types; CALLs are judged as they are read */
    if (!dst->storage)
        return xm_error_set(e, EPROTO, "a disk's frame in a migration that leaves the disks where they are");
    if (h->object >= vm->disks)
        return xm_error_set(e, EPROTO, "a frame for disk %u of %u", h->object, vm->disks);
    uint64_t size = vm->disk[h->object].file->size;
    uint64_t n = h->type == XM_FRAME_DISK_DATA ? h->length : h->extent;
    if (h->offset > size || n > size - h->offset)
        return xm_error_set(e, EPROTO, "a frame for %llu bytes at %llu of disk %s, which has %llu",
                            (unsigned long long)n, (unsigned long long)h->offset,
                            vm->disk[h->object].spec->name, (unsigned long long)size);
    return 0;
}

/* Hands a frame on to its owner, unless this side is closing: then its queue is not looked at any more. */
static void hand_on(struct destination *dst, struct xm_mailbox *to, struct xm_rx *rx)
{
    pthread_mutex_lock(&dst->lock);
    bool closed = dst->closed;
    if (!closed)
        xm_mailbox_post(to, &rx->post);
    pthread_mutex_unlock(&dst->lock);
    if (closed)
        xm_rx_done(rx, -ECANCELED, NULL, 0);
}

/* Invariant: disks, memory and device state are of one moment. The source gives up a switch, its guest goes
 * on, and its mirror is still there; whoever is told by an operator to take the VM then takes it as it was at
 * the switch. A frame is refused alone: a link that was given up brings, when its path is back, what has come
 * by another one already. (Of pages memxfer/ramsink.c sees to that.) */
static bool comes_too_late(struct destination *dst, const struct xm_frame_hdr *h)
{
    if (h->type == XM_FRAME_DISK_DIGEST || h->type == XM_FRAME_RAM_DIGEST) {
        pthread_mutex_lock(&dst->lock);
        bool old = h->after != dst->attempt; /* of a switch-over that was given up since */
        dst->sealed = dst->sealed || !old;
        pthread_mutex_unlock(&dst->lock);
        return old;
    }
    return dst->sealed && (h->type == XM_FRAME_DISK_DATA || h->type == XM_FRAME_DISK_ZERO);
}

void destination_take_frame(void *ctx, struct xm_rx *rx)
{
    struct destination *dst = ctx;
    uint8_t type = rx->hdr.type;

    if (comes_too_late(dst, &rx->hdr)) {
        xm_rx_done(rx, -ECANCELED, NULL, 0);
    } else if (type >= XM_FRAME_DISK_DATA && type < XM_FRAME_RAM_PAGES) {
        rx->owner = dst;
        rx->post.run = disk_frame_run;
        hand_on(dst, &dst->machine->disk[rx->hdr.object].engine->mailbox, rx);
    } else if (type == XM_FRAME_RAM_PAGES || type == XM_FRAME_RAM_DIGEST) {
        xm_ramsink_frame(dst->ramsink, rx);
    } else if (type == XM_FRAME_STREAM) {
        pthread_mutex_lock(&dst->lock);
        bool old = rx->hdr.after != dst->attempt; /* likewise; and each has a stream of its own */
        struct stream *st = dst->closed || old ? NULL : dst->stream;
        if (st)
            stream_frame(st, rx);
        pthread_mutex_unlock(&dst->lock);
        if (!st)
            xm_rx_done(rx, old ? -ECANCELED : -EPROTO, NULL, 0);
    } else if (type == XM_FRAME_CALL) {
        rx->owner = dst;
        rx->post.run = destination_call;
        if (rx->hdr.after > dst->attempt)
            dst->next = rx->hdr.after;
        hand_on(dst, &dst->mailbox, rx);
    } else {
        xm_rx_done(rx, -EPROTO, NULL, 0);
    }
}
