/* SPDX-License-Identifier: MIT */
/* tests/guest/disk.c: writes numbered, checksummed records to the disks and keeps the account of what was
 * acknowledged.
 *
 * A block's number is entered in `issued` before its write begins and in `acked` when it has been completed.
 * So whatever is read back must be a whole block of a write acked..issued; with the writers paused the two
 * are equal, unless a write failed, which is an error by itself: no guest request may ever fail because of a
 * migration. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "tests/guest/disk.h"

struct disk *guest_disks[8];
unsigned guest_disk_count;

static void timed(struct disk *d, uint64_t began)
{
    uint64_t took = now_ns() - began, old = LOOK(d->slowest_ns);

    COUNT(d->busy_ns, took);
    while (took > old && !__atomic_compare_exchange_n(&d->slowest_ns, &old, took, false, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED))
        ;
}

static void failed(struct disk *d, const char *what, uint64_t block, unsigned count, ssize_t n)
{
    COUNT(d->errors, 1);
    guest_fail("%s: %s of %u blocks at block %llu: %s", d->name, what, count, (unsigned long long)block,
               n < 0 ? strerror(errno) : "short");
}

static void enter(uint64_t *account, uint64_t block, unsigned count, uint64_t what)
{
    while (count--)
        account[block++] = what;
}

int stroke_init(struct stroke *s, struct disk *d, unsigned index, unsigned of, uint64_t salt)
{
    memset(s, 0, sizeof(*s));
    s->d = d;
    s->index = index;
    s->of = of;
    s->slot = index;
    s->rng = d->id ^ d->seed ^ (salt << 32) ^ index;
    return posix_memalign((void **)&s->buf, REC_BLOCK, REC_SLOT) ? -1 : 0;
}

/* The next slot: one in four strokes goes on to the neighbour, the others jump. */
static void choose(struct stroke *s, bool in_trim, uint64_t *block, unsigned *count)
{
    uint64_t slots = s->d->span / REC_SLOT, first = (s->d->span - s->d->trim) / REC_SLOT;
    uint64_t from = in_trim ? first : 0, to = in_trim ? slots : first, mine;
    unsigned start;

    mine = (to - from) / s->of;
    if (rec_random(&s->rng) % 4 == 0 && s->slot + s->of < to && s->slot >= from)
        s->slot += s->of;
    else
        s->slot = from + s->index + s->of * (rec_random(&s->rng) % mine);
    start = (unsigned)(rec_random(&s->rng) % REC_SLOT_BLOCKS);
    *count = 1 + (unsigned)(rec_random(&s->rng) % (REC_SLOT_BLOCKS - start));
    *block = s->slot * REC_SLOT_BLOCKS + start;
}

/* Discard or write-zeroes. Returns false when the device cannot do it. */
static bool clear_blocks(struct disk *d, uint64_t block, unsigned count, bool zeroes)
{
    uint64_t range[2] = {block * REC_BLOCK, (uint64_t)count * REC_BLOCK}, began = now_ns();
    unsigned i;

    if (zeroes ? d->no_zeroes : d->no_discard)
        return false;
    if (ioctl(d->fd, zeroes ? BLKZEROOUT : BLKDISCARD, range) < 0) {
        if (errno != EOPNOTSUPP) {
            failed(d, zeroes ? "write-zeroes" : "discard", block, count, -1);
            return true;
        }
        *(zeroes ? &d->no_zeroes : &d->no_discard) = true;
        return false;
    }
    timed(d, began);
    for (i = 0; i < count; i++)
        if (zeroes)
            d->acked[block + i] = ACC_ZERO;
        else if (d->acked[block + i] != ACC_UNKNOWN && d->acked[block + i] != ACC_ZERO)
            d->acked[block + i] = ACC_DISCARDED | ACC_SEQ(d->acked[block + i]);
    COUNT(*(zeroes ? &d->zeroes : &d->discards), 1);
    return true;
}

uint64_t stroke_write(struct stroke *s)
{
    struct disk *d = s->d;
    bool in_trim = d->trim && rec_random(&s->rng) % 8 == 0, sync = rec_random(&s->rng) % 8 == 0;
    uint64_t block, seq, began;
    unsigned count;
    ssize_t n;

    choose(s, in_trim, &block, &count);
    if (in_trim && rec_random(&s->rng) % 2 && clear_blocks(d, block, count, rec_random(&s->rng) % 2))
        return (uint64_t)count * REC_BLOCK;
    seq = COUNT(d->seq, 1);
    rec_make(s->buf, d->id, block, count, seq);
    enter(d->issued, block, count, seq);
    began = now_ns();
    n = pwrite(sync ? d->fd_sync : d->fd, s->buf, (size_t)count * REC_BLOCK, (off_t)(block * REC_BLOCK));
    if (n != (ssize_t)count * REC_BLOCK) {
        failed(d, "write", block, count, n);
        return 0;
    }
    timed(d, began);
    enter(d->acked, block, count, seq);
    COUNT(d->writes, 1);
    COUNT(d->bytes, (uint64_t)n);
    if (rec_random(&s->rng) % 16 == 0) {
        began = now_ns();
        if (fdatasync(d->fd) < 0)
            failed(d, "flush", block, count, -1);
        timed(d, began);
        COUNT(d->flushes, 1);
    }
    return (uint64_t)n;
}

uint64_t stroke_read(struct stroke *s)
{
    struct disk *d = s->d;
    uint64_t block, began = now_ns();
    unsigned count;
    ssize_t n;

    choose(s, d->trim && rec_random(&s->rng) % 8 == 0, &block, &count);
    n = pread(d->fd, s->buf, (size_t)count * REC_BLOCK, (off_t)(block * REC_BLOCK));
    if (n != (ssize_t)count * REC_BLOCK) {
        failed(d, "read", block, count, n);
        return 0;
    }
    timed(d, began);
    COUNT(d->reads, 1);
    disk_judge(d, block, count, s->buf);
    return (uint64_t)n;
}

