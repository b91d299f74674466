/* SPDX-License-Identifier: MIT */
#include "mirror/virtqueue.h"

#include <string.h>

/* The guest's 16-bit fields, each read or written exactly once. */
static uint16_t get16(const __virtio16 *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static void put16(__virtio16 *at, uint16_t v)
{
    __atomic_store_n(at, v, __ATOMIC_RELEASE);
}

static __virtio16 *avail_event_at(const struct virtqueue *q)
{
    return (__virtio16 *)(void *)&q->used->ring[q->num];
}

/* What lies in the used ring: for the tracker by its place, for the log by the address that the front end
 * gave for it. */
static void used_dirty(const struct virtqueue *q, const void *at, size_t len)
{
    guestmem_dirty_tracked(q->mem, at, len);
    if (q->mem->log && q->addr.log_used)
        dirtylog_mark(q->mem->log, q->addr.log + (uint64_t)((const uint8_t *)at - (const uint8_t *)q->used),
                      len);
}

int virtqueue_remap(struct virtqueue *q, const struct guestmem *mem, struct xm_error *e)
{
    size_t event = q->event_idx ? 2 : 0;

    q->mem = mem;
    q->desc = guestmem_at_user(mem, q->addr.desc, q->num * sizeof(struct vring_desc));
    q->avail = guestmem_at_user(mem, q->addr.avail, sizeof(struct vring_avail) + q->num * 2u + event);
    q->used = guestmem_at_user(mem, q->addr.used,
                               sizeof(struct vring_used) + q->num * sizeof(struct vring_used_elem) + event);
    if (!q->desc || !q->avail || !q->used)
        return xm_error_set(e, EPROTO, "its rings are not in guest memory");
    if ((uintptr_t)q->desc % 16 || (uintptr_t)q->avail % 2 || (uintptr_t)q->used % 4)
        return xm_error_set(e, EPROTO, "its rings are not aligned");
    return 0;
}

int virtqueue_start(struct virtqueue *q, uint16_t base, struct xm_error *e)
{
    int err = virtqueue_remap(q, q->mem, e);
    if (err)
        return err;
    memset(q->busy, 0, sizeof q->busy);
    q->avail_event_set = false;
    q->suppressed = false;
    q->call_due = true; /* the guest may have missed the call for what the one before us has published */
    q->again_at = q->again_count = 0;
    q->used_idx = q->published = get16(&q->used->idx);
    q->last_avail = base;
    int n = q->track ? vhost_inflight_resume(q->track, q->num, q->used_idx, q->again, &q->counter) : -1;
    if (n >= 0) {
        q->again_count = (unsigned)n;
        q->last_avail = (uint16_t)(q->used_idx + n);
    }
    return 0;
}

/* One chain being read. */
struct walk {
    struct virtqueue *q;
    struct chain *c;
    unsigned seen; /* descriptors so far: a chain is no longer than the ring */
    struct xm_error *e;
};

static struct vring_desc virtqueue_fetch(const struct vring_desc *table, unsigned i)
{
    struct vring_desc d;
    memcpy(&d, &table[i], sizeof d);
    __asm__ __volatile__(
        "" ::
            : "memory"); /* from here on the copy is the truth: never read again from the guest */
    return d;
}

static int add_buffer(struct walk *w, const struct vring_desc *d)
{
    struct chain *c = w->c;
    bool writable = d->flags & VRING_DESC_F_WRITE;

    if (!writable && c->in)
        return xm_error_set(w->e, EPROTO, "a readable buffer comes after a writable one");
    int n = guestmem_map(w->q->mem, d->addr, d->len, c->iov + c->out + c->in, CHAIN_IOV_MAX - c->out - c->in);
    if (n == -E2BIG)
        return xm_error_set(w->e, EPROTO, "a request has more than %d pieces", CHAIN_IOV_MAX);
    if (n < 0)
        return xm_error_set(w->e, EPROTO, "a buffer of %u bytes at %#llx is not guest memory", d->len,
                            (unsigned long long)d->addr);
    if (writable) {
        c->in += n;
        c->in_len += d->len;
    } else {
        c->out += n;
        c->out_len += d->len;
    }
    return 0;
}

static int walk_table(struct walk *w, const struct vring_desc *table, unsigned size, unsigned at, bool nested)
{
    for (;;) {
        if (at >= size)
            return xm_error_set(w->e, EPROTO, "descriptor %u is beyond its table of %u", at, size);
        if (++w->seen > w->q->num)
            return xm_error_set(w->e, EPROTO, "a chain is longer than the ring, or is a loop");
        struct vring_desc d = virtqueue_fetch(table, at);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (!w->q->indirect || nested || (d.flags & VRING_DESC_F_NEXT))
                return xm_error_set(w->e, EPROTO, "an indirect descriptor is where none may be");
            unsigned entries = d.len / sizeof(struct vring_desc);
            const struct vring_desc *t = guestmem_at(w->q->mem, d.addr, d.len);
            if (!entries || d.len % sizeof(struct vring_desc) || !t)
                return xm_error_set(w->e, EPROTO, "an indirect table of %u bytes at %#llx is none", d.len,
                                    (unsigned long long)d.addr);
            w->seen--; /* it holds no buffer */
            return walk_table(w, t, entries, 0, true);
        }
        int err = add_buffer(w, &d);
        if (err)
            return err;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return 0;
        at = d.next;
    }
}

