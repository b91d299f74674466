/* SPDX-License-Identifier: MIT */
/* tests/guest/record.c: see record.h. */
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <stdio.h>
#include <string.h>
#include "tests/guest/record.h"

#define REC_MAGIC 0x4b4c4253455447ULL

struct rec_head {
    uint64_t magic;
    uint64_t disk;
    uint64_t block;
    uint64_t seq;
    uint32_t count; /* blocks of the write */
    uint32_t index; /* which of them this is */
    uint64_t sum;   /* of the whole block with this field 0 */
};

uint64_t rec_random(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15ULL);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

void rec_noise(void *buf, size_t len, uint64_t seed)
{
    uint64_t w, s = seed;
    unsigned char *p = buf;

    for (; len >= sizeof(w); len -= sizeof(w), p += sizeof(w)) {
        w = rec_random(&s);
        memcpy(p, &w, sizeof(w));
    }
    memset(p, 0x5a, len);
}

uint64_t rec_disk_id(const char *name, uint64_t seed)
{
    return XXH3_64bits_withSeed(name, strlen(name), seed);
}

void rec_make(void *buf, uint64_t disk, uint64_t block, unsigned count, uint64_t seq)
{
    unsigned i;

    for (i = 0; i < count; i++) {
        unsigned char *p = (unsigned char *)buf + (size_t)i * REC_BLOCK;
        struct rec_head h = {REC_MAGIC, disk, block + i, seq, count, i, 0};

        memcpy(p, &h, sizeof(h));
        rec_noise(p + sizeof(h), REC_BLOCK - sizeof(h), disk ^ ((block + i) << 20) ^ seq);
        h.sum = XXH3_64bits(p, REC_BLOCK);
        memcpy(p, &h, sizeof(h));
    }
}

uint64_t rec_sequence(const void *buf)
{
    struct rec_head h;

    memcpy(&h, buf, sizeof(h));
    return h.seq;
}

bool rec_is_zero(const void *buf, size_t len)
{
    const unsigned char *p = buf;

    return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

const char *rec_check(const void *buf, uint64_t disk, uint64_t block, uint64_t lo, uint64_t hi, char *why,
                      size_t why_size)
{
    unsigned char copy[REC_BLOCK];
    struct rec_head h;
    uint64_t sum;

    memcpy(copy, buf, sizeof(copy));
    memcpy(&h, copy, sizeof(h));
    sum = h.sum;
    if (rec_is_zero(copy, sizeof(copy))) {
        snprintf(why, why_size, "zeros instead of write %llu", (unsigned long long)lo);
    } else if (h.magic != REC_MAGIC) {
        snprintf(why, why_size, "no record (begins %016llx)", (unsigned long long)h.magic);
    } else if (h.disk != disk) {
        snprintf(why, why_size, "a block of another disk (%016llx)", (unsigned long long)h.disk);
    } else if (h.block != block) {
        snprintf(why, why_size, "the content of block %llu", (unsigned long long)h.block);
    } else if (h.seq < lo || h.seq > hi) {
        snprintf(why, why_size, "write %llu, should be %llu..%llu", (unsigned long long)h.seq,
                 (unsigned long long)lo, (unsigned long long)hi);
    } else {
        h.sum = 0;
        memcpy(copy, &h, sizeof(h));
        if (XXH3_64bits(copy, sizeof(copy)) == sum)
            return NULL;
        snprintf(why, why_size, "wrong checksum in write %llu", (unsigned long long)h.seq);
    }
    return why;
}
