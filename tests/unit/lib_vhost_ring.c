/* SPDX-License-Identifier: MIT */
/* The rings of lib_vhost_front.h: requests become available, answers are taken. */
#include "tests/unit/lib_vhost_front.h"
#include "base/base.h"
#include "tests/progress.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

/* Beside the rings in a queue's area: 32 bytes per head for header and status, then a table per head. */
uint64_t vf_header_off(struct vf *f, unsigned q, uint16_t head)
{
    return f->q[q].area + 32768u + head * 32u;
}

uint8_t *vf_status(struct vf *f, unsigned q, uint16_t head)
{
    return f->mem + vf_header_off(f, q, head) + 16;
}

static struct vring_desc make_desc(const struct vf_seg *s)
{
    return (struct vring_desc){
        .addr = vf_gpa(s->off), .len = s->len, .flags = s->write ? VRING_DESC_F_WRITE : 0};
}

static void make_available(struct vf *f, struct vf_queue *q, uint16_t head)
{
    q->avail->ring[q->avail_idx % f->size] = head;
    q->avail_idx++;
    q->pending++;
    __atomic_store_n(&q->avail->idx, q->avail_idx, __ATOMIC_RELEASE);
}

int vf_add(struct vf *f, unsigned qi, const struct vf_seg *s, unsigned n, void *cookie)
{
    struct vf_queue *q = &f->q[qi];
    bool table = f->indirect && f->size <= 128;
    unsigned need = table ? 1 : n;

    if (q->free_count < need)
        return -1;
    uint16_t head = q->free_head, at = head;
    if (table) {
        uint64_t off = q->area + 65536u + head * (VF_MAX_SEGS + 4) * 16u;
        struct vring_desc *t = (void *)(f->mem + off);
        for (unsigned i = 0; i < n; i++) {
            t[i] = make_desc(&s[i]);
            t[i].next = (uint16_t)(i + 1);
            t[i].flags |= i + 1 < n ? VRING_DESC_F_NEXT : 0;
        }
        q->free_head = q->desc[head].next;
        q->desc[head].addr = vf_gpa(off);
        q->desc[head].len = n * 16;
        q->desc[head].flags = VRING_DESC_F_INDIRECT;
    } else {
        for (unsigned i = 0; i < n; i++) {
            uint16_t next = q->desc[at].next;
            q->desc[at] = make_desc(&s[i]);
            q->desc[at].next = next;
            q->desc[at].flags |= i + 1 < n ? VRING_DESC_F_NEXT : 0;
            at = next;
        }
        q->free_head = at;
    }
    q->free_count = (uint16_t)(q->free_count - need);
    q->length[head] = (uint16_t)need;
    q->cookie[head] = cookie;
    make_available(f, q, head);
    return head;
}

int vf_request(struct vf *f, unsigned q, uint32_t type, uint64_t sector, const struct vf_seg *data,
               unsigned n, void *cookie)
{
    struct vf_seg s[VF_MAX_SEGS + 2];
    uint16_t head = f->q[q].free_head;
    uint64_t at = vf_header_off(f, q, head);
    struct virtio_blk_outhdr h = {.type = type, .sector = sector};

    if (n > VF_MAX_SEGS || head >= f->size)
        return -1;
    memcpy(f->mem + at, &h, sizeof h);
    f->mem[at + 16] = 0xff;
    s[0] = (struct vf_seg){at, sizeof h, false};
    for (unsigned i = 0; i < n; i++)
        s[1 + i] = data[i];
    s[1 + n] = (struct vf_seg){at + 16, 1, true};
    return vf_add(f, q, s, n + 2, cookie);
}

bool vf_kick(struct vf *f, unsigned qi)
{
    struct vf_queue *q = &f->q[qi];
    bool kick;

    __sync_synchronize();
    if (f->want >> VIRTIO_RING_F_EVENT_IDX & 1)
        kick =
            vring_need_event(__atomic_load_n((uint16_t *)(void *)&q->used->ring[f->size], __ATOMIC_ACQUIRE),
                             q->avail_idx, q->kicked);
    else
        kick = !(__atomic_load_n(&q->used->flags, __ATOMIC_ACQUIRE) & VRING_USED_F_NO_NOTIFY);
    q->kicked = q->avail_idx;
    if (kick)
        eventfd_write(q->kick, 1);
    return kick;
}

int vf_used(struct vf *f, unsigned qi, uint16_t *head, uint8_t *status, void **cookie, uint32_t *len)
{
    struct vf_queue *q = &f->q[qi];

    if (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) == q->last_used)
        return 0;
    struct vring_used_elem u = q->used->ring[q->last_used % f->size];
    q->last_used++;
    if (u.id >= f->size || !q->length[u.id]) {
        errno = EPROTO;
        return vf_fail("a head that was not in flight came back");
    }
    uint16_t at = (uint16_t)u.id;
    for (unsigned i = 1; i < q->length[u.id]; i++)
        at = q->desc[at].next;
    q->desc[at].next = q->free_head;
    q->free_head = (uint16_t)u.id;
    q->free_count = (uint16_t)(q->free_count + q->length[u.id]);
    q->length[u.id] = 0;
    q->pending--;
    if (head)
        *head = (uint16_t)u.id;
    if (status)
        *status = *vf_status(f, qi, (uint16_t)u.id);
    if (cookie)
        *cookie = q->cookie[u.id];
    if (len)
        *len = u.len;
    return 1;
}

bool vf_wait(struct vf *f, unsigned qi, int timeout_ms)
{
    struct vf_queue *q = &f->q[qi];
    struct pollfd p = {.fd = q->call, .events = POLLIN};
    eventfd_t v;

    /* Call us for the next one. */
    __atomic_store_n(&q->avail->ring[f->size], q->last_used, __ATOMIC_RELEASE);
    __sync_synchronize();
    for (uint64_t until = f->watch_ns ? xm_now() + f->watch_ns : 0;;) {
        if (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) != q->last_used)
            return true;
        if (!until || xm_now() >= until)
            break;
        xm_relax();
    }
    if (poll(&p, 1, timeout_ms) != 1)
        return false;
    eventfd_read(q->call, &v);
    return true;
}

int vf_do(struct vf *f, unsigned q, uint32_t type, uint64_t sector, uint64_t data_off, uint32_t len)
{
    struct vf_seg s = {data_off, len, type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID};
    uint16_t head;
    uint8_t status;
    int at = vf_request(f, q, type, sector, &s, len ? 1 : 0, NULL);

    if (at < 0)
        return -1;
    vf_kick(f, q);
    for (;;) {
        int got = vf_used(f, q, &head, &status, NULL, NULL);
        if (got < 0)
            return -1;
        if (got && head == at)
            return status;
        if (!got && !vf_wait(f, q, LIMIT_HANG_MS))
            return -1;
    }
}
