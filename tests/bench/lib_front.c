/* SPDX-License-Identifier: MIT */
#include "tests/bench/lib_front.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK 4096u

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

void front_connect(struct vf *f, const char *socket, uint64_t watch_ns)
{
    if (vf_init(f, 1, 256) || vf_connect(f, socket, 0) || vf_start(f))
        bench_die("the back end at %s cannot be driven", socket);
    f->watch_ns = watch_ns;
    memset(f->mem + VF_DATA, 0x5a, 64 * BLOCK);
}

struct front_result front_measure(struct vf *f, uint32_t type, unsigned depth, uint64_t disk_size,
                                  uint64_t ns, pid_t backend)
{
    enum { MAX = 1 << 21 };
    static uint32_t lat[MAX];
    static uint64_t begun[64];
    static uint32_t rnd = 1;
    uint64_t start = xm_now(), now = start, end = start + ns;
    double cpu = bench_cpu_of(backend);
    unsigned n = 0, out = 0, kicks = 0, waits = 0;
    uint64_t free_slots = depth == 64 ? ~0ull : (1ull << depth) - 1;

    while (now < end || out) {
        bool added = false;
        while (free_slots && now < end) {
            unsigned slot = (unsigned)__builtin_ctzll(free_slots);
            struct vf_seg s = {VF_DATA + slot * BLOCK, BLOCK, type == VIRTIO_BLK_T_IN};
            rnd = rnd * 1664525u + 1013904223u;
            begun[slot] = xm_now();
            if (vf_request(f, 0, type, (uint64_t)(rnd >> 8) % (disk_size / BLOCK) * (BLOCK / 512), &s, 1,
                           (void *)(uintptr_t)slot) < 0)
                break;
            free_slots &= ~(1ull << slot);
            out++;
            added = true;
        }
        if (added)
            kicks += vf_kick(f, 0);
        void *cookie;
        uint8_t status;
        bool any = false;
        while (vf_used(f, 0, NULL, &status, &cookie, NULL) == 1) {
            unsigned slot = (unsigned)(uintptr_t)cookie;
            if (status)
                bench_die("a request failed");
            now = xm_now();
            if (n < MAX)
                lat[n++] = (uint32_t)(now - begun[slot]);
            free_slots |= 1ull << slot;
            out--;
            any = true;
        }
        if (!any && out) {
            waits++;
            if (!vf_wait(f, 0, 5000))
                bench_die("a request was not answered in 5 s");
        }
        now = xm_now();
    }
    struct front_result r = {.iops = (double)n * 1e9 / (double)(now - start)};
    if (!n)
        return r;
    qsort(lat, n, sizeof *lat, by_value);
    r.kicks = (double)kicks / n;
    r.waits = (double)waits / n;
    r.p50 = lat[n / 2] / 1e3;
    r.p99 = lat[n - 1 - n / 100] / 1e3;
    r.cpu = (bench_cpu_of(backend) - cpu) * 1e6 / n;
    return r;
}
