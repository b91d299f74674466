/* SPDX-License-Identifier: MIT */
/* Rules broken on purpose, one at a time: the simulator has to notice. Without a sin each of these is
 * what it wraps. */
#include "tests/sim/sim.h"
#include "agent/known.h"
#include "migrate/source.h"
#include "shim/shim.h"

#include <string.h>
#include <unistd.h>

int __real_owner_load(const char *, const char *, struct owner_record *, struct xm_error *);
int __real_owner_save(const char *, const char *, const struct owner_record *, struct xm_error *);
int __real_owner_restore(const char *, const char *, const struct owner_record *, struct xm_error *);
int __real_journal_write(const char *, enum journal_side, uint64_t, const char *, const struct owner_record *,
                         const json_t *, struct xm_error *);
int __real_journal_undo(const char *, const char *, struct xm_error *);
int __real_machine_save_spec(struct machine *, struct xm_error *);
void __real_handoff_drive(struct handoff *, struct handoff_actions, const struct handoff_hands *, void *,
                          struct handoff_done *);
enum verdict __real_verdict_of(const char *, const struct owner_record *, const struct owner_record *, bool,
                               uint64_t *, struct xm_error *);
int __real_known_there(struct agent *, const struct conf_peer *, const char *, struct known *,
                       struct xm_error *);
int __real_source_handoff(struct source *);
json_t *__real_settle_claimed(struct agent *, const char *, bool);
json_t *__real_settle(struct agent *, const char *, bool, uint64_t);

static struct task *blind;  /* it undoes, and shall not see the record */
static struct task *misled; /* it has taken nothing back, and shall not see that */

/* Records are read far more often than written: what stood there when nothing has changed since is no
 * other now. */
static int load(const char *dir, const char *vm, struct owner_record *rec, struct xm_error *e)
{
    static struct {
        unsigned long turn;
        uint64_t seed;
        int result;
        struct owner_record rec;
        struct xm_error why;
    } memo[HOSTS];
    int i = dir[1] - 'A';

    if (w.read_errors)
        return __real_owner_load(dir, vm, rec, e);
    if (memo[i].turn != records_turn[i] || memo[i].seed != w.seed) {
        memo[i].why.code = 0;
        memo[i].result = __real_owner_load(dir, vm, &memo[i].rec, &memo[i].why);
        memo[i].turn = records_turn[i];
        memo[i].seed = w.seed;
    }
    *rec = memo[i].rec;
    if (e && memo[i].result)
        *e = memo[i].why;
    return memo[i].result;
}

int __wrap_owner_load(const char *dir, const char *vm, struct owner_record *rec, struct xm_error *e)
{
    if (blind && blind == task_current())
        return -ENOENT;
    if (misled && misled == task_current()) {
        misled = NULL;
        return -ENOENT;
    }
    int r = load(dir, vm, rec, e);
    return sin_committed == RECORD_ERROR_IS_NOT_OURS && r ? -ENOENT : r;
}

/* An agent takes what its host was promised, and nothing is loaded there: where the source has its guest
 * whole still, and said so, the guest loses its memory for nothing. */
static void look_for_reboot(const struct proc *p, const char *dir, const struct owner_record *rec)
{
    struct owner_record before;

    if (!p || p->kind != AGENT || rec->owner != OWNER_MINE || w.word_given || w.read_errors ||
        proc_find(p->host, QEMU) || __real_owner_load(dir, VM, &before, NULL) < 0 ||
        before.owner != OWNER_PROMISED)
        return;
    for (int i = 0; i < w.hosts; i++) {
        const struct proc *q = proc_find(&w.host[i], QEMU);
        if (q && q->qemu->loaded && !q->qemu->incoming && q->qemu->memory == w.version)
            sim_violated("%s starts from its disk a guest that is whole on %s", p->host->name,
                         w.host[i].name);
    }
}

int __wrap_owner_save(const char *dir, const char *vm, const struct owner_record *rec, struct xm_error *e)
{
    struct proc *p = proc_current();
    bool in_shim = p && p->kind == SHIM && p->shim;

    if (sin_committed == NO_PROMISE && rec->owner == OWNER_PROMISED)
        return 0;
    if (sin_committed == RUN_WITHOUT_MINE && rec->owner == OWNER_MINE && in_shim && p->shim->destination &&
        !rec->settled)
        return 0;
    look_for_reboot(p, dir, rec);
    int r = __real_owner_save(dir, vm, rec, e);
    sim_trace("  record «%s», epoch %llu%s: %s", owner_side_name(rec->owner), (unsigned long long)rec->epoch,
              rec->settled ? ", settled" : "", r ? "failed" : "durable");
    if (!r && rec->owner == OWNER_GIVEN && rec->settled && in_shim && p->shim->source &&
        w.ran_last == p->host)
        sim_violated("%s lets go of a VM that has not been seen to run elsewhere", p->host->name);
    if (sin_committed == DELETE_BEFORE_SETTLED && !r && rec->owner == OWNER_GIVEN && in_shim &&
        p->shim->source && !rec->settled)
        unlink(p->shim->machine.spec.disk[0].path);
    return r;
}

