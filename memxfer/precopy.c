/* SPDX-License-Identifier: MIT */
/* memxfer/precopy.c: the source of guest RAM: rounds of «collect and re-arm, then read and send».
 *
 * Why nothing is lost: a page is read after the collect that reported it has re-armed it, so a write that
 * comes too late to be read is reported by the next collect. Pages that our own process has written are
 * marked by the driver after the write, and the marks are taken after the tracker's scan and before the
 * reading: the same argument. Round 1 sends everything that the memfd holds and says of all the rest that it
 * reads as zeros. A round begins when all messages of the one before have ended: no page is in flight twice.
 *
 * Pages are read with pread from the memfd and not through our mapping: as fast for runs (10 GB/s where it
 * was measured), and it neither allocates what is not there nor builds page tables of 0.2 % of RAM in our
 * process. What is hashed, counted and sent is that private copy: the guest may go on changing its page.
 *
 * Memory: SLOTS buffers of 260 KiB, and bitmaps that are mapped where they are used.
 *
 * Failures: the first one (of the tracker, of reading, of a message) ends the round with its sentence, and
 * the pre-copy is good for nothing any more but xm_precopy_free, which waits for what the transport still
 * has. An abort likewise.
 */
#include "memxfer/pages.h"
#include "memxfer/tracker.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* How many frames may be under way: NEAR as a rule, since what is read, hashed and sent soon after stays
 * in the cache (two links of a veth pair: 2.2 to 2.8 GB/s with 64 frames, 2.9 to 3.2 with 8 to 32); up to
 * SLOTS where the way is so long that it takes more to keep it busy. */
#define SLOTS        64u
#define SLOTS_NEAR   16u
#define ABORT_LOOK   20           /* ms: how long a wait may overlook an abort */
#define RATE_SAMPLE  (4ull << 20) /* fewer bytes in a round tell little of the wire's rate */
#define WINDOW_SLACK (PAGES_SEQ_WINDOW / 2)

struct slot {
    struct xm_msg msg;
    TAILQ_ENTRY(slot) link; /* in free or in flight */
    struct xm_precopy *pc;
    struct pages_frame frame;
    uint64_t order, since; /* since: when it was submitted */
};
TAILQ_HEAD(slots, slot);

struct xm_precopy {
    struct xm_ram *ram;
    struct xm_tracker *tracker;
    struct xm_transport *transport;
    struct xm_mailbox mailbox;
    uint8_t *slab;
    struct slot slot[SLOTS];
    struct slots free, flight; /* in flight: oldest first */
    unsigned flying, allowed;  /* how many are in flight, and may be */
    uint64_t way_ns;           /* the shortest time from submitting to the answer; 0: none yet */
    uint64_t order;            /* messages submitted so far */
    uint64_t deadline;         /* xm_now() scale; 0: none */
    uint64_t seq[16];          /* per block */
    struct xm_bitmap dirty[16];
    unsigned bitmaps;
    unsigned number; /* of rounds */
    double rate;     /* of the last round that told it */
    struct xm_digest digest;
    struct xm_error error; /* the first failure; for good */
    /* Of the running round: */
    struct xm_round *round;
    struct slot *open; /* being filled, for block open_block */
    unsigned open_block;
    const _Atomic bool *abort;
    uint64_t first_submit;
    atomic_ullong done, of; /* pages */
};

static void pages_answered(struct xm_post *post)
{
    struct slot *s = xm_container_of(xm_container_of(post, struct xm_msg, post), struct slot, msg);
    struct xm_precopy *pc = s->pc;

    TAILQ_REMOVE(&pc->flight, s, link);
    pc->flying--;
    uint64_t took = xm_now() - s->since;
    if (!pc->way_ns || took < pc->way_ns)
        pc->way_ns = took;
    TAILQ_INSERT_HEAD(&pc->free, s, link); /* the one that is still in the cache is used first */
    free(s->msg.reply);
    s->msg.reply = NULL;
    if (s->msg.status < 0) {
        if (!pc->error.code)
            xm_error_errno(&pc->error, -s->msg.status,
                           "pages of RAM block %s were not applied by the other side",
                           pc->ram->block[s->msg.object].name);
        return;
    }
    struct xm_frame_hdr h;
    xm_frame_of_msg(&h, &s->msg, s->msg.wire_id, s->msg.hash);
    xm_digest_add(&pc->digest, &h);
    if (pc->round) {
        pc->round->pages_data += s->frame.data_pages;
        pc->round->pages_zero += s->frame.zero_pages;
        pc->round->wire_bytes += sizeof h + s->msg.length;
    }
    atomic_fetch_add_explicit(&pc->done, s->frame.data_pages + s->frame.zero_pages, memory_order_relaxed);
}

