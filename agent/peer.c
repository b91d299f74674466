/* SPDX-License-Identifier: MIT */
/* What other agents ask of this one: hello, check, prepare, cancel; and their links.
 *
 * Everything in a request is hostile until it has been checked: the spec by vm_spec_from_json and by the
 * rules for specs from outside (agent/outside.h), numbers against their bounds, names against the
 * configuration. No path comes from a peer: a disk's is made here, from the name of a datastore of ours, and
 * the VM's and the disk's name.
 *
 * prepare, happy path: check; judge and claim the name in one step under the lock, so that what is promised
 * is counted at once; make the disks; run the shim, which waits with its QEMU; answer with the token.
 * Anything that fails takes the steps before back. The agent dies in between: the journal names the files
 * that were made, and the next agent deletes them if no shim is there (vm/journal.h). The source never comes:
 * the shim ends after 20 s by itself, and its disks with it; sooner when the source's agent says that it
 * knows of no such migration (tidy.c), which is asked, too, when the same VM is announced again.
 */
#include "agent/datastore.h"
#include "agent/agent.h"
#include "agent/facts.h"
#include "agent/nvram.h"
#include "agent/outside.h"
#include "agent/storage.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TOKEN_BYTES 32

/* ---- requests ---- */

struct asked {
    struct vm_spec spec;
    struct admission_request req;
    struct fact_link link[CONFIG_MANY];
    char job[16];
    unsigned char *nvram; /* prepare: the firmware's variables; NULL: the VM has none */
    size_t nvram_size;
};

static int read_links(struct asked *q, const json_t *links, struct xm_error *e)
{
    struct address addr;
    json_t *l;
    size_t i;

    if (links && !json_is_array(links))
        return xm_error_set(e, EINVAL, "links: no list");
    if (json_array_size(links) > CONFIG_MANY)
        return xm_error_set(e, EINVAL, "links: more than %d", CONFIG_MANY);
    json_array_foreach ((json_t *)links, i, l) {
        q->link[i].name = xm_json_str(l, "name", "");
        q->link[i].address = xm_json_str(l, "address", "");
        if (config_name_check("link", q->link[i].name, e) < 0)
            return -EINVAL;
        if (!address_parse(&addr, q->link[i].address))
            return xm_error_set(e, EINVAL, "links: '%.40s' is no IP address", q->link[i].address);
        q->req.links++;
    }
    q->req.link = q->link;
    return 0;
}

static int read_used(struct asked *q, const json_t *used, struct xm_error *e)
{
    if (!json_is_array(used) || json_array_size(used) != q->spec.disks)
        return xm_error_set(e, EINVAL, "used: no list of one number per disk");
    for (unsigned i = 0; i < q->spec.disks; i++) {
        json_t *n = json_array_get(used, i);
        if (!json_is_integer(n) || json_integer_value(n) < 0 ||
            (uint64_t)json_integer_value(n) > q->spec.disk[i].size)
            return xm_error_set(e, EINVAL, "used: no number from 0 to the disk's size");
        q->req.used[i] = (uint64_t)json_integer_value(n);
    }
    return 0;
}

static bool hex_only(const char *s, size_t n)
{
    return strlen(s) == n && strspn(s, "0123456789abcdef") == n;
}

/* The file of that name in an open directory: a plain file and no link, whatever somebody who may write there
 * puts in its place. The descriptor, or -1. */
static int open_plain(int dir, const char *name, struct stat *st)
{
    int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd >= 0 && fstat(fd, st) == 0 && S_ISREG(st->st_mode))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool probe_says(int dir, const char *name, const char *content)
{
    char *file = xm_printf(".xmigrate-probe-%s", name), text[33];
    struct stat st;
    int fd = open_plain(dir, file, &st);
    bool same =
        fd >= 0 && st.st_size == 32 && pread(fd, text, sizeof text, 0) == 32 && !memcmp(text, content, 32);

    if (fd >= 0)
        close(fd);
    free(file);
    return same;
}

/* A disk that stays where it is: the source has put a probe file beside it, and says what is in it. Whoever
 * finds that in the datastore of this name here reaches the same storage. The shim opens the disk once more,
 * in the same way, and compares its size again (blkcopy/file.c). */
