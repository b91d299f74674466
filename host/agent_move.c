/* Moves, as the source's agent sees them: check, move, abort, set.
 *
 * Happy path: the VM is held for the move (nobody else moves or stops it meanwhile by this agent); this
 * side's and the destination's reasons against it are collected; a job is made; its thread has the
 * destination prepare, pairs the links, and gives all to the shim, which from then on does everything. The
 * watcher takes the shim's events to the job; this file has done its part.
 *
 * Failures: a reason against it: refused with all of them, no job, nothing changed. The destination cannot
 * prepare: it has cleaned up, the job fails, the VM runs here. The shim refuses: the destination is told to
 * cancel (or gives up by itself after a minute). The agent dies: before the shim has it, the job is found
 * without a shim that works on it, and failed; after that it goes on.
 *
 * Without --with-storage the disks stay where they are, and a probe file is put beside each: only a
 * destination that can read it there is believed to reach the same storage.
 */
#include "host/agent.h"
#include "host/facts.h"
#include "host/move.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define CHECK_NS   (30 * XM_NS_PER_S)
#define PREPARE_NS (150 * XM_NS_PER_S)

void move_free(struct move *m)
{
    if (!m)
        return;
    for (unsigned i = 0; i < m->spec.disks; i++) {
        if (m->probe[i].path)
            unlink(m->probe[i].path);
        free(m->probe[i].path);
    }
    vm_spec_free(&m->spec);
    json_decref(m->options);
    json_decref(m->disks);
    free(m);
}

/* ---- the request ---- */

static json_t *read_options(const struct agent *a, const json_t *o)
{
    int64_t ms = xm_json_int(o, "downtime_ms", -1), rate = xm_json_int(o, "bandwidth", -1);

    return json_pack("{s:I, s:I, s:b, s:b, s:I}", "downtime_ns",
                     ms > 0 ? (json_int_t)(ms * (int64_t)XM_NS_PER_MS) : (json_int_t)a->conf.downtime,
                     "bandwidth", rate >= 0 ? (json_int_t)rate : (json_int_t)a->conf.bandwidth, "keep_source",
                     xm_json_bool(o, "keep_source", false), "verify", xm_json_bool(o, "verify", false),
                     "link_timeout_ns", (json_int_t)a->conf.link_timeout);
}

/* NULL, or the refusal. */
static json_t *read_move(struct agent *a, const json_t *o, struct move *m)
{
    const char *host = xm_json_str(o, "host", ""), *ds = xm_json_str(o, "datastore", "");
    static const char *const not_yet[] = {"resume", NULL};
    const json_t *options = json_object_get(o, "options");

    m->agent = a;
    m->local = xm_json_bool(o, "storage_only", false);
    m->storage = m->local || xm_json_bool(o, "storage", false);
    snprintf(m->vm, sizeof m->vm, "%s", xm_json_str(o, "vm", ""));
    snprintf(m->host, sizeof m->host, "%s", m->local ? a->conf.name : host);
    snprintf(m->datastore, sizeof m->datastore, "%s", ds);
    if (vm_name_check(xm_json_str(o, "vm", ""), NULL) < 0)
        return refusal(EXIT_USAGE, "move needs the name of a VM, and got '%.70s'", xm_json_str(o, "vm", ""));
    for (size_t i = 0; not_yet[i]; i++) {
        if (xm_json_bool(options, not_yet[i], false))
            return refusal(EXIT_USAGE, "'%s' is not there yet", not_yet[i]);
    }
    if (m->local && !config_datastore(&a->conf, ds))
        return refusal(EXIT_REFUSED, "%s has no datastore '%s'", a->conf.name, ds);
    m->options = read_options(a, options);
    m->peer = m->local ? NULL : config_peer(&a->conf, host);
    if (!m->local && !m->peer)
        return refusal(EXIT_REFUSED, "%s has no [peer %s] in its configuration", a->conf.name,
                       host[0] ? host : "?");
    return NULL;
}

