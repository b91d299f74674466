/* SPDX-License-Identifier: MIT */
/* Runs: one seed each, or every fault at every step of a move in turn; then rules are broken on purpose,
 * and each has to be noticed.
 *
 *   sim                 the regressions, each fault at every other step, SEEDS seeds with two hosts and
 *                       a sixth of that with three, the sins
 *   sim -n N -f F       N seeds, from F on           sim -3     three hosts alone
 *   sim -2              each at each step, and every two of some kinds, a few steps apart
 *   sim -s              without the sins             sim -S     the seeds alone
 *   sim -x              the sins alone
 *   sim -k              goes on after what it finds    sim -l     each seed with several commands and a
 * move at the end
 *   XM_SIM_SEED=S sim -v                 one seed, told event by event
 *   XM_SIM_PLAN=P:FAULT:HOST[,...] sim -v   one move with these faults, likewise
 *   XM_SIM_OF=1                          ... and that is one of the disks alone
 *   XM_SIM_OF=2                          ... or one that needs two switch-overs
 *   XM_SIM_SIN=K                         with the K-th sin */
#include "tests/sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__ /* each costs ten times as much */
#define SEEDS 5000
#else
#define SEEDS 18000 /* and a sixth of that with three hosts */
#endif

enum sin sin_committed;
static uint64_t dice;
static bool all_full; /* each seed is: for the long run */
static bool three;    /* hosts, in runs by seed */
static bool go_on;    /* after what was found, to see how much there is of it */

int __real_clock_gettime(clockid_t, struct timespec *);

/* ---- chance ---- */

