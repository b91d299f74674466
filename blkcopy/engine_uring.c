/* SPDX-License-Identifier: MIT */
/* The I/O engine on io_uring. One system call a turn: io_uring_enter submits what is queued and waits for
 * what comes. Of many requests the first go before that (SUBMIT_MIN), and of many completions the kernel's
 * wait takes one, the rest with a call of its own: the guest gets them all at once, and so its next requests
 * come at once.
 *
 * The ring is made disabled and enabled in the first turn, by the thread that owns it from then on
 * (SINGLE_ISSUER with DEFER_TASKRUN: completions are processed within our own enter and interrupt nobody).
 * Older kernels get a plainer ring.
 *
 * Every request in the kernel has one SQE at a time. `depth` bounds those, and the submission queue is larger
 * than depth, so requests always find room in it; what is beyond depth waits in a list. Watched eventfds are
 * multishot polls, edge-triggered: each write to the eventfd makes a completion without anybody reading its
 * counter. A poll that ends (no CQE_F_MORE) is armed again in the next turn, and fires at once if the counter
 * is not 0, so that no write is lost in between.
 *
 * Where somebody waits for a request that is likely to be done soon (xm_engine.watched), the kernel's word
 * that there is something for us (SQ_TASKRUN) is watched for up to SPIN_NS before we sleep: that saves both
 * sides a wake-up. After some times in vain it is left, until sleeps turn out to have been short.
 *
 * user_data: a pointer to the xm_io, or a watch's key with bit 0 set, or IGNORED.
 */
#include "blkcopy/engine.h"
#include "blkcopy/transfer.h"
#include "blkcopy/watches.h"
#include "base/base.h"

#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define IS_WATCH 1u
#define IGNORED  2u
/* Room in the queues for the watches' polls beside the requests. */
#define WATCH_ROOM 64u
/* A 4 KiB request to a loop device over a file in memory takes 15 to 25 us, to the real disk here 70 us:
 * there it is in vain, and left. */
#define SPIN_NS     32000u
#define SPIN_CREDIT 4u
/* In vain, too, where the worker that does the request was put on the processor that we watch on: then it
 * begins only when we sleep, and each such sleep is short (sched traces; a front end that stays awake has
 * the other processor). So each time in vain doubles how many short sleeps it takes until the next try.
 * Without: bench-vhost in memory and on loop devices, depth 1, medians of 14 in turn: 94,500 and 54,400
 * IOPS reading, 78,200 and 46,800 writing; with it 102,400 and 59,900, 92,400 and 50,600; p99 (96, 85, 81,
 * 99) 53, 72, 60, 83 us. */
#define SPIN_WARY_MAX 256u
/* Who sleeps no longer than that would have seen it by watching: half of it is waking up, the other side's
 * and ours. */
#define QUICK_NS 64000u
/* What is submitted together reaches the disk together, when the kernel has made the last of it; requests
 * that came back together leave the disk standing still until then. So as many go as the kernel has
 * already, MIN to MAX: the less the disk has to do, the sooner the next ones. bench-vhost on the real
 * disk, 4 KiB at depth 32, medians in turn: all at the turn's end 46,200 IOPS reading and 44,500 writing,
 * every 4 55,400 and 54,600, every 8 57,200 and 48,600, every 16 50,700 and 48,300; in later series every
 * 8 58,900 and 89,700, 62,400 and 92,900, 67,500 and 109,000, beside 2 to 8 with take_the_rest() 61,900
 * and 101,700, 62,200 and 102,700, 69,700 and 114,700 (fio in the last two 69,500 and 96,100, 80,300 and
 * 125,100). A MIN of 1 or a MAX of 4 on the real disk the same within the noise. In memory and on loop
 * devices 4 costs a tenth, 8 and 2 to 8 nothing. */
#define SUBMIT_MIN 2u
#define SUBMIT_MAX 8u
/* What the kernel does in one go is less than 2 GiB anyway. */
#define ONE_READ_MAX (1u << 30)

struct uring {
    struct xm_engine base;
    struct io_uring ring;
    struct watches watches;
    struct xm_watch box;         /* the mailbox */
    struct requests waiting;     /* for their turn in the kernel */
    struct requests ended;       /* without the kernel: done() is called within turn() */
    unsigned depth, running;     /* running: SQEs of requests given and not completed */
    bool enabled, arm;           /* arm: some watch has to be armed or disarmed */
    unsigned credit;             /* how often watching may be in vain */
    unsigned wary, short_sleeps; /* so many it takes until it is tried again; so many there were */
    int complained;              /* the last error of io_uring_enter that was logged */
};

