/* SPDX-License-Identifier: MIT */
/* A link of 20 MB/s with a short queue, as a namespace of our own with a shaped loopback: what is urgent
 * must not wait for what the socket has taken already. Needs root, ip and tc. */
#include "tests/unit/lib_netpair.h"
#include "tests/progress.h"

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>

#define BULK   (32u << 10)
#define MBIT   "160mbit" /* 20 MB/s */
#define ROUNDS 60
#define URGENT 2 /* the object of these frames; that of the bulk is 1 */

static struct end a, b;
static bool slow;

static bool shape(void)
{
    /* Of the kernel's ways those that look at losses alone fill the most: where there is one. */
    return unshare(CLONE_NEWNET) == 0 &&
           system("sysctl -qw net.ipv4.tcp_congestion_control=cubic 2>/dev/null || "
                  "sysctl -qw net.ipv4.tcp_congestion_control=reno 2>/dev/null; true") == 0 &&
           system("ip link set lo mtu 1500 up 2>/dev/null") == 0 &&
           system("tc qdisc add dev lo root tbf rate " MBIT " burst 64kb latency 5ms 2>/dev/null") == 0;
}

static int compare(const void *x, const void *y)
{
    unsigned l = *(const unsigned *)x, r = *(const unsigned *)y;
    return (l > r) - (l < r);
}

/* How many frames have come. */
static unsigned arrived(struct end *e)
{
    pthread_mutex_lock(&e->lock);
    unsigned n = (unsigned)e->frames;
    pthread_mutex_unlock(&e->lock);
    return n;
}

/* How many came before the last urgent one (it has been answered). */
static unsigned place_of_urgent(struct end *e)
{
    pthread_mutex_lock(&e->lock);
    unsigned n = (unsigned)e->frames;
    while (n && e->order[n - 1] != URGENT)
        n--;
    pthread_mutex_unlock(&e->lock);
    return n - 1;
}

static void urgent_does_not_wait_for_the_socket(void **state)
{
    struct load bulk;
    pthread_t t;
    unsigned ahead[ROUNDS];
    uint8_t page[4096] = {1};

    (void)state;
    if (!slow) {
        print_message("no namespace with a shaped loopback here (root, ip, tc)\n");
        skip();
    }
    end_init(&a, 0);
    end_init(&b, 100000);
    end_open(&a);
    end_open(&b);
    end_join_tcp(&a, &b, 1, NULL);
    /* 40 MB: 2 s; 16 MiB at a time, as the rounds of RAM do. */
    load_init(&bulk, xm_links_transport(a.links), 1, 1280, 512, BULK);
    bulk.fixed = true;
    uint64_t start = xm_now();
    assert_int_equal(0, pthread_create(&t, NULL, load_thread, &bulk));
    assert_true(end_wait(&b, b.frames >= 160)); /* the socket's buffer has grown to what it likes */
    unsigned n = 0;
    while (n < ROUNDS && arrived(&b) < 800) {
        struct xm_msg m = {.type = XM_FRAME_DISK_DATA,
                           .object = URGENT,
                           .urgent = true,
                           .length = 4096,
                           .payload = page,
                           .offset = 4096ull * n,
                           .seq = 1000 + n};
        unsigned from = arrived(&b);
        assert_int_equal(0, xm_transport_call(xm_links_transport(a.links), &m, LIMIT_HANG_NS, NULL));
        ahead[n++] = place_of_urgent(&b) - from;
    }
    pthread_join(t, NULL);
    double s = (double)(xm_now() - start) / 1e9;
    qsort(ahead, n, sizeof *ahead, compare);
    print_message("%u urgent messages: %u frames of bulk before a quick one, %u at most; bulk: %.1f MB/s\n",
                  n, ahead[n / 4], ahead[n - 1], 1280 * (double)BULK / s / 1e6);
    assert_true(n > 0);
    /* 11 where nothing else runs; a socket that takes what it likes: 19 to 21. A busy machine adds some, but
     * not to all: the quick ones count. */
    assert_true(ahead[n / 4] < 15);
    load_free(&bulk);
    end_free(&a);
    end_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urgent_does_not_wait_for_the_socket),
    };

    slow = shape();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