int __wrap_owner_restore(const char *dir, const char *vm, const struct owner_record *before,
                         struct xm_error *e)
{
    const struct proc *p = proc_current();

    if (sin_committed != PROMISE_STANDS || p->kind != SHIM)
        return __real_owner_restore(dir, vm, before, e);
    misled = before ? NULL : task_current();
    return 0;
}

int __wrap_journal_write(const char *dir, enum journal_side side, uint64_t epoch, const char *peer,
                         const struct owner_record *before, const json_t *files, struct xm_error *e)
{
    return sin_committed == NO_JOURNAL ? 0 : __real_journal_write(dir, side, epoch, peer, before, files, e);
}

int __wrap_journal_undo(const char *dir, const char *vm, struct xm_error *e)
{
    blind = sin_committed == JOURNAL_IS_ENOUGH ? task_current() : NULL;
    int r = __real_journal_undo(dir, vm, e);
    blind = NULL;
    return r;
}

static enum handoff_ran (*true_run)(void *ctx);

static enum handoff_ran says_that_it_ran(void *ctx)
{
    enum handoff_ran ran = true_run(ctx);

    return ran == HANDOFF_DID_NOT ? HANDOFF_DID_RUN : ran;
}

void __wrap_handoff_drive(struct handoff *h, struct handoff_actions a, const struct handoff_hands *hands,
                          void *ctx, struct handoff_done *done)
{
    struct handoff_hands these = *hands;

    if (sin_committed == ACKNOWLEDGE_WITHOUT_RUN && hands->run) {
        true_run = hands->run;
        these.run = says_that_it_ran;
    }
    __real_handoff_drive(h, a, &these, ctx, done);
}

enum verdict __wrap_verdict_of(const char *self, const struct owner_record *ours,
                               const struct owner_record *theirs, bool runs, uint64_t *epoch,
                               struct xm_error *why)
{
    if (sin_committed == TIE_TO_US && ours->owner == OWNER_GIVEN && theirs->owner == OWNER_MINE &&
        ours->epoch == theirs->epoch) {
        *epoch = ours->epoch;
        return VERDICT_BACK;
    }
    return __real_verdict_of(self, ours, theirs, runs, epoch, why);
}

int __wrap_known_there(struct agent *a, const struct conf_peer *p, const char *vm, struct known *k,
                       struct xm_error *e)
{
    int r = __real_known_there(a, p, vm, k, e);

    if (!r || sin_committed != SILENCE_IS_MINE)
        return r;
    k->rec = (struct owner_record){.epoch = 1000, .owner = OWNER_MINE, .settled = true};
    return 0;
}

int __wrap_source_handoff(struct source *m)
{
    int r = __real_source_handoff(m);

    if (sin_committed == GIVEN_RESUMES && m->state == SOURCE_UNKNOWN)
        qemu_continue(&m->machine->qemu, XM_NS_PER_S, NULL);
    return r;
}

json_t *__wrap_settle_claimed(struct agent *a, const char *vm, bool peer_is_dead)
{
    if (sin_committed == NO_SETTLING)
        return refusal(EXIT_UNKNOWN, "nobody settles");
    return __real_settle_claimed(a, vm, peer_is_dead);
}

json_t *__wrap_settle(struct agent *a, const char *vm, bool peer_is_dead, uint64_t patience)
{
    if (sin_committed == NO_SETTLING)
        return refusal(EXIT_UNKNOWN, "nobody settles");
    return __real_settle(a, vm, peer_is_dead, patience);
}

/* Within a pivot: the guest is held. */
int __wrap_machine_save_spec(struct machine *vm, struct xm_error *e)
{
    struct proc *p = proc_current();

    if (sin_committed == SWAP_UNRECORDED && p->shim && vm->disks && vm->disk[0].started &&
        disks_hold_guest(p))
        return 0;
    return __real_machine_save_spec(vm, e);
}