static struct uring *uring_of(struct xm_engine *e)
{
    return xm_container_of(e, struct uring, base);
}

/* Gives the request's next step to the kernel, at the turn's enter or as soon as enough wait. */
static void uring_start(struct uring *u, struct xm_io *io)
{
    struct io_uring_sqe *sqe;
    struct step s;

    int rc = transfer_step(io, &s);
    if (rc < 0) {
        transfer_drop(io);
        io->res = rc;
        TAILQ_INSERT_TAIL(&u->ended, io, link);
        return;
    }
    sqe = io_uring_get_sqe(&u->ring); /* not NULL: see above */
    switch (s.way) {
    case WAY_READ:
        if (s.iovcnt == 1)
            io_uring_prep_read(sqe, s.fd, s.iov->iov_base, (unsigned)XM_MIN(s.iov->iov_len, ONE_READ_MAX),
                               s.offset);
        else
            io_uring_prep_readv(sqe, s.fd, s.iov, (unsigned)s.iovcnt, s.offset);
        break;
    case WAY_WRITE:
    case WAY_WRITE_ZEROS:
        if (s.iovcnt == 1)
            io_uring_prep_write(sqe, s.fd, s.iov->iov_base, (unsigned)XM_MIN(s.iov->iov_len, ONE_READ_MAX),
                                s.offset);
        else
            io_uring_prep_writev(sqe, s.fd, s.iov, (unsigned)s.iovcnt, s.offset);
        break;
    case WAY_SYNC:
        io_uring_prep_fsync(sqe, s.fd, IORING_FSYNC_DATASYNC);
        break;
    case WAY_PUNCH:
    case WAY_ZERO_RANGE:
        io_uring_prep_fallocate(sqe, s.fd, s.mode, (off_t)s.offset, (off_t)s.length);
        break;
    }
    io_uring_sqe_set_data(sqe, io);
    u->running++;
    /* What goes wrong is left to the turn's enter. */
    unsigned ready = io_uring_sq_ready(&u->ring), given = u->running - XM_MIN(u->running, ready);
    if (u->enabled && ready >= XM_MIN(XM_MAX(given, SUBMIT_MIN), SUBMIT_MAX))
        io_uring_submit(&u->ring);
}

static void uring_start_waiting(struct uring *u)
{
    struct xm_io *io;

    while (u->running < u->depth && (io = TAILQ_FIRST(&u->waiting))) {
        TAILQ_REMOVE(&u->waiting, io, link);
        uring_start(u, io);
    }
}

static void uring_submit(struct xm_engine *e, struct xm_io *io)
{
    struct uring *u = uring_of(e);
    int rc = transfer_begin(io);

    if (rc <= 0) {
        io->res = rc;
        TAILQ_INSERT_TAIL(&u->ended, io, link);
    } else if (u->running < u->depth && TAILQ_EMPTY(&u->waiting)) {
        uring_start(u, io);
    } else {
        TAILQ_INSERT_TAIL(&u->waiting, io, link);
    }
}

static int uring_watch(struct xm_engine *e, struct xm_watch *w)
{
    struct uring *u = uring_of(e);

    u->arm = true;
    return watches_add(&u->watches, w);
}

static void uring_unwatch(struct xm_engine *e, struct xm_watch *w)
{
    struct uring *u = uring_of(e);

    u->arm = true;
    watches_remove(&u->watches, w);
}

/* Brings what the kernel polls in line with the table. What does not fit into the queue waits for the next
 * turn. */
static void arm_watches(struct uring *u)
{
    u->arm = false;
    for (uint32_t i = 0; i < u->watches.count; i++) {
        struct watch_slot *s = &u->watches.slot[i];
        if (s->armed == (s->watch != NULL))
            continue;
        if (io_uring_sq_space_left(&u->ring) <= u->depth - u->running) {
            u->arm = true;
            return;
        }
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
        uint64_t key = watches_key(&u->watches, i) | IS_WATCH;
        if (s->watch) {
            io_uring_prep_poll_multishot(sqe, s->watch->fd, POLLIN);
            io_uring_sqe_set_data64(sqe, key);
        } else {
            io_uring_prep_poll_remove(sqe, key);
            io_uring_sqe_set_data64(sqe, IGNORED);
        }
        s->armed = s->watch != NULL;
    }
}

