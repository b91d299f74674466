/* memxfer/ramsink.c: the destination of guest RAM. QEMU there is stopped and not tracked; pages are written
 * behind its back.
 *
 * Happy path of a frame, on the link thread that receives it: its header was judged by check(); when its table has come it is
 * judged as a whole (place), and the pages behind it are received where they belong, through our mapping of the RAM; no byte of
 * them is copied again. When all has come and has its hash, zero runs are applied by punching holes, so that memory stays as
 * thin as it was, and the frame counts. (Two processes over a veth pair, pages read with pread at the source: 4.2 to 4.8 GB/s
 * in place, 2.8 to 3.4 with a buffer and pwrite; in place without pages populated and mapped ahead it would be 2.2 to 2.5:
 * see populate.c.)
 *
 * Frames of one round concern different pages, so any number of them may be received at once. A link failure makes the other
 * side send frames again, and the first copy may turn up much later, or be half received by a link that has not noticed yet.
 * Never may an old page land on a newer one, or on a VM that runs already:
 *
 * -  who receives into RAM holds the claim on (block, seq), and there is one at most. A frame that comes again takes an open
 *    claim away from the link that has it (xm_rx_cut: that link writes nothing any more when this returns): the sender repeats
 *    a frame only when it has given the first link up;
 *
 * -  a frame that is applied, or of an older round than the newest seen, is a duplicate: thrown away as it comes, and answered
 *    only when its first copy has been applied, so that to be answered means to be in RAM;
 *
 * -  a round begins when all of the one before is answered, so a claim that is still open then is a duplicate's: it is cut.
 *    The digest cuts all, and waits until nothing is being applied.
 *
 * Failures: a bad table, a sequence number out of the window, an error while holes are punched: answered with -errno, which ends
 * the migration at the source. A link that dies with a frame half received gives the claim up: those pages are garbage until
 * the frame comes again, which the round at the source waits for. A frame that lost its claim is answered with -ESTALE, which
 * nobody hears: its link was given up.
 *
 * Lock: one mutex, held for a few instructions per frame, and while a place is taken back.
 */
#include "memxfer/pages.h"
#include "memxfer/populate.h"

#include <endian.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The right to change the pages of one frame. Belongs to the link thread that has the frame; others change it under the lock. */
struct claim {
    LIST_ENTRY(claim) link; /* while it is not lost */
    struct xm_rx *rx;
    unsigned block;
    uint64_t seq, round;
    bool whole,
        lost; /* whole: all has come, and is being applied; lost: another one has it, or it is too old */
};

struct xm_ramsink {
    struct xm_ram *ram;
    struct populate *populate;
    pthread_mutex_t lock; /* protects all below */
    pthread_cond_t applied;
    LIST_HEAD(, claim) claims;
    uint64_t round; /* the newest seen */
    struct xm_digest digest;
    struct {
        uint64_t low;                         /* all up to this were applied, or are being so */
        uint64_t seen[PAGES_SEQ_WINDOW / 64]; /* ring of those above */
    } block[16];
};

