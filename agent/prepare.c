/* SPDX-License-Identifier: MIT */
/* peer.prepare: a VM is announced by the host that has it, and is made ready for here.
 *
 * Happy path: check; judge and claim the name in one step under the lock, so that what is promised is
 * counted at once; make the disks; run the shim, which waits with its QEMU; answer with the token. Anything
 * that fails takes the steps before back. The agent dies in between: the journal names the files that were
 * made, and the next agent deletes them if no shim is there (vm/journal.h). The source never comes: the shim
 * ends after 20 s by itself, and its disks with it; sooner when the source's agent says that it knows of no
 * such migration (tidy.c), which is asked, too, when the same VM is announced again.
 */
#include "agent/asked.h"
#include "agent/datastore.h"
#include "agent/inventory.h"
#include "agent/known.h"
#include "agent/nvram.h"
#include "agent/outside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SETTLED_NS (6 * XM_NS_PER_S) /* two passes of tidy.c */
#define LOOK_NS    (100 * XM_NS_PER_MS)

/* What is to be known about it as long as it is expected. */
static json_t *incoming_record(struct agent *a, const struct asked *q, int datastore, uint64_t others,
                               const char *token)
{
    json_t *links = json_array(), *reserve = json_array();

    for (unsigned i = 0; i < q->req.links; i++)
        json_array_append_new(links, json_string(q->link[i].address));
    for (unsigned i = 0; q->req.storage && i < q->spec.disks; i++)
        json_array_append_new(reserve,
                              json_pack("{s:s, s:I}", "path", "", "used", (json_int_t)q->req.used[i]));
    return json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:s, s:o, s:o}", "token", token, "source",
                     q->req.source, "job", q->job, "storage", q->req.storage, "silence_ns",
                     (json_int_t)a->conf.incoming_silence, "min_free", (json_int_t)a->conf.min_free, "others",
                     (json_int_t)others, "datastore", datastore < 0 ? "" : a->conf.datastore[datastore].name,
                     "links", links, "reserve", reserve);
}

/* That is tried by itself (tidy.c). */
static void wait_settled(struct agent *a, const char *name)
{
    uint64_t until = xm_now() + SETTLED_NS;
    struct owner_record rec;

    while (owner_read(a, name, &rec, NULL) == 0 && verdict_open(&rec) && xm_now() < until &&
           !agent_pause(a, LOOK_NS))
        ;
}

/* Who has no part in it has nothing settled: as in verb_peer_recover, the other side may be silent, and would
 * keep an operator's word waiting. */
int prepare_settle_last(struct agent *a, const struct asked *q, bool only_look, uint64_t patience,
                        struct xm_error *e)
{
    const char *name = q->spec.name;
    struct owner_record rec;
    struct xm_error why = {0};
    json_t *answer = NULL;
    int r = owner_read(a, name, &rec, &why);

    if (r)
        return r == -ENOENT ? 0 : xm_error_set(e, -r, "%s", why.text);
    if (!verdict_open(&rec) || (only_look && rec.owner == OWNER_GIVEN && !strcmp(rec.to, q->req.source)))
        return 0;
    if (!strcmp(verdict_peer(&rec), q->req.source))
        answer = settle(a, name, false, patience);
    else
        wait_settled(a, name);
    const char *text = xm_json_str(answer, "error", xm_json_str(answer, "text", NULL));
    bool open = owner_read(a, name, &rec, NULL) == 0 && verdict_open(&rec);
    if (open && text)
        r = xm_error_set(e, EBUSY, "%s", text);
    else if (open)
        r = xm_error_set(e, EBUSY,
                         "whose VM %s is has to be settled with %s, which is tried every few seconds", name,
                         verdict_peer(&rec));
    json_decref(answer);
    return r;
}

void prepare_judge_owner(struct agent *a, const struct asked *q, json_t *reasons)
{
    const char *name = q->spec.name;
    struct owner_record rec;
    struct known there;
    struct xm_error ignored = {0};

    if (owner_read(a, name, &rec, NULL) < 0 || rec.owner != OWNER_GIVEN || !strcmp(rec.to, q->req.source))
        return;
    const struct conf_peer *p = config_peer(&a->conf, rec.to);
    if (p && !known_there_soon(a, p, name, &there, &ignored) && there.rec.owner == OWNER_MINE &&
        there.rec.epoch >= rec.epoch)
        json_array_append_new(reasons,
                              json_sprintf("the VM '%s' that %s knows is %s's (epoch %llu), not %s's: "
                                           "one of the two needs another name",
                                           name, a->conf.name, p->name, (unsigned long long)there.rec.epoch,
                                           q->req.source));
}

void prepare_judge_shared(struct agent *a, const struct asked *q, json_t *reasons)
{
    struct xm_error e = {0};
    bool all = !q->req.storage; /* else a path is whatever the peer says */

    for (unsigned i = 0; i < q->spec.disks; i++)
        all = all && q->req.shared[i];
    if (all && inventory_taken(a, &q->spec, &e) < 0)
        json_array_append_new(reasons, json_string(e.text));
}

