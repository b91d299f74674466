/* SPDX-License-Identifier: MIT */
/* A hand-off that was cut in the middle is brought to its end: for `recover`, for a peer that asks, and by itself
 * every few seconds while a VM has a journal (vm/journal.h) and nobody works on it.
 *
 * What is done follows from both hosts' records (vm/verdict.h), and each step is durable before the next: the
 * record first, then the guest or the deletion. Killed in between, the next pass goes on from what stands there.
 * A QEMU that still has the guest goes on with it; only where there is none the VM starts from its disks. */
#include "agent/known.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PASS_NS (3 * XM_NS_PER_S)

static json_t *say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static json_t *say(const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    json_t *answer = ok_answer();
    json_object_set_new(answer, "text", json_string(text));
    return answer;
}

static json_t *cannot_ask(const char *vm, const char *host, const char *why)
{
    return refusal(EXIT_UNKNOWN,
                   "whose VM %s is cannot be said before %s has been asked: %s; if %s is lost for good, "
                   "`xmigrate recover %s --peer-is-dead`",
                   vm, host, why, host, vm);
}

static bool wait_gone(struct agent *a, const char *vm)
{
    agent_lock(a);
    uint64_t until = xm_now() + 30 * XM_NS_PER_S;
    while (vm_find(a, vm) && agent_wait(a, until))
        ;
    bool gone = !vm_find(a, vm);
    agent_unlock(a);
    return gone;
}

/* ---- what is here ---- */

/* Our record says that nothing of it is needed here: shim and QEMU end, then what the journal names goes. */
static int end_here(struct agent *a, const char *vm, struct xm_error *e)
{
    char *dir = vm_state_path(a, vm, NULL);
    json_t *o = shim_call(a, vm, json_pack("{s:s, s:b}", "cmd", "stop", "force", 1), -1, ASK_NS, NULL);
    int r = 0;

    if (o ? !wait_gone(a, vm) : !vm_end_orphan(a, vm))
        r = xm_error_set(e, ETIMEDOUT, "what is left of VM %s here does not end", vm);
    json_decref(o);
    if (!r)
        r = journal_undo(dir, vm, e);
    if (!r)
        r = journal_settle(dir, vm, e);
    free(dir);
    return r;
}

/* A shim for a QEMU that has lost its own. */
static int new_shim(struct agent *a, const char *vm, uint64_t epoch, struct xm_error *e)
{
    char *path = vm_state_path(a, vm, "spec.json");
    json_t *spec = read_json(path, e);
    int r = spec ? 0 : -XM_MAX(e->code, 1);

    free(path);
    agent_lock(a);
    struct vm *here = vm_find(a, vm);
    bool claimed = !r && !here;
    if (claimed && !(here = vm_claim(a, vm, spec, e)))
        r = -EEXIST;
    if (!r) {
        json_decref(here->incoming);
        here->incoming = NULL;
        json_decref(here->spec);
        here->spec = json_incref(spec);
    }
    agent_unlock(a);
    if (!r)
        r = vm_spawn(a, vm, spec, epoch, NULL, e);
    if (!r)
        r = vm_watch(a, vm, e);
    agent_lock(a);
    if (r && claimed && (here = vm_find(a, vm)))
        vm_forget(here); /* or it would be «just being started» for ever */
    agent_unlock(a);
    json_decref(spec);
    return r;
}

/* Our record says that it is ours: see that it runs, from where it is. */
static json_t *run_here(struct agent *a, const char *vm, const char *how, const struct known *here,
                        uint64_t epoch)
{
    struct xm_error e = {0};
    int r;

    if (here->present && strcmp(here->role, "?") != 0) {
        json_t *o = shim_call(a, vm, json_pack("{s:s}", "cmd", "resume"), -1, 2 * ASK_NS, &e);
        r = o ? 0 : -EIO;
        json_decref(o);
    } else if (vm_process(a, vm, "qemu.pid")) {
        r = new_shim(a, vm, epoch, &e);
    } else {
        json_t *answer = start_again(a, vm);
        if (xm_json_bool(answer, "ok", false))
            json_object_set_new(answer, "text",
                                json_sprintf("VM %s %s, and was started from its disks", vm, how));
        return answer;
    }
    if (r)
        return refusal(EXIT_UNKNOWN, "VM %s %s, and does not go on: %s", vm, how, e.text);
    return say("VM %s %s, and runs here", vm, how);
}

/* ---- the verdicts ---- */