uint64_t disk_judge(struct disk *d, uint64_t block, unsigned count, const unsigned char *buf)
{
    uint64_t wrong = 0;
    unsigned i;

    for (i = 0; i < count; i++, block++, buf += REC_BLOCK) {
        uint64_t lo = d->acked[block], hi = d->issued[block];
        char why[96];
        const char *bad;

        if (lo == ACC_UNKNOWN && hi == ACC_UNKNOWN)
            continue;
        if (lo == ACC_ZERO || (lo & ACC_DISCARDED)) {
            if (rec_is_zero(buf, REC_BLOCK))
                continue;
            bad = lo == ACC_ZERO ? "not zeros"
                                 : rec_check(buf, d->id, block, ACC_SEQ(lo), ACC_SEQ(lo), why, sizeof(why));
        } else {
            bad = rec_check(buf, d->id, block, lo, hi > lo ? hi : lo, why, sizeof(why));
        }
        if (bad) {
            wrong++;
            guest_fail("%s: block %llu: %s", d->name, (unsigned long long)block, bad);
        }
    }
    return wrong;
}

static void *writer(void *arg)
{
    struct stroke *s = arg;
    uint64_t next = 0;

    for (;;) {
        uint64_t n;

        gate_enter(&s->d->gate);
        n = stroke_write(s);
        gate_leave(&s->d->gate);
        pace(&next, n ? n : REC_SLOT, s->d->rate / s->d->threads);
    }
    return NULL;
}

/* DEV[:key=value...] */
static bool configure(struct disk *d, const char *text, uint64_t seed)
{
    char copy[160], *word, *save = NULL, *colon, *value;

    snprintf(copy, sizeof(copy), "%s", text);
    colon = strchr(copy, ':');
    if (colon)
        *colon = 0;
    snprintf(d->dev, sizeof(d->dev), "%.15s", copy);
    snprintf(d->name, sizeof(d->name), "%.15s", copy);
    d->threads = 2;
    d->seed = seed;
    for (word = colon ? strtok_r(colon + 1, ":", &save) : NULL; word; word = strtok_r(NULL, ":", &save)) {
        value = strchr(word, '=');
        if (value)
            *value++ = 0;
        if (strcmp(word, "prefilled") == 0)
            d->seq = 1;
        else if (strcmp(word, "blank") == 0)
            d->no_zeroes = true; /* looked at once, below */
        else if (!value)
            return false;
        else if (strcmp(word, "rate") == 0)
            d->rate = parse_size(value);
        else if (strcmp(word, "span") == 0)
            d->span = parse_size(value);
        else if (strcmp(word, "trim") == 0)
            d->trim = parse_size(value);
        else if (strcmp(word, "threads") == 0)
            d->threads = (unsigned)atoi(value);
        else if (strcmp(word, "name") == 0)
            snprintf(d->name, sizeof(d->name), "%.31s", value);
        else
            return false;
    }
    return d->threads >= 1 && d->threads <= 64;
}

/* Opens the device, fixes the span, allocates the account. */
static bool prepare(struct disk *d)
{
    bool prefilled = d->seq == 1, blank = d->no_zeroes;
    char path[32];
    uint64_t size = 0, blocks, i;

    d->no_zeroes = false;
    snprintf(path, sizeof(path), "/dev/%s", d->dev);
    if (boot_wait_device(d->dev) < 0)
        return false;
    d->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    d->fd_sync = open(path, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
    if (d->fd < 0 || d->fd_sync < 0 || ioctl(d->fd, BLKGETSIZE64, &size) < 0) {
        guest_fail("%s: %s", path, strerror(errno));
        return false;
    }
    if (d->span == 0 || d->span > size)
        d->span = size;
    d->span -= d->span % REC_SLOT;
    d->trim -= d->trim % REC_SLOT;
    if (d->span - d->trim < 64 * REC_SLOT || d->trim > d->span || (d->trim && d->trim < 64 * REC_SLOT)) {
        guest_fail("%s: span %llu or trim %llu is too small", d->name, (unsigned long long)d->span,
                   (unsigned long long)d->trim);
        return false;
    }
    blocks = d->span / REC_BLOCK;
    d->acked = calloc(blocks, sizeof(*d->acked));
    d->issued = calloc(blocks, sizeof(*d->issued));
    if (!d->acked || !d->issued) {
        guest_fail("%s: no memory for the account", d->name);
        return false;
    }
    for (i = 0; i < blocks && (prefilled || blank); i++)
        d->acked[i] = d->issued[i] = prefilled ? 1 : ACC_ZERO;
    d->seq = 1;
    return true;
}

int disks_start(const struct params *p)
{
    unsigned i, t;

    for (i = 0; i < p->disks; i++) {
        struct disk *d = calloc(1, sizeof(*d));

        if (!d || !configure(d, p->disk[i], p->seed)) {
            guest_fail("bad parameter xm.disk=%s", p->disk[i]);
            free(d);
            continue;
        }
        gate_init(&d->gate);
        if (!prepare(d)) {
            free(d);
            continue;
        }
        d->id = rec_disk_id(d->name, d->seed);
        guest_disks[guest_disk_count++] = d;
        for (t = 0; t < d->threads && d->rate; t++) {
            struct stroke *s = calloc(1, sizeof(*s));

            if (!s || stroke_init(s, d, t, d->threads, 0) < 0)
                guest_fail("%s: no memory", d->name);
            else
                start_thread(writer, s);
        }
    }
    return 0;
}
