/* SPDX-License-Identifier: MIT */
/* rebalance: what is there (own datastores, those of the peers that answer, own VMs), the plan (agent/plan.h,
 * a pure function), and its moves, each an ordinary move with all its checks, one after the other.
 *
 * A target that cannot be reached is no error of ours, but who runs this wants to know: it is in `over`, and
 * the command's exit status says it.
 *
 * A peer that does not answer is left out, and said. A move that fails ends the run: the plan was made for
 * another state than there is now; the next run makes a new one. One that is refused is said, and planned
 * around: the plan knows of room alone, and for the want of a bridge it would be refused every night. Nothing
 * is kept between runs, of which there is one at a time.
 */
#include "agent/datastore.h"
#include "agent/facts.h"
#include "agent/move.h"
#include "agent/plan.h"
#include "agent/storage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define ASK_NS (15 * XM_NS_PER_S)

/* ---- what is there ---- */

/* Directories of one file system share its space: what moves between them frees nothing. They are one, by
 * the first one's name, with the lowest target; `also` names the others. False: there is none before. */
static bool joined(json_t *list, const dev_t *devs, dev_t dev, const struct conf_datastore *d,
                   uint64_t promised)
{
    size_t i = 0;

    while (i < json_array_size(list) && devs[i] != dev)
        i++;
    json_t *one = json_array_get(list, i), *also = json_object_get(one, "also");
    int64_t target = xm_json_int(one, "target", 0);
    if (!one)
        return false;
    if (!also)
        json_object_set_new(one, "also", also = json_array());
    json_array_append_new(also, json_string(d->name));
    if (d->target && (!target || d->target < target))
        json_object_set_new(one, "target", json_integer(d->target));
    json_object_set_new(one, "reserved",
                        json_integer(xm_json_int(one, "reserved", 0) + (json_int_t)promised));
    return true;
}

static json_t *own_datastores(struct agent *a, bool for_peer)
{
    json_t *list = json_array(), *usage = vms_usage(a, true);
    dev_t devs[CONFIG_MANY] = {0}; /* of those in the list; 0: it is left out */

    for (unsigned i = 0; i < a->conf.datastores; i++) {
        const struct conf_datastore *d = &a->conf.datastore[i];
        uint64_t size = 0, space = 0;
        struct xm_error wrong = {0};
        int r = for_peer && !d->incoming ? -EPERM : storage_space(d->path, &size, &space);
        if (r == -ETIMEDOUT)
            json_array_append_new(list, json_pack("{s:s, s:b}", "name", d->name, "hangs", 1));
        /* One that is not mounted would be as full as what its mount point lies in. */
        else if (!r && (r = datastore_judge(a, d, &wrong)) < 0)
            json_array_append_new(list, json_pack("{s:s, s:s}", "name", d->name, "wrong", wrong.text));
        if (r)
            continue;
        agent_lock(a);
        uint64_t promised = vms_space_promised(a, d->name, NULL, usage);
        agent_unlock(a);
        struct stat st;
        if (storage_stat(d->path, &st))
            continue;
        if (joined(list, devs, st.st_dev, d, promised))
            continue;
        devs[json_array_size(list)] = st.st_dev;
        json_array_append_new(list,
                              json_pack("{s:s, s:I, s:I, s:I, s:i}", "name", d->name, "size",
                                        (json_int_t)size, "used", (json_int_t)(size - XM_MIN(space, size)),
                                        "reserved", (json_int_t)promised, "target", (int)d->target));
    }
    json_decref(usage);
    return list;
}

static uint64_t own_memory_free(struct agent *a)
{
    uint64_t have = facts_memory_available();
    json_t *usage = vms_usage(a, true);

    agent_lock(a);
    uint64_t gone = vms_memory_promised(a, usage) + a->conf.min_memory;
    agent_unlock(a);
    json_decref(usage);
    return have > gone ? have - gone : 0;
}

json_t *verb_peer_datastores(struct conn *c, const json_t *request)
{
    json_t *answer = ok_answer();

    (void)request;
    json_object_set_new(answer, "host", json_string(c->agent->conf.name));
    json_object_set_new(answer, "memory_free", json_integer((json_int_t)own_memory_free(c->agent)));
    json_object_set_new(answer, "datastores", own_datastores(c->agent, c->peer));
    return answer;
}

struct scene {
    struct plan_input input;
    struct plan_host host[CONFIG_MANY];
    struct plan_datastore datastore[CONFIG_MANY * (CONFIG_MANY + 1)];
    struct plan_vm *vm;
    bool again;     /* what is left out has been told */
    json_t *also;   /* of own datastores that are on an other's file system, by name: that one's index */
    json_t *joined; /* sentences of them, which matter where there is something to be done */
};

