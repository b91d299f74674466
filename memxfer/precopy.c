/* SPDX-License-Identifier: MIT */
/* memxfer/precopy.c: the source of guest RAM: rounds of «collect and re-arm, then read and send».
 *
 * Why nothing is lost: a page is read after the collect that reported it has re-armed it, so a write that
 * comes too late to be read is reported by the next collect. Pages that our own process has written are
 * marked by the driver after the write, and the marks are taken after the tracker's scan and before the
 * reading: the same argument. Round 1 sends everything that the memfd holds and says of all the rest that it
 * reads as zeros; so does the one after xm_precopy_again. A round begins when all messages of the one before
 * have ended: no page is in flight twice.
 *
 * Pages are sent from where they lie, hashed just before (precopy_frames.c). One that the guest changes in
 * between arrives torn; it is known by its hash, sent again in the next round, and has to be explained
 * (overtaken.h). So at the end each page's last frame arrived with its hash, which was made after the last
 * write to that page.
 *
 * Memory: SLOTS buffers of 260 KiB, of which direct frames use the first 4, and bitmaps that are mapped
 * where they are used. Page tables of our mapping take 0.2 % of what was read: those of more than
 * RAM_MAPPED_MAX are given back, in the first round behind what was sent, later when the round is over.
 *
 * Failures: the first one (of the tracker, of reading, of a message) ends the round with its sentence, and
 * the pre-copy is good for nothing any more but xm_precopy_free, which waits for what the transport still
 * has. An abort likewise. After a round that has only taken too long xm_precopy_again goes on, with all of
 * the memory: a QEMU that has loaded device state there may have written to it.
 */
#include "memxfer/precopy.h"
#include "memxfer/ram.h"
#include "memxfer/tracker.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RATE_SAMPLE (4ull << 20) /* fewer bytes in a round tell little of the wire's rate */
/* Page tables are given back in steps of so much RAM, when nothing in flight lies there any more. */
#define GIVE_BACK (1ull << 30)

/* Whether page tables are too many to keep. */
static bool gives_back(const struct xm_precopy *pc, unsigned block)
{
    return pc->direct[block] && xm_precopy_total_pages(pc) > RAM_MAPPED_MAX / XM_PAGE;
}

/* Bytes of one block that hold something. */
static int send_extent(struct xm_precopy *pc, unsigned block, uint64_t from, uint64_t to)
{
    while (from < to) {
        uint64_t end = XM_MIN(to, XM_ROUND_DOWN(from, GIVE_BACK) + GIVE_BACK);
        int r = precopy_send_pages(pc, block, from >> XM_PAGE_SHIFT, (end - from) >> XM_PAGE_SHIFT);
        if (r < 0)
            return r;
        if (gives_back(pc, block) && end % GIVE_BACK == 0 && end >= 2 * GIVE_BACK)
            ram_give_back(&pc->ram->block[block], end - 2 * GIVE_BACK, end - GIVE_BACK);
        from = end;
    }
    return 0;
}

static void give_back_all(struct xm_precopy *pc)
{
    for (unsigned i = 0; i < pc->ram->blocks; i++) {
        if (gives_back(pc, i))
            ram_give_back(&pc->ram->block[i], 0, pc->ram->block[i].size);
    }
}

/* What the memfd holds is data, the rest zeros. */
static int send_everything(struct xm_precopy *pc)
{
    for (unsigned i = 0; i < pc->ram->blocks; i++) {
        const struct xm_ram_block *b = &pc->ram->block[i];
        for (uint64_t pos = 0; pos < b->size;) {
            off_t d = lseek(b->memfd, (off_t)pos, SEEK_DATA);
            uint64_t data = d >= 0           ? (uint64_t)d
                            : errno == ENXIO ? b->size
                                             : pos; /* who cannot tell has data everywhere */
            off_t h = d >= 0 ? lseek(b->memfd, d, SEEK_HOLE) : -1;
            uint64_t hole = h >= 0 ? (uint64_t)h : b->size;
            /* Whole pages; what fills up meanwhile will be reported as written. */
            data = XM_ROUND_DOWN(XM_MIN(data, b->size), XM_PAGE);
            hole = XM_MIN(XM_ROUND_UP(hole, XM_PAGE), b->size);
            int r = data > pos
                        ? precopy_send_zeros(pc, i, pos >> XM_PAGE_SHIFT, (data - pos) >> XM_PAGE_SHIFT)
                        : 0;
            if (!r && hole > data) {
                pc->round->pages_dirty += (hole - data) >> XM_PAGE_SHIFT;
                r = send_extent(pc, i, data, hole);
            }
            if (r < 0)
                return r;
            pos = hole;
        }
    }
    return 0;
}

