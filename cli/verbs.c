/* SPDX-License-Identifier: MIT */
#include "cli/console.h"
#include "cli/edit.h"
#include "cli/report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Limits that are not given are left out: the agent's configuration has its own. */
static json_t *options_of(const struct args *a)
{
    json_t *o = json_pack("{s:b s:s s:b s:b s:b s:s}", "verify", args_has(a, OPT_VERIFY), "compress",
                          a->value[OPT_COMPRESS], "resume", args_has(a, OPT_RESUME), "keep_source",
                          args_has(a, OPT_KEEP_SOURCE), "allow_older", args_has(a, OPT_ALLOW_OLDER),
                          "postcopy", a->value[OPT_POSTCOPY]);

    if (args_has(a, OPT_OUTRUN))
        json_object_set_new(o, "outrun", json_string(a->value[OPT_OUTRUN]));
    if (args_has(a, OPT_DOWNTIME))
        json_object_set_new(o, "downtime_ms", json_integer((json_int_t)a->downtime_ms));
    if (args_has(a, OPT_BANDWIDTH))
        json_object_set_new(o, "bandwidth", json_integer((json_int_t)a->bandwidth));
    return o;
}

/* What would be taken for granted, and would do nothing. */
static int refuse_idle(const struct args *a, struct xm_error *e)
{
    bool only = args_has(a, OPT_STORAGE_ONLY), disks = only || args_has(a, OPT_WITH_STORAGE);
    const char *idle = NULL;

    if (only && (args_has(a, OPT_DOWNTIME) || args_has(a, OPT_ALLOW_OLDER)))
        return xm_error_set(e, EINVAL,
                            "--storage-only stops no VM and leaves it in its QEMU: %s says nothing of it",
                            args_has(a, OPT_DOWNTIME) ? "--downtime" : "--allow-older");
    if (!disks && args_has(a, OPT_VERIFY))
        idle = "--verify";
    else if (!disks && args_has(a, OPT_KEEP_SOURCE))
        idle = "--keep-source";
    if (!idle)
        return 0;
    return xm_error_set(e, EINVAL,
                        "%s is about disks that are moved, and none are: add --with-storage, or leave it out",
                        idle);
}

/* VM HOST[:DATASTORE], or with --storage-only VM DATASTORE. */
static int move_request(const struct args *a, json_t *r, struct xm_error *e)
{
    const char *place = a->word[1];
    const char *colon = strchr(place, ':');
    bool only = args_has(a, OPT_STORAGE_ONLY);

    if (only && args_has(a, OPT_WITH_STORAGE))
        return xm_error_set(
            e, EINVAL,
            "--with-storage moves the VM to another host, --storage-only leaves it here: choose one");
    if (only && colon)
        return xm_error_set(e, EINVAL,
                            "--storage-only stays on this host: write the datastore alone, not %.60s", place);
    if (colon && !args_has(a, OPT_WITH_STORAGE))
        return xm_error_set(e, EINVAL,
                            "a datastore (%.60s) is given, but the disks are not moved: add --with-storage",
                            place);
    if (colon && (colon == place || !colon[1]))
        return xm_error_set(e, EINVAL, "\"%.60s\" is no HOST or HOST:DATASTORE", place);
    if (args_has(a, OPT_DETACH) && args_has(a, OPT_DRY_RUN))
        return xm_error_set(e, EINVAL, "--dry-run starts nothing that --detach could leave running");
    int idle = refuse_idle(a, e);
    if (idle)
        return idle;
    json_object_set_new(r, "vm", json_string(a->word[0]));
    json_object_set_new(
        r, "host", only ? json_null() : json_stringn(place, colon ? (size_t)(colon - place) : strlen(place)));
    json_object_set_new(r, "datastore",
                        only    ? json_string(place)
                        : colon ? json_string(colon + 1)
                                : json_null());
    json_object_set_new(r, "storage", json_boolean(args_has(a, OPT_WITH_STORAGE)));
    json_object_set_new(r, "storage_only", json_boolean(only));
    json_object_set_new(r, "options", options_of(a));
    json_object_set_new(r, "dry_run", json_boolean(args_has(a, OPT_DRY_RUN)));
    json_object_set_new(r, "detach", json_boolean(args_has(a, OPT_DETACH)));
    return 0;
}

/* The agent reads the file, so it gets the whole path. */
static int spec_request(const struct args *a, json_t *r, struct xm_error *e)
{
    char *path = realpath(a->word[0], NULL);

    if (!path)
        return xm_error_errno(e, errno, "cannot read the specification %.200s", a->word[0]);
    json_object_set_new(r, "spec", json_string(path));
    free(path);
    return 0;
}