static void note(struct conn *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(struct conn *c, const char *fmt, ...)
{
    char text[600];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    xm_text_mend(text);
    conn_event(c, json_pack("{s:s, s:s}", "event", "note", "text", text));
}

static void add_also(struct scene *s, const json_t *also)
{
    const struct plan_datastore *one = &s->datastore[s->input.datastore_count];
    json_t *v;
    size_t i;

    json_array_foreach ((json_t *)also, i, v) {
        json_object_set_new(s->also, json_string_value(v), json_integer(s->input.datastore_count));
        json_array_append_new(s->joined,
                              json_sprintf("datastore '%s' of %s is on the file system of '%s': they are one "
                                           "here, with a target of %u %%",
                                           json_string_value(v), one->host, one->name, one->target));
    }
}

/* Also for lists that a peer has sent: what makes no sense is left out. */
static void add_datastores(struct conn *c, struct scene *s, const char *host, const json_t *list)
{
    json_t *d;
    size_t i;

    json_array_foreach ((json_t *)list, i, d) {
        struct plan_datastore *to = &s->datastore[s->input.datastore_count];
        int64_t size = xm_json_int(d, "size", 0), used = xm_json_int(d, "used", -1),
                target = xm_json_int(d, "target", -1);
        int64_t reserved = xm_json_int(d, "reserved", 0);
        const char *name = xm_json_str(d, "name", "");
        const char *wrong = xm_json_str(d, "wrong", NULL);
        if (i < CONFIG_MANY && wrong && !s->again)
            note(c, "%.400s; it is left out", wrong);
        if (i < CONFIG_MANY && xm_json_bool(d, "hangs", false) && !s->again)
            note(c, "datastore '%.64s' of %s does not answer: its storage hangs; it is left out", name, host);
        if (i >= CONFIG_MANY || size <= 0 || used < 0 || used > size || target < 0 || target > 100 ||
            reserved < 0 || config_name_check("datastore", name, NULL) < 0)
            continue;
        memset(to, 0, sizeof *to);
        snprintf(to->host, sizeof to->host, "%s", host);
        snprintf(to->name, sizeof to->name, "%s", name);
        to->size = (uint64_t)size;
        to->used = XM_MIN((uint64_t)used + (uint64_t)reserved, to->size);
        to->target = (unsigned)target;
        if (!strcmp(host, s->input.host))
            add_also(s, json_object_get(d, "also"));
        s->input.datastore_count++;
    }
}

static void add_peers(struct conn *c, struct scene *s)
{
    struct agent *a = c->agent;

    for (unsigned i = 0; i < a->conf.peers; i++) {
        const struct conf_peer *p = &a->conf.peer[i];
        struct xm_error e = {0};
        json_t *reasons;
        int status;
        json_t *o = peer_call_agent(a, p, json_pack("{s:s}", "verb", "peer.datastores"), ASK_NS, &status,
                                    &reasons, NULL, &e);
        json_decref(reasons);
        if (!o) {
            if (!s->again)
                note(c, "%s; it is left out", e.text);
            continue;
        }
        struct plan_host *h = &s->host[s->input.host_count++];
        snprintf(h->name, sizeof h->name, "%s", p->name);
        h->memory_free = (uint64_t)XM_MAX(xm_json_int(o, "memory_free", 0), 0);
        add_datastores(c, s, p->name, json_object_get(o, "datastores"));
        json_decref(o);
    }
}

static int datastore_index(const struct scene *s, const char *name)
{
    for (unsigned i = 0; name[0] && i < s->input.datastore_count; i++) {
        if (!strcmp(s->datastore[i].host, s->input.host) && !strcmp(s->datastore[i].name, name))
            return (int)i;
    }
    return (int)xm_json_int(s->also, name, -1);
}

static void add_vm(struct scene *s, const json_t *spec, bool fixed)
{
    struct plan_vm *v = &s->vm[s->input.vm_count];
    struct vm_spec vm = {0};

    if (vm_spec_from_json(&vm, spec, NULL) == 0) {
        memset(v, 0, sizeof *v);
        snprintf(v->name, sizeof v->name, "%s", vm.name);
        v->memory = vm.memory;
        v->fixed = fixed;
        v->disks = vm.disks;
        for (unsigned i = 0; i < vm.disks; i++) {
            v->disk[i].datastore = datastore_index(s, vm.disk[i].datastore);
            v->disk[i].bytes = disk_used(&vm.disk[i]);
        }
        s->input.vm_count++;
    }
    vm_spec_free(&vm);
}

static void add_vms(struct agent *a, struct scene *s)
{
    json_t *specs = json_array(), *o;
    struct vm *vm;
    size_t i;

    agent_lock(a);
    TAILQ_FOREACH (vm, &a->vms, link) {
        if (!vm->incoming && vm->phase == VM_UP)
            json_array_append_new(specs, json_pack("{s:O, s:b}", "spec", vm->spec, "fixed", vm->job[0] != 0));
    }
    agent_unlock(a);
    s->vm = calloc(json_array_size(specs) + 1, sizeof *s->vm);
    json_array_foreach (specs, i, o) {
        if (s->vm)
            add_vm(s, json_object_get(o, "spec"), xm_json_bool(o, "fixed", false));
    }
    json_decref(specs);
}

static struct scene *look(struct conn *c, bool again)
{
    struct agent *a = c->agent;
    struct scene *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->input.host = a->conf.name;
    s->input.concurrent = 1;
    s->also = json_object();
    s->joined = json_array();
    s->again = again;
    json_t *own = own_datastores(a, false);
    add_datastores(c, s, a->conf.name, own);
    json_decref(own);
    add_peers(c, s);
    add_vms(a, s);
    s->input.hosts = s->host;
    s->input.datastores = s->datastore;
    s->input.vms = s->vm;
    return s;
}

/* ---- the plan, in words ---- */

static json_t *describe_move(const struct scene *s, const struct plan_move *m)
{
    const struct plan_vm *vm = &s->vm[m->vm];
    const struct plan_datastore *to = &s->datastore[m->datastore];
    char from[CONFIG_NAME_MAX + 1] = "", where[2 * CONFIG_NAME_MAX + 2];

    for (unsigned i = 0; i < vm->disks && !from[0]; i++) {
        if (vm->disk[i].datastore >= 0 && (unsigned)vm->disk[i].datastore != m->datastore)
            snprintf(from, sizeof from, "%s", s->datastore[vm->disk[i].datastore].name);
    }
    snprintf(where, sizeof where, "%s%s%s", m->across ? to->host : "", m->across ? ":" : "", to->name);
    return json_pack("{s:s, s:s, s:s, s:I, s:s}", "vm", vm->name, "from", from, "to", where, "bytes",
                     (json_int_t)m->bytes, "reason", m->reason);
}

static json_t *problems(const struct plan *p)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < p->problem_count; i++)
        json_array_append_new(list, json_string(p->problems[i].reason));
    if (!p->fewest)
        json_array_append_new(
            list,
            json_string("there are too many possibilities to try all: a plan with fewer moves may exist"));
    return list;
}

