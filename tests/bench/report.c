/* SPDX-License-Identifier: MIT */
/* What has been measured, as a page: build/bench/report.html, self-contained, from build/bench/results.json.
 * One bar for us, one for the peer and one for each other version of it per row, whiskers from the least to
 * the most of the runs, and a line where our bar would have to end to meet the goal. And as a table:
 * build/bench/table.md. usage: report
 *        report --failed NAME WHY    a row for a bench that ended without one
 *        report --refused NAME WHY   a row for a bench that was not begun; its older ones stay, if there are any
 *
 * Exit status 1 when a goal was missed. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#define RESULTS "build/bench/results.json"
#define PAGE    "build/bench/report.html"
#define TABLE   "build/bench/table.md"

enum { LEFT = 190, WIDE = 560, RIGHT = 130, BAR = 18, GAP = 6, TOP = 22 };

static double num(const json_t *row, const char *key)
{
    return json_number_value(json_object_get(row, key));
}

static void text(FILE *f, const char *s)
{
    for (; *s; s++) {
        if (*s == '<')
            fputs("&lt;", f);
        else if (*s == '>')
            fputs("&gt;", f);
        else if (*s == '&')
            fputs("&amp;", f);
        else if (*s == '"')
            fputs("&quot;", f);
        else
            fputc(*s, f);
    }
}

static void figure(FILE *f, double v)
{
    fprintf(f, v >= 1000 ? "%.0f" : v >= 100 ? "%.1f" : v >= 1 ? "%.2f" : "%.3f", v);
}

static void bar(FILE *f, int y, const char *who, const char *class, double v, double least, double most,
                double scale)
{
    double x0 = LEFT + least * scale, x1 = LEFT + most * scale, mid = y + BAR / 2.0;

    fprintf(f, "<text class=\"who\" x=\"%d\" y=\"%d\">", LEFT - 8, y + BAR - 5);
    text(f, who);
    fprintf(f, "</text><rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>", class, LEFT, y,
            XM_MAX(v * scale, 0.5), BAR);
    fprintf(f,
            "<path class=\"whisker\" d=\"M%.1f %.1fH%.1fM%.1f %.1fv8M%.1f %.1fv8\"/>"
            "<text x=\"%.1f\" y=\"%d\">",
            x0, mid, x1, x0, mid - 4, x1, mid - 4, XM_MAX(x1, LEFT + v * scale) + 8, y + BAR - 5);
    figure(f, v);
    fputs("</text>\n", f);
}

/* A version's first word: its number. */
static const char *peer_label(char *buf, size_t size, const char *version)
{
    snprintf(buf, size, version ? "QEMU %.*s" : "peer", version ? (int)strcspn(version, " ") : 0,
             version ? version : "");
    return buf;
}

static void chart(FILE *f, const json_t *row)
{
    double goal = num(row, "goal") * num(row, "peer");
    double most = XM_MAX(XM_MAX(num(row, "ours_max"), num(row, "peer_max")), goal);
    const json_t *beside = json_object_get(row, "beside");
    int others = (int)json_array_size(beside);

    for (int i = 0; i < others; i++)
        most = XM_MAX(most, num(json_array_get(beside, (size_t)i), "peer_max"));
    double scale = most > 0 ? WIDE / most : 0;
    int bottom = TOP + (2 + others) * (BAR + GAP) - GAP;
    double x = LEFT + goal * scale;
    char who[60];

    fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\">\n", LEFT + WIDE + RIGHT, bottom + 6);
    bar(f, TOP, "xmigrate", "ours", num(row, "ours"), num(row, "ours_min"), num(row, "ours_max"), scale);
    bar(f, TOP + BAR + GAP, peer_label(who, sizeof who, xm_json_str(row, "peer_version", NULL)), "peer",
        num(row, "peer"), num(row, "peer_min"), num(row, "peer_max"), scale);
    for (int i = 0; i < others; i++) {
        const json_t *o = json_array_get(beside, (size_t)i);
        bar(f, TOP + (2 + i) * (BAR + GAP), peer_label(who, sizeof who, xm_json_str(o, "version", NULL)),
            "other", num(o, "peer"), num(o, "peer_min"), num(o, "peer_max"), scale);
    }
    fprintf(f, "<path class=\"goal\" d=\"M%.1f %dV%d\"/><text class=\"goal\" x=\"%.1f\" y=\"%d\">goal %s ", x,
            TOP - 4, bottom + 4, x, TOP - 8,
            json_is_true(json_object_get(row, "higher_is_better")) ? "≥" : "≤");
    figure(f, goal);
    fputs("</text></svg>\n", f);
}

