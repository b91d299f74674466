/* SPDX-License-Identifier: MIT */
/* What the guest does to its disks: sectors are written, read again and compared. RAM has the generation
 * of each sector, which is in the sector's contents: after a move an old sector, a lost or a misplaced one
 * is seen.
 *
 * Each request of a disk has a part of the sectors for itself, so that no two that are under way ever
 * overlap. First all of its sectors are written, in order. From then on it goes round:
 *     write a random run of them -> read the next run in order -> compare, when its turn comes again
 * What was read stays in its buffer from one turn to the next: pages that a disk has written, not the
 * processor, must have come along, too. Every 64th write is followed by a flush. */
#include "tests/guest/kvm/virtio.h"

#define RUN_SECTORS (BUFFER / SECTOR)

enum stage { FILLING, WRITING, FLUSHING, READING };

struct part {
    enum stage stage;
    uint32_t first, sectors; /* its own */
    uint32_t fill, sweep;    /* from first: the next to be filled, to be read */
    uint32_t at, count;      /* the run of the last request */
    uint32_t writes, sweeps;
};

static struct disk {
    struct blk blk;
    uint32_t number, *generation;
    uint32_t turn, used;
    struct part part[REQUESTS];
} disks[DISKS_MAX];
static uint32_t count, checked, seed = 1;

static uint32_t pseudo_random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

void disk_begin(const struct options *o)
{
    while (count < DISKS_MAX && blk_open(&disks[count].blk, count)) {
        struct disk *d = &disks[count];
        d->number = count++;
        d->used = d->blk.sectors < o->span * 2 ? d->blk.sectors : o->span * 2;
        d->generation = memory_take(d->used * sizeof *d->generation);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            d->part[i].sectors = d->used / REQUESTS;
            d->part[i].first = i * d->part[i].sectors;
        }
    }
}

static uint32_t value_of(const struct disk *d, uint32_t sector)
{
    return sector * 2654435761u ^ d->generation[sector] * 2246822519u ^ (d->number + 1) << 16;
}

/* ---- requests ---- */

static void write_run(struct disk *d, uint32_t n, uint32_t from, uint32_t sectors, enum stage stage)
{
    struct part *p = &d->part[n];
    uint8_t *buffer = d->blk.request[n].buffer;

    p->stage = stage;
    p->at = p->first + from;
    p->count = sectors < p->sectors - from ? sectors : p->sectors - from;
    for (uint32_t i = 0; i < p->count; i++) {
        d->generation[p->at + i]++;
        pattern_write((uint32_t *)(buffer + i * SECTOR), SECTOR, WORDS_DISK, value_of(d, p->at + i));
    }
    blk_submit(&d->blk, n, BLK_WRITE, p->at, p->count * SECTOR);
}

static void fill_run(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];

    write_run(d, n, p->fill, RUN_SECTORS, FILLING);
    p->fill += p->count;
}

static void read_run(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];
    uint32_t left = p->sectors - p->sweep;

    p->stage = READING;
    p->at = p->first + p->sweep;
    p->count = left < RUN_SECTORS ? left : RUN_SECTORS;
    blk_submit(&d->blk, n, BLK_READ, p->at, p->count * SECTOR);
}

static void compare_run(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];
    const uint8_t *buffer = d->blk.request[n].buffer;

    for (uint32_t i = 0; i < p->count; i++)
        pattern_check((const uint32_t *)(buffer + i * SECTOR), SECTOR, WORDS_DISK, value_of(d, p->at + i),
                      'B', p->at + i);
    checked += p->count;
    p->sweep += p->count;
    if (p->sweep == p->sectors) {
        p->sweep = 0;
        p->sweeps++;
    }
}

static bool filled(const struct part *p)
{
    return p->fill == p->sectors;
}

/* What comes after the last request, which has been completed. */
static void next_request(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];

    if (p->stage == WRITING && ++p->writes % 64 == 0) {
        p->stage = FLUSHING;
        blk_submit(&d->blk, n, BLK_FLUSH, 0, 0);
    } else if (p->stage == WRITING || p->stage == FLUSHING) {
        read_run(d, n);
    } else {
        if (p->stage == READING)
            compare_run(d, n);
        uint32_t r = pseudo_random();
        write_run(d, n, r % p->sectors, 1 + (r >> 24) % RUN_SECTORS, WRITING);
    }
}

/* ---- from the main loop ---- */

void disk_poll(void)
{
    for (uint32_t i = 0; i < count; i++) {
        int n;
        while ((n = blk_completed(&disks[i].blk)) >= 0) {
            uint8_t status = disks[i].blk.request[n].status;
            if (status)
                serial_error('E', disks[i].part[n].at, status, 0);
        }
    }
}

void disk_fill(void)
{
    for (uint32_t i = 0; i < count; i++) {
        struct disk *d = &disks[i];
        for (uint32_t n = 0; n < REQUESTS; n++) {
            if (!filled(&d->part[n]) && !d->blk.request[n].under_way) {
                fill_run(d, n);
                break; /* one a tick */
            }
        }
    }
}

/* A request that is still under way when its turn comes is passed over: the disk is slower than we would
 * like. */
void disk_step(void)
{
    for (uint32_t i = 0; i < count; i++) {
        struct disk *d = &disks[i];
        uint32_t n = d->turn++ % REQUESTS;
        if (filled(&d->part[n]) && !d->blk.request[n].under_way)
            next_request(d, n);
    }
}

uint32_t disk_count(void)
{
    return count;
}

uint32_t disk_sectors(uint32_t disk)
{
    return disks[disk].used;
}

uint32_t disk_checked(void)
{
    return checked;
}

uint32_t disk_rounds(void)
{
    uint32_t least = count ? ~0u : 0;

    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t n = 0; n < REQUESTS; n++)
            least = disks[i].part[n].sweeps < least ? disks[i].part[n].sweeps : least;
    }
    return least;
}
