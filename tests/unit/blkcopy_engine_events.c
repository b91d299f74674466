/* SPDX-License-Identifier: MIT */
/* What an I/O engine's thread does beside requests: watches, timers, its mailbox, the hook before it waits;
 * and which engine is chosen. Every test over every engine. */
#include "tests/unit/lib_engine.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- watches ---- */

struct seen {
    struct xm_watch watch;
    unsigned count;
    bool leave; /* unwatch within ready() */
};

static void seen_ready(struct xm_watch *w)
{
    struct seen *s = xm_container_of(w, struct seen, watch);
    s->count++;
    if (s->leave)
        xm_engine_unwatch(rig.engine, w);
}

static struct seen seen_on(int fd)
{
    return (struct seen){.watch = {.fd = fd, .ready = seen_ready}};
}

static void test_a_watch_fires_on_every_write(void **state)
{
    struct seen s = seen_on(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));

    engine_rig_open(state, 8);
    assert_int_equal(xm_engine_watch(rig.engine, &s.watch), 0);
    engine_brief_turn();
    assert_int_equal(s.count, 0);
    for (unsigned i = 1; i <= 200; i++) {
        assert_int_equal(eventfd_write(s.watch.fd, 1), 0);
        engine_turn_until(&s.count, i);
        assert_int_equal(s.count, i);
    }
    engine_brief_turn();
    assert_int_equal(s.count, 200);
    xm_engine_unwatch(rig.engine, &s.watch);
    eventfd_write(s.watch.fd, 1);
    engine_brief_turn();
    assert_int_equal(s.count, 200);
    close(s.watch.fd);
}

static void test_a_watch_fires_for_what_was_written_before(void **state)
{
    struct seen s = seen_on(eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));

    engine_rig_open(state, 8);
    assert_int_equal(xm_engine_watch(rig.engine, &s.watch), 0);
    engine_turn_until(&s.count, 1);
    xm_engine_unwatch(rig.engine, &s.watch);
    assert_int_equal(xm_engine_watch(rig.engine, &s.watch), 0);
    engine_turn_until(&s.count, 2);
    xm_engine_unwatch(rig.engine, &s.watch);
    close(s.watch.fd);
}

static void test_watches_come_and_go(void **state)
{
    enum { MANY_WATCHES = 100 };
    struct seen *s = calloc(MANY_WATCHES, sizeof(*s));
    unsigned total = 0;

    engine_rig_open(state, 8);
    for (unsigned i = 0; i < MANY_WATCHES; i++) {
        s[i] = seen_on(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
        s[i].leave = i % 2;
        assert_int_equal(xm_engine_watch(rig.engine, &s[i].watch), 0);
    }
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < MANY_WATCHES; i++)
            eventfd_write(s[i].watch.fd, 1);
        for (total = 0; total < (round + 2) * MANY_WATCHES / 2;) {
            xm_engine_turn(rig.engine);
            total = 0;
            for (unsigned i = 0; i < MANY_WATCHES; i++)
                total += s[i].count;
        }
    }
    /* Those that left have seen one write, and left once. */
    for (unsigned i = 0; i < MANY_WATCHES; i++) {
        assert_int_equal(s[i].count, i % 2 ? 1 : 3);
        xm_engine_unwatch(rig.engine, &s[i].watch);
        close(s[i].watch.fd);
    }
    struct seen bad = seen_on(-1);
    assert_int_equal(xm_engine_watch(rig.engine, &bad.watch), -EBADF);
    free(s);
}

/* Both are ready in one turn; the first to be called takes the other away. */
static struct seen pair[2];

static void pair_ready(struct xm_watch *w)
{
    struct seen *me = xm_container_of(w, struct seen, watch), *other = me == &pair[0] ? &pair[1] : &pair[0];
    me->count++;
    xm_engine_unwatch(rig.engine, &other->watch);
}

