/* SPDX-License-Identifier: MIT */
/* What other agents ask of this one: hello, check, cancel (prepare.c has prepare); and their links. */
#include "agent/asked.h"
#include "agent/outside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- hello, check ---- */

json_t *verb_peer_hello(struct conn *c, const json_t *request)
{
    const struct config *conf = &c->agent->conf;
    json_t *answer = ok_answer(), *links = json_array();

    (void)request;
    for (unsigned i = 0; i < conf->links; i++)
        json_array_append_new(
            links, json_pack("{s:s, s:s}", "name", conf->link[i].name, "address", conf->link[i].address));
    json_object_set_new(answer, "host", json_string(conf->name));
    json_object_set_new(answer, "version", json_string(XMIGRATE_VERSION));
    json_object_set_new(answer, "protocol", json_integer(AGENT_PROTOCOL));
    json_object_set_new(answer, "port", json_integer(c->agent->port));
    json_object_set_new(answer, "links", links);
    return answer;
}

static void block_notes(struct agent *a, const struct vm_spec *s, const struct fact_datastore *to,
                        json_t *notes)
{
    char *where = xm_printf("datastore '%s' of %s", to->name, a->conf.name);

    for (unsigned i = 0; i < s->disks; i++)
        admit_note_block(&s->disk[i], s->name, where, to->block, notes);
    free(where);
}

/* That they lay apart, on fast and on slow storage, say, is not kept. */
static void datastore_note(struct agent *a, const struct asked *q, int chosen, json_t *notes)
{
    const struct vm_spec *s = &q->spec;
    bool apart = false;

    for (unsigned i = 1; i < s->disks; i++)
        apart |= strcmp(s->disk[i].datastore, s->disk[0].datastore) != 0;
    if (apart || (!q->req.datastore && a->conf.datastores > 1))
        json_array_append_new(notes, json_sprintf("the disks of %s land in datastore '%s' of %s%s", s->name,
                                                  a->conf.datastore[chosen].name, a->conf.name,
                                                  apart ? ", all of them, wherever they lie now" : ""));
}

/* mtus: of the bridges that the NICs are on now. */
static void bridge_notes(struct agent *a, const struct vm_spec *s, const json_t *mtus, json_t *notes)
{
    for (unsigned i = 0; i < s->nics; i++) {
        const char *bridge = s->nic[i].bridge;
        json_int_t here = bridge[0] ? probe_bridge_mtu(bridge) : 0;
        json_int_t there = json_integer_value(json_array_get(mtus, i)); /* 0: an older agent's */
        if (here && there > here)
            json_array_append_new(
                notes,
                json_sprintf("bridge '%s' of %s passes frames of %lld bytes, and where %s is now %lld: "
                             "what its guest sends in larger ones is lost there",
                             bridge, a->conf.name, (long long)here, s->name, (long long)there));
        uint64_t t = bridge[0] ? probe_bridge_passes_in(bridge, NULL) : 0;
        if (t)
            json_array_append_new(
                notes, json_sprintf(
                           "bridge '%s' of %s keeps a spanning tree (STP), and passes nothing of a new port "
                           "for %s: %s changes hosts when that is over",
                           bridge, a->conf.name, xm_format_time(t).s, s->name));
    }
}

/* Who the VM's QEMU would be here. */
static void judge_user(struct agent *a, const struct vm_spec *s, json_t *reasons, json_t *notes)
{
    struct xm_error why = {0};
    bool kvm = s->accel && !strncmp(s->accel, "kvm", 3);
    int r = a->conf.qemu_rights ? 0 : facts_qemu_user(a->conf.qemu_user, s->qemu, kvm, &why);

    if (r)
        json_array_append_new(r > 0 ? notes : reasons,
                              json_sprintf("%s of %s %s: %s", r > 0 ? "QEMU" : "qemu_user", a->conf.name,
                                           r > 0 ? "will be root's user" : "cannot run it", why.text));
}

