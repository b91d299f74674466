/* SPDX-License-Identifier: MIT */
/* A world in one thread with a clock of its own: an engine over disks in memory, and links that delay,
 * reorder, lose and send again. One seed is one schedule. */
#ifndef TESTS_LIB_SIM_H
#define TESTS_LIB_SIM_H

#include "blkcopy/blkcopy.h"

#define SIM_SECTOR    512u
#define SIM_LINKS_MAX 4u

struct sim_event {
    uint64_t when, order;
    void (*fire)(struct sim_event *);
    size_t at; /* place in the heap */
    bool armed;
};

struct sim {
    struct xm_engine engine;
    uint64_t random, now, order;
    struct sim_event **heap;
    size_t events, room;
};

struct sim *sim_new(uint64_t seed);
void sim_free(struct sim *); /* no events left */
uint64_t sim_random(struct sim *);
uint64_t sim_below(struct sim *, uint64_t n);                    /* 0 to n-1 */
uint64_t sim_between(struct sim *, uint64_t low, uint64_t high); /* both included */
bool sim_chance(struct sim *, unsigned per_mille);
void sim_event_set(struct sim *, struct sim_event *, uint64_t delay);
void sim_event_cancel(struct sim *, struct sim_event *);
/* Turns the engine until *flag, or nothing can happen any more, or max_turns. Returns *flag. */
bool sim_run_until(struct sim *, const bool *flag, unsigned max_turns);
void sim_run_for(struct sim *, uint64_t ns);

/* A disk in memory. A write's bytes are taken and a read's bytes given at any moment between submission and
 * end, sector by sector. */
struct sim_disk {
    struct xm_file file;
    struct sim *sim;
    uint8_t *data;
    bool *hole; /* by 4 KiB: reads as zero and reported as a hole */
    uint64_t latency_min, latency_max;
    unsigned read_errors, write_errors, flush_errors; /* per mille */
    uint64_t errors;                                  /* so many happened */
    uint64_t unflushed;                               /* writes ended since the last flush began */
    uint64_t reads, writes, zeros, flushes;
    /* Tests may look at what is submitted, and hold it back: true keeps it until sim_disk_go. */
    bool (*gate)(struct sim_disk *, struct xm_io *);
    void *ctx;
    TAILQ_HEAD(, sim_op) gated;
};
struct sim_disk *sim_disk_new(struct sim *, uint64_t size);
void sim_disk_free(struct sim_disk *);
void sim_disk_go(struct sim_disk *); /* all that is held back goes on */

/* Links to a writer on the same engine. */
struct sim_links {
    struct xm_transport transport;
    struct sim *sim;
    struct xm_writer *writer;
    unsigned count, window; /* links; frames in flight per link */
    uint64_t delay_min, delay_max;
    uint64_t rate,
        wire_free; /* bytes a second, all links together, 0: any; when what was sent is on its way */
    uint64_t unanswered, unanswered_max, sent_bytes; /* of payload */
    unsigned dup_late; /* per mille of a lost link's frames that come in later all the same */
    int dead;          /* -errno: lost for good */
    bool hold_acks;    /* what the writer answers stays on the way until sim_links_go */
    struct {
        bool up;
        unsigned inflight;
    } link[SIM_LINKS_MAX];
    STAILQ_HEAD(sim_msgs, xm_msg) again, urgent, bulk;
    TAILQ_HEAD(sim_frames, sim_frame) frames;
    uint64_t sent, resent, reordered, changed; /* changed: payloads that were not what they were when sent */
    uint64_t last_arrived;
};
struct sim_links *sim_links_new(struct sim *, struct xm_writer *, unsigned count);
void sim_links_free(struct sim_links *);
void sim_links_down(struct sim_links *, unsigned link);
void sim_links_up(struct sim_links *, unsigned link);
unsigned sim_links_alive(const struct sim_links *);
void sim_links_kill(struct sim_links *,
                    int status);       /* all pending messages end with status, as do all later ones */
void sim_links_go(struct sim_links *); /* ends hold_acks */

#endif
