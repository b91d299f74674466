/* SPDX-License-Identifier: MIT */
/* Statistics, and build/bench/results.json: a list of rows. See bench.h. */
#include "tests/bench/bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH "build/bench/results.json"

static char current[64];
static char note[400];

unsigned bench_runs(void)
{
    const char *s = getenv("XM_BENCH_RUNS");
    int n = s ? atoi(s) : 5;
    return n < 1 ? 1 : n > 60 ? 60 : (unsigned)n;
}

unsigned bench_runs_few(void)
{
    return (bench_runs() * 3 + 4) / 5;
}

uint64_t bench_size(uint64_t full)
{
    const char *s = getenv("XM_BENCH_SHRINK");
    uint64_t by = s && atoi(s) > 0 ? (uint64_t)atoi(s) : 1;
    return XM_MAX(full / by >> 20, 16ull) << 20;
}

void bench_add(struct bench_stat *s, double v)
{
    if (s->n < 64)
        s->v[s->n++] = v;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at_fraction(const struct bench_stat *s, double f)
{
    struct bench_stat t = *s;

    if (!t.n)
        return 0;
    qsort(t.v, t.n, sizeof *t.v, by_value);
    if (f == 0.5 && t.n % 2 == 0)
        return (t.v[t.n / 2 - 1] + t.v[t.n / 2]) / 2;
    return t.v[(unsigned)(f * (double)(t.n - 1) + 0.5)];
}

double bench_median(const struct bench_stat *s)
{
    return at_fraction(s, 0.5);
}
double bench_min(const struct bench_stat *s)
{
    return at_fraction(s, 0);
}
double bench_max(const struct bench_stat *s)
{
    return at_fraction(s, 1);
}

static json_t *load_rows(void)
{
    mkdir("build", 0777);
    mkdir("build/bench", 0777);
    json_t *list = json_load_file(PATH, 0, NULL);
    if (json_is_array(list))
        return list;
    json_decref(list);
    return json_array();
}

static void save_rows(json_t *list)
{
    if (json_dump_file(list, PATH ".new", JSON_INDENT(1) | JSON_REAL_PRECISION(5)) ||
        rename(PATH ".new", PATH))
        fprintf(stderr, "bench: cannot write %s\n", PATH);
    json_decref(list);
}

static void append(json_t *row)
{
    json_t *list = load_rows();

    if (note[0])
        json_object_set_new(row, "note", json_string(note));
    note[0] = 0;
    json_array_append_new(list, row);
    save_rows(list);
}

void bench_begin(const char *name)
{
    json_t *list = load_rows();

    snprintf(current, sizeof current, "%s", name);
    for (size_t i = json_array_size(list); i-- > 0;) {
        if (!strcmp(xm_json_str(json_array_get(list, i), "name", ""), name))
            json_array_remove(list, i);
    }
    save_rows(list);
    printf("== %s\n", name);
    fflush(stdout);
}

void bench_note(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(note, sizeof note, fmt, ap);
    va_end(ap);
}

static json_t *figures(const struct bench_pair *p)
{
    return json_pack("{s:s s:f s:f s:f s:f s:i}", "version", p->version, "ours", bench_median(p->ours),
                     "peer", bench_median(p->peer), "peer_min", bench_min(p->peer), "peer_max",
                     bench_max(p->peer), "runs", (int)p->peer->n);
}

void bench_result_better(const char *unit, const struct bench_pair *pair, unsigned pairs,
                         const char *peer_name, double goal, bool higher_is_better)
{
    const struct bench_pair *best = pair;
    json_t *beside = json_array();
    char versions[400] = "";
    size_t n = 0;

    for (unsigned i = 1; i < pairs; i++) {
        double it = bench_median(pair[i].peer), least = bench_median(best->peer);
        if (pair[i].peer->n && (!best->peer->n || (higher_is_better ? it > least : it < least)))
            best = &pair[i];
    }
    double o = bench_median(best->ours);
    double p = bench_median(best->peer);
    double ratio = p > 0 ? o / p : 0;
    bool met = best->ours->n && best->peer->n && p > 0 && (higher_is_better ? ratio >= goal : ratio <= goal);

    if (best->version)
        n = (size_t)snprintf(versions, sizeof versions, "; QEMU %s", best->version);
    for (unsigned i = 0; i < pairs; i++) {
        if (&pair[i] == best || !pair[i].peer->n)
            continue;
        json_array_append_new(beside, figures(&pair[i]));
        if (n < sizeof versions)
            n += (size_t)snprintf(versions + n, sizeof versions - n, ", better than %s: %.2f [%.2f..%.2f]",
                                  pair[i].version, bench_median(pair[i].peer), bench_min(pair[i].peer),
                                  bench_max(pair[i].peer));
    }
    printf("%s: ours %.2f [%.2f..%.2f], %s %.2f [%.2f..%.2f] %s: ratio %.2f, goal %s %.2f: %s%s%s%s\n",
           current, o, bench_min(best->ours), bench_max(best->ours), peer_name, p, bench_min(best->peer),
           bench_max(best->peer), unit, ratio, higher_is_better ? ">=" : "<=", goal, met ? "met" : "NOT MET",
           versions, note[0] ? "; " : "", note);
    fflush(stdout);
    json_t *row = json_pack(
        "{s:s s:s s:f s:f s:s s:f s:f s:b s:f s:f s:f s:f s:b s:i}", "name", current, "unit", unit, "ours", o,
        "peer", p, "peer_name", peer_name, "ratio", ratio, "goal", goal, "met", met, "ours_min",
        bench_min(best->ours), "ours_max", bench_max(best->ours), "peer_min", bench_min(best->peer),
        "peer_max", bench_max(best->peer), "higher_is_better", higher_is_better, "runs", (int)best->ours->n);
    if (best->version) {
        json_object_set_new(row, "peer_version", json_string(best->version));
        json_object_set_new(row, "peer_runs", json_integer((json_int_t)best->peer->n));
    }
    if (json_array_size(beside))
        json_object_set(row, "beside", beside);
    json_decref(beside);
    append(row);
}

void bench_result(const char *unit, const struct bench_stat *ours, const struct bench_stat *peer,
                  const char *peer_name, double goal, bool higher_is_better)
{
    bench_result_better(unit, &(struct bench_pair){NULL, ours, peer}, 1, peer_name, goal, higher_is_better);
}

static void unable(const char *fmt, va_list ap)
{
    char why[400];

    vsnprintf(why, sizeof why, fmt, ap);
    printf("%s: cannot run here: %s\n", current, why);
    fflush(stdout);
    append(json_pack("{s:s s:s s:b}", "name", current, "why", why, "met", 0));
}

void bench_unable(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    unable(fmt, ap);
    va_end(ap);
}

void bench_die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    unable(fmt, ap);
    va_end(ap);
    exit(1);
}
