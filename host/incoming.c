/* The destination's side of a migration, on one thread that answers the source's calls in their order:
 *
 *   begin     both sides have the same disks and RAM blocks; answers which disks read as zeros
 *   incoming  QEMU listens for its device state
 *   loaded    waits until QEMU has loaded all of it and is stopped; from the answer on the VM is *promised*:
 * the source may give it run       the source has recorded that the VM is ours: we record it too, then run it
 *
 * Frames of disks, RAM and device state go to their owners without passing this thread.
 *
 * Failures: until the VM is promised, anything (links gone, ABORT, a bad frame, QEMU's end, nobody calling
 * within a minute) ends this side: QEMU and disks made for it are deleted, the source still has everything.
 * Once it is promised and the links are lost, we do not know whether it was given: `undecided`. The VM stays
 * loaded and stopped until the source's record is known (incoming_decide). */
#include "host/incoming.h"
#include "host/stream.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_LINK_TIMEOUT (60 * XM_NS_PER_S)
#define LOAD_TIMEOUT       (10 * XM_NS_PER_S)
#define LINGER             (10 * XM_NS_PER_S)

enum in_state { IN_WAITING, IN_COPYING, IN_LOADING, IN_PROMISED, IN_UNDECIDED, IN_RUNNING, IN_FAILED };
static const char *const state_names[] = {"waiting",   "copying", "loading", "promised",
                                          "undecided", "running", "failed"};

struct incoming {
    struct shim *shim;
    pthread_t thread;
    bool started;
    struct xm_mailbox mailbox;
    char source[64], job[32];
    uint8_t token[XM_TOKEN_BYTES];
    enum in_state state; /* its thread */
    bool storage;
    struct xm_links *links;
    struct xm_ramsink *ramsink;
    struct stream *stream;
    uint64_t began, ran;
    uint64_t epoch;
    _Atomic bool stop;    /* main */
    pthread_mutex_t lock; /* protects failure, closed, stream */
    bool closed;          /* no more frames are handed on */
    struct xm_error failure;
    char qemu_status[32];
};

static void in_set_state(struct incoming *in, enum in_state to)
{
    xm_log(XM_LOG_INFO, "VM %s, job %s from %s: %s -> %s", in->shim->vm.name, in->job, in->source,
           state_names[in->state], state_names[to]);
    in->state = to;
}

void incoming_fail(struct incoming *in, const char *why)
{
    pthread_mutex_lock(&in->lock);
    if (!in->failure.code)
        xm_error_set(&in->failure, EIO, "%s", why);
    pthread_mutex_unlock(&in->lock);
}

/* ---- frames ---- */

struct disk_frame {
    struct xm_wreq req;
    struct xm_rx *rx;
};

static void disk_frame_done(struct xm_wreq *req, int status, const void *reply, uint32_t len)
{
    struct disk_frame *f = xm_container_of(req, struct disk_frame, req);
    xm_rx_done(f->rx, status, reply, len);
    free(f);
}

static void disk_frame_run(struct xm_post *p)
{
    struct xm_rx *rx = xm_container_of(p, struct xm_rx, post);
    struct shim_disk *d = rx->owner;
    struct disk_frame *f = d->writer ? calloc(1, sizeof *f) : NULL;

    if (!f) {
        xm_rx_done(rx, d->writer ? -ENOMEM : -ECANCELED, NULL, 0);
        return;
    }
    f->rx = rx;
    f->req.hdr = rx->hdr;
    f->req.payload = rx->payload;
    f->req.done = disk_frame_done;
    xm_writer_submit(d->writer, &f->req);
}

static int check_frame(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    struct incoming *in = ctx;
    struct shim *s = in->shim;

    if (h->type >= XM_FRAME_RAM_PAGES && h->type < XM_FRAME_STREAM)
        return xm_ramsink_check(in->ramsink, h, e);
    if (h->type >= XM_FRAME_STREAM)
        return 0; /* bounded by the table of types; CALLs are judged as they are read */
    if (!in->storage)
        return xm_error_set(e, EPROTO, "a disk's frame in a migration that leaves the disks where they are");
    if (h->object >= s->disks)
        return xm_error_set(e, EPROTO, "a frame for disk %u of %u", h->object, s->disks);
    uint64_t size = s->disk[h->object].file->size;
    uint64_t n = h->type == XM_FRAME_DISK_DATA ? h->length : h->extent;
    if (h->offset > size || n > size - h->offset)
        return xm_error_set(e, EPROTO, "a frame for %llu bytes at %llu of disk %s, which has %llu",
                            (unsigned long long)n, (unsigned long long)h->offset,
                            s->disk[h->object].spec->name, (unsigned long long)size);
    return 0;
}

