/* SPDX-License-Identifier: MIT */
/* The I/O engine on Linux AIO (libaio) and epoll: for hosts where io_uring is disabled.
 *
 * A turn submits a batch, waits in epoll and takes completions. The AIO context tells an eventfd of each
 * completion; that eventfd, the mailbox and the watches are all edge-triggered in one epoll set, so nobody
 * reads their counters.
 *
 * What AIO cannot do is done by one worker thread, started when it is first needed: fallocate, and fsync on
 * file systems without aio_fsync. A request given to it belongs to the worker between `jobs` and `finished`;
 * it touches nothing of it but the result. With buffered files (or O_DIRECT on tmpfs) AIO does its work
 * within io_submit: correct, but the turn takes longer.
 */
#include "blkcopy/engine.h"
#include "blkcopy/transfer.h"
#include "blkcopy/watches.h"
#include "base/base.h"

#include <fcntl.h>
#include <libaio.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define EVENTS_MAX 64
/* How long to wait before io_submit is tried again when the kernel had no room and nothing is under way that
 * could end. */
#define AGAIN_NS XM_NS_PER_MS

struct aio {
    struct xm_engine base;
    io_context_t ctx;
    int epoll;
    struct watches watches;
    struct xm_watch box, completions; /* the mailbox; the eventfd of the AIO context and of the worker */
    struct requests waiting, ended;   /* for their turn in the kernel; done without it */
    unsigned depth, running;          /* running: iocbs and jobs given and not completed */
    struct iocb *iocbs, **spare;      /* depth of them; those that are free */
    unsigned spares;
    struct iocb **batch; /* prepared, not yet submitted */
    unsigned batched;
    bool starved;        /* the kernel had no room for the batch */
    bool sync_by_worker; /* aio_fsync is not supported */
    bool have_worker;
    pthread_t worker;
    pthread_mutex_t lock; /* protects what follows */
    pthread_cond_t work;
    struct requests jobs, finished;
    bool end_worker;
};

static struct aio *aio_of(struct xm_engine *e)
{
    return xm_container_of(e, struct aio, base);
}

/* ---- the worker ---- */

static int do_job(const struct xm_io *io)
{
    int mode = io->way == WAY_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE, rc;

    if (io->way == WAY_SYNC)
        rc = fdatasync(io->file->fd);
    else
        rc = fallocate(io->file->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)(io->offset + io->progress),
                       (off_t)(io->length - io->progress));
    return rc < 0 ? -errno : 0;
}

