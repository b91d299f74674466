/* SPDX-License-Identifier: MIT */
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/text.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A scalar as text: strings as they are, numbers, yes and no. The rest: "". Lives until the next eight calls.
 */
static const char *scalar(const json_t *v)
{
    static char text[8][64];
    static unsigned at;

    if (json_is_string(v))
        return json_string_value(v);
    at = (at + 1) % 8;
    text[at][0] = 0;
    if (json_is_integer(v))
        snprintf(text[at], sizeof text[at], "%lld", (long long)json_integer_value(v));
    else if (json_is_real(v))
        snprintf(text[at], sizeof text[at], "%.4g", json_real_value(v));
    else if (json_is_boolean(v))
        snprintf(text[at], sizeof text[at], "%s", json_is_true(v) ? "yes" : "no");
    return text[at];
}

static const char *size_text(const json_t *o, const char *key)
{
    static char text[8][32];
    static unsigned at;
    int64_t n = xm_json_int(o, key, -1);

    at = (at + 1) % 8;
    snprintf(text[at], sizeof text[at], "%s", n < 0 ? "" : xm_format_size((uint64_t)n).s);
    return text[at];
}

/* Seconds since 1970 as local time; text stays text. */
static const char *time_text(const json_t *v)
{
    static char text[32];
    struct tm tm;

    if (!json_is_number(v))
        return scalar(v);
    time_t t = (time_t)json_number_value(v);
    if (!localtime_r(&t, &tm) || !strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm))
        return "";
    return text;
}

static void print_lines(const json_t *array, const char *before, FILE *out)
{
    size_t i;
    json_t *v;

    json_array_foreach (array, i, v) {
        fputs(before, out);
        put_text(out, scalar(v));
        fputc('\n', out);
    }
}

int report_text(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    const char *text = xm_json_str(answer, "text", xm_json_str(answer, "message", NULL));
    const char *note = xm_json_str(answer, "note", NULL);

    (void)a;
    if (text) {
        put_text(io->out, text);
        fputc('\n', io->out);
    }
    if (note) {
        fprintf(io->out, "note: ");
        put_text(io->out, note);
        fputc('\n', io->out);
    }
    return CLI_DONE;
}

int report_check(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    const json_t *reasons = json_object_get(answer, "reasons");

    if (json_array_size(reasons)) {
        fprintf(io->out, "%s cannot be moved to %s:\n", a->word[0], a->word[1]);
        print_lines(reasons, "  - ", io->out);
        return CLI_REFUSED;
    }
    fprintf(io->out, "%s can be moved to %s.\n", a->word[0], a->word[1]);
    print_lines(json_object_get(answer, "notes"), "note: ", io->out);
    return CLI_DONE;
}

int report_list(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    static const char *const titles[] = {"VM",    "STATE", "HOST",      "MEMORY",
                                         "VCPUS", "DISKS", "AUTOSTART", "JOB"};
    struct table t;
    size_t i;
    json_t *v;

    (void)a;
    table_begin(&t, 8, titles);
    json_array_foreach (json_object_get(answer, "vms"), i, v) {
        const json_t *disks = json_object_get(v, "disks");
        char count[24];
        snprintf(count, sizeof count, "%zu", json_array_size(disks));
        table_add(&t, (const char *const[]){xm_json_str(v, "name", ""), xm_json_str(v, "state", ""),
                                            xm_json_str(v, "host", xm_json_str(answer, "host", "")),
                                            size_text(v, "memory"), scalar(json_object_get(v, "vcpus")),
                                            json_is_array(disks) ? count : scalar(disks),
                                            json_is_true(json_object_get(v, "autostart")) ? "yes" : "",
                                            scalar(json_object_get(v, "job"))});
    }
    table_end(&t, io->out);
    return CLI_DONE;
}

static void print_paths(const json_t *disks, const char *title, FILE *out)
{
    const json_t *d;
    size_t i;

    if (json_array_size(disks))
        fputs(title, out);
    json_array_foreach (disks, i, d) {
        fputs("  ", out);
        put_text(out, xm_json_str(d, "path", scalar(d)));
        fputc('\n', out);
    }
}