static void call_run(struct xm_post *);

/* Hands a frame on to its owner, unless this side is closing: then its queue is not looked at any more. */
static void hand_on(struct incoming *in, struct xm_mailbox *to, struct xm_rx *rx)
{
    pthread_mutex_lock(&in->lock);
    bool closed = in->closed;
    if (!closed)
        xm_mailbox_post(to, &rx->post);
    pthread_mutex_unlock(&in->lock);
    if (closed)
        xm_rx_done(rx, -ECANCELED, NULL, 0);
}

static void take_frame(void *ctx, struct xm_rx *rx)
{
    struct incoming *in = ctx;
    uint8_t type = rx->hdr.type;

    if (type >= XM_FRAME_DISK_DATA && type < XM_FRAME_RAM_PAGES) {
        struct shim_disk *d = &in->shim->disk[rx->hdr.object];
        rx->owner = d;
        rx->post.run = disk_frame_run;
        hand_on(in, &d->engine->mailbox, rx);
    } else if (type == XM_FRAME_RAM_PAGES || type == XM_FRAME_RAM_DIGEST) {
        xm_ramsink_frame(in->ramsink, rx);
    } else if (type == XM_FRAME_STREAM) {
        pthread_mutex_lock(&in->lock);
        struct stream *st = in->closed ? NULL : in->stream;
        if (st)
            stream_frame(st, rx);
        pthread_mutex_unlock(&in->lock);
        if (!st)
            xm_rx_done(rx, -EPROTO, NULL, 0);
    } else if (type == XM_FRAME_CALL) {
        rx->owner = in;
        rx->post.run = call_run;
        hand_on(in, &in->mailbox, rx);
    } else {
        xm_rx_done(rx, -EPROTO, NULL, 0);
    }
}

/* ---- calls ---- */

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
    in_set_state(in, IN_COPYING);
    return 0;
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
    if (!r)
        in_set_state(in, IN_LOADING);
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
    in_set_state(in, IN_PROMISED);
    return 0;
}

static void took_over(struct xm_post *);

struct note {
    struct xm_post post;
    struct incoming *in;
};

static int post_main(struct incoming *in, void (*fn)(struct xm_post *))
{
    struct note *n = calloc(1, sizeof *n);

    if (!n)
        return -ENOMEM;
    n->post.run = fn;
    n->in = in;
    xm_mailbox_post(&in->shim->mailbox, &n->post);
    return 0;
}

/* The VM is ours: recorded first, then run. Asked twice (the answer was lost): the same answer. */
static int do_run(struct incoming *in, uint64_t epoch, struct xm_error *e)
{
    struct shim *s = in->shim;
    struct owner_record rec = {.epoch = epoch, .owner = OWNER_MINE};

    if (in->state == IN_RUNNING)
        return 0;
    if ((in->state != IN_PROMISED && in->state != IN_UNDECIDED) || epoch != in->epoch)
        return xm_error_set(e, EPROTO, "the VM is not loaded, or another epoch than %llu",
                            (unsigned long long)in->epoch);
    snprintf(rec.from, sizeof rec.from, "%s", in->source);
    int r = owner_save(s->state_dir, s->vm.name, &rec, e);
    xm_fault("run-after-record");
    if (!r)
        r = qmp_do(&s->qemu.qmp, "cont", NULL, LOAD_TIMEOUT, e);
    if (!r) {
        in->ran = xm_now();
        s->epoch = epoch;
        in_set_state(in, IN_RUNNING);
    }
    return r;
}

