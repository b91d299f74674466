/* SPDX-License-Identifier: MIT */
/* The source's calls, one after the other, on the destination's thread; destination.c tells what each is
 * for and what its failure means. */
#include "migrate/destination.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The VM is stopped for most of these waits. */
#define LOAD_TIMEOUT (10 * XM_NS_PER_S)
#define FAILED_TIME  (200 * XM_NS_PER_MS)
/* For what is not warm yet, before the guest is stopped: it goes on making pages dirty meanwhile. */
#define WARM_TIME (30 * XM_NS_PER_MS)

/* The source begins no switch-over before its guest would be heard here. */
static uint64_t tell_bridges(struct destination *dst, json_t *reply)
{
    uint64_t bridges = taps_pass_in(&dst->machine->spec);

    json_object_set_new(reply, "bridges_ms", json_integer((json_int_t)(bridges / XM_NS_PER_MS)));
    return bridges;
}

static int do_begin(struct destination *dst, const json_t *o, json_t *reply, struct xm_error *e)
{
    struct machine *vm = dst->machine;
    const json_t *disks = json_object_get(o, "disks");
    const json_t *ram = json_object_get(o, "ram");
    json_t *list = json_array();

    json_object_set_new(reply, "disks", list);
    if (dst->state != DEST_WAITING)
        return xm_error_set(e, EPROTO, "it has begun already");
    if (json_array_size(disks) != vm->disks || json_array_size(ram) != vm->ram.blocks)
        return xm_error_set(e, EINVAL, "%zu disks and %zu RAM blocks there, %u and %u here",
                            json_array_size(disks), json_array_size(ram), vm->disks, vm->ram.blocks);
    dst->epoch = (uint64_t)xm_json_int(o, "epoch", 0);
    if (dst->epoch != vm->epoch + 1)
        return xm_error_set(e, EPROTO, "epoch %llu was announced, and now it is %llu",
                            (unsigned long long)vm->epoch + 1, (unsigned long long)dst->epoch);
    if (dst->storage != xm_json_bool(o, "storage", true))
        return xm_error_set(e, EPROTO, "prepared for another kind of migration");
    for (unsigned i = 0; i < vm->disks; i++) {
        const json_t *d = json_array_get(disks, i);
        struct xm_file *f = vm->disk[i].file;
        if (strcmp(xm_json_str(d, "name", ""), vm->disk[i].spec->name) != 0 ||
            (uint64_t)xm_json_int(d, "size", -1) != f->size)
            return xm_error_set(e, EINVAL, "disk %u is not the same on both sides", i);
        if (f->block > (uint64_t)xm_json_int(d, "block", 512) && dst->storage)
            return xm_error_set(
                e, EINVAL,
                "disk %s: %s has blocks of %u bytes, the source's has %lld: choose another datastore",
                vm->disk[i].spec->name, f->path, f->block, (long long)xm_json_int(d, "block", 512));
        json_array_append_new(list,
                              json_pack("{s:b}", "zeroed", !f->block_device && xm_file_allocated(f) == 0));
    }
    for (unsigned i = 0; i < vm->ram.blocks; i++) {
        if ((uint64_t)xm_json_int(json_array_get(ram, i), "size", -1) != vm->ram.block[i].size)
            return xm_error_set(e, EINVAL, "RAM block %u has another size here", i);
    }
    json_object_set_new(reply, "again", json_true());
    if (late_can(vm))
        json_object_set_new(reply, "late", json_true());
    dst->silence += tell_bridges(dst, reply); /* it waits for them, and may have nothing to send meanwhile */
    int r = destination_set_state(dst, DEST_COPYING, e);
    xm_fault("begin-taken");
    return r;
}

/* The source may give the VM to us from when it has heard that all is loaded. Durable while the guest still
 * runs, so that whoever comes after us asks before anything is deleted. */
static int promise(struct destination *dst, struct xm_error *e)
{
    struct machine *vm = dst->machine;
    struct owner_record rec = {.epoch = dst->epoch, .owner = OWNER_PROMISED};

    snprintf(rec.from, sizeof rec.from, "%s", dst->source);
    dst->promised = true; /* also after a write that failed: what is there is then not known */
    int r = owner_save(vm->state_dir, vm->spec.name, &rec, e);
    if (!r)
        handoff_promised(&dst->handoff, &rec);
    return r;
}