/* This host's own datastores that stay over their targets. */
static json_t *over(const struct scene *s, const struct plan *p)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < p->problem_count; i++) {
        const struct plan_datastore *d = &s->datastore[p->problems[i].datastore];
        if (!strcmp(d->host, s->input.host))
            json_array_append_new(list, json_pack("{s:s, s:I}", "datastore", d->name, "bytes",
                                                  (json_int_t)p->problems[i].over));
    }
    return list;
}

/* ---- running it ---- */

static void tell(struct conn *c, json_t *text)
{
    conn_event(c, json_pack("{s:s, s:o}", "event", "note", "text", text));
}

/* Waits for the job's end and passes its last event on. NULL: it is done. */
static json_t *wait_for(struct conn *c, struct job *job, const char *vm)
{
    struct agent *a = c->agent;
    json_t *last = NULL, *no = NULL;

    agent_lock(a);
    while (!job->over && agent_wait(a, UINT64_MAX))
        ;
    bool over = job->over, done = over && !job->error[0];
    if (over)
        last = job_last_event(job);
    agent_unlock(a);
    if (last)
        conn_event(c, last);
    if (over && !done) {
        no = refusal(EXIT_FAILED, "moving VM %s failed; the moves behind it were not begun", vm);
    } else if (!over) {
        no =
            refusal(EXIT_UNKNOWN,
                    "the agent ends; job %s, which moves VM %s, goes on, and the next agent knows of it; the "
                    "moves behind it were not begun",
                    job->id, vm);
        json_object_set_new(no, "lost", json_true());
    }
    job_put(a, job);
    return no;
}

/* NULL: moved; else the refusal. */
static json_t *run_move(struct conn *c, const struct scene *s, const struct plan_move *m)
{
    const struct plan_datastore *to = &s->datastore[m->datastore];
    const char *vm = s->vm[m->vm].name;
    json_t *no = NULL;
    json_t *request = json_pack("{s:s, s:s, s:b, s:b, s:b}", "vm", vm, "datastore", to->name, "storage",
                                m->across, "storage_only", !m->across, "only_stored", 1);

    if (m->across)
        json_object_set_new(request, "host", json_string(to->host));
    struct job *job = move_begin(c->agent, request, false, NULL, NULL, &no);
    json_decref(request);
    if (!job)
        return no;
    return wait_for(c, job, vm);
}