static void watch_completed(struct uring *u, uint64_t key, int res, unsigned flags)
{
    struct watch_slot *s = watches_find(&u->watches, key);

    if (!s || !s->watch || !s->armed)
        return;
    if (res < 0) {
        /* Left armed in our books: to poll again what cannot be polled would only spin. */
        xm_log(XM_LOG_ERROR, "watching descriptor %d failed: %s", s->watch->fd, strerror(-res));
        return;
    }
    if (!(flags & IORING_CQE_F_MORE)) {
        s->armed = false;
        u->arm = true;
    }
    s->watch->ready(s->watch);
}

static void uring_completed(struct uring *u, struct xm_io *io, int res)
{
    u->running--;
    if (transfer_advance(io, res))
        xm_engine_end(&u->base, io, io->res);
    else
        TAILQ_INSERT_HEAD(&u->waiting, io, link);
}

/* Handles what has completed by now. Each entry is taken out of the ring before its callback, which may
 * submit, watch, unwatch. */
static void uring_reap(struct uring *u)
{
    for (unsigned n = io_uring_cq_ready(&u->ring); n; n--) {
        struct io_uring_cqe *cqe;
        if (io_uring_peek_cqe(&u->ring, &cqe) < 0)
            return;
        uint64_t data = io_uring_cqe_get_data64(cqe);
        int res = cqe->res;
        unsigned flags = cqe->flags;
        io_uring_cqe_seen(&u->ring, cqe);
        if (data & IS_WATCH)
            watch_completed(u, data, res, flags);
        else if (data != IGNORED)
            uring_completed(u, (struct xm_io *)(uintptr_t)data, res);
    }
}

static void uring_complain(struct uring *u, const char *what, int rc)
{
    if (rc == u->complained)
        return;
    u->complained = rc;
    xm_log(XM_LOG_ERROR, "io_uring: %s: %s", what, strerror(-rc));
}

/* DEFER_TASKRUN: of the completions that are there the kernel's wait takes no more than it was told to
 * wait for. */
static void take_the_rest(struct uring *u)
{
    if (u->ring.flags & IORING_SETUP_TASKRUN_FLAG &&
        IO_URING_READ_ONCE(*u->ring.sq.kflags) & IORING_SQ_TASKRUN)
        io_uring_get_events(&u->ring);
}

