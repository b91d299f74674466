/* SPDX-License-Identifier: MIT */
/* tests/system/small.c: the small guest's specification, and its console read as a stream. See small.h;
 * tests/guest/kvm/kvmguest.c has what it tells. */
#include "tests/system/small.h"
#include "tests/progress.h"
#include "tests/system/harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Seconds without a word: it has stopped. A busy machine makes it slow, which is none of its faults. */
#define SILENCE 60
#define QUICK   "beat=2000 ram=20000 disk=800 span=512 tell=100"

/* ---- the stream ---- */

static void read_numbers(const char *text, unsigned *out, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char *end;
        unsigned n = (unsigned)strtoul(text, &end, 10);
        if (end == text)
            return;
        out[i] = n;
        text = end;
    }
}

static void begins_anew(struct small *g, const char *line)
{
    const char *at = strstr(line, "disks of");

    g->boots++;
    g->now = (struct small_progress){0};
    sscanf(line, "kvmguest with %u", &g->pages);
    g->sectors = 0;
    for (char *end; at && (at = strpbrk(at, "0123456789")); at = end)
        g->sectors += (unsigned)strtoul(at, &end, 10);
    memcpy(g->was_acked, g->acked, sizeof g->acked);
    memcpy(g->was_synced, g->synced, sizeof g->synced);
    memset(g->kept, 0, sizeof g->kept);
}

static void take_line(struct small *g)
{
    const char *s = g->line;
    struct small_progress p;
    struct small_kept k = {.said = true};
    unsigned disk, part;

    if (sscanf(s, "up %u ram %u pages %u disk %u sectors %u errors %u", &p.up, &p.rounds, &p.pages, &p.sweeps,
               &p.sectors, &p.errors) == 6) {
        g->now = p;
        g->lines++;
        if (p.errors && !g->wrong[0])
            snprintf(g->wrong, sizeof g->wrong, "it counts %u errors", p.errors);
    } else if (!strncmp(s, "told ", 5)) {
        read_numbers(s + 5, g->acked, SMALL_PARTS);
    } else if (sscanf(s, "synced %u", &disk) == 1 && disk < 2 && strlen(s) > 8) {
        read_numbers(s + 8, g->synced + disk * 4, 4);
    } else if (sscanf(s, "kept %u newest %u complete %u", &part, &k.newest, &k.complete) == 3 &&
               part < SMALL_PARTS) {
        g->kept[part] = k;
    } else if (!strncmp(s, "kvmguest with ", 14)) {
        begins_anew(g, s);
    } else if (*s && strchr("MBEF", *s) && !strncmp(s + 1, " at ", 4) && !g->wrong[0]) {
        snprintf(g->wrong, sizeof g->wrong, "it has found an error: %.170s", s);
    }
}

/* A line is of beats and letters, each of which counts at once, or of words, which count when it is whole. */
static void take(struct small *g, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        bool beats = !g->len || g->line[0] == '.';
        if (c == '\n') {
            if (!beats)
                take_line(g);
            g->len = 0;
        } else if (beats && (c == '.' || (c >= 'a' && c <= 'h'))) {
            g->line[0] = '.';
            g->len = 1;
            if (c != '.')
                g->acked[c - 'a']++;
        } else if (!(beats && g->len) && g->len + 1 < sizeof g->line) {
            g->line[g->len++] = c;
            g->line[g->len] = 0;
        }
    }
}

static void console_path(const struct small *g, unsigned i, char path[256])
{
    snprintf(path, 256, "%s/%c/state/logs/%s-console.log", lab_run_dir(), "ab"[i], g -> name);
}