static void test_ready_is_not_called_after_unwatch(void **state)
{
    engine_rig_open(state, 8);
    for (unsigned i = 0; i < 2; i++) {
        pair[i] = seen_on(eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
        pair[i].watch.ready = pair_ready;
        assert_int_equal(xm_engine_watch(rig.engine, &pair[i].watch), 0);
    }
    while (pair[0].count + pair[1].count == 0)
        xm_engine_turn(rig.engine);
    engine_brief_turn();
    assert_int_equal(pair[0].count + pair[1].count, 1);
    for (unsigned i = 0; i < 2; i++) {
        xm_engine_unwatch(rig.engine, &pair[i].watch);
        close(pair[i].watch.fd);
    }
}

/* As above, and the one that is called puts a new watch in the other's place: the other's event is not for
 * it. */
static struct seen successor;

static void replace_ready(struct xm_watch *w)
{
    pair_ready(w);
    if (!successor.watch.active && successor.watch.fd >= 0)
        assert_int_equal(xm_engine_watch(rig.engine, &successor.watch), 0);
}

static void test_a_late_event_is_not_for_the_next_watch(void **state)
{
    engine_rig_open(state, 8);
    successor = seen_on(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    for (unsigned i = 0; i < 2; i++) {
        pair[i] = seen_on(eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
        pair[i].watch.ready = replace_ready;
        assert_int_equal(xm_engine_watch(rig.engine, &pair[i].watch), 0);
    }
    while (pair[0].count + pair[1].count == 0)
        xm_engine_turn(rig.engine);
    engine_brief_turn();
    assert_true(successor.watch.active);
    assert_int_equal(successor.count, 0);
    eventfd_write(successor.watch.fd, 1);
    engine_turn_until(&successor.count, 1);
    xm_engine_unwatch(rig.engine, &successor.watch);
    close(successor.watch.fd);
    for (unsigned i = 0; i < 2; i++) {
        xm_engine_unwatch(rig.engine, &pair[i].watch);
        close(pair[i].watch.fd);
    }
}

/* ---- timers ---- */

struct tick {
    struct xm_timer timer;
    struct tick *cancels, *sets;
    unsigned count;
    char name;
};
static char order[64];

static void tick_fired(struct xm_timer *t)
{
    struct tick *k = xm_container_of(t, struct tick, timer);

    k->count++;
    if (strlen(order) + 1 < sizeof(order))
        order[strlen(order)] = k->name;
    if (k->cancels)
        xm_engine_timer_cancel(rig.engine, &k->cancels->timer);
    if (k->sets)
        xm_engine_timer_set(rig.engine, &k->sets->timer, 0);
}

static void test_timers_fire_in_order(void **state)
{
    struct tick k[5];
    uint64_t now = xm_now();

    engine_rig_open(state, 8);
    memset(order, 0, sizeof(order));
    for (int i = 0; i < 5; i++)
        k[i] = (struct tick){.timer.fire = tick_fired, .name = (char)('a' + i)};
    xm_engine_timer_set(rig.engine, &k[3].timer, now + 9 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[0].timer, now + 3 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[1].timer, now + 3 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[4].timer, now + 1 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[2].timer, now + 5 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[4].timer, now + 12 * XM_NS_PER_MS);
    engine_turn_until(&k[4].count, 1);
    assert_true(xm_now() >= now + 12 * XM_NS_PER_MS);
    assert_string_equal(order, "abcde");
}

static void test_timers_cancel_and_set_each_other(void **state)
{
    struct tick a = {.timer.fire = tick_fired, .name = 'a'}, b = a, c = a;

    engine_rig_open(state, 8);
    memset(order, 0, sizeof(order));
    b.name = 'b', c.name = 'c';
    a.sets = &a; /* always due: must not keep c from firing */
    a.cancels = &b;
    xm_engine_timer_set(rig.engine, &a.timer, 1);
    xm_engine_timer_set(rig.engine, &b.timer, 2);
    xm_engine_timer_set(rig.engine, &c.timer, 3);
    xm_engine_turn(rig.engine);
    assert_string_equal(order, "ac");
    xm_engine_turn(rig.engine);
    assert_string_equal(order, "aca");
    a.sets = NULL;
    engine_turn_until(&a.count, 3);
    assert_false(a.timer.armed);
    assert_int_equal(b.count, 0);
}

/* ---- threads, hooks, choice ---- */

static bool stop;
static unsigned calls;

static void count_call(void *arg)
{
    (void)arg;
    calls++;
}

static void stop_call(void *arg)
{
    (void)arg;
    stop = true;
}

static void *owner(void *arg)
{
    sem_t *owned = arg;

    xm_engine_own(rig.engine);
    sem_post(owned);
    while (!stop)
        xm_engine_turn(rig.engine);
    return NULL;
}

static void test_mailbox_runs_on_the_owners_thread(void **state)
{
    pthread_t t;
    sem_t owned;

    engine_rig_open(state, 8);
    stop = false;
    calls = 0;
    sem_init(&owned, 0, 0);
    assert_int_equal(pthread_create(&t, NULL, owner, &owned), 0);
    sem_wait(&owned);
    for (unsigned i = 0; i < 1000; i++)
        xm_mailbox_call(&rig.engine->mailbox, count_call, NULL);
    xm_mailbox_call(&rig.engine->mailbox, stop_call, NULL);
    pthread_join(t, NULL);
    assert_int_equal(calls, 1000);
    sem_destroy(&owned);
}

static struct one *late;

static void submit_late(struct xm_engine *e, void *ctx)
{
    (void)ctx;
    if (late) {
        xm_engine_submit(e, &late->io);
        late = NULL;
    }
}

static void test_before_wait_may_submit(void **state)
{
    struct one o = {.io = {.op = XM_IO_FLUSH, .file = &rig.file, .done = one_done}};
    struct one refused = {
        .io = {.op = XM_IO_READ, .file = &rig.file, .offset = 2ull * SIZE, .done = one_done}};

    engine_rig_open(state, 8);
    rig.engine->before_wait = submit_late;
    late = &o;
    engine_turn_until(&o.done, 1);
    late = &refused;
    engine_turn_until(&refused.done, 1);
    assert_int_equal(refused.res, -EINVAL);
}

/* In a thread of its own: the filter stays until the thread ends. */
static void *open_without_uring(void *arg)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof(code) / sizeof(*code), code};
    struct xm_engine **engines = arg;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
        return (void *)(intptr_t)errno;
    engines[0] = xm_engine_open(XM_ENGINE_AUTO, 8, NULL);
    engines[1] = xm_engine_open(XM_ENGINE_URING, 8, NULL);
    return NULL;
}

static void test_auto_takes_libaio_where_io_uring_is_disabled(void **state)
{
    struct xm_engine *engines[2] = {NULL, NULL};
    pthread_t t;
    void *code;

    (void)state;
    assert_int_equal(pthread_create(&t, NULL, open_without_uring, engines), 0);
    pthread_join(t, &code);
    if (code) {
        print_message("SKIPPED: no seccomp filter can be set: %s\n", strerror((int)(intptr_t)code));
        skip();
    }
    assert_non_null(engines[0]);
    assert_string_equal(engines[0]->ops->name, "libaio");
    assert_null(engines[1]);
    xm_engine_free(engines[0]);
    struct xm_error e;
    assert_null(xm_engine_open(XM_ENGINE_AUTO, 0, &e));
}

static const struct engine_test tests[] = {
    ENGINE_TEST(a_watch_fires_on_every_write, 1 << NONE),
    ENGINE_TEST(a_watch_fires_for_what_was_written_before, 1 << NONE),
    ENGINE_TEST(watches_come_and_go, 1 << NONE),
    ENGINE_TEST(ready_is_not_called_after_unwatch, 1 << NONE),
    ENGINE_TEST(a_late_event_is_not_for_the_next_watch, 1 << NONE),
    ENGINE_TEST(timers_fire_in_order, 1 << NONE),
    ENGINE_TEST(timers_cancel_and_set_each_other, 1 << NONE),
    ENGINE_TEST(mailbox_runs_on_the_owners_thread, 1 << NONE),
    ENGINE_TEST(before_wait_may_submit, 1 << ON_FILE),
};

int main(void)
{
    struct CMUnitTest choice = cmocka_unit_test(test_auto_takes_libaio_where_io_uring_is_disabled);
    return engine_tests_run("blkcopy_engine_events", tests, sizeof(tests) / sizeof(*tests), &choice);
}