/* A word that could be either is the file, if there is one. */
static int start_request(const struct args *a, json_t *r, struct xm_error *e)
{
    struct stat st;

    if (strchr(a->word[0], '/') || (!stat(a->word[0], &st) && !S_ISDIR(st.st_mode)))
        return spec_request(a, r, e);
    json_object_set_new(r, "vm", json_string(a->word[0]));
    return 0;
}

static int set_request(const struct args *a, json_t *r, struct xm_error *e)
{
    bool rate = args_has(a, OPT_BANDWIDTH), autostart = args_has(a, OPT_AUTOSTART),
         outrun = args_has(a, OPT_OUTRUN);

    if (rate + autostart + outrun != 1)
        return xm_error_set(
            e, EINVAL,
            "set needs --bandwidth RATE or --outrun end|go-on for a job, or --autostart yes|no "
            "for a VM");
    json_object_set_new(r, autostart ? "vm" : "job", json_string(a->word[0]));
    if (outrun)
        json_object_set_new(r, "outrun", json_string(a->value[OPT_OUTRUN]));
    else if (rate)
        json_object_set_new(r, "bandwidth", json_integer((json_int_t)a->bandwidth));
    else
        json_object_set_new(r, "autostart", json_boolean(!strcmp(a->value[OPT_AUTOSTART], "yes")));
    return 0;
}

static int vm_request(const struct args *a, json_t *r, struct xm_error *e)
{
    (void)e;
    json_object_set_new(r, "vm", json_string(a->word[0]));
    if (a->verb->options & OPT_BIT(OPT_FORCE))
        json_object_set_new(r, "force", json_boolean(args_has(a, OPT_FORCE)));
    return 0;
}

static int stop_request(const struct args *a, json_t *r, struct xm_error *e)
{
    if (args_has(a, OPT_FORCE) && args_has(a, OPT_TIMEOUT))
        return xm_error_set(e, EINVAL, "--force does not ask the guest, so there is no --timeout for it");
    if (args_has(a, OPT_TIMEOUT))
        json_object_set_new(r, "timeout_ms", json_integer((json_int_t)a->timeout_ms));
    return vm_request(a, r, e);
}

static int job_request(const struct args *a, json_t *r, struct xm_error *e)
{
    (void)e;
    json_object_set_new(r, "job", json_string(a->word[0]));
    return 0;
}

static int rebalance_request(const struct args *a, json_t *r, struct xm_error *e)
{
    (void)e;
    json_object_set_new(r, "dry_run", json_boolean(args_has(a, OPT_DRY_RUN)));
    return 0;
}

static int recover_request(const struct args *a, json_t *r, struct xm_error *e)
{
    json_object_set_new(r, "peer_is_dead", json_boolean(args_has(a, OPT_PEER_IS_DEAD)));
    return vm_request(a, r, e);
}

#define BIT(o)     OPT_BIT(OPT_##o)
#define WHAT_MOVES (BIT(WITH_STORAGE) | BIT(STORAGE_ONLY))
#define HOW_TO_MOVE                                                                                          \
    (BIT(DOWNTIME) | BIT(BANDWIDTH) | BIT(POSTCOPY) | BIT(VERIFY) | BIT(COMPRESS) | BIT(RESUME) |            \
     BIT(KEEP_SOURCE) | BIT(ALLOW_OLDER) | BIT(OUTRUN))

