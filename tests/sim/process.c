/* SPDX-License-Identifier: MIT */
/* Hosts, and the processes on them: how an agent and a shim are started, and all the ways in which they
 * end. */
#include "tests/sim/sim.h"
#include "agent/inventory.h"
#include "shim/shim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct world w;

struct host *other_host(const struct host *h)
{
    return &w.host[(h->number + 1 + (w.hosts > 2 ? (int)below(2) : 0)) % w.hosts];
}

bool reachable(const struct host *a, const struct host *b)
{
    bool cut = w.partitioned && (w.hosts == 2 || a->number == w.alone || b->number == w.alone);

    return a == b || (!cut && a->on && b->on);
}

void set_partition(bool yes)
{
    if (w.partitioned == yes)
        return;
    w.partitioned = yes;
    if (yes && w.hosts > 2)
        w.alone = (int)below(3);
    sim_trace("the network is %s%s", yes ? "cut" : "whole", yes && w.hosts > 2 ? w.host[w.alone].name : "");
    sockets_of_network_changed();
    links_network_changed();
}

/* ---- processes ---- */

struct proc *proc_new(enum proc_kind kind, struct host *h)
{
    struct proc *p = sim_alloc(sizeof *p);
    static pid_t last;

    last = w.procs ? last + 1 : 1001;
    *p = (struct proc){.kind = kind, .host = h, .pid = last, .alive = true, .next = w.procs};
    w.procs = p;
    return p;
}

struct proc *proc_of(pid_t pid)
{
    for (struct proc *p = w.procs; p; p = p->next) {
        if (p->pid == pid && p->alive)
            return p;
    }
    return NULL;
}

struct proc *proc_find(struct host *h, enum proc_kind kind)
{
    for (struct proc *p = w.procs; p; p = p->next) {
        if (p->host == h && p->kind == kind && p->alive)
            return p;
    }
    return NULL;
}

static const char *const kinds[] = {"agent", "shim", "QEMU", "command"};

static void gone(struct proc *p, bool power)
{
    p->alive = false;
    if (p->kind == AGENT)
        p->host->listening = false;
    links_process_gone(p, power);
    if (!power || !p->host->on)
        fds_close_all(p);
    task_wake(p);
    if (p->qemu && p->qemu->monitor)
        obj_put(p->qemu->monitor);
    sockets_of_process_gone(p);
    struct proc *q = p->kind == SHIM ? proc_find(p->host, QEMU) : NULL;
    if (q && q->qemu->incoming && !strcmp(q->qemu->status, "active"))
        qemu_exit(q, false); /* its stream has ended: as QEMU does */
    tasks_drop(p);           /* the current one does not come back */
}

void proc_kill(struct proc *p, const char *how)
{
    if (!p->alive)
        return;
    sim_trace("%s's %s (%d) is killed %s", p->host->name, kinds[p->kind], p->pid, how);
    gone(p, false);
}

void proc_exit(void)
{
    gone(proc_current(), false);
    abort();
}

void proc_term(struct proc *p)
{
    if (!p->alive)
        return;
    sim_trace("%s's %s (%d) is told to end", p->host->name, kinds[p->kind], p->pid);
    p->term = true;
    if (p->kind == QEMU)
        qemu_exit(p, false);
    else if (p->signals)
        obj_changed(p->signals);
    else
        gone(p, false);
}

void proc_stop(struct proc *p, bool stop)
{
    if (!p->alive || p->stopped == stop)
        return;
    sim_trace("%s's %s (%d) is %s", p->host->name, kinds[p->kind], p->pid, stop ? "stopped" : "continued");
    p->stopped = stop;
    tasks_freeze(p, stop);
    links_network_changed();
}

/* ---- the agent ---- */

/* As serve() of agent/conn.c does it. */
static void *serve_main(void *arg)
{
    struct obj *end = arg;
    struct agent *a = proc_current()->agent;
    struct conn c = {.agent = a, .peer = end->network};
    struct xm_error e;
    json_t *request;

    xm_jsonl_init(&c.js, end->server_fd);
    if (c.peer)
        address_parse(&c.from, end->far->address);
    while (!c.dead && (request = xm_jsonl_recv(&c.js, NEVER, &e))) {
        c.agent->unix_conns++; /* what a request is being served for is no rest */
        json_t *answer = verb_run(&c, request);
        c.agent->unix_conns--;
        conn_event(&c, answer);
        json_decref(request);
    }
    xm_jsonl_close(&c.js);
    return NULL;
}

void agent_connected(struct host *h, struct obj *end)
{
    task_new(h->agent, serve_main, end);
}

static void *link_main(void *arg)
{
    struct obj *end = arg;
    struct agent *a = proc_current()->agent;
    struct address from;
    char token[80], name[80];

    sscanf(end->path, "XMIG/1 link %70s %70s", token, name);
    address_parse(&from, end->far->address);
    link_arrived(a, &from, token, name, end->server_fd);
    return NULL;
}

static void preamble_comes(void *arg)
{
    struct obj *end = arg;

    if (!end->proc->alive || end->eof)
        return;
    if (!reachable(end->host, end->far)) {
        after(100 * MS, preamble_comes, end);
        return;
    }
    task_new(end->proc, strncmp(end->path, "XMIG/1 link", 11) ? serve_main : link_main, end);
}

void agent_heard_preamble(struct obj *client, const char *line, size_t len)
{
    struct obj *end = client->peer;

    if (!end)
        return;
    snprintf(end->path, sizeof end->path, "%.*s", (int)len, line);
    after(between(100, 1500) * XM_NS_PER_US, preamble_comes, end);
}

