/* The shim's life: brings its VM up, serves its socket, watches its QEMU, and ends when the VM has ended or
 * lives elsewhere.
 *
 * Start: disks (threads, files, drivers) -> vhost-user sockets -> QEMU, stopped -> the guest's RAM is found
 * -> run (or wait for the migration). A failure at any step takes the steps before back and is one sentence
 * on stderr of who started us.
 *
 * If this process dies, QEMU goes on and its disks wait (chardev reconnect). The next shim of this VM adopts
 * that QEMU. */
#include "host/incoming.h"
#include "host/migration.h"
#include "host/shim.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECONNECT_TIMEOUT (5 * XM_NS_PER_S) /* QEMU tries once a second */
#define RUN_TIMEOUT       (20 * XM_NS_PER_S)

static const char *const role_names[] = {"owner", "incoming", "undecided", "gone"};

const char *shim_role_name(enum shim_role r)
{
    return role_names[r];
}

/* ---- configuration ---- */

int shim_new(struct shim *s, const char *config_path, struct xm_error *e)
{
    char *text = NULL;
    size_t len = 0;
    json_error_t why;
    int r;

    memset(s, 0, sizeof *s);
    qemu_init(&s->qemu);
    TAILQ_INIT(&s->clients);
    s->listen_fd = s->signal_fd = -1;
    if ((r = xm_file_read(config_path, 1 << 20, &text, &len, e)) < 0)
        return r;
    json_t *o = json_loadb(text, len, 0, &why);
    free(text);
    const char *state = xm_json_str(o, "state_dir", NULL);
    const char *run = xm_json_str(o, "run_dir", NULL);
    const char *engine = xm_json_str(o, "engine", "auto");
    if (!json_is_object(o) || !state || !run || !xm_json_str(o, "host", NULL)) {
        json_decref(o);
        return xm_error_set(e, EINVAL, "%s: not a shim's configuration%s%s", config_path,
                            why.text[0] ? ": " : "", why.text);
    }
    r = vm_spec_from_json(&s->vm, json_object_get(o, "vm"), e);
    s->host = xm_printf("%s", xm_json_str(o, "host", ""));
    s->run_dir = xm_printf("%s/vms/%s", run, s->vm.name);
    s->state_dir = xm_printf("%s/vms/%s", state, s->vm.name);
    s->epoch = (uint64_t)xm_json_int(o, "epoch", 1);
    s->engine = !strcmp(engine, "libaio")     ? XM_ENGINE_LIBAIO
                : !strcmp(engine, "io_uring") ? XM_ENGINE_URING
                                              : XM_ENGINE_AUTO;
    s->disks = s->vm.disks;
    for (unsigned i = 0; i < s->disks; i++) {
        s->disk[i].shim = s;
        s->disk[i].spec = &s->vm.disk[i];
        s->disk[i].object = (uint16_t)i;
    }
    json_t *in = json_object_get(o, "incoming");
    if (!r && json_is_object(in)) {
        s->role = SHIM_INCOMING;
        r = incoming_new(s, in, e);
    }
    json_decref(o);
    return r;
}

int shim_save_spec(struct shim *s, struct xm_error *e)
{
    json_t *o = vm_spec_to_json(&s->vm);
    char *text = json_dumps(o, JSON_INDENT(1));
    char *path = xm_printf("%s/spec.json", s->state_dir);
    int r = xm_mkdir_all(s->state_dir, e);

    if (!r)
        r = text ? xm_file_replace(path, text, strlen(text), e)
                 : xm_error_set(e, ENOMEM, "VM %s: no memory", s->vm.name);
    free(path);
    free(text);
    json_decref(o);
    return r;
}

/* ---- QEMU ---- */

static void on_qmp_event(void *ctx, const char *name, const json_t *data, uint64_t when)
{
    struct shim *s = ctx;

    if (!strcmp(name, "STOP"))
        s->guest_running = false;
    else if (!strcmp(name, "RESUME"))
        s->guest_running = true;
    if (s->migration)
        migration_qmp_event(s->migration, name, data, when);
    if (s->incoming)
        incoming_qmp_event(s->incoming, name, data);
}

static int learn_running(struct shim *s, struct xm_error *e)
{
    json_t *st = qmp_call(&s->qemu.qmp, "query-status", NULL, 10 * XM_NS_PER_S, e);

    s->guest_running = xm_json_bool(st, "running", false);
    json_decref(st);
    return st ? 0 : -EIO;
}

