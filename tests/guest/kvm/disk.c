/* SPDX-License-Identifier: MIT */
/* What the guest does to its disks: sectors are written, read again and compared.
 *
 * Each request of a disk has a part of the sectors for itself, so that no two that are under way ever
 * overlap. The writes of a part have numbers, and which sectors a number writes follows from the number
 * (run_of). A sector holds the number of its last write, and RAM has it too: after a move an old sector, a
 * lost or a misplaced one is seen. A part goes round:
 *     write the next run -> read the next run in order -> compare, when its turn comes again
 * What was read stays in its buffer from one turn to the next: pages that a disk has written, not the
 * processor, must have come along, too. Every 64th write is followed by a flush.
 *
 * A guest that starts reads all sectors first. What it wrote when it last ran is judged by the numbers: the
 * newest there is, and the last one up to which none is missing (written, or written over by a later one);
 * the host knows which of them had been acknowledged, and flushed. Then all sectors of the part are written
 * once, in order: a new life, whose numbers go on behind `base`, the newest of the one before. */
#include "tests/guest/kvm/virtio.h"

#define RUN_SECTORS (BUFFER / SECTOR)

enum stage { SCANNING, FILLING, WRITING, FLUSHING, READING };

struct part {
    enum stage stage;
    uint32_t first, sectors; /* its own */
    uint32_t scan, sweep;    /* from first: the next to be read at the start, and later */
    uint32_t at, count;      /* the run of the last request */
    uint32_t base, number;   /* this life's writes are those behind base; the last one's number */
    uint32_t acked;
    uint32_t sync[REQUESTS]; /* what all parts' acked were when the flush that is under way began */
    uint32_t writes, sweeps;
};

static struct disk {
    struct blk blk;
    uint32_t number, *written; /* by sector: the number of its last write */
    uint32_t turn, used;
    struct part part[REQUESTS];
} disks[DISKS_MAX];
static uint32_t count, checked, seed;

void disk_begin(const struct options *o)
{
    seed = o->seed;
    while (count < DISKS_MAX && blk_open(&disks[count].blk, count)) {
        struct disk *d = &disks[count];
        d->number = count++;
        d->used = d->blk.sectors < o->span * 2 ? d->blk.sectors : o->span * 2;
        d->written = memory_take(d->used * sizeof *d->written);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            d->part[i].sectors = d->used / REQUESTS;
            d->part[i].first = i * d->part[i].sectors;
        }
    }
}

/* ---- sectors ---- */

/* Words of a sector; the last one is the last there is. */
enum { WORD_PLACE = 31, WORD_NUMBER = 63, WORD_BASE = 95, WORD_CHECK = 127 };

static uint32_t place_of(const struct disk *d, uint32_t sector)
{
    return (sector + 1) * 2654435761u ^ (d->number + 1) << 16 ^ (seed + 1) * 2246822519u;
}

static uint32_t check_of(uint32_t place, uint32_t number, uint32_t base)
{
    return (place ^ number * 3266489917u) * 668265263u ^ base * 374761393u;
}

/* Of the part's runs the first ones of a life go through all of its sectors, the later ones jump. */
static void run_of(const struct part *p, uint32_t number, uint32_t base, uint32_t *from, uint32_t *sectors)
{
    uint32_t n = number - base - 1, r = (number + p->first) * 2654435761u;

    r ^= r >> 15;
    r *= 2246822519u;
    r ^= r >> 13;
    if (n * RUN_SECTORS < p->sectors) {
        *from = n * RUN_SECTORS;
        *sectors = RUN_SECTORS;
    } else {
        *from = r % p->sectors;
        *sectors = 1 + (r >> 24) % RUN_SECTORS;
    }
    if (*sectors > p->sectors - *from)
        *sectors = p->sectors - *from;
}

/* ---- requests ---- */

static void write_run(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];
    uint8_t *buffer = d->blk.request[n].buffer;
    uint32_t from;

    p->stage = (p->number - p->base) * RUN_SECTORS < p->sectors ? FILLING : WRITING;
    p->number++;
    run_of(p, p->number, p->base, &from, &p->count);
    p->at = p->first + from;
    for (uint32_t i = 0; i < p->count; i++) {
        uint32_t *word = (uint32_t *)(buffer + i * SECTOR), place = place_of(d, p->at + i);
        d->written[p->at + i] = p->number;
        word[WORD_PLACE] = place;
        word[WORD_NUMBER] = p->number;
        word[WORD_BASE] = p->base;
        word[WORD_CHECK] = check_of(place, p->number, p->base);
    }
    blk_submit(&d->blk, n, BLK_WRITE, p->at, p->count * SECTOR);
}

static void flush(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];

    p->stage = FLUSHING;
    for (uint32_t i = 0; i < REQUESTS; i++)
        p->sync[i] = d->part[i].acked;
    blk_submit(&d->blk, n, BLK_FLUSH, 0, 0);
}

static void read_run(struct disk *d, uint32_t n, enum stage stage, uint32_t from)
{
    struct part *p = &d->part[n];
    uint32_t left = p->sectors - from;

    p->stage = stage;
    p->at = p->first + from;
    p->count = left < RUN_SECTORS ? left : RUN_SECTORS;
    blk_submit(&d->blk, n, BLK_READ, p->at, p->count * SECTOR);
}

