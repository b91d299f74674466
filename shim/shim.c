/* SPDX-License-Identifier: MIT */
/* The shim's life: brings its VM up, serves its socket, watches its QEMU, and ends when the VM has ended or
 * lives elsewhere.
 *
 * If this process dies, QEMU goes on and its disks wait (chardev reconnect). The next shim of this VM adopts
 * that QEMU. */
#include "shim/shim.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

bool shim_owns(const struct shim *s)
{
    return !s->destination || destination_owns(s->destination);
}

static struct shim *shim_of(struct machine *vm)
{
    return xm_container_of(vm, struct shim, machine);
}

/* ---- start ---- */

static void emit(struct machine *, json_t *);

static void qmp_event(struct machine *vm, const char *name, const json_t *data, uint64_t when)
{
    struct shim *s = shim_of(vm);

    if (!strcmp(name, "SHUTDOWN") && xm_json_bool(data, "guest", false))
        s->why = s->asked ? LIFE_USER : LIFE_GUEST;
    /* Else by its user, or by QEMU itself. While it is taken over it may be an earlier shim's switch. */
    bool ours = !s->serving || !shim_owns(s) || s->holds || (s->source && source_stops(s->source));
    if (!strcmp(name, "STOP") && !ours)
        machine_note_paused(vm, true);
    if (!strcmp(name, "RESUME") && s->serving && !s->source && !s->destination)
        s->let_go = true;
    if (s->source)
        source_qmp_event(s->source, name, data, when);
    if (s->destination)
        destination_qmp_event(s->destination, name, data);
}

json_t *shim_config(const char *path, struct xm_error *e)
{
    char *text = NULL;
    size_t len = 0;
    json_error_t why;

    if (xm_file_read(path, 1 << 20, &text, &len, e) < 0)
        return NULL;
    json_t *o = json_loadb(text, len, 0, &why);
    free(text);
    if (!o)
        xm_error_set(e, EINVAL, "%s: %s", path, why.text);
    return o;
}

int shim_new(struct shim *s, const char *config_path, struct xm_error *e)
{
    memset(s, 0, sizeof *s);
    qemu_init(&s->machine.qemu);
    TAILQ_INIT(&s->clients);
    s->listen_fd = s->signal_fd = -1;
    s->machine.emit = emit;
    s->machine.qmp_event = qmp_event;
    json_t *o = shim_config(config_path, e);
    if (!o)
        return -XM_MAX(e->code, 1);
    int r = machine_init(&s->machine, o, e);
    if (!r && s->machine.incoming) {
        json_t *in = json_object_get(o, "incoming");
        s->destination = destination_new(&s->machine, in, shim_ended, e);
        r = s->destination ? 0 : -XM_MAX(e->code, 1);
    }
    json_decref(o);
    return r ? xm_error_prefix(e, "%s", config_path) : 0;
}

static int open_sockets(struct shim *s, struct xm_error *e)
{
    sigset_t set;
    char *path = xm_printf("%s/shim.sock", s->machine.run_dir);
    int r = xm_mailbox_init(&s->machine.mailbox);

    if (!r) {
        s->listen_fd = xm_unix_listen(path, e);
        r = XM_MIN(s->listen_fd, 0);
    }
    free(path);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    s->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return r;
}

int shim_start(struct shim *s, struct xm_error *e)
{
    int r = open_sockets(s, e);

    if (!r)
        r = machine_start(&s->machine, e);
    if (!r && s->destination)
        r = destination_start(s->destination, e);
    machine_started();
    if (r) {
        xm_error_prefix(e, "VM %s", s->machine.spec.name);
        if (s->machine.adopted) /* not ours to end because we failed */
            qemu_leave(&s->machine.qemu);
    }
    return r;
}

/* ---- events ---- */

struct emit {
    struct xm_post post;
    struct shim *shim;
    json_t *event;
};

static void emit_run(struct xm_post *p)
{
    struct emit *m = xm_container_of(p, struct emit, post);
    struct shim *s = m->shim;
    struct client *c;

    TAILQ_FOREACH (c, &s->clients, link) {
        if (c->subscribed && xm_jsonl_send(c->conn.fd, json_incref(m->event), -1, NULL) < 0) {
            c->subscribed = false;
            /* Who has not read for long does not wait for ever for what it has missed: it comes again, and
             * hears the last event. The loop sees the end. */
            shutdown(c->conn.fd, SHUT_RDWR);
        }
    }
    json_decref(s->last_event);
    s->last_event = m->event;
    free(m);
}

static void emit(struct machine *vm, json_t *event)
{
    struct emit *m = event ? calloc(1, sizeof *m) : NULL;

    if (!m) { /* no memory */
        json_decref(event);
        return;
    }
    json_object_set_new(event, "vm", json_string(vm->spec.name));
    m->post.run = emit_run;
    m->shim = shim_of(vm);
    m->event = event;
    xm_mailbox_post(&vm->mailbox, &m->post);
}

