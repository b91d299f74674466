/* recover: whose is this VM? (DESIGN §8)
 *
 * A hand-off that was cut in the middle leaves the VM stopped on both sides, and the source's record decides. So:
 *   undecided here     the source is asked: given to us, then it runs here; still the source's, then this side is taken away
 *   given by us to B   B is asked: B owns it, then what is left of it here ends; B is undecided, then B is told to recover; B has
 *                      nothing of it, durably and for certain, then we take it back, in a new epoch, and start it from its disks
 *   ours               it runs, or is started, unless a peer owns a higher epoch
 *   unknown here       all peers are asked
 * Whoever cannot be asked keeps the question open: exit status 4 and nothing is changed. */
#include "agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASK_NS (15 * XM_NS_PER_S)

/* ---- what a host knows ---- */

struct known {
    struct owner_record rec; /* rec.owner NONE: no record */
    bool present;            /* it has a shim there */
    char role[16];           /* the shim's; "" without one */
    char step[16];           /* of the migration it works on; "" without one */
    char state[16];
    char source[CONFIG_NAME_MAX + 1];
};

static int know(struct agent *a, const char *vm, struct known *k, struct xm_error *e)
{
    memset(k, 0, sizeof *k);
    int r = owner_read(a, vm, &k->rec, e);
    agent_lock(a);
    k->present = vm_find(a, vm) != NULL;
    agent_unlock(a);
    if (k->present) {
        json_t *st = shim_call(a, vm, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);
        snprintf(k->role, sizeof k->role, "%s", xm_json_str(st, "role", "?"));
        snprintf(k->state, sizeof k->state, "%s", xm_json_str(st, "state", "no answer"));
        snprintf(k->source, sizeof k->source, "%s", xm_json_str(st, "source", ""));
        snprintf(k->step, sizeof k->step, "%s", xm_json_str(st, "step", ""));
        json_decref(st);
    }
    return r == -ENOENT ? 0 : r;
}

static const char *const sides[] = {"none", "mine", "given"};

