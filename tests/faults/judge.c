/* SPDX-License-Identifier: MIT */
/* What must hold when the VM has come to rest, by what is seen of processes, files and the guest itself, not
 * by records alone:
 *   - it runs on one host: its guest is heard there and not at the other one;
 * - the guest finds nothing wrong in RAM and disks. It has begun anew only if a fault ended its QEMU, and
 * then all
 *     writes are there that it had been told to be done; after a power cut those that a flush covered;
 * - what the move's exit status said is so: 0, it is at the destination; 1 and 3, it has not left the source;
 *   - a named point ends where the table says;
 * - nothing is left: processes, files of any kind, taps, mounts of loop devices, journals, running jobs,
 * zombies;
 *   - a move without a fault works. */
#include "tests/faults/faults.h"
#include "tests/progress.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEFT_S 15 /* what ends by itself may take a moment */

/* ---- the guest ---- */

static void judge_guest(struct world *w, const struct plan *p, struct outcome *o)
{
    struct small *g = &w->guest;
    unsigned there = o->home == 'a'; /* the other one's console */
    const char *why = small_ready(g, o->home);

    if (why) {
        wrong(o, "the guest at host%c: %s", o->home, why);
        return;
    }
    size_t heard = g->console[there].heard;
    bool anew = g->boots != o->boots;
    if (anew && !w->may_end)
        wrong(o, "the guest has begun anew, though its QEMU was let alone");
    if (anew && (why = small_lost(g, w->torn)))
        wrong(o, "lost: %s", why);
    if ((why = small_check(g)))
        wrong(o, "the guest at host%c: %s", o->home, why);
    if (g->console[there].heard != heard)
        wrong(o, "two run it: it is heard at both hosts");
    if (p->home && o->struck && (!strcmp(p->home, "source")) != (o->home == w->home))
        wrong(o, "it is at the %s", o->home == w->home ? "source" : "destination");
}

/* 4 says that it is not known; -1: the command was killed. */
static void judge_status(const struct world *w, const struct plan *p, struct outcome *o)
{
    bool stays = o->home == w->home;

    if (o->exit == 0 && stays && !p->storage_only)
        wrong(o, "the move said that it is done, and the VM is at the source");
    if ((o->exit == 1 || o->exit == 3) && !stays)
        wrong(o, "the move said that the VM has stayed (%d), and it is at the destination", o->exit);
    if (o->exit == 1 && stays && o->started && !w->may_end)
        wrong(o, "the move said that the VM is safe, and it had ended");
}

/* ---- what is left ---- */

static bool is_empty(const char *command, char *out, size_t size)
{
    char *said = NULL;

    sh(&said, 20, "%s", command);
    snprintf(out, size, "%.300s", said ? said : "?");
    free(said);
    for (char *c = out; *c; c++)
        *c = *c == '\n' ? ' ' : *c;
    return !*out;
}

static void must_be_empty(struct outcome *o, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void must_be_empty(struct outcome *o, const char *what, const char *fmt, ...)
{
    char command[2000], out[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    for (struct limit l = limit_start(LEFT_S); !is_empty(command, out, sizeof out);) {
        if (limit_over(&l) || limit_elapsed(&l) > 3 * LEFT_S) {
            wrong(o, "left: %s: %s", what, out);
            return;
        }
    }
}

static void judge_left(const struct world *w, struct outcome *o)
{
    const char *run = lab_run_dir(), *store = lab_store_dir(), *prefix = lab_prefix();
    char home = o->home, other = home == 'a' ? 'b' : 'a';
    char disks[2][512], h[2] = {home, 0};

    must_be_empty(o, "processes at the other host",
                  "ip netns pids %s-host%c | while read p; do cat /proc/$p/comm 2>/dev/null; done | "
                  "grep -v '^xmigrated$'",
                  prefix, other);
    must_be_empty(o, "processes where it runs",
                  "ip netns pids %s-host%c | while read p; do cat /proc/$p/comm 2>/dev/null; done | sort | "
                  "tr '\\n' ' ' | grep -vE '^qemu-system-x86 xmigrate-shim xmigrated ?$'",
                  prefix, home);
    must_be_empty(o, "run directory", "find %s/%c/run/vms -mindepth 1 2>/dev/null", run, other);
    must_be_empty(o, "taps", "ip netns exec %s-host%c ip -o link show type tun", prefix, other);
    must_be_empty(o, "more taps than NICs", "ip netns exec %s-host%c ip -o link show type tun | sed 1d",
                  prefix, home);
    must_be_empty(o, "journals", "ls %s/?/state/vms/*/journal.json 2>/dev/null", run);
    must_be_empty(o, "temporary files", "find %s/?/state %s/?/run -name '*.tmp-*'", run, run);
    must_be_empty(o, "jobs that run",
                  "for h in a b; do tests/system/lab.sh xmigrate $h --json jobs | grep -o '\"state\":[ "
                  "]*\"running\"'; done");
    must_be_empty(
        o, "zombies",
        "for p in $(ip netns pids %s-hosta; ip netns pids %s-hostb); do ps -o stat=,comm= --ppid $p | "
        "grep '^Z'; done",
        prefix, prefix);
    disk_path(h, VM, "one", disks[0], sizeof disks[0]);
    disk_path(h, VM, "two", disks[1], sizeof disks[1]);
    must_be_empty(o, "files in datastores", "find %s/?/ds? %s/shared -type f | grep -vxF -e '%s' -e '%s'",
                  store, store, disks[0], disks[1]);
    must_be_empty(o, "a disk that is missing", "ls %s %s >/dev/null", disks[0], disks[1]);
    must_be_empty(o, "loop devices", "losetup -l -n -O BACK-FILE | grep -E '^%s/./ds'", store);
    (void)w;
}

/* ---- the next move ---- */

static void judge_next(struct world *w, struct outcome *o)
{
    char host[2] = {o->home, 0}, other = o->home == 'a' ? 'b' : 'a', *said = NULL;
    const char *why;

    if (sh(&said, 60, "%s", xmigrate(host, "--json --with-storage " VM " host%c:ds1", other)) != 0)
        wrong(o, "the next move fails: %.400s",
              said ? strstr(said, "\"error\"") ? strstr(said, "\"error\"") : said : "");
    free(said);
    if (o->wrong[0])
        return;
    if ((why = small_ready(&w->guest, other)) || (why = small_check(&w->guest)))
        wrong(o, "after the next move: %s", why);
    w->home = other;
    w->ds = 1;
}

void judge(struct world *w, const struct plan *p, struct outcome *o)
{
    unsigned boots = w->guest.boots;

    judge_guest(w, p, o);
    judge_status(w, p, o);
    if (!o->wrong[0])
        judge_left(w, o);
    if (o->wrong[0])
        return;
    boots = w->guest.boots;
    judge_next(w, o);
    if (!o->wrong[0] && w->guest.boots != boots)
        wrong(o, "the next move made the guest begin anew");
}