static struct config configuration(struct host *h)
{
    struct config c = {
        .name = strdup(h->name),
        .state_dir = strdup(h->state_dir),
        .run_dir = strdup(h->run_dir),
        .engine = strdup("auto"),
        .shim = strdup("xmigrate-shim"),
        .listen_address = strdup(h->address),
        .port = 7070,
        .storage_migrations = 2,
        .migrations = 4,
        .downtime = 100 * MS,
        .switch_grace = w.grace,
        .link_timeout = 5 * SEC,
        .incoming_silence = 60 * SEC,
        .datastores = 2,
    };

    snprintf(c.datastore[0].name, sizeof c.datastore[0].name, "ds");
    c.datastore[0].path = strdup(h->store);
    c.datastore[0].target = 90;
    c.datastore[0].incoming = true;
    snprintf(c.datastore[1].name, sizeof c.datastore[1].name, "ds2");
    c.datastore[1].path = strdup(h->store2);
    c.datastore[1].target = 90;
    c.datastore[1].incoming = true;
    for (int i = 0; i < w.hosts; i++) {
        struct conf_peer *p = &c.peer[c.peers];
        if (i == h->number)
            continue;
        snprintf(p->name, sizeof p->name, "%s", w.host[i].name);
        p->address = strdup(w.host[i].address);
        p->port = 7070;
        address_parse(&p->parsed, p->address);
        c.peers++;
    }
    return c;
}

/* As agent_run does it, but for its sockets. */
static void *agent_main(void *arg)
{
    struct host *h = arg;
    struct agent *a = calloc(1, sizeof *a);
    struct xm_error e = {0};

    proc_current()->agent = a;
    a->conf = configuration(h);
    a->port = 7070;
    a->lock_fd = -1;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->changed, NULL);
    TAILQ_INIT(&a->vms);
    TAILQ_INIT(&a->jobs);
    LIST_INIT(&a->conns);
    static const char *const below_state[] = {"", "/vms", "/jobs", "/logs", "/left"};
    for (int i = 0; i < 5; i++) {
        char *path = xm_printf("%s%s", h->state_dir, below_state[i]);
        xm_mkdir_all(path, &e);
        free(path);
    }
    char *vms = xm_printf("%s/vms", h->run_dir);
    xm_mkdir_all(vms, &e);
    if (inventory_boot(a, &e) < 0) {
        sim_trace("%s's agent cannot start: %s", h->name, e.text);
        proc_exit();
    }
    left_start(a, &e);
    jobs_load(a);
    vms_adopt(a);
    jobs_settle(a);
    h->listening = true;
    tidy_start(a, &e);
    inventory_autostart(a);
    task_wait(a, NEVER);
    return NULL;
}

void agent_begin(struct host *h)
{
    h->agent = proc_new(AGENT, h);
    h->listening = false;
    sim_trace("%s's agent starts", h->name);
    task_new(h->agent, agent_main, h);
}

/* ---- the shim ---- */

static void say(struct proc *p, const char *text)
{
    p->said = strdup(text);
    task_wake(p);
}

/* As serve() of shim/main_xmigrate_shim.c does it. */
static void *shim_main(void *arg)
{
    struct proc *me = proc_current();
    struct shim *s = calloc(1, sizeof *s);
    struct xm_error e = {0};
    char pid[32];

    (void)arg;
    if (shim_new(s, me->config, &e) < 0) {
        shim_free(s);
        say(me, e.text);
        proc_exit();
    }
    char *path = xm_printf("%s/shim.pid", s->machine.run_dir);
    int r = xm_file_replace(path, pid, (size_t)snprintf(pid, sizeof pid, "%d\n", me->pid), &e);
    me->shim = s;
    if (!r)
        r = shim_start(s, &e);
    say(me, r ? e.text : "ok");
    if (!r)
        shim_run(s);
    shim_free(s);
    sim_trace("%s's shim (%d) ends", me->host->name, me->pid);
    proc_exit();
}

int __wrap_xm_run(const char *const argv[], uint64_t timeout, char **out, struct xm_error *e)
{
    struct host *h = proc_current()->host;
    uint64_t deadline = sim_time() + timeout;

    (void)out;
    if (argv[2]) /* --clean-up: taps, of which there are none */
        return 0;
    sim_point("start shim");
    struct proc *p = proc_new(SHIM, h);
    p->config = strdup(argv[1]);
    p->cmdline_len = (size_t)snprintf(p->cmdline, sizeof p->cmdline, "xmigrate-shim%c%s", 0, argv[1]) + 1;
    task_new(p, shim_main, NULL);
    while (!p->said && p->alive && sim_time() < deadline)
        task_wait(p, deadline);
    if (p->said && !strcmp(p->said, "ok"))
        return 0;
    if (!p->said && p->alive) /* who waited for its word is ended, not the shim */
        return xm_error_set(e, ETIMEDOUT, "the shim does not come up");
    return xm_error_set(e, EIO, "%s",
                        p->said ? p->said : "the shim ended before it said why; see its shim.log");
}

/* ---- hosts ---- */

void host_on(struct host *h)
{
    h->on = true;
    h->boots++;
    sim_trace("%s is switched on", h->name);
    agent_begin(h);
    sockets_of_network_changed();
}

void host_cut(struct host *h)
{
    if (!h->on)
        return;
    sim_trace("%s loses its power", h->name);
    h->on = false;
    struct proc *self = proc_current();
    for (struct proc *p = w.procs; p; p = p->next) {
        if (p->host != h || !p->alive || p == self)
            continue;
        p->alive = false;
        links_process_gone(p, true);
        fds_close_all(p);
        tasks_drop(p);
    }
    h->listening = false;
    files_power_cut(h);
    sockets_of_network_changed();
    links_network_changed();
    if (self && self->host == h)
        gone(self, true);
}
