/* SPDX-License-Identifier: MIT */
/* The steps of one request, against a kernel that does them by halves: short at odd places, interrupted,
 * unable. */
#include "blkcopy/transfer.h"
#include "base/base.h"
#include "tests/unit/lib_disk.h"

#include <stdlib.h>
#include <string.h>

#define DISK 65536u

static char disk[DISK], shadow[DISK];
static uint64_t seed;

static uint64_t pick(uint64_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
}

/* Does one step on `disk`, or part of it. Checks that what it is asked for is legal for direct I/O. */
static int64_t pretend(const struct xm_file *f, const struct step *s, bool spoil)
{
    uint64_t at = s->offset, most = s->length;

    if (spoil && pick(6) == 0)
        return pick(2) ? -EINTR : -EAGAIN;
    if (s->way == WAY_SYNC)
        return 0;
    assert_int_equal(s->offset % f->block, 0);
    assert_int_equal(s->length % f->block, 0);
    assert_true(s->offset + s->length <= f->size);
    if (s->way == WAY_PUNCH || s->way == WAY_ZERO_RANGE) {
        if (spoil && pick(2))
            return -EOPNOTSUPP;
        memset(disk + at, 0, most);
        return 0;
    }
    if (spoil && pick(2))
        most = 1 + pick(most);
    for (int i = 0; i < s->iovcnt && most; i++) {
        size_t n = XM_MIN(s->iov[i].iov_len, most);
        assert_int_equal((uintptr_t)s->iov[i].iov_base % XM_MAX(f->mem_align, 1u), 0);
        assert_int_equal(s->iov[i].iov_len % f->block, 0);
        if (s->way == WAY_READ)
            memcpy(s->iov[i].iov_base, disk + at, n);
        else
            memcpy(disk + at, s->iov[i].iov_base, n);
        at += n;
        most -= n;
    }
    /* Less than a block gets nowhere with direct I/O: 0 is for the end of the file. */
    int64_t done = (int64_t)(at - s->offset);
    return (uint64_t)done < f->block ? -EINTR : done;
}

static int run(struct xm_io *io, bool spoil)
{
    struct step s;

    int rc = transfer_begin(io);
    if (rc <= 0)
        return rc;
    do {
        memset(&s, 0, sizeof(s));
        assert_int_equal(transfer_step(io, &s), 0);
    } while (!transfer_advance(io, pretend(io->file, &s, spoil)));
    assert_null(io->bounce);
    return io->res;
}

static void one_random_request(struct xm_file *f, char *mem)
{
    static const enum xm_io_op ops[] = {XM_IO_READ,  XM_IO_READ, XM_IO_WRITE,
                                        XM_IO_WRITE, XM_IO_ZERO, XM_IO_FLUSH};
    struct iovec iov[6];
    struct xm_io io = {.op = ops[pick(6)], .unmap = pick(2), .file = f, .iov = iov};
    uint64_t unit = io.op == XM_IO_READ && pick(2) ? 1 : f->block;

    io.length = (1 + pick(pick(3) ? 4 : DISK / unit)) * unit;
    io.offset = pick((DISK - io.length) / unit + 1) * unit;
    char *at = mem + pick(3) * 256 + (pick(2) ? 0 : pick(4096));
    uint64_t left = io.length, cut = pick(2) ? f->block : 1;
    while (io.iovcnt < 5 && left >= 2 * cut && pick(4)) {
        iov[io.iovcnt] = (struct iovec){at, (1 + pick(left / cut - 1)) * cut};
        left -= iov[io.iovcnt].iov_len;
        /* Elements need not follow each other in memory. */
        at += iov[io.iovcnt++].iov_len + (pick(2) ? 0 : 512);
    }
    iov[io.iovcnt++] = (struct iovec){at, left};
    uint64_t where = io.offset;
    for (int i = 0; i < io.iovcnt; where += iov[i++].iov_len) {
        if (io.op == XM_IO_WRITE) {
            for (size_t k = 0; k < iov[i].iov_len; k++)
                ((char *)iov[i].iov_base)[k] = (char)pick(256);
            memcpy(shadow + where, iov[i].iov_base, iov[i].iov_len);
        }
    }
    if (io.op == XM_IO_ZERO)
        memset(shadow + io.offset, 0, io.length);
    assert_int_equal(run(&io, true), 0);
    where = io.offset;
    for (int i = 0; io.op == XM_IO_READ && i < io.iovcnt; where += iov[i++].iov_len)
        assert_memory_equal(iov[i].iov_base, shadow + where, iov[i].iov_len);
    assert_memory_equal(disk, shadow, DISK);
}

