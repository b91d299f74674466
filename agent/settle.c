/* SPDX-License-Identifier: MIT */
/* A hand-off that was cut in the middle is brought to its end: for `recover`, for a peer that asks, and by
 * itself (tidy.c).
 *
 * What is done follows from both hosts' records (vm/verdict.h), and each step is durable before the next: the
 * record first, then the guest or the deletion. Killed in between, the next pass goes on from what stands
 * there. A QEMU that still has the guest goes on with it; only where there is none the VM starts from its
 * disks.
 *
 * One thread at a time works on a VM (claims.c). What hosts say that had no part in the hand-off counts
 * before the VM is taken (third.c). */
#include "agent/inventory.h"
#include "agent/known.h"
#include "agent/returned.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

int settle_end_here(struct agent *a, const char *vm, struct xm_error *e)
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

/* The watcher of a shim that has just died starts another one itself, and tells its job; until it has, or has
 * given up. */
static bool watcher_revives(struct agent *a, const char *vm)
{
    uint64_t until = xm_now() + ASK_NS;
    bool watched = true;

    while (watched && !vm_process(a, vm, "shim.pid") && xm_now() < until) {
        poll(NULL, 0, 20);
        agent_lock(a);
        const struct vm *here = vm_find(a, vm);
        watched = here && here->watched;
        agent_unlock(a);
    }
    return watched && vm_process(a, vm, "shim.pid");
}

/* A shim for a QEMU that has lost its own. */
static int new_shim(struct agent *a, const char *vm, uint64_t epoch, struct xm_error *e)
{
    if (watcher_revives(a, vm))
        return 0;
    char *path = vm_state_path(a, vm, "spec.json");
    int r = inventory_mend(a, vm, e);
    json_t *spec = r ? NULL : read_json(path, e);
    if (!spec)
        r = -XM_MAX(e->code, 1);

    free(path);
    agent_lock(a);
    struct vm *here = vm_find(a, vm);
    bool claimed = !r && !here;
    if (claimed && !(here = vm_claim(a, vm, spec, e)))
        r = -EEXIST;
    if (!r && !claimed && here->phase != VM_UP)
        r = xm_error_set(e, EBUSY, "it just comes or goes");
    if (!r) {
        here->phase = VM_STARTING; /* nobody takes it away meanwhile */
        json_decref(here->incoming);
        here->incoming = NULL;
        json_decref(here->spec);
        here->spec = json_incref(spec);
    }
    agent_unlock(a);
    if (!r)
        r = vm_spawn(a, vm, spec, epoch, NULL, e);
    if (!r)
        vm_watch(a, vm);
    agent_lock(a);
    here = r ? vm_find(a, vm) : NULL;
    if (here && claimed)
        vm_forget(here); /* or it would be «just being started» for ever */
    else if (here && here->phase == VM_STARTING)
        here->phase = VM_UP;
    pthread_cond_broadcast(&a->changed);
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
    return ok_text("VM %s %s, and runs here", vm, how);
}

/* It is loaded here and is ours, and its guest does not run, though nobody has paused it: QEMU has refused
 * to let it, or has not answered in time when it came. The other host keeps what it has until the guest is
 * seen to run. */
json_t *settle_let_run(struct agent *a, const char *vm)
{
    struct xm_error e = {0};
    struct known here;

    xm_fault("let-run");
    if (!settle_claim(a, vm, SETTLE_PATIENCE))
        return refusal(EXIT_UNKNOWN, "VM %s is just being settled: ask again", vm);
    /* Who has waited for the claim looks again: it may have been given away meanwhile. */
    int r = known_here(a, vm, &here, &e);
    json_t *answer = NULL;
    if (r < 0)
        answer = refusal(EXIT_FAILED, "%s", e.text);
    else if (!known_stands(&here))
        answer = refusal(EXIT_UNKNOWN, "VM %s has changed at this moment: ask again", vm);
    else
        answer = run_here(a, vm, "is this host's", &here, here.rec.epoch);
    if (!r && xm_json_bool(answer, "ok", false) && !here.rec.settled) {
        here.rec.settled = true;
        if (owner_write(a, vm, &here.rec, &e) < 0)
            xm_log(XM_LOG_WARN, "VM %s: %s", vm, e.text);
    }
    settle_release(a, vm);
    return answer;
}

