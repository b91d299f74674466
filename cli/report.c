/* SPDX-License-Identifier: MIT */
#include "cli/fields.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/text.h"

#include <stdlib.h>
#include <string.h>

int report_text(const struct args *a, const json_t *answer, const struct cli_io *io)
{
    const char *text = xm_json_str(answer, "text", NULL);
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
        char count[24], state[40];
        snprintf(state, sizeof state, "%s%s", xm_json_str(v, "state", ""),
                 xm_json_int(v, "waiting", 0) ? ", no room" : "");
        snprintf(count, sizeof count, "%zu", json_array_size(disks));
        table_add(&t, (const char *const[]){xm_json_str(v, "name", ""), state,
                                            xm_json_str(v, "host", xm_json_str(answer, "host", "")),
                                            size_text(v, "memory"), scalar_text(json_object_get(v, "vcpus")),
                                            json_is_array(disks) ? count : scalar_text(disks),
                                            json_is_true(json_object_get(v, "autostart")) ? "yes" : "",
                                            scalar_text(json_object_get(v, "job"))});
    }
    table_end(&t, io->out);
    return CLI_DONE;
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
        bool local = !strcmp(xm_json_str(v, "mode", ""), "storage-only");
        const char *destination = xm_json_str(v, local ? "datastore" : "destination", "");
        const char *result = scalar_text(json_object_get(v, "result")), *state = xm_json_str(v, "state", "");
        const char *step = xm_json_str(v, "step", state);
        char percent[16] = "";
        int done = percent_of(v);
        if (done >= 0)
            snprintf(percent, sizeof percent, "%d %%", done);
        table_add(&t,
                  (const char *const[]){scalar_text(json_object_get(v, "job")), xm_json_str(v, "vm", ""),
                                        destination, step, percent, time_text(json_object_get(v, "started")),
                                        xm_json_str(v, "error", strcmp(result, state) ? result : "")});
    }
    table_end(&t, io->out);
    return CLI_DONE;
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

    bool nothing = json_is_array(plan) && !json_array_size(plan);
    if (nothing && !over && (io->terminal || args_has(a, OPT_DRY_RUN))) /* cron mails what is printed */
        fputs("Every datastore of this host is at or below its target: nothing to move.\n", io->out);
    else if (nothing && over && !json_array_size(reasons))
        fputs("Nothing that could be moved would help.\n", io->out);
    if (args_has(a, OPT_DRY_RUN)) {
        json_array_foreach (plan, i, m)
            print_move(m, io->out);
    }
    print_lines(reasons, "", io->out);
    report_text(a, answer, io);
    return over ? CLI_FAILED : CLI_DONE;
}
