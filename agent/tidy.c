/* SPDX-License-Identifier: MIT */
/* What migrations have left open or behind is looked after by itself, every few seconds: for each VM with a
 * journal (vm/journal.h) on which nobody works. An open hand-off is settled (settle.c); what the journal
 * names is taken away when the record says that it may go; and a VM that is expected here by a migration
 * that its source knows nothing of any more is not waited for. So is a directory of a VM in the run
 * directory that could not be removed when it ended.
 *
 * Each VM has a thread of its own for it, which waits for its turn with the VM: peers that do not answer and
 * storage that hangs hold up that VM alone, and who asks for it again and again cannot keep it from that.
 */
#include "agent/inventory.h"
#include "agent/known.h"
#include "agent/returned.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PASS_NS (3 * XM_NS_PER_S)
#define GONE_NS (10 * XM_NS_PER_S)

/* ---- expected in vain ---- */

/* The source answers, and this job is none of its. Who cannot be asked, or is too old to say, decides
 * nothing. */
static bool job_has_ended(struct agent *a, const char *vm, const char *source, const char *job)
{
    const struct conf_peer *p = config_peer(&a->conf, source);
    struct xm_error e = {0};
    struct known there;

    return p && job[0] && known_there(a, p, vm, &there, &e) == 0 && there.tells_job &&
           strcmp(there.job, job) != 0;
}

void tidy_expected(struct agent *a, const char *name)
{
    char source[CONFIG_NAME_MAX + 1] = "", job[16] = "";
    struct xm_error e = {0};

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && vm->incoming && vm->phase == VM_UP) {
        snprintf(source, sizeof source, "%s", xm_json_str(vm->incoming, "source", ""));
        snprintf(job, sizeof job, "%s", xm_json_str(vm->incoming, "job", ""));
    }
    agent_unlock(a);
    if (!source[0])
        return;
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);
    bool waits = !strcmp(xm_json_str(st, "step", ""), "waiting"); /* no link of it has ever come */
    json_decref(st);
    if (!waits || !job_has_ended(a, name, source, job))
        return;
    xm_log(XM_LOG_WARN, "VM %s: job %s of %s has ended there; it is not waited for any more", name, job,
           source);
    /* It refuses when the VM may be ours meanwhile. */
    if (shim_abort_incoming(a, name, source, job, GONE_NS, &e) < 0) {
        xm_log(XM_LOG_WARN, "VM %s: %s", name, e.text);
        return;
    }
    agent_lock(a);
    uint64_t until = xm_now() + GONE_NS;
    while (vm_find(a, name) && agent_wait(a, until))
        ;
    agent_unlock(a);
}

/* ---- expected, and writing ---- */

/* Its shim counts what it writes (migrate/space.h), and does not know what others were promised since. */
static void tell_others(struct agent *a, const char *name)
{
    char datastore[CONFIG_NAME_MAX + 1] = "";
    struct xm_error e = {0};

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && vm->incoming && xm_json_bool(vm->incoming, "storage", false))
        snprintf(datastore, sizeof datastore, "%s", xm_json_str(vm->incoming, "datastore", ""));
    agent_unlock(a);
    if (!datastore[0])
        return;
    json_t *usage = vms_usage(a, true);
    agent_lock(a);
    uint64_t others = vms_space_promised(a, datastore, name, usage);
    agent_unlock(a);
    json_decref(usage);
    json_t *o = shim_call(a, name, json_pack("{s:s, s:I}", "cmd", "set", "others", (json_int_t)others), -1,
                          TELL_NS, &e);
    if (!o)
        xm_log(XM_LOG_DEBUG, "%s", e.text);
    json_decref(o);
}

/* ---- one VM ---- */

/* Nobody works on it: no job holds it, it is not on its way here, and its shim says that it works on nothing.
 * An agent that has just started does not know of a job whose shim was silent then. */
static bool idle(struct agent *a, const char *name)
{
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool busy = vm && (vm->job[0] || vm->phase != VM_UP);
    agent_unlock(a);
    if (busy || !vm_process(a, name, "shim.pid"))
        return !busy;
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);
    const char *role = xm_json_str(st, "role", "");
    bool works = xm_json_str(st, "job", "")[0] && !json_object_get(st, "source"); /* on a job of ours */
    bool is = !strcmp(role, "undecided") || (!strcmp(role, "owner") && !works);
    bool incoming = !strcmp(role, "incoming");
    json_decref(st);
    if (incoming) {
        tidy_expected(a, name);
        tell_others(a, name);
    }
    return is || !vm_process(a, name, "shim.pid");
}

bool tidy_said_before(const char *name, const char *text)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static char said[64][VM_NAME_MAX + 400];
    unsigned at = 0;
    char *now = xm_printf("%s: %s", name, text);

    for (const char *c = name; *c; c++)
        at = at * 31 + (unsigned char)*c;
    at %= sizeof said / sizeof *said;
    pthread_mutex_lock(&lock);
    bool same = !strcmp(said[at], now);
    snprintf(said[at], sizeof said[at], "%s", now);
    pthread_mutex_unlock(&lock);
    free(now);
    return same;
}