/* ---- the verdicts ---- */

/* Recorded as ours; its shim has nothing left that could run, and would hand the VM back. */
static int end_shim(struct agent *a, const char *vm, struct known *here, struct xm_error *e)
{
    json_t *o = shim_call(a, vm, json_pack("{s:s, s:b}", "cmd", "stop", "force", 1), -1, ASK_NS, e);
    int r = !o ? -EIO : wait_gone(a, vm) ? 0 : xm_error_set(e, ETIMEDOUT, "its shim does not end");

    json_decref(o);
    here->present = r != 0;
    return r;
}

static json_t *take(struct agent *a, const char *vm, struct known *here, uint64_t epoch, const char *how,
                    bool by_word)
{
    struct owner_record rec = {.epoch = epoch, .owner = OWNER_MINE};
    struct xm_error e = {0};
    struct known now;

    /* Others were asked meanwhile, who may be silent. A shim that was in its migration then may have come to
     * be undecided since; one that is in it still decides nothing. */
    if (known_here(a, vm, &now, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (now.rec.owner != here->rec.owner || now.rec.epoch != here->rec.epoch)
        return refusal(EXIT_UNKNOWN, "VM %s has changed at this moment: ask again", vm);
    if (!strcmp(now.role, "incoming"))
        return refusal(EXIT_UNKNOWN, "VM %s is on its way from %s still: ask again", vm, now.source);
    /* What had it loaded has ended meanwhile: whether the other host has its guest whole is looked at
     * anew. */
    if (here->qemu && !now.qemu && !by_word)
        return refusal(EXIT_UNKNOWN, "VM %s has ended at this moment: ask again", vm);
    *here = now;
    bool undecided = !strcmp(here->role, "undecided"), lost = by_word && !vm_process(a, vm, "qemu.pid");

    if (undecided && !lost) { /* its shim has it loaded, and records it itself */
        json_t *o =
            shim_call(a, vm, json_pack("{s:s, s:s}", "cmd", "decide", "owner", "mine"), -1, 2 * ASK_NS, &e);
        if (!o)
            return refusal(EXIT_UNKNOWN, "VM %s: %s", vm, e.text);
        json_decref(o);
        return ok_text("VM %s %s, and runs here", vm, how);
    }
    snprintf(rec.from, sizeof rec.from, "%s", verdict_peer(&here->rec));
    if (owner_write(a, vm, &rec, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (undecided && end_shim(a, vm, here, &e) < 0)
        return refusal(EXIT_UNKNOWN, "VM %s %s, and what is left of it here does not end: %s", vm, how,
                       e.text);
    json_t *answer = run_here(a, vm, how, here, epoch);
    if (xm_json_bool(answer, "ok", false)) {
        char *dir = vm_state_path(a, vm, NULL);
        rec.settled = true;
        /* The journal names the other host until that one knows of it, too (tidy.c); a dead one never will.
         */
        if (owner_write(a, vm, &rec, &e) < 0 || (by_word && journal_close(dir, rec.from, rec.epoch, &e) < 0))
            xm_log(XM_LOG_WARN, "VM %s: %s", vm, e.text);
        free(dir);
    }
    return answer;
}

/* Nothing of it is loaded here any more, and it was never let run: for that our record would say more than
 * that it is promised. Its source, which gave it, has its guest stopped and whole: so it goes back as a
 * destination's shim hands back what it cannot run (vm/handoff.h). */
static json_t *hand_back(struct agent *a, const char *vm, const struct known *here)
{
    struct owner_record rec = {.epoch = here->rec.epoch + 1, .owner = OWNER_GIVEN};
    struct xm_error e = {0};

    snprintf(rec.to, sizeof rec.to, "%s", here->rec.from);
    if (owner_write(a, vm, &rec, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    xm_fault("handed-back");
    return ok_text(
        "VM %s was given to %s, where its QEMU has ended, and is handed back to %s, which has its guest "
        "whole",
        vm, a->conf.name, rec.to);
}

/* It was about to be given up for a third host, and killed before the record said so (returned.c): the
 * journal names no files any more, and is that of a hand-off that there is none of. It comes to nothing as
 * what it was before; what has come of the disks is kept. */
static int as_it_came(struct agent *a, const char *vm, const char *dir, const struct known *here,
                      const struct journal *j, struct xm_error *e)
{
    if (j->side != JOURNAL_SOURCE)
        return 0;
    json_t *none = json_array();
    int r = journal_write(dir, JOURNAL_DESTINATION, here->rec.epoch, here->rec.from,
                          j->had_record ? &j->before : NULL, none, e);

    json_decref(none);
    if (!r)
        xm_log(XM_LOG_WARN, "VM %s: what had come of its disks to %s is kept where it is", vm, a->conf.name);
    return r;
}

static json_t *discard(struct agent *a, const char *vm, const struct known *here)
{
    const char *owner = verdict_peer(&here->rec);
    char *dir = vm_state_path(a, vm, NULL);
    struct xm_error e = {0};
    struct journal j;
    int r = journal_read(dir, &j, &e);

    if (!r)
        r = as_it_came(a, vm, dir, here, &j, &e);
    if (!r && !strcmp(here->role, "undecided")) {
        json_t *o =
            shim_call(a, vm, json_pack("{s:s, s:s}", "cmd", "decide", "owner", "theirs"), -1, ASK_NS, &e);
        r = o && wait_gone(a, vm) ? 0 : -EIO;
        json_decref(o);
    } else if (!r) {
        r = owner_restore(dir, vm, j.had_record ? &j.before : NULL, &e);
        if (!r)
            r = settle_end_here(a, vm, &e);
    }
    journal_free(&j);
    free(dir);
    if (r)
        return refusal(EXIT_FAILED, "VM %s was not given to %s, and what is left of it here does not go: %s",
                       vm, a->conf.name, e.text);
    return ok_text("VM %s was not given to %s: it is %s's", vm, a->conf.name, owner);
}

static json_t *has_gone(struct agent *a, const char *vm, const struct known *here, const struct known *there)
{
    struct owner_record rec = here->rec;
    const char *owner = there->rec.owner == OWNER_MINE ? verdict_peer(&here->rec) : there->rec.to;
    struct xm_error e = {0};

    rec.settled = true;
    if (owner_write(a, vm, &rec, &e) < 0 || settle_end_here(a, vm, &e) < 0)
        return refusal(EXIT_FAILED,
                       "VM %s is %s's (epoch %llu), and what is left of it here cannot be ended: %s", vm,
                       owner, (unsigned long long)there->rec.epoch, e.text);
    return ok_text("VM %s is %s's (epoch %llu); what was left of it here has been taken away", vm, owner,
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
    json_t *answer = ok_text("%s: %s", p->name, xm_json_str(o, "text", ""));
    json_decref(o);
    return answer;
}

/* The operator says that the peer will never be back. What it may still have done with what we gave it,
 * taken it, handed it back, moved it on and on: ours is above, so that it is of the past when it comes back
 * all the same. What it has promised us we take as it was offered: who offered it has the journal of
 * it, and gives way (returned.c). It may have given the VM to a third host before it died. */
static json_t *without_peer(struct agent *a, const char *vm, struct known *here)
{
    uint64_t epoch = here->rec.epoch + (here->rec.owner == OWNER_GIVEN ? BY_WORD_GIVEN : 0);
    char silent[200];
    json_t *answer = third_hosts(a, vm, here, NULL, silent, sizeof silent);

    if (answer)
        return answer;
    xm_log(XM_LOG_WARN, "VM %s: %s is declared dead by an operator; taken with epoch %llu", vm,
           verdict_peer(&here->rec), (unsigned long long)epoch);
    answer = take(a, vm, here, epoch, "was taken on its operator's word", true);
    if (xm_json_bool(answer, "ok", false) && silent[0])
        json_object_set_new(
            answer, "text",
            json_sprintf("%s; whether the VM had gone on to another host cannot be asked of %s",
                         xm_json_str(answer, "text", ""), silent));
    return answer;
}

static json_t *judge_it(struct agent *a, const char *vm, struct known *here, bool peer_is_dead)
{
    const char *name = verdict_peer(&here->rec);
    const struct conf_peer *p = config_peer(&a->conf, name);
    static const char back[] = "was handed back to this host";
    struct xm_error e = {0};
    struct known there;
    char ignored[200];
    json_t *answer;
    uint64_t epoch;

    if (!p && !peer_is_dead)
        return refusal(EXIT_UNKNOWN, "VM %s: '%s' decides whose it is, and is no [peer] of %s", vm, name,
                       a->conf.name);
    int r = p ? known_there(a, p, vm, &there, &e) : -ENOENT;
    if (peer_is_dead && known_answered(r))
        return refusal(
            EXIT_UNKNOWN,
            "VM %s: %s is not dead, it answers: %s. If the VM does not run there, nor can any more, end "
            "xmigrated there first",
            vm, name, e.text);
    if (r && peer_is_dead)
        return without_peer(a, vm, here);
    if (r)
        return cannot_ask(vm, name, e.text);
    switch (verdict_of(a->conf.name, &here->rec, &there.rec, known_guest_there(&there), &epoch, &e)) {
    case VERDICT_TAKE:
        if ((answer = third_hosts(a, vm, here, &there, ignored, sizeof ignored)))
            return answer;
        if (there.qemu && !here->qemu && strcmp(here->role, "undecided") != 0)
            return hand_back(a, vm, here);
        return take(a, vm, here, epoch, "was given to this host", false);
    case VERDICT_BACK:
        return take(a, vm, here, epoch, back, false);
    case VERDICT_DISCARD:
        return discard(a, vm, here);
    case VERDICT_SETTLED:
        return has_gone(a, vm, here, &there);
    case VERDICT_THEIRS:
        return ok_text(
            "VM %s is %s's (epoch %llu), which has not been seen to run it yet: what is left of it here "
            "is kept; start it there",
            vm, name, (unsigned long long)there.rec.epoch);
    case VERDICT_TELL:
        answer = tell_to_settle(a, vm, p);
        /* It may have handed it back. */
        if (!xm_json_bool(answer, "ok", false) || known_there(a, p, vm, &there, &e) < 0 ||
            verdict_of(a->conf.name, &here->rec, &there.rec, false, &epoch, &e) != VERDICT_BACK)
            return answer;
        json_decref(answer);
        return take(a, vm, here, epoch, back, false);
    case VERDICT_DOUBT:
        if (peer_is_dead && there.rec.owner == OWNER_NONE)
            return without_peer(a, vm, here);
        return refusal(EXIT_UNKNOWN, "VM %s: %s", vm, e.text);
    case VERDICT_NOTHING:
        break;
    }
    return ok_text("VM %s: nothing is open", vm);
}

/* ---- one at a time ---- */

json_t *settle_claimed(struct agent *a, const char *vm, bool peer_is_dead)
{
    struct xm_error e = {0};
    struct known here;

    if (known_here(a, vm, &here, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (known_busy(&here))
        return refusal(EXIT_UNKNOWN, "VM %s is being handed over at this moment", vm);
    if (here.rec.owner == OWNER_PROMISED && !strcmp(here.role, "incoming"))
        return refusal(EXIT_FAILED, "VM %s is on its way from %s: nothing is undecided", vm, here.source);
    if (here.rec.owner == OWNER_MINE && !vm_process(a, vm, "shim.pid") && vm_process(a, vm, "qemu.pid"))
        return run_here(a, vm, "is this host's", &here,
                        here.rec.epoch); /* its shim was lost once too often */
    if (here.rec.owner == OWNER_MINE)
        return ok_text("VM %s is this host's: %s", vm, here.present ? here.state : "stopped");
    if (!verdict_open(&here.rec)) /* whoever had the claim before us has settled it */
        return ok_text("VM %s: nothing is open any more", vm);
    settle_word(a, vm, peer_is_dead);
    json_t *answer = judge_it(a, vm, &here, peer_is_dead);
    settle_word(a, vm, false);
    return answer;
}

json_t *settle(struct agent *a, const char *vm, bool peer_is_dead, uint64_t patience_ns)
{
    if (!settle_claim(a, vm, patience_ns))
        return refusal(EXIT_UNKNOWN, "what is open of VM %s is just being settled on %s: ask again", vm,
                       a->conf.name);
    json_t *answer = settle_claimed(a, vm, peer_is_dead);
    settle_release(a, vm);
    return answer;
}
