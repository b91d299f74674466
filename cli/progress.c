/* SPDX-License-Identifier: MIT */
#include "cli/progress.h"
#include "cli/text.h"

#include <stdarg.h>
#include <string.h>

void progress_init(struct progress *p, const struct cli_io *io)
{
    *p = (struct progress){.io = io, .step = -1};
}

__attribute__((format(printf, 4, 5))) static size_t add(char *buf, size_t cap, size_t at, const char *fmt,
                                                        ...)
{
    va_list ap;

    if (at >= cap)
        return at;
    va_start(ap, fmt);
    int n = vsnprintf(buf + at, cap - at, fmt, ap);
    va_end(ap);
    return n < 0 ? at : at + (size_t)n;
}

/* The disks are copied, and read again on both sides (--verify). */
static bool is_verifying(const json_t *event)
{
    return json_object_get(event, "verified_bytes");
}

int percent_of(const json_t *event)
{
    bool verify = is_verifying(event);
    int64_t done = xm_json_int(event, verify ? "verified_bytes" : "bytes_done", -1);
    int64_t total = xm_json_int(event, verify ? "verify_total" : "bytes_total", 0);

    if (done < 0 || total <= 0)
        return -1;
    return done >= total ? 100 : (int)((double)done * 100 / (double)total);
}

/* "mirror async", or each disk's when they differ. */
static size_t add_modes(char *buf, size_t cap, size_t at, const json_t *disks)
{
    const char *first = xm_json_str(json_array_get(disks, 0), "mode", NULL);
    bool same = true;
    size_t i;
    json_t *d;

    if (!first)
        return at;
    json_array_foreach (disks, i, d)
        same &= !strcmp(xm_json_str(d, "mode", ""), first);
    at = add(buf, cap, at, "  mirror");
    if (same)
        return add(buf, cap, at, " %s", first);
    json_array_foreach (disks, i, d)
        at = add(buf, cap, at, "%s %s:%s", i ? "," : "", xm_json_str(d, "name", "?"),
                 xm_json_str(d, "mode", "?"));
    return at;
}

void progress_format(char *buf, size_t cap, const char *state, const json_t *event)
{
    int percent = percent_of(event);
    double rate = xm_json_real(event, "rate", 0), eta = xm_json_real(event, "eta_s", 0);
    int64_t round = xm_json_int(event, "round", 0), dirty = xm_json_int(event, "dirty_bytes", -1);
    bool disks = !strcmp(state, "disks"), memory = !strcmp(state, "memory");
    size_t at = add(buf, cap, 0, "%-8s", state);

    /* The bytes are those of the disks. The other states last for moments, and nothing can be said of how far
     * they are. */
    if (disks && percent >= 0) {
        bool verify = is_verifying(event);
        const char *done = verify ? "verified_bytes" : "bytes_done",
                   *of = verify ? "verify_total" : "bytes_total";
        at = add(buf, cap, at, "%s %3d %%", verify ? " verifying" : "", percent);
        at = add(buf, cap, at, "  %s of %s", xm_format_size((uint64_t)xm_json_int(event, done, 0)).s,
                 xm_format_size((uint64_t)xm_json_int(event, of, 0)).s);
    }
    if ((disks || memory) && rate > 0)
        at = add(buf, cap, at, "  %s", xm_format_rate(rate).s);
    if (disks && xm_json_bool(event, "outrun", false))
        at = add(buf, cap, at, ", no end in sight: the guest's writes need %s",
                 xm_format_rate(xm_json_real(event, "needed_rate", 0)).s);
    /* Before anything has arrived the rate is made of a few messages, and the time left would be a fancy. */
    bool known = memory || xm_json_int(event, "bytes_done", 0) > 0;
    if ((disks || memory) && known && eta > 0 && eta < 1e9)
        at = add(buf, cap, at, "  %s left", xm_format_time((uint64_t)(eta * 1e9)).s);
    if (memory && round > 0)
        at = add(buf, cap, at, "  round %lld", (long long)round);
    if (memory && round > 0 && dirty >= 0)
        at = add(buf, cap, at, ", %s dirty", xm_format_size((uint64_t)dirty).s);
    if (disks || memory)
        at = add_modes(buf, cap, at, json_object_get(event, "disks"));
    while (at > 0 && at < cap && buf[at - 1] == ' ')
        buf[--at] = 0;
}

void progress_clear(struct progress *p)
{
    if (p->line) {
        fputs("\r\033[K", p->io->out);
        fflush(p->io->out);
    }
    p->line = false;
}

/* What is not there whole would be read as another number: fields are two blanks apart. */
static void cut(char *text, size_t columns)
{
    text[columns] = 0;
    for (size_t i = columns; i > 1; i--) {
        if (text[i - 1] == ' ' && text[i - 2] == ' ') {
            text[i - 2] = 0;
            return;
        }
    }
}

static void redraw(struct progress *p, char *text)
{
    unsigned columns = p->io->columns ? p->io->columns : 80;

    if (strlen(text) >= columns)
        cut(text, columns - 1); /* a longer line would wrap, and \r would not come back to its start */
    fputc('\r', p->io->out);
    put_text(p->io->out, text);
    fputs("\033[K", p->io->out);
    p->line = true;
    fflush(p->io->out);
}

void progress_event(struct progress *p, const json_t *event, uint64_t now)
{
    char text[512];
    const char *state = xm_json_str(event, "state", p->state);
    bool verifying = is_verifying(event);
    bool moved_on = strcmp(state, p->state) != 0 || verifying != p->verifying;
    int percent = percent_of(event), step = 0;

    snprintf(p->state, sizeof p->state, "%s", state);
    p->verifying = verifying;
    if (percent >= 0 && !strcmp(p->state, "disks"))
        step = percent / 10;
    progress_format(text, sizeof text, p->state, event);
    if (p->io->terminal) {
        redraw(p, text);
        return;
    }
    if (moved_on || step > p->step || now - p->printed >= PROGRESS_SELDOM_NS) {
        put_text(p->io->out, text);
        fputc('\n', p->io->out);
        fflush(p->io->out);
        p->printed = now;
        p->step = step;
    }
}
