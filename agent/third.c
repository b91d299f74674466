/* SPDX-License-Identifier: MIT */
/* What hosts say that had no part in a hand-off, before a VM is taken by what was recorded of it. */
#include "agent/known.h"
#include "agent/returned.h"

#include <stdio.h>
#include <string.h>

/* What a host that had no part in this hand-off says of the VM, before we take it; or who has it from that
 * one. It owns it by an operator's word: we give way. NULL: nothing that counts; it may be silent.
 *
 * giver: what the host that gives it to us has said. Who can have taken it from that one is known to it: a
 * host of an earlier hand-off that is open there; nobody else is believed. NULL: it is dead, and the VM is
 * to be taken on an operator's word. Then everybody is asked (the dead one may have given it on), and whose
 * the VM is must not be in question, nor may there be a later copy; who is silent is named in `silent`. */
static json_t *third_host(struct agent *a, const char *vm, const struct known *here,
                          const struct conf_peer *p, const struct known *giver, char *silent, size_t size)
{
    bool by_word = !giver;
    char host[CONFIG_NAME_MAX + 1];
    struct xm_error e = {0};
    struct known there;

    if (giver && !known_open_with(giver, p->name))
        return NULL;
    int r = by_word ? known_there(a, p, vm, &there, &e) /* its shim, which may be slow, is asked there */
                    : known_there_soon(a, p, vm, &there, &e);

    if (by_word && known_answered(r))
        return refusal(EXIT_UNKNOWN, "VM %s: whether %s has it is not known: it answers, but: %s", vm,
                       p->name, e.text);
    size_t named = strlen(silent);
    if (r && by_word)
        snprintf(silent + named, size - named, "%s%s", named ? ", " : "", p->name);
    if (r)
        return NULL;
    snprintf(host, sizeof host, "%s", p->name);
    if (known_follow(a, vm, here->rec.epoch, verdict_peer(&here->rec), host, &there, &e) < 0)
        return refusal(EXIT_UNKNOWN, "VM %s: %s", vm, e.text);
    bool later = there.rec.epoch > here->rec.epoch;
    /* The giver had offered it to that one before, with the same epoch: it took that by a word. */
    bool took_offer = giver && there.rec.epoch == here->rec.epoch;
    if (there.rec.owner == OWNER_MINE && (later || took_offer))
        return returned_give_way(a, vm, &here->rec, host, there.rec.epoch, &e) != RETURNED_THEIRS
                   ? refusal(EXIT_UNKNOWN, "%s", e.text)
               : e.code == EINPROGRESS ? refusal(EXIT_FAILED, "%s", e.text)
                                       : ok_text("%s", e.text);
    if (by_word && there.rec.owner == OWNER_MINE &&
        (there.rec.epoch == here->rec.epoch || known_guest_there(&there)))
        return refusal(EXIT_FAILED, "VM %s is %s's (epoch %llu), and not taken from it", vm, host,
                       (unsigned long long)there.rec.epoch);
    if (by_word && there.rec.owner == OWNER_PROMISED && later)
        return refusal(EXIT_FAILED,
                       "VM %s: %s has a later copy of it, which another host was about to give it: `xmigrate "
                       "recover %s --peer-is-dead` on %s",
                       vm, host, vm, host);
    return NULL;
}

json_t *third_hosts(struct agent *a, const char *vm, const struct known *here, const struct known *giver,
                    char *silent, size_t size)
{
    json_t *answer = NULL, *said;

    silent[0] = 0;

    for (unsigned i = 0; i < a->conf.peers && !xm_json_bool(answer, "ok", false); i++) {
        if (!strcmp(a->conf.peer[i].name, verdict_peer(&here->rec)) ||
            !(said = third_host(a, vm, here, &a->conf.peer[i], giver, silent, size)))
            continue;
        json_decref(answer);
        answer = said; /* whose it is counts more than who does not know */
    }
    return answer;
}
