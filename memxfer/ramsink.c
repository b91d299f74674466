/* SPDX-License-Identifier: MIT */
/* memxfer/ramsink.c: the destination of guest RAM. QEMU there is stopped and not tracked; pages are written
 * behind its back.
 *
 * Happy path of a frame, on the link thread that receives it: its header was judged by check(); when its
 * table has come it is judged as a whole (ramsink_place), and the pages behind it are received where they
 * belong, through our mapping of the RAM; no byte of them is copied again. When all has come and has its
 * hash, zero runs are applied by punching holes, so that memory stays as thin as it was, and the frame
 * counts. (Two processes over a veth pair, pages read with pread at the source: 4.2 to 4.8 GB/s in place, 2.8
 * to 3.4 with a buffer and pwrite; in place without pages populated and mapped ahead it would be 2.2 to 2.5:
 * see populate.c.)
 *
 * Frames of one round concern different pages, so any number of them may be received at once. A link failure
 * makes the other side send frames again; the first copy may turn up before the second, in the middle of it,
 * or much later, and may be half received by a link that has not noticed yet. The first copy that is whole is
 * the one that counts. Never may an old page land on a newer one, or on a VM that runs already:
 *
 * -  who receives into RAM holds the claim on (block, seq), and there is one at most. A copy that begins
 *    meanwhile is received into memory of its own; if it is whole first, it takes the claim away (xm_rx_cut:
 *    the other link writes nothing any more when this returns) and is written from there;
 *
 * -  a frame that is applied, or of an older round than the newest seen, is a duplicate: thrown away as it
 *    comes, and answered only when its first copy has been applied, so that to be answered means to be in
 *    RAM;
 *
 * -  a newer round takes back what is open of older ones, as the digest does with everything; an honest
 *    source has nothing open then, since a round, and the digest, begin when all before is answered. After
 *    the digest no frame is taken any more, unless the source has given that switch-over up (reopen).
 *
 * Pages may be torn: their guest wrote to them between their hash and their sending (pages.h, XM_FLAG_HEAD).
 * The answer tells which; the source sends them again in the next round. They are noted until then, and while
 * there is one the digest is refused: no VM runs on a torn page, whatever its source believes.
 *
 * Failures: a bad table, a sequence number out of the window, a write error: answered with -errno, which ends
 * the migration at the source. A link that dies with a frame half received gives the claim up: those pages
 * are garbage until the frame comes again, which the round at the source waits for. No memory where pages go:
 * the link says so, and the bundle is lost.
 *
 * Lock: one mutex, held for a few instructions per frame, and while a place is taken back (which takes the
 * link's place.lock).
 */
#include "memxfer/populate.h"
#include "memxfer/ram.h"
#include "memxfer/torn.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

/* A frame that is being received, or applied. Belongs to the link thread that has the frame; others change
 * it under the lock. */
struct claim {
    LIST_ENTRY(claim) link; /* while it is held */
    struct xm_rx *rx;
    unsigned block;
    uint64_t seq, round;
    bool held;     /* it has the right to change the pages; else it never had (copy), or it was taken away */
    bool whole;    /* all has come, and is being applied */
    uint8_t *copy; /* of the data, where another one held the claim when it began */
};

struct xm_ramsink {
    struct xm_ram *ram;
    struct populate *populate;
    pthread_mutex_t lock; /* protects all below */
    pthread_cond_t applied;
    LIST_HEAD(, claim) claims;
    uint64_t round;    /* the newest seen */
    bool closed;       /* the digest was asked for */
    uint64_t reopened; /* so often: the switch-over's number, which its digest has */
    struct torn_map torn;
    struct xm_digest digest;
    struct {
        uint64_t low;                         /* all up to this were applied, or are being so */
        uint64_t seen[PAGES_SEQ_WINDOW / 64]; /* ring of those above */
    } block[16];
};

static struct xm_log_limit refused; /* an honest source ends with the first */

static bool seq_seen(const struct xm_ramsink *s, unsigned block, uint64_t seq)
{
    uint64_t bit = seq % PAGES_SEQ_WINDOW, low = s->block[block].low;

    return seq <= low || (seq - low <= PAGES_SEQ_WINDOW && (s->block[block].seen[bit / 64] >> bit % 64 & 1));
}

static void seq_mark(struct xm_ramsink *s, unsigned block, uint64_t seq)
{
    uint64_t *seen = s->block[block].seen, bit = seq % PAGES_SEQ_WINDOW;

    seen[bit / 64] |= 1ull << bit % 64;
    for (;;) {
        bit = (s->block[block].low + 1) % PAGES_SEQ_WINDOW;
        if (!(seen[bit / 64] >> bit % 64 & 1))
            return;
        seen[bit / 64] &= ~(1ull << bit % 64);
        s->block[block].low++;
    }
}

