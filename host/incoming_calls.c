/* The source's calls, one after the other, on the incoming's thread; incoming.c tells what each is for and
 * what its failure means. */
#include "host/incoming_inside.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The VM is stopped for most of these waits. */
#define LOAD_TIMEOUT (10 * XM_NS_PER_S)

static int do_begin(struct incoming *in, const json_t *o, json_t *reply, struct xm_error *e)
{
    struct shim *s = in->shim;
    const json_t *disks = json_object_get(o, "disks");
    const json_t *ram = json_object_get(o, "ram");
    json_t *list = json_array();

    json_object_set_new(reply, "disks", list);
    if (in->state != IN_WAITING)
        return xm_error_set(e, EPROTO, "it has begun already");
    if (json_array_size(disks) != s->disks || json_array_size(ram) != s->ram.blocks)
        return xm_error_set(e, EINVAL, "%zu disks and %zu RAM blocks there, %u and %u here",
                            json_array_size(disks), json_array_size(ram), s->disks, s->ram.blocks);
    in->epoch = (uint64_t)xm_json_int(o, "epoch", 0);
    if (in->storage != xm_json_bool(o, "storage", true))
        return xm_error_set(e, EPROTO, "prepared for another kind of migration");
    for (unsigned i = 0; i < s->disks; i++) {
        const json_t *d = json_array_get(disks, i);
        struct xm_file *f = s->disk[i].file;
        if (strcmp(xm_json_str(d, "name", ""), s->disk[i].spec->name) != 0 ||
            (uint64_t)xm_json_int(d, "size", -1) != f->size)
            return xm_error_set(e, EINVAL, "disk %u is not the same on both sides", i);
        if (f->block > (uint64_t)xm_json_int(d, "block", 512) && in->storage)
            return xm_error_set(
                e, EINVAL,
                "disk %s: %s has blocks of %u bytes, the source's has %lld: choose another datastore",
                s->disk[i].spec->name, f->path, f->block, (long long)xm_json_int(d, "block", 512));
        json_array_append_new(list,
                              json_pack("{s:b}", "zeroed", !f->block_device && xm_file_allocated(f) == 0));
    }
    for (unsigned i = 0; i < s->ram.blocks; i++) {
        if ((uint64_t)xm_json_int(json_array_get(ram, i), "size", -1) != s->ram.block[i].size)
            return xm_error_set(e, EINVAL, "RAM block %u has another size here", i);
    }
    incoming_set_state(in, IN_COPYING);
    return 0;
}

static void disk_first(struct shim_disk *d, void *unused)
{
    (void)d;
    (void)unused;
    xm_sched_background(0, false);
}

static int do_incoming(struct incoming *in, struct xm_error *e)
{
    struct qmp *q = &in->shim->qemu.qmp;
    char *path = xm_printf("%s/mig.sock", in->shim->run_dir);
    char *uri = xm_printf("unix:%s", path);
    json_t *caps = json_pack("{s:[{s:s s:b} {s:s s:b}]}", "capabilities", "capability", "x-ignore-shared",
                             "state", 1, "capability", "events", "state", 1);
    int r = in->state == IN_COPYING ? 0 : xm_error_set(e, EPROTO, "not now");

    if (r)
        json_decref(caps);
    else
        r = qmp_do(q, "migrate-set-capabilities", caps, LOAD_TIMEOUT, e);
    unlink(path);
    if (!r)
        r = qmp_do(q, "migrate-incoming", json_pack("{s:s}", "uri", uri), LOAD_TIMEOUT, e);
    if (!r) {
        struct stream *st = stream_receive(path, e);
        pthread_mutex_lock(&in->lock);
        in->stream = st;
        pthread_mutex_unlock(&in->lock);
        r = st ? 0 : -e->code;
    }
    free(uri);
    free(path);
    if (!r)
        r = shim_save_spec(in->shim,
                           e); /* now, while the guest still runs; without the record it means nothing */
    /* The guest is about to be stopped: nothing gives way any more. */
    xm_links_set_background(in->links, false);
    for (unsigned i = 0; i < in->shim->disks; i++)
        shim_disk_call(&in->shim->disk[i], disk_first, NULL);
    if (!r)
        incoming_set_state(in, IN_LOADING);
    return r;
}

static int do_loaded(struct incoming *in, struct xm_error *e)
{
    uint64_t deadline = xm_now() + LOAD_TIMEOUT;

    if (in->state == IN_PROMISED)
        return 0;
    if (in->state != IN_LOADING)
        return xm_error_set(e, EPROTO, "nothing is being loaded");
    while (strcmp(in->qemu_status, "completed") != 0) {
        int r = qmp_pump(&in->shim->qemu.qmp, 20, e);
        struct xm_error broken = {0};
        stream_error(in->stream, &broken);
        if (!r && broken.code)
            r = xm_error_set(e, broken.code, "%s", broken.text);
        if (!r && !strcmp(in->qemu_status, "failed"))
            r = xm_error_set(e, EIO, "QEMU could not load the VM's devices (see qemu.log on %s)",
                             in->shim->host);
        if (!r && (xm_now() > deadline || in->stop))
            r = xm_error_set(e, ETIMEDOUT, "QEMU does not finish loading the VM's devices (it is «%s»)",
                             in->qemu_status);
        if (r)
            return r;
    }
    for (unsigned i = 0; !in->storage && i < in->shim->disks; i++) {
        int r = xm_file_lock(in->shim->disk[i].file, e);
        if (r)
            return r;
    }
    incoming_set_state(in, IN_PROMISED);
    return 0;
}