/* 0, or why the round has to end. */
static int precopy_trouble(struct xm_precopy *pc)
{
    if (!pc->error.code && pc->abort && atomic_load_explicit(pc->abort, memory_order_relaxed))
        xm_error_set(&pc->error, ECANCELED, "the migration was aborted");
    if (!pc->error.code && pc->deadline && xm_now() > pc->deadline)
        xm_error_set(&pc->error, ETIMEDOUT, "the destination has not taken all of it in time");
    return -pc->error.code;
}

/* Twice what is under way on a way that is just kept busy: the rate so far, times the way's length. */
static void precopy_allow(struct xm_precopy *pc)
{
    uint64_t elapsed = xm_now() - pc->first_submit;

    if (!pc->first_submit || !elapsed)
        return;
    double rate = (double)pc->round->wire_bytes / (double)elapsed;
    double frames = 2 * rate * (double)pc->way_ns / (PAGES_BATCH * XM_PAGE);
    pc->allowed = (unsigned)XM_MAX(XM_MIN(frames, (double)SLOTS), (double)SLOTS_NEAR);
}

/* A slot to fill. Waits for the oldest message where too much is in flight. NULL: trouble. */
static struct slot *take_slot(struct xm_precopy *pc)
{
    for (;;) {
        if (precopy_trouble(pc) < 0)
            return NULL;
        precopy_allow(pc);
        struct slot *oldest = TAILQ_FIRST(&pc->flight), *s = TAILQ_FIRST(&pc->free);
        if (s && pc->flying < pc->allowed && (!oldest || pc->order - oldest->order < WINDOW_SLACK)) {
            TAILQ_REMOVE(&pc->free, s, link);
            return s;
        }
        xm_mailbox_wait(&pc->mailbox, ABORT_LOOK);
    }
}

static void submit_open(struct xm_precopy *pc)
{
    struct slot *s = pc->open;
    struct xm_msg *m = &s->msg;

    pc->open = NULL;
    if (!s->frame.runs) {
        TAILQ_INSERT_HEAD(&pc->free, s, link);
        return;
    }
    memset(m, 0, sizeof *m);
    m->post.run = pages_answered;
    m->home = &pc->mailbox;
    m->type = XM_FRAME_RAM_PAGES;
    m->object = (uint16_t)pc->open_block;
    m->seq = ++pc->seq[pc->open_block];
    m->after = pc->number;
    pages_end(&s->frame, m);
    s->order = pc->order++;
    s->since = xm_now();
    TAILQ_INSERT_TAIL(&pc->flight, s, link);
    pc->flying++;
    if (!pc->first_submit)
        pc->first_submit = s->since;
    pc->transport->submit(pc->transport, m);
    xm_mailbox_run(&pc->mailbox);
}

/* The frame under work, for this block. */
static int open_frame(struct xm_precopy *pc, unsigned block)
{
    if (pc->open && pc->open_block == block)
        return 0;
    if (pc->open)
        submit_open(pc);
    struct slot *s = take_slot(pc);
    if (!s)
        return -pc->error.code;
    pages_begin(&s->frame, pc->slab + (size_t)(s - pc->slot) * PAGES_BUFFER);
    pc->open = s;
    pc->open_block = block;
    return 0;
}

static int send_zeros(struct xm_precopy *pc, unsigned block, uint64_t page, uint64_t n)
{
    while (n) {
        int r = open_frame(pc, block);
        if (r < 0)
            return r;
        uint64_t took = pages_zero(&pc->open->frame, page, n);
        page += took;
        n -= took;
        if (n)
            submit_open(pc);
    }
    return 0;
}

