/* SPDX-License-Identifier: MIT */
/* People at their consoles: the commands of xmigrate(1), said to either agent, in an order that chance
 * gives them; and at the end, in a world that is whole again, what the manual says to bring the VM back.
 */
#include "tests/sim/sim.h"
#include "agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *said;
static unsigned asking;
static char job[16];
static struct host *job_host;

void operator_reset(void)
{
    said = NULL;
    asking = 0;
    job[0] = 0;
    job_host = NULL;
}

bool operator_waits(void)
{
    return asking > 0;
}

json_t *operator_said(void)
{
    return said;
}

struct question {
    struct host *host;
    json_t *request;
    bool counted;
};

/* As the command does it: to the agent's socket, until the last answer. */
static void *command_main(void *arg)
{
    struct question *q = arg;
    struct xm_jsonl js;
    struct xm_error e = {0};
    char path[64];
    json_t *o = NULL;

    snprintf(path, sizeof path, "%s/agent.sock", q->host->run_dir);
    int fd = xm_unix_connect(path, &e);
    if (fd >= 0) {
        xm_jsonl_init(&js, fd);
        xm_jsonl_send(fd, json_deep_copy(q->request), -1, &e);
        while ((o = xm_jsonl_recv(&js, NEVER, &e)) && json_object_get(o, "event")) {
            const char *event = xm_json_str(o, "event", "");
            if (!strcmp(event, "job")) {
                snprintf(job, sizeof job, "%s", xm_json_str(o, "job", ""));
                job_host = q->host;
            }
            w.jobs_done += !strcmp(event, "done");
            w.jobs_failed += !strcmp(event, "failed");
            if (w.verbose && strcmp(event, "progress"))
                sim_trace("  %s says: %s", q->host->name, json_dumps(o, JSON_COMPACT));
        }
        xm_jsonl_close(&js);
    }
    said = o ? o : json_pack("{s:b, s:s, s:i}", "ok", 0, "error", e.text, "exit", EXIT_UNKNOWN);
    if (w.verbose)
        sim_trace("%s answers: %s", q->host->name, json_dumps(said, JSON_COMPACT));
    asking -= q->counted;
    q->counted = false;
    proc_exit();
}

static void given_up(void *arg)
{
    struct question *q = arg;

    if (!q->counted)
        return;
    q->counted = false;
    asking--;
}

void operator_asks(struct host *h, json_t *request)
{
    struct question *q = sim_alloc(sizeof *q);

    if (w.verbose)
        sim_trace("xmigrate at %s: %s", h->name, json_dumps(request, JSON_COMPACT));
    *q = (struct question){h, request, true};
    asking++;
    if (!h->on) {
        given_up(q);
        said = json_pack("{s:b, s:s, s:i}", "ok", 0, "error", "the host is off", "exit", EXIT_UNKNOWN);
        return;
    }
    task_new(proc_new(CLI, h), command_main, q);
    after(w.ending ? 400 * SEC : between(200, 40000) * MS, given_up, q);
}

static void ask(struct host *h, const char *verb)
{
    operator_asks(h, json_pack("{s:s, s:s}", "verb", verb, "vm", VM));
}

/* In the end he follows the advice of who was refused for how long the VM's last switches took. */
static void move_to(struct host *h, const struct host *to)
{
    operator_asks(h, json_pack("{s:s, s:s, s:s, s:b, s:{s:i}}", "verb", "move", "vm", VM, "host", to->name,
                               "storage", 1, "options", "downtime_ms", w.ending ? 20000 : 100));
}

/* Returns where to. */
static struct host *move(struct host *h)
{
    struct host *to = other_host(h);

    move_to(h, to);
    return to;
}

static void move_disks(struct host *h, const char *datastore)
{
    operator_asks(h, json_pack("{s:s, s:s, s:s, s:b, s:{}}", "verb", "move", "vm", VM, "datastore", datastore,
                               "storage_only", 1, "options"));
}

void operator_abort(struct host *h)
{
    (void)h;
    if (job[0])
        operator_asks(job_host, json_pack("{s:s, s:s}", "verb", "abort", "job", job));
}

static bool answered(void)
{
    return asking == 0;
}

static void wait_answer(uint64_t ns)
{
    tasks_run(sim_time() + ns, answered);
}

static bool ok(void)
{
    return xm_json_bool(said, "ok", false);
}

/* ---- a run ---- */

static void aborts(void *unused)
{
    (void)unused;
    if (!w.ending)
        operator_abort(NULL);
}

static struct host *living(void)
{
    int i = 0;

    while (i < w.hosts - 1 && !w.host[i].on)
        i++;
    return &w.host[i];
}