int report_undefine(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    report_text(a, answer, io);
    print_paths(json_object_get(answer, "disks_kept"),
                "Its disks are kept, and nothing but you knows of them now:\n", io->out);
    print_paths(
        json_object_get(answer, "disks_left"),
        "What was its disks here when it moved away is here still; storage that hosts share may be in "
        "use at another one:\n",
        io->out);
    const char *nvram = xm_json_str(answer, "nvram_kept", NULL);
    if (nvram) {
        fputs("So are its firmware's variables; a specification takes them up by: nvram = ", io->out);
        put_text(io->out, nvram);
        fputc('\n', io->out);
    }
    return CLI_DONE;
}

/* As it is: it is read by define again. What a terminal would obey is not in it (vm/spec_dump.c). */
int report_dump(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    const char *note = xm_json_str(answer, "note", NULL);

    (void)a;
    fputs(xm_json_str(answer, "ini", ""), io->out);
    if (note) { /* not into the file */
        fputs("note: ", io->err);
        put_text(io->err, note);
        fputc('\n', io->err);
    }
    return CLI_DONE;
}

#define LOG_TAIL (64 << 10)

/* The last lines of a file; a guest or QEMU has written them. */
static void print_tail(const char *path, FILE *out)
{
    char *text = malloc(LOG_TAIL + 1);
    FILE *f = fopen(path, "re");

    if (text && f && fseek(f, 0, SEEK_END) == 0) {
        long size = ftell(f), from = XM_MAX(size - LOG_TAIL, 0L);
        size_t n = size > 0 && fseek(f, from, SEEK_SET) == 0 ? fread(text, 1, LOG_TAIL, f) : 0;
        text[n] = 0;
        char *at = from && strchr(text, '\n') ? strchr(text, '\n') + 1 : text;
        for (char *c = at; c < text + n; c++)
            *c = *c ? *c : '?';
        for (char *next; *at; at = next) {
            size_t len = strcspn(at, "\n");
            next = at + len + (at[len] == '\n');
            at[len] = 0;
            if (len && at[len - 1] == '\r')
                at[len - 1] = 0;
            put_text(out, at);
            fputc('\n', out);
        }
    }
    if (f)
        fclose(f);
    free(text);
}

int report_logs(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    const json_t *log;
    size_t i;

    (void)a;
    json_array_foreach (json_object_get(answer, "logs"), i, log) {
        const char *path = xm_json_str(log, "path", "");
        fputs(i ? "\n==> " : "==> ", io->out);
        put_text(io->out, path);
        fputs(" <==\n", io->out);
        print_tail(path, io->out);
    }
    return CLI_DONE;
}

int report_jobs(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    static const char *const titles[] = {"JOB", "VM", "DESTINATION", "STATE", "DONE", "STARTED", "RESULT"};
    struct table t;
    size_t i;
    json_t *v;

    (void)a;
    table_begin(&t, 7, titles);
    json_array_foreach (json_object_get(answer, "jobs"), i, v) {
        const json_t *progress = json_object_get(v, "progress");
        bool local = !strcmp(xm_json_str(v, "mode", ""), "storage-only");
        const char *destination = xm_json_str(v, local ? "datastore" : "destination", "");
        const char *result = scalar(json_object_get(v, "result")), *state = xm_json_str(v, "state", "");
        const char *step = xm_json_str(v, "step", xm_json_str(progress, "state", state));
        char percent[16] = "";
        double done = xm_json_real(v, "percent", percent_of(progress ? progress : v));
        if (done >= 0)
            snprintf(percent, sizeof percent, "%d %%", (int)XM_MIN(done, 100));
        table_add(&t,
                  (const char *const[]){scalar(json_object_get(v, "job")), xm_json_str(v, "vm", ""),
                                        destination, step, percent, time_text(json_object_get(v, "started")),
                                        xm_json_str(v, "error", strcmp(result, state) ? result : "")});
    }
    table_end(&t, io->out);
    return CLI_DONE;
}

/* Is the number under this key one of bytes? */
static bool in_bytes(const char *key)
{
    size_t n = strlen(key);
    return !strcmp(key, "memory") || !strcmp(key, "size") || (n > 6 && !strcmp(key + n - 6, "_bytes"));
}