static void look_for_probe(struct agent *a, struct asked *q, unsigned i, const json_t *probe)
{
    struct vm_disk *d = &q->spec.disk[i];
    const struct conf_datastore *ds = config_datastore(&a->conf, xm_json_str(probe, "datastore", ""));
    const char *name = xm_json_str(probe, "probe", ""), *content = xm_json_str(probe, "content", "");
    const char *file = xm_json_str(probe, "file", "");
    struct stat st;

    if (!ds || !ds->incoming || !hex_only(name, 16) || !hex_only(content, 32) || !file[0] || file[0] == '.' ||
        strchr(file, '/') || strlen(file) > 200)
        return;
    if (storage_hangs(ds->path, NULL) < 0)
        return;
    int dir = open(ds->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = dir >= 0 && probe_says(dir, name, content) ? open_plain(dir, file, &st) : -1;
    if (fd >= 0 && (uint64_t)st.st_size == d->size) {
        free(d->path);
        d->path = xm_printf("%s/%s", ds->path, file);
        snprintf(d->datastore, sizeof d->datastore, "%s", ds->name);
        q->req.shared[i] = true;
    }
    if (fd >= 0)
        close(fd);
    if (dir >= 0)
        close(dir);
}

/* The spec with what is this host's own business taken out of it: taps, paths. */
static int read_spec(struct asked *q, const json_t *from, struct xm_error *e)
{
    json_t *o = json_deep_copy(from), *nic;
    size_t i;

    json_array_foreach (json_object_get(o, "nics"), i, nic) {
        if (json_is_object(nic))
            json_object_set_new(nic, "tap", json_string(""));
    }
    int r = vm_spec_from_json(&q->spec, o, e);
    json_decref(o);
    return r;
}

/* Bounds of what is compared word by word: a CPU has some hundred features. */
static int read_cpu(struct asked *q, const json_t *o, struct xm_error *e)
{
    const json_t *list = json_object_get(o, "cpu"), *v;
    size_t i;

    q->req.cpu_flags = xm_json_str(o, "cpu_flags", NULL);
    if (q->req.cpu_flags && strlen(q->req.cpu_flags) > 8192)
        return xm_error_set(e, EINVAL, "cpu_flags: longer than 8192 bytes");
    if (json_array_size(list) > 1000)
        return xm_error_set(e, EINVAL, "cpu: more than 1000 features");
    json_array_foreach (list, i, v) {
        if (!json_is_string(v) || !json_string_length(v) || json_string_length(v) > 64)
            return xm_error_set(e, EINVAL, "cpu: no list of names of at most 64 bytes");
    }
    q->req.cpu = json_array_size(list) ? list : NULL;
    q->req.cpu_why = xm_json_str(o, "cpu_why", NULL);
    q->req.booted = xm_json_bool(o, "booted", false);
    return 0;
}

static int read_request(struct agent *a, struct asked *q, const json_t *o, struct xm_error *e)
{
    const json_t *probes = json_object_get(o, "probes");
    struct admission_request *r = &q->req;
    int err = read_spec(q, json_object_get(o, "vm"), e);

    if (err)
        return err;
    r->spec = &q->spec;
    vm_wait_ending(a, q->spec.name); /* a second try soon after the first one has failed */
    tidy_expected(a, q->spec.name);  /* or after the first one was lost */
    r->storage = xm_json_bool(o, "storage", true);
    r->datastore = xm_json_str(o, "datastore", NULL);
    r->epoch = (uint64_t)XM_MAX(xm_json_int(o, "epoch", 0), 0);
    r->protocol = (unsigned)(xm_json_int(o, "protocol", 0) & 0xffff);
    r->source = xm_json_str(o, "from", "");
    r->qemu_version = xm_json_str(o, "qemu", NULL);
    r->firmware_bytes = (uint64_t)XM_MAX(xm_json_int(o, "firmware_bytes", 0), 0);
    for (unsigned i = 0; i < q->spec.cdroms; i++) {
        const json_t *n = json_array_get(json_object_get(o, "cdrom_bytes"), i);
        r->cdrom_bytes[i] = (uint64_t)XM_MAX(json_integer_value(n), 0); /* 0: no number, an older agent's */
    }
    r->large_rings = xm_json_bool(o, "large_rings", false);
    if ((err = read_cpu(q, o, e)) < 0)
        return err;
    r->kvm = (enum kvm_level)XM_MIN(XM_MAX(xm_json_int(o, "kvm", KVM_NONE), KVM_NONE), KVM_WHOLE);
    r->allow_older = xm_json_bool(o, "allow_older", false);
    snprintf(q->job, sizeof q->job, "%s", xm_json_str(o, "job", ""));
    if (strspn(q->job, "0123456789") != strlen(q->job))
        return xm_error_set(e, EINVAL, "job: no number");
    if (!r->epoch)
        return xm_error_set(e, EINVAL, "epoch: not from 1");
    err = read_links(q, json_object_get(o, "links"), e);
    if (!err && r->storage)
        err = read_used(q, json_object_get(o, "used"), e);
    for (unsigned i = 0; !err && !r->storage && i < q->spec.disks; i++)
        look_for_probe(a, q, i, json_array_get(probes, i));
    return err;
}

static json_t *refused(json_t *reasons)
{
    char *why = reasons_text(reasons);
    json_t *answer = refusal(EXIT_REFUSED, "%s", why);

    json_object_set_new(answer, "reasons", reasons);
    free(why);
    return answer;
}

static int settle_last_one(struct agent *a, const struct asked *q, uint64_t patience, struct xm_error *e);

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
    json_t *answer;
    int datastore;

    if (read_request(a, &q, request, &e) < 0) {
        answer = refusal(EXIT_USAGE, "%s", e.text);
    } else {
        json_t *reasons = json_array();
        outside_judge(&q.spec, &a->conf, q.req.source, reasons);
        /* Else what the last one left would be taken for another VM of that name. */
        bool open = settle_last_one(a, &q, SETTLE_PEER_PATIENCE, &e) < 0;
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
            block_notes(a, &q.spec, &g.datastore[datastore], notes);
        }
        judge_user(a, &q.spec, reasons, notes);
        json_object_set_new(answer, "notes", notes);
        gathered_free(&g);
    }
    vm_spec_free(&q.spec);
    return answer;
}

