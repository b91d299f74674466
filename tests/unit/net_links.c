/* SPDX-License-Identifier: MIT */
/* Links between two bundles, when nothing goes wrong. */
#include "tests/unit/lib_netpair.h"
#include "tests/progress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static struct end a, b;

static int setup(void **state)
{
    (void)state;
    end_init(&a, 0);
    end_init(&b, 100000);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ends_free(&a, &b);
    return 0;
}

static void each_message_ends_once(int links, uint32_t length, uint64_t total)
{
    struct load load[8];
    pthread_t t[8];

    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, links, NULL);
    for (int i = 0; i < 8; i++) {
        load_init(&load[i], xm_links_transport(a.links), 1 + (uint64_t)i * total, total, 32, length);
        load[i].urgent = i % 2;
        assert_int_equal(0, pthread_create(&t[i], NULL, load_thread, &load[i]));
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(total, load[i].ended);
        assert_int_equal(0, load[i].failed);
        assert_int_equal(0, load[i].twice);
        load_free(&load[i]);
    }
    assert_int_equal(8 * total, b.frames);
    assert_int_equal(0, b.duplicates);
    for (uint64_t seq = 1; seq <= 8 * total; seq++)
        assert_int_equal(1, b.seen[seq]);
}

static void one_link_small_frames(void **state)
{
    (void)state;
    each_message_ends_once(1, 0, 5000);
}

static void four_links_mixed_sizes(void **state)
{
    (void)state;
    each_message_ends_once(4, 70000, 500);
}

static void two_links_largest_payloads(void **state)
{
    (void)state;
    each_message_ends_once(2, XM_PAYLOAD_MAX, 40);
}

static void both_sides_send_at_once(void **state)
{
    struct load load[2];
    pthread_t t;

    (void)state;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 2, NULL);
    load_init(&load[0], xm_links_transport(a.links), 1, 1000, 64, 100000);
    load_init(&load[1], xm_links_transport(b.links), 1, 1000, 64, 100000);
    assert_int_equal(0, pthread_create(&t, NULL, load_thread, &load[0]));
    load_run(&load[1]);
    pthread_join(t, NULL);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(0, load[i].failed);
        load_free(&load[i]);
    }
    assert_int_equal(1000, a.frames);
    assert_int_equal(1000, b.frames);
}

static void messages_wait_for_the_first_link(void **state)
{
    struct load load;
    pthread_t t;

    (void)state;
    end_open(&a);
    end_open(&b);
    load_init(&load, xm_links_transport(a.links), 1, 20, 20, 5000);
    assert_int_equal(0, pthread_create(&t, NULL, load_thread, &load));
    end_join_tcp(&a, &b, 1, NULL);
    pthread_join(t, NULL);
    assert_int_equal(0, load.failed);
    load_free(&load);
}

static void calls_are_answered_with_bytes(void **state)
{
    struct xm_error e = {0};
    char text[200000];

    (void)state;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, NULL);
    memset(text, 'x', sizeof text);
    for (uint32_t len = 1; len <= sizeof text; len = len * 3 + 1) {
        struct xm_msg m = {.type = XM_FRAME_CALL, .payload = text, .length = len};
        assert_int_equal(0, xm_transport_call(xm_links_transport(a.links), &m, LIMIT_HANG_NS, &e));
        assert_int_equal(len, m.reply_len);
        assert_memory_equal(text, m.reply, len);
        free(m.reply);
    }
}

static void a_call_gives_up_in_time(void **state)
{
    struct xm_msg m = {.type = XM_FRAME_DISK_FLUSH, .object = 3};
    struct xm_error e = {0};

    (void)state;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, NULL);
    assert_int_equal(-ETIMEDOUT, xm_transport_call(xm_links_transport(a.links), &m, 20 * XM_NS_PER_MS, &e));
    assert_non_null(strstr(e.text, "DISK_FLUSH"));
}

/* A way so long that all of them are on it before the first answer begins to come back. */
static struct xm_msg *on_the_way[3];
static unsigned under_way;

static void answer_when_all_are_there(struct xm_transport *t, struct xm_msg *m)
{
    (void)t;
    on_the_way[under_way++] = m;
    for (unsigned i = 3; under_way == 3 && i--;) { /* the last one first */
        on_the_way[i]->status = on_the_way[i]->object == 1 ? -EIO : 0;
        on_the_way[i]->reply = malloc(1);
        on_the_way[i]->reply_len = 1;
        *(char *)on_the_way[i]->reply = (char)('a' + on_the_way[i]->object);
        xm_mailbox_post(on_the_way[i]->home, &on_the_way[i]->post);
    }
}

