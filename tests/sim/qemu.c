/* SPDX-License-Identifier: MIT */
/* QEMU as far as a migration sees it, and its guest, which does nothing but write.
 *
 * Each write of the guest has a number. What the guest knows of (`memory`), and what is on a disk
 * (`version`), is the number of the last one. So a guest that goes on with another number than the last
 * one acknowledged has lost something, or somebody else runs, too. */
#include "tests/sim/sim.h"
#include "machine/machine.h"
#include "shim/shim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the guest ---- */

struct proc *shim_of_qemu(struct proc *qemu)
{
    return proc_find(qemu->host, SHIM);
}

struct inode *qemu_disk(struct proc *qemu)
{
    struct proc *shim = shim_of_qemu(qemu);

    return shim && !shim->stopped ? machine_inode(shim) : NULL;
}

static bool owned(struct host *h)
{
    struct owner_record rec;
    char *dir = xm_printf("%s/vms/" VM, h->state_dir);

    files_as(h);
    int r = owner_load(dir, VM, &rec, NULL);
    files_as(NULL);
    free(dir);
    return !r && owner_may_run(&rec);
}

static void guest_runs(struct proc *p)
{
    struct qemu_model *q = p->qemu;
    struct inode *disk = qemu_disk(p);

    if (q->running)
        return;
    if (!q->loaded && disk) {
        q->memory = disk->version;
        q->loaded = true;
    }
    q->running = true;
    w.ran_last = p->host;
    sim_trace("%s's guest runs, after its write %llu", p->host->name, (unsigned long long)q->memory);
    /* What a host had that was declared dead is lost, as its operator knows. Was the power cut here too,
     * since the copy was promised, then some of its last writes are. */
    if (w.word_given && q->memory == HALF)
        q->memory = disk->version = w.version;
    if (w.word_given)
        w.version = q->memory;
    if (!owned(p->host))
        sim_violated("the guest runs on %s, whose record does not say that it owns it", p->host->name);
    else if (q->memory == HALF || (disk && disk->version == HALF))
        sim_violated("the guest runs on %s from a copy that is not whole", p->host->name);
    else if (q->memory != w.version)
        sim_violated("the guest goes on after write %llu on %s, and the last one acknowledged was %llu",
                     (unsigned long long)q->memory, p->host->name, (unsigned long long)w.version);
    else if (disk && disk->version != w.version)
        sim_violated("the guest's disk on %s ends with write %llu, and the last one acknowledged was %llu",
                     p->host->name, (unsigned long long)disk->version, (unsigned long long)w.version);
}

static void guest_writes(void *unused)
{
    for (struct proc *p = w.procs; p; p = p->next) {
        if (p->kind != QEMU || !p->alive || p->stopped || !p->qemu->running)
            continue;
        struct inode *disk = qemu_disk(p);
        if (!disk || disks_hold_guest(shim_of_qemu(p)))
            continue; /* its requests wait */
        if (!disk->named)
            sim_violated("the disk of the guest that runs on %s has been deleted", p->host->name);
        p->qemu->memory = ++w.version;
        disk->version = disk->durable_version = w.version;
        disks_guest_wrote(shim_of_qemu(p), w.version);
    }
    after(between(5, 40) * MS, guest_writes, unused);
}

void guest_reset(void)
{
    after(MS, guest_writes, NULL);
}

/* ---- the process ---- */

static void tell(struct proc *p, const char *event, json_t *data)
{
    struct qemu_model *q = p->qemu;
    uint64_t t = sim_time();

    if (!q->monitor || !q->monitor->peer) {
        json_decref(data);
        return;
    }
    socket_send(q->monitor,
                json_pack("{s:s, s:o*, s:{s:I, s:I}}", "event", event, "data", data, "timestamp", "seconds",
                          (json_int_t)(1700000000 + t / SEC), "microseconds", (json_int_t)(t % SEC / 1000)),
                NULL);
}

static void status(struct proc *p, const char *to)
{
    snprintf(p->qemu->status, sizeof p->qemu->status, "%s", to);
    tell(p, "MIGRATION", json_pack("{s:s}", "status", to));
}

static void stop_guest(struct proc *p)
{
    if (!p->qemu->running)
        return;
    p->qemu->running = false;
    tell(p, "STOP", NULL);
}

struct proc *qemu_begin(struct host *h, bool incoming)
{
    struct proc *p = proc_new(QEMU, h);
    char pid[32], *path = xm_printf("%s/vms/" VM "/qemu.pid", h->run_dir);

