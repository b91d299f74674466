/* SPDX-License-Identifier: MIT */
/* What goes wrong, and when: at the points that a plan names (every step in turn), or at chance. What was
 * killed or cut comes back after a while, at the latest when the world is healed. */
#include "tests/sim/sim.h"

#include <string.h>

const char *const fault_names[FAULTS] = {
    "kill agent", "kill shim", "kill QEMU", "end shim",     "end QEMU",     "stop agent",
    "stop shim",  "stop QEMU", "power cut", "partition",    "guest off",    "force",
    "abort",      "recover",   "start",     "kill command", "declared dead"};

struct planned plan[PLANNED_MAX];
unsigned planned;
enum plan_of plan_of;

static unsigned left; /* of those at chance */
static unsigned long next_at;

void faults_reset(unsigned random_ones)
{
    left = random_ones;
    next_at = left ? 1 + below(700) : 0;
}

/* ---- what comes back ---- */

static void agent_back(void *arg)
{
    struct host *h = arg;

    if (h->on && (!h->agent || !h->agent->alive))
        agent_begin(h);
}

static void power_back(void *arg)
{
    struct host *h = arg;

    if (!h->on)
        host_on(h);
}

static void network_back(void *unused)
{
    (void)unused;
    set_partition(false);
}

static void goes_on(void *arg)
{
    proc_stop(arg, false);
}

static uint64_t a_while(void)
{
    switch (below(4)) {
    case 0:
        return between(1, 200) * MS;
    case 1:
        return between(200, 3000) * MS;
    default:
        return between(1000, 40000) * MS;
    }
}

void heal(void)
{
    w.ending = true;
    w.points_of_script = w.points;
    set_partition(false);
    for (int i = 0; i < w.hosts; i++) {
        power_back(&w.host[i]);
        agent_back(&w.host[i]);
    }
    for (struct proc *p = w.procs; p; p = p->next)
        proc_stop(p, false);
}

/* ---- faults ---- */

static void command(struct host *h, const char *verb, bool force)
{
    operator_asks(h, json_pack("{s:s, s:s, s:b}", "verb", verb, "vm", VM, "force", force));
}

static void stop(struct proc *p)
{
    if (!p)
        return;
    after(a_while(), goes_on, p);
    proc_stop(p, true);
}

static void declared(void *arg)
{
    struct host *dead = arg, *other = other_host(arg);

    for (int i = 0; i < w.hosts; i++) {
        if (&w.host[i] != dead && !w.host[i].on) /* it may have the VM, and nothing to ask others for */
            return;
    }
    if (w.ending || !other->on || (w.hosts > 2 && w.partitioned)) /* who is cut off is not dead */
        return;
    /* Who was declared dead itself first hears what became of the VM meanwhile. */
    if (other->returned && check_unrest(other))
        return;
    other->returned = false;
    dead->returned = true;
    w.word_given = true;
    operator_asks(other, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", VM, "peer_is_dead", 1));
}

/* It may not reach the other one at first, and its operator knows of nothing. */
static void returns(void *arg)
{
    const struct host *h = arg;

    set_partition(!w.ending && w.points % 2);
    if (w.hosts > 2 && w.partitioned)
        w.alone = h->number;
    power_back(arg);
}

static void started(void *arg)
{
    if (!w.ending)
        command(arg, "start", false);
}

static void declare_dead(struct host *h)
{
    w.may_be_stopped = true;
    w.busy_until = sim_time() + 60 * SEC;
    after(12 * SEC, declared, h);
    after(45 * SEC, returns, h);
    after(46 * SEC, started, h);
    after(57 * SEC, network_back, NULL);
    host_cut(h); /* does not return to who runs there */
}

static void kill_agent(struct host *h)
{
    if (!h->agent || !h->agent->alive)
        return;
    after(between(50, 4000) * MS, agent_back, h);
    proc_kill(h->agent, "by a fault");
}

void fault_do(enum fault f, struct host *h)
{
    struct proc *shim = proc_find(h, SHIM), *qemu = proc_find(h, QEMU);

    sim_trace("fault: %s at %s", fault_names[f], h->name);
    switch (f) {
    case KILL_AGENT:
        kill_agent(h);
        break;
    case KILL_SHIM:
        if (shim)
            proc_kill(shim, "by a fault");
        break;
    case KILL_QEMU:
        if (qemu) {
            w.may_be_stopped = true;
            proc_kill(qemu, "by a fault");
        }
        break;
    case TERM_SHIM:
        if (shim) {
            w.may_be_stopped = true;
            proc_term(shim);
        }
        break;
    case TERM_QEMU:
        if (qemu) {
            w.may_be_stopped = true;
            proc_term(qemu);
        }
        break;
    case STOP_AGENT:
        stop(h->agent);
        break;
    case STOP_SHIM:
        stop(shim);
        break;
    case STOP_QEMU:
        stop(qemu);
        break;
    case POWER_CUT:
        w.may_be_stopped = true;
        after(a_while(), power_back, h);
        host_cut(h);
        break;
    case PARTITION:
        after(a_while(), network_back, NULL);
        set_partition(true);
        break;
    case GUEST_OFF:
        if (qemu && qemu->qemu->running && !qemu->stopped) {
            w.may_be_stopped = true;
            qemu_exit(qemu, true);
        }
        break;
    case FORCE_STOP:
        w.may_be_stopped = true;
        command(h, "stop", true);
        break;
    case ABORT:
        operator_abort(h);
        break;
    case RECOVER:
        command(h, "recover", false);
        break;
    case START:
        command(h, "start", false);
        break;
    case KILL_CLI: {
        struct proc *p = proc_find(h, CLI);
        if (p)
            proc_kill(p, "by a fault");
        break;
    }
    case DECLARED_DEAD:
        declare_dead(h);
        break;
    case FAULTS:
        break;
    }
}

void fault_point(const char *what)
{
    (void)what;
    if (w.ending)
        return;
    for (unsigned i = 0; i < planned; i++) {
        if (plan[i].point == w.points)
            fault_do(plan[i].fault, &w.host[plan[i].host]);
    }
    if (left && w.points >= next_at) {
        enum fault f = (enum fault)below(w.hosts > 2 ? FAULTS : DECLARED_DEAD);
        struct host *h = &w.host[below((uint64_t)w.hosts)];
        /* Some faults come in pairs, a few steps apart. */
        next_at = w.points + 1 + (chance(400) ? below(20) : below(500));
        left--;
        fault_do(f, h);
    }
}