/* ---- the loop ---- */

static void client_drop(struct shim *s, struct client *c)
{
    TAILQ_REMOVE(&s->clients, c, link);
    xm_jsonl_close(&c->conn);
    free(c);
}

static void client_accept(struct shim *s)
{
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    struct client *c = fd >= 0 ? calloc(1, sizeof *c) : NULL;

    if (!c) {
        if (fd >= 0)
            close(fd);
        return;
    }
    xm_jsonl_init(&c->conn, fd);
    TAILQ_INSERT_TAIL(&s->clients, c, link);
}

static void client_read(struct shim *s, struct client *c)
{
    struct xm_error e = {0};
    bool bad = false;
    int r = xm_jsonl_fill(&c->conn, &e);

    for (json_t *o; (o = xm_jsonl_next(&c->conn, &bad, &e));) {
        bool subscribe = false;
        json_t *id = json_object_get(o, "id");
        json_t *reply = shim_command(s, c, o, &subscribe);
        if (id)
            json_object_set(reply, "id", id);
        json_decref(o);
        if (xm_jsonl_send(c->conn.fd, reply, -1, &e) < 0)
            r = -1;
        if (subscribe) {
            c->subscribed = true;
            if (s->last_event)
                xm_jsonl_send(c->conn.fd, json_incref(s->last_event), -1, NULL);
        }
    }
    if (r <= 0 || bad)
        client_drop(s, c);
}

/* One that a migration has put another in the place of is not missed. */
static bool is_replaced(const struct shim *s)
{
    return s->machine.between || qemu_alive(&s->machine.qemu);
}

static void qemu_ended(struct shim *s)
{
    s->qemu_ended = true;
    xm_log(XM_LOG_INFO, "VM %s: QEMU has ended", s->machine.spec.name);
    if (!s->source && !s->destination)
        qmp_pump(&s->machine.qemu.qmp, 0, NULL); /* its last words may say why */
    if (s->why == LIFE_UNKNOWN)
        s->why = LIFE_DIED;
    if (s->source) {
        source_qemu_gone(s->source);
    } else if (s->destination) {
        char *log = machine_kept_log(&s->machine, "qemu.log");
        char *why = xm_printf("its QEMU has ended; why stands in %s on %s", log, s->machine.host);
        destination_fail(s->destination, why);
        free(why);
        free(log);
    } else {
        shim_ended(&s->machine, MIGRATE_STOPPED);
    }
}

void shim_ended(struct machine *vm, enum migrate_end how)
{
    struct shim *s = shim_of(vm);

    if (how == MIGRATE_CAME) {
        destination_free(s->destination);
        s->destination = NULL;
    } else if (s->source) {
        source_free(s->source);
        s->source = NULL;
    }
    /* It may have come and be on its way again: the last of the two ends tells that its QEMU has ended
     * meanwhile, which either may not have known. */
    bool stays = how == MIGRATE_CAME || how == MIGRATE_STAYS;
    if (stays && (s->source || s->destination || !s->qemu_ended))
        return;
    if (stays || how == MIGRATE_STOPPED)
        emit(vm, json_pack("{s:s}", "event", "stopped"));
    shim_end(s);
}

void shim_end(struct shim *s)
{
    s->ending = true;
}

/* A storage-only move could not record where its disk is (migrate/source_storage.c). */
static void save_uncertain(struct shim *s)
{
    struct machine *vm = &s->machine;
    struct xm_error e = {0};

    if (s->source || s->destination || !vm->spec_uncertain) /* a move that goes on changes it */
        return;
    if (machine_save_spec(vm, &e) == 0)
        xm_log(XM_LOG_INFO, "VM %s: where its disks are is recorded again", vm->spec.name);
    else
        xm_log(XM_LOG_DEBUG, "VM %s: %s", vm->spec.name, e.text);
}

/* Its hand-off was cut behind the record: it stands still here, for as long as its destination cannot be
 * asked, and looks like one that was paused. */
static void hold_guest(struct shim *s)
{
    struct machine *vm = &s->machine;
    struct owner_record rec;
    struct xm_error e = {0};

    s->let_go = false;
    if (s->qemu_ended || owner_load(vm->state_dir, vm->spec.name, &rec, &e) < 0 || owner_may_run(&rec))
        return;
    s->holds = true;
    if (machine_hold(vm, rec.owner == OWNER_GIVEN ? rec.to : rec.from, &e) < 0)
        xm_log(XM_LOG_ERROR, "VM %s: %s", vm->spec.name, e.text);
    s->holds = false;
}