/* What is new of one console; malloc'ed, NULL: nothing. The log is cut when it has become long. */
static char *new_of(struct small *g, unsigned i, size_t *n)
{
    struct small_console *c = &g->console[i];
    char path[256], *text = NULL;
    struct stat open_one, there;

    *n = 0;
    if (c->deaf)
        return NULL;
    console_path(g, i, path);
    /* One that was removed and made anew is another file. */
    if (c->fd >= 0 && stat(path, &there) == 0 && fstat(c->fd, &open_one) == 0 &&
        (there.st_ino != open_one.st_ino || there.st_dev != open_one.st_dev) && c->at >= open_one.st_size) {
        close(c->fd);
        c->fd = -1;
    }
    if (c->fd < 0) {
        c->fd = open(path, O_RDONLY | O_CLOEXEC);
        c->at = 0;
    }
    if (c->fd < 0 || fstat(c->fd, &open_one) < 0)
        return NULL;
    if (open_one.st_size < c->at)
        c->at = 0;
    if (open_one.st_size > c->at && (text = malloc((size_t)(open_one.st_size - c->at)))) {
        ssize_t got = pread(c->fd, text, (size_t)(open_one.st_size - c->at), c->at);
        *n = got > 0 ? (size_t)got : 0;
        c->at += (off_t)*n;
        c->heard += *n;
    }
    return text;
}

bool small_read(struct small *g)
{
    unsigned here = g->host == 'b', there = !here;
    size_t n, m;
    /* The other one's first: when it has come there, all that it said here has been written. */
    char *next = new_of(g, there, &n), *rest = new_of(g, here, &m);

    if (m)
        take(g, rest, m);
    if (m)
        g->host = "ab"[here];
    if (n)
        take(g, next, n);
    if (n)
        g->host = "ab"[there];
    free(next);
    free(rest);
    return n || m;
}

void small_deafen(struct small *g, char host)
{
    struct small_console *c = &g->console[host == 'b'];

    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->deaf = true;
}

void small_listen(struct small *g, char host)
{
    struct small_console *c = &g->console[host == 'b'];
    char path[256];

    console_path(g, host == 'b', path);
    c->fd = open(path, O_RDONLY | O_CLOEXEC);
    c->at = c->fd >= 0 ? lseek(c->fd, 0, SEEK_END) : 0;
    c->deaf = false;
}

void small_init(struct small *g, const char *name)
{
    memset(g, 0, sizeof *g);
    snprintf(g->name, sizeof g->name, "%s", name);
    small_listen(g, 'a');
    small_listen(g, 'b');
}

void small_free(struct small *g)
{
    for (unsigned i = 0; g->name[0] && i < 2; i++) {
        if (g->console[i].fd >= 0)
            close(g->console[i].fd);
        g->console[i].fd = -1;
    }
}

bool small_write_spec(const struct small *g, const char *path, const struct small_options *o)
{
    char top[512];
    FILE *f = fopen(path, "w");

    if (!f || !getcwd(top, sizeof top))
        return false;
    fprintf(f, "[vm]\nname = %s\nmemory = %uM\nvcpus = 1\naccel = %s\n", g->name, o->memory ? o->memory : 16,
            o->accel ? o->accel : "tcg");
    if (o->cpu)
        fprintf(f, "cpu = %s\n", o->cpu);
    fprintf(f, "kernel = %s/build/guest/kvmguest\nappend = %s\n", top, o->append ? o->append : QUICK);
    for (unsigned i = 0; i < 2; i++)
        fprintf(f, "\n[disk %s]\ndatastore = ds1\nfile = %s-%u.img\nsize = %uM\n", i ? "two" : "one", g->name,
                i + 1, 4 + (i ? o->fill : 0));
    if (!o->no_nic)
        fprintf(f, "\n[nic lan]\nbridge = br0\n");
    return fclose(f) == 0;
}

/* ---- waiting ---- */

bool small_ticks(struct small *g, char host, unsigned seconds)
{
    unsigned lines = g->lines;

    for (struct limit l = limit_start(seconds);;) {
        small_read(g);
        if (g->lines != lines && (!host || g->host == host))
            return true;
        if (!limit_wait(&l))
            return false;
    }
}

static bool reached(const struct small_progress *now, const struct small_progress *goal)
{
    return now->pages >= goal->pages && now->sectors >= goal->sectors && now->sweeps >= goal->sweeps;
}