static json_t *take(struct agent *a, const char *vm, const struct known *here, uint64_t epoch,
                    const char *how)
{
    struct owner_record rec = {.epoch = epoch, .owner = OWNER_MINE};
    struct xm_error e = {0};

    if (!strcmp(here->role, "undecided")) { /* its shim has it loaded, and records it itself */
        json_t *o =
            shim_call(a, vm, json_pack("{s:s, s:s}", "cmd", "decide", "owner", "mine"), -1, 2 * ASK_NS, &e);
        if (!o)
            return refusal(EXIT_UNKNOWN, "VM %s: %s", vm, e.text);
        json_decref(o);
        return say("VM %s %s, and runs here", vm, how);
    }
    snprintf(rec.from, sizeof rec.from, "%s", verdict_peer(&here->rec));
    if (owner_write(a, vm, &rec, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    json_t *answer = run_here(a, vm, how, here, epoch);
    if (xm_json_bool(answer, "ok", false)) {
        char *dir = vm_state_path(a, vm, NULL);
        rec.settled = true;
        if (owner_write(a, vm, &rec, &e) < 0 || journal_end(dir, &e) < 0)
            xm_log(XM_LOG_WARN, "VM %s: %s", vm, e.text);
        free(dir);
    }
    return answer;
}

static json_t *discard(struct agent *a, const char *vm, const struct known *here)
{
    const char *owner = verdict_peer(&here->rec);
    char *dir = vm_state_path(a, vm, NULL);
    struct xm_error e = {0};
    struct journal j;
    int r = 0;

    if (!strcmp(here->role, "undecided")) {
        json_t *o =
            shim_call(a, vm, json_pack("{s:s, s:s}", "cmd", "decide", "owner", "theirs"), -1, ASK_NS, &e);
        r = o && wait_gone(a, vm) ? 0 : -EIO;
        json_decref(o);
    } else {
        r = journal_read(dir, &j, &e);
        if (!r)
            r = owner_restore(dir, vm, j.had_record ? &j.before : NULL, &e);
        if (!r)
            r = end_here(a, vm, &e);
        journal_free(&j);
    }
    free(dir);
    if (r)
        return refusal(EXIT_FAILED, "VM %s was not given to %s, and what is left of it here does not go: %s",
                       vm, a->conf.name, e.text);
    return say("VM %s was not given to %s: it is %s's", vm, a->conf.name, owner);
}

static json_t *has_gone(struct agent *a, const char *vm, const struct known *here, const struct known *there)
{
    struct owner_record rec = here->rec;
    const char *owner = there->rec.owner == OWNER_MINE ? verdict_peer(&here->rec) : there->rec.to;
    struct xm_error e = {0};

    rec.settled = true;
    if (owner_write(a, vm, &rec, &e) < 0 || end_here(a, vm, &e) < 0)
        return refusal(EXIT_FAILED,
                       "VM %s is %s's (epoch %llu), and what is left of it here cannot be ended: %s", vm,
                       owner, (unsigned long long)there->rec.epoch, e.text);
    return say("VM %s is %s's (epoch %llu); what was left of it here has been taken away", vm, owner,
               (unsigned long long)there->rec.epoch);
}

static json_t *tell_to_settle(struct agent *a, const char *vm, const struct conf_peer *p)
{
    struct xm_error e = {0};
    json_t *reasons;
    int status;
    json_t *o = peer_call_agent(a, p, json_pack("{s:s, s:s}", "verb", "peer.recover", "vm", vm), 4 * ASK_NS,
                                &status, &reasons, NULL, &e);

    json_decref(reasons);
    if (!o)
        return cannot_ask(vm, p->name, e.text);
    json_t *answer = say("%s: %s", p->name, xm_json_str(o, "text", ""));
    json_decref(o);
    return answer;
}

/* The operator says that the peer will never be back. What it may still have done had one epoch (it took what was
 * given) or two (it handed it back): ours is above, so that it is of the past when it comes back all the same. */
static json_t *without_peer(struct agent *a, const char *vm, const struct known *here)
{
    uint64_t epoch = here->rec.epoch + (here->rec.owner == OWNER_GIVEN ? 2 : 0);

    xm_log(XM_LOG_WARN, "VM %s: %s is declared dead by an operator; taken with epoch %llu", vm,
           verdict_peer(&here->rec), (unsigned long long)epoch);
    return take(a, vm, here, epoch, "was taken on its operator's word");
}

static json_t *judge_it(struct agent *a, const char *vm, const struct known *here, bool peer_is_dead)
{
    const char *name = verdict_peer(&here->rec);
    const struct conf_peer *p = config_peer(&a->conf, name);
    struct xm_error e = {0};
    struct known there;
    uint64_t epoch;

    if (!p && !peer_is_dead)
        return refusal(EXIT_UNKNOWN, "VM %s: '%s' decides whose it is, and is no [peer] of %s", vm, name,
                       a->conf.name);
    if (peer_is_dead && (!p || known_there(a, p, vm, &there, &e) < 0))
        return without_peer(a, vm, here);
    if (!peer_is_dead && known_there(a, p, vm, &there, &e) < 0)
        return cannot_ask(vm, name, e.text);
    switch (verdict_of(a->conf.name, &here->rec, &there.rec, !strcmp(there.state, "running"), &epoch, &e)) {
    case VERDICT_TAKE:
        return take(a, vm, here, epoch, "was given to this host");
    case VERDICT_BACK:
        return take(a, vm, here, epoch, "was handed back to this host");
    case VERDICT_DISCARD:
        return discard(a, vm, here);
    case VERDICT_SETTLED:
        return has_gone(a, vm, here, &there);
    case VERDICT_THEIRS:
        return say(
            "VM %s is %s's (epoch %llu), which has not been seen to run it yet: what is left of it here "
            "is kept; start it there",
            vm, name, (unsigned long long)there.rec.epoch);
    case VERDICT_TELL:
        return tell_to_settle(a, vm, p);
    case VERDICT_DOUBT:
        if (peer_is_dead && there.rec.owner == OWNER_NONE)
            return without_peer(a, vm, here);
        return refusal(EXIT_UNKNOWN, "VM %s: %s", vm, e.text);
    case VERDICT_NOTHING:
        break;
    }
    return say("VM %s: nothing is open", vm);
}

json_t *settle(struct agent *a, const char *vm, bool peer_is_dead)
{
    struct xm_error e = {0};
    struct known here;
    json_t *answer;

    pthread_mutex_lock(&a->settling);
    if (known_here(a, vm, &here, &e) < 0)
        answer = refusal(EXIT_FAILED, "%s", e.text);
    else if (known_busy(&here))
        answer = refusal(EXIT_UNKNOWN, "VM %s is being handed over at this moment", vm);
    else if (here.rec.owner == OWNER_PROMISED && !strcmp(here.role, "incoming"))
        answer = refusal(EXIT_FAILED, "VM %s is on its way from %s: nothing is undecided", vm, here.source);
    else if (here.rec.owner == OWNER_MINE && !vm_process(a, vm, "shim.pid") && vm_process(a, vm, "qemu.pid"))
        answer =
            run_here(a, vm, "is this host's", &here, here.rec.epoch); /* its shim was lost once too often */
    else if (here.rec.owner == OWNER_MINE)
        answer = say("VM %s is this host's: %s", vm, here.present ? here.state : "stopped");
    else
        answer = judge_it(a, vm, &here, peer_is_dead);
    pthread_mutex_unlock(&a->settling);
    return answer;
}

/* ---- by itself ---- */

/* Nobody works on it: no job holds it, and it is not on its way here. */
static bool idle(struct agent *a, const char *name)
{
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool busy = vm && (vm->job[0] || vm->phase != VM_UP);
    bool expected = vm && vm->incoming;
    agent_unlock(a);
    if (busy || !expected)
        return !busy;
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);
    bool waits = st && !strcmp(xm_json_str(st, "role", ""), "undecided");
    json_decref(st);
    return waits || !vm_process(a, name, "shim.pid");
}

static void look_at(struct agent *a, const char *name)
{
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
        json_t *answer = settle(a, name, false);
        if (xm_json_bool(answer, "ok", false))
            xm_log(XM_LOG_INFO, "settled: %s", xm_json_str(answer, "text", ""));
        else
            xm_log(XM_LOG_DEBUG, "not settled yet: %s", xm_json_str(answer, "error", ""));
        json_decref(answer);
    } else if (!r && rec.owner == OWNER_MINE && j.side == JOURNAL_STORAGE) {
        r = journal_sweep(dir, name, &e);
    } else if (!r && rec.owner == OWNER_MINE && (j.side == JOURNAL_SOURCE || rec.epoch >= j.epoch)) {
        r = journal_end(dir, &e); /* it stayed, or it has come */
    } else if (!r && rec.owner == OWNER_GIVEN && rec.settled && j.side == JOURNAL_SOURCE && !here) {
        r = journal_settle(dir, name, &e);
    } else if (j.side == JOURNAL_DESTINATION && !here) {
        r = journal_undo(dir, name, &e);
    }
    journal_free(&j);
    free(dir);
}

static void *settle_main(void *arg)
{
    struct agent *a = arg;
    char *path = xm_printf("%s/vms", a->conf.state_dir);
    bool ending = false;

    while (!ending) {
        DIR *d = opendir(path);
        for (struct dirent *f; d && (f = readdir(d));) {
            char *journal = xm_printf("%s/%s/journal.json", path, f->d_name);
            if (vm_name_check(f->d_name, NULL) == 0 && access(journal, F_OK) == 0 && idle(a, f->d_name))
                look_at(a, f->d_name);
            free(journal);
        }
        if (d)
            closedir(d);
        agent_lock(a);
        uint64_t until = xm_now() + PASS_NS;
        while (agent_wait(a, until))
            ;
        ending = a->ending;
        agent_unlock(a);
    }
    free(path);
    agent_thread_ends(a);
    return NULL;
}

int settle_start(struct agent *a, struct xm_error *e)
{
    return agent_thread(a, settle_main, a, e);
}
