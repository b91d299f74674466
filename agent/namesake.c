/* SPDX-License-Identifier: MIT */
/* A VM is defined for the first time: has another host one of that name? Two would be one VM to every agent,
 * and the younger one, with the higher epoch, would be believed. All peers are asked at once. One that is
 * silent does not forbid it: a host whose peers are down has to be able to work. */
#include "agent/known.h"

#include <pthread.h>

struct question {
    struct agent *agent;
    const struct conf_peer *peer;
    const char *vm;
    pthread_t thread;
    bool asked;
    int result; /* known_there_soon's */
    struct known there;
    struct xm_error error;
};

static void *question_main(void *arg)
{
    struct question *q = arg;

    q->result = known_there_soon(q->agent, q->peer, q->vm, &q->there, &q->error);
    return NULL;
}

/* What a peer says against it. One that answers, and cannot tell, may have the VM: it is just handed over, or
 * its record is damaged. */
static int namesake_judge(const struct question *q, struct xm_error *e)
{
    const struct owner_record *rec = &q->there.rec;
    const char *host = q->peer->name;

    if (known_answered(q->result))
        return xm_error_set(e, EBUSY, "whether %s has a VM %s is not known: %s", host, q->vm, q->error.text);
    if (q->result)
        return 0;
    if (rec->owner == OWNER_MINE || rec->owner == OWNER_PROMISED)
        return xm_error_set(e, EEXIST,
                            "%s has a VM %s (epoch %llu), and a name is one VM's on all hosts. If it is that "
                            "one, it is managed there; another VM needs another name",
                            host, q->vm, (unsigned long long)rec->epoch);
    if (q->there.present)
        return xm_error_set(
            e, EEXIST,
            "a VM %s is on its way to %s, or just being defined there: another VM needs another "
            "name",
            q->vm, host);
    if (rec->owner == OWNER_GIVEN && !rec->settled)
        return xm_error_set(e, EEXIST,
                            "%s has given a VM %s to %s, and that is not settled: `xmigrate recover %s` "
                            "there; another VM needs another name",
                            host, q->vm, rec->to, q->vm);
    return 0;
}

int define_namesake(struct agent *a, const char *vm, struct xm_error *e)
{
    struct question q[CONFIG_MANY];
    int r = 0;

    for (unsigned i = 0; i < a->conf.peers; i++) {
        q[i] = (struct question){.agent = a, .peer = &a->conf.peer[i], .vm = vm};
        q[i].asked = pthread_create(&q[i].thread, NULL, question_main, &q[i]) == 0;
    }
    for (unsigned i = 0; i < a->conf.peers; i++) {
        if (q[i].asked)
            pthread_join(q[i].thread, NULL);
        else
            question_main(&q[i]);
        if (!r)
            r = namesake_judge(&q[i], e);
    }
    return r;
}