static int send_dirty(struct xm_precopy *pc)
{
    for (unsigned i = 0; i < pc->ram->blocks; i++) {
        struct xm_bitmap *dirty = &pc->dirty[i];
        for (uint64_t page = 0; (page = xm_bitmap_next(dirty, page)) < dirty->bits;) {
            uint64_t end = xm_bitmap_next_clear(dirty, page);
            int r = precopy_send_pages(pc, i, page, end - page);
            if (r < 0)
                return r;
            page = end;
        }
    }
    return 0;
}

/* What was written since the last collect is in pc->dirty afterwards, all of it re-armed. */
static int precopy_collect(struct xm_precopy *pc)
{
    uint64_t ignored;

    for (unsigned i = 0; i < pc->ram->blocks; i++) { /* of the round before */
        for (uint64_t w = 0; w < (pc->dirty[i].bits + 63) / 64; w++)
            xm_bitmap_take_word(&pc->dirty[i], w);
    }
    int r = xm_tracker_collect(pc->tracker, pc->dirty, &ignored, &pc->error);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < pc->ram->blocks; i++) {
        struct xm_bitmap *wrote = &pc->ram->block[i].wrote;
        for (uint64_t w = 0; w < (wrote->bits + 63) / 64; w++) {
            uint64_t bits = xm_bitmap_take_word(wrote, w);
            if (bits)
                pc->dirty[i].word[w] |= bits;
        }
    }
    overtaken_collect(&pc->overtaken, pc->dirty);
    return pc->final ? overtaken_judge(&pc->overtaken, pc->ram, &pc->error) : 0;
}

static uint64_t populated_pages(const struct xm_ram *ram)
{
    uint64_t pages = 0;
    struct stat st;

    for (unsigned i = 0; i < ram->blocks; i++)
        pages += fstat(ram->block[i].memfd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512 / XM_PAGE;
    return pages;
}

static void begin_progress(struct xm_precopy *pc)
{
    uint64_t of = 0;

    if (pc->whole) {
        of = xm_precopy_total_pages(pc);
    } else {
        for (unsigned i = 0; i < pc->ram->blocks; i++)
            of += xm_bitmap_count(&pc->dirty[i]);
        pc->round->pages_dirty = of;
    }
    atomic_store(&pc->done, 0);
    atomic_store(&pc->of, of);
}

int xm_precopy_round(struct xm_precopy *pc, bool final, bool (*over)(void *), void *ctx, struct xm_round *out,
                     struct xm_error *e)
{
    struct xm_round round = {.number = pc->number + 1};
    uint64_t start = xm_now();
    int r;

    if (pc->error.code) {
        if (e)
            *e = pc->error;
        return -pc->error.code;
    }
    xm_mailbox_own(&pc->mailbox);
    pc->number++;
    pc->round = &round;
    pc->final = final;
    pc->over = over;
    pc->over_ctx = ctx;
    pc->looked = 0;
    pc->first_submit = 0;
    pc->way_ns = 0; /* links may have changed */
    r = precopy_trouble(pc);
    if (!r)
        r = precopy_collect(pc);
    if (!r) {
        begin_progress(pc);
        r = pc->whole ? send_everything(pc) : send_dirty(pc);
    }
    precopy_send_last(pc);
    while (!r && !TAILQ_EMPTY(&pc->flight)) {
        xm_mailbox_wait(&pc->mailbox, LOOK_MS);
        r = precopy_trouble(pc);
    }
    r = r ? r : precopy_trouble(pc);
    pc->whole = pc->whole && r;
    pc->round = NULL;
    pc->over = NULL;
    uint64_t end = xm_now();
    round.ns = end - start;
    if (pc->first_submit && end > pc->first_submit && (round.wire_bytes >= RATE_SAMPLE || !(pc->rate > 0)))
        pc->rate = (double)round.wire_bytes * 1e9 / (double)(end - pc->first_submit);
    round.rate = pc->rate;
    if (!final)
        give_back_all(pc);
    if (out)
        *out = round;
    if (r < 0) {
        if (e)
            *e = pc->error;
        xm_error_prefix(e, "memory round %u", round.number);
    } else {
        xm_log(XM_LOG_DEBUG,
               "memory round %u%s: %llu pages dirty, %llu data, %llu zero, %llu overtaken by the guest, %llu "
               "wire bytes in %s",
               round.number, final ? " (final)" : "", (unsigned long long)round.pages_dirty,
               (unsigned long long)round.pages_data, (unsigned long long)round.pages_zero,
               (unsigned long long)round.pages_overtaken, (unsigned long long)round.wire_bytes,
               xm_format_time(round.ns).s);
    }
    return r;
}

int xm_precopy_again(struct xm_precopy *pc, bool (*over)(void *), void *ctx, struct xm_error *e)
{
    xm_mailbox_own(&pc->mailbox);
    pc->final = false; /* its guest runs: what is still on its way may be overtaken */
    pc->deadline = 0;
    if (pc->late)
        pc->error.code = 0;
    pc->late = false;
    pc->over = over;
    pc->over_ctx = ctx;
    pc->looked = 0;
    while (precopy_trouble(pc) == 0 && !TAILQ_EMPTY(&pc->flight))
        xm_mailbox_wait(&pc->mailbox, LOOK_MS);
    pc->over = NULL;
    pc->whole = true;
    if (pc->error.code && e)
        *e = pc->error;
    return -pc->error.code;
}

void xm_precopy_deadline(struct xm_precopy *pc, uint64_t deadline)
{
    pc->deadline = deadline;
}

int xm_precopy_peek(struct xm_precopy *pc, uint64_t *pages, struct xm_error *e)
{
    if (pc->whole) {
        *pages = populated_pages(pc->ram);
        return 0;
    }
    int r = tracker_peek(pc->tracker, pages, e);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < pc->ram->blocks; i++)
        *pages += xm_bitmap_count(&pc->ram->block[i].wrote); /* those written by both are counted twice */
    return 0;
}