static void versions_html(FILE *f, const json_t *row)
{
    const char *version = xm_json_str(row, "peer_version", NULL);
    const json_t *beside = json_object_get(row, "beside");

    if (!version)
        return;
    fputs(": QEMU ", f);
    text(f, version);
    fprintf(f, ", %d runs", (int)num(row, "peer_runs"));
    for (size_t i = 0; i < json_array_size(beside); i++) {
        const json_t *o = json_array_get(beside, i);
        fputs(", the better; not ", f);
        text(f, xm_json_str(o, "version", "?"));
        fprintf(f, ", %d runs", (int)num(o, "runs"));
    }
}

static void row_html(FILE *f, const json_t *row)
{
    bool met = json_is_true(json_object_get(row, "met"));
    const char *why = xm_json_str(row, "why", NULL);
    const char *note = xm_json_str(row, "note", NULL);

    fprintf(f, "<div class=\"row %s\"><p><b>", met ? "met" : "missed");
    if (why) {
        fputs("not measured</b>: ", f);
        text(f, why);
        fputs("</p></div>\n", f);
        return;
    }
    fputs(met ? "met</b> · beside " : "missed</b> · beside ", f);
    text(f, xm_json_str(row, "peer_name", "?"));
    versions_html(f, row);
    fprintf(f, " · ratio %.2f, goal %s %.2f · ", num(row, "ratio"),
            json_is_true(json_object_get(row, "higher_is_better")) ? "≥" : "≤", num(row, "goal"));
    text(f, xm_json_str(row, "unit", ""));
    fprintf(f, " (medians of %d)</p>\n", (int)num(row, "runs"));
    chart(f, row);
    if (note) {
        fputs("<p class=\"note\">", f);
        text(f, note);
        fputs("</p>", f);
    }
    fputs("</div>\n", f);
}

static const char *const head =
    "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" "
    "content=\"width=device-width\"><title>xmigrate: benchmarks</title>\n<style>\n"
    "body{font:15px/1.45 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#1c2330;"
    "background:#fff}\n"
    "h1{font-size:1.5em}h2{font-size:1.1em;margin:1.8em 0 .4em;border-bottom:1px solid #d5dae2}\n"
    ".row{border-left:4px solid;padding:.1em 0 .3em .8em;margin:.7em 0}.met{border-color:#2e8b57}"
    ".missed{border-color:#c0392b}\n"
    ".row p{margin:.2em 0}.note{color:#5a6475;font-size:.9em}svg{width:100%;height:auto;display:block}\n"
    "svg text{font:12px "
    "system-ui,sans-serif;fill:#1c2330;paint-order:stroke;stroke:#fff;stroke-width:3px}.who{text-anchor:end}."
    "ours{fill:#2563a8}"
    ".peer{fill:#9aa7b8}.other{fill:#d5dae2}\n"
    ".whisker{stroke:#1c2330;stroke-width:1.2;fill:none}path.goal{stroke:#c0392b;stroke-width:1.5;"
    "stroke-dasharray:4 3}\n"
    "svg text.goal{fill:#c0392b;text-anchor:middle;font-size:11px}\n</style>\n";

/* Rows of a name stand together, in the order of their first. */
static void benches_html(FILE *f, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = xm_json_str(json_array_get(list, i), "name", "?");
        bool seen = false;
        for (size_t k = 0; k < i; k++)
            seen = seen || !strcmp(xm_json_str(json_array_get(list, k), "name", "?"), name);
        if (seen)
            continue;
        fputs("<h2>", f);
        text(f, name);
        fputs("</h2>\n", f);
        for (size_t k = i; k < json_array_size(list); k++) {
            if (!strcmp(xm_json_str(json_array_get(list, k), "name", "?"), name))
                row_html(f, json_array_get(list, k));
        }
    }
}

/* ---- the table ---- */

static void cell(FILE *f, const json_t *row, const char *who)
{
    char least[20], most[20];

    snprintf(least, sizeof least, "%s_min", who);
    snprintf(most, sizeof most, "%s_max", who);
    figure(f, num(row, who));
    fputs(" (", f);
    figure(f, num(row, least));
    fputs(" to ", f);
    figure(f, num(row, most));
    fputs(") | ", f);
}

