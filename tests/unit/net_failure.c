/* SPDX-License-Identifier: MIT */
/* Links that fail, peers that abort: every message ends once, whatever happens. */
#include "tests/unit/lib_netpair.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <poll.h>
#include <string.h>
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

static void start(struct load *load, pthread_t *t, uint64_t total, uint64_t depth, uint32_t length)
{
    load_init(load, xm_links_transport(a.links), 1, total, depth, length);
    assert_int_equal(0, pthread_create(t, NULL, load_thread, load));
}

static void killed_links_lose_nothing(void **state)
{
    struct xm_link_info info[4];
    struct load load;
    pthread_t t;
    int fd[4];

    (void)state;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 4, fd);
    start(&load, &t, 3000, 200, 30000);
    for (int i = 0; i < 3; i++) {
        assert_true(end_wait(&b, b.frames > 400u * (unsigned)(i + 1)));
        shutdown(fd[i], i == 1 ? SHUT_WR : SHUT_RDWR);
    }
    pthread_join(t, NULL);
    assert_int_equal(0, load.failed);
    assert_int_equal(0, load.twice);
    for (uint64_t seq = 1; seq <= 3000; seq++)
        assert_true(b.seen[seq] >= 1);
    assert_true(end_wait(&a, a.down_events == 3));
    assert_true(end_wait(&b, b.down_events == 3));
    assert_int_equal(1, xm_links_up(a.links));
    assert_int_equal(0, a.lost_events);
    assert_int_equal(4, xm_links_info(a.links, info, 4));
    for (int i = 0; i < 4; i++)
        assert_int_equal(i < 3 ? XM_LINK_DOWN : XM_LINK_UP, info[i].state);
    load_free(&load);
}

/* The windows are full of frames that the receiver holds back until it has those that were lost. */
static void what_was_lost_passes_full_windows(void **state)
{
    struct load load;
    pthread_t t;
    int fd[2];

    (void)state;
    a.opts.window_frames = 4;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 2, fd);
    start(&load, &t, 8, 8, 4096);
    assert_true(end_wait(&b, b.frames == 8));
    shutdown(fd[0], SHUT_RDWR);
    assert_true(end_wait(&b, b.frames == 12));
    assert_int_equal(4, b.duplicates);
    end_release(&b);
    pthread_join(t, NULL);
    assert_int_equal(0, load.failed);
    load_free(&load);
}

static void without_links_messages_fail_at_once(void **state)
{
    struct xm_error e;
    struct load load;
    pthread_t t;
    int fd[2];

    (void)state;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 2, fd);
    start(&load, &t, 1000, 1000, 4096);
    assert_true(end_wait(&b, b.frames > 100));
    shutdown(fd[0], SHUT_RDWR);
    shutdown(fd[1], SHUT_RDWR);
    pthread_join(t, NULL);
    assert_int_equal(1000, load.failed);
    assert_int_equal(-ENOLINK, load.status);
    assert_true(end_wait(&a, a.lost_events == 1));
    assert_int_equal(ENOLINK, a.lost_why.code);
    assert_non_null(strstr(a.lost_why.text, "link client"));
    xm_links_error(a.links, &e);
    assert_int_equal(ENOLINK, e.code);
    load_free(&load);

    /* And later ones likewise, as does a late link. */
    load_init(&load, xm_links_transport(a.links), 1, 5, 5, 0);
    load_run(&load);
    assert_int_equal(-ENOLINK, load.status);
    load_free(&load);
    int late[2];
    net_socketpair(late);
    close(late[1]);
    assert_true(xm_links_add(a.links, late[0], true, "late", &e) < 0);
}