int prepare_judge_left(struct agent *a, const char *name, struct xm_error *e)
{
    char *dir = vm_state_path(a, name, NULL);
    struct journal j;
    int r = journal_read(dir, &j, e);

    journal_free(&j);
    free(dir);
    return r ? xm_error_prefix(e, "what an earlier migration of VM %s left on %s cannot be taken away", name,
                               a->conf.name)
             : 0;
}

/* The name is claimed: nobody else works on it. What an earlier migration should have taken away is to go. */
static int close_last_journal(struct agent *a, const char *name, struct xm_error *e)
{
    char *dir = vm_state_path(a, name, NULL);
    int r = prepare_judge_left(a, name, e);

    if (!r)
        r = journal_settle(dir, name, e);
    if (!r)
        r = journal_undo(dir, name, e);
    free(left_wait(a, name)); /* its names are free again, if that can be */
    free(dir);
    return r;
}

/* What is made for this migration, or is about to be, durably, before anything else knows of it. */
static int open_journal(struct agent *a, const struct asked *q, const json_t *files, bool planned,
                        struct xm_error *e)
{
    char *dir = vm_state_path(a, q->spec.name, NULL);
    struct owner_record before;
    struct xm_error why = {0};
    int r = owner_read(a, q->spec.name, &before, &why);
    const struct owner_record *had = r ? NULL : &before;

    if (r && r != -ENOENT)
        r = xm_error_set(e, -r, "%s", why.text);
    else if (had && verdict_open(had))
        r = xm_error_set(e, EBUSY,
                         "the last hand-off of VM %s is still open on %s: `xmigrate recover %s` there",
                         q->spec.name, a->conf.name, q->spec.name);
    else if (planned)
        r = journal_plan(dir, JOURNAL_DESTINATION, q->req.epoch + 1, q->req.source, had, files, e);
    else
        r = journal_write(dir, JOURNAL_DESTINATION, q->req.epoch + 1, q->req.source, had, files, e);
    free(dir);
    return r;
}

static void append_nvram(struct agent *a, const char *name, json_t *created)
{
    char *path = vm_state_path(a, name, "nvram.fd");

    json_array_append_new(created, json_string(path));
    free(path);
}

/* The journal first says what is to be made. Somebody who makes a file of that name in the same moment keeps
 * it. */
static int make_files(struct agent *a, struct asked *q, int datastore, json_t *created, struct xm_error *e)
{
    bool makes = datastore >= 0; /* a VM without disks has none chosen for it */
    int r = makes ? datastore_use(a, &a->conf.datastore[datastore], e) : 0;

    if (r)
        return r;
    r = -EEXIST;
    for (unsigned n = 0; r == -EEXIST && n < 100; n++) {
        json_t *planned = json_array();
        delete_created(created);
        json_array_clear(created);
        if (makes)
            plan_disks(a, &q->spec, datastore, planned);
        r = open_journal(a, q, planned, true, e);
        xm_fault("prepare-journaled");
        if (!r && makes)
            r = create_disks(&q->spec, created, e);
        if (!r && makes) /* in it, and not where it was mounted a moment ago */
            r = datastore_judge(a, &a->conf.datastore[datastore], e);
        xm_fault("prepare-created");
        json_decref(planned);
    }
    if (!r && q->nvram) /* it has no name that nobody else has, and so stands in the journal first */
        append_nvram(a, q->spec.name, created);
    if (!r)
        r = open_journal(a, q, created, false, e);
    if (!r && q->nvram)
        r = nvram_put(a, q->spec.name, q->nvram, q->nvram_size, e);
    xm_fault("prepare-nvram");
    return r;
}

/* It came to nothing: the files were made a moment ago, and nobody has been promised anything. */
static void close_journal(struct agent *a, const char *name, const json_t *created)
{
    char *dir = vm_state_path(a, name, NULL);
    struct xm_error e = {0};

    /* By the list first, and before the source hears of it: the next host that it tries may reach the same
     * datastore and make its disk at that path, which an entry that is still there would delete. */
    if (journal_undo(dir, name, &e) < 0) {
        xm_log(XM_LOG_WARN, "%s", e.text);
    } else {
        free(left_wait(a, name));
        delete_created(created); /* those of which the journal does not tell yet */
    }
    free(dir);
}