static void table_row(FILE *f, const json_t *row)
{
    const json_t *beside = json_object_get(row, "beside");
    const char *version = xm_json_str(row, "peer_version", NULL);
    bool met = json_is_true(json_object_get(row, "met"));
    char who[60];

    if (json_object_get(row, "why")) {
        fprintf(f, "| %s | | | | | | **not measured**: %s |\n", xm_json_str(row, "name", "?"),
                xm_json_str(row, "why", ""));
        return;
    }
    fprintf(f, "| %s, %s%s%s", xm_json_str(row, "name", "?"), xm_json_str(row, "peer_name", "?"),
            version ? "; " : "", version ? peer_label(who, sizeof who, version) : "");
    for (size_t i = 0; i < json_array_size(beside); i++) {
        const json_t *o = json_array_get(beside, i);
        fprintf(f, " (%s: ", peer_label(who, sizeof who, xm_json_str(o, "version", NULL)));
        figure(f, num(o, "peer"));
        fputc(')', f);
    }
    fprintf(f, " | %s | ", xm_json_str(row, "unit", ""));
    cell(f, row, "ours");
    cell(f, row, "peer");
    fprintf(f, "%.2f | %s %.2f | %s |\n", num(row, "ratio"),
            json_is_true(json_object_get(row, "higher_is_better")) ? "≥" : "≤", num(row, "goal"),
            met ? "met" : "**missed**");
}

/* The versions' full names stand once, above. */
static void table(const json_t *list)
{
    FILE *f = fopen(TABLE, "w");
    const char *said[8];
    unsigned n = 0;

    if (!f) {
        fprintf(stderr, "report: " TABLE " cannot be written\n");
        return;
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *row = json_array_get(list, i), *beside = json_object_get(row, "beside");
        for (size_t k = 0; k <= json_array_size(beside); k++) {
            const char *v = k ? xm_json_str(json_array_get(beside, k - 1), "version", NULL)
                              : xm_json_str(row, "peer_version", NULL);
            unsigned seen = 0;
            while (v && seen < n && strcmp(said[seen], v) != 0)
                seen++;
            if (v && seen == n && n < sizeof said / sizeof *said)
                said[n++] = v;
        }
    }
    for (unsigned i = 0; i < n; i++)
        fprintf(f, "%s%s", i ? ", " : "QEMU ", said[i]);
    fputs(n ? "; a row's peer is the better of them, the other's median stands beside it in brackets.\n\n"
            : "",
          f);
    fputs("| bench, beside | unit | ours | peer | ratio | goal | |\n|---|---|---|---|---|---|---|\n", f);
    for (size_t i = 0; i < json_array_size(list); i++)
        table_row(f, json_array_get(list, i));
    fclose(f);
}

int main(int argc, char **argv)
{
    json_t *list = json_load_file(RESULTS, 0, NULL);
    unsigned met = 0;
    struct utsname u;
    char when[40];
    time_t now = time(NULL);

    bool refused = argc == 4 && !strcmp(argv[1], "--refused");
    if (refused || (argc == 4 && !strcmp(argv[1], "--failed"))) {
        for (size_t i = 0; i < json_array_size(list); i++) {
            json_t *row = json_array_get(list, i);
            if (!strcmp(xm_json_str(row, "name", ""), argv[2]) && (refused || json_object_get(row, "why")))
                return 0; /* it has spoken */
        }
        json_decref(list);
        bench_begin(argv[2]);
        bench_unable("%s", argv[3]);
        return 0;
    }
    FILE *f = list ? fopen(PAGE, "w") : NULL;
    if (!f) {
        fprintf(stderr, "report: there is no " RESULTS ", or " PAGE " cannot be written\n");
        return 1;
    }
    for (size_t i = 0; i < json_array_size(list); i++)
        met += json_is_true(json_object_get(json_array_get(list, i), "met"));
    uname(&u);
    strftime(when, sizeof when, "%Y-%m-%d %H:%M", localtime(&now));
    fputs(head, f);
    fprintf(f,
            "<h1>xmigrate beside its peers</h1>\n<p>%u of %zu goals met. Linux %s, %s CPUs, %s. Bars are "
            "medians, "
            "whiskers the least and the most of all runs; the dashed line is where our bar has to end at "
            "least, or "
            "at most. docs/benches.md says what is compared.</p>\n",
            met, json_array_size(list), u.release, bench_ask("nproc"), when);
    benches_html(f, list);
    fputs("</html>\n", f);
    fclose(f);
    table(list);
    printf("%u of %zu goals met\n", met, json_array_size(list));
    return met == json_array_size(list) ? 0 : 1;
}