static void test_random_requests_by_halves(void **state)
{
    char *mem = aligned_alloc(4096, DISK + 16384);

    (void)state;
    for (seed = 1; seed <= 4000;) {
        uint64_t this = seed;
        static const uint32_t blocks[] = {1, 512, 4096};
        struct xm_file f = {.fd = -1, .size = DISK, .block = blocks[this % 3]};
        f.mem_align = f.block == 4096 ? 512 : f.block;
        f.no_punch = pick(4) == 0;
        for (unsigned i = 0; i < 3; i++)
            one_random_request(&f, mem);
        seed = this + 1;
    }
    free(mem);
}

static void test_learning_concerns_the_way_that_was_taken(void **state)
{
    struct xm_file f = {.fd = -1, .size = DISK, .block = 512, .mem_align = 512};
    struct xm_io a = {.op = XM_IO_ZERO, .unmap = true, .file = &f, .length = 4096}, b = a;
    struct step s;

    (void)state;
    assert_int_equal(transfer_begin(&a), 1);
    assert_int_equal(transfer_begin(&b), 1);
    transfer_step(&a, &s);
    assert_int_equal(s.way, WAY_PUNCH);
    transfer_step(&b, &s);
    assert_int_equal(s.way, WAY_PUNCH);
    assert_false(transfer_advance(&a, -EOPNOTSUPP));
    assert_false(transfer_advance(&b, -EOPNOTSUPP));
    assert_true(f.no_punch);
    assert_false(f.no_zero_range);
    transfer_step(&b, &s);
    assert_int_equal(s.way, WAY_ZERO_RANGE);
}

static void test_errors_end_a_request(void **state)
{
    struct xm_file f = {.fd = -1, .size = DISK, .block = 512, .mem_align = 512};
    char *mem = aligned_alloc(4096, 8192);
    struct iovec iov = {mem + 1, 4096};
    struct xm_io io = {.op = XM_IO_WRITE, .file = &f, .length = 4096, .iov = &iov, .iovcnt = 1};
    struct step s;

    (void)state;
    assert_int_equal(transfer_begin(&io), 1);
    assert_int_equal(transfer_step(&io, &s), 0);
    assert_non_null(io.bounce);
    assert_false(transfer_advance(&io, 1024));
    assert_int_equal(transfer_step(&io, &s), 0);
    assert_int_equal(s.offset, 1024);
    assert_true(transfer_advance(&io, -ENOSPC));
    assert_int_equal(io.res, -ENOSPC);
    assert_null(io.bounce);
    /* Nothing at all was transferred: an error, not a loop. */
    assert_int_equal(transfer_begin(&io), 1);
    transfer_step(&io, &s);
    assert_true(transfer_advance(&io, 0));
    assert_int_equal(io.res, -EIO);
    /* Interrupted for ever. */
    assert_int_equal(transfer_begin(&io), 1);
    unsigned tries = 0;
    do {
        transfer_step(&io, &s);
    } while (!transfer_advance(&io, -EAGAIN) && tries++ < 100000);
    assert_int_equal(io.res, -EAGAIN);
    /* The iovec does not hold what length says. */
    iov.iov_len = 512;
    assert_int_equal(transfer_begin(&io), -EINVAL);
    io.iovcnt = 0;
    assert_int_equal(transfer_begin(&io), -EINVAL);
    free(mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_requests_by_halves),
        cmocka_unit_test(test_learning_concerns_the_way_that_was_taken),
        cmocka_unit_test(test_errors_end_a_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