static void several_calls_take_one_way(void **state)
{
    struct xm_transport t = {.submit = answer_when_all_are_there};
    struct xm_error e = {0};
    struct xm_msg m[3];

    (void)state;
    under_way = 0;
    for (unsigned i = 0; i < 3; i++)
        m[i] = (struct xm_msg){.type = XM_FRAME_DISK_DIGEST, .object = (uint16_t)i};
    assert_int_equal(xm_transport_calls(&t, m, 3, LIMIT_HANG_NS, &e), -EIO);
    assert_non_null(strstr(e.text, "DISK_DIGEST"));
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(m[i].status, i == 1 ? -EIO : 0);
        assert_int_equal(m[i].reply_len, 1);
        assert_int_equal(*(char *)m[i].reply, 'a' + i);
        free(m[i].reply);
    }
}

/* Their time is one for all. */
static void several_calls_give_up_together(void **state)
{
    struct xm_msg m[3];
    struct xm_error e = {0};

    (void)state;
    for (unsigned i = 0; i < 3; i++)
        m[i] = (struct xm_msg){.type = XM_FRAME_DISK_FLUSH, .object = 3};
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, NULL);
    assert_int_equal(xm_transport_calls(xm_links_transport(a.links), m, 3, 20 * XM_NS_PER_MS, &e),
                     -ETIMEDOUT);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(m[i].status, -ETIMEDOUT);
}

static bool asked_thrice(void *ctx)
{
    return ++*(unsigned *)ctx == 3;
}

static void a_call_without_a_time_waits_until_it_is_told_not_to(void **state)
{
    struct xm_msg m = {.type = XM_FRAME_DISK_FLUSH, .object = 3};
    struct xm_error e = {0};
    unsigned asked = 0;

    (void)state;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, NULL);
    assert_int_equal(-ECANCELED,
                     xm_transport_call_until(xm_links_transport(a.links), &m, asked_thrice, &asked, &e));
    assert_int_equal(asked, 3);
    assert_non_null(strstr(e.text, "DISK_FLUSH"));
}

static void what_cannot_be_sent_is_refused_at_once(void **state)
{
    struct xm_msg bad[] = {{.type = 99},
                           {.type = XM_FRAME_ACK},
                           {.type = XM_FRAME_DISK_DATA},
                           {.type = XM_FRAME_DISK_FLUSH, .object = XM_OBJECTS_MAX},
                           {.type = XM_FRAME_DISK_FLUSH, .flags = XM_FLAG_END},
                           {.type = XM_FRAME_DISK_DATA, .payload = "", .length = XM_PAYLOAD_MAX + 1},
                           {.type = XM_FRAME_DISK_ZERO, .offset = INT64_MAX, .extent = 1}};

    (void)state;
    end_open(&a);
    end_open(&b);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (bad[i].length > XM_PAYLOAD_MAX)
            bad[i].payload = calloc(1, bad[i].length);
        assert_int_equal(-EINVAL,
                         xm_transport_call(xm_links_transport(a.links), &bad[i], LIMIT_HANG_NS, NULL));
        if (bad[i].length > XM_PAYLOAD_MAX)
            free((void *)(uintptr_t)bad[i].payload);
    }
}

/* The window is full of bulk; an urgent message goes before the bulk that waits. */
static void urgent_goes_first(void **state)
{
    struct load bulk, urgent;

    (void)state;
    a.opts.window_frames = 4;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, NULL);
    load_init(&bulk, xm_links_transport(a.links), 1, 100, 100, 4096);
    load_init(&urgent, xm_links_transport(a.links), 101, 2, 2, 4096);
    urgent.urgent = true;
    pthread_t t, u;
    assert_int_equal(0, pthread_create(&t, NULL, load_thread, &bulk));
    assert_true(end_wait(&b, b.frames == 4));
    assert_int_equal(0, pthread_create(&u, NULL, load_thread, &urgent));
    assert_true(end_wait(&b, b.frames == 5)); /* one of each class may always go */
    end_release(&b);
    pthread_join(t, NULL);
    pthread_join(u, NULL);
    assert_int_equal(1, b.order[4]);
    int second = 0;
    for (int i = 5; i < 102; i++)
        second = b.order[i] == 1 ? i : second;
    assert_in_range(second, 5, 10);
    load_free(&bulk);
    load_free(&urgent);
}

static void the_rate_limit_holds(void **state)
{
    struct load load;

    (void)state;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 2, NULL);
    xm_links_set_rate(a.links, 20000000);
    load_init(&load, xm_links_transport(a.links), 1, 320, 64, 60000);
    uint64_t start = xm_now();
    load_run(&load);
    double took = (double)(xm_now() - start) / 1e9;
    struct xm_link_info info[2];
    assert_int_equal(2, xm_links_info(a.links, info, 2));
    double rate = (double)(info[0].wire_tx + info[1].wire_tx - 262144) / took; /* without the burst */
    assert_true(rate < 22e6);
    assert_true(rate > 1e6); /* 19.9e6 where nothing else runs; base_rate has it exactly */
    load_free(&load);
}