json_t *verb_peer_owner(struct conn *c, const json_t *request)
{
    const char *vm = xm_json_str(request, "vm", "");
    struct xm_error e = {0};
    struct known k;

    if (vm_name_check(vm, &e) < 0 || know(c->agent, vm, &k, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    /* What the record says now may be another thing in a moment, and who asks would act on it. */
    if (!strcmp(k.role, "owner") && (!strcmp(k.step, "switch") || !strcmp(k.step, "handoff")))
        return refusal(EXIT_UNKNOWN, "VM %s is being handed over at this moment: ask again", vm);
    json_t *answer = ok_answer();
    json_object_set_new(answer, "owner", json_string(sides[k.rec.owner]));
    json_object_set_new(answer, "epoch", json_integer((json_int_t)k.rec.epoch));
    json_object_set_new(answer, "to", json_string(k.rec.to));
    json_object_set_new(answer, "present", json_boolean(k.present));
    json_object_set_new(answer, "role", json_string(k.role));
    return answer;
}

static int ask(struct agent *a, const struct conf_peer *p, const char *vm, struct known *k,
               struct xm_error *e)
{
    json_t *reasons;
    int status;
    json_t *o = peer_call_agent(a, p, json_pack("{s:s, s:s}", "verb", "peer.owner", "vm", vm), ASK_NS,
                                &status, &reasons, NULL, e);

    memset(k, 0, sizeof *k);
    json_decref(reasons);
    if (!o)
        return -EIO;
    const char *owner = xm_json_str(o, "owner", "?");
    int r = 0;
    if (!strcmp(owner, "mine"))
        k->rec.owner = OWNER_MINE;
    else if (!strcmp(owner, "given"))
        k->rec.owner = OWNER_GIVEN;
    else if (strcmp(owner, "none") != 0)
        r = xm_error_set(e, EPROTO, "host %s: its answer makes no sense", p->name);
    k->rec.epoch = (uint64_t)XM_MAX(xm_json_int(o, "epoch", 0), 0);
    snprintf(k->rec.to, sizeof k->rec.to, "%s", xm_json_str(o, "to", ""));
    k->present = xm_json_bool(o, "present", false);
    snprintf(k->role, sizeof k->role, "%s", xm_json_str(o, "role", ""));
    json_decref(o);
    return r;
}

/* ---- answers ---- */

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
    return refusal(EXIT_UNKNOWN, "whose VM %s is cannot be said before %s has been asked: %s", vm, host, why);
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

/* What is left here of a VM that is another host's: its shim, or a QEMU that has none. */
static int end_here(struct agent *a, const char *vm, struct xm_error *e)
{
    json_t *o = shim_call(a, vm, json_pack("{s:s, s:b}", "cmd", "stop", "force", 1), -1, ASK_NS, e);

    json_decref(o);
    if (o ? wait_gone(a, vm) : vm_end_orphan(a, vm))
        return 0;
    return o ? xm_error_set(e, ETIMEDOUT, "its shim does not end") : -EIO;
}

/* ---- the cases ---- */

static json_t *decide(struct agent *a, const char *vm, const struct known *here)
{
    const struct conf_peer *p = config_peer(&a->conf, here->source);
    struct xm_error e = {0};
    struct known there;

    if (!p)
        return refusal(EXIT_UNKNOWN, "VM %s came from '%s', which is no [peer] of %s", vm, here->source,
                       a->conf.name);
    if (ask(a, p, vm, &there, &e) < 0)
        return cannot_ask(vm, p->name, e.text);
    bool ours = there.rec.owner == OWNER_GIVEN && !strcmp(there.rec.to, a->conf.name) &&
                there.rec.epoch > here->rec.epoch;
    if (!ours && there.rec.owner != OWNER_MINE)
        return refusal(EXIT_UNKNOWN, "%s's record of VM %s does not decide it (%s%s%s, epoch %llu)", p->name,
                       vm, sides[there.rec.owner], there.rec.to[0] ? " to " : "", there.rec.to,
                       (unsigned long long)there.rec.epoch);
    json_t *o = shim_call(a, vm, json_pack("{s:s, s:s}", "cmd", "decide", "owner", ours ? "mine" : "theirs"),
                          -1, ASK_NS, &e);
    if (!o)
        return refusal(EXIT_UNKNOWN, "%s", e.text);
    json_decref(o);
    if (!ours)
        wait_gone(a, vm);
    return say(ours ? "VM %s was given to %s, and runs here" : "VM %s was not given to %s: it is %s's", vm,
               a->conf.name, p->name);
}

static json_t *end_rest(struct agent *a, const char *vm, const char *owner, uint64_t epoch)
{
    struct xm_error e = {0};

    if (end_here(a, vm, &e) < 0)
        return refusal(EXIT_FAILED,
                       "VM %s is %s's (epoch %llu), and what is left of it here cannot be ended: %s", vm,
                       owner, (unsigned long long)epoch, e.text);
    return say(
        "VM %s is %s's (epoch %llu); what was left of it here has been ended, its disks here were kept", vm,
        owner, (unsigned long long)epoch);
}

static json_t *tell_to_recover(struct agent *a, const char *vm, const struct conf_peer *p)
{
    struct xm_error e = {0};
    json_t *reasons;
    int status;
    json_t *o = peer_call_agent(a, p, json_pack("{s:s, s:s}", "verb", "peer.recover", "vm", vm), 4 * ASK_NS,
                                &status, &reasons, NULL, &e);

    json_decref(reasons);
    if (!o)
        return cannot_ask(vm, p->name, e.text);
    json_t *answer = say("%s", xm_json_str(o, "text", ""));
    json_decref(o);
    return answer;
}

static json_t *take_back(struct agent *a, const char *vm, struct known *here)
{
    struct owner_record rec = {.epoch = here->rec.epoch + 1, .owner = OWNER_MINE};
    struct xm_error e = {0};

    if (owner_write(a, vm, &rec, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (here->present && end_here(a, vm, &e) < 0)
        return refusal(EXIT_FAILED, "VM %s is %s's again, but what is left of it here does not end: %s", vm,
                       a->conf.name, e.text);
    json_t *answer = start_again(a, vm);
    if (!xm_json_bool(answer, "ok", false))
        return answer;
    json_decref(answer);
    return say("%s has nothing of VM %s; %s took it back (epoch %llu) and started it from its disks",
               here->rec.to, vm, a->conf.name, (unsigned long long)rec.epoch);
}

static json_t *given_away(struct agent *a, const char *vm, struct known *here)
{
    const struct conf_peer *p = config_peer(&a->conf, here->rec.to);
    struct xm_error e = {0};
    struct known there;

    if (!p)
        return refusal(EXIT_UNKNOWN, "VM %s was given to '%s', which is no [peer] of %s", vm, here->rec.to,
                       a->conf.name);
    if (ask(a, p, vm, &there, &e) < 0)
        return cannot_ask(vm, p->name, e.text);
    if (there.rec.owner != OWNER_NONE && there.rec.epoch >= here->rec.epoch) {
        const char *owner = there.rec.owner == OWNER_MINE ? p->name : there.rec.to;
        if (here->present)
            return end_rest(a, vm, owner, there.rec.epoch);
        return say("VM %s is %s's (epoch %llu)", vm, owner, (unsigned long long)there.rec.epoch);
    }
    if (there.present)
        return tell_to_recover(a, vm, p);
    return take_back(a, vm, here);
}

/* Nobody may own a higher epoch than ours. NULL: nobody does. */
static json_t *ask_all(struct agent *a, const char *vm, const struct known *here)
{
    for (unsigned i = 0; i < a->conf.peers; i++) {
        const struct conf_peer *p = &a->conf.peer[i];
        struct xm_error e = {0};
        struct known there;
        if (ask(a, p, vm, &there, &e) < 0)
            return cannot_ask(vm, p->name, e.text);
        if (there.rec.owner == OWNER_MINE && there.rec.epoch > here->rec.epoch)
            return say("VM %s is %s's (epoch %llu)", vm, p->name, (unsigned long long)there.rec.epoch);
    }
    return NULL;
}

static json_t *recover(struct agent *a, const char *vm)
{
    struct xm_error e = {0};
    struct known here;
    json_t *answer;

    if (vm_name_check(vm, &e) < 0 || know(a, vm, &here, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (!strcmp(here.role, "undecided"))
        return decide(a, vm, &here);
    if (!strcmp(here.role, "incoming"))
        return refusal(EXIT_FAILED, "VM %s is on its way from %s: nothing is undecided", vm, here.source);
    if (here.rec.owner == OWNER_GIVEN)
        return given_away(a, vm, &here);
    if (here.rec.owner == OWNER_MINE && here.present)
        return say("VM %s is %s's (epoch %llu), and is here: %s", vm, a->conf.name,
                   (unsigned long long)here.rec.epoch, here.state);
    answer = ask_all(a, vm, &here);
    if (answer)
        return answer;
    if (here.rec.owner != OWNER_MINE)
        return refusal(EXIT_FAILED, "neither %s nor its peers have a record of a VM '%s'", a->conf.name, vm);
    return start_again(a, vm);
}

json_t *verb_recover(struct conn *c, const json_t *request)
{
    return recover(c->agent, xm_json_str(request, "vm", ""));
}

/* From the source, which does not get to say how it ends: this side asks the source's record. */
json_t *verb_peer_recover(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *vm = xm_json_str(request, "vm", "");
    struct xm_error e = {0};
    struct known here;

    if (vm_name_check(vm, &e) < 0 || know(a, vm, &here, &e) < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (strcmp(here.role, "undecided") != 0)
        return refusal(EXIT_FAILED, "VM %s is not undecided on %s (%s)", vm, a->conf.name,
                       here.role[0] ? here.role : "not there");
    return decide(a, vm, &here);
}
