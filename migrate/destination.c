/* SPDX-License-Identifier: MIT */
/* The destination's side of a migration, on one thread that answers the source's calls in their order:
 *
 *   begin     both sides have the same disks and RAM blocks; answers which disks read as zeros
 *   incoming  QEMU listens for its device state
 *   loaded    waits until QEMU has loaded all of it and is stopped; from the answer on the VM is *promised*: the source may give it
 *   again     the source has given that up, and its guest goes on: all is as before `incoming`
 *   handoff   the source has recorded that the VM is ours: we record it too, then run it (vm/handoff.h)
 *
 * Frames of disks, RAM and device state go to their owners without passing this thread.
 *
 * Failures: until the VM is promised, anything (links gone, ABORT, a bad frame, QEMU's end, nobody calling
 * within 20 s) ends this side: QEMU and disks made for it are deleted, the source still has everything.
 * Once it is promised and the links are lost, we do not know whether it was given: `undecided`. The VM
 * stays loaded and stopped until the source's record is known (destination_decide). */
#include "migrate/destination.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The source has our answer when this begins. Its agent is asked, too, whether it still comes
 * (agent/tidy.c). */
#define FIRST_LINK_TIMEOUT (20 * XM_NS_PER_S)
#define LINGER             (10 * XM_NS_PER_S)
#define RETRY              XM_NS_PER_S
#define WARM_STEP          (64ull << 20)
#define SILENCE            (600 * XM_NS_PER_S) /* unless the agent says otherwise */

static const char *const state_names[DEST_STATES] = {"waiting",   "copying", "loading", "promised",
                                                     "undecided", "running", "failed"};

/* Which state may follow which: bit n of [s]: s -> n. What runs here, or has ended, stays so. */
#define TO(s) (1u << (s))
static const unsigned legal[DEST_STATES] = {
    [DEST_WAITING] = TO(DEST_COPYING) | TO(DEST_FAILED),
    [DEST_COPYING] = TO(DEST_LOADING) | TO(DEST_FAILED),
    [DEST_LOADING] = TO(DEST_PROMISED) | TO(DEST_COPYING) | TO(DEST_FAILED),
    [DEST_PROMISED] = TO(DEST_UNDECIDED) | TO(DEST_RUNNING) | TO(DEST_COPYING) | TO(DEST_FAILED),
    [DEST_UNDECIDED] = TO(DEST_RUNNING) | TO(DEST_FAILED),
};

const char *destination_state_name(const struct destination *dst)
{
    return state_names[atomic_load(&dst->state)];
}

int destination_set_state(struct destination *dst, enum dest_state to, struct xm_error *e)
{
    if (!(legal[dst->state] & TO(to))) {
        xm_log(XM_LOG_ERROR, "VM %s, job %s from %s: refused to go from %s to %s", dst->machine->spec.name,
               dst->job, dst->source, destination_state_name(dst), state_names[to]);
        return xm_error_set(e, EPROTO, "no way leads from «%s» to «%s» here: please report this",
                            destination_state_name(dst), state_names[to]);
    }
    xm_log(XM_LOG_INFO, "VM %s, job %s from %s: %s -> %s", dst->machine->spec.name, dst->job, dst->source,
           destination_state_name(dst), state_names[to]);
    dst->state = to;
    return 0;
}

void destination_fail(struct destination *dst, const char *why)
{
    pthread_mutex_lock(&dst->lock);
    if (!dst->failure.code)
        xm_error_set(&dst->failure, EIO, "%s", why);
    pthread_mutex_unlock(&dst->lock);
}

/* ---- the thread ---- */

void destination_qmp_event(struct destination *dst, const char *name, const json_t *data)
{
    if (!strcmp(name, "MIGRATION"))
        snprintf(dst->qemu_status, sizeof dst->qemu_status, "%s", xm_json_str(data, "status", ""));
}

/* Connected, and asks for nothing: links live by their PINGs, but the source may hang, or want our disks
 * and memory for ever. What we have not answered yet is no silence of the source's. After the promise only
 * its record decides. */
