/* SPDX-License-Identifier: MIT */
/* See returned.h. Who gives way first empties the journal of files, so that nothing is deleted for it, then
 * records whose the VM is, then ends what runs; killed in between, the next pass goes on. The disks are kept:
 * what the guest wrote here last may be in no other copy. */
#include "agent/returned.h"
#include "agent/known.h"

#include <stdio.h>
#include <string.h>

/* An epoch for each time that either side can have taken the VM, or handed it back, on an operator's word. */
#define BY_WORD 4

/* The host whose answer is needed before the VM is started; "": none. */
static int open_with(struct agent *a, const char *vm, const struct owner_record *rec,
                     char host[CONFIG_NAME_MAX + 1], struct xm_error *e)
{
    char *dir = vm_state_path(a, vm, NULL);
    struct journal j;
    int r = journal_read(dir, &j, e);

    host[0] = 0;
    if (!r && ((j.side == JOURNAL_SOURCE && j.epoch > rec->epoch) ||
               (j.side == JOURNAL_DESTINATION && j.epoch <= rec->epoch)))
        snprintf(host, CONFIG_NAME_MAX + 1, "%s", j.peer);
    journal_free(&j);
    free(dir);
    return r;
}

/* This host has been up since the VM ran here, so nobody can have taken it for dead. */
static bool ran_in_this_boot(struct agent *a, const char *vm)
{
    char *dir = vm_state_path(a, vm, NULL);
    struct vm_life life;
    bool ran = life_load(dir, &life, NULL) == 0 && life.state != LIFE_NEVER && !strcmp(life.boot, a->boot);

    free(dir);
    return ran;
}

/* The paths of its disks here, for a sentence. */
static void name_disks(struct agent *a, const char *vm, char *text, size_t size)
{
    char *path = vm_state_path(a, vm, "spec.json");
    json_t *spec = read_json(path, NULL), *d;
    size_t i, n = 0;

    text[0] = 0;
    json_array_foreach (json_object_get(spec, "disks"), i, d) {
        int more = snprintf(text + n, size - n, "%s%s", i ? ", " : "", xm_json_str(d, "path", "?"));
        n = XM_MIN(n + (size_t)XM_MAX(more, 0), size - 1);
    }
    json_decref(spec);
    free(path);
}

static int give_way(struct agent *a, const char *vm, const char *owner, uint64_t epoch, struct xm_error *e)
{
    struct owner_record rec = {.epoch = epoch, .owner = OWNER_GIVEN, .settled = true};
    char *dir = vm_state_path(a, vm, NULL);
    json_t *none = json_array();

    snprintf(rec.to, sizeof rec.to, "%s", owner);
    int r = journal_write(dir, JOURNAL_SOURCE, epoch, owner, NULL, none, e);
    xm_fault("give-way-journal");
    if (!r)
        r = owner_write(a, vm, &rec, e);
    xm_fault("give-way-record");
    if (!r)
        r = settle_end_here(a, vm, e);
    json_decref(none);
    free(dir);
    return r;
}

/* They have it, or had it and gave it to a third one, later than we had it. */
static const char *later_owner(const struct agent *a, const char *host, const struct owner_record *ours,
                               const struct owner_record *theirs)
{
    if (theirs->epoch <= ours->epoch)
        return NULL;
    if (theirs->owner == OWNER_MINE)
        return host;
    return theirs->owner == OWNER_GIVEN && strcmp(theirs->to, a->conf.name) != 0 ? theirs->to : NULL;
}

static enum returned taken_over(struct agent *a, const char *vm, const struct owner_record *ours,
                                const char *owner, uint64_t epoch, struct xm_error *e)
{
    struct xm_error why = {0};
    struct owner_record now;
    char disks[200];

    if (owner_read(a, vm, &now, e) < 0 || now.owner != ours->owner || now.epoch != ours->epoch) {
        xm_error_set(e, EBUSY, "VM %s has changed at this moment: try again", vm);
        return RETURNED_UNKNOWN;
    }
    int r = give_way(a, vm, owner, epoch, &why);

    name_disks(a, vm, disks, sizeof disks);
    xm_error_set(e, EEXIST,
                 "VM %s is %s's (epoch %llu), which took it over while %s was away; what %s has of it is "
                 "kept: %s%s%s",
                 vm, owner, (unsigned long long)epoch, a->conf.name, a->conf.name, disks, r ? "; " : "",
                 r ? why.text : "");
    xm_log(XM_LOG_WARN, "%s", e->text);
    return RETURNED_THEIRS;
}

static bool promised_by_us(const struct owner_record *ours, const struct owner_record *theirs)
{
    return theirs->owner == OWNER_PROMISED && theirs->epoch > ours->epoch;
}

/* It had the VM from itself given to us, and has not heard that we run it. */
static bool not_settled(const struct agent *a, const struct owner_record *theirs)
{
    return theirs->owner == OWNER_MINE ||
           (theirs->owner == OWNER_GIVEN && !theirs->settled && !strcmp(theirs->to, a->conf.name));
}