    p->qemu = sim_alloc(sizeof *p->qemu);
    memset(p->qemu, 0, sizeof *p->qemu);
    p->qemu->incoming = incoming;
    p->qemu->memory = HALF;
    p->cmdline_len = (size_t)snprintf(p->cmdline, sizeof p->cmdline,
                                      "qemu-system-x86_64%c-qmp%cunix:%s/vms/" VM "/qmp.sock%c%s%s", 0, 0,
                                      h->run_dir, 0, incoming ? "-incoming" : "-S", "") +
                     1;
    file_put(h, path, pid, (size_t)snprintf(pid, sizeof pid, "%d\n", p->pid));
    free(path);
    return p;
}

static void ends(void *arg)
{
    struct proc *p = arg;

    if (p->alive)
        proc_kill(p, "by itself");
}

void qemu_exit(struct proc *p, bool guest_did_it)
{
    p->qemu->running = false;
    tell(p, "SHUTDOWN", json_pack("{s:b}", "guest", guest_did_it));
    after(between(1, 20) * MS, ends, p);
}

int __wrap_qemu_start(struct qemu *q, const struct vm_spec *spec, const struct qemu_place *place,
                      struct xm_error *e)
{
    struct proc *me = proc_current();
    char *path = xm_printf("%s/qmp.sock", place->run_dir);

    (void)spec;
    task_sleep(between(5, 60) * MS);
    sim_point("start QEMU");
    struct proc *p = qemu_begin(me->host, place->incoming);
    sim_trace("%s's QEMU (%d) starts%s", me->host->name, p->pid, place->incoming ? ", for a migration" : "");
    q->pid = p->pid;
    struct obj *o = obj_new(FD_PID);
    o->proc = p;
    q->pidfd = fd_new(o, me);
    q->child = true;
    int r = qmp_open(&q->qmp, path, xm_now() + 10 * SEC, (bool (*)(void *))qemu_alive, q, e);
    free(path);
    if (r)
        qemu_end(q, spec);
    return r;
}

/* ---- its migration ---- */

struct step {
    struct proc *p;
    unsigned turn;
    uint64_t since;
};

static struct step *step_of(struct proc *p)
{
    struct step *s = sim_alloc(sizeof *s);

    *s = (struct step){p, p->qemu->turn, sim_time()};
    return s;
}

/* It may go on; false: it has been told otherwise meanwhile. One that is stopped is asked again. */
static bool goes_on(struct step *s, event_fn *again)
{
    if (!s->p->alive || s->p->qemu->turn != s->turn)
        return false;
    if (!s->p->stopped)
        return true;
    after(20 * MS, again, s);
    return false;
}

static void pauses(void *arg)
{
    struct step *s = arg;

    if (!goes_on(s, pauses))
        return;
    stop_guest(s->p);
    status(s->p, "pre-switchover");
}

static void arrives(void *arg)
{
    struct step *s = arg;
    struct proc *shim = goes_on(s, arrives) ? shim_of_qemu(s->p) : NULL;
    struct xm_links *l = shim ? stream_links(shim) : NULL;
    struct proc *there = l ? links_peer(l) : NULL;

    if (!s->p->alive || s->p->qemu->turn != s->turn || s->p->stopped)
        return;
    struct proc *to = there ? proc_find(there->host, QEMU) : NULL;
    if (shim && stream_held(shim)) {
        after(MS, arrives, s); /* it is not on its way yet */
        return;
    }
    if (!to || !to->qemu->incoming || strcmp(to->qemu->status, "active") != 0) {
        if (l && links_live(l) && sim_time() - s->since < 8 * SEC)
            after(100 * MS, arrives, s); /* it is on its way still */
        else
            status(s->p, "failed");
        return;
    }
    if (!pages_complete(shim))
        sim_violated("device state is loaded over memory that is not complete");
    to->qemu->memory = s->p->qemu->memory;
    to->qemu->loaded = true;
    status(to, "completed");
    status(s->p, "completed");
}

static void cancelled(void *arg)
{
    struct step *s = arg;

    if (goes_on(s, cancelled))
        status(s->p, "cancelled");
}

static void shuts_down(void *arg)
{
    struct step *s = arg;

    if (s->p->alive && s->p->qemu->running && !s->p->stopped)
        qemu_exit(s->p, true);
}

/* The stream's way, and its loading. */
static uint64_t state_takes(void)
{
    if (plan_of == LATE_MOVE && planned && w.begun && !w.late_at) {
        w.late_at = w.points;
        return SEC;
    }
    return (chance(w.late) ? between(50, 800) : between(1, 20)) * MS;
}

/* ---- its monitor ---- */

static json_t *error(const char *text)
{
    return json_pack("{s:{s:s, s:s}}", "error", "class", "GenericError", "desc", text);
}

