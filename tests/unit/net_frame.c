/* SPDX-License-Identifier: MIT */
/* The wire's header: what is encoded comes back, and everything else is refused, field by field. */
#include "net/frame.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <string.h>

static struct xm_msg message(uint8_t type)
{
    const struct frame_kind *k = frame_kind(type);
    return (struct xm_msg){.type = type,
                           .flags = k->flags,
                           .object = 7,
                           .length = k->min,
                           .offset = 1ull << 40,
                           .extent = 12345,
                           .seq = 99,
                           .after = 98};
}

static void every_request_survives_the_wire(void **state)
{
    (void)state;
    for (unsigned type = 0; type < XM_FRAME_TYPE_MAX; type++) {
        const struct frame_kind *k = frame_kind((uint8_t)type);
        if (!k || !k->request)
            continue;
        struct xm_msg m = message((uint8_t)type);
        struct xm_frame_hdr h, back;
        struct xm_error e = {0};
        uint8_t wire[64];
        xm_frame_of_msg(&h, &m, 0x12345678, 42);
        frame_encode(wire, &h);
        if (frame_decode(&back, wire, &e) < 0)
            fail_msg("%s: %s", k->name, e.text);
        h.check = back.check;
        assert_memory_equal(&h, &back, sizeof h);
    }
}

static void the_wire_is_little_endian(void **state)
{
    struct xm_frame_hdr h = {.type = XM_FRAME_DISK_DATA, .object = 0x12, .length = 0x0304, .id = 0x01020304};
    uint8_t wire[64];

    (void)state;
    h.offset = 0x0102030405060708;
    frame_encode(wire, &h);
    assert_memory_equal(
        wire, "XMF1\x10\x00\x12\x00\x04\x03\x00\x00\x04\x03\x02\x01\x08\x07\x06\x05\x04\x03\x02\x01", 24);
}

/* Seals a header that breaks one rule. Returns what the judge says. */
static int judge(uint8_t type, void (*change)(struct xm_frame_hdr *), char *text)
{
    const struct frame_kind *k = frame_kind(type);
    struct xm_frame_hdr h = {.type = type, .length = k->min}, back;
    struct xm_error e = {0};
    uint8_t wire[64];

    change(&h);
    frame_encode(wire, &h);
    int err = frame_decode(&back, wire, &e);
    strcpy(text, e.text);
    return err;
}

static void set_flags(struct xm_frame_hdr *h)
{
    h->flags = 0x80;
}
static void set_object(struct xm_frame_hdr *h)
{
    h->object = XM_OBJECTS_MAX;
}
static void set_length(struct xm_frame_hdr *h)
{
    h->length = UINT32_MAX;
}
static void set_id(struct xm_frame_hdr *h)
{
    h->id = 1;
}
static void set_offset(struct xm_frame_hdr *h)
{
    h->offset = UINT64_MAX;
}
static void set_extent(struct xm_frame_hdr *h)
{
    h->extent = UINT64_MAX;
}
static void set_seq(struct xm_frame_hdr *h)
{
    h->seq = 1;
}
static void set_after(struct xm_frame_hdr *h)
{
    h->after = 1;
}
static void set_hash(struct xm_frame_hdr *h)
{
    h->hash = 1;
}
static void set_nothing(struct xm_frame_hdr *h)
{
    (void)h;
}

static void each_fields_violation_is_refused_and_named(void **state)
{
    static const struct {
        const char *name;
        void (*change)(struct xm_frame_hdr *);
        unsigned allowed_where_used;
    } field[] = {
        {"flags", set_flags, 0},    {"object", set_object, 0},       {"bytes of payload", set_length, 0},
        {"id", set_id, USES_ID},    {"offset", set_offset, 0},       {"extent", set_extent, 0},
        {"seq", set_seq, USES_SEQ}, {"after", set_after, USES_AFTER}};
    char text[500];

    (void)state;
    for (unsigned type = 0; type < XM_FRAME_TYPE_MAX; type++) {
        const struct frame_kind *k = frame_kind((uint8_t)type);
        if (!k)
            continue;
        assert_int_equal(0, judge((uint8_t)type, set_nothing, text));
        for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
            int err = judge((uint8_t)type, field[i].change, text);
            if (k->uses & field[i].allowed_where_used) {
                assert_int_equal(0, err);
                continue;
            }
            if (err != -EPROTO || !strstr(text, field[i].name) || !strstr(text, k->name))
                fail_msg("%s with a bad %s: %d (%s)", k->name, field[i].name, err, text);
        }
        if (!k->min)
            assert_int_equal(-EPROTO, judge((uint8_t)type, set_hash, text));
    }
}

