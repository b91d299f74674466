/* SPDX-License-Identifier: MIT */
/* Buffers are aligned, kept warm, and never more than the bound. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

#define MIB (1u << 20)

static void buffers_are_page_aligned_and_writable_to_their_end(void **state)
{
    (void)state;
    struct xm_bufpool *p = xm_bufpool_new(8 * MIB);
    static const size_t lens[] = {1, 4095, 4096, 4097, 65536, MIB - 1, MIB, MIB + 1, XM_BUF_MAX};

    for (size_t i = 0; i < sizeof lens / sizeof lens[0]; i++) {
        char *b = xm_bufpool_get(p, lens[i]);
        assert_non_null(b);
        assert_int_equal((uintptr_t)b % 4096, 0);
        memset(b, 0xaa, lens[i]);
        xm_bufpool_put(p, b, lens[i]);
    }
    assert_int_equal(xm_bufpool_used(p), 0);
    xm_bufpool_free(p);
}

static void the_bound_holds_and_put_makes_room(void **state)
{
    (void)state;
    struct xm_bufpool *p = xm_bufpool_new(4 * MIB);
    void *b[4];

    assert_int_equal(xm_bufpool_limit(p), 4 * MIB);
    for (int i = 0; i < 4; i++)
        assert_non_null(b[i] = xm_bufpool_get(p, MIB));
    assert_int_equal(xm_bufpool_used(p), 4 * MIB);
    assert_null(xm_bufpool_get(p, 1));
    xm_bufpool_put(p, b[3], MIB);
    assert_null(xm_bufpool_get(p, XM_BUF_MAX));
    assert_non_null(b[3] = xm_bufpool_get(p, MIB));
    for (int i = 0; i < 4; i++)
        xm_bufpool_put(p, b[i], MIB);
    xm_bufpool_free(p);
}

static void idle_buffers_of_one_size_make_way_for_another(void **state)
{
    (void)state;
    struct xm_bufpool *p = xm_bufpool_new(2 * MIB);
    void *small[512], *large;

    for (int i = 0; i < 512; i++)
        assert_non_null(small[i] = xm_bufpool_get(p, 4096));
    for (int i = 0; i < 512; i++)
        xm_bufpool_put(p, small[i], 4096);
    assert_non_null(large = xm_bufpool_get(p, XM_BUF_MAX)); /* all the bound: every idle one had to go */
    xm_bufpool_put(p, large, XM_BUF_MAX);
    assert_non_null(small[0] = xm_bufpool_get(p, 4096));
    xm_bufpool_put(p, small[0], 4096);
    xm_bufpool_free(p);
}

static void what_lies_scattered_does_not_stop_a_large_one(void **state)
{
    (void)state;
    struct xm_bufpool *p = xm_bufpool_new(2 * MIB);
    void *small[512];
    char *large;

    for (int i = 0; i < 512; i++)
        assert_non_null(small[i] = xm_bufpool_get(p, 4096));
    for (int i = 0; i < 512; i += 2)
        xm_bufpool_put(p, small[i], 4096);
    assert_non_null(large = xm_bufpool_get(p, MIB)); /* half of it is free, in no piece larger than 4 KiB */
    memset(large, 1, MIB);
    assert_null(xm_bufpool_get(p, 4096)); /* the bound */
    xm_bufpool_put(p, large, MIB);
    assert_int_equal(xm_bufpool_used(p), MIB);
    for (int i = 1; i < 512; i += 2)
        xm_bufpool_put(p, small[i], 4096);
    xm_bufpool_free(p);
}

static void a_buffer_put_back_is_the_next_one_got(void **state)
{
    (void)state;
    struct xm_bufpool *p = xm_bufpool_new(MIB);
    void *a = xm_bufpool_get(p, 65536);

    xm_bufpool_put(p, a, 65536);
    assert_ptr_equal(xm_bufpool_get(p, 40000), a); /* same class: warm */
    xm_bufpool_put(p, a, 40000);
    xm_bufpool_put(p, NULL, 4096);
    xm_bufpool_free(p);
    xm_bufpool_free(NULL);
}

static void *churn(void *arg)
{
    struct xm_bufpool *p = arg;
    uintptr_t failed = 0;

    for (unsigned i = 0; i < 3000; i++) {
        size_t len = 4096u << (i % 6);
        unsigned char *b = xm_bufpool_get(p, len);
        if (!b)
            continue; /* the bound; the others give back */
        memset(b, (int)i, len);
        failed |= b[0] != (unsigned char)i || b[len - 1] != (unsigned char)i;
        xm_bufpool_put(p, b, len);
    }
    return (void *)failed;
}

static void threads_never_share_a_buffer(void **state)
{
    (void)state;
    struct xm_bufpool *p = xm_bufpool_new(MIB / 2);
    pthread_t t[4];
    void *failed;

    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, churn, p), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(xm_bufpool_used(p), 0);
    xm_bufpool_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffers_are_page_aligned_and_writable_to_their_end),
        cmocka_unit_test(the_bound_holds_and_put_makes_room),
        cmocka_unit_test(idle_buffers_of_one_size_make_way_for_another),
        cmocka_unit_test(what_lies_scattered_does_not_stop_a_large_one),
        cmocka_unit_test(a_buffer_put_back_is_the_next_one_got),
        cmocka_unit_test(threads_never_share_a_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
