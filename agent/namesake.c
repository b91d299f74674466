/* SPDX-License-Identifier: MIT */
/* A VM is defined for the first time: has another host one of that name? Two would be one VM to every agent,
 * and the younger one, with the higher epoch, would be believed. All peers are asked at once. One that is
 * silent does not forbid it: a host whose peers are down has to be able to work. */
#include "agent/known.h"

/* What a peer says against it. One that answers, and cannot tell, may have the VM: it is just handed over, or
 * its record is damaged. */
static int namesake_judge(const struct known_answer *a, const char *vm, const char *host, struct xm_error *e)
{
    const struct owner_record *rec = &a->there.rec;

    if (known_answered(a->result))
        return xm_error_set(e, EBUSY, "whether %s has a VM %s is not known: %s", host, vm, a->error.text);
    if (a->result)
        return 0;
    if (rec->owner == OWNER_MINE || rec->owner == OWNER_PROMISED)
        return xm_error_set(e, EEXIST,
                            "%s has a VM %s (epoch %llu), and a name is one VM's on all hosts. If it is that "
                            "one, it is managed there; another VM needs another name",
                            host, vm, (unsigned long long)rec->epoch);
    if (a->there.present)
        return xm_error_set(
            e, EEXIST,
            "a VM %s is on its way to %s, or just being defined there: another VM needs another "
            "name",
            vm, host);
    if (rec->owner == OWNER_GIVEN && !rec->settled)
        return xm_error_set(e, EEXIST,
                            "%s has given a VM %s to %s, and that is not settled: `xmigrate recover %s` "
                            "there; another VM needs another name",
                            host, vm, rec->to, vm);
    return 0;
}

int define_namesake(struct agent *a, const char *vm, struct xm_error *e)
{
    struct known_answer answer[CONFIG_MANY];
    int r = 0;

    known_everywhere(a, vm, NULL, answer);
    for (unsigned i = 0; i < a->conf.peers && !r; i++)
        r = namesake_judge(&answer[i], vm, a->conf.peer[i].name, e);
    return r;
}