/* Holds the VM and takes a copy of what is known of it. NULL, or the refusal. */
static json_t *hold(struct move *m, bool for_real)
{
    struct agent *a = m->agent;
    struct xm_error e = {0};
    json_t *no = NULL, *spec = NULL;

    agent_lock(a);
    struct vm *vm = vm_find(a, m->vm);
    if (!vm)
        no = refusal(EXIT_REFUSED, "there is no VM '%s' on %s", m->vm, a->conf.name);
    else if (vm->phase != VM_UP || vm->incoming)
        no = refusal(EXIT_REFUSED, "VM %s is not running here yet", m->vm);
    else if (vm->job[0])
        no = refusal(EXIT_REFUSED, "VM %s is being moved already%s%s", m->vm,
                     vm->job[0] == '-' ? "" : ": job ", vm->job[0] == '-' ? "" : vm->job);
    else
        spec = json_incref(vm->spec);
    if (!no && for_real)
        snprintf(vm->job, sizeof vm->job, "-");
    agent_unlock(a);
    if (!no && vm_spec_from_json(&m->spec, spec, &e) < 0)
        no = refusal(EXIT_FAILED, "VM %s: %s", m->vm, e.text);
    m->held = spec && for_real;
    json_decref(spec);
    return no;
}

static void let_go(struct move *m)
{
    agent_lock(m->agent);
    struct vm *vm = m->held ? vm_find(m->agent, m->vm) : NULL;
    if (vm && !strcmp(vm->job, "-")) {
        vm->job[0] = 0;
        json_decref(vm->moving);
        vm->moving = NULL;
    }
    agent_unlock(m->agent);
}

/* ---- probes ---- */

static int random_hex(char *to, size_t digits)
{
    unsigned char raw[32];

    if (getrandom(raw, digits / 2, 0) != (ssize_t)(digits / 2))
        return -EIO;
    for (size_t i = 0; i < digits / 2; i++)
        snprintf(to + 2 * i, 3, "%02x", raw[i]);
    return 0;
}

static json_t *make_probe(struct move *m, unsigned i)
{
    struct agent *a = m->agent;
    const struct vm_disk *d = &m->spec.disk[i];
    const struct conf_datastore *ds = config_datastore_of(&a->conf, d->path);
    struct probe *p = &m->probe[i];
    char name[17], content[33];
    struct xm_error e = {0};

    if (!ds || random_hex(name, 16) < 0 || random_hex(content, 32) < 0)
        return json_null(); /* the destination finds nothing, and says so */
    p->path = xm_printf("%s/.xmigrate-probe-%s", ds->path, name);
    if (xm_file_replace(p->path, content, 32, &e) < 0) {
        xm_log(XM_LOG_WARN, "VM %s: %s", m->vm, e.text);
        free(p->path);
        p->path = NULL;
        return json_null();
    }
    return json_pack("{s:s, s:s, s:s, s:s}", "datastore", ds->name, "file", strrchr(d->path, '/') + 1,
                     "probe", name, "content", content);
}

/* ---- what is asked of the destination ---- */

static json_t *peer_request(struct move *m, const char *verb, const char *job)
{
    struct agent *a = m->agent;
    const struct qemu_facts *q = facts_qemu(m->spec.qemu);
    json_t *o = json_pack("{s:s, s:o, s:b, s:I, s:i, s:s, s:s}", "verb", verb, "vm",
                          vm_spec_to_json(&m->spec), "storage", m->storage, "epoch", (json_int_t)m->epoch,
                          "protocol", AGENT_PROTOCOL, "cpu_flags", facts_cpu_flags(), "job", job);
    json_t *links = json_array(), *used = json_array(), *probes = json_array();

    if (q)
        json_object_set_new(o, "qemu", json_string(q->version));
    if (m->datastore[0])
        json_object_set_new(o, "datastore", json_string(m->datastore));
    for (unsigned i = 0; i < a->conf.links; i++)
        json_array_append_new(
            links, json_pack("{s:s, s:s}", "name", a->conf.link[i].name, "address", a->conf.link[i].address));
    for (unsigned i = 0; i < m->spec.disks; i++) {
        json_array_append_new(used, json_integer((json_int_t)disk_used(&m->spec.disk[i])));
        if (m->storage)
            continue;
        if (m->probe[i].path)
            unlink(m->probe[i].path);
        free(m->probe[i].path);
        m->probe[i].path = NULL;
        json_array_append_new(probes, make_probe(m, i));
    }
    json_object_set_new(o, "links", links);
    json_object_set_new(o, "used", used);
    json_object_set_new(o, "probes", probes);
    return o;
}

static void take_reasons(json_t *to, const json_t *from)
{
    json_t *v;
    size_t i;

    json_array_foreach ((json_t *)from, i, v) {
        if (json_is_string(v) && i < 50)
            json_array_append(to, v);
    }
}

/* ---- reasons ---- */