static void a_new_link_in_time_saves_the_bundle(void **state)
{
    struct load load;
    pthread_t t;
    int fd[1];

    (void)state;
    a.opts.link_timeout = b.opts.link_timeout = 20 * XM_NS_PER_S;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, fd);
    start(&load, &t, 2000, 100, 10000);
    assert_true(end_wait(&b, b.frames > 200));
    shutdown(fd[0], SHUT_RDWR);
    assert_true(end_wait(&a, a.down_events == 1));
    assert_true(end_wait(&b, b.down_events == 1));
    end_join_tcp(&a, &b, 1, NULL);
    pthread_join(t, NULL);
    assert_int_equal(0, load.failed);
    assert_int_equal(0, a.lost_events + b.lost_events);
    load_free(&load);
}

static void link_timeout_is_kept(void **state)
{
    struct load load;
    pthread_t t;
    int fd[1];

    (void)state;
    a.opts.link_timeout = 200 * XM_NS_PER_MS;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, fd);
    start(&load, &t, 10, 10, 4096);
    assert_true(end_wait(&b, b.frames == 10));
    uint64_t from = xm_now();
    shutdown(fd[0], SHUT_RDWR);
    pthread_join(t, NULL);
    assert_true(xm_now() - from >= 200 * XM_NS_PER_MS);
    assert_int_equal(-ENOLINK, load.status);
    load_free(&load);
}

static void a_silent_link_goes_down(void **state)
{
    (void)state;
    a.opts.silence = 500 * XM_NS_PER_MS; /* the handshake is to be faster */
    end_open(&a);
    end_open(&b);
    int fd = bare_peer(&a, NULL);
    assert_true(end_wait(&a, a.lost_events == 1));
    assert_non_null(strstr(a.lost_why.text, "nothing was heard"));
    close(fd);
}

/* As over a path that drops large packets: what broke was that the other side's own reason is told there
 * alone, and here only that it closed the connection. */
static void a_path_that_takes_nothing_is_told(void **state)
{
    struct load load;
    pthread_t t;

    (void)state;
    a.opts.silence = 6 * XM_NS_PER_S;
    end_open(&a);
    end_open(&b);
    int fd = bare_peer(&a, NULL);
    start(&load, &t, UINT64_MAX, 300, 50000);
    poll(NULL, 0, 3500); /* the socket fills */
    close(fd);
    pthread_join(t, NULL);
    assert_true(end_wait(&a, a.lost_events == 1));
    assert_non_null(strstr(a.lost_why.text, "nothing had got through for"));
    assert_non_null(strstr(a.lost_why.text, "MTU"));
    load_free(&load);
}

static void an_idle_link_stays_up(void **state)
{
    (void)state;
    /* Where a thread gets no processor for so long, the bound is the machine's fault: then with a longer one.
     */
    for (int ms = 200;; ms *= 4) {
        a.opts.silence = b.opts.silence = ms * XM_NS_PER_MS;
        end_open(&a);
        end_open(&b);
        end_join_tcp(&a, &b, 2, NULL);
        poll(NULL, 0, ms * 7 / 2); /* what is tested is that nothing happens */
        int up = xm_links_up(a.links) + xm_links_up(b.links);
        if (up == 4)
            break;
        assert_true(ms < 10000);
        xm_links_free(a.links);
        xm_links_free(b.links);
        a.links = b.links = NULL;
    }
}

static void abort_reaches_both_sides(bool by_sender)
{
    struct xm_error e;
    struct load load;
    pthread_t t;

    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 3, NULL);
    start(&load, &t, UINT64_MAX, 300, 50000);
    assert_true(end_wait(&b, b.frames > 300));
    xm_links_abort(by_sender ? a.links : b.links, "the operator\nsaid so");
    xm_links_abort(by_sender ? a.links : b.links, "twice");
    struct end *other = by_sender ? &b : &a;
    assert_true(end_wait(other, other->lost_events == 1));
    assert_string_equal("the other side ended the transfer: the operator?said so", other->lost_why.text);
    pthread_join(t, NULL);
    assert_true(load.failed > 0);
    assert_int_equal(-ECANCELED, load.status);
    assert_int_equal(0, load.twice);
    xm_links_error(by_sender ? a.links : b.links, &e);
    assert_string_equal("the operator\nsaid so", e.text);
    xm_links_peer_said(by_sender ? a.links : b.links, &e); /* it was not the peer */
    assert_int_equal(e.code, 0);
    xm_links_peer_said(other->links, &e);
    assert_string_equal("the operator?said so", e.text);
    assert_true(end_wait(&a, a.down_events == 3));
    assert_true(end_wait(&b, b.down_events == 3));
    assert_int_equal(1, a.lost_events);
    assert_int_equal(1, b.lost_events);
    load_free(&load);
}

