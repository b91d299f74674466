/* SPDX-License-Identifier: MIT */
/* memxfer/pages.c: writing and judging RAM_PAGES payloads; pages.h has the format. */
#include "memxfer/pages.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#define HEAD 8u /* bytes before the runs */

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

static void put32(uint8_t *p, uint32_t v)
{
    v = htole32(v);
    memcpy(p, &v, sizeof v);
}

static uint64_t get64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
    return le64toh(v);
}

static void put64(uint8_t *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, sizeof v);
}

static size_t table_bytes(unsigned runs, unsigned hashes)
{
    return XM_ROUND_UP(HEAD + 8u * ((size_t)runs + hashes), 64);
}

/* Most pages with data differ from zero in their first bytes, so this seldom reads far. */
bool pages_all_zero(const uint8_t *page)
{
    for (unsigned i = 0; i < XM_PAGE; i += 64) {
        uint64_t w[8];
        memcpy(w, page + i, sizeof w);
        if (w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7])
            return false;
    }
    return true;
}

void pages_begin(struct pages_frame *w, uint8_t *buf)
{
    w->buf = buf;
    w->runs = w->data = w->pieces = 0;
    w->base = w->data_pages = w->zero_pages = 0;
    w->direct = false;
}

void pages_begin_direct(struct pages_frame *w, uint8_t *buf)
{
    pages_begin(w, buf);
    w->direct = true;
}

/* A table has room for so many runs: beside the hashes of a batch where there are some. */
static unsigned runs_max(const struct pages_frame *w)
{
    return w->direct ? PAGES_RUNS_MAX - PAGES_BATCH : PAGES_RUNS_MAX;
}

uint8_t *pages_tail(struct pages_frame *w)
{
    return w->buf + PAGES_TABLE_MAX + (size_t)w->data * XM_PAGE;
}

unsigned pages_room(const struct pages_frame *w, uint64_t page)
{
    /* In the worst case each page is a run. */
    if (w->runs && page - w->base > UINT32_MAX - PAGES_BATCH)
        return 0;
    return XM_MIN(PAGES_BATCH - w->data, runs_max(w) - w->runs);
}

/* Appends to the last run or begins one. The caller knows that there is room. */
static void pages_append(struct pages_frame *w, uint64_t page, uint32_t n, uint32_t zero)
{
    if (!w->runs)
        w->base = page;
    uint32_t first = (uint32_t)(page - w->base);
    if (w->runs) {
        uint32_t last = w->run[w->runs - 1].count, have = last & PAGES_COUNT_MAX;
        if ((last & PAGES_ZERO) == zero && (uint64_t)w->run[w->runs - 1].first + have == first &&
            n <= PAGES_COUNT_MAX - have) {
            w->run[w->runs - 1].count += n;
            return;
        }
    }
    assert(w->runs < runs_max(w));
    w->run[w->runs].first = first;
    w->run[w->runs].count = n | zero;
    w->runs++;
}

void pages_put(struct pages_frame *w, uint64_t page, unsigned n)
{
    const uint8_t *from = pages_tail(w);

    for (unsigned i = 0; i < n; i++, from += XM_PAGE) {
        if (pages_all_zero(from)) {
            pages_append(w, page + i, 1, PAGES_ZERO);
            w->zero_pages++;
            continue;
        }
        pages_append(w, page + i, 1, 0);
        if (from != pages_tail(w)) /* a zero page before it has left a gap */
            memcpy(pages_tail(w), from, XM_PAGE);
        w->data++;
        w->data_pages++;
    }
}

/* A page of memory that the hardware has lost (an uncorrectable error) is a SIGBUS at our touch. */
static __thread sigjmp_buf *touching; /* NULL: this thread touches none */

static void on_lost_page(int sig)
{
    if (touching)
        siglongjmp(*touching, 1);
    signal(sig, SIG_DFL); /* the access is made again, and ends us */
}

static void watch_lost_pages(void)
{
    struct sigaction a = {.sa_handler = on_lost_page, .sa_flags = SA_NODEFER};

    sigaction(SIGBUS, &a, NULL);
}