/* Or a moment? */
static bool is_time(const char *key, const json_t *v)
{
    return json_is_integer(v) && (!strcmp(key, "at") || !strcmp(key, "started"));
}

/* Is there nothing to say? */
static bool empty(const json_t *v)
{
    return json_is_null(v) || (json_is_string(v) && !*json_string_value(v)) ||
           (json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v));
}

static void print_tree(const json_t *o, const char *without, int indent, FILE *out)
{
    const char *key;
    size_t i;
    json_t *v, *item;

    json_object_foreach ((json_t *)o, key, v) {
        if (empty(v) || (without && !strcmp(key, without)))
            continue;
        fprintf(out, "%*s", indent, "");
        put_text(out, key);
        if (json_is_object(v)) {
            fputs(":\n", out);
            print_tree(v, NULL, indent + 2, out);
        } else if (json_is_array(v)) {
            fputs(":\n", out);
            json_array_foreach (v, i, item) {
                const char *name = xm_json_str(item, "name", NULL);
                fprintf(out, "%*s- ", indent + 2, "");
                put_text(out, name ? name : scalar(item));
                fputc('\n', out);
                if (json_is_object(item) && indent < 20)
                    print_tree(item, "name", indent + 4, out);
            }
        } else {
            fprintf(out, "%*s", (int)XM_MAX(14 - (int)strlen(key), 1), "");
            put_text(out, in_bytes(key) && json_is_integer(v) ? size_text(o, key)
                          : is_time(key, v)                   ? time_text(v)
                                                              : scalar(v));
            fputc('\n', out);
        }
    }
}

int report_show(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    (void)a;
    print_tree(json_object_get(answer, "vm"), NULL, 0, io->out);
    return CLI_DONE;
}

/* "web1 root: ds1 -> hostb:ds2, 1.00 GiB: ds1 is 92 % full", of what is there. */
static void print_move(const json_t *m, FILE *out)
{
    const char *disk = xm_json_str(m, "disk", ""), *from = xm_json_str(m, "from", ""),
               *size = size_text(m, "bytes");
    const char *host = xm_json_str(m, "host", ""),
               *to = xm_json_str(m, "to", xm_json_str(m, "datastore", "?"));
    const char *reason = xm_json_str(m, "reason", "");
    char *line = json_is_string(m)
                     ? xm_printf("%s", json_string_value(m))
                     : xm_printf("%s%s%s:%s%s -> %s%s%s%s%s%s%s", xm_json_str(m, "vm", "?"), *disk ? " " : "",
                                 disk, *from ? " " : "", from, host, *host ? ":" : "", to, *size ? ", " : "",
                                 size, *reason ? ": " : "", reason);
    put_text(out, line);
    fputc('\n', out);
    free(line);
}

/* Moves that were made have been told one by one. */
int report_plan(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    const json_t *plan = json_object_get(answer, "plan"), *reasons = json_object_get(answer, "reasons");
    bool over = json_array_size(json_object_get(answer, "over")) > 0;
    size_t i;
    json_t *m;

    if (json_is_array(plan) && !json_array_size(plan) && !over)
        fputs("Every datastore of this host is at or below its target: nothing to move.\n", io->out);
    else if (json_is_array(plan) && !json_array_size(plan) && !json_array_size(reasons))
        fputs("Nothing that could be moved would help.\n", io->out);
    if (args_has(a, OPT_DRY_RUN)) {
        json_array_foreach (plan, i, m)
            print_move(m, io->out);
    }
    print_lines(reasons, "", io->out);
    report_text(a, answer, io);
    return over ? CLI_FAILED : CLI_DONE;
}

static void line(const struct cli_io *io, const char *what, const char *value)
{
    if (!*value)
        return;
    fprintf(io->out, "  %-12s ", what);
    put_text(io->out, value);
    fputc('\n', io->out);
}

#define FLAT_MAX 300 /* bytes after which nothing more is added */