static void disk_gives_way(struct machine_disk *d, void *yes)
{
    (void)d;
    xm_sched_background(0, *(bool *)yes);
}

void destination_gives_way(struct destination *dst, bool yes)
{
    xm_links_set_background(dst->links, yes);
    for (unsigned i = 0; i < dst->machine->disks; i++)
        machine_disk_call(&dst->machine->disk[i], disk_gives_way, &yes);
}

static int do_incoming(struct destination *dst, const json_t *o, struct xm_error *e)
{
    struct qmp *q = &dst->machine->qemu.qmp;
    json_t *caps = json_pack("{s:[{s:s s:b} {s:s s:b}]}", "capabilities", "capability", "x-ignore-shared",
                             "state", 1, "capability", "events", "state", 1);
    bool more = false;
    int fd = -1, r = dst->state == DEST_COPYING ? 0 : xm_error_set(e, EPROTO, "not now");

    if (!r)
        more = destination_warm(dst, WARM_TIME);
    if (!r)
        xm_log(XM_LOG_INFO, "VM %s, job %s: QEMU has %s of its memory mapped ahead%s",
               dst->machine->spec.name, dst->job, xm_format_size(dst->warm.mapped).s,
               more ? ", there is more" : "");

    if (r)
        json_decref(caps);
    else
        r = qmp_do(q, "migrate-set-capabilities", caps, LOAD_TIMEOUT, e);
    /* Or it would wait for a description, and complain. */
    if (!r && !xm_json_bool(o, "described", true))
        qmp_do(q, "qom-set",
               json_pack("{s:s s:s s:b}", "path", "/machine", "property", "suppress-vmdesc", "value", 1),
               LOAD_TIMEOUT, NULL);
    if (!r)
        r = XM_MIN(fd = qmp_make_stream(q, STREAM_NAME, LOAD_TIMEOUT, e), 0);
    if (!r)
        r = qmp_do(q, "migrate-incoming", json_pack("{s:s}", "uri", "fd:" STREAM_NAME), LOAD_TIMEOUT, e);
    if (r && fd >= 0)
        close(fd);
    if (!r) {
        struct stream *st = stream_receive(fd, e);
        pthread_mutex_lock(&dst->lock);
        dst->stream = st;
        pthread_mutex_unlock(&dst->lock);
        r = st ? 0 : -e->code;
    }
    if (!r)
        r = machine_save_spec(dst->machine, e);
    xm_fault("incoming-spec-saved");
    if (!r)
        r = promise(dst, e);
    xm_fault("incoming-promised");
    destination_gives_way(dst, false);                     /* the guest is about to be stopped */
    taps_forget(&dst->machine->qemu, &dst->machine->spec); /* and what it does not hear there is for here */
    if (!r)
        r = destination_set_state(dst, DEST_LOADING, e);
    return r;
}