static bool seq_seen(const struct xm_ramsink *s, unsigned block, uint64_t seq)
{
    uint64_t bit = seq % PAGES_SEQ_WINDOW;

    return seq <= s->block[block].low || (s->block[block].seen[bit / 64] >> bit % 64 & 1);
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

static struct claim *claim_of(struct xm_ramsink *s, unsigned block, uint64_t seq)
{
    struct claim *c;

    LIST_FOREACH (c, &s->claims, link) {
        if (c->block == block && c->seq == seq)
            return c;
    }
    return NULL;
}

static void claim_lose(struct claim *c)
{
    xm_rx_cut(c->rx);
    c->lost = true;
    LIST_REMOVE(c, link);
}

/* Takes back what is open of the rounds before this one. */
static void cut_older(struct xm_ramsink *s, uint64_t round)
{
    struct claim *c, *next;

    for (c = LIST_FIRST(&s->claims); c; c = next) {
        next = LIST_NEXT(c, link);
        if (!c->whole && c->round < round)
            claim_lose(c);
    }
}

static bool is_duplicate(const struct xm_ramsink *s, unsigned block, uint64_t seq, uint64_t round)
{
    return seq_seen(s, block, seq) || round < s->round;
}

/* 1: the claim is ours; 0: a duplicate of what was applied, or is being so; -errno. */
static int claim_take(struct xm_ramsink *s, struct claim *c, struct xm_error *e)
{
    int r = 0;

    pthread_mutex_lock(&s->lock);
    if (is_duplicate(s, c->block, c->seq, c->round)) {
        r = 0;
    } else if (c->seq - s->block[c->block].low > PAGES_SEQ_WINDOW) {
        r = xm_error_set(e, EPROTO, "frame %llu of RAM block %u comes too far ahead",
                         (unsigned long long)c->seq, c->block);
    } else {
        struct claim *other = claim_of(s, c->block, c->seq);
        if (other)
            claim_lose(other);
        if (c->round > s->round)
            cut_older(s, c->round);
        s->round = c->round;
        if (c->whole)
            seq_mark(s, c->block, c->seq);
        LIST_INSERT_HEAD(&s->claims, c, link);
        r = 1;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

/* All of the frame has come: from here on it counts as seen. False: the claim was lost meanwhile. */
static bool claim_whole(struct xm_ramsink *s, struct claim *c)
{
    pthread_mutex_lock(&s->lock);
    bool ours = !c->lost;
    if (ours && !c->whole) {
        c->whole = true;
        seq_mark(s, c->block, c->seq);
    }
    pthread_mutex_unlock(&s->lock);
    return ours;
}

/* h: it is applied; NULL: it is not. */
static void claim_end(struct xm_ramsink *s, struct claim *c, const struct xm_frame_hdr *h)
{
    pthread_mutex_lock(&s->lock);
    if (!c->lost)
        LIST_REMOVE(c, link);
    if (h)
        xm_digest_add(&s->digest, h);
    pthread_cond_broadcast(&s->applied);
    pthread_mutex_unlock(&s->lock);
}

/* Until the first copy is applied. */
static void wait_applied(struct xm_ramsink *s, unsigned block, uint64_t seq)
{
    struct claim *c;

    pthread_mutex_lock(&s->lock);
    while ((c = claim_of(s, block, seq)) && c->whole)
        pthread_cond_wait(&s->applied, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

/* For files that cannot punch single pages (huge pages): zeros over what is there. */
static void write_zeros(const struct xm_ram_block *b, uint64_t offset, uint64_t len)
{
    for (uint64_t end = offset + len; offset < end;) {
        off_t data = lseek(b->memfd, (off_t)offset, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return;
        if (data >= 0)
            offset = XM_MAX(offset, (uint64_t)data);
        if (offset >= end)
            return;
        uint64_t part = XM_MIN(end - offset, 65536ull);
        memset(b->map + offset, 0, part);
        offset += part;
    }
}

static void apply_zeros(struct xm_ramsink *s, const struct xm_ram_block *b, const struct pages_run *run)
{
    uint64_t offset = run->page << XM_PAGE_SHIFT, len = run->count << XM_PAGE_SHIFT;

    populate_skip(s->populate, (unsigned)(b - s->ram->block), offset, len);
    while (fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len) < 0) {
        if (errno != EINTR) {
            write_zeros(b, offset, len);
            return;
        }
    }
}

/* What is not received in place. */
static void apply(struct xm_ramsink *s, const struct xm_rx *rx)
{
    const struct xm_ram_block *b = &s->ram->block[rx->hdr.object];
    const uint8_t *data = pages_data(rx->payload);

    for (unsigned i = 0; i < pages_runs(rx->payload); i++) {
        struct pages_run run = pages_run_at(&rx->hdr, rx->payload, i, &data);
        if (run.zero)
            apply_zeros(s, b, &run);
    }
}

static void answer_digest(struct xm_ramsink *s, struct xm_rx *rx)
{
    pthread_mutex_lock(&s->lock);
    cut_older(s, UINT64_MAX);
    while (!LIST_EMPTY(&s->claims))
        pthread_cond_wait(&s->applied, &s->lock);
    uint64_t wire[3] = {htole64(s->digest.frames), htole64(s->digest.bytes), htole64(s->digest.sum)};
    pthread_mutex_unlock(&s->lock);
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

static uint32_t head(void *ctx, const struct xm_frame_hdr *h)
{
    (void)ctx;
    return h->type == XM_FRAME_RAM_PAGES ? pages_head(h) : h->length;
}

static int judge(struct xm_ramsink *s, const struct xm_rx *rx, struct xm_error *e)
{
    int r = xm_ramsink_check(s, &rx->hdr, e);

    return r ? r : pages_check(&rx->hdr, rx->payload, e);
}

/* Judges the table and takes the claim. 1: rx->owner has it; 0: a duplicate; -errno. whole: nothing more is to come. */
static int admit(struct xm_ramsink *s, struct xm_rx *rx, bool whole, struct xm_error *e)
{
    int r = judge(s, rx, e);

    rx->owner = NULL;
    if (r < 0)
        return r;
    struct claim *c = calloc(1, sizeof *c);
    if (!c)
        return xm_error_set(e, ENOMEM, "no memory for a frame");
    *c = (struct claim){
        .rx = rx, .block = rx->hdr.object, .seq = rx->hdr.seq, .round = rx->hdr.after, .whole = whole};
    r = claim_take(s, c, e);
    if (r > 0)
        rx->owner = c;
    else
        free(c);
    return r;
}

/* What is wrong with a frame is said in frame(), when all of it has come. */
static unsigned place(void *ctx, struct xm_rx *rx, struct iovec *piece)
{
    struct xm_ramsink *s = ctx;
    struct xm_error ignored;
    unsigned n = 0;

    if (admit(s, rx, false, &ignored) <= 0)
        return 0;
    const struct xm_ram_block *b = &s->ram->block[rx->hdr.object];
    const uint8_t *data = pages_data(rx->payload);
    for (unsigned i = 0; i < pages_runs(rx->payload); i++) {
        struct pages_run run = pages_run_at(&rx->hdr, rx->payload, i, &data);
        if (!run.zero)
            piece[n++] = (struct iovec){b->map + (run.page << XM_PAGE_SHIFT), run.count << XM_PAGE_SHIFT};
    }
    populate_passed(s->populate, rx->hdr.object, rx->hdr.offset);
    return n;
}

/* Why a frame got no place: 0: it is a duplicate; -errno. */
static int why_not(struct xm_ramsink *s, const struct xm_rx *rx, struct xm_error *e)
{
    int r = judge(s, rx, e);

    if (r < 0)
        return r;
    pthread_mutex_lock(&s->lock);
    bool duplicate = is_duplicate(s, rx->hdr.object, rx->hdr.seq, rx->hdr.after);
    pthread_mutex_unlock(&s->lock);
    return duplicate ? 0
                     : xm_error_set(e, EPROTO, "frame %llu of RAM block %u came too far ahead",
                                    (unsigned long long)rx->hdr.seq, rx->hdr.object);
}

static void dropped(void *ctx, struct xm_rx *rx)
{
    struct claim *c = rx->owner;

    if (c)
        claim_end(ctx, c, NULL);
    free(c);
}

/* All of it has come. 1: applied; 0: a duplicate of what is; -errno. */
static int take_pages(struct xm_ramsink *s, struct xm_rx *rx, struct xm_error *e)
{
    int r;

    if (pages_head(&rx->hdr) == rx->hdr.length) /* place() was not asked */
        r = admit(s, rx, true, e);
    else
        r = rx->owner ? 1 : why_not(s, rx, e);
    if (r == 0)
        wait_applied(s, rx->hdr.object, rx->hdr.seq);
    struct claim *c = r > 0 ? rx->owner : NULL;
    if (!c)
        return r;
    if (claim_whole(s, c))
        apply(s, rx);
    else
        r = -ESTALE;
    claim_end(s, c, r > 0 ? &rx->hdr : NULL);
    free(c);
    return r;
}

void xm_ramsink_frame(struct xm_ramsink *s, struct xm_rx *rx)
{
    struct xm_error e = {0};

    if (rx->hdr.type == XM_FRAME_RAM_DIGEST) {
        answer_digest(s, rx);
        return;
    }
    int r = take_pages(s, rx, &e);
    if (r == -ESTALE)
        xm_log(XM_LOG_DEBUG, "guest RAM: frame %llu came by another link meanwhile",
               (unsigned long long)rx->hdr.seq);
    else if (r < 0)
        xm_log(XM_LOG_ERROR, "guest RAM: %s", e.text);
    xm_rx_done(rx, XM_MIN(r, 0), NULL, 0);
}

struct xm_placer xm_ramsink_placer(struct xm_ramsink *s)
{
    return (struct xm_placer){.head = head, .place = place, .dropped = dropped, .ctx = s};
}

void xm_ramsink_populate(struct xm_ramsink *s)
{
    populate_start(s->populate);
}

struct xm_ramsink *xm_ramsink_new(struct xm_ram *ram, struct xm_error *e)
{
    struct xm_ramsink *s = calloc(1, sizeof *s);

    if (s && !(s->populate = populate_new(ram, POPULATE_AHEAD))) {
        free(s);
        s = NULL;
    }
    if (!s) {
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
    pthread_cond_destroy(&s->applied);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
