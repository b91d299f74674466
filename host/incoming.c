/* The destination's side of a migration, on one thread that answers the source's calls in their order:
 *
 *   begin     both sides have the same disks and RAM blocks; answers which disks read as zeros
 *   incoming  QEMU listens for its device state
 *   loaded    waits until QEMU has loaded all of it and is stopped; from the answer on the VM is *promised*: the source may give it
 *   handoff   the source has recorded that the VM is ours: we record it too, then run it (host/handoff.h)
 *
 * Frames of disks, RAM and device state go to their owners without passing this thread.
 *
 * Failures: until the VM is promised, anything (links gone, ABORT, a bad frame, QEMU's end, nobody calling within a minute) ends this side:
 * QEMU and disks made for it are deleted, the source still has everything. Once it is promised and the links are lost, we do not know
 * whether it was given: `undecided`. The VM stays loaded and stopped until the source's record is known (incoming_decide). */
#include "host/incoming_inside.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_LINK_TIMEOUT (60 * XM_NS_PER_S)
#define LINGER             (10 * XM_NS_PER_S)

static const char *const state_names[] = {"waiting",   "copying", "loading", "promised",
                                          "undecided", "running", "failed"};

const char *incoming_state_name(const struct incoming *in)
{
    return state_names[atomic_load(&in->state)];
}

void incoming_set_state(struct incoming *in, enum in_state to)
{
    xm_log(XM_LOG_INFO, "VM %s, job %s from %s: %s -> %s", in->shim->vm.name, in->job, in->source,
           incoming_state_name(in), state_names[to]);
    in->state = to;
}

void incoming_fail(struct incoming *in, const char *why)
{
    pthread_mutex_lock(&in->lock);
    if (!in->failure.code)
        xm_error_set(&in->failure, EIO, "%s", why);
    pthread_mutex_unlock(&in->lock);
}

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
    s->role = SHIM_INCOMING; /* if it was undecided, it is not any more: nothing of it stays */
    xm_log(XM_LOG_WARN, "VM %s, job %s from %s has ended here: %s", s->vm.name, n->in->job, n->in->source,
           e.text);
    shim_emit(s, json_pack("{s:s s:s s:s}", "event", "incoming-failed", "job", n->in->job, "error", e.text));
    free(n);
    shim_end(s);
}

void incoming_end(struct incoming *in)
{
    incoming_set_state(in, IN_FAILED);
    post_main(in, failed);
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
        if (in->state == IN_FAILED)
            break;
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
            incoming_set_state(in, IN_UNDECIDED);
            post_main(in, undecided);
        } else if (e.code && in->state != IN_UNDECIDED) {
            incoming_end(in);
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
    d->result = incoming_decide_here(d->in, d->mine, &d->error);
}

int incoming_decide(struct incoming *in, bool mine, struct xm_error *e)
{
    struct decision d = {.in = in, .mine = mine};

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
        .sink = {.check = incoming_check_frame, .frame = incoming_take_frame, .ctx = in},
    };

    memcpy(o.token, in->token, sizeof o.token);
    in->ramsink = xm_ramsink_new(&s->ram, e);
    if (in->ramsink)
        o.sink.placer = xm_ramsink_placer(in->ramsink);
    in->links = in->ramsink ? xm_links_new(&o, e) : NULL;
    if (!in->links)
        return -XM_MAX(e->code, 1);
    struct owner_record rec;
    struct handoff_actions none;
    int r = owner_load(s->state_dir, s->vm.name, &rec, e);
    if (r && r != -ENOENT)
        return r;
    if ((r = handoff_start(&in->handoff, HANDOFF_DESTINATION, false, s->host, in->source, r ? NULL : &rec,
                           &none, e)) < 0)
        return r;
    xm_links_set_background(in->links, true);
    xm_ramsink_populate(in->ramsink);
    for (unsigned i = 0; i < s->disks; i++) {
        shim_disk_call(&s->disk[i], writer_new, e);
        if (!s->disk[i].writer)
            return -XM_MAX(e->code, 1);
    }
    r = pthread_create(&in->thread, NULL, incoming_main, in);
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
    json_object_set_new(into, "step", json_string(incoming_state_name(in)));
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