/* ---- hand-off: drives host/handoff.h's machine ---- */

/* True when the guest may have executed something: all but QEMU's plain refusal. */
static bool let_run(struct incoming *in, struct xm_error *e)
{
    int r = xm_fault("run-refused") ? xm_error_set(e, EIO, "fault point run-refused")
                                    : qmp_do(&in->shim->qemu.qmp, "cont", NULL, LOAD_TIMEOUT, e);

    if (r)
        xm_log(XM_LOG_ERROR, "VM %s: %s", in->shim->vm.name, e->text);
    return r != -EIO;
}

/* Does what the machine says. *reply: the message for the source, if there is one. */
static void act(struct incoming *in, struct handoff_actions a, json_t *reply, struct xm_error *e)
{
    struct shim *s = in->shim;

    for (;;) {
        if (a.write) {
            int r = owner_save(s->state_dir, s->vm.name, &a.record, e);
            xm_fault("run-after-record");
            handoff_event(&in->handoff, r ? HANDOFF_WRITE_FAILED : HANDOFF_WRITTEN, &a);
        } else if (a.run) {
            bool ran = let_run(in, e);
            if (ran) {
                in->ran = xm_now();
                s->epoch = in->handoff.record.epoch;
                incoming_set_state(in, IN_RUNNING);
            }
            handoff_event(&in->handoff, ran ? HANDOFF_RAN : HANDOFF_CANNOT_RUN, &a);
        } else {
            break;
        }
    }
    if (a.discard) {
        incoming_fail(in, "the VM stays with its source");
        incoming_end(in);
    }
    if (a.send && reply) {
        json_t *m = handoff_msg_pack(&a.msg);
        json_object_update(reply, m);
        json_decref(m);
    }
}

static int do_handoff(struct incoming *in, const json_t *o, json_t *reply, struct xm_error *e)
{
    struct handoff_msg msg;
    struct handoff_actions a;
    int r = handoff_msg_unpack(&msg, o, e);

    if (r)
        return r;
    if (in->state != IN_PROMISED && in->state != IN_UNDECIDED && in->state != IN_RUNNING)
        return xm_error_set(e, EPROTO, "the VM is not loaded");
    handoff_message(&in->handoff, &msg, &a);
    act(in, a, reply, e);
    if (e->code)
        json_object_set_new(reply, "reason", json_string(e->text));
    return 0;
}

/* ---- all calls ---- */

static void announce(struct incoming *in)
{
    json_t *args = json_pack("{s:i s:i s:i s:i}", "initial", 10, "max", 550, "rounds", 5, "step", 100);
    struct xm_error e = {0};

    in->announced = true;
    if (qmp_do(&in->shim->qemu.qmp, "announce-self", args, LOAD_TIMEOUT, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: %s", in->shim->vm.name, e.text);
}

void incoming_call(struct xm_post *p)
{
    struct xm_rx *rx = xm_container_of(p, struct xm_rx, post);
    struct incoming *in = rx->owner;
    json_t *o = rx->payload ? json_loadb(rx->payload, rx->hdr.length, 0, NULL) : NULL;
    const char *call = xm_json_str(o, "call", "");
    json_t *reply = json_object();
    struct xm_error e = {0};
    int r;

    if (!strcmp(call, "begin"))
        r = do_begin(in, o, reply, &e);
    else if (!strcmp(call, "incoming"))
        r = do_incoming(in, &e);
    else if (!strcmp(call, "loaded"))
        r = do_loaded(in, &e);
    else if (!strcmp(call, "handoff"))
        r = do_handoff(in, o, reply, &e);
    else
        r = xm_error_set(&e, EPROTO, "unknown call «%.20s»", call);
    bool announce_now = in->state == IN_RUNNING && !in->announced;
    json_object_set_new(reply, "ok", json_boolean(r == 0));
    if (r) {
        json_object_set_new(reply, "error", json_string(e.text));
        xm_log(XM_LOG_WARN, "VM %s, job %s: «%.20s» refused: %s", in->shim->vm.name, in->job, call, e.text);
    }
    char *text = json_dumps(reply, JSON_COMPACT);
    xm_rx_done(rx, text ? 0 : -ENOMEM, text, text ? (uint32_t)strlen(text) : 0);
    free(text);
    json_decref(reply);
    json_decref(o);
    if (announce_now)
        announce(in);
}

int incoming_decide_here(struct incoming *in, bool mine, struct xm_error *e)
{
    /* What the source would have answered itself. */
    struct handoff_msg msg = {
        .type = HANDOFF_MSG_ANSWER, .epoch = in->epoch, .owner = mine ? OWNER_GIVEN : OWNER_MINE};
    struct handoff_actions a;

    if (in->state != IN_UNDECIDED)
        return xm_error_set(e, EINVAL, "nothing is undecided here (it is «%s»)", incoming_state_name(in));
    snprintf(msg.to, sizeof msg.to, "%s", mine ? in->shim->host : "");
    handoff_message(&in->handoff, &msg, &a);
    act(in, a, NULL, e);
    if (in->state == IN_RUNNING)
        announce(in);
    return mine && in->state != IN_RUNNING ? -XM_MAX(e->code, 1) : 0;
}
