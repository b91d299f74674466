/* SPDX-License-Identifier: MIT */
/* A move's job, from when nothing is against it to when the VM's shim has it.
 *
 * Happy path: a job is made; its thread has the destination prepare, pairs the links, and gives all to the
 * shim, which from then on does everything. The watcher takes the shim's events to the job; this file has
 * done its part.
 *
 * Failures: the destination cannot prepare: it has cleaned up, the job fails, the VM runs here. The shim
 * refuses, or has died meanwhile (then its successor is not given the job): the destination is told to cancel
 * (or finds out that nobody knows of it, tidy.c). The shim lives and does not answer: it may still take the
 * job, so the job goes on as long as that shim lives; an abort meanwhile is told to it when it has
 * answered. The agent dies: before the shim has it, the job is found without a shim that works on it, and
 * failed; after that it goes on.
 */
#include "agent/datastore.h"
#include "agent/move.h"

#include <string.h>
#include <unistd.h>

#define PREPARE_NS (150 * XM_NS_PER_S)

/* By name first, then in their order. Nothing in common, or none configured: the control connection's own two
 * addresses. */
static json_t *pair_links(struct move *m, const json_t *theirs, const char *local)
{
    const struct config *c = &m->agent->conf;
    json_t *pairs = json_array();
    bool mine_used[CONFIG_MANY] = {false}, theirs_used[CONFIG_MANY] = {false};

    for (int by_name = 1; by_name >= 0; by_name--) {
        for (unsigned i = 0; i < c->links; i++) {
            for (size_t j = 0; j < json_array_size(theirs) && j < CONFIG_MANY && !mine_used[i]; j++) {
                const json_t *t = json_array_get(theirs, j);
                const char *address = xm_json_str(t, "address", "");
                if (theirs_used[j] || !address_same_family(c->link[i].address, address) ||
                    (by_name && strcmp(c->link[i].name, xm_json_str(t, "name", "")) != 0))
                    continue;
                json_array_append_new(
                    pairs, json_pack("{s:s, s:s}", "local", c->link[i].address, "remote", address));
                mine_used[i] = theirs_used[j] = true;
            }
        }
    }
    if (!json_array_size(pairs))
        json_array_append_new(pairs, json_pack("{s:s, s:s}", "local", local, "remote", m->peer->address));
    return pairs;
}

/* Under the lock. */
static int may_launch(const struct job *job, struct xm_error *e)
{
    if (job->barred)
        return xm_error_set(e, ECANCELED, "%s", job->barred);
    return job->over ? xm_error_set(e, ECANCELED, "it is over") : 0;
}

/* Its user's abort came while the shim had the job, and had not said so. */
static void abort_late(struct move *m)
{
    struct xm_error e = {0};

    agent_lock(m->agent);
    bool barred = m->job->barred && !m->job->over;
    agent_unlock(m->agent);
    if (!barred)
        return;
    json_t *answer = shim_call(m->agent, m->vm, json_pack("{s:s, s:s}", "cmd", "abort", "job", m->job->id),
                               -1, 15 * XM_NS_PER_S, &e);
    if (!answer)
        xm_log(XM_LOG_WARN, "job %s: %s", m->job->id, e.text);
    json_decref(answer);
}

/* Invariant: a job that is over, or barred, is given to no shim. The shim is connected to first: one that
 * takes a dead one's place comes after the job was barred (revive), so whoever is connected to it sees that.
 * Invariant: a job that is said to have failed moves no VM. So a shim that has been asked is waited for
 * until it has answered or died. */
static int launch(struct move *m, json_t *request, struct xm_error *e)
{
    int fd = shim_connect(m->agent, m->vm, e);
    json_t *answer = NULL;

    agent_lock(m->agent);
    int r = fd < 0 ? fd : may_launch(m->job, e);
    struct vm *vm = vm_find(m->agent, m->vm);
    if (!r && (!vm || strcmp(vm->job, m->job->id) != 0)) /* what it does would be told to nobody */
        r = xm_error_set(e, ECANCELED, "VM %s has ended, and was started anew", m->vm);
    if (!r)
        m->job->launched = true;
    pthread_cond_broadcast(&m->agent->changed);
    agent_unlock(m->agent);
    xm_fault("launch");
    if (!r)
        answer = shim_call_on(fd, m->vm, request, -1, UINT64_MAX, e);
    else
        json_decref(request);
    if (r && fd >= 0)
        close(fd);
    xm_fault("move-launched");
    if (answer)
        abort_late(m);
    json_decref(answer);
    return answer ? 0 : -EIO;
}