static void against(json_t *reasons, char *why)
{
    json_t *s = json_string(why);
    json_array_append_new(reasons, s ? s : json_string("(a text that is not UTF-8)"));
    free(why);
}

/* Who is let in is counted in the same step, so that moves asked for at once cannot all be the last one
 * allowed. */
static void judge_limits(struct move *m, json_t *reasons)
{
    struct agent *a = m->agent;
    struct vm *vm;

    agent_lock(a);
    unsigned all = jobs_running(a, false) + a->pending, storage = jobs_running(a, true) + a->pending_storage;
    TAILQ_FOREACH (vm, &a->vms, link) {
        all += vm->incoming != NULL;
        storage += xm_json_bool(vm->incoming, "storage", false);
    }
    bool full = all >= a->conf.migrations, storage_full = m->storage && storage >= a->conf.storage_migrations;
    if (m->held && !full && !storage_full) {
        m->counted = true;
        a->pending++;
        a->pending_storage += m->storage;
    }
    agent_unlock(a);
    if (full)
        against(reasons, xm_printf("%s takes part in %u migrations, which is its limit", a->conf.name, all));
    else if (storage_full)
        against(reasons, xm_printf("%s takes part in %u migrations with disks, which is its limit",
                                   a->conf.name, storage));
}

/* It has a job now, or will have none. Under the lock. */
static void count_off(struct move *m)
{
    if (m->counted) {
        m->agent->pending--;
        m->agent->pending_storage -= m->storage;
    }
    m->counted = false;
}

static void judge_source(struct move *m, json_t *reasons)
{
    struct agent *a = m->agent;
    struct xm_error e = {0};
    json_t *st = shim_call(a, m->vm, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, &e);

    if (!st)
        against(reasons, xm_printf("%s", e.text));
    else if (strcmp(xm_json_str(st, "role", "owner"), "owner") != 0)
        against(reasons,
                xm_printf("VM %s is not this host's to give (%s)", m->vm, xm_json_str(st, "role", "?")));
    json_decref(st);
    if (!vm_owned(a, m->vm, &m->epoch))
        against(reasons, xm_printf("%s's record does not say that it owns VM %s; see `xmigrate recover %s`",
                                   a->conf.name, m->vm, m->vm));
    if (!m->local)
        admit_extra(&m->spec, false, reasons);
    for (unsigned i = 0; !m->local && i < a->conf.links; i++) {
        bool up;
        uint64_t speed = facts_link_speed(a->conf.link[i].address, &up);
        if (!up)
            against(reasons, xm_printf("link '%s' of %s is down: no interface that is up has its address %s",
                                       a->conf.link[i].name, a->conf.name, a->conf.link[i].address));
        else if (speed && speed < a->conf.min_bandwidth)
            against(reasons, xm_printf("link '%s' of %s runs at %s, less than the minimum of %s",
                                       a->conf.link[i].name, a->conf.name, xm_format_rate((double)speed).s,
                                       xm_format_rate((double)a->conf.min_bandwidth).s));
    }
    judge_limits(m, reasons);
}

/* Storage-only: which disks move, and is there room for them. Reserves it when the VM is held. */
static void judge_local(struct move *m, json_t *reasons)
{
    struct agent *a = m->agent;
    const struct conf_datastore *ds = config_datastore(&a->conf, m->datastore);
    json_t *disks = json_array(), *reserve = json_array();
    uint64_t need = 0, size = 0, space = 0;

    for (unsigned i = 0; i < m->spec.disks; i++) {
        const struct vm_disk *d = &m->spec.disk[i];
        if (!strcmp(d->datastore, ds->name) || (m->only_stored && !d->datastore[0]))
            continue;
        char *path = free_disk_path(a, (int)(ds - a->conf.datastore), m->vm, d->name);
        need += disk_used(d);
        json_array_append_new(disks, json_pack("{s:s, s:s}", "name", d->name, "path", path));
        json_array_append_new(reserve,
                              json_pack("{s:s, s:I}", "path", path, "used", (json_int_t)disk_used(d)));
        free(path);
    }
    bool there = facts_space(ds->path, &size, &space);
    agent_lock(a);
    uint64_t gone = vms_space_promised(a, ds->name) + a->conf.min_free;
    bool room = !need || (there && space > gone && space - gone >= need);
    struct vm *vm = vm_find(a, m->vm);
    if (room && vm && m->held)
        vm->moving = json_pack("{s:s, s:O}", "datastore", ds->name, "reserve", reserve);
    agent_unlock(a);
    if (!room)
        against(reasons,
                xm_printf("datastore '%s' has %s to give and the disks of %s need %s", ds->name,
                          xm_format_size(space > gone ? space - gone : 0).s, m->vm, xm_format_size(need).s));
    json_decref(reserve);
    m->disks = disks;
}

