/* SPDX-License-Identifier: MIT */
#include "cli/outcome.h"
#include "cli/fields.h"
#include "cli/text.h"

#include <stdlib.h>
#include <string.h>

static void outcome_line(const struct cli_io *io, const char *what, const char *value)
{
    if (!*value)
        return;
    fprintf(io->out, "  %-12s ", what);
    put_text(io->out, value);
    fputc('\n', io->out);
}

static void outcome_flat(const struct cli_io *io, const char *what, const json_t *v)
{
    char *text = flat_text(v);

    outcome_line(io, what, text);
    free(text);
}

/* "121.2 ms, over its budget of 100.0 ms (in ms: final ram 1.2, disks 3.0, ...)" */
static void downtime_line(const struct cli_io *io, double ms, double budget, const json_t *parts)
{
    char *inner = flat_text(parts);
    char *over = budget > 0 && ms > budget
                     ? xm_printf(", over its budget of %s", xm_format_time((uint64_t)(budget * 1e6)).s)
                     : xm_printf("%s", "");
    char *text = xm_printf(*inner ? "%s%s (in ms: %s)" : "%s%s%s", xm_format_time((uint64_t)(ms * 1e6)).s,
                           over, inner);

    outcome_line(io, "downtime", text);
    free(text);
    free(over);
    free(inner);
}

/* A switch-over before it, of which its guest knows, too. */
static void given_up_line(const struct cli_io *io, const json_t *done)
{
    if (!xm_json_str(done, "given_up", NULL))
        return;
    char *text = xm_printf("once before, for %s; it went on then: %s",
                           xm_format_time((uint64_t)(xm_json_real(done, "given_up_ms", 0) * 1e6)).s,
                           xm_json_str(done, "given_up", ""));
    outcome_line(io, "stood still", text);
    free(text);
}

/* "96.00 MiB; 2 times to sync, 2 back; 3 chunks copied again; longest hold 1.2 ms" */
static void mirror_line(const struct cli_io *io, const json_t *m)
{
    int64_t bytes = xm_json_int(m, "bytes", -1), sync = xm_json_int(m, "to_sync", -1);
    char text[200];
    int n;

    if (bytes < 0 || sync < 0) {
        outcome_flat(io, "mirror", m);
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
    outcome_line(io, "mirror", text);
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
    if (!local) {
        outcome_line(io, "from", xm_json_str(done, "source", ""));
        outcome_line(io, "datastore", xm_json_str(done, "datastore", ""));
    }
    if (total >= 0)
        outcome_line(io, "total time", xm_format_time((uint64_t)(total * 1e9)).s);
    if (downtime >= 0 && !local && !paused)
        downtime_line(io, downtime, xm_json_real(done, "downtime_budget_ms", 0),
                      json_object_get(done, "downtime_parts_ms"));
    given_up_line(io, done);
    if (disk > 0 || zero > 0) {
        snprintf(text, sizeof text, "%s", xm_format_size((uint64_t)XM_MAX(disk, 0)).s);
        if (zero > 0)
            snprintf(text + strlen(text), sizeof text - strlen(text), ", and %s of holes and zeros not sent",
                     xm_format_size((uint64_t)zero).s);
        outcome_line(io, "disks", text);
    }
    if (xm_json_int(done, "verified_bytes", 0) > 0) {
        snprintf(text, sizeof text, "%s read again on both sides, and alike",
                 size_text(done, "verified_bytes"));
        outcome_line(io, "verified", text);
    }
    snprintf(text, sizeof text, "%s%s", xm_format_size((uint64_t)XM_MAX(ram, 0)).s, rounds > 0 ? " in " : "");
    if (rounds > 0)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%lld round%s", (long long)rounds,
                 rounds == 1 ? "" : "s");
    if (ram > 0)
        outcome_line(io, "memory", text);
    if (!local)
        outcome_line(io, "on the wire", size_text(done, "wire_bytes"));
    if (total > 0 && disk + ram > 0)
        outcome_line(io, "mean rate", xm_format_rate((double)(disk + ram) / total).s);
    mirror_line(io, json_object_get(done, "mirror"));
    if (!local)
        outcome_flat(io, "digest", json_object_get(done, "digest"));
    outcome_line(io, "note", xm_json_str(done, "note", ""));
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
    const char *first = scalar_text(json_array_get(reasons, 0));

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