/* The name is claimed. `incoming` is the vm's, and is only added to. */
static int bring_up(struct agent *a, struct asked *q, int datastore, struct xm_error *e)
{
    json_t *created = json_array(), *reserve = json_array();
    int r = close_last_journal(a, q->spec.name, e);

    if (!r)
        r = make_files(a, q, datastore, created, e);
    for (unsigned i = 0; i < q->spec.disks; i++)
        json_array_append_new(reserve, json_pack("{s:s, s:I}", "path", q->spec.disk[i].path, "used",
                                                 (json_int_t)q->req.used[i]));
    json_t *spec = vm_spec_to_json(&q->spec);
    agent_lock(a);
    struct vm *vm = vm_find(a, q->spec.name);
    json_t *incoming = json_copy(vm->incoming);
    if (q->req.storage)
        json_object_set(incoming, "reserve", reserve);
    json_decref(vm->incoming);
    vm->incoming = json_incref(incoming);
    json_decref(vm->spec);
    vm->spec = json_incref(spec);
    agent_unlock(a);
    if (!r && !spec)
        r = xm_error_set(e, EINVAL, "VM %s: a text in its specification is not UTF-8", q->spec.name);
    if (!r && (r = vm_spawn(a, q->spec.name, spec, q->req.epoch, incoming, e)))
        vm_clean_up(a, q->spec.name); /* its shim may have been killed, and have left a QEMU */
    if (r)
        close_journal(a, q->spec.name, created);
    json_decref(spec);
    json_decref(incoming);
    json_decref(reserve);
    json_decref(created);
    return r;
}

static json_t *prepared(struct agent *a, const struct asked *q, int datastore, const char *token)
{
    json_t *answer = ok_answer(), *links = json_array(), *disks = json_array();

    for (unsigned i = 0; i < a->conf.links; i++)
        json_array_append_new(
            links, json_pack("{s:s, s:s}", "name", a->conf.link[i].name, "address", a->conf.link[i].address));
    for (unsigned i = 0; i < q->spec.disks; i++)
        json_array_append_new(
            disks, json_pack("{s:s, s:s}", "name", q->spec.disk[i].name, "path", q->spec.disk[i].path));
    json_object_set_new(answer, "token", json_string(token));
    json_object_set_new(answer, "port", json_integer(a->port));
    json_object_set_new(answer, "links", links);
    json_object_set_new(answer, "disks", disks);
    if (datastore >= 0)
        json_object_set_new(answer, "datastore", json_string(a->conf.datastore[datastore].name));
    return answer;
}

static json_t *refused(json_t *reasons)
{
    char *why = reasons_text(reasons);
    json_t *answer = refusal(EXIT_REFUSED, "%s", why);

    json_object_set_new(answer, "reasons", reasons);
    free(why);
    return answer;
}

static json_t *prepare(struct agent *a, struct asked *q)
{
    char token[2 * LINK_TOKEN_BYTES + 1];
    struct gathered g;
    struct xm_error e = {0};
    json_t *reasons = json_array();
    struct vm *vm = NULL;
    int datastore = -1;

    outside_judge(&q->spec, &a->conf, q->req.source, reasons);
    prepare_judge_owner(a, q, reasons);
    prepare_judge_shared(a, q, reasons);
    gather(a, &q->req, true, &g);
    json_t *spec = vm_spec_to_json(&q->spec);
    int r = xm_hex_random(token, LINK_TOKEN_BYTES, &e);
    agent_lock(a);
    admit_judge(a, &q->req, &g, reasons, &datastore);
    if (!r && !json_array_size(reasons) && (vm = vm_claim(a, q->spec.name, spec, &e)))
        vm->incoming =
            incoming_record(a, q, datastore, datastore < 0 ? 0 : g.datastore[datastore].reserved, token);
    agent_unlock(a);
    gathered_free(&g);
    json_decref(spec);
    if (!vm && json_array_size(reasons))
        return refused(reasons);
    json_decref(reasons);
    if (!vm)
        return refusal(EXIT_FAILED, "%s", e.text);
    if (bring_up(a, q, datastore, &e) < 0) {
        agent_lock(a);
        vm_forget(vm_find(a, q->spec.name));
        agent_unlock(a);
        return refusal(EXIT_FAILED, "%s", e.text);
    }
    vm_watch(a, q->spec.name);
    xm_fault("prepared");
    xm_log(XM_LOG_INFO, "VM %s: prepared for job %s of %s", q->spec.name, q->job, q->req.source);
    return prepared(a, q, datastore, token);
}

json_t *verb_peer_prepare(struct conn *c, const json_t *request)
{
    struct asked q = {0};
    struct xm_error e = {0};
    json_t *answer = asked_of_another(c->agent, request);

    if (answer)
        return answer;
    int r = asked_read(c->agent, &q, request, &e);
    if (!r && q.spec.nvram && !(q.nvram = nvram_unpack(json_object_get(request, "nvram"), &q.nvram_size, &e)))
        r = -EINVAL;
    if (r)
        answer = refusal(EXIT_USAGE, "%s", e.text);
    else if (prepare_settle_last(c->agent, &q, false, SETTLE_PREPARE_PATIENCE, &e) < 0)
        answer = refusal(EXIT_FAILED, "%s", e.text);
    else if (!settle_claim(c->agent, q.spec.name, SETTLE_PREPARE_PATIENCE))
        answer = refusal(EXIT_FAILED, "what is open of VM %s is just being settled on %s: try again",
                         q.spec.name, c->agent->conf.name);
    else {
        /* Or its files and its journal would be taken for those of the last one (tidy.c). */
        answer = prepare(c->agent, &q);
        settle_release(c->agent, q.spec.name);
    }
    asked_free(&q);
    return answer;
}