const char *small_check(struct small *g)
{
    struct small_progress goal;
    unsigned boots = g->boots;

    if (!small_ticks(g, 0, SILENCE))
        return g->wrong[0] ? g->wrong : "it says nothing";
    goal = g->now;
    goal.pages += g->pages;
    goal.sectors += g->sectors;
    goal.sweeps += 2; /* of the slowest part one was whole, from its first sector to its last */
    while (!g->wrong[0] && !reached(&g->now, &goal)) {
        if (!small_ticks(g, 0, SILENCE))
            return "it says nothing any more";
        if (g->boots != boots)
            return "it has begun anew";
    }
    return g->wrong[0] ? g->wrong : NULL;
}

const char *small_lost(const struct small *g, bool flushed)
{
    static char text[200];
    const unsigned *due = flushed ? g->was_synced : g->was_acked;

    for (unsigned i = 0; i < SMALL_PARTS; i++) {
        if (due[i] <= g->kept[i].complete)
            continue;
        snprintf(text, sizeof text,
                 "disk %u, part %u: writes up to %u were %s, and it finds those up to %u (the newest is %u)",
                 i / 4, i % 4, due[i], flushed ? "flushed" : "acknowledged", g->kept[i].complete,
                 g->kept[i].newest);
        return text;
    }
    return NULL;
}

const char *small_start(struct small *g, const char *host, const char *name, const struct small_options *o)
{
    static char why[600];
    char spec[256], *said = NULL;

    small_init(g, name);
    snprintf(spec, sizeof spec, "%s/%s.ini", lab_run_dir(), name);
    if (!small_write_spec(g, spec, o))
        return "its specification cannot be written";
    if (o->fill &&
        sh(&said, 30, "cd %s/%s/ds1 && head -c %uM /dev/urandom >%s-2.img && truncate -s %uM %s-2.img",
           lab_store_dir(), host, o->fill, name, 4 + o->fill, name) != 0)
        return said;
    free(said);
    int code = sh(&said, 60, "%s", xmigrate(host, "start %s", spec));
    snprintf(why, sizeof why, "%.500s", said ? said : "");
    free(said);
    if (code)
        return why;
    return small_ready(g, *host);
}

const char *small_ready(struct small *g, char host)
{
    small_read(g); /* what it has said before is no sign of life */
    do {
        if (!small_ticks(g, host, SILENCE))
            return g->wrong[0] ? g->wrong : "it says nothing";
    } while (!g->now.sweeps && !g->wrong[0]);
    return g->wrong[0] ? g->wrong : NULL;
}

/* ---- in tests ---- */

int small_group_setup(const char *name, const char *env, struct small *g, const struct small_options *o)
{
    int r = lab_group_setup(name, env);
    const char *why = r || !*lab_prefix() ? NULL : small_start(g, "a", "web1", o);

    if (!why)
        return r;
    fprintf(stderr, "web1 does not start: %s\n", why);
    lab_down();
    return -1;
}

void small_must_start(struct small *g, const char *host, const char *name, const struct small_options *o)
{
    const char *why = small_start(g, host, name, o);

    if (why)
        fail_msg("%s at host%s: %s", name, host, why);
}

void small_must_be_whole(struct small *g, const char *host)
{
    struct limit l = limit_start(0);
    const char *why = small_ready(g, *host);

    if (getenv("XM_TRACE"))
        fprintf(stderr, "TRACE %6.2f s until %s was ready\n", limit_elapsed(&l), g->name);
    if (!why && g->boots > 1)
        why = small_lost(g, false);
    if (!why)
        why = small_check(g);
    if (getenv("XM_TRACE"))
        fprintf(stderr, "TRACE %6.2f s until %s was checked (%u pages %u sectors %u sweeps)\n",
                limit_elapsed(&l), g->name, g->now.pages, g->now.sectors, g->now.sweeps);
    if (why)
        fail_msg("%s at host%s: %s", g->name, host, why);
}