/* who: the other host of the last hand-off. is_open: it has to be asked. */
static enum returned ask(struct agent *a, const char *vm, const struct owner_record *ours, const char *who,
                         bool is_open, bool *over, struct xm_error *e)
{
    const struct conf_peer *p = config_peer(&a->conf, who);
    struct known there;
    struct xm_error why = {0};

    if (!p)
        xm_error_set(&why, ENOENT, "it is no [peer] of %s", a->conf.name);
    if (!p || known_there_soon(a, p, vm, &there, &why) < 0) {
        *over = *over && !is_open;
        if (!is_open)
            return RETURNED_OURS;
        xm_error_set(e, EHOSTUNREACH,
                     "VM %s was in a hand-off with %s when %s was last there, and %s may run it by now, "
                     "which cannot be "
                     "asked: %s; if %s is lost for good, `xmigrate recover %s --peer-is-dead`",
                     vm, who, a->conf.name, who, why.text, who, vm);
        return ran_in_this_boot(a, vm) ? RETURNED_OURS : RETURNED_UNKNOWN;
    }
    const char *owner = later_owner(a, who, ours, &there.rec);
    if (owner)
        return taken_over(a, vm, ours, owner, there.rec.epoch, e);
    *over = *over && !promised_by_us(ours, &there.rec) && !not_settled(a, &there.rec);
    return RETURNED_OURS;
}

/* Whoever says so, and had no part in a hand-off with us: a reason not to start it, and not to give anything
 * up. */
static enum returned ask_others(struct agent *a, const char *vm, const struct owner_record *ours,
                                const char *who, bool *silent, struct xm_error *e)
{
    for (unsigned i = 0; i < a->conf.peers; i++) {
        const struct conf_peer *p = &a->conf.peer[i];
        struct xm_error why = {0};
        struct known there;
        if (silent[i] || !strcmp(p->name, who))
            continue;
        silent[i] = known_there_soon(a, p, vm, &there, &why) < 0;
        if (!silent[i] && there.rec.owner == OWNER_MINE && there.rec.epoch > ours->epoch) {
            xm_error_set(e, EEXIST, "%s owns a newer epoch of VM %s (%llu): `xmigrate recover %s`", p->name,
                         vm, (unsigned long long)there.rec.epoch, vm);
            return RETURNED_UNKNOWN;
        }
    }
    return RETURNED_OURS;
}

/* It does not begin a migration from here on, nor end one. False: it is in one, or just comes or goes. */
static bool hold(struct agent *a, const char *vm, bool yes)
{
    agent_lock(a);
    struct vm *v = vm_find(a, vm);
    bool free = !v || (!v->job[0] && v->phase == VM_UP && !v->incoming);
    if (v && (free || !yes))
        v->closing = yes;
    if (!yes)
        pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
    return free;
}

static bool silent_already(const struct agent *a, const char *host, const bool *silent)
{
    for (unsigned i = 0; silent && i < a->conf.peers; i++) {
        if (silent[i] && !strcmp(a->conf.peer[i].name, host))
            return true;
    }
    return false;
}

/* The VM is claimed; is_open: as open_with says. */
static enum returned judge_held(struct agent *a, const char *vm, const struct owner_record *rec,
                                const char *who, bool is_open, struct xm_error *e)
{
    bool over = true;

    if (!hold(a, vm, true))
        return RETURNED_OURS;
    enum returned is = ask(a, vm, rec, who, is_open, &over, e);
    if (is == RETURNED_OURS && is_open && over) {
        char *dir = vm_state_path(a, vm, NULL);
        struct xm_error why = {0};
        if (journal_end(dir, &why) < 0)
            xm_log(XM_LOG_WARN, "VM %s: %s", vm, why.text);
        free(dir);
    }
    hold(a, vm, false);
    return is;
}

enum returned returned_judge_claimed(struct agent *a, const char *vm, struct xm_error *e)
{
    char who[CONFIG_NAME_MAX + 1];
    struct owner_record rec;

    if (owner_read(a, vm, &rec, NULL) < 0 || rec.owner != OWNER_MINE)
        return RETURNED_OURS; /* whoever asks sees to that */
    if (open_with(a, vm, &rec, who, e) < 0)
        return RETURNED_UNKNOWN;
    if (who[0])
        return judge_held(a, vm, &rec, who, true, e);
    return rec.from[0] ? judge_held(a, vm, &rec, rec.from, false, e) : RETURNED_OURS;
}

enum returned returned_judge(struct agent *a, const char *vm, bool *silent, struct xm_error *e)
{
    char who[CONFIG_NAME_MAX + 1];
    enum returned is = RETURNED_OURS;
    struct owner_record rec;

    if (owner_read(a, vm, &rec, NULL) < 0 || rec.owner != OWNER_MINE)
        return RETURNED_OURS;
    if (open_with(a, vm, &rec, who, e) < 0)
        return RETURNED_UNKNOWN;
    if (who[0] || (rec.from[0] && !silent_already(a, rec.from, silent))) {
        if (!settle_claim(a, vm, SETTLE_PREPARE_PATIENCE)) {
            xm_error_set(e, EBUSY, "what is open of VM %s is just being settled on %s: try again", vm,
                         a->conf.name);
            return RETURNED_UNKNOWN;
        }
        is = returned_judge_claimed(a, vm, e);
        settle_release(a, vm);
    }
    return is == RETURNED_OURS && silent ? ask_others(a, vm, &rec, who[0] ? who : rec.from, silent, e) : is;
}

int returned_by_word(struct agent *a, const char *vm, struct xm_error *e)
{
    char who[CONFIG_NAME_MAX + 1], *dir = vm_state_path(a, vm, NULL);
    struct owner_record rec;
    int r = owner_read(a, vm, &rec, e);

    if (!r)
        r = open_with(a, vm, &rec, who, e);
    if (!r && (rec.owner != OWNER_MINE || !who[0]))
        r = -ENOENT;
    if (!r) {
        rec.epoch += BY_WORD;
        xm_log(XM_LOG_WARN, "VM %s: %s is declared dead by an operator; kept with epoch %llu", vm, who,
               (unsigned long long)rec.epoch);
        r = owner_write(a, vm, &rec, e);
    }
    if (!r)
        r = journal_end(dir, e);
    free(dir);
    return r;
}