void xm_precopy_digest(const struct xm_precopy *pc, struct xm_digest *out)
{
    *out = pc->digest;
}

uint64_t xm_precopy_total_pages(const struct xm_precopy *pc)
{
    uint64_t pages = 0;

    for (unsigned i = 0; i < pc->ram->blocks; i++)
        pages += pc->ram->block[i].size >> XM_PAGE_SHIFT;
    return pages;
}

void xm_precopy_progress(const struct xm_precopy *pc, uint64_t *done, uint64_t *of)
{
    *of = atomic_load_explicit(&pc->of, memory_order_relaxed);
    *done = XM_MIN(atomic_load_explicit(&pc->done, memory_order_relaxed), *of);
}

struct xm_precopy *xm_precopy_new(struct xm_ram *ram, struct xm_transport *transport, struct xm_error *e)
{
    struct xm_precopy *pc = calloc(1, sizeof *pc);

    if (!pc || xm_mailbox_init(&pc->mailbox) < 0) {
        free(pc);
        xm_error_set(e, ENOMEM, "no memory for the pre-copy");
        return NULL;
    }
    pc->ram = ram;
    pc->transport = transport;
    pc->allowed = SLOTS_NEAR;
    pc->whole = true;
    TAILQ_INIT(&pc->free);
    TAILQ_INIT(&pc->flight);
    pc->slab =
        mmap(NULL, (size_t)SLOTS * PAGES_BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pc->slab == MAP_FAILED) {
        pc->slab = NULL;
        xm_error_set(e, ENOMEM, "no memory for the pre-copy");
        xm_precopy_free(pc);
        return NULL;
    }
    for (unsigned i = 0; i < SLOTS; i++) {
        pc->slot[i].pc = pc;
        TAILQ_INSERT_TAIL(&pc->free, &pc->slot[i], link);
    }
    for (unsigned i = 0; i < ram->blocks; i++, pc->bitmaps++) {
        if (xm_bitmap_init(&pc->dirty[i], ram->block[i].size >> XM_PAGE_SHIFT) < 0) {
            xm_error_set(e, ENOMEM, "no memory for the bitmap of RAM block %s", ram->block[i].name);
            xm_precopy_free(pc);
            return NULL;
        }
    }
    for (unsigned i = 0; i < ram->blocks; i++)
        pc->direct[i] = ram_is_direct(&ram->block[i]);
    if (overtaken_init(&pc->overtaken, ram, e) < 0 || xm_tracker_open(&pc->tracker, ram, e) < 0) {
        xm_precopy_free(pc);
        return NULL;
    }
    return pc;
}

void xm_precopy_free(struct xm_precopy *pc)
{
    if (!pc)
        return;
    xm_mailbox_own(&pc->mailbox);
    while (
        !TAILQ_EMPTY(&pc->flight)) /* the transport ends every message sooner or later: that is its promise */
        xm_mailbox_wait(&pc->mailbox, -1);
    xm_tracker_close(pc->tracker);
    overtaken_free(&pc->overtaken);
    for (unsigned i = 0; i < pc->bitmaps; i++)
        xm_bitmap_destroy(&pc->dirty[i]);
    if (pc->slab)
        munmap(pc->slab, (size_t)SLOTS * PAGES_BUFFER);
    xm_mailbox_destroy(&pc->mailbox);
    free(pc);
}
