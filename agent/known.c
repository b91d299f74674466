/* SPDX-License-Identifier: MIT */
#include "agent/known.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define HOPS 8 /* how often a VM is followed from one host to the next */

/* The journal is there, or there is none: then nothing is open. */
static void open_here(const char *dir, struct known *k)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    struct journal j;

    k->tells_open = journal_read(dir, &j, NULL) == 0;
    if (!k->tells_open)
        return;
    k->opens = journal_asks(&j, &k->rec, open);
    for (unsigned i = 0; i < k->opens; i++)
        snprintf(k->open[i], sizeof k->open[i], "%s", open[i].peer);
    journal_free(&j);
}

int known_here(struct agent *a, const char *vm, struct known *k, struct xm_error *e)
{
    memset(k, 0, sizeof *k);
    struct xm_error why = {0};
    char *dir = vm_state_path(a, vm, NULL);
    int r = owner_read(a, vm, &k->rec, &why);
    if (!r || r == -ENOENT) /* its writer may have been killed between writing and durable */
        r = owner_sync(dir, &why);
    if (!r)
        open_here(dir, k);
    free(dir);
    if (r)
        return xm_error_set(e, -r, "%s", why.text);
    agent_lock(a);
    const struct vm *there = vm_find(a, vm);
    k->present = there != NULL;
    if (there)
        memcpy(k->job, there->job, sizeof k->job);
    agent_unlock(a);
    k->tells_job = true;
    k->qemu = vm_process(a, vm, "qemu.pid") != 0;
    if (k->present) {
        json_t *st = shim_call(a, vm, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);
        snprintf(k->role, sizeof k->role, "%s", xm_json_str(st, "role", "?"));
        snprintf(k->state, sizeof k->state, "%s", xm_json_str(st, "state", "no answer"));
        snprintf(k->source, sizeof k->source, "%s", xm_json_str(st, "source", ""));
        snprintf(k->step, sizeof k->step, "%s", xm_json_str(st, "step", ""));
        k->hangs = !st && vm_process(a, vm, "shim.pid");
        json_decref(st);
    }
    return 0;
}

bool known_busy(const struct known *k)
{
    return k->hangs ||
           (!strcmp(k->role, "owner") && (!strcmp(k->step, "switch") || !strcmp(k->step, "handoff")));
}

bool known_stands(const struct known *k)
{
    return k->rec.owner == OWNER_MINE && k->present && !strcmp(k->role, "owner") &&
           !strcmp(k->state, "stopped");
}

bool known_open_with(const struct known *k, const char *host)
{
    bool is = !k->tells_open;

    for (unsigned i = 0; i < k->opens && !is; i++)
        is = !strcmp(k->open[i], host);
    return is;
}

static void open_there(const json_t *list, struct known *k)
{
    json_t *v;
    size_t i;

    k->tells_open = json_is_array(list);
    json_array_foreach (list, i, v) {
        if (json_is_string(v) && k->opens < sizeof k->open / sizeof *k->open)
            snprintf(k->open[k->opens++], sizeof *k->open, "%s", json_string_value(v));
    }
}

static int ask(struct agent *a, const struct conf_peer *p, const char *vm, uint64_t timeout_ns,
               struct known *k, struct xm_error *e)
{
    json_t *reasons;
    int status;
    json_t *o = peer_call_agent(a, p, json_pack("{s:s, s:s}", "verb", "peer.owner", "vm", vm), timeout_ns,
                                &status, &reasons, NULL, e);