static bool source_silent(struct destination *dst)
{
    if (dst->state != DEST_COPYING && dst->state != DEST_LOADING)
        return false;
    if (xm_links_serving(dst->links))
        dst->heard = xm_now();
    /* A link's thread may hear something right now: later than any «now» that was read before it. */
    return xm_now() > dst->heard + dst->silence;
}

static void find_failure(struct destination *dst, struct xm_error *e)
{
    pthread_mutex_lock(&dst->lock);
    *e = dst->failure;
    pthread_mutex_unlock(&dst->lock);
    if (!e->code)
        xm_links_error(dst->links, e);
    if (!e->code && dst->state == DEST_WAITING && xm_now() - dst->began > FIRST_LINK_TIMEOUT)
        xm_error_set(e, ETIMEDOUT, "%s did not come with its migration", dst->source);
    if (!e->code && source_silent(dst))
        xm_error_set(e, ETIMEDOUT, "%s has sent nothing of its migration for %s", dst->source,
                     xm_format_time(dst->silence).s);
}

static void tell(struct destination *dst, const char *event)
{
    struct machine *vm = dst->machine;

    vm->emit(vm, json_pack("{s:s s:s s:s s:I}", "event", event, "job", dst->job, "source", dst->source,
                           "epoch", (json_int_t)vm->epoch));
}

static void over(struct xm_post *p)
{
    struct destination *dst = xm_container_of(p, struct destination, over);

    dst->ended(dst->machine, dst->how);
}

/* The thread's last word. */
static void end(struct destination *dst, enum migrate_end how)
{
    dst->how = how;
    dst->over.run = over;
    xm_mailbox_post(&dst->machine->mailbox, &dst->over);
}

void destination_end(struct destination *dst)
{
    struct machine *vm = dst->machine;
    struct xm_error e = {0};

    find_failure(dst, &e);
    destination_fail(dst, e.text); /* for the source, if it was not its doing */
    xm_fault("destination-failing");
    if (destination_set_state(dst, DEST_FAILED, NULL) < 0)
        return; /* what runs here is not given up */
    xm_log(XM_LOG_WARN, "VM %s, job %s from %s has ended here: %s", vm->spec.name, dst->job, dst->source,
           e.text);
    vm->emit(vm, json_pack("{s:s s:s s:s}", "event", "incoming-failed", "job", dst->job, "error", e.text));
    end(dst, MIGRATE_NOT);
}

bool destination_warm(struct destination *dst, uint64_t ns)
{
    uint64_t until = xm_now() + ns;
    bool more;

    do {
        more = xm_ram_warm(&dst->machine->ram, &dst->warm, WARM_STEP);
    } while (more && xm_now() < until);
    return more;
}

/* The first round has filled the memory; what later ones bring lies in the same places mostly. */
static bool warm_a_step(struct destination *dst)
{
    return dst->state == DEST_COPYING && xm_ramsink_round(dst->ramsink) > 1 && destination_warm(dst, 0);
}

static void *destination_main(void *arg)
{
    struct destination *dst = arg;
    bool told_running = false;

    pthread_setname_np(pthread_self(), "incoming");
    xm_mailbox_own(&dst->mailbox);
    dst->began = xm_now();
    dst->heard = dst->began;
    while (!dst->stop) {
        struct xm_error e = {0};
        xm_mailbox_wait(&dst->mailbox, warm_a_step(dst) ? 0 : 50);
        if (dst->state == DEST_FAILED)
            break;
        qmp_pump(&dst->machine->qemu.qmp, 0, NULL);
        if (xm_now() - dst->retried > RETRY) {
            destination_retry(dst);
            dst->retried = xm_now();
        }
        find_failure(dst, &e);
        if (dst->state == DEST_RUNNING) {
            if (!told_running)
                tell(dst, "running");
            told_running = true;
            /* The source closes the links when it has our answer. */
            if (e.code || xm_now() - dst->ran > LINGER) {
                end(dst, MIGRATE_CAME);
                break;
            }
        } else if (e.code && dst->state == DEST_PROMISED) {
            destination_set_state(dst, DEST_UNDECIDED, NULL);
            tell(dst, "undecided");
        } else if (e.code && dst->state != DEST_UNDECIDED) {
            xm_links_abort(dst->links, e.text); /* the source says why to its user */
            destination_end(dst);
            break;
        }
    }
    /* Who asks something of it still, before the main thread has heard of its end, gets an answer. */
    while (!dst->stop)
        xm_mailbox_wait(&dst->mailbox, 20);
    return NULL;
}