static int do_loaded(struct destination *dst, const json_t *o, struct xm_error *e)
{
    uint64_t deadline = xm_now() + LOAD_TIMEOUT, broken_at = 0;

    if (dst->state == DEST_PROMISED)
        return 0;
    if (dst->state != DEST_LOADING)
        return xm_error_set(e, EPROTO, "nothing is being loaded");
    xm_fault("loaded");
    while (strcmp(dst->qemu_status, "completed") != 0) {
        int r = qmp_pump(&dst->machine->qemu.qmp, 20, e);
        struct xm_error broken = {0};
        stream_error(dst->stream, &broken);
        if (broken.code && !strcmp(dst->qemu_status, "active") && !broken_at)
            broken_at = xm_now(); /* QEMU has closed it, and is about to say that it failed */
        if (!broken.code)
            xm_links_error(dst->links, &broken);      /* nobody waits for it any more */
        if (!broken.code && dst->next > dst->attempt) /* nor then */
            xm_error_set(&broken, ECANCELED, "the source has given that up");
        if (!r && !strcmp(dst->qemu_status, "failed")) {
            char *log = machine_kept_log(dst->machine, "qemu.log");
            r = xm_error_set(e, EIO, "QEMU could not load the VM's devices; why stands in %s on %s", log,
                             dst->machine->host);
            free(log);
        }
        if (!r && broken.code && (!broken_at || xm_now() - broken_at > FAILED_TIME))
            r = xm_error_set(e, broken.code, "%s", broken.text);
        if (!r && (xm_now() > deadline || dst->stop))
            r = xm_error_set(e, ETIMEDOUT, "QEMU does not finish loading the VM's devices (it is «%s»)",
                             dst->qemu_status);
        if (r)
            return r;
    }
    for (unsigned i = 0; !dst->storage && i < dst->machine->disks; i++) {
        int r = xm_file_lock(dst->machine->disk[i].file, e);
        if (r)
            return r;
    }
    dst->paused = xm_json_bool(o, "paused", false);
    machine_note_paused(dst->machine, dst->paused); /* before the source can give it */
    int r = destination_set_state(dst, DEST_PROMISED, e);
    xm_fault("loaded");
    return r;
}

/* The source has asked for another try, and its memory may come. The taps of the new QEMU have just joined
 * their bridges. */
static int do_ready(struct destination *dst, json_t *reply, struct xm_error *e)
{
    if (dst->state != DEST_COPYING)
        return xm_error_set(e, EPROTO, "not now");
    tell_bridges(dst, reply);
    return 0;
}

/* ---- hand-off: the hands of vm/handoff.h's driver ---- */

struct handing {
    struct destination *dst;
    json_t *reply; /* to the source; NULL: it did not ask */
    struct xm_error *e;
};

static int save(void *ctx, const struct owner_record *rec)
{
    const struct handing *h = ctx;
    struct machine *vm = h->dst->machine;

    int r = owner_save(vm->state_dir, vm->spec.name, rec, h->e);
    xm_fault("run-after-record");
    return r;
}

/* HANDOFF_DID_NOT: the guest has certainly executed nothing: QEMU had ended before, or refused. */
static enum handoff_ran let_run(struct destination *dst, struct xm_error *e)
{
    struct qemu *q = &dst->machine->qemu;

    if (!qemu_alive(q)) {
        xm_error_set(e, ECHILD, "QEMU has ended before it let the guest run (see qemu.log on %s)",
                     dst->machine->host);
        return HANDOFF_DID_NOT;
    }
    /* A paused one stays so: that its QEMU answers is all that can be seen of it. */
    int r = xm_fault("run-refused")
                ? xm_error_set(e, EIO, "fault point run-refused")
                : qmp_do(&q->qmp, dst->paused ? "query-status" : "cont", NULL, LOAD_TIMEOUT, e);
    if (!r)
        return HANDOFF_DID_RUN;
    xm_log(XM_LOG_ERROR, "VM %s: %s", dst->machine->spec.name, e->text);
    return r == -EIO && qemu_alive(q) ? HANDOFF_DID_NOT : HANDOFF_PERHAPS;
}

static enum handoff_ran run(void *ctx)
{
    const struct handing *h = ctx;
    struct destination *dst = h->dst;
    enum handoff_ran ran = let_run(dst, h->e);

    if (ran != HANDOFF_DID_NOT) {
        dst->ran = xm_now();
        dst->machine->epoch = dst->handoff.record.epoch;
        destination_set_state(dst, DEST_RUNNING, h->e);
    }
    return ran;
}

/* The answer to what the source has said; nothing is said unasked. */
static bool answer(void *ctx, const struct handoff_msg *msg, struct handoff_msg *none)
{
    const struct handing *h = ctx;

    (void)none;
    if (h->reply) {
        json_t *m = handoff_msg_pack(msg);
        json_object_update(h->reply, m);
        json_decref(m);
    }
    return false;
}