static int send_pages(struct xm_precopy *pc, unsigned block, uint64_t page, uint64_t n)
{
    while (n) {
        int r = open_frame(pc, block);
        if (r < 0)
            return r;
        struct pages_frame *w = &pc->open->frame;
        unsigned part = (unsigned)XM_MIN(n, pages_room(w, page));
        if (!part) {
            submit_open(pc);
            continue;
        }
        size_t len = (size_t)part * XM_PAGE, got = 0;
        while (got < len) {
            ssize_t k = pread(pc->ram->block[block].memfd, pages_tail(w) + got, len - got,
                              (off_t)((page << XM_PAGE_SHIFT) + got));
            if (k < 0 && errno == EINTR)
                continue;
            if (k <= 0)
                return xm_error_errno(&pc->error, k < 0 ? errno : EIO, "cannot read guest RAM %s",
                                      pc->ram->block[block].name);
            got += (size_t)k;
        }
        pages_put(w, page, part);
        page += part;
        n -= part;
    }
    return 0;
}

/* Round 1: what the memfd holds is data, the rest zeros. */
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
            int r = data > pos ? send_zeros(pc, i, pos >> XM_PAGE_SHIFT, (data - pos) >> XM_PAGE_SHIFT) : 0;
            if (!r && hole > data) {
                pc->round->pages_dirty += (hole - data) >> XM_PAGE_SHIFT;
                r = send_pages(pc, i, data >> XM_PAGE_SHIFT, (hole - data) >> XM_PAGE_SHIFT);
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
            int r = send_pages(pc, i, page, end - page);
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
    return 0;
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

    if (pc->number == 1) {
        of = xm_precopy_total_pages(pc);
    } else {
        for (unsigned i = 0; i < pc->ram->blocks; i++)
            of += xm_bitmap_count(&pc->dirty[i]);
        pc->round->pages_dirty = of;
    }
    atomic_store(&pc->done, 0);
    atomic_store(&pc->of, of);
}

int xm_precopy_round(struct xm_precopy *pc, bool final, const _Atomic bool *abort, struct xm_round *out,
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
    pc->abort = abort;
    pc->first_submit = 0;
    pc->way_ns = 0; /* links may have changed */
    r = precopy_trouble(pc);
    if (!r)
        r = precopy_collect(pc);
    if (!r) {
        begin_progress(pc);
        r = pc->number == 1 ? send_everything(pc) : send_dirty(pc);
    }
    if (pc->open)
        submit_open(pc);
    while (!r && !TAILQ_EMPTY(&pc->flight)) {
        xm_mailbox_wait(&pc->mailbox, ABORT_LOOK);
        r = precopy_trouble(pc);
    }
    r = r ? r : precopy_trouble(pc);
    pc->round = NULL;
    pc->abort = NULL;
    uint64_t end = xm_now();
    round.ns = end - start;
    if (pc->first_submit && end > pc->first_submit && (round.wire_bytes >= RATE_SAMPLE || !(pc->rate > 0)))
        pc->rate = (double)round.wire_bytes * 1e9 / (double)(end - pc->first_submit);
    round.rate = pc->rate;
    if (out)
        *out = round;
    if (r < 0) {
        if (e)
            *e = pc->error;
        xm_error_prefix(e, "memory round %u", round.number);
    } else {
        xm_log(XM_LOG_DEBUG,
               "memory round %u%s: %llu pages dirty, %llu data, %llu zero, %llu wire bytes in %s",
               round.number, final ? " (final)" : "", (unsigned long long)round.pages_dirty,
               (unsigned long long)round.pages_data, (unsigned long long)round.pages_zero,
               (unsigned long long)round.wire_bytes, xm_format_time(round.ns).s);
    }
    return r;
}

void xm_precopy_deadline(struct xm_precopy *pc, uint64_t deadline)
{
    pc->deadline = deadline;
}

int xm_precopy_peek(struct xm_precopy *pc, uint64_t *pages, struct xm_error *e)
{
    if (pc->number == 0) {
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
    if (xm_tracker_open(&pc->tracker, ram, e) < 0) {
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
    for (unsigned i = 0; i < pc->bitmaps; i++)
        xm_bitmap_destroy(&pc->dirty[i]);
    if (pc->slab)
        munmap(pc->slab, (size_t)SLOTS * PAGES_BUFFER);
    xm_mailbox_destroy(&pc->mailbox);
    free(pc);
}