struct decision {
    struct destination *dst;
    bool mine;
    int result;
    struct xm_error error;
};

static void decide(void *arg)
{
    struct decision *d = arg;
    d->result = destination_decide_here(d->dst, d->mine, &d->error);
}

int destination_decide(struct destination *dst, bool mine, struct xm_error *e)
{
    struct decision d = {.dst = dst, .mine = mine};

    xm_mailbox_call(&dst->mailbox, decide, &d);
    if (d.result && e)
        *e = d.error;
    return d.result;
}

/* ---- start and end ---- */

static int read_token(struct destination *dst, const char *hex, struct xm_error *e)
{
    return xm_hex_get(dst->token, sizeof dst->token, hex) < 0 ? xm_error_set(e, EINVAL, "no usable token")
                                                              : 0;
}

struct destination *destination_new(struct machine *vm, const json_t *o, migrate_ended *ended,
                                    struct xm_error *e)
{
    struct destination *dst = calloc(1, sizeof *dst);

    if (!dst) {
        xm_error_set(e, ENOMEM, "no memory");
        return NULL;
    }
    dst->machine = vm;
    dst->ended = ended;
    LIST_INIT(&dst->coming);
    dst->storage = xm_json_bool(o, "storage", true);
    dst->silence = (uint64_t)xm_json_int(o, "silence_ns", SILENCE);
    snprintf(dst->source, sizeof dst->source, "%s", xm_json_str(o, "source", "?"));
    snprintf(dst->job, sizeof dst->job, "%s", xm_json_str(o, "job", "0"));
    pthread_mutex_init(&dst->lock, NULL);
    space_init(&dst->space, vm, o, dst->source);
    int r = xm_mailbox_init(&dst->mailbox);
    if (r)
        xm_error_errno(e, -r, "eventfd");
    if (!r && !read_token(dst, xm_json_str(o, "token", ""), e))
        return dst;
    if (!r)
        xm_mailbox_destroy(&dst->mailbox);
    space_destroy(&dst->space);
    pthread_mutex_destroy(&dst->lock);
    free(dst);
    return NULL;
}

static void writer_new(struct machine_disk *d, void *arg)
{
    d->writer = xm_writer_new(d->engine, d->file, arg);
}

static void writer_cancel(struct machine_disk *d, void *arg)
{
    (void)arg;
    if (d->writer)
        xm_writer_cancel(d->writer);
}

static void writer_free(struct machine_disk *d, void *arg)
{
    (void)arg;
    if (d->writer)
        xm_writer_free(d->writer);
    d->writer = NULL;
}