static void look_at(struct agent *a, const char *name)
{
    xm_fault("tidy-look");
    char *dir = vm_state_path(a, name, NULL);
    struct owner_record rec;
    struct journal j;
    struct xm_error e = {0};
    int r = owner_read(a, name, &rec, NULL);

    /* One that cannot be read says nothing, and is not taken away; the next migration's refusal names it. */
    if (journal_read(dir, &j, &e) < 0) {
        xm_log(XM_LOG_DEBUG, "%s", e.text);
        free(dir);
        return;
    }
    bool here = vm_process(a, name, "shim.pid") || vm_process(a, name, "qemu.pid");
    if (!r && verdict_open(&rec)) {
        json_t *answer = settle_claimed(a, name, false);
        bool still = owner_read(a, name, &rec, NULL) == 0 && verdict_open(&rec); /* said every few seconds */
        if (xm_json_bool(answer, "ok", false))
            xm_log(still && tidy_said_before(name, xm_json_str(answer, "text", "")) ? XM_LOG_DEBUG
                                                                                    : XM_LOG_INFO,
                   "settled: %s", xm_json_str(answer, "text", ""));
        else
            xm_log(XM_LOG_DEBUG, "not settled yet: %s", xm_json_str(answer, "error", ""));
        json_decref(answer);
    } else if (!r && rec.owner == OWNER_MINE && j.side == JOURNAL_STORAGE) {
        /* Held: or it would be the journal of a move that has begun since we looked. */
        if (!inventory_mend(a, name, &e) && settle_hold(a, name, true)) {
            xm_fault("tidy-sweep");
            journal_sweep(dir, name, &e);
            settle_hold(a, name, false);
        }
        struct xm_error unheard = {0};
        if (j.olders) /* whether those files can be deleted or not */
            returned_judge_claimed(a, name, e.code ? &unheard : &e);
    } else if (!r && rec.owner == OWNER_MINE && (j.side == JOURNAL_SOURCE || rec.epoch >= j.epoch)) {
        returned_judge_claimed(a, name, &e); /* it stayed, or it has come: does the other host know that? */
    } else if (!r && rec.owner == OWNER_GIVEN && rec.settled &&
               (j.side == JOURNAL_SOURCE || (here && rec.epoch >= j.epoch))) {
        /* Whoever recorded that was ended before it came to this; or a peer has asked, of one that was handed
         * back, and its shim has not heard so. */
        settle_end_here(a, name, &e);
    } else if (j.side == JOURNAL_DESTINATION && here) {
        vm_end_orphan(a, name); /* if it may be ended */
    } else if (j.side == JOURNAL_DESTINATION) {
        journal_undo(dir, name, &e);
    }
    if (e.code)
        xm_log(tidy_said_before(name, e.text) ? XM_LOG_DEBUG : XM_LOG_WARN, "VM %s: %s", name, e.text);
    journal_free(&j);
    free(dir);
}

struct tidy {
    LIST_ENTRY(tidy) link;
    struct agent *agent;
    char name[VM_NAME_MAX + 1];
    bool left; /* its directory in the run directory, and no more */
};

static void *one_main(void *arg)
{
    struct tidy *t = arg;
    struct agent *a = t->agent;
    bool claimed = settle_claim(a, t->name, SETTLE_PATIENCE);

    if (claimed && t->left)
        vm_remove_left(a, t->name);
    else if (claimed && idle(a, t->name))
        look_at(a, t->name);
    if (claimed)
        settle_release(a, t->name);
    agent_lock(a);
    LIST_REMOVE(t, link);
    agent_unlock(a);
    free(t);
    agent_thread_ends(a);
    return NULL;
}

/* NULL: the last pass has not done with it yet. */
static struct tidy *tidy_new(struct agent *a, const char *name, bool left)
{
    struct tidy *t;

    agent_lock(a);
    LIST_FOREACH (t, &a->tidies, link) {
        if (!strcmp(t->name, name))
            break;
    }
    bool there = t != NULL;
    t = there ? NULL : calloc(1, sizeof *t);
    if (t) {
        t->agent = a;
        t->left = left;
        snprintf(t->name, sizeof t->name, "%s", name);
        LIST_INSERT_HEAD(&a->tidies, t, link);
    }
    agent_unlock(a);
    return t;
}

static void begin_one(struct agent *a, const char *name, bool left)
{
    struct tidy *t = tidy_new(a, name, left);
    struct xm_error e = {0};

    if (!t || agent_thread(a, one_main, t, &e) == 0)
        return;
    xm_log(XM_LOG_WARN, "%s", e.text);
    agent_lock(a);
    LIST_REMOVE(t, link);
    agent_unlock(a);
    free(t);
}

/* ---- all of them ---- */

static void begin_journals(struct agent *a)
{
    char *path = xm_printf("%s/vms", a->conf.state_dir);
    DIR *d = opendir(path);

    for (struct dirent *f; d && (f = readdir(d));) {
        char *journal = xm_printf("%s/%s/journal.json", path, f->d_name);
        if (vm_name_check(f->d_name, NULL) == 0 && access(journal, F_OK) == 0)
            begin_one(a, f->d_name, false);
        free(journal);
    }
    if (d)
        closedir(d);
    free(path);
}

static void begin_left(struct agent *a)
{
    char *path = xm_printf("%s/vms", a->conf.run_dir);
    DIR *d = opendir(path);

    for (struct dirent *f; d && (f = readdir(d));) {
        agent_lock(a);
        bool left = vm_name_check(f->d_name, NULL) == 0 && !vm_find(a, f->d_name);
        agent_unlock(a);
        if (left)
            begin_one(a, f->d_name, true);
    }
    if (d)
        closedir(d);
    free(path);
}

static void *tidy_main(void *arg)
{
    struct agent *a = arg;

    do {
        vm_watch_all(a);
        begin_journals(a);
        begin_left(a);
    } while (!agent_pause(a, PASS_NS));
    agent_thread_ends(a);
    return NULL;
}

int tidy_start(struct agent *a, struct xm_error *e)
{
    return agent_thread(a, tidy_main, a, e);
}