static void cancel_peer(struct move *m, const char *token)
{
    struct xm_error e = {0};
    json_t *reasons;
    int status;
    xm_fault("move-cancel");
    json_t *answer = peer_call_agent(
        m->agent, m->peer, json_pack("{s:s, s:s, s:s}", "verb", "peer.cancel", "vm", m->vm, "token", token),
        30 * XM_NS_PER_S, &status, &reasons, NULL, &e);

    if (!answer)
        xm_log(XM_LOG_WARN, "job %s: %s", m->job->id, e.text);
    json_decref(answer);
    json_decref(reasons);
}

static bool answer_good(const json_t *o)
{
    const char *token = xm_json_str(o, "token", "");
    int64_t port = xm_json_int(o, "port", 0);

    return strlen(token) == 64 && strspn(token, "0123456789abcdef") == 64 && port > 0 && port < 65536 &&
           json_is_array(json_object_get(o, "links")) && json_is_array(json_object_get(o, "disks"));
}

static int run_out(struct move *m, int *exit_status, struct xm_error *e)
{
    struct address_text local = {""};
    json_t *reasons = NULL;

    json_t *o = peer_call_agent(m->agent, m->peer, move_peer_request(m, "peer.prepare", m->job->id),
                                PREPARE_NS, exit_status, &reasons, &local, e);
    json_decref(reasons);
    xm_fault("move-prepared");
    if (!o)
        return -EIO;
    *exit_status = EXIT_FAILED;
    if (!answer_good(o)) {
        json_decref(o);
        return xm_error_set(e, EPROTO, "host %s: its answer makes no sense", m->host);
    }
    const char *token = xm_json_str(o, "token", ""), *chosen = xm_json_str(o, "datastore", NULL);
    agent_lock(m->agent);
    if (chosen && !config_name_check("datastore", chosen, NULL))
        json_object_set_new(m->job->about, "datastore", json_string(chosen));
    agent_unlock(m->agent);
    int r = launch(m,
                   json_pack("{s:s, s:s, s:s, s:s, s:I, s:o, s:b, s:O, s:O}", "cmd", "migrate", "job",
                             m->job->id, "token", token, "destination", m->host, "port",
                             (json_int_t)xm_json_int(o, "port", 0), "links",
                             pair_links(m, json_object_get(o, "links"), local.s), "storage", m->storage,
                             "disks", json_object_get(o, "disks"), "options", m->options),
                   e);
    if (r)
        cancel_peer(m, token);
    json_decref(o);
    return r;
}

static void *move_main(void *arg)
{
    struct move *m = arg;
    struct agent *a = m->agent;
    struct xm_error e = {0};
    int exit_status = EXIT_FAILED;

    job_event(a, m->job, json_pack("{s:s, s:s, s:s}", "event", "state", "state", "prepare", "vm", m->vm));
    agent_lock(a);
    int r = may_launch(m->job, &e);
    agent_unlock(a);
    if (!r && m->local)
        r = launch(m,
                   json_pack("{s:s, s:s, s:s, s:s, s:I, s:O, s:O, s:o*}", "cmd", "storage", "job", m->job->id,
                             "destination", m->host, "datastore", m->datastore, "min_free",
                             (json_int_t)a->conf.min_free, "disks", m->disks, "options", m->options, "mark",
                             datastore_mark(a, config_datastore(&a->conf, m->datastore))),
                   &e);
    else if (!r)
        r = run_out(m, &exit_status, &e);
    if (r)
        job_fail(a, m->job, exit_status, e.text);
    job_put(a, m->job);
    move_free(m);
    agent_thread_ends(a);
    return NULL;
}

struct job *move_start(struct move *m, json_t **no)
{
    struct agent *a = m->agent;
    struct xm_error e = {0};
    json_t *about =
        json_pack("{s:s, s:s, s:s, s:s}", "vm", m->vm, "source", a->conf.name, "destination", m->host, "mode",
                  m->local     ? "storage-only"
                  : m->storage ? "with-storage"
                               : "compute");

    if (m->datastore[0])
        json_object_set_new(about, "datastore", json_string(m->datastore));
    struct job *job = job_new(a, about, m->storage, &e);
    agent_lock(a);
    move_count_off(m);
    agent_unlock(a);
    if (job) {
        agent_lock(a);
        struct vm *vm = vm_find(a, m->vm);
        if (vm)
            memcpy(vm->job, job->id, sizeof vm->job);
        job->refs++; /* the thread's, besides the caller's */
        m->job = job;
        agent_unlock(a);
        if (agent_thread(a, move_main, m, &e) == 0)
            return job;
        job_fail(a, job, EXIT_FAILED, e.text);
        job_put(a, job);
        job_put(a, job);
    }
    *no = refusal(EXIT_FAILED, "%s", e.text);
    move_let_go(m);
    move_free(m);
    return NULL;
}
