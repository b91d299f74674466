/* memxfer/ramsink.c: the destination of guest RAM. QEMU there is stopped and not tracked; pages are written
 * behind its back.
 *
 * Happy path of a frame, on the link thread that received it: its header was judged by check(), the payload's
 * table is judged here as a whole, then its runs are written: data with pwrite to the memfd (about a third of
 * the cost of touching fresh pages through a mapping, and no page tables of ours), zeros by punching holes,
 * so that memory stays as thin as it was.
 *
 * Frames of one round concern different pages, so any number of them may be applied at once. A link failure
 * makes the other side send frames again, and the first copy may turn up much later. Never may an old page
 * land on a newer one, or on a VM that runs already:
 *
 * -  a frame whose (block, seq) was seen before is a duplicate: not applied, and answered only when the first
 *    copy has been applied, so that to be answered means to be in RAM;
 *
 * -  a frame of an older round than the newest seen is one too, since a round begins when the one before is
 *    settled;
 *
 * -  the digest waits until nothing is being applied.
 *
 * Failures: a bad table, a sequence number out of the window, a write error: answered with -errno, which ends
 * the migration at the source; nothing of that frame but what was written before the error has changed.
 *
 * Lock: one mutex, held for a few instructions per frame.
 */
#include "memxfer/pages.h"
#include "memxfer/populate.h"

#include <endian.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A frame that is being applied, on its link thread's stack. */
struct applying {
    LIST_ENTRY(applying) link;
    unsigned block;
    uint64_t seq, round;
};

struct xm_ramsink {
    struct xm_ram *ram;
    struct populate *populate;
    pthread_mutex_t lock; /* protects all below */
    pthread_cond_t applied;
    LIST_HEAD(, applying) applying;
    uint64_t round; /* the newest seen */
    struct xm_digest digest;
    struct {
        uint64_t low;                         /* all up to this were seen */
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

static bool applies(const struct xm_ramsink *s, unsigned block, uint64_t seq)
{
    const struct applying *a;

    LIST_FOREACH (a, &s->applying, link) {
        if (a->block == block && a->seq == seq)
            return true;
    }
    return false;
}

/* 1: apply it, and `a` is in the list; 0: a duplicate whose first copy has been applied; -errno. */
static int begin(struct xm_ramsink *s, struct applying *a, struct xm_error *e)
{
    int r = 0;

    pthread_mutex_lock(&s->lock);
    if (seq_seen(s, a->block, a->seq) || a->round < s->round) {
        while (applies(s, a->block, a->seq))
            pthread_cond_wait(&s->applied, &s->lock);
    } else if (a->seq - s->block[a->block].low > PAGES_SEQ_WINDOW) {
        r = xm_error_set(e, EPROTO, "frame %llu of RAM block %u comes too far ahead",
                         (unsigned long long)a->seq, a->block);
    } else {
        seq_mark(s, a->block, a->seq);
        s->round = a->round;
        LIST_INSERT_HEAD(&s->applying, a, link);
        r = 1;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

static void end(struct xm_ramsink *s, struct applying *a, const struct xm_frame_hdr *h, int status)
{
    pthread_mutex_lock(&s->lock);
    LIST_REMOVE(a, link);
    if (!status)
        xm_digest_add(&s->digest, h);
    pthread_cond_broadcast(&s->applied);
    pthread_mutex_unlock(&s->lock);
}

static int write_all(const struct xm_ram_block *b, const uint8_t *data, uint64_t offset, uint64_t len)
{
    while (len) {
        ssize_t n = pwrite(b->memfd, data, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        offset += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

/* For files that cannot punch single pages (huge pages): zeros over what is there. */
static int write_zeros(const struct xm_ram_block *b, uint64_t offset, uint64_t len)
{
    static const uint8_t zeros[65536];

    for (uint64_t end_at = offset + len; offset < end_at;) {
        off_t data = lseek(b->memfd, (off_t)offset, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0;
        if (data >= 0)
            offset = XM_MAX(offset, (uint64_t)data);
        if (offset >= end_at)
            return 0;
        uint64_t part = XM_MIN(end_at - offset, sizeof zeros);
        int r = write_all(b, zeros, offset, part);
        if (r < 0) { /* hugetlbfs has no write() */
            memset(b->map + offset, 0, part);
        }
        offset += part;
    }
    return 0;
}

static int apply_run(struct xm_ramsink *s, const struct xm_ram_block *b, const struct pages_run *run)
{
    uint64_t offset = run->page << XM_PAGE_SHIFT, len = run->count << XM_PAGE_SHIFT;

    if (!run->zero) {
        int r = write_all(b, run->data, offset, len);
        if (r == -EINVAL || r == -EOPNOTSUPP) { /* hugetlbfs has no write() */
            memcpy(b->map + offset, run->data, len);
            r = 0;
        }
        return r;
    }
    populate_skip(s->populate, (unsigned)(b - s->ram->block), offset, len);
    while (fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len) < 0) {
        if (errno != EINTR)
            return write_zeros(b, offset, len);
    }
    return 0;
}

static int apply(struct xm_ramsink *s, const struct xm_rx *rx, struct xm_error *e)
{
    const struct xm_ram_block *b = &s->ram->block[rx->hdr.object];
    const uint8_t *data = pages_data(rx->payload);

    for (unsigned i = 0; i < pages_runs(rx->payload); i++) {
        struct pages_run run = pages_run_at(&rx->hdr, rx->payload, i, &data);
        int r = apply_run(s, b, &run);
        if (r < 0)
            return xm_error_errno(e, -r, "cannot write guest RAM %s at page %llu", b->name,
                                  (unsigned long long)run.page);
    }
    return 0;
}

static void answer_digest(struct xm_ramsink *s, struct xm_rx *rx)
{
    pthread_mutex_lock(&s->lock);
    while (!LIST_EMPTY(&s->applying))
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

void xm_ramsink_frame(struct xm_ramsink *s, struct xm_rx *rx)
{
    struct xm_error e = {0};
    int r = xm_ramsink_check(s, &rx->hdr, &e);

    if (!r && rx->hdr.type == XM_FRAME_RAM_DIGEST) {
        answer_digest(s, rx);
        return;
    }
    if (!r)
        r = pages_check(&rx->hdr, rx->payload, &e);
    if (!r) {
        struct applying a = {.block = rx->hdr.object, .seq = rx->hdr.seq, .round = rx->hdr.after};
        r = begin(s, &a, &e);
        if (r > 0) {
            r = apply(s, rx, &e);
            end(s, &a, &rx->hdr, r);
        }
    }
    if (r < 0)
        xm_log(XM_LOG_ERROR, "guest RAM: %s", e.text);
    xm_rx_done(rx, r, NULL, 0);
}

void xm_ramsink_populate(struct xm_ramsink *s)
{
    populate_start(s->populate);
}

struct xm_ramsink *xm_ramsink_new(struct xm_ram *ram, struct xm_error *e)
{
    struct xm_ramsink *s = calloc(1, sizeof *s);

    if (s && !(s->populate = populate_new(ram))) {
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
    LIST_INIT(&s->applying);
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