static void the_sender_aborts(void **state)
{
    (void)state;
    abort_reaches_both_sides(true);
}

static void the_receiver_aborts(void **state)
{
    (void)state;
    abort_reaches_both_sides(false);
}

static void an_abort_without_links_ends_all_too(void **state)
{
    struct load load;
    pthread_t t;

    (void)state;
    end_open(&a);
    end_open(&b);
    start(&load, &t, 10, 10, 100);
    xm_links_abort(a.links, "no");
    pthread_join(t, NULL);
    assert_int_equal(-ECANCELED, load.status);
    load_free(&load);
}

static void *free_links(void *links)
{
    xm_links_free(links);
    return NULL;
}

static void free_ends_what_is_left(void **state)
{
    struct load load;
    pthread_t t, f;

    (void)state;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 2, NULL);
    start(&load, &t, 2000, 2000, 1000);
    assert_true(end_wait(&b, b.frames > 100));
    sem_wait(&load.begun); /* nobody submits to what is being freed */
    assert_int_equal(0, pthread_create(&f, NULL, free_links, a.links));
    pthread_join(t, NULL);
    pthread_join(f, NULL);
    assert_int_equal(2000, load.failed);
    assert_int_equal(-ECANCELED, load.status);
    a.links = NULL;
    load_free(&load);
}

/* The handlers' frames are done while, and after, the links go. */
static void frames_outlive_their_links(void **state)
{
    struct load load;
    pthread_t t, f;
    int fd[2];

    (void)state;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 2, fd);
    start(&load, &t, 100, 100, 100000);
    assert_true(end_wait(&b, b.frames == 100));
    shutdown(fd[0], SHUT_RDWR);
    shutdown(fd[1], SHUT_RDWR);
    pthread_join(t, NULL);
    assert_true(end_wait(&b, b.down_events == 2));
    assert_int_equal(0, pthread_create(&f, NULL, free_links, b.links));
    end_release(&b);
    pthread_join(f, NULL);
    b.links = NULL;
    load_free(&load);
}

/* The last answer before the bundle is freed still arrives. */
static void free_says_what_it_owes(void **state)
{
    struct load load;
    pthread_t t;

    (void)state;
    b.hold = true;
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 2, NULL);
    start(&load, &t, 50, 50, 100000);
    assert_true(end_wait(&b, b.frames == 50));
    end_release(&b);
    xm_links_free(b.links);
    b.links = NULL;
    pthread_join(t, NULL);
    assert_int_equal(0, load.failed);
    load_free(&load);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(killed_links_lose_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_lost_passes_full_windows, setup, teardown),
        cmocka_unit_test_setup_teardown(without_links_messages_fail_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_new_link_in_time_saves_the_bundle, setup, teardown),
        cmocka_unit_test_setup_teardown(link_timeout_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(a_silent_link_goes_down, setup, teardown),
        cmocka_unit_test_setup_teardown(a_path_that_takes_nothing_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(an_idle_link_stays_up, setup, teardown),
        cmocka_unit_test_setup_teardown(the_sender_aborts, setup, teardown),
        cmocka_unit_test_setup_teardown(the_receiver_aborts, setup, teardown),
        cmocka_unit_test_setup_teardown(an_abort_without_links_ends_all_too, setup, teardown),
        cmocka_unit_test_setup_teardown(free_ends_what_is_left, setup, teardown),
        cmocka_unit_test_setup_teardown(frames_outlive_their_links, setup, teardown),
        cmocka_unit_test_setup_teardown(free_says_what_it_owes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
