/* SPDX-License-Identifier: MIT */
/* Posts cross threads in order, none is lost, none runs twice, and the descriptor tells when there are some.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

#include <poll.h>

#define POSTERS 4
#define EACH    20000

struct item {
    struct xm_post post;
    unsigned poster, number;
};

static unsigned next_of[POSTERS];
static bool out_of_order;

static void check_item(struct xm_post *p)
{
    struct item *i = xm_container_of(p, struct item, post);
    out_of_order |= i->number != next_of[i->poster];
    next_of[i->poster]++;
}

struct poster {
    struct xm_mailbox *box;
    struct item items[EACH];
};

static void *post_all(void *arg)
{
    struct poster *p = arg;
    for (unsigned i = 0; i < EACH; i++)
        xm_mailbox_post(p->box, &p->items[i].post);
    return NULL;
}

static void posts_of_each_thread_arrive_once_and_in_order(void **state)
{
    (void)state;
    static struct poster posters[POSTERS];
    struct xm_mailbox box;
    pthread_t t[POSTERS];
    unsigned ran = 0;

    assert_int_equal(xm_mailbox_init(&box), 0);
    for (unsigned p = 0; p < POSTERS; p++) {
        posters[p].box = &box;
        for (unsigned i = 0; i < EACH; i++)
            posters[p].items[i] = (struct item){.post.run = check_item, .poster = p, .number = i};
        assert_int_equal(pthread_create(&t[p], NULL, post_all, &posters[p]), 0);
    }
    while (ran < POSTERS * EACH) {
        unsigned n = xm_mailbox_wait(&box, 10000);
        assert_int_not_equal(n, 0); /* a lost wake-up would end here */
        ran += n;
    }
    for (unsigned p = 0; p < POSTERS; p++)
        pthread_join(t[p], NULL);
    assert_int_equal(ran, POSTERS * EACH);
    assert_false(out_of_order);
    assert_int_equal(xm_mailbox_run(&box), 0);
    xm_mailbox_destroy(&box);
}

static bool readable(const struct xm_mailbox *box)
{
    struct pollfd p = {.fd = box->fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void count_run(struct xm_post *p)
{
    (void)p;
    next_of[0]++;
}

static void descriptor_is_readable_only_while_there_are_posts(void **state)
{
    (void)state;
    struct xm_mailbox box;
    struct xm_post a = {.run = count_run}, b = {.run = count_run};

    assert_int_equal(xm_mailbox_init(&box), 0);
    assert_false(readable(&box));
    xm_mailbox_post(&box, &a);
    xm_mailbox_post(&box, &b);
    assert_true(readable(&box));
    assert_int_equal(xm_mailbox_run(&box), 2);
    assert_false(readable(&box));
    assert_int_equal(xm_mailbox_wait(&box, 0), 0);
    xm_mailbox_destroy(&box);
}

static struct xm_mailbox *own;

static void post_again(struct xm_post *p)
{
    xm_mailbox_post(own, p);
}

static void a_post_made_by_a_post_waits_for_the_next_run(void **state)
{
    (void)state;
    struct xm_mailbox box;
    struct xm_post p = {.run = post_again};

    assert_int_equal(xm_mailbox_init(&box), 0);
    own = &box;
    xm_mailbox_post(&box, &p);
    assert_int_equal(xm_mailbox_run(&box), 1);
    assert_true(readable(&box));
    p.run = count_run;
    assert_int_equal(xm_mailbox_run(&box), 1);
    xm_mailbox_destroy(&box);
}

static void *post_one(void *arg)
{
    static struct xm_post p = {.run = count_run};

    xm_mailbox_post(arg, &p);
    return NULL;
}

/* By an owner who sees the post before its poster has got to waking it. */
static void box_may_go_once_its_post_has_run(void **state)
{
    static union {
        struct xm_mailbox box;
        uint8_t byte[sizeof(struct xm_mailbox)];
    } u;
    (void)state;

    for (unsigned i = 0; i < 2000; i++) {
        pthread_t t;
        assert_int_equal(xm_mailbox_init(&u.box), 0);
        assert_int_equal(pthread_create(&t, NULL, post_one, &u.box), 0);
        while (!xm_mailbox_run(&u.box)) {
        }
        xm_mailbox_destroy(&u.box);
        memset(&u, 0xa5, sizeof u);
        pthread_join(t, NULL);
        for (unsigned at = 0; at < sizeof u; at++)
            assert_int_equal(u.byte[at], 0xa5);
    }
}

static pthread_t ran_on;

static void note_thread(void *arg)
{
    ran_on = pthread_self();
    *(int *)arg += 1;
}

static void *call_there(void *arg)
{
    static int times;
    xm_mailbox_call(arg, note_thread, &times);
    return times == 1 ? arg : NULL; /* it has run when the call returns */
}

static void call_runs_on_the_owner_and_returns_after_it(void **state)
{
    (void)state;
    struct xm_mailbox box;
    pthread_t t;
    void *result;
    int direct = 0;

    assert_int_equal(xm_mailbox_init(&box), 0);
    assert_int_equal(pthread_create(&t, NULL, call_there, &box), 0);
    assert_int_equal(xm_mailbox_wait(&box, 10000), 1);
    pthread_join(t, &result);
    assert_ptr_equal(result, &box);
    assert_true(pthread_equal(ran_on, pthread_self()));
    xm_mailbox_call(&box, note_thread, &direct); /* from the owner: at once, no deadlock */
    assert_int_equal(direct, 1);
    xm_mailbox_destroy(&box);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posts_of_each_thread_arrive_once_and_in_order),
        cmocka_unit_test(descriptor_is_readable_only_while_there_are_posts),
        cmocka_unit_test(a_post_made_by_a_post_waits_for_the_next_run),
        cmocka_unit_test(box_may_go_once_its_post_has_run),
        cmocka_unit_test(call_runs_on_the_owner_and_returns_after_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
