/* SPDX-License-Identifier: MIT */
/* tests/guest/diskload.c: what is done with the disks on request: pause, verify, a verified load, figures. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/guest/disk.h"

#define VERIFY_BYTES (1024u * 1024)

void disks_pause(void)
{
    unsigned i;

    for (i = 0; i < guest_disk_count; i++) {
        if (gate_close(&guest_disks[i]->gate) < 0)
            guest_fail("%s: a write hangs for a minute", guest_disks[i]->name);
        if (fdatasync(guest_disks[i]->fd) < 0)
            guest_fail("%s: flush: %s", guest_disks[i]->name, strerror(errno));
    }
}

void disks_resume(void)
{
    unsigned i;

    for (i = 0; i < guest_disk_count; i++)
        gate_open(&guest_disks[i]->gate);
}

struct verify_job {
    pthread_t thread;
    struct disk *d;
    uint64_t wrong, blocks;
};

static void *verify_one(void *arg)
{
    struct verify_job *j = arg;
    struct disk *d = j->d;
    unsigned char *buf = NULL;
    uint64_t off, b;

    if (posix_memalign((void **)&buf, REC_BLOCK, VERIFY_BYTES)) {
        guest_fail("%s: no memory to verify", d->name);
        j->wrong = 1;
        return NULL;
    }
    for (off = 0; off < d->span; off += VERIFY_BYTES) {
        size_t len = d->span - off < VERIFY_BYTES ? (size_t)(d->span - off) : VERIFY_BYTES;
        bool known = false;

        for (b = off / REC_BLOCK; b < (off + len) / REC_BLOCK; b++)
            if (d->issued[b] != ACC_UNKNOWN || d->acked[b] != ACC_UNKNOWN) {
                known = true;
                j->blocks++;
            }
        if (!known)
            continue;
        if (pread(d->fd, buf, len, (off_t)off) != (ssize_t)len) {
            guest_fail("%s: read at %llu: %s", d->name, (unsigned long long)off, strerror(errno));
            j->wrong++;
            continue;
        }
        j->wrong += disk_judge(d, off / REC_BLOCK, (unsigned)(len / REC_BLOCK), buf);
    }
    free(buf);
    return NULL;
}

uint64_t disks_verify(uint64_t *blocks)
{
    struct verify_job job[8] = {0};
    uint64_t wrong = 0;
    unsigned i;

    *blocks = 0;
    for (i = 0; i < guest_disk_count; i++) {
        job[i].d = guest_disks[i];
        if (pthread_create(&job[i].thread, NULL, verify_one, &job[i])) {
            guest_fail("no thread to verify");
            job[i].d = NULL;
            wrong++;
        }
    }
    for (i = 0; i < guest_disk_count; i++) {
        if (!job[i].d)
            continue;
        pthread_join(job[i].thread, NULL);
        wrong += job[i].wrong;
        *blocks += job[i].blocks;
    }
    return wrong;
}

void disks_status(FILE *json)
{
    unsigned i;

    fprintf(json, "[");
    for (i = 0; i < guest_disk_count; i++) {
        const struct disk *d = guest_disks[i];

        fprintf(json,
                "%s{\"name\":\"%s\",\"device\":\"%s\",\"span\":%llu,\"bytes\":%llu,\"writes\":%llu,\"reads\":"
                "%llu,"
                "\"flushes\":%llu,\"discards\":%llu,\"zeroes\":%llu,\"errors\":%llu,\"slowest_ms\":%.3f}",
                i ? "," : "", d->name, d->dev, (unsigned long long)d->span,
                (unsigned long long)LOOK(d->bytes), (unsigned long long)LOOK(d->writes),
                (unsigned long long)LOOK(d->reads), (unsigned long long)LOOK(d->flushes),
                (unsigned long long)LOOK(d->discards), (unsigned long long)LOOK(d->zeroes),
                (unsigned long long)LOOK(d->errors), (double)LOOK(d->slowest_ns) / 1e6);
    }
    fprintf(json, "]");
}

void disks_reset(void)
{
    unsigned i;

    for (i = 0; i < guest_disk_count; i++)
        __atomic_store_n(&guest_disks[i]->slowest_ns, 0, __ATOMIC_RELAXED);
}

struct load_job {
    pthread_t thread;
    struct stroke stroke;
    uint64_t until, operations, bytes;
    bool running;
};

static void *load_one(void *arg)
{
    struct load_job *j = arg;

    while (now_ns() < j->until) {
        j->bytes += rec_random(&j->stroke.rng) % 10 < 4 ? stroke_read(&j->stroke) : stroke_write(&j->stroke);
        j->operations++;
    }
    return NULL;
}

/* The disk's own writers stand still meanwhile: the slots are shared out among the load's threads. */
static void load_disk(struct disk *d, struct load_job *jobs, unsigned depth, uint64_t until)
{
    static unsigned round;
    unsigned i;

    if (gate_close(&d->gate) < 0)
        guest_fail("%s: a write hangs for a minute", d->name);
    round++;
    for (i = 0; i < depth; i++) {
        jobs[i].until = until;
        jobs[i].running = stroke_init(&jobs[i].stroke, d, i, depth, round) == 0 &&
                          pthread_create(&jobs[i].thread, NULL, load_one, &jobs[i]) == 0;
        if (!jobs[i].running)
            guest_fail("%s: no thread for the load", d->name);
    }
}

int disks_load(const char *dev, unsigned seconds, unsigned depth, FILE *json)
{
    uint64_t until = now_ns() + (uint64_t)seconds * 1000000000u, operations = 0, bytes = 0;
    struct load_job *jobs[8] = {0};
    unsigned i, t;
    int found = -1;

    if (depth < 1 || depth > 32)
        return -1;
    for (i = 0; i < guest_disk_count; i++) {
        if (dev && strcmp(dev, guest_disks[i]->dev) != 0 && strcmp(dev, guest_disks[i]->name) != 0)
            continue;
        jobs[i] = calloc(depth, sizeof(*jobs[i]));
        if (!jobs[i])
            continue;
        found = 0;
        load_disk(guest_disks[i], jobs[i], depth, until);
    }
    for (i = 0; i < guest_disk_count; i++) {
        if (!jobs[i])
            continue;
        for (t = 0; t < depth; t++) {
            if (jobs[i][t].running)
                pthread_join(jobs[i][t].thread, NULL);
            operations += jobs[i][t].operations;
            bytes += jobs[i][t].bytes;
            free(jobs[i][t].stroke.buf);
        }
        free(jobs[i]);
        gate_open(&guest_disks[i]->gate);
    }
    fprintf(json, "\"operations\":%llu,\"bytes\":%llu,\"seconds\":%u,\"depth\":%u",
            (unsigned long long)operations, (unsigned long long)bytes, seconds, depth);
    return found;
}