/* "switches 2, gave up 0": an object or a list in one line; the caller's to free. */
static char *flat(const json_t *v)
{
    char *text = xm_printf("%s", scalar(v));
    const char *key;
    json_t *item;
    size_t i;

    json_object_foreach ((json_t *)v, key, item) {
        if (strlen(text) > FLAT_MAX)
            break;
        char *inner = flat(item);
        char *more = xm_printf("%s%s%s %s", text, *text ? ", " : "", key, inner);
        free(inner);
        free(text);
        text = more;
    }
    json_array_foreach (v, i, item) {
        if (strlen(text) > FLAT_MAX)
            break;
        char *inner = flat(item);
        char *more = xm_printf("%s%s%s", text, i ? "; " : "", inner);
        free(inner);
        free(text);
        text = more;
    }
    for (char *s = text; *s; s++)
        *s = *s == '_' ? ' ' : *s;
    return text;
}

static void flat_line(const struct cli_io *io, const char *what, const json_t *v)
{
    char *text = flat(v);

    line(io, what, text);
    free(text);
}

/* "121.2 ms, over its budget of 100.0 ms (in ms: final ram 1.2, disks 3.0, ...)" */
static void downtime_line(const struct cli_io *io, double ms, double budget, const json_t *parts)
{
    char *inner = flat(parts);
    char *over = budget > 0 && ms > budget
                     ? xm_printf(", over its budget of %s", xm_format_time((uint64_t)(budget * 1e6)).s)
                     : xm_printf("%s", "");
    char *text = xm_printf(*inner ? "%s%s (in ms: %s)" : "%s%s%s", xm_format_time((uint64_t)(ms * 1e6)).s,
                           over, inner);

    line(io, "downtime", text);
    free(text);
    free(over);
    free(inner);
}

/* "96.00 MiB; 2 times to sync, 2 back; 3 chunks copied again; longest hold 1.2 ms" */
static void mirror_line(const struct cli_io *io, const json_t *m)
{
    int64_t bytes = xm_json_int(m, "bytes", -1), sync = xm_json_int(m, "to_sync", -1);
    char text[200];
    int n;

    if (bytes < 0 || sync < 0) {
        flat_line(io, "mirror", m);
        return;
    }
    n = snprintf(text, sizeof text, "%s of guest writes; ", xm_format_size((uint64_t)bytes).s);
    n += snprintf(text + n, sizeof text - (size_t)n,
                  sync ? "%lld times to sync, %lld back" : "async all the time", (long long)sync,
                  (long long)xm_json_int(m, "to_async", 0));
    if (xm_json_int(m, "given_up", 0) > 0)
        n += snprintf(text + n, sizeof text - (size_t)n, "; %lld chunks copied again",
                      (long long)xm_json_int(m, "given_up", 0));
    if (xm_json_real(m, "held_ms_max", 0) > 0)
        snprintf(text + n, sizeof text - (size_t)n, "; longest hold of a write %s",
                 xm_format_time((uint64_t)(xm_json_real(m, "held_ms_max", 0) * 1e6)).s);
    line(io, "mirror", text);
}

