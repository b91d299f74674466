/* SPDX-License-Identifier: MIT */
/* The bitmap against a plain array of bools, at its edges, and with a taker beside setters. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

#include <stdlib.h>

static void compare(const struct xm_bitmap *m, const bool *model, uint64_t bits)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < bits; i++) {
        assert_int_equal(xm_bitmap_test(m, i), model[i]);
        count += model[i];
    }
    assert_int_equal(xm_bitmap_count(m), count);
    for (uint64_t i = 0; i <= bits + 1; i++) {
        uint64_t set = i, clear = i;
        while (set < bits && !model[set])
            set++;
        while (clear < bits && model[clear])
            clear++;
        assert_int_equal(xm_bitmap_next(m, i), set < bits ? set : bits);
        assert_int_equal(xm_bitmap_next_clear(m, i), clear < bits ? clear : bits);
    }
}

static void random_ranges_agree_with_a_plain_array(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1, 2, 63, 64, 65, 127, 128, 129, 200};
    unsigned seed = 42;

    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        struct xm_bitmap m;
        bool model[200] = {0};
        uint64_t bits = sizes[s];
        assert_int_equal(xm_bitmap_init(&m, bits), 0);
        compare(&m, model, bits);
        for (int step = 0; step < 60; step++) {
            uint64_t first = (uint64_t)rand_r(&seed) % (bits + 3),
                     count = (uint64_t)rand_r(&seed) % (bits + 3);
            bool set = rand_r(&seed) % 2;
            (set ? xm_bitmap_set : xm_bitmap_clear)(&m, first, count);
            for (uint64_t i = first; i < first + count && i < bits; i++)
                model[i] = set;
            compare(&m, model, bits);
        }
        xm_bitmap_destroy(&m);
    }
}

static void ranges_past_the_end_are_cut_also_when_they_overflow(void **state)
{
    (void)state;
    struct xm_bitmap m;

    assert_int_equal(xm_bitmap_init(&m, 70), 0);
    xm_bitmap_set(&m, 60, UINT64_MAX);
    assert_int_equal(xm_bitmap_count(&m), 10);
    xm_bitmap_set(&m, 70, 1);
    xm_bitmap_set(&m, UINT64_MAX, 5);
    assert_int_equal(xm_bitmap_count(&m), 10);
    assert_false(xm_bitmap_test(&m, 70));
    assert_false(xm_bitmap_test(&m, UINT64_MAX));
    xm_bitmap_clear(&m, 0, UINT64_MAX);
    assert_int_equal(xm_bitmap_count(&m), 0);
    xm_bitmap_destroy(&m);
}

static void an_empty_bitmap_is_harmless(void **state)
{
    (void)state;
    struct xm_bitmap m;

    assert_int_equal(xm_bitmap_init(&m, 0), 0);
    xm_bitmap_set(&m, 0, 10);
    assert_int_equal(xm_bitmap_next(&m, 0), 0);
    assert_int_equal(xm_bitmap_next_clear(&m, 0), 0);
    assert_int_equal(xm_bitmap_count(&m), 0);
    xm_bitmap_destroy(&m);
    xm_bitmap_destroy(&m);
}

static void a_huge_bitmap_costs_only_what_is_touched(void **state)
{
    (void)state;
    struct xm_bitmap m;
    uint64_t bits = (24ull << 40) / 4096; /* 24 TiB of RAM */

    assert_int_equal(xm_bitmap_init(&m, bits), 0);
    xm_bitmap_set(&m, bits - 1, 1);
    assert_true(xm_bitmap_test(&m, bits - 1));
    assert_int_equal(xm_bitmap_next(&m, bits - 4096), bits - 1);
    xm_bitmap_destroy(&m);
}

#define BITS   4096u
#define ROUNDS 2000u

struct race {
    struct xm_bitmap m;
    unsigned value[BITS]; /* what a bit stands for: atomic, written before the bit is set */
    bool done;
};

static void *set_all(void *arg)
{
    struct race *r = arg;
    for (unsigned round = 1; round <= ROUNDS; round++) {
        unsigned bit = round * 37 % BITS;
        __atomic_store_n(&r->value[bit], round, __ATOMIC_RELAXED);
        xm_bitmap_set(&r->m, bit, 1);
    }
    __atomic_store_n(&r->done, true, __ATOMIC_RELEASE);
    return NULL;
}

static void what_is_set_while_another_takes_is_taken_sooner_or_later(void **state)
{
    (void)state;
    static struct race r;
    static unsigned seen[BITS];
    pthread_t t;

    assert_int_equal(xm_bitmap_init(&r.m, BITS), 0);
    assert_int_equal(pthread_create(&t, NULL, set_all, &r), 0);
    for (bool last = false;;) {
        bool done = __atomic_load_n(&r.done, __ATOMIC_ACQUIRE);
        for (unsigned w = 0; w < BITS / 64; w++) {
            for (uint64_t v = xm_bitmap_take_word(&r.m, w); v; v &= v - 1) {
                unsigned bit = w * 64 + (unsigned)__builtin_ctzll(v);
                seen[bit] = __atomic_load_n(&r.value[bit], __ATOMIC_RELAXED);
            }
        }
        if (last)
            break;
        last = done;
    }
    pthread_join(t, NULL);
    for (unsigned i = 0; i < BITS; i++)
        assert_int_equal(seen[i], r.value[i]); /* the newest value of every bit was seen */
    assert_int_equal(xm_bitmap_count(&r.m), 0);
    xm_bitmap_destroy(&r.m);
}

#define SHARED (8u << 20)

struct side {
    struct xm_bitmap *m;
    pthread_barrier_t *start;
    unsigned which; /* the even or the odd bits */
};

static void *set_every_second(void *arg)
{
    struct side *s = arg;
    pthread_barrier_wait(s->start);
    for (unsigned bit = s->which; bit < SHARED; bit += 2)
        xm_bitmap_set(s->m, bit, 1);
    return NULL;
}

static void two_who_set_bits_of_the_same_words_lose_none(void **state)
{
    (void)state;
    struct xm_bitmap m;
    pthread_barrier_t start;
    struct side side[2] = {{&m, &start, 0}, {&m, &start, 1}};
    pthread_t t[2];

    assert_int_equal(xm_bitmap_init(&m, SHARED), 0);
    pthread_barrier_init(&start, NULL, 2);
    for (int round = 0; round < 12;
         round++) { /* they have to run at the same time once, on a busy machine too */
        xm_bitmap_clear(&m, 0, SHARED);
        for (int i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&t[i], NULL, set_every_second, &side[i]), 0);
        for (int i = 0; i < 2; i++)
            pthread_join(t[i], NULL);
        assert_int_equal(xm_bitmap_count(&m), SHARED);
    }
    pthread_barrier_destroy(&start);
    xm_bitmap_destroy(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_ranges_agree_with_a_plain_array),
        cmocka_unit_test(ranges_past_the_end_are_cut_also_when_they_overflow),
        cmocka_unit_test(an_empty_bitmap_is_harmless),
        cmocka_unit_test(a_huge_bitmap_costs_only_what_is_touched),
        cmocka_unit_test(two_who_set_bits_of_the_same_words_lose_none),
        cmocka_unit_test(what_is_set_while_another_takes_is_taken_sooner_or_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
