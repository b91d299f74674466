/* SPDX-License-Identifier: MIT */
/* The table of cases and outcomes: a row for each named point, one for each kind of random fault; written as
 * docs/faults.md and printed. */
#include "tests/faults/faults.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct row {
    char name[200];
    bool point;
    unsigned cases, struck, source, destination, asked, started, wrong;
};

static struct row rows[400];
static unsigned count;
static unsigned cases, bad;
static char *wrongs;
static size_t wrongs_len;

static struct row *row_of(const char *name, bool point)
{
    for (unsigned i = 0; i < count; i++) {
        if (!strcmp(rows[i].name, name))
            return &rows[i];
    }
    if (count == sizeof rows / sizeof *rows)
        return &rows[count - 1];
    struct row *r = &rows[count++];
    snprintf(r->name, sizeof r->name, "%s", name);
    r->point = point;
    return r;
}

static void add_to(struct row *r, const struct plan *p, const struct outcome *o, char source)
{
    r->cases++;
    r->struck += o->struck;
    r->source += o->home == source;
    r->destination += o->home && o->home != source;
    r->asked += o->asked;
    r->started += o->started;
    r->wrong += o->wrong[0] != 0;
    (void)p;
}

static void name_of(const struct fault *f, char *name, size_t size)
{
    static const char *const kinds[KINDS] = {"kill -9",
                                             "SIGTERM",
                                             "SIGSTOP for 1 to 40 s",
                                             "both links down",
                                             "one link down",
                                             "links drop all",
                                             "links slow",
                                             "control network down",
                                             "full",
                                             "read-only",
                                             "abort",
                                             "second move",
                                             "power cut",
                                             ""};
    static const char *const who[] = {"agent", "shim", "QEMU", "command line"};
    static const char *const where[] = {"state directory", "run directory", "datastores"};
    const char *side = f->side == SOURCE ? "source" : "destination";

    if (f->kind <= STOP && f->who == CLI)
        snprintf(name, size, "%s, command line", kinds[f->kind]);
    else if (f->kind <= STOP)
        snprintf(name, size, "%s, %s's %s", kinds[f->kind], side, who[f->who]);
    else if (f->kind == FULL || f->kind == SEALED)
        snprintf(name, size, "%s's %s %s", side, where[f->where], kinds[f->kind]);
    else if (f->kind == CUT)
        snprintf(name, size, "power cut at the %s", side);
    else
        snprintf(name, size, "%s", kinds[f->kind]);
}

void report_add(const struct plan *p, const struct outcome *o, char source)
{
    char text[300];

    cases++;
    if (p->fault[0].kind == POINT) {
        add_to(row_of(p->name, true), p, o, source);
    } else {
        for (unsigned i = 0; i < p->faults; i++) {
            name_of(&p->fault[i], text, sizeof text);
            add_to(row_of(text, false), p, o, source);
        }
    }
    if (!o->wrong[0])
        return;
    bad++;
    plan_tell(p, text, sizeof text);
    char *line = NULL;
    if (asprintf(&line, "- %s (%s): %s\n", p->name, text, o->wrong) < 0)
        return;
    char *more = realloc(wrongs, wrongs_len + strlen(line) + 1);
    if (more) {
        wrongs = more;
        memcpy(wrongs + wrongs_len, line, strlen(line) + 1);
        wrongs_len += strlen(line);
    }
    free(line);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct row *)a)->name, ((const struct row *)b)->name);
}

static void put(FILE *f)
{
    unsigned points_seen = 0;

    for (unsigned i = 0; i < count; i++)
        points_seen += rows[i].point;
    fprintf(
        f,
        "<!-- Written by `make check-faults`. -->\n# Faults and what became of the VM\n\n"
        "`make check-faults` moves a guest with its disks between two hosts of a lab again and again, each "
        "time with a fault at\na named point of the code or with one or two at random times "
        "(`tests/faults/faults.h`). Then it does what a user\nmay do, and judges processes, files and what "
        "the guest itself says (`tests/faults/judge.c`). What a power cut\nloses is at the head of "
        "`tests/faults/hosts.c`. Columns: cases in which the fault struck; where the VM was in the "
        "end;\nof these, how often commands were needed to bring it to rest (the agents had not settled it "
        "by "
        "themselves within\n30 s), and how often it had ended and was started again; wrong is what must not "
        "be.\n\n%u cases, %u wrong.\n",
        cases, bad);
    if (points_seen) {
        fprintf(f,
                "\n## Named points\n| point, passage, what happens there | struck | at the source | at the "
                "destination | asked | started | wrong |\n|---|---|---|---|---|---|---|\n");
        for (unsigned i = 0; i < count; i++) {
            const struct row *r = &rows[i];
            if (r->point)
                fprintf(f, "| %s | %u of %u | %u | %u | %u | %u | %u |\n", r->name, r->struck, r->cases,
                        r->source, r->destination, r->asked, r->started, r->wrong);
        }
    }
    qsort(rows, count, sizeof *rows, by_name);
    if (points_seen < count)
        fprintf(f, "\n## Random times\n| fault (alone, or with another one) | cases | at the source | at the "
                   "destination | asked | started | wrong |\n|---|---|---|---|---|---|---|\n");
    for (unsigned i = 0; i < count; i++) {
        const struct row *r = &rows[i];
        if (!r->point)
            fprintf(f, "| %s | %u | %u | %u | %u | %u | %u |\n", r->name, r->cases, r->source, r->destination,
                    r->asked, r->started, r->wrong);
    }
    if (wrongs)
        fprintf(f, "\n## Wrong\n%s", wrongs);
}

bool report_write(const char *path)
{
    FILE *f = path && *path ? fopen(path, "w") : NULL;

    put(stdout);
    if (f) {
        put(f);
        fclose(f);
    }
    return !bad;
}