/* The guest runs only where the record says so (DESIGN §8); and if an earlier shim of ours died in a switch-over before it gave the VM
 * away, the guest has to be brought back. */
static int run_guest(struct shim *s, struct xm_error *e)
{
    struct owner_record rec;
    int r = owner_load(s->state_dir, s->vm.name, &rec, e);

    if (!r && !owner_may_run(&rec))
        r = xm_error_set(e, EPERM, "it was given to %s (epoch %llu); see `xmigrate recover %s`", rec.to,
                         (unsigned long long)rec.epoch, s->vm.name);
    if (!r)
        s->epoch = rec.epoch;
    /* A QEMU that goes on before it has come back to its disks starts them in vain, and never again (7.2). */
    uint64_t deadline = xm_now() + RECONNECT_TIMEOUT;
    for (unsigned i = 0; !r && s->adopted && i < s->disks; i++) {
        while (!xm_vhost_attached(s->disk[i].vhost) && xm_now() < deadline)
            poll(NULL, 0, 10);
    }
    if (!r)
        r = qemu_cancel_migration(&s->qemu, RUN_TIMEOUT, e);
    return r ? r : qemu_continue(&s->qemu, RUN_TIMEOUT, e);
}

static int start_qemu(struct shim *s, struct xm_error *e)
{
    int r = qemu_adopt(&s->qemu, s->run_dir, e);

    s->adopted = r == 0;
    if (r == -ESRCH)
        r = qemu_start(&s->qemu, &s->vm, s->run_dir, s->role == SHIM_INCOMING, e);
    if (r)
        return r;
    s->qemu.qmp.ctx = s;
    s->qemu.qmp.event = on_qmp_event;
    if (s->adopted)
        xm_log(XM_LOG_WARN, "VM %s: took over its running QEMU (process %d)", s->vm.name, s->qemu.pid);
    if ((r = xm_ram_find(&s->ram, s->qemu.pid, e)) < 0)
        return r;
    if (s->role == SHIM_OWNER && (r = run_guest(s, e)) < 0)
        return r;
    return learn_running(s, e);
}

/* ---- start ---- */

static int open_sockets(struct shim *s, struct xm_error *e)
{
    sigset_t set;
    char *path = xm_printf("%s/shim.sock", s->run_dir);
    int r = xm_mailbox_init(&s->mailbox);

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

    for (unsigned i = 0; !r && i < s->disks; i++)
        r = shim_disk_start(&s->disk[i], e);
    for (unsigned i = 0; !r && i < s->disks; i++)
        r = shim_disk_serve(&s->disk[i], e);
    if (!r)
        r = start_qemu(s, e);
    if (!r && s->role == SHIM_INCOMING)
        r = incoming_start(s->incoming, e);
    if (r) {
        xm_error_prefix(e, "VM %s", s->vm.name);
        if (s->adopted) /* not ours to end because we failed */
            qemu_leave(&s->qemu);
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
        if (c->subscribed && xm_jsonl_send(c->conn.fd, json_incref(m->event), -1, NULL) < 0)
            c->subscribed = false; /* its hang-up is seen by the loop */
    }
    json_decref(s->last_event);
    s->last_event = m->event;
    free(m);
}

void shim_emit(struct shim *s, json_t *event)
{
    struct emit *m = calloc(1, sizeof *m);

    if (!m) {
        json_decref(event);
        return;
    }
    json_object_set_new(event, "vm", json_string(s->vm.name));
    m->post.run = emit_run;
    m->shim = s;
    m->event = event;
    xm_mailbox_post(&s->mailbox, &m->post);
}

/* ---- the loop ---- */