/* One is off, and of those that are on none is cut off. */
static bool dead_indeed(void)
{
    bool off = false;

    for (int i = 0; i < w.hosts; i++)
        off |= !w.host[i].on;
    return off && (w.hosts == 2 || !w.partitioned);
}

/* One of three is lost in the middle of things and declared dead; who took the VM gives it on; it returns. */
static void lost_and_back(struct host *h)
{
    wait_answer(below(3 * SEC));
    fault_do(DECLARED_DEAD, h);
    tasks_run(sim_time() + 15 * SEC, NULL);
    wait_answer(20 * SEC);
    struct host *owner = check_owner();
    if (owner && owner->on && chance(700))
        move(owner);
    if (chance(500))
        tasks_run(w.busy_until, NULL);
}

static struct host *giver;

static bool gives(void)
{
    return w.failed || !giver->on || check_gives(giver);
}

/* False: the record could not be read, or there was no room for another one. */
static bool word_about_the_dead(struct host *h)
{
    operator_asks(h, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", VM, "peer_is_dead", 1));
    wait_answer(120 * SEC);
    const char *text = xm_json_str(said, ok() ? "text" : "error", "");
    return !strstr(text, strerror(EIO)) && !strstr(text, strerror(ENOSPC));
}

/* One loses its power as it gives the VM to a second, which is lost in its turn while it gives it to the
 * third. The first comes back, and takes what it gave on its operator's word; the third may be cut off
 * then, and hears of it by another word. The second comes back last. */
static void taken_behind_the_third(struct host *first)
{
    struct host *second = move(first), *third;

    giver = first;
    tasks_run(sim_time() + 5 * SEC, gives);
    if (!first->on || !check_gives(first) || chance(200))
        return;
    w.may_be_stopped = true;
    tasks_run(sim_time() + below(20 * MS), NULL);
    host_cut(first);
    tasks_run(sim_time() + 8 * SEC, NULL);
    if (!w.failed && second->on && check_owner() == second && check_runs(second)) {
        third = &w.host[HOSTS - first->number - second->number];
        move_to(second, third);
        giver = second;
        tasks_run(sim_time() + 5 * SEC, gives);
        tasks_run(sim_time() + below(20 * MS), NULL);
        host_cut(second);
        set_partition(chance(700));
        if (w.partitioned)
            w.alone = third->number;
        if (!first->on)
            host_on(first);
        tasks_run(sim_time() + 5 * SEC, NULL);
        if (third->on && !check_mine(third)) { /* its operator can see that, whoever reaches it */
            w.word_given = second->returned = true;
            word_about_the_dead(first);
        }
        set_partition(false);
        tasks_run(sim_time() + 15 * SEC, NULL);
        bool heard = true;
        if (first->on && !check_mine(third) && !second->on) {
            w.word_given = second->returned = true;
            heard = word_about_the_dead(third);
        }
        tasks_run(sim_time() + 15 * SEC, NULL);
        if (!w.failed && heard && !second->on && first->on && third->on && reachable(first, third) &&
            check_owner() == first && check_superseded(third)) /* not by what the second one still has */
            sim_violated("%s keeps a QEMU of a VM that %s has taken, whatever its operator says", third->name,
                         first->name);
        if (!second->on && !w.failed)
            host_on(second);
    } else if (!first->on) {
        host_on(first);
    }
    wait_answer(20 * SEC);
}

static void one_command(void)
{
    struct host *owner = check_owner(), *h = owner && chance(850) ? owner : &w.host[below((uint64_t)w.hosts)];

    if (w.hosts > 2 && h->on && owner == h && check_runs(h) && chance(60)) {
        taken_behind_the_third(h);
        return;
    }
    if (w.hosts > 2 && h->on && chance(150)) {
        move(h);
        lost_and_back(h);
        return;
    }

    switch (below(20)) {
    case 0:
        w.may_be_stopped = true;
        ask(h, "stop");
        break;
    case 1:
        w.may_be_stopped = true;
        operator_asks(h, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", VM, "force", 1));
        break;
    case 2:
    case 3:
        ask(h, "start");
        break;
    case 4:
    case 5:
        ask(chance(500) ? h : other_host(h), "recover");
        break;
    case 6:
        /* Only of a host that is dead indeed, as far as anybody can see. */
        h = living();
        if (dead_indeed() && !(h->returned && check_unrest(h))) {
            for (int i = 0; i < w.hosts; i++)
                w.host[i].returned |= !w.host[i].on;
            w.word_given = true;
            operator_asks(h, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", VM, "peer_is_dead", 1));
        }
        break;
    case 7:
        if (owner)
            ask(other_host(owner), "undefine");
        break;
    case 8:
    case 9:
    case 10:
        move_disks(h, chance(500) ? "ds" : "ds2");
        if (chance(200))
            after(between(1, 600) * MS, aborts, NULL);
        break;
    default:
        move(h);
        if (chance(200))
            after(between(1, 1200) * MS, aborts, NULL);
    }
}

static bool first_runs(void)
{
    return w.failed || check_runs(&w.host[0]);
}

void operator_script(void)
{
    unsigned commands = 1 + (unsigned)below(w.hosts > 2 ? 7 : w.full ? 4 : 2);

    ask(&w.host[0], "start");
    wait_answer(100 * SEC);
    tasks_run(sim_time() + 20 * SEC,
              first_runs); /* other hosts are asked before, and he may not have waited */
    if (!check_runs(&w.host[0]))
        sim_violated("the VM does not start at first: %s", xm_json_str(said, "error", "?"));
    w.begun = true;
    if (planned) {
        if (plan_of == DISKS_MOVE)
            move_disks(&w.host[0], "ds2");
        else
            move(&w.host[0]);
        wait_answer(60 * SEC);
        tasks_run(sim_time() + between(1, 10) * SEC, NULL);
        if (w.busy_until > sim_time())
            tasks_run(w.busy_until, NULL);
        return;
    }
    for (unsigned i = 0; i < commands && !w.failed; i++) {
        one_command();
        if (chance(750))
            wait_answer(60 * SEC);
        tasks_run(sim_time() + (chance(500) ? below(500 * MS) : below(8 * SEC)), NULL);
    }
    if (w.busy_until > sim_time())
        tasks_run(w.busy_until, NULL);
}

/* ---- what the manual says ---- */

static const char *unrest(void)
{
    static char text[100];

    for (int i = 0; i < w.hosts; i++) {
        const char *why = check_unrest(&w.host[i]);
        if (why) {
            snprintf(text, sizeof text, "%s: %s", w.host[i].name, why);
            return text;
        }
    }
    return NULL;
}

static bool rest(uint64_t ns)
{
    uint64_t until = sim_time() + ns;

    while (!w.failed && (unrest() || asking) && sim_time() < until)
        tasks_run(sim_time() + 300 * MS, NULL);
    return !unrest();
}

/* `recover` at both; where that says «start it there», that is done. */
static void recover_everywhere(void)
{
    for (int i = 0; i < w.hosts && !w.failed; i++) {
        ask(&w.host[i], "recover");
        wait_answer(200 * SEC);
    }
    struct host *owner = check_owner();
    if (owner && !proc_find(owner, QEMU) && w.may_be_stopped) {
        ask(owner, "start");
        wait_answer(200 * SEC);
    }
}

static void guest_goes_on(struct host *h)
{
    uint64_t version = w.version;

    tasks_run(sim_time() + 200 * MS, NULL);
    if (!w.failed && (!check_runs(h) || w.version == version))
        sim_violated("the guest does not run on %s at the end", h->name);
}

/* What a host was asked before links failed may reach it just now, and be done and taken back. */
static void look_for_left(struct host *owner)
{
    if (!w.failed)
        rest(200 * SEC);
    if (!w.failed)
        check_left(owner);
}

void check_end(void)
{
    bool by_itself = rest(200 * SEC);

    for (int i = 0; i < 3 && !w.failed && !by_itself; i++) {
        recover_everywhere();
        by_itself = rest(60 * SEC);
    }
    if (!w.failed && unrest())
        sim_violated("it does not come to rest: %s", unrest());
    struct host *owner = w.failed ? NULL : check_owner();
    if (!w.failed && !owner)
        sim_violated("nobody owns the VM");
    if (w.failed)
        return;
    struct proc *q = proc_find(owner, QEMU);
    if (q && !check_runs(owner)) {
        ask(owner, "recover");
        wait_answer(200 * SEC);
        rest(60 * SEC);
    }
    if (!check_runs(owner) && !w.may_be_stopped)
        sim_violated("the VM is stopped on %s, and nobody has stopped it", owner->name);
    if (!w.failed && !check_runs(owner)) {
        ask(owner, "start");
        wait_answer(200 * SEC);
    }
    bool started = ok();
    rest(200 * SEC);
    if (!w.failed && !started && !check_runs(owner)) /* its agent may just have started it by itself */
        sim_violated("it cannot be started on %s: %s", owner->name, xm_json_str(said, "error", "?"));
    if (w.failed)
        return;
    guest_goes_on(owner);
    look_for_left(owner);
    if (w.failed || !w.full)
        return;
    owner = move(owner);
    wait_answer(200 * SEC);
    rest(60 * SEC);
    if (!w.failed && !ok())
        sim_violated("the next move does not work: %s", xm_json_str(said, "error", "?"));
    if (!w.failed && check_owner() != owner)
        sim_violated("the next move is said to be done, and its destination does not own the VM");
    if (!w.failed)
        guest_goes_on(owner);
    look_for_left(owner);
}