bool virtqueue_has_more(const struct virtqueue *q)
{
    return q->again_at < q->again_count || get16(&q->avail->idx) != q->last_avail;
}

/* The head of the next request into *head. */
static int next_head(struct virtqueue *q, uint16_t *head, struct xm_error *e)
{
    if (q->again_at < q->again_count) {
        *head = q->again[q->again_at++];
        return 1; /* it is numbered and marked as in flight already */
    }
    uint16_t waiting = (uint16_t)(get16(&q->avail->idx) - q->last_avail);
    if (!waiting)
        return 0;
    if (waiting > q->num)
        return xm_error_set(e, EPROTO, "its available index is %u ahead in a ring of %u", waiting, q->num);
    *head = get16(&q->avail->ring[q->last_avail % q->num]);
    if (*head >= q->num)
        return xm_error_set(e, EPROTO, "descriptor %u is beyond its table of %u", *head, q->num);
    if (q->busy[*head])
        return xm_error_set(e, EPROTO, "descriptor %u is made available while it is in use", *head);
    q->last_avail++;
    if (q->track)
        vhost_inflight_take(q->track, *head, q->counter++);
    return 1;
}

int virtqueue_pop(struct virtqueue *q, struct chain *c, struct xm_error *e)
{
    int got = next_head(q, &c->head, e);
    if (got != 1)
        return got;
    struct walk w = {.q = q, .c = c, .e = e};
    c->out = c->in = 0;
    c->out_len = c->in_len = 0;
    int err = walk_table(&w, q->desc, q->num, c->head, false);
    if (err)
        return err;
    if (c->out_len > UINT32_MAX || c->in_len > UINT32_MAX)
        return xm_error_set(e, EPROTO, "a request has more than 4 GiB");
    q->busy[c->head] = 1;
    return 1;
}

void virtqueue_push(struct virtqueue *q, uint16_t head, uint32_t len)
{
    struct vring_used_elem *u = &q->used->ring[q->used_idx % q->num];

    /* Never more than num unpublished: each head is busy until it is published. */
    q->batch[(uint16_t)(q->used_idx - q->published)] = head;
    if (q->track)
        vhost_inflight_batch(q->track, head);
    __atomic_store_n(&u->id, head, __ATOMIC_RELAXED);
    __atomic_store_n(&u->len, len, __ATOMIC_RELAXED);
    q->used_idx++;
}

void virtqueue_drop(struct virtqueue *q, uint16_t head)
{
    q->busy[head] = 0;
}

static void elements_dirty(const struct virtqueue *q, unsigned n)
{
    unsigned first = q->published % q->num, whole = XM_MIN(n, q->num - first);

    used_dirty(q, &q->used->ring[first], whole * sizeof(struct vring_used_elem));
    if (n > whole)
        used_dirty(q, &q->used->ring[0], (n - whole) * sizeof(struct vring_used_elem));
}

bool virtqueue_publish(struct virtqueue *q)
{
    uint16_t old = q->published, n = (uint16_t)(q->used_idx - old);

    if (n) {
        put16(&q->used->idx, q->used_idx);
        if (q->track)
            vhost_inflight_done(q->track, q->batch, n, q->used_idx);
        for (unsigned i = 0; i < n; i++)
            q->busy[q->batch[i]] = 0;
        elements_dirty(q, n);
        used_dirty(q, &q->used->idx, sizeof q->used->idx);
        q->published = q->used_idx;
    }
    if (q->call_due) {
        q->call_due = false;
        return true;
    }
    if (!n)
        return false;
    /* Our index must be seen before we look whether the guest sleeps; it does the same the other way round.
     */
    __sync_synchronize();
    if (q->event_idx)
        return vring_need_event(get16(&q->avail->ring[q->num]), q->used_idx, old);
    return !(get16(&q->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
}

bool virtqueue_want_kick(struct virtqueue *q, bool on)
{
    if (q->event_idx) {
        /* No kick comes until the index passes what is written there: one that has been passed already means
         * none. */
        uint16_t event = on ? q->last_avail : (uint16_t)(q->last_avail - 1);
        if (q->avail_event_set && (on ? q->avail_event == event : q->avail_event != q->last_avail))
            return false;
        put16(avail_event_at(q), event);
        used_dirty(q, avail_event_at(q), 2);
        q->avail_event = event;
        q->avail_event_set = true;
    } else {
        if (q->suppressed == !on)
            return false;
        put16(&q->used->flags, on ? 0 : VRING_USED_F_NO_NOTIFY);
        used_dirty(q, &q->used->flags, 2);
        q->suppressed = !on;
    }
    if (!on)
        return false;
    __sync_synchronize();
    return get16(&q->avail->idx) != q->last_avail;
}