static void lifting_the_rate_limit_works_at_once(void **state)
{
    struct load load;
    pthread_t t;

    (void)state;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, NULL);
    xm_links_set_rate(a.links, 1000);
    load_init(&load, xm_links_transport(a.links), 1, 100, 100, 60000);
    uint64_t start = xm_now();
    assert_int_equal(0, pthread_create(&t, NULL, load_thread, &load));
    assert_true(end_wait(&b, b.frames > 0));
    xm_links_set_rate(a.links, 0);
    pthread_join(t, NULL);
    assert_true(xm_now() - start < LIMIT_HANG_NS); /* at the limit it would take an hour */
    load_free(&load);
}

static void numbers_add_up(void **state)
{
    struct xm_link_info info[4];
    struct load load;

    (void)state;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 3, NULL);
    assert_int_equal(3, xm_links_up(a.links));
    load_init(&load, xm_links_transport(a.links), 1, 300, 30, 50000);
    load_run(&load);
    assert_int_equal(3, xm_links_info(a.links, info, 4));
    uint64_t frames = 0, wire = 0;
    for (int i = 0; i < 3; i++) {
        assert_string_equal("client", info[i].name);
        assert_int_equal(XM_LINK_UP, info[i].state);
        assert_int_equal(0, info[i].resent);
        frames += info[i].frames_tx;
        wire += info[i].wire_tx + info[i].wire_rx;
    }
    assert_true(frames >= 300);
    assert_int_equal(wire, xm_links_wire_bytes(a.links));
    assert_true(xm_links_rate(a.links) > 0);
    uint64_t most;
    assert_int_equal(0, xm_links_queued(a.links, &most));
    assert_true(most > 0);
    load_free(&load);
}

/* The receiver's payloads lie where O_DIRECT wants them. */
static void payloads_are_aligned_and_whole(void **state)
{
    struct load load;

    (void)state;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, NULL);
    load_init(&load, xm_links_transport(a.links), 1, 24, 24, 200000);
    pthread_t t;
    assert_int_equal(0, pthread_create(&t, NULL, load_thread, &load));
    assert_true(end_wait(&b, b.frames == 24));
    struct xm_rx *rx;
    STAILQ_FOREACH (rx, &b.held, link) {
        assert_int_equal(0, (uintptr_t)rx->payload % 4096);
        assert_memory_equal(load.data, rx->payload, rx->hdr.length);
    }
    end_release(&b);
    pthread_join(t, NULL);
    load_free(&load);
}

/* Threads of this process that give way, in policy and nice value. */
static int in_background(void)
{
    DIR *d = opendir("/proc/self/task");
    int n = 0;

    assert_non_null(d);
    for (struct dirent *t; (t = readdir(d));) {
        int tid = atoi(t->d_name);
        n += tid && sched_getscheduler(tid) == SCHED_BATCH && getpriority(PRIO_PROCESS, (id_t)tid) == 10;
    }
    closedir(d);
    return n;
}

/* A link's thread sets it for itself when it starts. */
static bool wait_in_background(int n)
{
    for (struct limit l = limit_start(10); in_background() != n && limit_wait(&l);)
        ;
    return in_background() == n;
}

static void links_give_way_while_they_are_told_to(void **state)
{
    (void)state;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 2, NULL);
    assert_int_equal(in_background(), 0);
    xm_links_set_background(a.links, true);
    assert_true(wait_in_background(2));
    end_join_tcp(&a, &b, 1, NULL); /* a later one, too; b's never */
    assert_true(wait_in_background(3));
    xm_links_set_background(a.links, false);
    assert_int_equal(in_background(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_link_small_frames, setup, teardown),
        cmocka_unit_test_setup_teardown(four_links_mixed_sizes, setup, teardown),
        cmocka_unit_test_setup_teardown(two_links_largest_payloads, setup, teardown),
        cmocka_unit_test_setup_teardown(both_sides_send_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(messages_wait_for_the_first_link, setup, teardown),
        cmocka_unit_test_setup_teardown(calls_are_answered_with_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(a_call_gives_up_in_time, setup, teardown),
        cmocka_unit_test_setup_teardown(several_calls_take_one_way, setup, teardown),
        cmocka_unit_test_setup_teardown(several_calls_give_up_together, setup, teardown),
        cmocka_unit_test_setup_teardown(a_call_without_a_time_waits_until_it_is_told_not_to, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_sent_is_refused_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(urgent_goes_first, setup, teardown),
        cmocka_unit_test_setup_teardown(the_rate_limit_holds, setup, teardown),
        cmocka_unit_test_setup_teardown(lifting_the_rate_limit_works_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(numbers_add_up, setup, teardown),
        cmocka_unit_test_setup_teardown(payloads_are_aligned_and_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(links_give_way_while_they_are_told_to, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
