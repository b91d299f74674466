/* SPDX-License-Identifier: MIT */
/* recover: whose is this VM? (docs/design.md, «Ownership»)
 *
 * What is open of its last hand-off is settled (settle.c). Else the records are told: here, and, where
 * this host has none or its VM does not run, at all peers; where this host gave the VM away, at those
 * that have had it since. A VM that is this host's and was stopped is not started. Where this host has no
 * record, or gave the VM away, a silent peer keeps the question open: exit status 4. */
#include "agent/inventory.h"
#include "agent/known.h"
#include "agent/returned.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *verb_peer_owner(struct conn *c, const json_t *request)
{
    const char *vm = xm_json_str(request, "vm", "");
    struct xm_error e = {0};
    struct known k;

    if (vm_name_check(vm, &e) < 0 || known_here(c->agent, vm, &k, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    /* Who asks would act on what may be another thing in a moment. */
    if (known_busy(&k))
        return refusal(EXIT_UNKNOWN, "VM %s is being handed over at this moment: ask again", vm);
    struct owner_record now;
    int r = settle_by_word(c->agent, vm) ? -EBUSY : owner_read(c->agent, vm, &now, &e);
    /* Or it was, and is over, since the record was read. */
    if (r == -EBUSY || (!r && (now.owner != k.rec.owner || now.epoch != k.rec.epoch)))
        return refusal(EXIT_UNKNOWN, "VM %s is just being taken on an operator's word: ask again", vm);
    json_t *answer = ok_answer();
    json_object_set_new(answer, "owner", json_string(owner_side_name(k.rec.owner)));
    json_object_set_new(answer, "epoch", json_integer((json_int_t)k.rec.epoch));
    json_object_set_new(answer, "to", json_string(k.rec.to));
    json_object_set_new(answer, "settled", json_boolean(k.rec.settled));
    json_object_set_new(answer, "present", json_boolean(k.present));
    json_object_set_new(answer, "qemu", json_boolean(k.qemu));
    json_object_set_new(answer, "role", json_string(k.role));
    json_object_set_new(answer, "state", json_string(k.state));
    json_object_set_new(answer, "job", json_string(k.job));
    json_t *open = json_array();
    for (unsigned i = 0; i < k.opens; i++)
        json_array_append_new(open, json_string(k.open[i]));
    if (k.tells_open)
        json_object_set(answer, "open", open);
    json_decref(open);
    return answer;
}

static json_t *say(const char *vm, const char *owner, uint64_t epoch, const char *more)
{
    json_t *answer = ok_answer();

    json_object_set_new(
        answer, "text",
        json_sprintf("VM %s is %s's (epoch %llu)%s", vm, owner, (unsigned long long)epoch, more));
    return answer;
}

/* It was given away, and that is settled. It may have gone on, which our record does not know. */
static json_t *say_where(struct agent *a, const char *vm, const struct owner_record *rec)
{
    enum whereabouts is;
    char *where = inventory_whereabouts(a, vm, rec, &is);
    json_t *answer = is == WHERE_OWNED ? ok_answer() : refusal(EXIT_UNKNOWN, "VM %s: %s", vm, where);

    if (is == WHERE_OWNED)
        json_object_set_new(answer, "text", json_sprintf("VM %s is not here: %s", vm, where));
    free(where);
    return answer;
}

static json_t *told(const char *text)
{
    json_t *answer = ok_answer();

    json_object_set_new(answer, "text", json_string(text));
    return answer;
}

/* What runs here of it has ended, or not yet. */
static json_t *given_up(const struct xm_error *theirs)
{
    return theirs->code == EINPROGRESS ? refusal(EXIT_FAILED, "%s", theirs->text) : told(theirs->text);
}

/* A VM of ours that another host may have taken over (agent/returned.h), which will not be back. */
static json_t *by_word(struct agent *a, const char *vm, const struct known *here)
{
    struct xm_error e = {0};
    struct returned_word word;
    char text[1000];

    enum returned is = returned_judge(a, vm, NULL, &e);
    if (is == RETURNED_THEIRS)
        return given_up(&e);
    if (is == RETURNED_UNKNOWN && e.code != EHOSTUNREACH)
        return refusal(EXIT_UNKNOWN, "%s", e.text);
    int r = returned_by_word(a, vm, &word, &e);
    if (r == -ENOENT && here->present)
        return refusal(EXIT_USAGE, "VM %s is here (%s): it is not to be taken from anybody", vm, here->state);
    if (r == -ENOENT && here->rec.owner == OWNER_GIVEN)
        return refusal(
            EXIT_USAGE,
            "VM %s was moved to %s, and nothing of that is open: it is not taken back. If that host "
            "is lost for good, what can be done is told in xmigrate(1), A DESTINATION THAT IS LOST",
            vm, here->rec.to);
    if (r == -ENOENT)
        return refusal(EXIT_USAGE,
                       "VM %s: nothing of a hand-off is open here that a peer would have to settle", vm);
    if (r)
        return refusal(r == -EHOSTUNREACH ? EXIT_UNKNOWN : EXIT_FAILED, "VM %s: %s", vm, e.text);
    const char *are = strchr(word.dead, ',') ? "are" : "is";
    if (here->present)
        snprintf(text, sizeof text, "VM %s is %s's on its operator's word (%s %s gone), and is here: %s", vm,
                 a->conf.name, word.dead, are, here->state);
    else
        snprintf(text, sizeof text,
                 "VM %s is %s's on its operator's word (%s %s gone); start it with `xmigrate start %s`", vm,
                 a->conf.name, word.dead, are, vm);
    size_t n = strlen(text);
    if (word.silent[0])
        snprintf(text + n, sizeof text - n,
                 "; whether the VM had gone on to another host cannot be asked of %s", word.silent);
    return told(text);
}

/* Nobody may own a higher epoch than ours. NULL: nobody does, of those that could be asked; `silent` names
 * the first that could not, `heard` what another record says of it. */
static json_t *ask_all(struct agent *a, const char *vm, const struct known *here, struct xm_error *silent,
                       struct xm_error *heard)
{
    for (unsigned i = 0; i < a->conf.peers; i++) {
        const struct conf_peer *p = &a->conf.peer[i];
        struct xm_error e = {0};
        struct known there;
        if (known_there(a, p, vm, &there, &e) < 0) {
            if (!silent->code)
                xm_error_set(silent, EHOSTUNREACH, "%s cannot be asked: %s", p->name, e.text);
        } else if (there.rec.owner == OWNER_MINE && there.rec.epoch > here->rec.epoch) {
            return say(vm, p->name, there.rec.epoch, "");
        } else if (there.rec.owner != OWNER_NONE && !heard->code) {
            bool given = there.rec.owner == OWNER_GIVEN;
            xm_error_set(heard, ENODATA, "the record of %s is «%s%s%s», epoch %llu", p->name,
                         owner_side_name(there.rec.owner), given ? " to " : "", given ? there.rec.to : "",
                         (unsigned long long)there.rec.epoch);
        }
    }
    return NULL;
}

/* Which of the two is to stay only their operator can say. */
static json_t *twice(struct agent *a, const char *vm, const struct known *here, const char *peer,
                     const struct known *there)
{
    bool later = there->rec.epoch > here->rec.epoch, same = there->rec.epoch == here->rec.epoch;
    const char *stays = later ? peer : a->conf.name, *goes = later ? a->conf.name : peer;
    char *which = same ? xm_printf("neither copy is the later one: stop it on the host whose copy is to go,")
                       : xm_printf("the later copy is %s's: stop it on %s", stays, goes);
    char *more = same ? xm_printf("%s", "")
                      : xm_printf("; or, if that copy is the one to keep, stop and undefine it on %s", stays);
    json_t *no = refusal(
        EXIT_FAILED,
        "VM %s is here (%s, epoch %llu), and %s says that it is %s's (epoch %llu). Either two VMs were "
        "defined under one name, and one of them needs another; or each of the two hosts was declared "
        "dead at the other one, and %s by `xmigrate stop --force %s`, which loses what that guest has "
        "done since, and undefine it there%s",
        vm, here->state, (unsigned long long)here->rec.epoch, peer, peer,
        (unsigned long long)there->rec.epoch, which, vm, more);

    free(which);
    free(more);
    return no;
}

/* It runs here, and another host has it as well: each was declared dead at the other one; or two VMs have one
 * name, since neither host reached the other when they were defined. NULL: of those that answer soon none has
 * it. */
static json_t *runs_twice(struct agent *a, const char *vm, const struct known *here)
{
    for (unsigned i = 0; i < a->conf.peers; i++) {
        struct xm_error e = {0};
        struct owner_record now;
        struct known there;
        if (known_there_soon(a, &a->conf.peer[i], vm, &there, &e) < 0 || there.rec.owner != OWNER_MINE ||
            (there.rec.epoch <= here->rec.epoch && !there.present))
            continue;
        /* Who has been given it since we looked says so only after our record did. */
        if (owner_read(a, vm, &now, NULL) < 0 || now.owner != OWNER_MINE || now.epoch != here->rec.epoch)
            return refusal(EXIT_UNKNOWN, "VM %s has changed at this moment: ask again", vm);
        return twice(a, vm, here, a->conf.peer[i].name, &there);
    }
    return NULL;
}

static json_t *recover(struct agent *a, const char *vm, bool peer_is_dead)
{
    struct xm_error e = {0};
    struct known here;
    char more[700];

    if (vm_name_check(vm, &e) < 0 || known_here(a, vm, &here, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (verdict_open(&here.rec))
        return settle(a, vm, peer_is_dead, SETTLE_PATIENCE);
    if (here.present && !strcmp(here.role, "incoming"))
        return refusal(EXIT_FAILED, "VM %s is on its way from %s: nothing is undecided", vm, here.source);
    if (peer_is_dead)
        return by_word(a, vm, &here);
    if (here.rec.owner == OWNER_GIVEN)
        return say_where(a, vm, &here.rec);
    if (known_stands(&here))
        return settle_let_run(a, vm);
    if (here.rec.owner == OWNER_MINE && here.present && strcmp(here.role, "?") != 0) {
        json_t *both = runs_twice(a, vm, &here);
        if (both)
            return both;
        snprintf(more, sizeof more, ", and is here: %s", here.state);
        return say(vm, a->conf.name, here.rec.epoch, more);
    }
    if (here.rec.owner == OWNER_MINE && vm_process(a, vm, "qemu.pid"))
        return settle(a, vm, false, SETTLE_PATIENCE);
    enum returned is = returned_judge(a, vm, NULL, &e);
    if (is == RETURNED_UNKNOWN)
        return refusal(EXIT_UNKNOWN, "%s", e.text);
    if (is == RETURNED_THEIRS)
        return given_up(&e);
    struct xm_error silent = {0}, heard = {0};
    json_t *answer = ask_all(a, vm, &here, &silent, &heard);
    if (answer)
        return answer;
    if (here.rec.owner != OWNER_MINE && silent.code)
        return refusal(EXIT_UNKNOWN,
                       "whose VM %s is cannot be said: %s; start xmigrated there, and ask again", vm,
                       silent.text);
    if (here.rec.owner != OWNER_MINE && heard.code)
        return refusal(EXIT_FAILED, "neither %s nor its peers have VM %s: %s", a->conf.name, vm, heard.text);
    if (here.rec.owner != OWNER_MINE)
        return refusal(EXIT_FAILED, "neither %s nor its peers have a record of a VM '%s'", a->conf.name, vm);
    /* Who cannot be asked had no part in it (returned_judge). */
    snprintf(more, sizeof more, ", and is stopped; start it with `xmigrate start %s`%s%s", vm,
             silent.code ? "; " : "", silent.text);
    return say(vm, a->conf.name, here.rec.epoch, more);
}

json_t *verb_recover(struct conn *c, const json_t *request)
{
    return recover(c->agent, xm_json_str(request, "vm", ""), xm_json_bool(request, "peer_is_dead", false));
}

/* From the host whose record is open until ours is settled; it does not get to say how that ends. No other
 * has a part in it: settling may have to wait for one that is silent, and would keep an operator's word
 * waiting. */
json_t *verb_peer_recover(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *vm = xm_json_str(request, "vm", "");
    struct xm_error e = {0};
    struct known here;

    if (vm_name_check(vm, &e) < 0 || known_here(a, vm, &here, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (!verdict_open(&here.rec))
        return refusal(EXIT_FAILED, "VM %s: nothing of it is open on %s (%s)", vm, a->conf.name,
                       owner_side_name(here.rec.owner));
    const char *from = xm_json_str(request, "from", "");
    if (strcmp(from, verdict_peer(&here.rec)) != 0)
        return refusal(EXIT_FAILED, "VM %s: what is open of it on %s is not open with %s", vm, a->conf.name,
                       from);
    return settle(a, vm, false, SETTLE_PEER_PATIENCE);
}
