/* SPDX-License-Identifier: MIT */
/* A guest whose ring is the fuzzer's input: virtqueue and virtio_blk over a small guest memory, with a disk
 * that checks what it is asked.
 *
 * Input: byte 0 log2 of the ring's size (0 to 6), byte 1 options, then pieces of (16-bit offset, 8-bit
 * length, bytes) that are put into guest memory; a piece of length 0 lets the device look at its ring. */
#include "mirror/virtio_blk.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEM     65536u
#define SECTORS 4096u
#define AVAIL   1024u
#define USED    2048u
#define UVA     0x700000000000ull

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static int memfd = -1;
static uint8_t *mem;
static struct xm_bitmap bitmap;
static struct xm_breq *waiting[64];
static unsigned waiting_count;
static struct virtqueue vq;
static struct chain chain;
static struct blk_req reqs[64];

/* ---- a disk that trusts nobody ---- */

static void require(bool what)
{
    if (!what)
        abort();
}

static volatile unsigned read_sum;
static unsigned crc(const uint8_t *p, size_t n)
{
    unsigned s = 0;
    while (n--)
        s += *p++;
    return s;
}

void xm_disk_submit(struct xm_disk *disk, struct xm_breq *b)
{
    uint64_t sum = 0;
    (void)disk;

    require(b->offset % 512 == 0 && b->length % 512 == 0);
    require(b->offset <= SECTORS * 512 && b->length <= SECTORS * 512 - b->offset);
    for (int i = 0; i < b->iovcnt; i++) {
        sum += b->iov[i].iov_len;
        if (b->op == XM_IO_READ)
            memset(b->iov[i].iov_base, 0x5a, b->iov[i].iov_len);
        else if (b->op == XM_IO_WRITE)
            read_sum += crc(b->iov[i].iov_base, b->iov[i].iov_len);
    }
    require(b->op == XM_IO_READ || b->op == XM_IO_WRITE ? sum == b->length : b->iovcnt == 0);
    require(waiting_count < 64);
    waiting[waiting_count++] = b;
}

/* The last first: completions come in any order. */
static void complete_some(unsigned leave)
{
    while (waiting_count > leave) {
        struct xm_breq *b = waiting[--waiting_count];
        b->done(b, b->offset % 4096 == 512 ? -EIO : 0);
    }
}

static void done(struct blk_req *r, uint32_t len)
{
    virtqueue_push(&vq, r->head, len);
}

static struct xm_bitmap *tracked(void *ctx, int fd, uint64_t size)
{
    (void)ctx, (void)fd, (void)size;
    return &bitmap;
}

static void look(const struct blk_dev *dev, bool *broken)
{
    struct xm_error e;

    for (unsigned n = 0; n < 128 && !*broken; n++) {
        int got = virtqueue_pop(&vq, &chain, &e);
        if (got == 0)
            break;
        if (got < 0) {
            *broken = true;
            break;
        }
        struct blk_req *r = &reqs[chain.head];
        r->done = done;
        if (blk_start(r, dev, vq.mem, &chain, &e)) {
            virtqueue_drop(&vq, chain.head);
            *broken = true;
        }
    }
    virtqueue_publish(&vq);
    virtqueue_want_kick(&vq, true);
}

static struct guestmem *make_memory(void)
{
    struct vu_msg m = {.fds = 2};
    struct xm_guest_mem_ops ops = {.bitmap = tracked};

    if (memfd < 0) {
        memfd = memfd_create("fuzz", MFD_CLOEXEC);
        if (memfd < 0 || ftruncate(memfd, MEM) || xm_bitmap_init(&bitmap, MEM / 4096))
            abort();
        mem = mmap(NULL, MEM, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    }
    m.p.mem.count = 2;
    m.p.mem.region[0] = (struct vhost_region){0, MEM / 2, UVA, 0};
    m.p.mem.region[1] = (struct vhost_region){MEM / 2, MEM / 2, UVA + MEM, MEM / 2};
    m.fd[0] = m.fd[1] = memfd;
    return guestmem_new(&m, &ops, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct blk_dev dev = {.sectors = SECTORS, .block = 512, .serial = "fuzz"};
    bool broken = false;
    static struct guestmem *guest;
    struct inflight_queue *track;

    if (len < 2)
        return 0;
    if (!guest && !(guest = make_memory()))
        abort();
    memset(mem, 0, MEM);
    vq.num = (uint16_t)(1u << (data[0] % 7));
    vq.addr = (struct virtqueue_addr){UVA, UVA + AVAIL, UVA + USED, 0, false};
    vq.mem = guest;
    vq.event_idx = data[1] & 1;
    vq.indirect = data[1] & 2;
    dev.writeback = data[1] & 4;
    dev.read_only = data[1] & 8;
    track = data[1] & 16 ? calloc(1, vhost_inflight_bytes(vq.num)) : NULL;
    if (track && data[1] & 32 && len > 64) /* as another back end, or nobody, has left it */
        memcpy(track, data + len - XM_MIN(len, vhost_inflight_bytes(vq.num)),
               XM_MIN(len, vhost_inflight_bytes(vq.num)));
    vq.track = track;
    if (virtqueue_start(&vq, 0, NULL))
        abort();
    for (size_t at = 2; at + 3 <= len;) {
        size_t off = data[at] | data[at + 1] << 8, n = data[at + 2];
        at += 3;
        n = XM_MIN(XM_MIN(n, len - at), MEM - off);
        memcpy(mem + off, data + at, n);
        at += n;
        if (!n)
            look(&dev, &broken);
        if (data[1] & 64)
            complete_some(2);
    }
    look(&dev, &broken);
    complete_some(0);
    virtqueue_publish(&vq);
    free(track);
    return 0;
}