    memset(k, 0, sizeof *k);
    json_decref(reasons);
    if (!o)
        return e->code == EREMOTEIO || e->code == EBUSY ? -e->code : -EIO;
    int side = owner_side_of(xm_json_str(o, "owner", "?"));
    int64_t epoch = xm_json_int(o, "epoch", 0);
    /* Whom it has given the VM to may come to stand in our record. */
    bool named = side != OWNER_GIVEN || config_name_check("host", xm_json_str(o, "to", ""), NULL) == 0;
    int r = side < 0 || !named || epoch < 0 || (uint64_t)epoch > OWNER_EPOCH_MAX + 2
                ? xm_error_set(e, EPROTO, "host %s: its answer makes no sense", p->name)
                : 0;
    k->rec.owner = (enum owner_side)XM_MAX(side, 0);
    k->rec.settled = xm_json_bool(o, "settled", false);
    k->rec.epoch = (uint64_t)epoch;
    snprintf(k->rec.to, sizeof k->rec.to, "%s", xm_json_str(o, "to", ""));
    k->present = xm_json_bool(o, "present", false);
    k->qemu = xm_json_bool(o, "qemu", false);
    snprintf(k->role, sizeof k->role, "%s", xm_json_str(o, "role", ""));
    snprintf(k->state, sizeof k->state, "%s", xm_json_str(o, "state", ""));
    k->tells_job = json_is_string(json_object_get(o, "job"));
    snprintf(k->job, sizeof k->job, "%s", xm_json_str(o, "job", ""));
    open_there(json_object_get(o, "open"), k);
    json_decref(o);
    return r;
}

int known_there(struct agent *a, const struct conf_peer *p, const char *vm, struct known *k,
                struct xm_error *e)
{
    return ask(a, p, vm, ASK_NS, k, e);
}

int known_there_soon(struct agent *a, const struct conf_peer *p, const char *vm, struct known *k,
                     struct xm_error *e)
{
    return ask(a, p, vm, TELL_NS, k, e);
}

struct question {
    struct agent *agent;
    const struct conf_peer *peer;
    const char *vm;
    pthread_t thread;
    bool asked;
    struct known_answer *answer;
};

static void *question_main(void *arg)
{
    struct question *q = arg;

    q->answer->result = known_there_soon(q->agent, q->peer, q->vm, &q->answer->there, &q->answer->error);
    return NULL;
}

void known_everywhere(struct agent *a, const char *vm, const bool *skip, struct known_answer *answer)
{
    struct question q[CONFIG_MANY];

    for (unsigned i = 0; i < a->conf.peers; i++) {
        if (skip && skip[i])
            continue;
        answer[i].error = (struct xm_error){0};
        q[i] = (struct question){.agent = a, .peer = &a->conf.peer[i], .vm = vm, .answer = &answer[i]};
        q[i].asked = pthread_create(&q[i].thread, NULL, question_main, &q[i]) == 0;
    }
    for (unsigned i = 0; i < a->conf.peers; i++) {
        if (skip && skip[i])
            continue;
        if (q[i].asked)
            pthread_join(q[i].thread, NULL);
        else
            question_main(&q[i]);
    }
}

int known_follow(struct agent *a, const char *vm, uint64_t epoch, const char *end,
                 char host[CONFIG_NAME_MAX + 1], struct known *k, struct xm_error *e)
{
    for (int hop = 0; hop < HOPS && k->rec.owner == OWNER_GIVEN && k->rec.epoch > epoch; hop++) {
        const char *to = k->rec.to;
        const struct conf_peer *p = config_peer(&a->conf, to);
        struct xm_error why = {0};
        struct known next;
        if (!strcmp(to, a->conf.name) || !strcmp(to, end))
            break;
        if (!p)
            xm_error_set(&why, ENOENT, "it is no [peer] of %s", a->conf.name);
        if (!p || known_there_soon(a, p, vm, &next, &why) < 0)
            return xm_error_set(
                e, EHOSTUNREACH,
                "%s gave it to %s (epoch %llu), and whether it is there cannot be asked: %s; if "
                "%s is lost for good: `xmigrate undefine --force %s` on %s, which then says "
                "nothing of it any more",
                host, to, (unsigned long long)k->rec.epoch, why.text, to, vm, host);
        snprintf(host, CONFIG_NAME_MAX + 1, "%s", p->name);
        *k = next;
    }
    return 0;
}

bool known_guest_there(const struct known *there)
{
    return !strcmp(there->state, "running") || !strcmp(there->state, "paused");
}