static void client_drop(struct shim *s, struct client *c)
{
    TAILQ_REMOVE(&s->clients, c, link);
    if (c->conn.passed_fd >= 0)
        close(c->conn.passed_fd);
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

static void qemu_ended(struct shim *s)
{
    xm_log(XM_LOG_INFO, "VM %s: QEMU has ended", s->vm.name);
    if (s->migration)
        migration_qemu_gone(s->migration);
    if (s->incoming) {
        incoming_fail(s->incoming, "QEMU at the destination has ended");
        return;
    }
    if (!s->migration) {
        shim_emit(s, json_pack("{s:s}", "event", "stopped"));
        shim_end(s);
    }
}

void shim_end(struct shim *s)
{
    s->ending = true;
}

void shim_run(struct shim *s)
{
    enum { MAX_FDS = 64, FIXED = 5 };
    bool seen_end = false;

    while (!s->ending) {
        struct pollfd p[MAX_FDS];
        struct client *of[MAX_FDS];
        struct client *c;
        int n = FIXED;
        p[0] = (struct pollfd){.fd = s->mailbox.fd, .events = POLLIN};
        p[1] = (struct pollfd){.fd = s->listen_fd, .events = POLLIN};
        p[2] = (struct pollfd){.fd = s->signal_fd, .events = POLLIN};
        p[3] = (struct pollfd){.fd = seen_end ? -1 : s->qemu.pidfd, .events = POLLIN};
        /* While a migration talks to QEMU its own thread reads the events. */
        p[4] =
            (struct pollfd){.fd = s->migration || s->incoming ? -1 : s->qemu.qmp.conn.fd, .events = POLLIN};
        TAILQ_FOREACH (c, &s->clients, link) {
            if (n == MAX_FDS)
                break;
            of[n] = c;
            /* TAILQ_REMOVE is not followed: NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
            p[n++] = (struct pollfd){.fd = c->conn.fd, .events = POLLIN};
        }
        if (poll(p, (nfds_t)n, -1) < 0)
            continue;
        if (p[3].revents) {
            seen_end = true;
            qemu_ended(s);
        } else if (p[4].revents) {
            qmp_pump(&s->qemu.qmp, 0, NULL);
        }
        for (int i = FIXED; i < n; i++) {
            if (p[i].revents)
                client_read(s, of[i]);
        }
        if (p[1].revents)
            client_accept(s);
        if (p[0].revents)
            xm_mailbox_run(&s->mailbox);
        if (p[2].revents) {
            xm_log(XM_LOG_WARN, "VM %s: told to end by a signal", s->vm.name);
            if (s->migration)
                migration_abort(s->migration, "the shim was told to end");
            shim_end(s);
        }
    }
    if (s->migration)
        migration_join(s);
    xm_mailbox_run(&s->mailbox); /* last events */
}

/* An incoming migration that did not end with the VM here leaves nothing behind. */
static void delete_created(struct shim *s)
{
    size_t i;
    json_t *path;

    json_array_foreach (s->created, i, path) {
        if (s->role == SHIM_INCOMING && unlink(json_string_value(path)) < 0 && errno != ENOENT)
            xm_log(XM_LOG_WARN, "VM %s: cannot delete %s: %s", s->vm.name, json_string_value(path),
                   strerror(errno));
    }
    if (s->created && s->role == SHIM_INCOMING) {
        struct owner_record rec;
        char *spec = xm_printf("%s/spec.json", s->state_dir);
        char *record = xm_printf("%s/owner.json", s->state_dir);
        unlink(spec);
        if (owner_load(s->state_dir, s->vm.name, &rec, NULL) == -ENOENT)
            unlink(record);  /* without a record in it */
        rmdir(s->state_dir); /* stays when there is a record of an earlier stay */
        free(record);
        free(spec);
    }
    json_decref(s->created);
    s->created = NULL;
}

void shim_free(struct shim *s)
{
    if (s->incoming)
        incoming_free(s->incoming);
    s->incoming = NULL;
    if (s->qemu.pid > 0)
        qemu_end(&s->qemu, &s->vm);
    for (unsigned i = 0; i < s->disks; i++)
        shim_disk_stop(&s->disk[i]);
    xm_ram_close(&s->ram);
    delete_created(s);
    while (!TAILQ_EMPTY(&s->clients))
        client_drop(s, TAILQ_FIRST(&s->clients)); /* NOLINT(clang-analyzer-unix.Malloc): likewise */
    json_decref(s->last_event);
    if (s->listen_fd >= 0) {
        char *path = xm_printf("%s/shim.sock", s->run_dir);
        unlink(path);
        free(path);
        close(s->listen_fd);
        xm_mailbox_destroy(&s->mailbox);
    }
    if (s->signal_fd >= 0)
        close(s->signal_fd);
    vm_spec_free(&s->vm);
    free(s->host);
    free(s->run_dir);
    free(s->state_dir);
}
