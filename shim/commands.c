/* SPDX-License-Identifier: MIT */
/* The shim's commands: one table. Main thread. What comes over shim.sock is the agent's (mode 0600), yet
 * everything is checked. */
#include "shim/shim.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Who asks us has 5 s for «status». */
#define ENDING_NS (3 * XM_NS_PER_S)
#define QEMU_NS   (3 * XM_NS_PER_S) /* of more, for one that is to move */

typedef int command_fn(struct shim *, struct client *, const json_t *request, json_t *reply,
                       struct xm_error *);

/* For a move: whether QEMU answers, and what is plugged into it. Where that cannot be found out nothing is
 * said of devices. */
static void tell_devices(struct shim *s, json_t *reply)
{
    json_t *more = json_array(), *less = json_array();
    struct xm_error e = {0};

    if (s->source || s->destination) {
        /* QMP is the migration's */
    } else if (qmp_do(&s->machine.qemu.qmp, "query-status", NULL, QEMU_NS, &e) < 0) {
        json_object_set_new(reply, "qemu_silent", json_string(e.text));
    } else if (machine_plugged(&s->machine, more, less, &e) < 0) {
        xm_log(XM_LOG_WARN, "VM %s: what is plugged into it is not known: %s", s->machine.spec.name, e.text);
    } else {
        json_object_set(reply, "plugged", more);
        json_object_set(reply, "unplugged", less);
    }
    json_decref(more);
    json_decref(less);
}

struct place {
    char *path; /* malloc'ed */
    char datastore[sizeof((struct vm_disk *)0)->datastore];
};

/* On the disk's thread: a storage-only move changes it there. */
static void tell_place(struct machine_disk *d, void *arg)
{
    struct place *p = arg;

    p->path = xm_printf("%s", d->file->path);
    memcpy(p->datastore, d->spec->datastore, sizeof p->datastore);
}

static int cmd_status(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                      struct xm_error *e)
{
    static const char *const modes[] = {"off", "starting", "async", "sync"};
    struct machine *vm = &s->machine;
    bool migrates = s->source && !source_over(s->source);
    const char *state = migrates                   ? "migrating"
                        : !shim_owns(s)            ? "incoming"
                        : vm->guest_running        ? "running"
                        : machine_noted_paused(vm) ? "paused"
                                                   : "stopped";
    json_t *disks = json_array();

    (void)c;
    (void)e;
    json_object_set_new(reply, "vm", json_string(vm->spec.name));
    json_object_set_new(reply, "state", json_string(state));
    json_object_set_new(reply, "role", json_string("owner"));
    json_object_set_new(reply, "postmigrate", json_boolean(vm->postmigrate && !vm->guest_running));
    json_object_set_new(reply, "epoch", json_integer((json_int_t)vm->epoch));
    json_object_set_new(reply, "qemu_pid", json_integer(vm->qemu.pid));
    json_object_set_new(reply, "qemu", json_string(vm->qemu.qmp.version));
    json_object_set_new(reply, "shim_pid", json_integer(getpid()));
    if (migrates) /* also one that has just come, and moves on */
        source_status(s->source, reply);
    else if (s->destination)
        destination_status(s->destination, reply);
    for (unsigned i = 0; i < vm->disks; i++) {
        struct machine_disk *d = &vm->disk[i];
        struct xm_disk_status st;
        struct place at;
        xm_disk_status(d->disk, &st);
        machine_disk_call(d, tell_place, &at);
        json_array_append_new(
            disks, json_pack("{s:s s:s s:I s:s s:s s:I s:I s:I s:I s:I s:I s:b}", "name", d->spec->name,
                             "path", at.path, "size", (json_int_t)st.size, "datastore", at.datastore, "mode",
                             modes[st.mode], "reads", (json_int_t)st.reads, "writes", (json_int_t)st.writes,
                             "read_bytes", (json_int_t)st.read_bytes, "write_bytes",
                             (json_int_t)st.write_bytes, "errors", (json_int_t)st.errors, "waiting",
                             (json_int_t)st.waiting, "connected", xm_vhost_connected(d->vhost)));
        free(at.path);
    }
    json_object_set_new(reply, "disks", disks);
    if (xm_json_bool(request, "devices", false))
        tell_devices(s, reply);
    return 0;
}

static int cmd_subscribe(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                         struct xm_error *e)
{
    (void)s, (void)c, (void)request, (void)reply, (void)e;
    return 0; /* shim.c does it, after the answer has gone */
}