static void point_all(struct pages_frame *w, uint64_t page, unsigned n, uint8_t *from, const uint8_t *there)
{
    for (unsigned i = 0; i < n; i++, from += XM_PAGE) {
        if ((there && !there[i]) || pages_all_zero(from)) {
            pages_append(w, page + i, 1, PAGES_ZERO);
            w->zero_pages++;
            continue;
        }
        pages_append(w, page + i, 1, 0);
        struct iovec *last = w->pieces ? &w->piece[w->pieces - 1] : NULL;
        if (last && (uint8_t *)last->iov_base + last->iov_len == from)
            last->iov_len += XM_PAGE;
        else
            w->piece[w->pieces++] = (struct iovec){from, XM_PAGE};
        w->data++;
        w->data_pages++;
    }
}

int pages_point(struct pages_frame *w, uint64_t page, unsigned n, uint8_t *from, const uint8_t *there)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    sigjmp_buf env;

    pthread_once(&once, watch_lost_pages);
    if (sigsetjmp(env, 0)) {
        touching = NULL;
        return -EIO;
    }
    touching = &env;
    point_all(w, page, n, from, there);
    touching = NULL;
    return 0;
}

uint64_t pages_nth(const struct pages_frame *w, unsigned i)
{
    for (unsigned r = 0; r < w->runs; r++) {
        if (w->run[r].count & PAGES_ZERO)
            continue;
        if (i < w->run[r].count)
            return w->base + w->run[r].first + i;
        i -= w->run[r].count;
    }
    assert(false); /* a page of data that the frame does not have */
    return 0;
}

uint64_t pages_zero(struct pages_frame *w, uint64_t page, uint64_t n)
{
    uint64_t took = 0;

    while (took < n && w->runs < runs_max(w)) {
        uint64_t reach = w->runs ? page + took - w->base : 0;
        if (reach >= UINT32_MAX - PAGES_COUNT_MAX)
            break;
        uint32_t part = (uint32_t)XM_MIN(n - took, PAGES_COUNT_MAX);
        pages_append(w, page + took, part, PAGES_ZERO);
        took += part;
    }
    w->zero_pages += took;
    return took;
}

/* The hash of each page, when the frame is about to be sent. The guest may write to it at the same time:
 * then it is the hash of nothing, and the page is sent again. */
static void pages_hash(struct xm_msg *m)
{
    uint8_t *table = (uint8_t *)(uintptr_t)m->payload, *at = table + HEAD + 8 * (size_t)get32(table);

    for (unsigned i = 0; i < m->pieces; i++) {
        const uint8_t *page = m->piece[i].iov_base, *end = page + m->piece[i].iov_len;
        for (; page < end; page += XM_PAGE, at += 8)
            put64(at, xm_hash(page, XM_PAGE));
    }
}

void pages_end(struct pages_frame *w, struct xm_msg *m)
{
    size_t table = table_bytes(w->runs, w->direct ? w->data : 0);
    uint8_t *p = w->buf + PAGES_TABLE_MAX - table;

    assert(w->runs > 0 && table <= PAGES_TABLE_MAX);
    memset(p + table - 64, 0, 64);
    put32(p, w->runs);
    put32(p + 4, w->data);
    for (unsigned i = 0; i < w->runs; i++) {
        put32(p + HEAD + 8 * i, w->run[i].first);
        put32(p + HEAD + 8 * i + 4, w->run[i].count);
    }
    uint64_t end = (uint64_t)w->run[w->runs - 1].first + (w->run[w->runs - 1].count & PAGES_COUNT_MAX);
    m->payload = p;
    m->length = (uint32_t)(table + (size_t)w->data * XM_PAGE);
    m->offset = w->base << XM_PAGE_SHIFT;
    m->extent = end << XM_PAGE_SHIFT;
    if (!w->direct || !w->data)
        return;
    m->flags |= XM_FLAG_HEAD;
    m->piece = w->piece;
    m->pieces = w->pieces;
    m->apart = w->data * XM_PAGE;
    m->complete = pages_hash;
}