const struct verb verb_table[] = {
    {.name = "move",
     .words = "VM HOST[:DATASTORE] | --storage-only VM DATASTORE",
     .min = 2,
     .max = 2,
     .options = WHAT_MOVES | HOW_TO_MOVE | BIT(DETACH) | BIT(DRY_RUN),
     .follows = true,
     .changes = true,
     .help = "Move a running VM to another host, or its disks to another datastore. The word move may be "
             "left out.",
     .request = move_request,
     .print = report_check},
    {.name = "check",
     .words = "VM HOST[:DATASTORE] | --storage-only VM DATASTORE",
     .min = 2,
     .max = 2,
     .options = WHAT_MOVES | HOW_TO_MOVE,
     .request = move_request,
     .print = report_check,
     .help = "Say whether that move could be made, and all that stands in its way."},
    {.name = "start",
     .words = "VM | SPEC",
     .min = 1,
     .max = 1,
     .changes = true,
     .request = start_request,
     .print = report_text,
     .help = "Start a VM that this host has, or define and start the one that the file SPEC describes (see "
             "xmigrate.conf(5))."},
    {.name = "stop",
     .words = "VM",
     .min = 1,
     .max = 1,
     .options = BIT(FORCE) | BIT(TIMEOUT),
     .changes = true,
     .request = stop_request,
     .print = report_text,
     .help = "Ask the guest to power itself down, and wait until it has."},
    {.name = "define",
     .words = "SPEC",
     .min = 1,
     .max = 1,
     .changes = true,
     .request = spec_request,
     .print = report_text,
     .help = "Make the VM that the file SPEC describes known to this host, with its disks, or change its "
             "definition; do not start "
             "it."},
    {.name = "undefine",
     .words = "VM",
     .min = 1,
     .max = 1,
     .options = BIT(FORCE),
     .changes = true,
     .request = vm_request,
     .print = report_undefine,
     .help = "Forget a VM that is stopped, or that has moved away. No disk is deleted."},
    {.name = "dump",
     .words = "VM",
     .min = 1,
     .max = 1,
     .request = vm_request,
     .print = report_dump,
     .help = "Print a VM's definition, as a file that define takes."},
    {.name = "edit",
     .words = "VM",
     .min = 1,
     .max = 1,
     .changes = true,
     .request = vm_request,
     .run = edit_run,
     .print = report_text,
     .help = "Change the definition of a stopped VM with the program that VISUAL or EDITOR names."},
    {.name = "console",
     .words = "VM",
     .min = 1,
     .max = 1,
     .request = vm_request,
     .run = console_run,
     .help = "Connect this terminal with the VM's serial console, until control-] is typed."},
    {.name = "log",
     .words = "VM",
     .min = 1,
     .max = 1,
     .request = vm_request,
     .print = report_logs,
     .help = "Print the ends of a VM's logs: its shim's, its QEMU's, and its console's."},
    {.name = "list",
     .words = "",
     .print = report_list,
     .help = "The VMs of this host, those that are stopped too."},
    {.name = "show",
     .words = "VM",
     .min = 1,
     .max = 1,
     .request = vm_request,
     .print = report_show,
     .help = "All that is known of a VM."},
    {.name = "jobs",
     .words = "",
     .print = report_jobs,
     .help = "The migrations that run, and those that have ended."},
    {.name = "watch",
     .words = "JOB",
     .min = 1,
     .max = 1,
     .follows = true,
     .request = job_request,
     .print = report_text,
     .help = "Follow a migration until its end. Interrupting this does not interrupt the migration."},
    {.name = "abort",
     .words = "JOB",
     .min = 1,
     .max = 1,
     .changes = true,
     .request = job_request,
     .print = report_text,
     .help = "End a migration, with the VM where it is. Too late once it has been handed over."},
    {.name = "set",
     .words = "JOB --bandwidth RATE | JOB --outrun end|go-on | VM --autostart yes|no",
     .min = 1,
     .max = 1,
     .options = BIT(BANDWIDTH) | BIT(OUTRUN) | BIT(AUTOSTART),
     .changes = true,
     .request = set_request,
     .print = report_text,
     .help =
         "Change a running migration's limit, or whether it goes on though its guest outruns it; or whether "
         "a VM is started by itself when its host has booted."},
    {.name = "recover",
     .words = "VM",
     .min = 1,
     .max = 1,
     .options = BIT(PEER_IS_DEAD),
     .changes = true,
     .request = recover_request,
     .print = report_text,
     .help = "Say which host owns a VM; after a crash in its hand-off, find that out and run it there."},
    {.name = "rebalance",
     .words = "",
     .options = BIT(DRY_RUN),
     .moves = true,
     .changes = true,
     .request = rebalance_request,
     .print = report_plan,
     .help = "Move VMs' disks until each datastore is below its target fill, by as few moves as it takes."},
    {0},
};

const struct verb *verb_find(const char *name)
{
    for (const struct verb *v = verb_table; v->name; v++) {
        if (!strcmp(v->name, name))
            return v;
    }
    return NULL;
}

json_t *verb_request(const struct args *a, struct xm_error *e)
{
    json_t *r = json_pack("{s:s}", "verb", a->verb->name);

    for (int i = 0; i < a->words; i++) {
        json_t *text = json_string(a->word[i]);
        if (!text) {
            xm_error_set(e, EINVAL, "the command line holds text that is not UTF-8");
            json_decref(r);
            return NULL;
        }
        json_decref(text);
    }
    if (a->verb->request && a->verb->request(a, r, e) < 0) {
        json_decref(r);
        return NULL;
    }
    return r;
}