static void act(struct destination *dst, struct handoff_actions a, json_t *reply, struct xm_error *e)
{
    static const struct handoff_hands hands = {.save = save, .run = run, .send = answer};
    struct handing h = {.dst = dst, .reply = reply, .e = e};
    struct handoff_done done = {0};

    handoff_drive(&dst->handoff, a, &hands, &h, &done);
    if (done.discard) {
        destination_fail(dst, "the VM stays with its source");
        destination_end(dst);
    }
}

static int do_handoff(struct destination *dst, const json_t *o, json_t *reply, struct xm_error *e)
{
    struct handoff_msg msg;
    struct handoff_actions a;
    int r = handoff_msg_unpack(&msg, o, e);

    if (r)
        return r;
    if (dst->state != DEST_PROMISED && dst->state != DEST_UNDECIDED && dst->state != DEST_RUNNING)
        return xm_error_set(e, EPROTO, "the VM is not loaded");
    xm_fault("run-told");
    handoff_message(&dst->handoff, &msg, &a);
    act(dst, a, reply, e);
    xm_fault("run-running");
    if (e->code)
        json_object_set_new(reply, "reason", json_string(e->text));
    return 0;
}

/* After the source has its answer: the guest runs here, durably known; what was made for it is its own. The
 * journal goes when the agent has seen that the source knows it, too (agent/tidy.c). */