uint32_t pages_head(const struct xm_frame_hdr *h)
{
    return h->length < 64 ? h->length : (h->length - 64) % XM_PAGE + 64;
}

int pages_check_header(const struct xm_frame_hdr *h, uint64_t block_bytes, struct xm_error *e)
{
    if (h->offset % XM_PAGE || h->extent % XM_PAGE || !h->extent || h->offset > block_bytes ||
        h->extent > block_bytes - h->offset)
        return xm_error_set(e, EPROTO, "RAM pages at %llu+%llu do not lie in block %u of %llu bytes",
                            (unsigned long long)h->offset, (unsigned long long)h->extent, h->object,
                            (unsigned long long)block_bytes);
    if (h->length < 64 || h->length > XM_PAYLOAD_MAX)
        return xm_error_set(e, EPROTO, "RAM pages with a payload of %u bytes", h->length);
    if (!h->seq || !h->after || h->after > UINT32_MAX)
        return xm_error_set(e, EPROTO, "RAM pages without a number or a round");
    return 0;
}

int pages_check(const struct xm_frame_hdr *h, const uint8_t *payload, struct xm_error *e)
{
    uint32_t runs = get32(payload), pages = get32(payload + 4);

    if (!runs || runs > PAGES_RUNS_MAX || pages > PAGES_DATA_MAX)
        return xm_error_set(e, EPROTO, "a table of %u runs with %u pages", runs, pages);
    bool hashes = h->flags & XM_FLAG_HEAD;
    size_t table = table_bytes(runs, hashes ? pages : 0);
    if (table > PAGES_TABLE_MAX || h->length != table + (size_t)pages * XM_PAGE)
        return xm_error_set(e, EPROTO, "a table of %u runs with %u pages in %u bytes", runs, pages,
                            h->length);
    uint64_t extent = h->extent >> XM_PAGE_SHIFT, at = 0, data = 0;
    for (unsigned i = 0; i < runs; i++) {
        uint64_t first = get32(payload + HEAD + 8 * i);
        uint32_t flags = get32(payload + HEAD + 8 * i + 4);
        uint64_t count = flags & PAGES_COUNT_MAX;
        if (!count || first < at || first + count > extent || (i == 0 && first != 0))
            return xm_error_set(e, EPROTO, "run %u of a table of RAM pages lies wrong", i);
        at = first + count;
        if (!(flags & PAGES_ZERO))
            data += count;
    }
    if (at != extent || data != pages)
        return xm_error_set(e, EPROTO, "a table of RAM pages does not add up");
    for (size_t i = HEAD + 8 * ((size_t)runs + (hashes ? pages : 0)); i < table; i++) {
        if (payload[i])
            return xm_error_set(e, EPROTO, "a table of RAM pages is followed by bytes of no meaning");
    }
    return 0;
}

unsigned pages_runs(const uint8_t *payload)
{
    return get32(payload);
}

const uint8_t *pages_data(const struct xm_frame_hdr *h, const uint8_t *payload)
{
    return payload + table_bytes(get32(payload), h->flags & XM_FLAG_HEAD ? get32(payload + 4) : 0);
}

bool pages_is(const uint8_t *payload, unsigned i, const uint8_t *page)
{
    return get64(payload + HEAD + 8 * ((size_t)get32(payload) + i)) == xm_hash(page, XM_PAGE);
}

struct pages_run pages_run_at(const struct xm_frame_hdr *h, const uint8_t *payload, unsigned i,
                              const uint8_t **data)
{
    uint32_t flags = get32(payload + HEAD + 8 * i + 4);
    struct pages_run run = {
        .page = (h->offset >> XM_PAGE_SHIFT) + get32(payload + HEAD + 8 * i),
        .count = flags & PAGES_COUNT_MAX,
        .zero = flags & PAGES_ZERO,
    };

    if (!run.zero) {
        run.data = *data;
        *data += run.count << XM_PAGE_SHIFT;
    }
    return run;
}
