/* SPDX-License-Identifier: MIT */
/* What speaks against a move: on this host, and at the destination, which is asked the same way again when it
 * is to prepare.
 *
 * All reasons are collected, so that who asked can do away with all of them at once. What is judged by
 * counting (migrations at once, room in a datastore) is reserved in the same step when the VM is held for the
 * move, and given back when there will be none.
 *
 * Without --with-storage the disks stay where they are, and a probe file is put beside each: only a
 * destination that can read it there is believed to reach the same storage.
 */
#include "agent/datastore.h"
#include "agent/facts.h"
#include "agent/move.h"
#include "agent/nvram.h"
#include "agent/outside.h"
#include "agent/storage.h"
#include "probe/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK_NS (30 * XM_NS_PER_S)

/* ---- probes ---- */

static json_t *make_probe(struct move *m, unsigned i)
{
    struct agent *a = m->agent;
    const struct vm_disk *d = &m->spec.disk[i];
    const struct conf_datastore *ds = config_datastore_of(&a->conf, d->path);
    struct probe *p = &m->probe[i];
    char name[17], content[33];
    struct xm_error e = {0};

    if (!ds || xm_hex_random(name, 8, NULL) < 0 || xm_hex_random(content, 8, NULL) < 0)
        return json_null(); /* the destination finds nothing, and says so */
    probe_sign(content, a->conf.name, m->host);
    p->path = xm_printf("%s/" PROBE_PREFIX "%s", ds->path, name);
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

/* What the guest may have seen of its CPU. The QEMU that runs the VM counts: what another one says that was
 * installed since, is no use, and one that has been removed says nothing; then neither list nor reason is
 * sent. That it should know and cannot tell is a reason against the move, which the destination judges. */
static void tell_cpu(struct move *m, const struct qemu_facts *q, const char *running, struct xm_error *why,
                     json_t *o)
{
    json_t *cpu = NULL;

    if (!m->spec.cpu || (!q && why->code == ENOENT) || (q && strcmp(running, q->version) != 0))
        return;
    if (q)
        cpu = qemu_facts_cpu(m->spec.qemu, m->spec.accel, m->spec.cpu, why);
    if (cpu)
        json_object_set_new(o, "cpu", cpu);
    else
        json_object_set_new(o, "cpu_why", json_string(why->text));
    json_object_set_new(o, "booted", json_boolean(vm_booted_here(m->agent, m->vm)));
}

/* Of virtio, beside the disks' (which are made as large as any QEMU tells its guests). */
static bool more_rings(const struct vm_spec *s)
{
    const struct vm_devices *d = &s->devices;

    for (char **x = s->extra; x && *x; x++) {
        if (strstr(*x, "virtio"))
            return true;
    }
    return s->nics || d->rng || d->balloon || d->guest_agent || (d->video && !strcmp(d->video, "virtio"));
}

/* A running QEMU whose program has been replaced since (by apt, say) cannot be asked: of that series some
 * do. */
static bool large_rings(const struct move *m, const struct qemu_facts *q, const char *running)
{
    return q && !strcmp(running, q->version) ? qemu_facts_large_rings(m->spec.qemu)
                                             : running && !strncmp(running, "10.", 3);
}

json_t *move_peer_request(struct move *m, const char *verb, const char *job)
{
    struct agent *a = m->agent;
    struct xm_error e = {0};
    const struct qemu_facts *q = qemu_facts(m->spec.qemu, &e);
    bool kvm = m->spec.accel && !strncmp(m->spec.accel, "kvm", 3);
    json_t *o = json_pack("{s:s, s:o, s:b, s:I, s:i, s:s, s:s}", "verb", verb, "vm",
                          vm_spec_to_json(&m->spec), "storage", m->storage, "epoch", (json_int_t)m->epoch,
                          "protocol", AGENT_PROTOCOL, "cpu_flags", facts_cpu_flags(), "job", job);
    json_t *links = json_array(), *used = json_array(), *probes = json_array();

    const char *version = m->qemu[0] ? m->qemu : q ? q->version : NULL;
    tell_cpu(m, q, version, &e, o);
    json_object_set_new(o, "kvm", json_integer(kvm ? kvm_probe(NULL) : KVM_NONE));
    json_object_set_new(o, "allow_older", json_boolean(xm_json_bool(m->options, "allow_older", false)));
    if (version)
        json_object_set_new(o, "qemu", json_string(version));
    if (more_rings(&m->spec) && large_rings(m, q, version))
        json_object_set_new(o, "large_rings", json_true());
    if (m->firmware)
        json_object_set_new(o, "firmware_bytes", json_integer((json_int_t)m->firmware));
    json_t *cdroms = json_array();
    for (unsigned i = 0; i < m->spec.cdroms; i++)
        json_array_append_new(cdroms, json_integer((json_int_t)facts_file_size(m->spec.cdrom[i].path)));
    json_object_set_new(o, "cdrom_bytes", cdroms);
    json_t *mtus = json_array();
    for (unsigned i = 0; i < m->spec.nics; i++)
        json_array_append_new(mtus, json_integer(probe_bridge_mtu(m->spec.nic[i].bridge)));
    json_object_set_new(o, "mtus", mtus);
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
    json_t *nvram = m->spec.nvram && job[0] ? nvram_pack(a, m->vm, NULL) : NULL;
    if (nvram)
        json_object_set_new(o, "nvram", nvram);
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
        /* Both sides judge some things: once is enough. */
        if (json_is_string(v) && i < 50 && !xm_json_lists(to, json_string_value(v)))
            json_array_append(to, v);
    }
}