static bool something_came(struct uring *u)
{
    return io_uring_cq_ready(&u->ring) ||
           (IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

/* Submits, and watches for a while. True: something came, and has been fetched. */
static bool uring_spin(struct uring *u, uint64_t patience)
{
    uint64_t until = xm_now() + XM_MIN(patience, SPIN_NS);

    io_uring_submit(&u->ring);
    do {
        for (int i = 0; i < 32; i++) {
            if (something_came(u)) {
                io_uring_get_events(&u->ring);
                u->credit = SPIN_CREDIT;
                u->wary = 1;
                return true;
            }
            xm_relax();
        }
    } while (xm_now() < until);
    if (--u->credit == 0) {
        u->short_sleeps = 0;
        u->wary = XM_MIN(2 * u->wary, SPIN_WARY_MAX);
    }
    return false;
}

static void uring_enter(struct uring *u, uint64_t patience)
{
    struct __kernel_timespec ts = {.tv_sec = (int64_t)(patience / XM_NS_PER_S),
                                   .tv_nsec = (long long)(patience % XM_NS_PER_S)};
    struct io_uring_cqe *cqe;
    int rc;

    bool watched = u->base.watched && patience && (u->ring.flags & IORING_SETUP_TASKRUN_FLAG);
    u->base.watched = false;
    if (watched && u->credit && uring_spin(u, patience))
        return;
    uint64_t slept = watched ? xm_now() : 0;
    if (patience == 0)
        rc = io_uring_submit_and_get_events(&u->ring);
    else
        rc = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, patience == UINT64_MAX ? NULL : &ts, NULL);
    take_the_rest(u);
    if (watched && !u->credit && rc >= 0 && xm_now() - slept < QUICK_NS && ++u->short_sleeps >= u->wary)
        u->credit = 1;
    /* Short of memory, or completions that have to be taken first: the queue stays as it is until the next
     * turn. */
    if (rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
        uring_complain(u, "submitting", rc);
}

static void uring_turn(struct xm_engine *e)
{
    struct uring *u = uring_of(e);

    if (!u->enabled) {
        if (u->ring.flags & IORING_SETUP_R_DISABLED) {
            int rc = io_uring_register(u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
            if (rc < 0)
                uring_complain(u, "enabling the ring", rc);
        }
        u->enabled = true;
    }
    uring_start_waiting(u);
    if (e->before_wait)
        e->before_wait(e, e->before_wait_ctx);
    if (u->arm)
        arm_watches(u);
    uring_enter(u, TAILQ_EMPTY(&u->ended) ? engine_patience(e) : 0);
    uring_reap(u);
    engine_end_all(e, &u->ended);
    xm_engine_fire_timers(e);
}

static void uring_free(struct xm_engine *e)
{
    struct uring *u = uring_of(e);

    io_uring_queue_exit(&u->ring);
    watches_fini(&u->watches);
    xm_engine_fini(e);
    free(u);
}

static const struct xm_engine_ops uring_ops = {
    .name = "io_uring",
    .submit = uring_submit,
    .watch = uring_watch,
    .unwatch = uring_unwatch,
    .turn = uring_turn,
    .free = uring_free,
};

static void uring_box_ready(struct xm_watch *w)
{
    xm_mailbox_run(&xm_container_of(w, struct uring, box)->base.mailbox);
}

static int setup_ring(struct uring *u, struct xm_error *e)
{
    static const unsigned best =
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED;
    static const unsigned tries[] = {best | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG,
                                     IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL, 0};
    unsigned entries = u->depth + WATCH_ROOM;
    int rc = -EINVAL;

    for (size_t i = 0; rc == -EINVAL && i < sizeof(tries) / sizeof(*tries); i++) {
        /* More may complete in one turn than requests are under way: every watch, several times. */
        struct io_uring_params p = {.flags = tries[i] | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE,
                                    .cq_entries = 2 * entries + 8 * WATCH_ROOM};
        rc = io_uring_queue_init_params(entries, &u->ring, &p);
    }
    if (rc == -ENOSYS)
        return xm_error_set(e, ENOSYS, "this kernel has no io_uring");
    if (rc == -EPERM || rc == -EACCES)
        return xm_error_set(e, -rc,
                            "io_uring is disabled here (by kernel.io_uring_disabled or a seccomp filter)");
    if (rc < 0)
        return xm_error_errno(e, -rc, "io_uring cannot be set up");
    return 0;
}

static int check_ring(struct uring *u, struct xm_error *e)
{
    static const int ops[] = {IORING_OP_READ,     IORING_OP_READV,      IORING_OP_WRITE,
                              IORING_OP_WRITEV,   IORING_OP_FSYNC,      IORING_OP_FALLOCATE,
                              IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE};
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
    bool all = probe && (u->ring.features & IORING_FEAT_EXT_ARG) && (u->ring.features & IORING_FEAT_NODROP);

    for (size_t i = 0; all && i < sizeof(ops) / sizeof(*ops); i++)
        all = io_uring_opcode_supported(probe, ops[i]);
    io_uring_free_probe(probe);
    return all ? 0 : xm_error_set(e, ENOSYS, "this kernel's io_uring is too old (5.11 at least is needed)");
}

struct xm_engine *uring_open(unsigned depth, struct xm_error *e)
{
    struct uring *u = calloc(1, sizeof(*u));

    if (!u) {
        xm_error_set(e, ENOMEM, "no memory for an I/O engine");
        return NULL;
    }
    u->depth = depth;
    u->wary = 1;
    TAILQ_INIT(&u->waiting);
    TAILQ_INIT(&u->ended);
    if (setup_ring(u, e) < 0)
        goto no_ring;
    if (check_ring(u, e) < 0)
        goto no_base;
    int rc = xm_engine_init(&u->base, &uring_ops);
    if (rc < 0) {
        xm_error_errno(e, -rc, "the I/O engine's mailbox cannot be made");
        goto no_base;
    }
    u->box = (struct xm_watch){.fd = u->base.mailbox.fd, .ready = uring_box_ready};
    rc = uring_watch(&u->base, &u->box);
    if (rc < 0) {
        xm_error_errno(e, -rc, "the I/O engine's mailbox cannot be watched");
        goto no_watch;
    }
    return &u->base;
no_watch:
    xm_engine_fini(&u->base);
no_base:
    io_uring_queue_exit(&u->ring);
no_ring:
    free(u);
    return NULL;
}