int destination_start(struct destination *dst, struct xm_error *e)
{
    struct machine *vm = dst->machine;
    struct xm_links_opts o = {
        .sink = {.check = destination_check_frame, .frame = destination_take_frame, .ctx = dst},
    };

    memcpy(o.token, dst->token, sizeof o.token);
    dst->ramsink = xm_ramsink_new(&vm->ram, e);
    if (dst->ramsink)
        o.sink.placer = xm_ramsink_placer(dst->ramsink);
    dst->links = dst->ramsink ? xm_links_new(&o, e) : NULL;
    if (!dst->links)
        return -XM_MAX(e->code, 1);
    struct handoff_actions none;
    struct xm_error no_record = {0};
    int r = owner_load(vm->state_dir, vm->spec.name, &dst->before, &no_record);
    if (r && r != -ENOENT)
        return xm_error_set(e, -r, "%s", no_record.text);
    dst->had_record = r == 0;
    if ((r = handoff_start(&dst->handoff, HANDOFF_DESTINATION, false, vm->host, dst->source,
                           dst->had_record ? &dst->before : NULL, &none, e)) < 0)
        return r;
    xm_links_set_background(dst->links, true);
    xm_ramsink_populate(dst->ramsink);
    for (unsigned i = 0; i < vm->disks; i++) {
        machine_disk_call(&vm->disk[i], writer_new, e);
        if (!vm->disk[i].writer)
            return -XM_MAX(e->code, 1);
    }
    xm_fault("destination-start");
    r = pthread_create(&dst->thread, NULL, destination_main, dst);
    dst->started = r == 0;
    return r ? xm_error_errno(e, r, "the migration's thread") : 0;
}

void destination_set_others(struct destination *dst, uint64_t bytes)
{
    dst->space.others = bytes;
}

bool destination_owns(const struct destination *dst)
{
    return dst->state == DEST_RUNNING;
}

bool destination_may_own(const struct destination *dst)
{
    enum dest_state st = dst->state;
    return st == DEST_PROMISED || st == DEST_UNDECIDED || st == DEST_RUNNING;
}

bool destination_is(const struct destination *dst, const char *source, const char *job)
{
    return !strcmp(dst->source, source) && !strcmp(dst->job, job);
}

void destination_status(struct destination *dst, json_t *into)
{
    enum dest_state st = dst->state;

    json_object_set_new(into, "role",
                        json_string(st == DEST_RUNNING     ? "owner"
                                    : st == DEST_UNDECIDED ? "undecided"
                                                           : "incoming"));
    json_object_set_new(into, "step", json_string(state_names[st]));
    json_object_set_new(into, "job", json_string(dst->job));
    json_object_set_new(into, "source", json_string(dst->source));
}

/* The source cannot give what was never said to be loaded, and does not what it says it keeps. */
static void withdraw(struct destination *dst)
{
    struct xm_error e = {0};

    if (destination_take_back(dst, &e) < 0)
        xm_log(XM_LOG_ERROR, "VM %s, job %s: %s", dst->machine->spec.name, dst->job, e.text);
}

/* What the source is told, if it still listens: a sentence of ours, nothing that QEMU has written. */
static const char *last_word(const struct destination *dst)
{
    if (dst->state == DEST_RUNNING)
        return "the migration is over";
    return dst->failure.code ? dst->failure.text : "its shim was stopped there";
}

void destination_join(struct destination *dst)
{
    dst->stop = true;
    if (dst->started)
        pthread_join(dst->thread, NULL);
    dst->started = false;
}

void destination_free(struct destination *dst)
{
    struct machine *vm = dst->machine;

    destination_join(dst);
    if (dst->promised && !destination_may_own(dst))
        withdraw(dst);
    destination_links_end(dst);
    if (dst->links)
        xm_links_abort(dst->links, last_word(dst));
    pthread_mutex_lock(&dst->lock);
    dst->closed = true;
    pthread_mutex_unlock(&dst->lock);
    for (unsigned i = 0; i < vm->disks; i++) {
        if (vm->disk[i].started)
            machine_disk_call(&vm->disk[i], writer_cancel, NULL);
    }
    xm_mailbox_run(&dst->mailbox); /* calls that came too late: answered with what they get */
    stream_free(dst->stream);
    dst->stream = NULL;
    if (dst->links)
        xm_links_free(dst->links);
    for (unsigned i = 0; i < vm->disks; i++) {
        if (vm->disk[i].started)
            machine_disk_call(&vm->disk[i], writer_free, NULL);
    }
    if (dst->ramsink)
        xm_ramsink_free(dst->ramsink);
    free(dst->answered.text);
    xm_mailbox_destroy(&dst->mailbox);
    space_destroy(&dst->space);
    pthread_mutex_destroy(&dst->lock);
    free(dst);
}