static bool moving(const struct qemu_model *q)
{
    return !strcmp(q->status, "active") || !strcmp(q->status, "pre-switchover") ||
           !strcmp(q->status, "device") || !strcmp(q->status, "cancelling");
}

/* No user pauses a guest here: it stands still for a start or a migration. */
static const char *run_state(const struct qemu_model *q)
{
    if (q->running)
        return "running";
    if (q->incoming)
        return q->loaded ? "paused" : "inmigrate";
    return !q->status[0] ? "prelaunch" : moving(q) ? "finish-migrate" : "postmigrate";
}

static json_t *carries_out(struct proc *p, const char *what)
{
    struct qemu_model *q = p->qemu;

    if (!strcmp(what, "query-status"))
        return json_pack("{s:{s:b, s:s}}", "return", "running", q->running, "status", run_state(q));
    if (!strcmp(what, "query-migrate"))
        return json_pack("{s:{s:s, s:{s:i}}}", "return", "status", q->status[0] ? q->status : "none", "ram",
                         "total", 0);
    if (!strcmp(what, "human-monitor-command"))
        return json_pack("{s:s}", "return",
                         "Block Name PSize Offset Used Total\n mem0 4 KiB 0x0 0x8000000 0x8000000\n");
    if (!strcmp(what, "cont")) {
        if (q->incoming && !q->loaded)
            return error("Migration is not finished yet");
        if (!q->incoming && moving(q))
            return error("finish-migrate");
        if (w.begun && !w.ending && q->incoming && !q->running && chance(w.refuse_run))
            return error("it does not want to");
        guest_runs(p);
        q->incoming = false;
        tell(p, "RESUME", NULL);
    } else if (!strcmp(what, "migrate")) {
        if (moving(q))
            return error("There's a migration process in progress");
        q->turn++;
        status(p, "active");
        after(between(2, 40) * MS, pauses, step_of(p));
    } else if (!strcmp(what, "migrate-continue")) {
        if (strcmp(q->status, "pre-switchover") != 0)
            return error("Migration not in expected state");
        status(p, "device");
        after(state_takes(), arrives, step_of(p));
    } else if (!strcmp(what, "migrate-incoming")) {
        if (!q->incoming || q->status[0])
            return error("'-incoming' was not specified");
        status(p, "active");
    } else if (!strcmp(what, "migrate_cancel")) {
        if (!q->incoming && moving(q)) {
            q->turn++;
            status(p, "cancelling");
            after(between(1, 8) * MS, cancelled, step_of(p));
        }
    } else if (!strcmp(what, "system_powerdown")) {
        if (w.ending || chance(850))
            after(between(20, 1500) * MS, shuts_down, step_of(p));
    } else if (!strcmp(what, "quit")) {
        qemu_exit(p, false);
    }
    return json_pack("{s:{}}", "return");
}

static json_t *does(struct proc *p, const char *what, json_t *id)
{
    json_t *answer = carries_out(p, what);

    if (id)
        json_object_set(answer, "id", id);
    return answer;
}

struct command {
    struct proc *p;
    struct obj *client;
    char what[40];
    json_t *id;
    unsigned number;
};

/* It was stopped when it was asked. Commands are done in their order, also for who has not waited for them.
 */
static void asked_again(void *arg)
{
    struct command *c = arg;
    struct qemu_model *q = c->p->qemu;

    if (!c->p->alive)
        return;
    if (c->p->stopped || c->number != q->done) {
        after(c->p->stopped ? 20 * MS : 1, asked_again, c);
        return;
    }
    q->done++;
    json_t *answer = does(c->p, c->what, c->id);
    if (c->client->peer)
        socket_send(c->client->peer, answer, NULL);
    else
        json_decref(answer);
}

json_t *qemu_says(struct proc *p, struct obj *client, const json_t *command)
{
    const char *what = xm_json_str(command, "execute", "");

    sim_trace("  QEMU (%d), which is «%s», is told: %s", p->pid, p->qemu->status, what);
    if (!p->stopped && p->qemu->asked == p->qemu->done)
        return does(p, what, json_object_get(command, "id"));
    struct command *c = sim_alloc(sizeof *c);
    c->p = p;
    c->client = client;
    c->id = json_copy(json_object_get(command, "id"));
    c->number = p->qemu->asked++;
    snprintf(c->what, sizeof c->what, "%s", what);
    after(20 * MS, asked_again, c);
    return NULL;
}

void qemu_greets(struct proc *p, struct obj *monitor)
{
    p->qemu->monitor = monitor;
    monitor->refs = 1;
    socket_send(monitor,
                json_pack("{s:{s:{s:{s:i, s:i, s:i}}}}", "QMP", "version", "qemu", "major", 7, "minor", 2,
                          "micro", 0),
                NULL);
}
