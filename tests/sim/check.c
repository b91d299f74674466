/* SPDX-License-Identifier: MIT */
/* What must hold: always, and when the world has come to rest. */
#include "tests/sim/sim.h"
#include "agent/agent.h"
#include "vm/vm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long seen_turn[HOSTS];
static struct owner_record record[HOSTS];
static int readable[HOSTS];

void sim_violated(const char *fmt, ...)
{
    va_list ap;

    if (w.failed)
        return;
    va_start(ap, fmt);
    vsnprintf(w.violation, sizeof w.violation, fmt, ap);
    va_end(ap);
    w.failed = true;
    sim_trace("VIOLATED: %s", w.violation);
}

static void read_records(void)
{
    for (int i = 0; i < w.hosts; i++) {
        char dir[64];
        if (seen_turn[i] == records_turn[i])
            continue;
        seen_turn[i] = records_turn[i];
        snprintf(dir, sizeof dir, "%s/vms/" VM, w.host[i].state_dir);
        files_as(&w.host[i]);
        readable[i] = owner_load(dir, VM, &record[i], NULL);
        files_as(NULL);
    }
}

static bool says_mine(int i)
{
    return !readable[i] && record[i].owner == OWNER_MINE;
}

/* After each event. */
void check_always(void)
{
    unsigned running = 0;

    for (struct proc *p = w.procs; p; p = p->next)
        running += p->kind == QEMU && p->alive && p->qemu->running;
    if (running > 1)
        sim_violated("the guest runs twice");
    if (memcmp(records_turn, seen_turn, (size_t)w.hosts * sizeof *seen_turn) == 0)
        return;
    read_records();
    for (int a = 0; a < w.hosts; a++) {
        for (int b = a + 1; b < w.hosts; b++) {
            bool both = says_mine(a) && says_mine(b);
            if (both && (record[a].epoch == record[b].epoch || !w.word_given))
                sim_violated("both %s and %s say that the VM is theirs, with epochs %llu and %llu",
                             w.host[a].name, w.host[b].name, (unsigned long long)record[a].epoch,
                             (unsigned long long)record[b].epoch);
        }
    }
}

/* ---- at rest ---- */

static bool exists(struct host *h, const char *file)
{
    char path[160];

    snprintf(path, sizeof path, "%s/vms/" VM "/%s", h->state_dir, file);
    return file_find(h, path) != NULL;
}

static void note_entry(struct host *h, const char *path, struct inode *i, void *arg)
{
    size_t n = strlen(path);

    (void)h, (void)i;
    *(bool *)arg |=
        n > 5 && !strcmp(path + n - 5, ".json"); /* and not one that was being written at a kill */
}

/* Files are still to be deleted. */
static bool has_left(struct host *h)
{
    char dir[40];
    bool has = false;

    snprintf(dir, sizeof dir, "%s/left/", h->state_dir);
    files_each(h, dir, note_entry, &has);
    return has;
}

const char *check_unrest(struct host *h)
{
    struct job *job;
    struct vm *vm;

    read_records();
    if (!h->on || !h->listening || !h->agent->alive)
        return "its agent is not there";
    if (h->agent->agent->unix_conns)
        return "it serves a request";
    if (proc_find(h, SHIM) && !proc_find(h, QEMU))
        return "it has a shim that ends";
    if (exists(h, "journal.json"))
        return "it has a journal";
    if (has_left(h))
        return "it has files to delete";
    if (!readable[h->number] && verdict_open(&record[h->number]))
        return "its record is open";
    TAILQ_FOREACH (job, &h->agent->agent->jobs, link) {
        if (!job->over)
            return "it has a job that goes on";
    }
    TAILQ_FOREACH (vm, &h->agent->agent->vms, link) {
        if (vm->phase != VM_UP)
            return "it has a VM that is being started";
        if (vm->job[0])
            return "it has a VM that is being moved";
        if (vm->incoming)
            return "it expects a VM";
    }
    return NULL;
}

struct host *check_owner(void)
{
    struct host *owner = NULL;

    read_records();
    for (int i = 0; i < w.hosts; i++) { /* the newest: one that was declared dead may not know it yet */
        if (says_mine(i) && (!owner || record[i].epoch > record[owner->number].epoch))
            owner = &w.host[i];
    }
    return owner;
}

bool check_mine(struct host *h)
{
    read_records();
    return says_mine(h->number);
}

bool check_gives(struct host *h)
{
    read_records();
    return !readable[h->number] && record[h->number].owner == OWNER_GIVEN && !record[h->number].settled;
}

bool check_superseded(struct host *h)
{
    struct host *owner = check_owner();
    int i = h->number;

    return owner && owner != h && proc_find(h, QEMU) && !readable[i] &&
           record[owner->number].epoch > record[i].epoch;
}

bool check_runs(struct host *h)
{
    struct proc *q = proc_find(h, QEMU);

    return q && q->qemu->running && proc_find(h, SHIM);
}

struct leftover {
    const char *disk; /* the owner's */
    unsigned owners;
};

static void stray(struct host *h, const char *path, struct inode *i, void *arg)
{
    struct leftover *l = arg;

    (void)i;
    if (l->disk && !strcmp(path, l->disk))
        l->owners++;
    else if (!w.word_given &&
             !strstr(path, "/.xmigrate-datastore")) /* who was declared dead keeps what it had */
        sim_violated("%s has been left on %s", path, h->name);
}

static void note(struct host *h, const char *path, struct inode *i, void *arg)
{
    (void)i;
    sim_violated("%s's %s has been left, of a VM that is elsewhere%s", h->name, path, arg ? "" : "");
}

/* The VM is `owner`'s: nothing of it is anywhere else, and nothing of what migrations made. */
void check_left(struct host *owner)
{
    char path[160];

    read_records();
    for (int i = 0; i < w.hosts; i++) {
        struct host *h = &w.host[i];
        struct leftover l = {0};
        char *disk = NULL;
        if (readable[i] && readable[i] != -ENOENT)
            sim_violated("%s's record cannot be read", h->name);
        if (h == owner) {
            snprintf(path, sizeof path, "%s/vms/" VM "/spec.json", h->state_dir);
            struct inode *spec = file_find(h, path);
            json_t *o = spec ? json_loadb(spec->data, spec->len, 0, NULL) : NULL;
            disk = strdup(xm_json_str(json_array_get(json_object_get(o, "disks"), 0), "path", ""));
            l.disk = disk;
        } else {
            if (!readable[i] && (record[i].owner != OWNER_GIVEN || !record[i].settled))
                sim_violated("%s's record says «%s», and %s's that it owns the VM", h->name,
                             owner_side_name(record[i].owner), owner->name);
            snprintf(path, sizeof path, "%s/vms/" VM "/", h->run_dir);
            files_each(h, path, note, NULL);
            if (proc_find(h, SHIM) || proc_find(h, QEMU))
                sim_violated("%s still has a process of the VM", h->name);
        }
        snprintf(path, sizeof path, "%s/", h->store);
        files_each(h, path, stray, &l);
        snprintf(path, sizeof path, "%s/", h->store2);
        files_each(h, path, stray, &l);
        if (h == owner && l.owners != 1)
            sim_violated("the disk of the VM is not where its owner %s has it: %s", h->name,
                         disk ? disk : "?");
        if (check_unrest(h))
            sim_violated("%s: %s", h->name, check_unrest(h));
        free(disk);
    }
}