/* ---- prepare ---- */

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

/* What an earlier migration has left open here is brought to its end, or this one has to wait. Who sends the
 * VM now has run it: then what was left of our giving it to him is over. */
static int settle_last_one(struct agent *a, const struct asked *q, uint64_t patience, struct xm_error *e)
{
    const char *name = q->spec.name;
    struct owner_record rec;
    struct xm_error why = {0};
    int r = owner_read(a, name, &rec, &why);

    if (!r && rec.owner == OWNER_GIVEN && !rec.settled && !strcmp(rec.to, q->req.source) &&
        q->req.epoch >= rec.epoch) {
        rec.settled = true;
        r = owner_write(a, name, &rec, e);
    } else if (!r && verdict_open(&rec)) {
        json_t *answer = settle(a, name, false, patience);
        r = xm_json_bool(answer, "ok", false)
                ? 0
                : xm_error_set(e, EBUSY, "%s", xm_json_str(answer, "error", "its last hand-off is open"));
        json_decref(answer);
    } else if (r && r != -ENOENT) {
        r = xm_error_set(e, -r, "%s", why.text);
    } else {
        r = 0;
    }
    return r;
}

/* The name is claimed: nobody else works on it. What an earlier migration should have taken away goes now. */
static int close_last_journal(struct agent *a, const char *name, struct xm_error *e)
{
    char *dir = vm_state_path(a, name, NULL);
    struct journal j;
    json_t *file;
    size_t i;
    int r = journal_read(dir, &j, e);

    json_array_foreach (j.files, i, file) {
        if (!r && storage_hangs(json_is_string(file) ? json_string_value(file) : "", e) < 0)
            r = xm_error_prefix(e, "what an earlier migration of VM %s left cannot be taken away", name);
    }
    journal_free(&j);
    if (!r)
        r = journal_settle(dir, name, e);

    if (!r)
        r = journal_undo(dir, name, e);
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
        r = journal_plan(dir, q->req.epoch + 1, q->req.source, had, files, e);
    else
        r = journal_write(dir, JOURNAL_DESTINATION, q->req.epoch + 1, q->req.source, had, files, e);
    free(dir);
    return r;
}

/* The journal first says what is to be made. Somebody who makes a file of that name in the same moment keeps
 * it. */