static void lengths_are_bounded_on_both_ends(void **state)
{
    (void)state;
    for (unsigned type = 0; type < XM_FRAME_TYPE_MAX; type++) {
        const struct frame_kind *k = frame_kind((uint8_t)type);
        uint8_t wire[64];
        struct xm_frame_hdr back;
        for (uint32_t len = k && k->min ? k->min - 1 : 0; k && len <= k->max + 1;
             len += k->max > len + 8 ? k->max - len - 3 : 1) {
            frame_encode(wire, &(struct xm_frame_hdr){.type = (uint8_t)type, .length = len});
            bool fine = len >= k->min && len <= k->max && len % k->unit == 0;
            assert_int_equal(fine ? 0 : -EPROTO, frame_decode(&back, wire, NULL));
        }
    }
}

static void unknown_types_are_refused(void **state)
{
    (void)state;
    for (unsigned type = 0; type < 256; type++) {
        uint8_t wire[64];
        struct xm_frame_hdr back;
        if (frame_kind((uint8_t)type))
            continue;
        frame_encode(wire, &(struct xm_frame_hdr){.type = (uint8_t)type});
        assert_int_equal(-EPROTO, frame_decode(&back, wire, NULL));
    }
}

static void any_flipped_bit_is_found(void **state)
{
    struct xm_msg m = message(XM_FRAME_DISK_DATA);
    struct xm_frame_hdr h, back;
    uint8_t wire[64];

    (void)state;
    xm_frame_of_msg(&h, &m, 5, 6);
    frame_encode(wire, &h);
    for (unsigned bit = 0; bit < 512; bit++) {
        wire[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(-EBADMSG, frame_decode(&back, wire, NULL));
        wire[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_int_equal(0, frame_decode(&back, wire, NULL));
}

static void digests_do_not_depend_on_order_but_on_every_field(void **state)
{
    struct xm_frame_hdr h[3];
    struct xm_digest one = {0}, two = {0};

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct xm_msg m = message(XM_FRAME_DISK_ZERO);
        m.seq = (uint64_t)i;
        xm_frame_of_msg(&h[i], &m, (uint32_t)i, 0);
    }
    for (int i = 0; i < 3; i++)
        xm_digest_add(&one, &h[i]);
    for (int i = 3; i-- > 0;)
        xm_digest_add(&two, &h[i]);
    assert_true(xm_digest_equal(&one, &two));
    assert_int_equal(3 * 12345, one.bytes);

    void (*change[])(struct xm_frame_hdr *) = {set_object, set_offset, set_extent, set_seq, set_hash};
    for (size_t i = 0; i < sizeof change / sizeof *change; i++) {
        struct xm_digest other = {0};
        struct xm_frame_hdr x = h[0];
        change[i](&x);
        xm_digest_add(&other, &x);
        xm_digest_add(&other, &h[1]);
        xm_digest_add(&other, &h[2]);
        assert_int_not_equal(one.sum, other.sum);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_request_survives_the_wire),
        cmocka_unit_test(the_wire_is_little_endian),
        cmocka_unit_test(each_fields_violation_is_refused_and_named),
        cmocka_unit_test(lengths_are_bounded_on_both_ends),
        cmocka_unit_test(unknown_types_are_refused),
        cmocka_unit_test(any_flipped_bit_is_found),
        cmocka_unit_test(digests_do_not_depend_on_order_but_on_every_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