static void *worker_main(void *arg)
{
    struct aio *a = arg;
    struct xm_io *io;

    pthread_mutex_lock(&a->lock);
    for (;;) {
        while (!(io = TAILQ_FIRST(&a->jobs)) && !a->end_worker)
            pthread_cond_wait(&a->work, &a->lock);
        if (!io)
            break;
        TAILQ_REMOVE(&a->jobs, io, link);
        pthread_mutex_unlock(&a->lock);
        int res = do_job(io);
        pthread_mutex_lock(&a->lock);
        io->res = res;
        TAILQ_INSERT_TAIL(&a->finished, io, link);
        eventfd_write(a->completions.fd, 1);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

static void give_to_worker(struct aio *a, struct xm_io *io)
{
    if (!a->have_worker) {
        int rc = pthread_create(&a->worker, NULL, worker_main, a);
        if (rc) {
            transfer_drop(io);
            io->res = -rc;
            TAILQ_INSERT_TAIL(&a->ended, io, link);
            return;
        }
        a->have_worker = true;
    }
    a->running++;
    pthread_mutex_lock(&a->lock);
    TAILQ_INSERT_TAIL(&a->jobs, io, link);
    pthread_cond_signal(&a->work);
    pthread_mutex_unlock(&a->lock);
}

/* ---- requests ---- */

/* Gives the request's next step to the worker, or to the batch that the turn submits. */
static void aio_start(struct aio *a, struct xm_io *io)
{
    struct step s;

    int rc = transfer_step(io, &s);
    if (rc < 0) {
        transfer_drop(io);
        io->res = rc;
        TAILQ_INSERT_TAIL(&a->ended, io, link);
        return;
    }
    if (s.way == WAY_PUNCH || s.way == WAY_ZERO_RANGE || (s.way == WAY_SYNC && a->sync_by_worker)) {
        give_to_worker(a, io);
        return;
    }
    struct iocb *cb = a->spare[--a->spares];
    if (s.way == WAY_SYNC)
        io_prep_fdsync(cb, s.fd);
    else if (s.way == WAY_READ)
        io_prep_preadv(cb, s.fd, s.iov, s.iovcnt, (long long)s.offset);
    else
        io_prep_pwritev(cb, s.fd, s.iov, s.iovcnt, (long long)s.offset);
    io_set_eventfd(cb, a->completions.fd);
    cb->data = io;
    a->batch[a->batched++] = cb;
    a->running++;
}

static void aio_start_waiting(struct aio *a)
{
    struct xm_io *io;

    while (a->running < a->depth && (io = TAILQ_FIRST(&a->waiting))) {
        TAILQ_REMOVE(&a->waiting, io, link);
        aio_start(a, io);
    }
}

static void aio_completed(struct aio *a, struct xm_io *io, int64_t res)
{
    a->running--;
    if (transfer_advance(io, res))
        xm_engine_end(&a->base, io, io->res);
    else
        TAILQ_INSERT_HEAD(&a->waiting, io, link);
}

/* Takes the batch's first iocb back: the kernel refuses it. */
static void first_refused(struct aio *a, int code)
{
    struct iocb *cb = a->batch[0];
    struct xm_io *io = cb->data;

    memmove(a->batch, a->batch + 1, --a->batched * sizeof(struct iocb *));
    a->spare[a->spares++] = cb;
    a->running--;
    if (io->way == WAY_SYNC && (code == -EINVAL || code == -EOPNOTSUPP)) {
        a->sync_by_worker = true;
        TAILQ_INSERT_HEAD(&a->waiting, io, link);
        aio_start_waiting(a);
        return;
    }
    transfer_drop(io);
    io->res = code;
    TAILQ_INSERT_TAIL(&a->ended, io, link);
}

static void submit_batch(struct aio *a)
{
    a->starved = false;
    while (a->batched) {
        int rc = io_submit(a->ctx, a->batched, a->batch);
        if (rc == -EAGAIN || rc == 0) {
            a->starved = true;
            return;
        }
        if (rc < 0) {
            if (rc != -EINTR)
                first_refused(a, rc);
            continue;
        }
        a->batched -= (unsigned)rc;
        memmove(a->batch, a->batch + rc, a->batched * sizeof(struct iocb *));
    }
}

static void aio_submit(struct xm_engine *e, struct xm_io *io)
{
    struct aio *a = aio_of(e);
    int rc = transfer_begin(io);

    if (rc <= 0) {
        io->res = rc;
        TAILQ_INSERT_TAIL(&a->ended, io, link);
    } else if (a->running < a->depth && TAILQ_EMPTY(&a->waiting)) {
        aio_start(a, io);
    } else {
        TAILQ_INSERT_TAIL(&a->waiting, io, link);
    }
}

/* ---- completions and watches ---- */

static void take_completions(struct aio *a)
{
    struct io_event events[EVENTS_MAX];
    struct timespec none = {0};
    struct requests finished = TAILQ_HEAD_INITIALIZER(finished);
    struct xm_io *io;
    int n;

    do {
        n = io_getevents(a->ctx, 0, EVENTS_MAX, events, &none);
        for (int i = 0; i < n; i++) {
            io = events[i].data;
            a->spare[a->spares++] = events[i].obj;
            aio_completed(a, io, (int64_t)events[i].res);
        }
    } while (n == EVENTS_MAX);
    if (!a->have_worker)
        return;
    pthread_mutex_lock(&a->lock);
    TAILQ_CONCAT(&finished, &a->finished, link);
    pthread_mutex_unlock(&a->lock);
    while ((io = TAILQ_FIRST(&finished))) {
        TAILQ_REMOVE(&finished, io, link);
        aio_completed(a, io, io->res);
    }
}

static void completions_ready(struct xm_watch *w)
{
    take_completions(xm_container_of(w, struct aio, completions));
}

static void aio_box_ready(struct xm_watch *w)
{
    xm_mailbox_run(&xm_container_of(w, struct aio, box)->base.mailbox);
}

static int aio_watch(struct xm_engine *e, struct xm_watch *w)
{
    struct aio *a = aio_of(e);

    int rc = watches_add(&a->watches, w);
    if (rc < 0)
        return rc;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = watches_key(&a->watches, w->slot)};
    if (epoll_ctl(a->epoll, EPOLL_CTL_ADD, w->fd, &event) < 0) {
        rc = -errno;
        watches_remove(&a->watches, w);
    }
    return rc;
}

static void aio_unwatch(struct xm_engine *e, struct xm_watch *w)
{
    struct aio *a = aio_of(e);

    epoll_ctl(a->epoll, EPOLL_CTL_DEL, w->fd, NULL);
    watches_remove(&a->watches, w);
}

static void aio_turn(struct xm_engine *e)
{
    struct epoll_event events[EVENTS_MAX];
    struct aio *a = aio_of(e);

    aio_start_waiting(a);
    if (e->before_wait)
        e->before_wait(e, e->before_wait_ctx);
    submit_batch(a);
    uint64_t patience = TAILQ_EMPTY(&a->ended) ? engine_patience(e) : 0;
    if (a->starved)
        patience = XM_MIN(patience, AGAIN_NS);
    struct timespec ts = {.tv_sec = (time_t)(patience / XM_NS_PER_S),
                          .tv_nsec = (long)(patience % XM_NS_PER_S)};
    int n = epoll_pwait2(a->epoll, events, EVENTS_MAX, patience == UINT64_MAX ? NULL : &ts, NULL);
    for (int i = 0; i < n; i++) {
        struct watch_slot *s = watches_find(&a->watches, events[i].data.u64);
        if (s && s->watch)
            s->watch->ready(s->watch);
    }
    engine_end_all(e, &a->ended);
    xm_engine_fire_timers(e);
}

/* ---- from open to free ---- */

/* Undoes as much as there is. */
static void aio_free(struct xm_engine *e)
{
    struct aio *a = aio_of(e);

    if (a->have_worker) {
        pthread_mutex_lock(&a->lock);
        a->end_worker = true;
        pthread_cond_signal(&a->work);
        pthread_mutex_unlock(&a->lock);
        pthread_join(a->worker, NULL);
    }
    if (a->ctx)
        io_destroy(a->ctx);
    watches_fini(&a->watches);
    if (a->epoll >= 0)
        close(a->epoll);
    if (a->completions.fd >= 0)
        close(a->completions.fd);
    if (a->base.ops)
        xm_engine_fini(e);
    pthread_cond_destroy(&a->work);
    pthread_mutex_destroy(&a->lock);
    free(a->iocbs);
    free(a->spare);
    free(a->batch);
    free(a);
}

static const struct xm_engine_ops aio_ops = {
    .name = "libaio",
    .submit = aio_submit,
    .watch = aio_watch,
    .unwatch = aio_unwatch,
    .turn = aio_turn,
    .free = aio_free,
};

static int set_up(struct aio *a, struct xm_error *e)
{
    a->iocbs = calloc(a->depth, sizeof(*a->iocbs));
    a->spare = calloc(a->depth, sizeof(struct iocb *));
    a->batch = calloc(a->depth, sizeof(struct iocb *));
    if (!a->iocbs || !a->spare || !a->batch)
        return xm_error_set(e, ENOMEM, "no memory for an I/O engine");
    while (a->spares < a->depth) {
        a->spare[a->spares] = &a->iocbs[a->spares];
        a->spares++;
    }
    int rc = io_setup((int)a->depth, &a->ctx);
    if (rc == -EAGAIN)
        return xm_error_set(e, EAGAIN, "no room for another AIO context: raise the sysctl fs.aio-max-nr");
    if (rc < 0)
        return xm_error_errno(e, -rc, "libaio cannot be set up");
    a->epoll = epoll_create1(EPOLL_CLOEXEC);
    a->completions =
        (struct xm_watch){.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .ready = completions_ready};
    if (a->epoll < 0 || a->completions.fd < 0)
        return xm_error_errno(e, errno, "no descriptor for an I/O engine");
    rc = xm_engine_init(&a->base, &aio_ops);
    if (rc < 0) {
        a->base.ops = NULL;
        return xm_error_errno(e, -rc, "the I/O engine's mailbox cannot be made");
    }
    a->box = (struct xm_watch){.fd = a->base.mailbox.fd, .ready = aio_box_ready};
    rc = aio_watch(&a->base, &a->box);
    if (rc == 0)
        rc = aio_watch(&a->base, &a->completions);
    return rc < 0 ? xm_error_errno(e, -rc, "the I/O engine's descriptors cannot be watched") : 0;
}

struct xm_engine *aio_open(unsigned depth, struct xm_error *e)
{
    struct aio *a = calloc(1, sizeof(*a));

    if (!a) {
        xm_error_set(e, ENOMEM, "no memory for an I/O engine");
        return NULL;
    }
    a->depth = depth;
    a->epoll = a->completions.fd = -1;
    TAILQ_INIT(&a->waiting);
    TAILQ_INIT(&a->ended);
    TAILQ_INIT(&a->jobs);
    TAILQ_INIT(&a->finished);
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->work, NULL);
    if (set_up(a, e) < 0) {
        aio_free(&a->base);
        return NULL;
    }
    return &a->base;
}