static int make_files(struct agent *a, struct asked *q, int datastore, json_t *created, struct xm_error *e)
{
    int r = q->req.storage ? datastore_use(a, &a->conf.datastore[datastore], e) : 0;

    if (r)
        return r;
    r = -EEXIST;
    for (unsigned n = 0; r == -EEXIST && n < 100; n++) {
        json_t *planned = json_array();
        delete_created(created);
        json_array_clear(created);
        if (q->req.storage)
            plan_disks(a, &q->spec, datastore, planned);
        r = open_journal(a, q, planned, true, e);
        xm_fault("prepare-journaled");
        if (!r && q->req.storage)
            r = create_disks(&q->spec, created, e);
        xm_fault("prepare-created");
        json_decref(planned);
    }
    if (!r && q->nvram)
        r = nvram_put(a, q->spec.name, q->nvram, q->nvram_size, created, e);
    return r ? r : open_journal(a, q, created, false, e);
}

/* It came to nothing: the files were made a moment ago, and nobody has been promised anything. */
static void close_journal(struct agent *a, const char *name, const json_t *created)
{
    char *dir = vm_state_path(a, name, NULL);
    struct xm_error e = {0};

    if (journal_undo(dir, name, &e) < 0)
        xm_log(XM_LOG_WARN, "%s", e.text);
    else
        delete_created(created); /* those of which the journal does not tell yet */
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

static json_t *prepared(struct agent *a, const struct asked *q, const char *token)
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
    return answer;
}

static json_t *prepare(struct agent *a, struct asked *q)
{
    char token[2 * TOKEN_BYTES + 1];
    struct gathered g;
    struct xm_error e = {0};
    json_t *reasons = json_array();
    struct vm *vm = NULL;
    int datastore = -1;

    outside_judge(&q->spec, &a->conf, q->req.source, reasons);
    gather(a, &q->req, true, &g);
    json_t *spec = vm_spec_to_json(&q->spec);
    int r = xm_hex_random(token, TOKEN_BYTES, &e);
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
    if (bring_up(a, q, datastore, &e) < 0 || vm_watch(a, q->spec.name, &e) < 0) {
        agent_lock(a);
        vm_forget(vm_find(a, q->spec.name));
        agent_unlock(a);
        return refusal(EXIT_FAILED, "%s", e.text);
    }
    xm_fault("prepared");
    xm_log(XM_LOG_INFO, "VM %s: prepared for job %s of %s", q->spec.name, q->job, q->req.source);
    return prepared(a, q, token);
}

json_t *verb_peer_prepare(struct conn *c, const json_t *request)
{
    struct asked q = {0};
    struct xm_error e = {0};
    json_t *answer;

    int r = read_request(c->agent, &q, request, &e);
    if (!r && q.spec.nvram && !(q.nvram = nvram_unpack(json_object_get(request, "nvram"), &q.nvram_size, &e)))
        r = -EINVAL;
    if (r)
        answer = refusal(EXIT_USAGE, "%s", e.text);
    else if (settle_last_one(c->agent, &q, SETTLE_PREPARE_PATIENCE, &e) < 0)
        answer = refusal(EXIT_FAILED, "%s", e.text);
    else
        answer = prepare(c->agent, &q);
    free(q.nvram);
    vm_spec_free(&q.spec);
    return answer;
}

/* ---- cancel ---- */

json_t *verb_peer_cancel(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", ""), *token = xm_json_str(request, "token", "");
    struct xm_error e = {0};

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool right = vm && vm->incoming && vm->phase == VM_UP && token[0] &&
                 !strcmp(xm_json_str(vm->incoming, "token", ""), token);
    agent_unlock(a);
    if (!right)
        return refusal(EXIT_FAILED, "%s does not wait for this migration", a->conf.name);
    json_t *answer = shim_call(a, name, json_pack("{s:s}", "cmd", "abort"), -1, 10 * XM_NS_PER_S, &e);
    if (!answer)
        return refusal(EXIT_FAILED, "%s", e.text);
    json_decref(answer);
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

    if (strlen(x) != 2 * TOKEN_BYTES || strlen(y) != 2 * TOKEN_BYTES)
        return false;
    for (size_t i = 0; i < (size_t)2 * TOKEN_BYTES; i++)
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