void shim_run(struct shim *s)
{
    enum { MAX_FDS = 64, FIXED = 5, LOOK_AT_LOGS_MS = 1000 };
    uint64_t looked = 0;

    s->serving = true;
    while (!s->ending) {
        struct pollfd p[MAX_FDS];
        struct client *of[MAX_FDS];
        struct client *c;
        int n = FIXED;
        p[0] = (struct pollfd){.fd = s->machine.mailbox.fd, .events = POLLIN};
        p[1] = (struct pollfd){.fd = s->listen_fd, .events = POLLIN};
        p[2] = (struct pollfd){.fd = s->signal_fd, .events = POLLIN};
        bool watched = !s->qemu_ended && !s->machine.between;
        p[3] = (struct pollfd){.fd = watched ? s->machine.qemu.pidfd : -1, .events = POLLIN};
        /* While a migration talks to QEMU its own thread reads the events. */
        bool apart = s->source || s->destination || s->monitor_lost;
        p[4] = (struct pollfd){.fd = apart ? -1 : s->machine.qemu.qmp.conn.fd, .events = POLLIN};
        TAILQ_FOREACH (c, &s->clients, link) {
            if (n == MAX_FDS)
                break;
            of[n] = c;
            /* TAILQ_REMOVE is not followed: NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
            p[n++] = (struct pollfd){.fd = c->conn.fd, .events = POLLIN};
        }
        int ready = poll(p, (nfds_t)n, LOOK_AT_LOGS_MS);
        if (xm_now() - looked >= LOOK_AT_LOGS_MS * XM_NS_PER_MS) {
            machine_logs_turn(&s->machine);
            save_uncertain(s);
            looked = xm_now();
        }
        if (ready < 0)
            continue;
        if (p[3].revents && !is_replaced(s)) {
            qemu_ended(s);
        } else if (p[4].revents && qmp_pump(&s->machine.qemu.qmp, 0, NULL) < 0 && !s->monitor_lost) {
            s->monitor_lost = true; /* by its end, in a moment; or for good */
            xm_log(XM_LOG_INFO, "VM %s: QEMU has closed its monitor", s->machine.spec.name);
        }
        for (int i = FIXED; i < n; i++) {
            if (p[i].revents)
                client_read(s, of[i]);
        }
        if (p[1].revents)
            client_accept(s);
        if (p[0].revents)
            xm_mailbox_run(&s->machine.mailbox);
        if (s->let_go && !s->source && !s->destination)
            hold_guest(s);
        if (p[2].revents) {
            xm_log(XM_LOG_WARN, "VM %s: told to end by a signal", s->machine.spec.name);
            if (s->source)
                source_abort(s->source, NULL, "the shim was told to end", NULL);
            s->why = LIFE_SIGNAL;
            shim_end(s);
        }
    }
    if (s->source)
        source_leave(s->source);
    while (s->source) /* until it has said how it ended */
        xm_mailbox_wait(&s->machine.mailbox, -1);
    xm_mailbox_run(&s->machine.mailbox); /* last events */
}

/* Why it ended is known here alone. A VM that has gone to another host has not ended. */
static void note_end(struct shim *s)
{
    struct machine *vm = &s->machine;
    struct owner_record rec;
    struct xm_error e = {0};

    if (s->why == LIFE_UNKNOWN || owner_load(vm->state_dir, vm->spec.name, &rec, NULL) < 0 ||
        !owner_may_run(&rec))
        return;
    if (life_end(vm->state_dir, (enum life_why)s->why, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: why it ended could not be noted: %s", vm->spec.name, e.text);
}

void shim_free(struct shim *s)
{
    struct xm_error e = {0};
    bool discard = false;

    if (s->destination) {
        destination_join(s->destination); /* until then it may still be promised the VM */
        discard = !destination_may_own(s->destination);
        destination_free(s->destination);
        s->destination = NULL; /* QEMU has its last words below */
    }
    machine_stop(&s->machine);
    note_end(s);
    if (discard)
        xm_fault("shim-undo");
    if (discard && journal_undo(s->machine.state_dir, s->machine.spec.name, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: %s", s->machine.spec.name, e.text);
    while (!TAILQ_EMPTY(&s->clients))
        client_drop(s, TAILQ_FIRST(&s->clients)); /* NOLINT(clang-analyzer-unix.Malloc): likewise */
    json_decref(s->last_event);
    if (s->listen_fd >= 0) {
        char *path = xm_printf("%s/shim.sock", s->machine.run_dir);
        unlink(path);
        free(path);
        close(s->listen_fd);
        xm_mailbox_destroy(&s->machine.mailbox);
    }
    if (s->signal_fd >= 0)
        close(s->signal_fd);
    machine_free(&s->machine);
}