uint64_t sim_random(void)
{
    uint64_t z = dice += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t below(uint64_t n)
{
    return n ? sim_random() % n : 0;
}

uint64_t between(uint64_t low, uint64_t high)
{
    return low + below(high - low + 1);
}

bool chance(unsigned per_mille)
{
    return per_mille && below(1000) < per_mille;
}

/* ---- the trace ---- */

void sim_trace(const char *fmt, ...)
{
    struct proc *p = proc_current();
    static const char *const kinds[] = {"agent", "shim", "QEMU", "command"};
    uint64_t t = sim_time() - 1000 * SEC;
    va_list ap;

    if (!w.verbose)
        return;
    printf("%8.3f %5lu %s %-7s ", (double)(t / 1000) / 1e6, w.points, p ? p->host->name : "-",
           p ? kinds[p->kind] : "");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

void sim_point(const char *what)
{
    struct proc *p = proc_current();

    if (!p || p->kind == CLI)
        return;
    if (w.begun) {
        w.points++;
        fault_point(what);
    }
    while (p->stopped)
        task_sleep(1000);
    if (chance(w.preempt))
        task_sleep(below(4 * MS));
}

/* ---- one run ---- */

static const char spec[] =
    "{\"name\":\"" VM
    "\",\"memory\":134217728,\"vcpus\":1,\"qemu\":\"qemu-system-x86_64\",\"machine\":\"q35\","
    "\"accel\":\"tcg\",\"cpu\":\"max\",%s\"disks\":[{\"name\":\"root\",\"path\":\"/A/ds/" VM "-root.raw\","
    "\"size\":67108864,\"datastore\":\"ds\",\"queues\":1}],\"nics\":[]}";

static void make_host(int i)
{
    static const char *const names[HOSTS] = {"A", "B", "C"};
    struct host *h = &w.host[i];
    char path[64];

    *h = (struct host){.number = i, .name = names[i]};
    snprintf(h->address, sizeof h->address, "10.0.0.%d", i + 1);
    snprintf(h->state_dir, sizeof h->state_dir, "/%s/state", h->name);
    snprintf(h->run_dir, sizeof h->run_dir, "/%s/run", h->name);
    snprintf(h->store, sizeof h->store, "/%s/ds", h->name);
    snprintf(h->store2, sizeof h->store2, "/%s/ds2", h->name);
    snprintf(path, sizeof path, "/%s", h->name);
    file_make_dir(h, path);
    file_make_dir(h, h->state_dir);
    file_make_dir(h, h->run_dir);
    file_make_dir(h, h->store);
    file_make_dir(h, h->store2);
    snprintf(path, sizeof path, "%s/.xmigrate-datastore", h->store); /* as agent/datastore.c marks them */
    file_put(h, path, "", 0);
    snprintf(path, sizeof path, "%s/.xmigrate-datastore", h->store2);
    file_put(h, path, "", 0);
    snprintf(path, sizeof path, "%s/vms", h->state_dir);
    file_make_dir(h, path);
}

static void make_vm(struct host *h)
{
    struct owner_record rec = {.epoch = 1, .owner = OWNER_MINE, .settled = true};
    char text[1000], path[64];

    snprintf(path, sizeof path, "%s/vms/" VM, h->state_dir);
    file_make_dir(h, path);
    files_as(h);
    sin_committed = NO_SIN;
    owner_save(path, VM, &rec, NULL);
    files_as(NULL);
    snprintf(path, sizeof path, "%s/vms/" VM "/owner.json", h->state_dir);
    struct inode *i = file_find(h, path);
    file_put(h, path, i->data, i->len);
    snprintf(path, sizeof path, "%s/vms/" VM "/spec.json", h->state_dir);
    file_put(h, path, text,
             (size_t)snprintf(text, sizeof text, spec, w.autostart ? "\"autostart\":true," : ""));
    file_put_disk(h, "/A/ds/" VM "-root.raw", 67108864, 0);
}

/* What kind of a world this seed has. */
static void draw(void)
{
    static const unsigned rates[] = {0, 0, 20, 200};

    w.preempt = rates[below(4)];
    w.slow = chance(250) ? (unsigned)below(60) : 0;
    w.duplicate = chance(300) ? 30 : 0;
    w.write_errors = chance(w.hosts > 2 ? 400 : 150) ? 5 + (unsigned)below(60) : 0;
    w.read_errors = chance(100) ? 20 + (unsigned)below(200) : 0;
    w.refusals = chance(100) ? 300 : 0;
    w.refuse_run = chance(100) ? 500 : 0;
    w.grace = chance(600) ? between(100, 3000) * MS : 0;
    w.late = chance(300) ? 100 + (unsigned)below(600) : 0;
}

static bool run(uint64_t seed, bool verbose)
{
    enum sin sin = sin_committed;
    bool by_plan = planned > 0;

    memory_reset();
    memset(&w, 0, sizeof w);
    w.verbose = verbose;
    w.seed = seed;
    w.hosts = by_plan || !three ? 2 : 3;
    dice = seed * 0x2545f4914f6cdd1du + 12345;
    tasks_reset();
    fds_reset();
    files_reset();
    links_reset();
    operator_reset();
    for (int i = 0; i < w.hosts; i++)
        make_host(i);
    w.autostart = !by_plan && chance(300);
    w.full = by_plan || chance(all_full ? 1000 : 200);
    w.grace = by_plan && plan_of == LATE_MOVE ? 2 * SEC : 0;
    make_vm(&w.host[0]);
    sin_committed = sin;
    if (!by_plan)
        draw();
    if (sin == RECORD_ERROR_IS_NOT_OURS) /* there are few otherwise */
        w.read_errors = 300;
    faults_reset(by_plan || chance(50) ? 0 : (unsigned)between(1, three ? 8 : 5));
    guest_reset();
    for (int i = 0; i < w.hosts; i++)
        host_on(&w.host[i]);
    tasks_run(sim_time() + 200 * MS, NULL);
    if (!w.failed)
        operator_script();
    if (!w.failed) {
        sim_trace("the world is healed");
        heal();
        tasks_run(sim_time() + 2 * SEC, NULL); /* what was held up on its way arrives */
        check_end();
    }
    return !w.failed;
}

static double seconds(void)
{
    struct timespec ts;

    __real_clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- seeds ---- */

static int seeds(uint64_t first, uint64_t count)
{
    unsigned long points = 0, done = 0, failed_jobs = 0;
    double began = seconds();

    planned = 0;
    for (uint64_t s = first; s < first + count; s++) {
        if (!run(s, false)) {
            printf("seed %llu: %s\n  XM_SIM_SEED=%llu %s -v%s%s tells how\n", (unsigned long long)s,
                   w.violation, (unsigned long long)s, program_invocation_name, three ? " -3" : "",
                   all_full ? " -l" : "");
            if (!go_on)
                return 1;
        }
        points += w.points;
        done += w.jobs_done;
        failed_jobs += w.jobs_failed;
    }
    printf("%llu seeds%s, %lu points, %lu moves done, %lu failed, in %.1f s\n", (unsigned long long)count,
           three ? " with three hosts" : "", points, done, failed_jobs, seconds() - began);
    return 0;
}

/* ---- every step ---- */

static const char *const plan_names[PLANS_OF] = {"a move", "a move of the disks alone",
                                                 "a move whose first switch-over takes too long"};

static bool planned_run(void)
{
    return run(4711, false);
}

static int tell_plan(void)
{
    printf("%s with", plan_names[plan_of]);
    for (unsigned i = 0; i < planned; i++)
        printf("%s «%s» on %s at point %lu", i ? "," : "", fault_names[plan[i].fault],
               plan[i].host ? "B" : "A", plan[i].point);
    printf(": %s\n  XM_SIM_OF=%d XM_SIM_PLAN=", w.violation, (int)plan_of);
    for (unsigned i = 0; i < planned; i++)
        printf("%s%lu:%d:%d", i ? "," : "", plan[i].point, (int)plan[i].fault, plan[i].host);
    printf(" %s -v tells how\n", program_invocation_name);
    return 1;
}

static int every_step(bool twice, enum plan_of of)
{
    double began = seconds();
    unsigned long runs = 0;

    plan_of = of;
    planned = 1;
    plan[0] = (struct planned){.point = NEVER >> 1};
    if (!planned_run())
        return tell_plan();
    unsigned long steps = w.points_of_script, first = XM_MAX(w.late_at, 1ul);
    for (unsigned long point = first; point <= steps; point++) {
        for (int f = 0; f < 2 * FAULTS; f += 1 + (of == DISKS_MOVE)) { /* that is one host's own */
            if (!twice && (point + (unsigned)f / 2) % 2) /* a kind at every other step; long.sh has all */
                continue;
            runs++;
            planned = 1;
            plan[0] = (struct planned){point, (enum fault)(f / 2), f % 2};
            if (!planned_run() && tell_plan() && !go_on)
                return 1;
            for (int g = 0; twice && g < 2 * (PARTITION + 1); g++) {
                for (unsigned long later = 1; later <= 24; later += 1 + (later > 6) * 5, runs++) {
                    planned = 2;
                    plan[1] = (struct planned){point + later, (enum fault)(g / 2), g % 2};
                    if (f / 2 <= PARTITION && !planned_run() && tell_plan() && !go_on)
                        return 1;
                }
            }
        }
    }
    plan_of = WHOLE_MOVE;
    printf("%d faults at %s of %lu steps of %s, on %s%s: %lu runs in %.1f s\n", FAULTS,
           twice ? "each" : "every other", steps - first + 1, plan_names[of],
           of == DISKS_MOVE ? "its host" : "each host", twice ? ", and two of them" : "", runs,
           seconds() - began);
    return 0;
}

/* ---- what was found ---- */

/* Runs in which the product went wrong before it was mended, named after what broke. What a seed does
 * changes with the simulator; each of these was also found by the search that goes over every step. */
static const struct {
    uint64_t seed;
    enum { AS_IS = 0, FULL = 1, THREE = 2 } how; /* as -l runs it; with three hosts */
    const char *what;
} found[] = {
    {9580, AS_IS,
     "handing back could not be written, and nobody wrote it again: the VM was nobody's for good"},
    {17710, AS_IS,
     "an agent that had just started took a silent shim for idle, and forgot the journal of its migration"},
    {2056, AS_IS, "a new shim ended a QEMU that hung, and its guest with it"},
    {14763, AS_IS, "«settled» was recorded, the agent ended, and QEMU and disk stayed for ever"},
    {1618, AS_IS, "a destination's shim died before cont: neither start nor recover brought the VM back"},
    {3175, AS_IS, "who waited for the end of an orphan took the next migration for it"},
    {8272, AS_IS,
     "a VM that had ended was started anew, and moved by a job that nobody told of it: it went on for ever"},
    {7553, AS_IS,
     "recover and the watcher each started a shim for a QEMU that had lost its own; its job went on "
     "for ever"},
    {11912, AS_IS, "a run directory was left by a prepare that failed while its shim was ending"},
    {36570, AS_IS,
     "a move that failed at once forgot the journal of the one before it: the old disk was left for good"},
    {15551, AS_IS,
     "what was to end a migration that came in ended the one that the VM went out by, a moment later"},
    {144538, FULL,
     "the swap of a disk's files could not be recorded, and the guest powered off: no start worked"},
    {25983, FULL | THREE,
     "what was whole at both hosts ended at one while the other was asked: a reboot for nothing"},
    {537131, FULL,
     "a word that the last hand-off was settled came late, and ended the journal of the next one"},
};

static int regressions(void)
{
    bool long_run = all_full, were_three = three;

    planned = 0;
    for (size_t i = 0; i < sizeof found / sizeof *found; i++) {
        all_full = found[i].how & FULL;
        three = found[i].how & THREE;
        if (!run(found[i].seed, false)) {
            printf("again: %s (seed %llu): %s\n", found[i].what, (unsigned long long)found[i].seed,
                   w.violation);
            return 1;
        }
    }
    all_full = long_run;
    three = were_three;
    printf("%zu regressions\n", sizeof found / sizeof *found);
    return 0;
}

/* ---- sins ---- */

static const char *const sin_names[SINS] = {
    [RECORD_UNSYNCED] = "a record is not made durable",
    [RECORD_ERROR_IS_NOT_OURS] = "a record that cannot be read counts as none",
    [NO_PROMISE] = "the destination forgets what it has promised",
    [RUN_WITHOUT_MINE] = "the destination runs and has not recorded it",
    [NO_JOURNAL] = "what is made is not written down first",
    [DELETE_BEFORE_SETTLED] = "the source deletes before it is settled",
    [ACKNOWLEDGE_WITHOUT_RUN] = "the destination acknowledges what it could not run",
    [TIE_TO_US] = "of two records of one epoch ours counts",
    [SILENCE_IS_MINE] = "a peer that does not answer has kept the VM",
    [JOURNAL_IS_ENOUGH] = "the journal's files are deleted without asking the record",
    [GIVEN_RESUMES] = "a source that hears nothing goes on",
    [NO_SETTLING] = "nobody settles what was left open",
    [LOAD_BEFORE_PAGES] = "device state is loaded before all pages are there",
    [PROMISE_STANDS] = "a switch-over is given up, and its promise is not taken back",
    [SWAP_UNRECORDED] = "a disk is swapped before that is recorded",
};

/* Seeds first, with two hosts and with three in turn; what they hardly ever meet, one fault at each step
 * finds. */
static bool sin_found(enum sin sin)
{
    enum { TRIES = 6000 };

    planned = 0;
    sin_committed = sin;
    for (uint64_t seed = 1; seed <= TRIES; seed++) {
        three = seed % 2 == 0;
        bool good = run(seed, false);
        three = false;
        if (!good) {
            printf("sin %d, «%s»: seed %llu%s: %s\n", (int)sin, sin_names[sin], (unsigned long long)seed,
                   w.hosts > 2 ? " (-3)" : "", w.violation);
            return true;
        }
    }
    planned = 1;
    for (unsigned long point = 1; point < 200; point++) {
        for (int f = 0; f < 2 * FAULTS; f++) {
            plan[0] = (struct planned){point, (enum fault)(f / 2), f % 2};
            if (!planned_run()) {
                printf("sin %d, «%s»: ", (int)sin, sin_names[sin]);
                tell_plan();
                return true;
            }
        }
    }
    return false;
}

static int sins(void)
{
    int missed = 0;

    for (int s = NO_SIN + 1; s < SINS; s++) {
        if (!sin_found((enum sin)s)) {
            printf("sin %d, «%s», was not noticed\n", s, sin_names[s]);
            missed++;
        }
    }
    sin_committed = NO_SIN;
    return missed > 0;
}

/* ---- the program ---- */

static void read_plan(const char *text)
{
    int fault, n;

    for (planned = 0; planned < PLANNED_MAX &&
                      sscanf(text, "%lu:%d:%d%n", &plan[planned].point, &fault, &plan[planned].host, &n) == 3;
         planned++) {
        plan[planned].fault = (enum fault)fault;
        text += n + (text[n] == ',');
    }
}

int main(int argc, char **argv)
{
    const char *seed = getenv("XM_SIM_SEED"), *steps = getenv("XM_SIM_PLAN"), *sin = getenv("XM_SIM_SIN");
    const char *of = getenv("XM_SIM_OF");
    uint64_t count = SEEDS, first = 1;
    bool verbose = false, twice = false, steps_too = true, sins_too = true;
    bool only_sins = false;
    int opt;

    while ((opt = getopt(argc, argv, "vklxn:f:23sS")) != -1) {
        sins_too &= opt != 's' && opt != 'S';
        steps_too &= opt != 'S';
        go_on |= opt == 'k';
        all_full |= opt == 'l';
        verbose |= opt == 'v';
        twice |= opt == '2';
        three |= opt == '3';
        if (opt == 'n')
            count = strtoull(optarg, NULL, 10);
        if (opt == 'f')
            first = strtoull(optarg, NULL, 10);
        only_sins |= opt == 'x';
        if (opt == '?')
            return 2;
    }
#ifdef __SANITIZE_THREAD__
    printf("skipped: the thread sanitizer does not know the simulator's threads\n");
    return 0;
#endif
    json_object_seed(1);
    json_set_alloc_funcs(malloc, free);
    if (sin)
        sin_committed = (enum sin)atoi(sin);
    plan_of = of && atoi(of) < PLANS_OF ? (enum plan_of)atoi(of) : WHOLE_MOVE;
    if (seed || steps) {
        if (steps)
            read_plan(steps);
        bool good = run(seed ? strtoull(seed, NULL, 10) : 4711, verbose);
        printf("%s\n", good ? "good" : w.violation);
        return !good;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    int r = steps_too && !only_sins ? regressions() : 0;
    for (int p = WHOLE_MOVE; p < PLANS_OF && !r && steps_too && !only_sins; p++)
        r = every_step(twice, (enum plan_of)p);
    if (!r && count && !only_sins)
        r = seeds(first, count);
    if (!r && count > 1 && !only_sins && !three) {
        three = true;
        r = seeds(first, count / 6);
        three = false;
    }
    if (!r && sins_too)
        r = sins();
    return r;
}
