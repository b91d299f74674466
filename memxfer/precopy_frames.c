/* SPDX-License-Identifier: MIT */
/* memxfer/precopy_frames.c: the frames of a round: filled, sent, answered.
 *
 * Two kinds of frames. A direct one has its pages sent from where they lie, in our mapping of guest RAM, by
 * the link that takes it, hashed just before; a page that the guest changes meanwhile arrives otherwise than
 * it was hashed, which the other side tells (overtaken.h). The other kind has private copies, made with
 * pread: for memory that we may not map safely (ram_is_direct), and for a peer that knows no direct frames.
 *
 * A read through the mapping allocates what is not there: so nothing is read there that the memfd says is a
 * hole. (One that is punched at that moment comes back as a page of zeros: it costs memory, no more.) Page
 * tables take 0.2 % of what is read: see precopy.c for when they are given back.
 */
#include "memxfer/precopy.h"
#include "memxfer/ram.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The other side tells which pages of the frame do not have their hash. */
static void pages_overtaken(struct xm_precopy *pc, const struct slot *s)
{
    const struct xm_msg *m = &s->msg;
    const char *name = pc->ram->block[m->object].name;
    const uint8_t *bits = m->reply;
    unsigned n = 0;
    uint64_t first = 0;

    if (!(m->flags & XM_FLAG_HEAD) || m->reply_len != (s->frame.data + 7) / 8) {
        pc->late = false;
        xm_error_set(&pc->error, EPROTO, "an answer of %u bytes to a frame of RAM block %s with %u pages",
                     m->reply_len, name, s->frame.data);
        return;
    }
    for (unsigned i = 0; i < s->frame.data; i++) {
        if (!(bits[i / 8] >> i % 8 & 1))
            continue;
        uint64_t page = pages_nth(&s->frame, i);
        overtaken_note(&pc->overtaken, m->object, page);
        first = n++ ? first : page;
    }
    if (pc->round)
        pc->round->pages_overtaken += n;
    if (pc->final && n) {
        pc->late = false;
        xm_error_set(
            &pc->error, EBADMSG,
            "%u pages of RAM block %s, from page %llu on, reached the other side otherwise than they were "
            "sent, while the guest was stopped: damaged on the way",
            n, name, (unsigned long long)first);
    }
}

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
    if (s->msg.reply && s->msg.status >= 0 && (!pc->error.code || pc->late))
        pages_overtaken(pc, s);
    free(s->msg.reply);
    s->msg.reply = NULL;
    if (s->msg.status < 0) {
        if (!pc->error.code || pc->late)
            xm_error_errno(&pc->error, -s->msg.status,
                           "pages of RAM block %s were not applied by the other side",
                           pc->ram->block[s->msg.object].name);
        pc->late = false;
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
int precopy_trouble(struct xm_precopy *pc)
{
    uint64_t now = xm_now();

    if (!pc->error.code && pc->over && now - pc->looked >= LOOK_MS * XM_NS_PER_MS) {
        pc->looked = now;
        if (pc->over(pc->over_ctx))
            xm_error_set(&pc->error, ECANCELED, "it was given up");
    }
    if (!pc->error.code && pc->deadline && now > pc->deadline) {
        pc->late = true;
        xm_error_set(&pc->error, ETIMEDOUT, "the destination has not taken all of it in time");
    }
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
        xm_mailbox_wait(&pc->mailbox, LOOK_MS);
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

/* The frame under work, for this block. NULL: pc->error says why. */
static struct pages_frame *open_frame(struct xm_precopy *pc, unsigned block)
{
    if (pc->open && pc->open_block == block)
        return &pc->open->frame;
    if (pc->open)
        submit_open(pc);
    struct slot *s = take_slot(pc);
    if (!s)
        return NULL;
    uint8_t *buf = pc->slab + (size_t)(s - pc->slot) * PAGES_BUFFER;
    if (pc->direct[block] && atomic_load(&pc->transport->features) & XM_FEATURE_HEAD)
        pages_begin_direct(&s->frame, buf);
    else
        pages_begin(&s->frame, buf);
    pc->open = s;
    pc->open_block = block;
    return &s->frame;
}

int precopy_send_zeros(struct xm_precopy *pc, unsigned block, uint64_t page, uint64_t n)
{
    while (n) {
        struct pages_frame *f = open_frame(pc, block);
        if (!f)
            return -pc->error.code;
        uint64_t took = pages_zero(f, page, n);
        page += took;
        n -= took;
        if (n)
            submit_open(pc);
    }
    return 0;
}

/* Private copies of n pages, at the frame's tail. */
static int copy_pages(struct xm_precopy *pc, struct pages_frame *f, unsigned block, uint64_t page, unsigned n)
{
    size_t len = (size_t)n * XM_PAGE, got = 0;

    while (got < len) {
        ssize_t k = pread(pc->ram->block[block].memfd, pages_tail(f) + got, len - got,
                          (off_t)((page << XM_PAGE_SHIFT) + got));
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return xm_error_errno(&pc->error, k < 0 ? errno : EIO, "cannot read guest RAM %s",
                                  pc->ram->block[block].name);
        got += (size_t)k;
    }
    pages_put(f, page, n);
    return 0;
}

static int point_pages(struct xm_precopy *pc, struct pages_frame *f, unsigned block, uint64_t page,
                       unsigned n)
{
    const struct xm_ram_block *b = &pc->ram->block[block];
    uint8_t there[PAGES_BATCH];

    /* Who sends everything has asked where data lie. */
    if (!pc->whole)
        ram_find_holes(b, page, n, there);
    int r = pages_point(f, page, n, b->map + (page << XM_PAGE_SHIFT), pc->whole ? NULL : there);
    return r ? xm_error_set(&pc->error, -r, "cannot read guest RAM %s: the host's memory has an error there",
                            b->name)
             : 0;
}

int precopy_send_pages(struct xm_precopy *pc, unsigned block, uint64_t page, uint64_t n)
{
    while (n) {
        struct pages_frame *f = open_frame(pc, block);
        if (!f)
            return -pc->error.code;
        unsigned part = (unsigned)XM_MIN(n, pages_room(f, page));
        int r = 0;
        if (part)
            r = f->direct ? point_pages(pc, f, block, page, part) : copy_pages(pc, f, block, page, part);
        if (r < 0)
            return r;
        if (!part)
            submit_open(pc);
        page += part;
        n -= part;
    }
    return 0;
}

void precopy_send_last(struct xm_precopy *pc)
{
    if (pc->open)
        submit_open(pc);
}
