/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_random.h: the guest of mirror_random.c, and the world that it lives in. It knows what it has
 * written, and checks what it reads. */
#ifndef TESTS_LIB_RANDOM_H
#define TESTS_LIB_RANDOM_H

#include "lib_sim.h"
#include "mirror/mirror.h"

#define CHUNK     (64u << 10)
#define CHUNKS    16u
#define SECTORS   (CHUNKS * CHUNK / SIM_SECTOR)
#define SLOTS     24u
#define BUF_MAX   (256u << 10)
#define TURNS_MAX 2000000u

/* What the whole run must have seen at least once, or it has proved less than it says. */
extern struct seen {
    uint64_t to_sync, to_async, held, given_up, buffer_waits, links_lost, all_lost, resent, reordered,
        target_errors, read_errors, write_errors, mirror_offs, pivots, holes, zeros, retried_quiesces,
        verified, verify_failed, failed;
} seen;

struct guest_sector {
    uint32_t tag;     /* what it holds, when it is known */
    uint32_t touched; /* grows at each begin and end of a write */
    uint8_t writers;  /* in flight */
    bool unknown;     /* concurrent writes, a buffer that changed, an error: either value is right */
};

struct slot {
    struct world *world;
    struct xm_breq breq;
    struct iovec iov[3];
    uint8_t *buf;
    bool busy, scribbled;
    uint32_t tag;
    struct sim_event scribble;
    uint32_t *touched; /* READ: as it was at the beginning */
};

struct world {
    struct sim *sim;
    struct sim_disk *source, *target;
    struct xm_writer *writer;
    struct sim_links *links; /* NULL: near */
    struct xm_replica *replica;
    struct xm_disk *disk;
    struct guest_sector *sectors;
    uint64_t size, hot;
    struct slot slot[SLOTS];
    unsigned depth, busy, left; /* requests to do */
    uint32_t next_tag;
    struct sim_event guest, chaos;
    uint64_t think; /* ns between requests, at most */
    bool chaotic, mirror_up, turning_off, stopped;
    bool quiet; /* set when the guest has nothing in flight and nothing left to do */
    bool off, quiesced, pivoted, verifying;
    int quiesce_status, pivot_status;
    char why[300];
    uint64_t seed;
};

extern bool talk; /* tells what happens */
void say(const struct world *, const char *what, uint64_t a, uint64_t b);

/* A sector as a write with this tag leaves it; tag 0: zeros. */
void guest_stamp(uint8_t *to, uint32_t tag, uint64_t sector);
bool guest_is_stamped(const uint8_t *at, uint32_t tag, uint64_t sector);
void guest_schedule(struct world *);     /* its next request, if there is to be one */
void guest_step(struct sim_event *);     /* of world.guest */
void guest_scribble(struct sim_event *); /* of slot.scribble */

#endif