/* Its memory may be the only one: nobody ends it before it is known whose the VM is. */
static int is_settled(struct shim *s, struct xm_error *e)
{
    struct machine *vm = &s->machine;
    struct owner_record rec;
    struct xm_error why = {0};
    int r = owner_load(vm->state_dir, vm->spec.name, &rec, &why);

    if (r == -ENOENT || (s->destination && !destination_may_own(s->destination)))
        return 0;
    if (r)
        return xm_error_set(e, why.code, "%s", why.text);
    if (verdict_open(&rec))
        return xm_error_set(
            e, EBUSY,
            "whose VM %s is has to be settled with %s before it can be stopped: `xmigrate recover "
            "%s`",
            vm->spec.name, verdict_peer(&rec), vm->spec.name);
    return 0;
}

/* Who has heard how the last migration ended may be quicker than its links go down. */
static void await_end(struct shim *s)
{
    uint64_t until = xm_now() + ENDING_NS;

    while (s->source && source_ending(s->source) && xm_now() < until)
        xm_mailbox_wait(&s->machine.mailbox, 20);
}

/* Its migration has failed and is over, and its QEMU does not let it go on; or it is just about to go. */
static int stands_still(struct shim *s, struct xm_error *e)
{
    if (!source_stands(s->source))
        return xm_error_set(e, EBUSY, "the last migration of VM %s (job %s) is just being ended: try again",
                            s->machine.spec.name, source_job(s->source));
    return xm_error_set(e, EBUSY,
                        "VM %s stands still since its migration (job %s) failed: its QEMU does not let it go "
                        "on, which is tried again and again; `xmigrate stop --force %s` ends it",
                        s->machine.spec.name, source_job(s->source), s->machine.spec.name);
}

/* A guest that stands still does not see the power button, and QEMU would keep it pressed until the guest
 * goes on. */
static int may_power_down(struct shim *s, struct xm_error *e)
{
    bool paused;
    int r = machine_guest_paused(&s->machine, &paused, e);

    if (r || !paused)
        return r;
    return xm_error_set(e, EBUSY,
                        "VM %s is paused: its guest cannot power itself off; continue it, or `xmigrate stop "
                        "--force %s` ends it at once",
                        s->machine.spec.name, s->machine.spec.name);
}

static int cmd_stop(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                    struct xm_error *e)
{
    (void)c, (void)reply;
    await_end(s);
    if (s->source && !source_over(s->source))
        return xm_error_set(e, EBUSY, "VM %s is being migrated (job %s): abort that first",
                            s->machine.spec.name, source_job(s->source));
    if (s->source && !xm_json_bool(request, "force", false))
        return stands_still(s, e);
    if (!shim_owns(s) && !xm_json_bool(request, "force", false))
        return xm_error_set(e, EBUSY, "VM %s is on its way here", s->machine.spec.name);
    int r = is_settled(s, e);
    if (r)
        return r;
    if (xm_json_bool(request, "force", false)) {
        s->why = LIFE_FORCED;
        shim_end(s);
        return 0;
    }
    r = may_power_down(s, e);
    if (r)
        return r;
    s->asked = true;
    return qmp_do(&s->machine.qemu.qmp, "system_powerdown", NULL, 10 * XM_NS_PER_S, e);
}

static int begin(struct shim *s, const json_t *request, bool local, struct xm_error *e)
{
    const char *name = s->machine.spec.name;

    await_end(s);
    if (s->ending) /* its QEMU has ended meanwhile */
        return xm_error_set(e, ESRCH, "VM %s has ended", name);
    if (s->source && source_over(s->source))
        return stands_still(s, e);
    if (s->source)
        return xm_error_set(e, EBUSY, "VM %s is being migrated already (job %s)", name,
                            source_job(s->source));
    if (!shim_owns(s))
        return xm_error_set(e, EINVAL, "VM %s is not this host's to give", name);
    s->source = source_start(&s->machine, request, local, shim_ended, e);
    return s->source ? 0 : -XM_MAX(e->code, 1);
}

static int cmd_migrate(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                       struct xm_error *e)
{
    (void)c, (void)reply;
    return begin(s, request, false, e);
}

static int cmd_storage(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                       struct xm_error *e)
{
    (void)c, (void)reply;
    return begin(s, request, true, e);
}

/* `job`: what goes out. `incoming` and `source`: what comes in, whose job is another host's. Whoever aborts
 * may have looked before the one was over and the other began. */
static int cmd_abort(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                     struct xm_error *e)
{
    (void)c, (void)reply;
    const char *job = xm_json_str(request, "job", "");
    if (!job[0] && s->destination && !destination_may_own(s->destination) &&
        destination_is(s->destination, xm_json_str(request, "source", ""),
                       xm_json_str(request, "incoming", ""))) {
        destination_fail(s->destination, "aborted at the destination");
        return 0;
    }
    if (!job[0] || !s->source)
        return xm_error_set(e, ENOENT, "VM %s has no such migration going on", s->machine.spec.name);
    return source_abort(s->source, job, xm_json_str(request, "reason", "by its user"), e);
}