/* ---- reasons ---- */

static void against(json_t *reasons, char *why)
{
    xm_text_mend(why);
    json_array_append_new(reasons, json_string(why));
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

void move_count_off(struct move *m)
{
    if (m->counted) {
        m->agent->pending--;
        m->agent->pending_storage -= m->storage;
    }
    m->counted = false;
}

/* As its QEMU has it: since that was started the file may have become another one. */
static uint64_t firmware_of(struct move *m)
{
    if (!m->spec.firmware)
        return 0;
    json_t *o = shim_call(m->agent, m->vm, json_pack("{s:s}", "cmd", "firmware"), -1, 10 * XM_NS_PER_S, NULL);
    uint64_t bytes = (uint64_t)XM_MAX(xm_json_int(o, "bytes", 0), 0);

    json_decref(o);
    return bytes ? bytes : facts_file_size(m->spec.firmware);
}

/* Its disk is as large as when the VM was started. What a file has lost would come to be zeros. */
static void judge_size(struct move *m, const struct vm_disk *d, json_t *reasons)
{
    uint64_t size = disk_file_size(d->path);
    struct stat st;
    bool known = size || (!storage_stat(d->path, &st) && S_ISREG(st.st_mode)); /* one that is empty has 0 */

    if (size == d->size || !known || (!m->storage && !m->local))
        return;
    if (size < d->size)
        against(reasons,
                xm_printf("%s has %s, and disk '%s' of VM %s %s: it was cut short while the VM ran", d->path,
                          xm_format_size(size).s, d->name, m->vm, xm_format_size(d->size).s));
    else if (m->notes)
        against(
            m->notes,
            xm_printf("%s has %s, and disk '%s' of VM %s %s: what is behind that is not moved. To enlarge "
                      "the disk, stop the VM and give it its new size, by edit",
                      d->path, xm_format_size(size).s, d->name, m->vm, xm_format_size(d->size).s));
}

/* What the source would say once all is copied (migrate/source_memory.c). */
static void judge_downtime(const struct move *m, json_t *reasons)
{
    uint64_t budget = (uint64_t)xm_json_int(m->options, "downtime_ns", 0);
    char *dir = vm_state_path(m->agent, m->vm, NULL);
    struct switch_cost took;

    switch_cost_load(dir, &took);
    uint64_t least = switch_cost_expect(&took, &m->spec, budget);
    const char *by = took.n > 1 ? "its last moves" : "its devices";
    free(dir);
    if (budget <= least) /* what it does take beside these is little, and never nothing */
        against(
            reasons,
            xm_printf("the switch-over of VM %s is estimated at more than %s with nothing left to send, by "
                      "%s, which is beyond the budget of %s: it needs --downtime %llu at least",
                      m->vm, xm_format_time(least).s, by, xm_format_time(budget).s,
                      (unsigned long long)(least / XM_NS_PER_MS + 1)));
    else if (m->notes)
        against(m->notes, xm_printf("%s stands still for some %s in its switch-over, by %s, and for what its "
                                    "guest has left to send then; the budget is %s",
                                    m->vm, xm_format_time(least).s, by, xm_format_time(budget).s));
}

/* No move begins then. */
static void judge_left(struct move *m, json_t *reasons)
{
    char *dir = vm_state_path(m->agent, m->vm, NULL);
    struct xm_error e = {0};
    struct journal j;

    if (journal_read(dir, &j, &e) < 0)
        against(reasons, xm_printf("VM %s: what an earlier move of it left is not known: %s", m->vm, e.text));
    journal_free(&j);
    free(dir);
}

/* The destination makes the VM of its definition. What that does not have it cannot load; what is gone it has
 * again, and the guest does not know of it. */
static void judge_qemu(struct move *m, const json_t *st, json_t *reasons)
{
    json_t *v;
    size_t i;

    if (json_object_get(st, "qemu_silent"))
        against(reasons,
                xm_printf("QEMU of VM %s does not answer: %s", m->vm, xm_json_str(st, "qemu_silent", "?")));
    json_array_foreach (json_object_get(st, "plugged"), i, v)
        against(reasons,
                xm_printf("device %s was plugged into VM %s while it ran, and %s would make it without: "
                          "unplug it first",
                          json_is_string(v) ? json_string_value(v) : "?", m->vm, m->peer->name));
    json_array_foreach (json_object_get(st, "unplugged"), i, v) {
        if (m->notes)
            against(m->notes,
                    xm_printf("device %s was unplugged from VM %s while it ran: on %s it is there again, "
                              "and the guest is not told before it boots",
                              json_is_string(v) ? json_string_value(v) : "?", m->vm, m->peer->name));
    }
}

/* A way that leads there and not back is to be known before. Each host may have its own file at a path, so of
 * kernels and firmware nothing more is looked at. */
static void note_way_back(struct move *m)
{
    const struct config *conf = &m->agent->conf;
    json_t *why = json_array();

    outside_judge(&m->spec, conf, m->host, why);
    for (unsigned i = 0; i < m->spec.cdroms; i++) {
        if (facts_file_private(m->spec.cdrom[i].path))
            against(why, xm_printf("image %s on %s is not readable by everybody (chmod o+r)",
                                   m->spec.cdrom[i].path, conf->name));
    }
    if (json_array_size(why)) {
        char *text = reasons_text(why);
        against(m->notes, xm_printf("as it is now %s could not come back from %s: %s", m->vm, m->host, text));
        free(text);
    }
    json_decref(why);
}

static void judge_source(struct move *m, json_t *reasons)
{
    struct agent *a = m->agent;
    struct xm_error e = {0};
    json_t *st = shim_call(a, m->vm, json_pack("{s:s, s:b}", "cmd", "status", "devices", !m->local), -1,
                           8 * XM_NS_PER_S, &e);

    if (!st)
        against(reasons, xm_printf("%s", e.text));
    else if (strcmp(xm_json_str(st, "role", "owner"), "owner") != 0)
        against(reasons,
                xm_printf("VM %s is not this host's to give (%s)", m->vm, xm_json_str(st, "role", "?")));
    snprintf(m->qemu, sizeof m->qemu, "%s", xm_json_str(st, "qemu", ""));
    if (!m->local && xm_json_bool(st, "postmigrate", false))
        against(reasons,
                xm_printf("VM %s is paused, and its last switch-over failed: QEMU %s begins no other "
                          "migration before its guest has been continued; it may be paused again then",
                          m->vm, m->qemu));
    if (!m->local)
        judge_qemu(m, st, reasons);
    json_decref(st);
    m->firmware = m->local ? 0 : firmware_of(m);
    if (!vm_owned(a, m->vm, &m->epoch))
        against(reasons, xm_printf("%s's record does not say that it owns VM %s; see `xmigrate recover %s`",
                                   a->conf.name, m->vm, m->vm));
    if (!m->local) {
        judge_downtime(m, reasons);
        if (m->notes)
            note_way_back(m);
        admit_extra(&m->spec, reasons);
        json_t *nvram = m->spec.nvram ? nvram_pack(a, m->vm, &e) : json_null();
        if (!nvram)
            against(reasons, xm_printf("%s", e.text));
        json_decref(nvram);
        if (probe_tracking(&e) < 0)
            against(reasons, xm_printf("%s: %s", a->conf.name, e.text));
        if (!m->qemu[0] && !qemu_facts(m->spec.qemu, &e))
            against(reasons, xm_printf("QEMU on %s cannot be asked what it is: %s", a->conf.name, e.text));
    }
    for (unsigned i = 0; i < m->spec.disks; i++) {
        if (storage_hangs(m->spec.disk[i].path, &e) < 0)
            against(reasons, xm_printf("disk '%s' of VM %s: %s", m->spec.disk[i].name, m->vm, e.text));
        else
            judge_size(m, &m->spec.disk[i], reasons);
    }
    judge_left(m, reasons);
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
    int there = storage_space(ds->path, &size, &space);
    unsigned block = 0;

    m->disks = disks;
    if (there == -ETIMEDOUT) {
        against(reasons,
                xm_printf("datastore '%s' of %s does not answer: its storage hangs", ds->name, a->conf.name));
        json_decref(reserve);
        return;
    }
    struct xm_error wrong = {0};
    if (storage_takes_files(ds->path, &wrong) < 0 ||
        (m->held ? datastore_use : datastore_judge)(a, ds, &wrong) < 0)
        against(reasons, xm_printf("%s", wrong.text));
    block = probe_block_size(ds->path);
    for (unsigned i = 0; i < m->spec.disks; i++) {
        const struct vm_disk *d = &m->spec.disk[i];
        if (!strcmp(d->datastore, ds->name) || (m->only_stored && !d->datastore[0]))
            continue;
        char *path = free_disk_path(a, (int)(ds - a->conf.datastore), m->vm, d->name);
        need += disk_used(d);
        if (m->notes)
            admit_note_block(d, m->vm, ds->path, block, m->notes);
        json_array_append_new(disks, json_pack("{s:s, s:s}", "name", d->name, "path", path));
        json_array_append_new(reserve,
                              json_pack("{s:s, s:I}", "path", path, "used", (json_int_t)disk_used(d)));
        free(path);
    }
    json_t *usage = vms_usage(a, true);
    agent_lock(a);
    uint64_t gone = vms_space_promised(a, ds->name, NULL, usage) + a->conf.min_free;
    bool room = !need || (!there && space > gone && space - gone >= need);
    struct vm *vm = vm_find(a, m->vm);
    if (room && vm && m->held)
        vm->moving = json_pack("{s:s, s:O}", "datastore", ds->name, "reserve", reserve);
    agent_unlock(a);
    if (!room)
        against(reasons,
                xm_printf("datastore '%s' has %s to give and the disks of %s need %s", ds->name,
                          xm_format_size(space > gone ? space - gone : 0).s, m->vm, xm_format_size(need).s));
    json_decref(usage);
    json_decref(reserve);
}

static void judge_peer(struct move *m, json_t *reasons)
{
    struct xm_error e = {0};
    json_t *more = NULL;
    int status;
    json_t *answer = peer_call_agent(m->agent, m->peer, move_peer_request(m, "peer.check", ""), CHECK_NS,
                                     &status, &more, NULL, &e);

    if (answer)
        take_reasons(reasons, json_object_get(answer, "reasons"));
    else
        against(reasons, xm_printf("%s", e.text));
    if (answer && m->notes)
        take_reasons(m->notes, json_object_get(answer, "notes"));
    json_decref(more);
    json_decref(answer);
}

json_t *move_reasons(struct move *m)
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