void report_done(const json_t *done, const json_t *first, const struct cli_io *io)
{
    double total = xm_json_real(done, "total_s", -1), downtime = xm_json_real(done, "downtime_ms", -1);
    int64_t disk = xm_json_int(done, "disk_bytes", 0), ram = xm_json_int(done, "ram_bytes", 0);
    int64_t rounds = xm_json_int(done, "rounds", 0), zero = xm_json_int(done, "disk_zero_bytes", 0);
    const char *to = xm_json_str(done, "destination", NULL);
    char text[100];

    const char *vm = xm_json_str(done, "vm", "The VM");
    bool local = !strcmp(xm_json_str(done, "mode", xm_json_str(first, "mode", "")), "storage-only");
    if (json_is_true(json_object_get(done, "nothing"))) {
        fprintf(io->out, "The disks of ");
        put_text(io->out, vm);
        fputs(" lie in ", io->out);
        put_text(io->out, xm_json_str(done, "datastore", "it"));
        fputs(" already: nothing was moved.\n", io->out);
        return;
    }
    if (local) { /* no other host, no links, nothing stood still */
        fputs("The disks of ", io->out);
        to = xm_json_str(first, "datastore", xm_json_str(done, "datastore", NULL));
    }
    put_text(io->out, vm);
    fputs(local ? " have moved" : " has moved", io->out);
    fputs(to ? " to " : "", io->out);
    put_text(io->out, to ? to : "");
    bool paused = json_is_true(json_object_get(done, "paused"));
    fputs(paused ? ". It is paused there, as it was here.\n" : ".\n", io->out);
    if (!local)
        line(io, "from", xm_json_str(done, "source", ""));
    if (total >= 0)
        line(io, "total time", xm_format_time((uint64_t)(total * 1e9)).s);
    if (downtime >= 0 && !local && !paused)
        downtime_line(io, downtime, xm_json_real(done, "downtime_budget_ms", 0),
                      json_object_get(done, "downtime_parts_ms"));
    if (disk > 0 || zero > 0) {
        snprintf(text, sizeof text, "%s", xm_format_size((uint64_t)XM_MAX(disk, 0)).s);
        if (zero > 0)
            snprintf(text + strlen(text), sizeof text - strlen(text), ", and %s of holes and zeros not sent",
                     xm_format_size((uint64_t)zero).s);
        line(io, "disks", text);
    }
    snprintf(text, sizeof text, "%s%s", xm_format_size((uint64_t)XM_MAX(ram, 0)).s, rounds > 0 ? " in " : "");
    if (rounds > 0)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%lld round%s", (long long)rounds,
                 rounds == 1 ? "" : "s");
    if (ram > 0)
        line(io, "memory", text);
    if (!local)
        line(io, "on the wire", size_text(done, "wire_bytes"));
    if (total > 0 && disk + ram > 0)
        line(io, "mean rate", xm_format_rate((double)(disk + ram) / total).s);
    mirror_line(io, json_object_get(done, "mirror"));
    if (!local)
        flat_line(io, "digest", json_object_get(done, "digest"));
    line(io, "note", xm_json_str(done, "note", ""));
    print_paths(json_object_get(done, "kept_disks"),
                local ? "These old files of its disks are kept, and belong to no VM now:\n"
                      : "At the source these disks are kept, and belong to no VM now:\n",
                io->out);
}

int exit_of_failure(const json_t *failure)
{
    int64_t code = xm_json_int(failure, "exit", 0);

    if (code >= CLI_FAILED && code <= CLI_UNKNOWN)
        return (int)code;
    if (!xm_json_bool(failure, "vm_safe", true))
        return CLI_UNKNOWN;
    return json_array_size(json_object_get(failure, "reasons")) ? CLI_REFUSED : CLI_FAILED;
}

int report_failure(const json_t *failure, const struct cli_io *io)
{
    const char *error = xm_json_str(failure, "error", NULL), *state = xm_json_str(failure, "state", NULL);
    const json_t *reasons = json_object_get(failure, "reasons");
    const char *first = scalar(json_array_get(reasons, 0));

    /* An error that is the reasons in one sentence: the list says it better. */
    if (*first && (!error || strstr(error, first)))
        error = "refused, for these reasons:";
    fputs("xmigrate: ", io->err);
    put_text(io->err, error ? error : "the agent says that it failed, but not why");
    if (state) {
        fputs(" (in the state ", io->err);
        put_text(io->err, state);
        fputc(')', io->err);
    }
    fputc('\n', io->err);
    print_lines(reasons, "  - ", io->err);
    const char *vm = xm_json_str(failure, "vm", NULL);
    if (vm && json_is_true(json_object_get(failure, "stopped"))) {
        put_text(io->err, vm);
        fputs(" is stopped where it was; `xmigrate start ", io->err);
        put_text(io->err, vm);
        fputs("` starts it there.\n", io->err);
    } else if (vm && json_is_true(json_object_get(failure, "vm_safe"))) {
        put_text(io->err, vm);
        fputs(" is safe where it was.\n", io->err);
    } else if (vm && exit_of_failure(failure) == CLI_UNKNOWN &&
               !(error && strstr(error, "xmigrate recover"))) {
        /* A migration's. What a verb was refused by says itself what to do, above all recover's. */
        fputs("Which host owns the VM now says: xmigrate recover ", io->err);
        put_text(io->err, vm);
        fputc('\n', io->err);
    }
    return exit_of_failure(failure);
}