/* The definition of a running VM is its shim's to write: a second writer would lose where a disk has moved.
 */
static int set_autostart(struct shim *s, bool yes, struct xm_error *e)
{
    if (s->source || s->destination)
        return xm_error_set(e, EBUSY,
                            "VM %s is being migrated, and its definition with it: set it afterwards",
                            s->machine.spec.name);
    s->machine.spec.autostart = yes;
    return machine_save_spec(&s->machine, e);
}

/* The job that is named may be over, and another one have begun. */
static bool is_of_job(const struct shim *s, const json_t *request)
{
    const char *job = xm_json_str(request, "job", "");

    return s->source && (!job[0] || !strcmp(job, source_job(s->source)));
}

static int cmd_set(struct shim *s, struct client *c, const json_t *request, json_t *reply, struct xm_error *e)
{
    int64_t rate = xm_json_int(request, "bandwidth", -1);
    json_t *autostart = json_object_get(request, "autostart");

    (void)c, (void)reply;
    json_t *persist = json_object_get(request, "persist");
    int64_t others = xm_json_int(request, "others", -1);
    if (s->destination && others >= 0) {
        destination_set_others(s->destination, (uint64_t)others);
        return 0;
    }
    if (json_is_boolean(autostart))
        return set_autostart(s, json_is_true(autostart), e);
    if (is_of_job(s, request) && json_is_boolean(persist)) {
        source_persist(s->source, json_is_true(persist));
        return 0;
    }
    if (!is_of_job(s, request) || rate < 0)
        return xm_error_set(e, EINVAL, "VM %s: no such migration going on, or nothing to set given",
                            s->machine.spec.name);
    source_set_rate(s->source, (uint64_t)rate);
    return 0;
}

static int cmd_link(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                    struct xm_error *e)
{
    int fd = c->conn.passed_fd;

    (void)reply;
    c->conn.passed_fd = -1;
    if (fd < 0)
        return xm_error_set(e, EINVAL, "no socket came with it");
    if (!s->destination) {
        close(fd);
        return xm_error_set(e, EINVAL, "VM %s waits for no migration", s->machine.spec.name);
    }
    return destination_add_link(s->destination, fd, xm_json_str(request, "name", "link"), e);
}

static int cmd_resume(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                      struct xm_error *e)
{
    (void)c, (void)request, (void)reply;
    await_end(s);
    if (s->source && source_over(s->source))
        return stands_still(s, e);
    if (s->source || s->destination)
        return xm_error_set(e, EBUSY, "VM %s is in a migration", s->machine.spec.name);
    return machine_resume(&s->machine, e);
}

static int cmd_firmware(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                        struct xm_error *e)
{
    (void)c, (void)request;
    if (s->source || s->destination)
        return xm_error_set(e, EBUSY, "VM %s is in a migration", s->machine.spec.name);
    json_object_set_new(reply, "bytes", json_integer((json_int_t)qemu_firmware_size(&s->machine.qemu)));
    return 0;
}

static int cmd_decide(struct shim *s, struct client *c, const json_t *request, json_t *reply,
                      struct xm_error *e)
{
    const char *owner = xm_json_str(request, "owner", "");

    (void)c, (void)reply;
    if (!s->destination || (strcmp(owner, "mine") != 0 && strcmp(owner, "theirs") != 0))
        return xm_error_set(e, EINVAL, "nothing to decide, or neither mine nor theirs");
    return destination_decide(s->destination, !strcmp(owner, "mine"), e);
}

static const struct {
    const char *name;
    command_fn *fn;
} commands[] = {
    {"status", cmd_status},   {"subscribe", cmd_subscribe}, {"stop", cmd_stop},
    {"migrate", cmd_migrate}, {"storage", cmd_storage},     {"abort", cmd_abort},
    {"set", cmd_set},         {"link", cmd_link},           {"decide", cmd_decide},
    {"resume", cmd_resume},   {"firmware", cmd_firmware},
};

json_t *shim_command(struct shim *s, struct client *c, json_t *request, bool *subscribe)
{
    const char *name = xm_json_str(request, "cmd", "");
    json_t *reply = json_object();
    struct xm_error e = {0};
    int r = -ENOSYS;

    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (!strcmp(commands[i].name, name)) {
            r = commands[i].fn(s, c, request, reply, &e);
            *subscribe = !strcmp(name, "subscribe");
        }
    }
    if (r == -ENOSYS && !e.code)
        xm_error_set(&e, ENOSYS, "unknown command «%.40s»", name);
    json_object_set_new(reply, "ok", json_boolean(r >= 0));
    if (r < 0)
        json_object_set_new(reply, "error", json_string(e.text));
    return reply;
}