static void announce(struct incoming *in)
{
    json_t *args = json_pack("{s:i s:i s:i s:i}", "initial", 10, "max", 550, "rounds", 5, "step", 100);
    struct xm_error e = {0};

    if (qmp_do(&in->shim->qemu.qmp, "announce-self", args, LOAD_TIMEOUT, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: %s", in->shim->vm.name, e.text);
}

static void call_run(struct xm_post *p)
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
    else if (!strcmp(call, "run"))
        r = do_run(in, (uint64_t)xm_json_int(o, "epoch", 0), &e);
    else
        r = xm_error_set(&e, EPROTO, "unknown call «%.20s»", call);
    bool announce_now = !r && !strcmp(call, "run");
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

/* ---- the thread ---- */

void incoming_qmp_event(struct incoming *in, const char *name, const json_t *data)
{
    if (!strcmp(name, "MIGRATION"))
        snprintf(in->qemu_status, sizeof in->qemu_status, "%s", xm_json_str(data, "status", ""));
}

static void find_failure(struct incoming *in, struct xm_error *e)
{
    pthread_mutex_lock(&in->lock);
    *e = in->failure;
    pthread_mutex_unlock(&in->lock);
    if (!e->code)
        xm_links_error(in->links, e);
    if (!e->code && in->state == IN_WAITING && xm_now() - in->began > FIRST_LINK_TIMEOUT)
        xm_error_set(e, ETIMEDOUT, "%s did not come with its migration", in->source);
}

static void undecided(struct xm_post *p)
{
    struct note *n = xm_container_of(p, struct note, post);
    struct shim *s = n->in->shim;

    s->role = SHIM_UNDECIDED;
    shim_emit(s,
              json_pack("{s:s s:s s:s}", "event", "undecided", "job", n->in->job, "source", n->in->source));
    free(n);
}

static void failed(struct xm_post *p)
{
    struct note *n = xm_container_of(p, struct note, post);
    struct shim *s = n->in->shim;
    struct xm_error e = {0};

    find_failure(n->in, &e);
    xm_log(XM_LOG_WARN, "VM %s, job %s from %s has ended here: %s", s->vm.name, n->in->job, n->in->source,
           e.text);
    shim_emit(s, json_pack("{s:s s:s s:s}", "event", "incoming-failed", "job", n->in->job, "error", e.text));
    free(n);
    shim_end(s);
}

/* Main thread: the VM is an ordinary one of this host from now on. */
static void took_over(struct xm_post *p)
{
    struct note *n = xm_container_of(p, struct note, post);
    struct shim *s = n->in->shim;
    struct incoming *in = n->in;

    free(n);
    incoming_free(in);
    s->incoming = NULL;
}

static void now_owner(struct xm_post *p)
{
    struct note *n = xm_container_of(p, struct note, post);
    struct shim *s = n->in->shim;

    s->role = SHIM_OWNER;
    shim_emit(s, json_pack("{s:s s:s s:s s:I}", "event", "running", "job", n->in->job, "source",
                           n->in->source, "epoch", (json_int_t)s->epoch));
    free(n);
}

static void *incoming_main(void *arg)
{
    struct incoming *in = arg;
    bool told_running = false;

    pthread_setname_np(pthread_self(), "incoming");
    xm_mailbox_own(&in->mailbox);
    in->began = xm_now();
    while (!in->stop) {
        struct xm_error e = {0};
        xm_mailbox_wait(&in->mailbox, 50);
        qmp_pump(&in->shim->qemu.qmp, 0, NULL);
        find_failure(in, &e);
        if (in->state == IN_RUNNING) {
            if (!told_running)
                told_running = post_main(in, now_owner) == 0;
            /* The source closes the links when it has our answer. */
            if (e.code || xm_now() - in->ran > LINGER) {
                post_main(in, took_over);
                break;
            }
        } else if (e.code && in->state == IN_PROMISED) {
            in_set_state(in, IN_UNDECIDED);
            post_main(in, undecided);
        } else if (e.code && in->state != IN_UNDECIDED) {
            in_set_state(in, IN_FAILED);
            post_main(in, failed);
            break;
        }
    }
    return NULL;
}

struct decision {
    struct incoming *in;
    bool mine;
    int result;
    struct xm_error error;
};

static void decide(void *arg)
{
    struct decision *d = arg;

    if (d->in->state != IN_UNDECIDED) {
        d->result = xm_error_set(&d->error, EINVAL, "nothing is undecided here (it is «%s»)",
                                 state_names[d->in->state]);
    } else if (d->mine) {
        d->result = do_run(d->in, d->in->epoch, &d->error);
        if (!d->result)
            announce(d->in);
    } else {
        in_set_state(d->in, IN_FAILED);
        post_main(d->in, failed);
    }
}

int incoming_decide(struct incoming *in, bool mine, struct xm_error *e)
{
    struct decision d = {.in = in, .mine = mine};

    if (!mine)
        in->shim->role = SHIM_INCOMING; /* it goes as any failed one */
    xm_mailbox_call(&in->mailbox, decide, &d);
    if (d.result && e)
        *e = d.error;
    return d.result;
}

/* ---- start and end ---- */

int incoming_new(struct shim *s, const json_t *o, struct xm_error *e)
{
    struct incoming *in = calloc(1, sizeof *in);
    const char *hex = xm_json_str(o, "token", "");

    if (!in)
        return xm_error_set(e, ENOMEM, "no memory");
    s->incoming = in;
    s->created = json_deep_copy(json_object_get(o, "created"));
    in->shim = s;
    in->storage = xm_json_bool(o, "storage", true);
    s->shares_disks = !in->storage;
    pthread_mutex_init(&in->lock, NULL);
    int r = xm_mailbox_init(&in->mailbox);
    if (r)
        return xm_error_errno(e, -r, "eventfd");
    snprintf(in->source, sizeof in->source, "%s", xm_json_str(o, "source", "?"));
    snprintf(in->job, sizeof in->job, "%s", xm_json_str(o, "job", "0"));
    for (unsigned i = 0; i < XM_TOKEN_BYTES; i++) {
        unsigned byte;
        if (strlen(hex) != 2 * XM_TOKEN_BYTES || sscanf(hex + 2 * (size_t)i, "%2x", &byte) != 1)
            return xm_error_set(e, EINVAL, "no usable token");
        in->token[i] = (uint8_t)byte;
    }
    return 0;
}

static void writer_new(struct shim_disk *d, void *arg)
{
    d->writer = xm_writer_new(d->engine, d->file, arg);
}

static void writer_cancel(struct shim_disk *d, void *arg)
{
    (void)arg;
    if (d->writer)
        xm_writer_cancel(d->writer);
}

static void writer_free(struct shim_disk *d, void *arg)
{
    (void)arg;
    if (d->writer)
        xm_writer_free(d->writer);
    d->writer = NULL;
}

int incoming_start(struct incoming *in, struct xm_error *e)
{
    struct shim *s = in->shim;
    struct xm_links_opts o = {
        .sink = {check_frame, take_frame, in},
    };

    memcpy(o.token, in->token, sizeof o.token);
    in->ramsink = xm_ramsink_new(&s->ram, e);
    in->links = in->ramsink ? xm_links_new(&o, e) : NULL;
    if (!in->links)
        return -XM_MAX(e->code, 1);
    xm_ramsink_populate(in->ramsink);
    for (unsigned i = 0; i < s->disks; i++) {
        shim_disk_call(&s->disk[i], writer_new, e);
        if (!s->disk[i].writer)
            return -XM_MAX(e->code, 1);
    }
    int r = pthread_create(&in->thread, NULL, incoming_main, in);
    in->started = r == 0;
    return r ? xm_error_errno(e, r, "the migration's thread") : 0;
}

int incoming_add_link(struct incoming *in, int fd, const char *name, struct xm_error *e)
{
    int r = xm_links_add(in->links, fd, false, name, e);
    return XM_MIN(r, 0);
}

void incoming_status(struct incoming *in, json_t *into)
{
    json_object_set_new(into, "step", json_string(state_names[in->state]));
    json_object_set_new(into, "job", json_string(in->job));
    json_object_set_new(into, "source", json_string(in->source));
}

void incoming_free(struct incoming *in)
{
    struct shim *s = in->shim;

    in->stop = true;
    if (in->started)
        pthread_join(in->thread, NULL);
    if (in->links)
        xm_links_abort(in->links, "the destination has ended this migration");
    pthread_mutex_lock(&in->lock);
    in->closed = true;
    pthread_mutex_unlock(&in->lock);
    for (unsigned i = 0; i < s->disks; i++) {
        if (s->disk[i].started)
            shim_disk_call(&s->disk[i], writer_cancel, NULL);
    }
    xm_mailbox_run(&in->mailbox); /* calls that came too late: answered with what they get */
    stream_free(in->stream);
    in->stream = NULL;
    if (in->links)
        xm_links_free(in->links);
    for (unsigned i = 0; i < s->disks; i++) {
        if (s->disk[i].started)
            shim_disk_call(&s->disk[i], writer_free, NULL);
    }
    if (in->ramsink)
        xm_ramsink_free(in->ramsink);
    xm_mailbox_destroy(&in->mailbox);
    pthread_mutex_destroy(&in->lock);
    free(in);
}