/* Says it, and remembers it in refused: by the VM's name an object whose keys are hosts. */
static void refused_add(struct conn *c, const struct scene *s, const struct plan_move *m, const json_t *no,
                        json_t *refused)
{
    const struct plan_datastore *to = &s->datastore[m->datastore];
    const char *vm = s->vm[m->vm].name;
    const char *why = json_string_value(json_array_get(json_object_get(no, "reasons"), 0));
    json_t *hosts = json_object_get(refused, vm);

    note(c, "VM %s is not moved to %s%s%s: %s", vm, m->across ? to->host : "", m->across ? ":" : "", to->name,
         why ? why : xm_json_str(no, "error", "it was refused"));
    if (!hosts)
        json_object_set_new(refused, vm, hosts = json_object());
    json_object_set_new(hosts, to->host, json_true());
}

static void refused_bar(struct scene *s, const json_t *refused)
{
    for (unsigned v = 0; v < s->input.vm_count; v++) {
        const json_t *hosts = json_object_get(refused, s->vm[v].name);
        s->vm[v].barred = json_object_get(hosts, s->input.host) != NULL;
        for (unsigned i = 0; i < s->input.host_count; i++)
            s->vm[v].barred |= (uint64_t)(json_object_get(hosts, s->host[i].name) != NULL) << (i + 1);
    }
}

/* Adds the moves that it makes to `made`. NULL: all are made, or one was refused (*again): else why not. */
static json_t *run_plan(struct conn *c, const struct scene *s, const struct plan *p, json_t *made,
                        json_t *refused, bool *again)
{
    for (unsigned i = 0; i < p->move_count; i++) {
        json_t *o = describe_move(s, &p->moves[i]);
        tell(c,
             json_sprintf("VM %s: %s -> %s, %s: %s", xm_json_str(o, "vm", ""), xm_json_str(o, "from", ""),
                          xm_json_str(o, "to", ""), xm_format_size(p->moves[i].bytes).s, p->moves[i].reason));
        /* Who asked has been interrupted: that ends it, but for the move that runs. */
        json_t *no = c->dead ? refusal(EXIT_FAILED, "nobody waits for it") : run_move(c, s, &p->moves[i]);
        *again = xm_json_int(no, "exit", 0) == EXIT_REFUSED;
        if (*again)
            refused_add(c, s, &p->moves[i], no, refused);
        else if (!no)
            json_array_append(made, o);
        json_decref(o);
        if (!*again && no)
            return no;
        json_decref(no);
        if (*again)
            break;
    }
    return NULL;
}

/* NULL: to be called again, with a new scene. */
static json_t *rebalance(struct conn *c, const struct scene *s, bool dry_run, json_t *made, json_t *refused)
{
    struct xm_error e = {0};
    struct plan p = {0};
    json_t *answer = NULL;
    bool again = false;

    if (!s->vm || plan_rebalance(&s->input, &p, &e) < 0)
        return refusal(EXIT_FAILED, "%s", s->vm ? e.text : "no memory");
    bool something = dry_run || p.move_count || p.problem_count; /* else every night's mail would tell it */
    for (size_t i = 0; something && !s->again && i < json_array_size(s->joined); i++)
        note(c, "%s", json_string_value(json_array_get(s->joined, i)));
    for (unsigned i = 0; dry_run && i < p.move_count; i++)
        json_array_append_new(made, describe_move(s, &p.moves[i]));
    if (!dry_run)
        answer = run_plan(c, s, &p, made, refused, &again);
    if (!answer && !again) {
        answer = ok_answer();
        json_object_set(answer, "plan", made);
        json_object_set_new(answer, "over", over(s, &p));
        json_object_set_new(answer, "reasons", problems(&p));
    }
    plan_free(&p);
    return answer;
}

/* Beside another one each would plan with what the other is just about to move away, and move too much. */
static bool begin(struct agent *a)
{
    agent_lock(a);
    bool free = !a->rebalances;
    a->rebalances = true;
    agent_unlock(a);
    return free;
}

static void end(struct agent *a)
{
    agent_lock(a);
    a->rebalances = false;
    agent_unlock(a);
}

json_t *verb_rebalance(struct conn *c, const json_t *request)
{
    json_t *made, *refused, *answer = NULL;
    bool dry_run = xm_json_bool(request, "dry_run", false);

    if (!dry_run && !begin(c->agent))
        return refusal(
            EXIT_REFUSED,
            "another rebalance is at work on %s; one that was interrupted ends with the move that runs",
            c->agent->conf.name);
    made = json_array();
    refused = json_object();

    while (!answer) { /* each time another VM and host are refused */
        struct scene *s = look(c, json_object_size(refused) > 0);
        if (s && s->vm)
            refused_bar(s, refused);
        answer = s ? rebalance(c, s, dry_run, made, refused) : refusal(EXIT_FAILED, "no memory");
        if (s) {
            json_decref(s->also);
            json_decref(s->joined);
            free(s->vm);
        }
        free(s);
    }
    json_decref(refused);
    json_decref(made);
    if (!dry_run)
        end(c->agent);
    return answer;
}