static void settle(struct destination *dst)
{
    struct machine *vm = dst->machine;
    struct owner_record rec = dst->handoff.record;
    struct xm_error e = {0};

    rec.settled = true;
    xm_fault("came-begin");
    if (owner_save(vm->state_dir, vm->spec.name, &rec, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: %s", vm->spec.name, e.text);
    dst->handoff.record.settled = true;
}

/* What its switches took, for its next one. */
static void keep_cost(struct destination *dst, const json_t *took)
{
    struct switch_cost c;
    struct xm_error e = {0};

    switch_cost_unpack(&c, took);
    if (c.n && switch_cost_save(dst->machine->state_dir, &c, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: %s", dst->machine->spec.name, e.text);
}

/* The source knows durably that the guest runs here. */
static int do_settled(struct destination *dst, const json_t *o, struct xm_error *e)
{
    const struct owner_record *rec = &dst->handoff.record;

    if (dst->handoff.state != HANDOFF_OWNER || !rec->settled ||
        (uint64_t)xm_json_int(o, "epoch", 0) != rec->epoch)
        return xm_error_set(e, EPROTO, "the VM is not known to run here");
    xm_fault("settled-heard");
    keep_cost(dst, json_object_get(o, "switch_ns"));
    return journal_close(dst->machine->state_dir, dst->source, rec->epoch, e);
}

/* ---- all calls ---- */

static void announce(struct destination *dst)
{
    json_t *args = json_pack("{s:i s:i s:i s:i}", "initial", 10, "max", 550, "rounds", 5, "step", 100);
    struct xm_error e = {0};

    dst->announced = true;
    if (qmp_do(&dst->machine->qemu.qmp, "announce-self", args, LOAD_TIMEOUT, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: %s", dst->machine->spec.name, e.text);
}

/* Of a switch-over that was given up since: a frame may come late, and more than once. The hand-off's
 * words are safe at any time. */
static bool is_stale(const struct destination *dst, const char *call, uint64_t attempt)
{
    static const char *const of_one[] = {"incoming", "loaded", "ready"};

    for (unsigned i = 0; i < sizeof of_one / sizeof *of_one; i++) {
        if (!strcmp(call, of_one[i]))
            return attempt != dst->attempt;
    }
    return !strcmp(call, "again") && attempt != dst->attempt + 1;
}

/* The call came before, and the link that brought it was lost with its answer. What the hand-off's words ask
 * for may have come to pass since: these are judged anew. */
static bool answer_again(struct destination *dst, struct xm_rx *rx)
{
    const char *text = dst->answered.text;

    if (dst->stop || !text || !rx->hdr.seq || rx->hdr.seq != dst->answered.seq)
        return false;
    xm_rx_done(rx, 0, text, (uint32_t)strlen(text));
    return true;
}

/* Steals the text. */
static void keep_answer(struct destination *dst, uint64_t seq, char *text)
{
    free(dst->answered.text);
    dst->answered.seq = seq;
    dst->answered.text = text;
}

void destination_call(struct xm_post *p)
{
    static struct xm_log_limit refused;
    struct xm_rx *rx = xm_container_of(p, struct xm_rx, post);
    struct destination *dst = rx->owner;
    uint64_t seq = rx->hdr.seq;

    if (answer_again(dst, rx))
        return;
    json_t *o = rx->payload ? xm_json_parse(rx->payload, rx->hdr.length, &xm_json_request, NULL) : NULL;
    const char *call = xm_json_str(o, "call", "");
    json_t *reply = json_object();
    struct xm_error e = {0};
    int r;

    if (dst->stop) /* what it promises now it may have withdrawn already (destination_free) */
        r = xm_error_set(&e, ECANCELED, "this side is ending");
    else if (is_stale(dst, call, rx->hdr.after))
        r = xm_error_set(&e, ECANCELED, "that was given up");
    else if (!strcmp(call, "begin"))
        r = do_begin(dst, o, reply, &e);
    else if (!strcmp(call, "incoming"))
        r = do_incoming(dst, o, &e);
    else if (!strcmp(call, "loaded"))
        r = do_loaded(dst, o, &e);
    else if (!strcmp(call, "again"))
        r = destination_again(dst, &e);
    else if (!strcmp(call, "ready"))
        r = do_ready(dst, reply, &e);
    else if (!strcmp(call, "handoff"))
        r = do_handoff(dst, o, reply, &e);
    else if (!strcmp(call, "late"))
        r = destination_late(dst, o, &e);
    else if (!strcmp(call, "settled"))
        r = do_settled(dst, o, &e);
    else
        r = xm_error_set(&e, EPROTO, "unknown call «%.20s»", call);
    bool now = dst->handoff.state == HANDOFF_OWNER && !dst->announced;
    bool again = !r && !strcmp(call, "again"), words = !strcmp(call, "handoff");
    json_object_set_new(reply, "ok", json_boolean(r == 0));
    if (r) {
        json_object_set_new(reply, "error", json_string(e.text));
        xm_log_limited(&refused, XM_LOG_WARN, "VM %s, job %s: «%.20s» refused: %s", dst->machine->spec.name,
                       dst->job, call, e.text);
    }
    char *text = json_dumps(reply, JSON_COMPACT);
    json_decref(o);
    xm_rx_done(rx, text ? 0 : -ENOMEM, text, text ? (uint32_t)strlen(text) : 0);
    if (words)
        free(text);
    else
        keep_answer(dst, seq, text);
    json_decref(reply);
    if (again)
        destination_wait_anew(dst);
    if (now) {
        announce(dst);
        settle(dst);
    }
}

void destination_retry(struct destination *dst)
{
    struct handoff_actions a;
    struct xm_error e = {0};

    if (!dst->handoff.failed || handoff_event(&dst->handoff, HANDOFF_RETRY, &a) < 0)
        return;
    act(dst, a, NULL, &e);
    if (e.code)
        xm_log(XM_LOG_WARN, "VM %s: %s", dst->machine->spec.name, e.text);
    if (dst->handoff.state == HANDOFF_OWNER && !dst->announced) {
        announce(dst);
        settle(dst);
    }
}

int destination_decide_here(struct destination *dst, bool mine, struct xm_error *e)
{
    /* What the source would have answered itself. */
    struct handoff_msg msg = {
        .type = HANDOFF_MSG_ANSWER, .epoch = dst->epoch, .owner = mine ? OWNER_GIVEN : OWNER_MINE};
    struct handoff_actions a;

    if (dst->state != DEST_UNDECIDED)
        return xm_error_set(e, EINVAL, "nothing is undecided here (it is «%s»)", destination_state_name(dst));
    snprintf(msg.to, sizeof msg.to, "%s", mine ? dst->machine->host : "");
    handoff_message(&dst->handoff, &msg, &a);
    act(dst, a, NULL, e);
    if (dst->handoff.state == HANDOFF_OWNER) {
        announce(dst);
        settle(dst);
    }
    return mine && dst->state != DEST_RUNNING ? -XM_MAX(e->code, 1) : 0;
}
