/* SPDX-License-Identifier: MIT */
/* Which cases are run; see faults.h. A case that is wrong is told at once, the lab's logs are kept in
 * build/faults/, and the lab is made anew: the next case begins with a host that is whole. */
#include "tests/faults/faults.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RANDOM_CASES 300

/* In `make check`: some of each kind, with seeds that take no longer than 40 s together. */
static const char *const few_points[] = {"prepare-journaled:1:kill*", "handoff-after-record:1:cut*",
                                         "pivot-after-record:1:kill*"};
#define FEW_RANDOM 3

static struct world world;
static bool lab_made;

static void keep_logs(const char *name)
{
    char dir[120];

    snprintf(dir, sizeof dir, "build/faults/%s", name);
    for (char *c = dir; *c; c++)
        *c = strchr(" :", *c) ? '-' : *c;
    sh(NULL, 30, "rm -rf %s && mkdir -p %s && cd %s && (cd %s && tar cf - --exclude=filler .) | tar xf -",
       dir, dir, dir, lab_run_dir());
    sh(NULL, 30, "cd %s && find . -type f -printf '%%p %%s %%b\\n' >%s/%s/stores.txt", lab_store_dir(),
       getenv("PWD") ? getenv("PWD") : ".", dir);
    printf("  its logs are in %s\n", dir);
}

static bool lab_ready(void)
{
    if (!lab_made)
        lab_made = hosts_up(&world);
    return lab_made;
}

static void lab_away(void)
{
    small_free(&world.guest);
    lab_down();
    lab_made = false;
}

static void one(const struct plan *p, unsigned n, unsigned of)
{
    struct outcome o;
    char text[300], source;

    if (!lab_ready())
        exit(1);
    source = world.home;
    run_plan(&world, p, &o);
    plan_tell(p, text, sizeof text);
    printf("%3u/%u %5.1f s  %s: %s -> %d, at the %s%s%s%s\n", n, of, o.seconds, p->name, text, o.exit,
           !o.home            ? "?"
           : o.home == source ? "source"
                              : "destination",
           o.struck ? "" : ", not reached", o.asked ? ", asked" : "", o.started ? ", started" : "");
    report_add(p, &o, source);
    if (o.wrong[0]) {
        printf("  WRONG: %s\n  it said: %.600s\n", o.wrong, o.said ? o.said : "");
        keep_logs(p->name);
        lab_away();
    }
    fflush(stdout);
    free(o.said);
}

static bool chosen(const struct plan *p, const char *pattern, bool whole)
{
    if (pattern)
        return fnmatch(pattern, p->name, 0) == 0;
    for (unsigned i = 0; !whole && i < sizeof few_points / sizeof *few_points; i++)
        whole = fnmatch(few_points[i], p->name, 0) == 0;
    return whole;
}

int main(void)
{
    const char *how = getenv("XM_FAULTS"), *seed = getenv("XM_FAULTS_SEED"),
               *times = getenv("XM_FAULTS_COUNT"), *pattern = getenv("XM_FAULTS_POINT"), *why = lab_missing();
    bool whole = how && !strcmp(how, "whole");
    unsigned random = times     ? (unsigned)atoi(times)
                      : seed    ? 1
                      : pattern ? 0
                      : whole   ? RANDOM_CASES
                                : FEW_RANDOM;
    unsigned named = 0, n = 0;
    struct plan p;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (why) {
        printf("skipped: %s\n", why);
        return 0;
    }
    for (unsigned i = 0; i < points_count && !(seed && !pattern); i++) {
        plan_point(&p, i);
        named += chosen(&p, pattern, whole);
    }
    why = lab_ready() ? sealed_is_sealed() : "there is no lab";
    if (!why && whole)
        why = power_is_power(&world);
    if (why) {
        fprintf(stderr, "the faults themselves: %s\n", why);
        lab_away();
        return 1;
    }
    for (unsigned i = 0; i < points_count && named; i++) {
        plan_point(&p, i);
        if (chosen(&p, pattern, whole))
            one(&p, ++n, named + random);
    }
    for (unsigned i = 0; i < random; i++) {
        plan_random(&p, (seed ? strtoull(seed, NULL, 10) : 1) + i);
        one(&p, ++n, named + random);
    }
    bool good = report_write(getenv("XM_FAULTS_REPORT"));
    if (lab_made)
        small_free(&world.guest);
    if (lab_down() < 0)
        good = false;
    return good ? 0 : 1;
}