static void compare_run(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];

    for (uint32_t i = 0; i < p->count; i++) {
        const uint32_t *word = (uint32_t *)(d->blk.request[n].buffer + i * SECTOR);
        uint32_t sector = p->at + i, place = place_of(d, sector), number = d->written[sector];
        if (word[WORD_PLACE] != place)
            serial_error('B', sector, word[WORD_PLACE], place);
        else if (word[WORD_NUMBER] != number || word[WORD_CHECK] != check_of(place, number, p->base))
            serial_error('B', sector, word[WORD_NUMBER], number);
    }
    checked += p->count;
    p->sweep += p->count;
    if (p->sweep == p->sectors) {
        p->sweep = 0;
        p->sweeps++;
    }
}

/* ---- at the start ---- */

/* The number that the sector holds; 0: it holds none that was ever written to this place. */
static uint32_t number_in(const struct disk *d, const struct part *p, const uint32_t *word, uint32_t sector)
{
    uint32_t place = place_of(d, sector), number = word[WORD_NUMBER], base = word[WORD_BASE], from, sectors;

    if (word[WORD_PLACE] != place || word[WORD_CHECK] != check_of(place, number, base) || number <= base)
        return 0;
    run_of(p, number, base, &from, &sectors);
    sector -= p->first;
    return sector >= from && sector < from + sectors ? number : 0;
}

static void take_scan(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];

    for (uint32_t i = 0; i < p->count; i++) {
        const uint32_t *word = (uint32_t *)(d->blk.request[n].buffer + i * SECTOR);
        uint32_t number = number_in(d, p, word, p->at + i);
        d->written[p->at + i] = number;
        if (number > p->number) {
            p->number = number;
            p->base = word[WORD_BASE];
        }
    }
    p->scan += p->count;
}

/* The last write up to which none is missing. */
static uint32_t complete(const struct disk *d, const struct part *p)
{
    for (uint32_t number = p->base + 1; number <= p->number; number++) {
        uint32_t from, sectors;
        run_of(p, number, p->base, &from, &sectors);
        for (uint32_t i = from; i < from + sectors; i++) {
            if (d->written[p->first + i] < number)
                return number - 1;
        }
    }
    return p->number;
}

static void tell_kept(const struct disk *d, uint32_t n)
{
    const struct part *p = &d->part[n];

    serial_text("\nkept ");
    serial_number(d->number * REQUESTS + n);
    serial_text(" newest ");
    serial_number(p->number);
    serial_text(" complete ");
    serial_number(complete(d, p));
    serial_char('\n');
}

static bool filled(const struct part *p)
{
    return p->stage != SCANNING && (p->number - p->base) * RUN_SECTORS >= p->sectors;
}

/* One more of the requests that end with the part filled. */
static void fill_step(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];

    if (p->stage == SCANNING) {
        take_scan(d, n);
        if (p->scan < p->sectors) {
            read_run(d, n, SCANNING, p->scan);
            return;
        }
        if (p->number)
            tell_kept(d, n);
        p->base = p->acked = p->number;
    }
    write_run(d, n);
}

/* What comes after the last request, which has been completed. */
static void next_request(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];

    if (p->stage == WRITING && ++p->writes % 64 == 0) {
        flush(d, n);
    } else if (p->stage == WRITING || p->stage == FLUSHING) {
        read_run(d, n, READING, p->sweep);
    } else {
        if (p->stage == READING)
            compare_run(d, n);
        write_run(d, n);
    }
}

/* ---- from the main loop ---- */

static void tell_numbers(const char *text, const uint32_t *number)
{
    serial_text(text);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        serial_char(' ');
        serial_number(number[i]);
    }
}

/* What the host may count on from now on. */
static void completed(struct disk *d, uint32_t n)
{
    struct part *p = &d->part[n];

    if (p->stage == FILLING || p->stage == WRITING) {
        p->acked = p->number;
        serial_char((char)('a' + d->number * REQUESTS + n));
    } else if (p->stage == FLUSHING) {
        tell_numbers(d->number ? "\nsynced 1" : "\nsynced 0", p->sync);
        serial_char('\n');
    }
}

void disk_poll(void)
{
    for (uint32_t i = 0; i < count; i++) {
        int n;
        while ((n = blk_completed(&disks[i].blk)) >= 0) {
            uint8_t status = disks[i].blk.request[n].status;
            if (status)
                serial_error('E', disks[i].part[n].at, status, 0);
            else
                completed(&disks[i], (uint32_t)n);
        }
    }
}

void disk_tell(void)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t acked[REQUESTS];
        for (uint32_t n = 0; n < REQUESTS; n++)
            acked[n] = disks[i].part[n].acked;
        tell_numbers(i ? "" : "told", acked);
    }
    if (count)
        serial_char('\n');
}

void disk_fill(void)
{
    for (uint32_t i = 0; i < count; i++) {
        struct disk *d = &disks[i];
        for (uint32_t n = 0; n < REQUESTS; n++) {
            if (!filled(&d->part[n]) && !d->blk.request[n].under_way) {
                fill_step(d, n);
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
