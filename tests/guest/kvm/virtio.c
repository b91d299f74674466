/* SPDX-License-Identifier: MIT */
/* See virtio.h. Memory barriers: stores and loads are in order here, so the compiler alone is held to it;
 * the device is always notified, so nothing has to be read behind a store. */
#include "tests/guest/kvm/virtio.h"

#define QUEUE_SIZE 16u
#define barrier()  __asm__ volatile("" : : : "memory")

struct blk_descriptor {
    uint32_t address, address_high, length;
    uint16_t flags, next;
};
enum { NEXT = 1, WRITABLE = 2 };

/* ---- PCI ---- */

static uint32_t pci_read(uint32_t slot, uint32_t at)
{
    out32(0xcf8, 0x80000000u | slot << 11 | (at & 0xfc));
    return in32(0xcfc) >> (at & 3) * 8;
}

static void pci_write(uint32_t slot, uint32_t at, uint32_t v)
{
    out32(0xcf8, 0x80000000u | slot << 11 | (at & 0xfc));
    out32(0xcfc, v);
}

static bool is_blk(uint32_t slot)
{
    uint32_t id = pci_read(slot, 0);

    return id == 0x10011af4 || id == 0x10421af4; /* with or without the interface of old */
}

/* Where a capability of the device's own kind says that its registers are. NULL: behind 4 GiB, or not in
 * memory. */
static volatile uint8_t *registers(uint32_t slot, uint32_t capability)
{
    uint32_t bar = 0x10 + (pci_read(slot, capability + 4) & 0xff) * 4;
    uint32_t low = pci_read(slot, bar);

    if (low & 1 || ((low & 6) == 4 && pci_read(slot, bar + 4)))
        return 0;
    return (volatile uint8_t *)((low & ~15u) + pci_read(slot, capability + 8));
}

/* ---- the device ---- */

static void set8(volatile uint8_t *at, uint8_t v)
{
    *at = v;
}
static void set16(volatile uint8_t *at, uint16_t v)
{
    *(volatile uint16_t *)at = v;
}
static void set32(volatile uint8_t *at, uint32_t v)
{
    *(volatile uint32_t *)at = v;
}
static void set_address(volatile uint8_t *at, volatile void *p)
{
    set32(at, (uint32_t)p);
    set32(at + 4, 0);
}

static bool find_registers(struct blk *b, uint32_t slot)
{
    uint32_t multiplier = 0;

    b->common = b->notify = b->config = 0;
    for (uint32_t c = pci_read(slot, 0x34) & 0xff; c; c = pci_read(slot, c + 1) & 0xff) {
        uint32_t head = pci_read(slot, c);
        if ((head & 0xff) != 9)
            continue;
        volatile uint8_t **place = head >> 24 == 1   ? &b->common
                                   : head >> 24 == 2 ? &b->notify
                                   : head >> 24 == 4 ? &b->config
                                                     : 0;
        if (place && !*place)
            *place = registers(slot, c);
        if (head >> 24 == 2)
            multiplier = pci_read(slot, c + 16);
    }
    if (!b->common || !b->notify || !b->config)
        return false;
    set16(b->common + 22, 0); /* the first queue: where it is to be notified */
    b->notify += *(volatile uint16_t *)(b->common + 30) * multiplier;
    return true;
}

/* The firmware has used it: it is reset, and begins anew. */
static bool start(struct blk *b)
{
    volatile uint8_t *c = b->common;

    set8(c + 20, 0);
    while (c[20]) {
    }
    set8(c + 20, 1 | 2); /* acknowledged, has a driver */
    set32(c + 8, 0);
    set32(c, 0);
    set32(c + 12, *(volatile uint32_t *)(c + 4) & 1u << 9); /* flush, if it has it */
    set32(c + 8, 1);
    set32(c + 12, 1); /* version 1 */
    set8(c + 20, 1 | 2 | 8);
    if (!(c[20] & 8))
        return false;
    set16(c + 22, 0);
    set16(c + 24, QUEUE_SIZE);
    set16(c + 16, 0xffff); /* no interrupts */
    set16(c + 26, 0xffff);
    set_address(c + 32, b->descriptor);
    set_address(c + 40, b->available);
    set_address(c + 48, b->used);
    set16(c + 28, 1);
    set8(c + 20, 1 | 2 | 8 | 4);
    return true;
}

static bool make_ready(struct blk *b, uint32_t slot)
{
    pci_write(slot, 4, 6); /* its memory, and its access to ours */
    if (!find_registers(b, slot))
        return false;
    uint8_t *ring = memory_take(PAGE);
    b->descriptor = (void *)ring;
    b->available = (void *)(ring + QUEUE_SIZE * sizeof *b->descriptor);
    b->used = (void *)(ring + PAGE / 2);
    b->available[0] = 1; /* no interrupts */
    for (uint32_t i = 0; i < REQUESTS; i++)
        b->request[i].buffer = memory_take(BUFFER);
    b->sectors = *(volatile uint32_t *)b->config;
    return start(b);
}

bool blk_open(struct blk *b, uint32_t n)
{
    for (uint32_t slot = 0; slot < 32; slot++) {
        if (is_blk(slot) && !n--) {
            if (make_ready(b, slot))
                return true;
            serial_error('E', slot, 0, 0);
            return false;
        }
    }
    return false;
}

/* A request has three descriptors of its own: header, data (but for a flush), status. */
void blk_submit(struct blk *b, uint32_t request, uint32_t type, uint32_t sector, uint32_t bytes)
{
    struct blk_request *r = &b->request[request];
    volatile struct blk_descriptor *d = &b->descriptor[request * 3];
    uint16_t first = (uint16_t)(request * 3);

    r->type = type;
    r->sector = sector;
    r->status = 0xff;
    r->under_way = true;
    d[0] = (struct blk_descriptor){(uint32_t)r, 0, 16, NEXT, (uint16_t)(first + (bytes ? 1 : 2))};
    d[1] = (struct blk_descriptor){(uint32_t)r->buffer, 0, bytes, NEXT | (type == BLK_READ ? WRITABLE : 0),
                                   (uint16_t)(first + 2)};
    d[2] = (struct blk_descriptor){(uint32_t)&r->status, 0, 1, WRITABLE, 0};
    b->available[2 + b->available[1] % QUEUE_SIZE] = first;
    barrier();
    b->available[1]++;
    barrier();
    set16(b->notify, 0);
}

/* The used ring: flags, index, then pairs of 32 bits, the first of them the chain's first descriptor. */
int blk_completed(struct blk *b)
{
    if (b->used[1] == b->seen)
        return -1;
    barrier();
    uint32_t request = b->used[2 + b->seen % QUEUE_SIZE * 4] / 3u;
    b->seen++;
    if (request >= REQUESTS || !b->request[request].under_way) {
        serial_error('E', request, b->used[1], b->seen);
        return -1;
    }
    b->request[request].under_way = false;
    return (int)request;
}