static void judge_peer(struct move *m, json_t *reasons)
{
    struct xm_error e = {0};
    json_t *more = NULL;
    int status;
    json_t *answer = peer_call_agent(m->agent, m->peer, peer_request(m, "peer.check", ""), CHECK_NS, &status,
                                     &more, NULL, &e);

    if (answer)
        take_reasons(reasons, json_object_get(answer, "reasons"));
    else
        against(reasons, xm_printf("%s", e.text));
    json_decref(more);
    json_decref(answer);
}

static json_t *all_reasons(struct move *m)
{
    json_t *reasons = json_array();

    judge_source(m, reasons);
    if (!m->epoch)
        m->epoch = 1;
    if (m->local)
        judge_local(m, reasons);
    else
        judge_peer(m, reasons);
    return reasons;
}

static json_t *refused(struct move *m, json_t *reasons)
{
    const char *to = m->local ? m->datastore : m->host;
    json_t *answer = refusal(EXIT_REFUSED, "VM %s cannot be moved to %s, for %zu reason%s", m->vm, to,
                             json_array_size(reasons), json_array_size(reasons) == 1 ? "" : "s");

    json_object_set_new(answer, "reasons", reasons);
    return answer;
}

/* ---- the job's thread ---- */

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

static bool job_aborted(struct move *m)
{
    agent_lock(m->agent);
    bool yes = m->job->aborted;
    agent_unlock(m->agent);
    return yes;
}

static int launch(struct move *m, json_t *request, struct xm_error *e)
{
    agent_lock(m->agent);
    bool aborted = m->job->aborted;
    m->job->launched = !aborted;
    agent_unlock(m->agent);
    if (aborted) {
        json_decref(request);
        return xm_error_set(e, ECANCELED, "aborted by its user");
    }
    json_t *answer = shim_call(m->agent, m->vm, request, -1, 30 * XM_NS_PER_S, e);
    json_decref(answer);
    return answer ? 0 : -EIO;
}

static void cancel_peer(struct move *m, const char *token)
{
    struct xm_error e = {0};
    json_t *reasons;
    int status;
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

    json_t *o = peer_call_agent(m->agent, m->peer, peer_request(m, "peer.prepare", m->job->id), PREPARE_NS,
                                exit_status, &reasons, &local, e);
    json_decref(reasons);
    if (!o)
        return -EIO;
    *exit_status = EXIT_FAILED;
    if (!answer_good(o)) {
        json_decref(o);
        return xm_error_set(e, EPROTO, "host %s: its answer makes no sense", m->host);
    }
    const char *token = xm_json_str(o, "token", "");
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
    int r;

    job_event(a, m->job, json_pack("{s:s, s:s, s:s}", "event", "state", "state", "prepare", "vm", m->vm));
    if (job_aborted(m))
        r = xm_error_set(&e, ECANCELED, "aborted by its user");
    else if (m->local)
        r = launch(m,
                   json_pack("{s:s, s:s, s:s, s:s, s:O, s:O}", "cmd", "storage", "job", m->job->id,
                             "destination", m->host, "datastore", m->datastore, "disks", m->disks, "options",
                             m->options),
                   &e);
    else
        r = run_out(m, &exit_status, &e);
    if (r)
        job_fail(a, m->job, exit_status, e.text);
    job_put(a, m->job);
    move_free(m);
    agent_thread_ends(a);
    return NULL;
}

/* The VM is held, nothing is against it. The job, or NULL with the refusal. Takes m over. */
static struct job *start_job(struct move *m, json_t **no)
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
    count_off(m);
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
    let_go(m);
    move_free(m);
    return NULL;
}

/* All disks are there already: done, as a script that asks for it a second time expects. */
static json_t *nothing_to_move(struct move *m)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:f, s:f, s:i, s:i, s:i, s:i}", "event", "done", "vm",
                     m->vm, "source", m->host, "destination", m->host, "mode", "storage-only", "datastore",
                     m->datastore, "total_s", 0.0, "downtime_ms", 0.0, "disk_bytes", 0, "ram_bytes", 0,
                     "wire_bytes", 0, "rounds", 0);
}