static struct claim *ramsink_claim_of(struct xm_ramsink *s, unsigned block, uint64_t seq)
{
    struct claim *c;

    LIST_FOREACH (c, &s->claims, link) {
        if (c->block == block && c->seq == seq)
            return c;
    }
    return NULL;
}

static void claim_hold(struct xm_ramsink *s, struct claim *c)
{
    c->held = true;
    LIST_INSERT_HEAD(&s->claims, c, link);
}

static void claim_take_away(struct claim *c)
{
    xm_rx_cut(c->rx);
    c->held = false;
    LIST_REMOVE(c, link);
}

/* Takes back what is open of the rounds before this one. */
static void cut_older(struct xm_ramsink *s, uint64_t round)
{
    struct claim *c, *next;

    for (c = LIST_FIRST(&s->claims); c; c = next) {
        next = LIST_NEXT(c, link);
        if (!c->whole && c->round < round)
            claim_take_away(c);
    }
}

static void begin_round(struct xm_ramsink *s, uint64_t round)
{
    if (round > s->round)
        cut_older(s, round);
    s->round = round;
}

static bool is_duplicate(const struct xm_ramsink *s, const struct claim *c)
{
    return seq_seen(s, c->block, c->seq) || c->round < s->round;
}

/* 1: it may be received; 0: a duplicate of what was applied, or is being so; -errno. With the lock held. */
static int judge_order(struct xm_ramsink *s, const struct claim *c, struct xm_error *e)
{
    if (is_duplicate(s, c))
        return 0;
    if (s->closed)
        return xm_error_set(e, EPROTO, "frame %llu of RAM block %u comes after the digest",
                            (unsigned long long)c->seq, c->block);
    if (c->seq - s->block[c->block].low > PAGES_SEQ_WINDOW)
        return xm_error_set(e, EPROTO, "frame %llu of RAM block %u comes too far ahead",
                            (unsigned long long)c->seq, c->block);
    return 1;
}