json_t *verb_peer_check(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    struct asked q = {0};
    struct gathered g;
    struct xm_error e = {0};
    json_t *answer = asked_of_another(a, request);
    int datastore;

    if (answer)
        return answer;
    if (asked_read(a, &q, request, &e) < 0) {
        answer = refusal(EXIT_USAGE, "%s", e.text);
    } else {
        json_t *reasons = json_array();
        outside_judge(&q.spec, &a->conf, q.req.source, reasons);
        prepare_judge_owner(a, &q, reasons);
        prepare_judge_shared(a, &q, reasons);
        /* Else what the last one left would be taken for another VM of that name. */
        bool open = prepare_settle_last(a, &q, true, SETTLE_PEER_PATIENCE, &e) < 0;
        gather(a, &q.req, true, &g);
        agent_lock(a);
        if (open)
            q.req.epoch = UINT64_MAX;
        admit_judge(a, &q.req, &g, reasons, &datastore);
        agent_unlock(a);
        if (open)
            json_array_append_new(reasons,
                                  json_sprintf("%s's last migration of VM %s has to be settled first: %s",
                                               a->conf.name, q.spec.name, e.text));
        answer = ok_answer();
        json_object_set_new(answer, "reasons", reasons);
        json_t *notes = json_array();
        if (datastore >= 0) {
            json_object_set_new(answer, "datastore", json_string(a->conf.datastore[datastore].name));
            datastore_note(a, &q, datastore, notes);
            block_notes(a, &q.spec, &g.datastore[datastore], notes);
        }
        if (prepare_judge_left(a, q.spec.name, &e) < 0)
            json_array_append_new(reasons, json_string(e.text));
        judge_user(a, &q.spec, reasons, notes);
        bridge_notes(a, &q.spec, json_object_get(request, "mtus"), notes);
        json_object_set_new(answer, "notes", notes);
        gathered_free(&g);
    }
    asked_free(&q);
    return answer;
}

/* ---- cancel ---- */

json_t *verb_peer_cancel(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", ""), *token = xm_json_str(request, "token", "");
    json_t *incoming = NULL;
    struct xm_error e = {0};

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && vm->incoming && vm->phase == VM_UP && token[0] &&
        !strcmp(xm_json_str(vm->incoming, "source", ""), xm_json_str(request, "from", "")) &&
        !strcmp(xm_json_str(vm->incoming, "token", ""), token))
        incoming = json_incref(vm->incoming);
    agent_unlock(a);
    if (!incoming)
        return refusal(EXIT_FAILED, "%s does not wait for this migration", a->conf.name);
    int r = shim_abort_incoming(a, name, xm_json_str(incoming, "source", ""),
                                xm_json_str(incoming, "job", ""), 10 * XM_NS_PER_S, &e);
    json_decref(incoming);
    if (r < 0)
        return refusal(EXIT_FAILED, "%s", e.text);
    agent_lock(a);
    uint64_t until = xm_now() + 20 * XM_NS_PER_S;
    while (vm_find(a, name) && agent_wait(a, until))
        ;
    agent_unlock(a);
    return ok_answer();
}

/* ---- links ---- */

static bool announced(const struct vm *vm, const struct address *from)
{
    struct address addr;
    json_t *l;
    size_t i;

    json_array_foreach (json_object_get(vm->incoming, "links"), i, l) {
        if (json_is_string(l) && address_parse(&addr, json_string_value(l)) && address_equal(&addr, from))
            return true;
    }
    return false;
}

bool link_welcome(struct agent *a, const struct address *from)
{
    bool yes = false;
    struct vm *vm;

    agent_lock(a);
    TAILQ_FOREACH (vm, &a->vms, link)
        yes = yes || (vm->incoming && announced(vm, from));
    agent_unlock(a);
    return yes;
}

/* In a time that does not tell how much of it is right. */
static bool token_equal(const char *x, const char *y)
{
    unsigned char differ = 0;

    if (strlen(x) != 2 * LINK_TOKEN_BYTES || strlen(y) != 2 * LINK_TOKEN_BYTES)
        return false;
    for (size_t i = 0; i < (size_t)2 * LINK_TOKEN_BYTES; i++)
        differ |= (unsigned char)(x[i] ^ y[i]);
    return !differ;
}

void link_arrived(struct agent *a, const struct address *from, const char *token, const char *name, int fd)
{
    static struct xm_log_limit limit;
    char vm_name[VM_NAME_MAX + 1] = "";
    struct xm_error e = {0};
    struct vm *vm;

    agent_lock(a);
    TAILQ_FOREACH (vm, &a->vms, link) {
        if (!vm->incoming || !token_equal(xm_json_str(vm->incoming, "token", ""), token))
            continue;
        const struct conf_peer *p = config_peer(&a->conf, xm_json_str(vm->incoming, "source", ""));
        if (announced(vm, from) || (p && address_equal(&p->parsed, from)))
            memcpy(vm_name, vm->name, sizeof vm_name);
    }
    agent_unlock(a);
    /* The name is for people; the source gives the address that it comes from. */
    bool legal =
        name[0] &&
        strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-") == strlen(name);
    if (!vm_name[0] || !legal) {
        xm_log_limited(&limit, XM_LOG_WARN, "closed a link from %s: no migration waits for it",
                       address_format(from).s);
    } else {
        json_t *answer = shim_call(a, vm_name, json_pack("{s:s, s:s}", "cmd", "link", "name", name), fd,
                                   15 * XM_NS_PER_S, &e);
        if (!answer)
            xm_log_limited(&limit, XM_LOG_WARN, "VM %s: a link from %s came to nothing: %s", vm_name,
                           address_format(from).s, e.text);
        json_decref(answer);
    }
    close(fd);
}