struct job *move_begin(struct agent *a, const json_t *request, bool only_check, json_t **nothing, json_t **no)
{
    struct move *m = calloc(1, sizeof *m);

    if (!m) {
        *no = refusal(EXIT_FAILED, "no memory");
        return NULL;
    }
    m->only_stored = xm_json_bool(request, "only_stored", false);
    *no = read_move(a, request, m);
    if (!*no)
        *no = hold(m, !only_check);
    if (!*no) {
        json_t *reasons = all_reasons(m);
        if (json_array_size(reasons))
            *no = refused(m, reasons);
        else
            json_decref(reasons);
    }
    m->nothing = !*no && m->local && !json_array_size(m->disks);
    if (!*no && !only_check && !m->nothing)
        return start_job(m, no);
    if (m->nothing && nothing)
        *nothing = nothing_to_move(m);
    agent_lock(a);
    count_off(m);
    agent_unlock(a);
    let_go(m);
    move_free(m);
    return NULL;
}

/* ---- verbs ---- */

json_t *verb_check(struct conn *c, const json_t *request)
{
    json_t *no;

    move_begin(c->agent, request, true, NULL, &no);
    return no ? no : ok_answer();
}

json_t *verb_move(struct conn *c, const json_t *request)
{
    json_t *no, *nothing = NULL;

    if (xm_json_bool(request, "dry_run", false))
        return verb_check(c, request);
    struct job *job = move_begin(c->agent, request, false, &nothing, &no);
    if (nothing)
        conn_event(c, nothing);
    if (!job)
        return no ? no : ok_answer();
    if (!xm_json_bool(request, "detach", false))
        return job_stream(c, job);
    json_t *answer = ok_answer();
    json_object_set_new(answer, "job", json_string(job->id));
    job_put(c->agent, job);
    return answer;
}

/* The job that a request names: NULL with the refusal when there is none, or it is over. Its VM's name is put
 * to `vm`. */
static struct job *running_job(struct conn *c, const json_t *request, char vm[VM_NAME_MAX + 1],
                               bool *launched, json_t **no)
{
    struct agent *a = c->agent;
    const char *id = xm_json_str(request, "job", "");
    struct job *job = job_get(a, id);

    if (!job) {
        *no = refusal(EXIT_FAILED, "there is no job '%.40s'; `xmigrate jobs` lists them", id);
        return NULL;
    }
    agent_lock(a);
    bool over = job->over;
    *launched = job->launched;
    snprintf(vm, VM_NAME_MAX + 1, "%s", xm_json_str(job->about, "vm", ""));
    agent_unlock(a);
    if (over) {
        job_put(a, job);
        *no = refusal(EXIT_FAILED, "job %s is over", id);
        return NULL;
    }
    return job;
}

json_t *verb_abort(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    char vm[VM_NAME_MAX + 1];
    struct xm_error e = {0};
    bool launched;
    json_t *no;
    struct job *job = running_job(c, request, vm, &launched, &no);

    if (!job)
        return no;
    agent_lock(a);
    launched = job->launched; /* again, in one step with: */
    job->aborted = true;
    agent_unlock(a);
    if (launched) {
        json_t *answer = shim_call(a, vm, json_pack("{s:s, s:s}", "cmd", "abort", "job", job->id), -1,
                                   15 * XM_NS_PER_S, &e);
        if (!answer) {
            job_put(a, job);
            return refusal(EXIT_FAILED, "%s", e.text);
        }
        json_decref(answer);
    }
    job_put(a, job);
    return ok_answer();
}

json_t *verb_set(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    int64_t rate = xm_json_int(request, "bandwidth", -1);
    char vm[VM_NAME_MAX + 1];
    struct xm_error e = {0};
    bool launched;
    json_t *no;

    if (rate < 0)
        return refusal(EXIT_USAGE, "set needs a bandwidth, in bytes a second (0: no limit)");
    struct job *job = running_job(c, request, vm, &launched, &no);
    if (!job)
        return no;
    json_t *answer = shim_call(
        a, vm, json_pack("{s:s, s:s, s:I}", "cmd", "set", "job", job->id, "bandwidth", (json_int_t)rate), -1,
        10 * XM_NS_PER_S, &e);
    job_put(a, job);
    if (!answer)
        return refusal(EXIT_FAILED, "%s", e.text);
    json_decref(answer);
    return ok_answer();
}