/* Its data begin to come. As judge_order; 1: into RAM if it is held then, else into a copy. */
static int claim_begin(struct xm_ramsink *s, struct claim *c, struct xm_error *e)
{
    pthread_mutex_lock(&s->lock);
    int r = judge_order(s, c, e);
    if (r > 0) {
        begin_round(s, c->round);
        if (!ramsink_claim_of(s, c->block, c->seq))
            claim_hold(s, c);
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

/* All of it has come. As judge_order; 1: it is the first, and holds the claim until claim_end. (Its data
 * are in place or in its copy then: who lost a place is a duplicate of who took it, or of an older round,
 * or too late.) */
static int claim_whole(struct xm_ramsink *s, struct claim *c, struct xm_error *e)
{
    pthread_mutex_lock(&s->lock);
    int r = judge_order(s, c, e);
    if (r > 0) {
        if (!c->held) {
            struct claim *other = ramsink_claim_of(s, c->block, c->seq);
            if (other)
                claim_take_away(other);
            begin_round(s, c->round);
            claim_hold(s, c);
        }
        c->whole = true;
        seq_mark(s, c->block, c->seq);
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

/* torn: it is applied, and these of its pages are torn; NULL: it is not. */
static void claim_end(struct xm_ramsink *s, struct claim *c, const struct torn *torn)
{
    pthread_mutex_lock(&s->lock);
    if (c->held)
        LIST_REMOVE(c, link);
    if (torn) {
        xm_digest_add(&s->digest, &c->rx->hdr);
        torn_map_note(&s->torn, c->rx, torn);
    }
    pthread_cond_broadcast(&s->applied);
    pthread_mutex_unlock(&s->lock);
    free(c->copy);
}

/* Until the first copy is applied. */
static void wait_applied(struct xm_ramsink *s, unsigned block, uint64_t seq)
{
    struct claim *c;

    pthread_mutex_lock(&s->lock);
    while ((c = ramsink_claim_of(s, block, seq)) && c->whole)
        pthread_cond_wait(&s->applied, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static void apply_zeros(struct xm_ramsink *s, const struct xm_ram_block *b, const struct pages_run *run)
{
    uint64_t offset = run->page << XM_PAGE_SHIFT, len = run->count << XM_PAGE_SHIFT;

    populate_skip(s->populate, (unsigned)(b - s->ram->block), offset, len);
    ram_zero(b, offset, len);
}

/* What is not in place already. */
static int ramsink_apply(struct xm_ramsink *s, const struct xm_rx *rx, const struct claim *c,
                         struct xm_error *e)
{
    const struct xm_ram_block *b = &s->ram->block[rx->hdr.object];
    const uint8_t *data = c->copy ? c->copy : pages_data(&rx->hdr, rx->payload);

    for (unsigned i = 0; i < pages_runs(rx->payload); i++) {
        struct pages_run run = pages_run_at(&rx->hdr, rx->payload, i, &data);
        int r = 0;
        if (run.zero)
            apply_zeros(s, b, &run);
        else if (c->copy)
            r = ram_write(b, run.data, run.page << XM_PAGE_SHIFT, run.count << XM_PAGE_SHIFT);
        if (r < 0)
            return xm_error_errno(e, -r, "cannot write guest RAM %s at page %llu", b->name,
                                  (unsigned long long)run.page);
    }
    return 0;
}

uint64_t xm_ramsink_round(struct xm_ramsink *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t round = s->round;
    pthread_mutex_unlock(&s->lock);
    return round;
}

void xm_ramsink_reopen(struct xm_ramsink *s)
{
    pthread_mutex_lock(&s->lock);
    s->closed = false;
    s->reopened++;
    pthread_cond_broadcast(&s->applied);
    pthread_mutex_unlock(&s->lock);
}

/* An honest source asks for it when no page is torn any more. One that was on its way, or still in its link's
 * thread, when its switch-over was given up closes nothing. */
static void answer_digest(struct xm_ramsink *s, struct xm_rx *rx)
{
    pthread_mutex_lock(&s->lock);
    bool old = rx->hdr.after != s->reopened;
    if (!old) {
        s->closed = true;
        cut_older(s, UINT64_MAX);
    }
    while (!old && !LIST_EMPTY(&s->claims)) {
        pthread_cond_wait(&s->applied, &s->lock);
        old = rx->hdr.after != s->reopened;
    }
    uint64_t wire[3] = {htole64(s->digest.frames), htole64(s->digest.bytes), htole64(s->digest.sum)};
    uint64_t torn = s->torn.pages;
    pthread_mutex_unlock(&s->lock);
    if (old) {
        xm_rx_done(rx, -ECANCELED, NULL, 0);
        return;
    }
    if (torn) {
        xm_log_limited(&refused, XM_LOG_ERROR,
                       "guest RAM: %llu pages are not what their source had, and did not come again",
                       (unsigned long long)torn);
        xm_rx_done(rx, -EBADMSG, NULL, 0);
        return;
    }
    xm_rx_done(rx, 0, wire, sizeof wire);
}

int xm_ramsink_check(struct xm_ramsink *s, const struct xm_frame_hdr *h, struct xm_error *e)
{
    if (h->type == XM_FRAME_RAM_DIGEST)
        return h->length ? xm_error_set(e, EPROTO, "a question for the RAM digest with a payload of %u bytes",
                                        h->length)
                         : 0;
    if (h->type != XM_FRAME_RAM_PAGES)
        return xm_error_set(e, EPROTO, "frame type %u is none of guest RAM's", h->type);
    if (h->object >= s->ram->blocks)
        return xm_error_set(e, EPROTO, "RAM block %u: there are %u", h->object, s->ram->blocks);
    return pages_check_header(h, s->ram->block[h->object].size, e);
}

static uint32_t ramsink_head(void *ctx, const struct xm_frame_hdr *h)
{
    (void)ctx;
    return h->type == XM_FRAME_RAM_PAGES ? pages_head(h) : h->length;
}

/* The header and the table. */
static int ramsink_judge(struct xm_ramsink *s, const struct xm_rx *rx, struct xm_error *e)
{
    int r = xm_ramsink_check(s, &rx->hdr, e);

    return r ? r : pages_check(&rx->hdr, rx->payload, e);
}

static struct claim *claim_new(struct xm_rx *rx)
{
    struct claim *c = calloc(1, sizeof *c);

    if (c)
        *c = (struct claim){.rx = rx, .block = rx->hdr.object, .seq = rx->hdr.seq, .round = rx->hdr.after};
    return c;
}

/* The pieces of RAM that the runs name. */
static unsigned pieces_of(const struct xm_ram_block *b, const struct xm_rx *rx, struct iovec *piece)
{
    const uint8_t *data = pages_data(&rx->hdr, rx->payload);
    unsigned n = 0;

    for (unsigned i = 0; i < pages_runs(rx->payload); i++) {
        struct pages_run run = pages_run_at(&rx->hdr, rx->payload, i, &data);
        if (!run.zero)
            piece[n++] = (struct iovec){b->map + (run.page << XM_PAGE_SHIFT), run.count << XM_PAGE_SHIFT};
    }
    return n;
}

/* What is wrong with a frame, or what it is a duplicate of, is found again and told in frame(), when all
 * of it has come. */
static unsigned ramsink_place(void *ctx, struct xm_rx *rx, struct iovec *piece)
{
    struct xm_ramsink *s = ctx;
    struct xm_error ignored;
    size_t rest = rx->hdr.length - pages_head(&rx->hdr);

    rx->owner = NULL;
    struct claim *c = ramsink_judge(s, rx, &ignored) == 0 ? claim_new(rx) : NULL;
    if (!c)
        return 0;
    if (claim_begin(s, c, &ignored) <= 0 || (!c->held && !(c->copy = malloc(rest)))) {
        free(c);
        return 0;
    }
    rx->owner = c;
    if (c->copy) {
        piece[0] = (struct iovec){c->copy, rest};
        return 1;
    }
    populate_passed(s->populate, rx->hdr.object, rx->hdr.offset);
    return pieces_of(&s->ram->block[rx->hdr.object], rx, piece);
}

static void ramsink_dropped(void *ctx, struct xm_rx *rx)
{
    struct claim *c = rx->owner;

    if (c)
        claim_end(ctx, c, NULL);
    free(c);
}

/* Nothing of the data was kept: that is right for a duplicate only. */
static int judge_unplaced(struct xm_ramsink *s, const struct xm_rx *rx, struct xm_error *e)
{
    struct claim c = {.block = rx->hdr.object, .seq = rx->hdr.seq, .round = rx->hdr.after};
    int r = ramsink_judge(s, rx, e);

    if (r < 0)
        return r;
    pthread_mutex_lock(&s->lock);
    r = judge_order(s, &c, e);
    pthread_mutex_unlock(&s->lock);
    return r > 0 ? xm_error_set(e, ENOMEM, "frame %llu of RAM block %u could not be taken when it came",
                                (unsigned long long)c.seq, c.block)
                 : r;
}

/* All of it has come. 1: applied; 0: a duplicate of what is; -errno. */
static int take_pages(struct xm_ramsink *s, struct xm_rx *rx, struct torn *torn, struct xm_error *e)
{
    bool placed = pages_head(&rx->hdr) < rx->hdr.length; /* ramsink_place() was asked */
    bool hashes = placed && rx->hdr.flags & XM_FLAG_HEAD;
    struct claim *c = placed ? rx->owner : NULL;
    int r = c ? 0 : placed ? judge_unplaced(s, rx, e) : ramsink_judge(s, rx, e);

    if (!placed && !r && !(c = claim_new(rx)))
        r = xm_error_set(e, ENOMEM, "no memory for a frame");
    if (c)
        r = claim_whole(s, c, e);
    if (r == 0)
        wait_applied(s, rx->hdr.object, rx->hdr.seq);
    /* A duplicate is answered by what its first copy has left here. */
    if (r >= 0 && hashes)
        torn_compare(&s->ram->block[rx->hdr.object], rx, c && r > 0 ? c->copy : NULL, torn);
    if (!c)
        return r;
    if (r > 0) {
        int failed = ramsink_apply(s, rx, c, e);
        r = failed < 0 ? failed : r;
    }
    claim_end(s, c, r > 0 ? torn : NULL);
    free(c);
    return r;
}

void xm_ramsink_frame(struct xm_ramsink *s, struct xm_rx *rx)
{
    struct torn torn = {0};
    struct xm_error e = {0};
    unsigned pages = 0;

    if (rx->hdr.type == XM_FRAME_RAM_DIGEST) {
        answer_digest(s, rx);
        return;
    }
    int r = take_pages(s, rx, &torn, &e);
    if (r < 0)
        xm_log_limited(&refused, XM_LOG_ERROR, "guest RAM: %s", e.text);
    else if (torn.pages)
        pages = (rx->hdr.length - pages_head(&rx->hdr)) >> XM_PAGE_SHIFT;
    xm_rx_done(rx, XM_MIN(r, 0), torn.bits, (pages + 7) / 8);
}

struct xm_placer xm_ramsink_placer(struct xm_ramsink *s)
{
    return (struct xm_placer){
        .head = ramsink_head, .place = ramsink_place, .dropped = ramsink_dropped, .ctx = s};
}

void xm_ramsink_populate(struct xm_ramsink *s)
{
    populate_start(s->populate);
}

struct xm_ramsink *xm_ramsink_new(struct xm_ram *ram, struct xm_error *e)
{
    struct xm_ramsink *s = calloc(1, sizeof *s);

    if (!s || torn_map_init(&s->torn, ram) < 0 || !(s->populate = populate_new(ram, POPULATE_AHEAD))) {
        if (s)
            torn_map_free(&s->torn);
        free(s);
        xm_error_set(e, ENOMEM, "no memory to receive guest RAM");
        return NULL;
    }
    s->ram = ram;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->applied, NULL);
    LIST_INIT(&s->claims);
    return s;
}

void xm_ramsink_free(struct xm_ramsink *s)
{
    if (!s)
        return;
    populate_free(s->populate);
    torn_map_free(&s->torn);
    pthread_cond_destroy(&s->applied);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
