/* SPDX-License-Identifier: MIT */
/* memxfer/memxfer.h: guest RAM. Which pages are dirty (seen from outside a stock QEMU), rounds of pre-copy,
 * the estimate of the switch-over, and the receiving side.
 *
 * RAM block: one memfd that QEMU maps shared. Page: 4 KiB. Offsets are bytes in the block's memfd.
 * docs/facts.md, «Dirty tracking from outside QEMU», has what it rests on; kernel >= 6.7 (PAGEMAP_SCAN,
 * UFFD_FEATURE_WP_ASYNC).
 */
#ifndef XM_MEMXFER_H
#define XM_MEMXFER_H

#include "net/net.h"
#include <sys/types.h>

#define XM_PAGE       4096u
#define XM_PAGE_SHIFT 12
/* The memfds of this name are guest RAM: QEMU's own name, and ours. */
#define XM_RAM_NAME "memory-backend-memfd"

struct xm_ram_block {
    char name[64];     /* "mem0" or the memfd's name */
    int memfd;         /* ours, read-write */
    uint64_t size;     /* bytes */
    uint64_t qemu_va;  /* where QEMU maps it; 0 for the destination, which does not track */
    uint64_t qemu_off; /* offset in the memfd of that mapping */
    uint8_t *map;      /* our own mapping of it all, MAP_SHARED */
    struct xm_bitmap
        wrote; /* pages that our own process has written (the driver marks them); taken by each round */
};

/* The guest RAM of one QEMU. */
struct xm_ram {
    pid_t pid;
    unsigned blocks;
    struct xm_ram_block block[16];
};
/* Finds the shared memfd mappings of the process (by /proc/PID/maps and map_files) that are larger than 1
 * MiB. */
int xm_ram_find(struct xm_ram *, pid_t pid, struct xm_error *);
/* The process has ended, and this one has been handed the same memory: the blocks stay, where QEMU has them
 * changes. -errno: it has other memory. */
int xm_ram_follow(struct xm_ram *, pid_t pid, struct xm_error *);
/* The same from descriptors one already has, for tests. */
int xm_ram_add(struct xm_ram *, const char *name, int memfd, uint64_t qemu_va, struct xm_error *);
void xm_ram_close(struct xm_ram *);
/* The bitmap for pages that we write ourselves, by the memfd's inode: for xm_guest_mem_ops. NULL: no such
 * block. */
struct xm_bitmap *xm_ram_bitmap(struct xm_ram *, int memfd);

/* ---- tracker ---- */

/* Asynchronous write-protection of the blocks' mappings in the QEMU process. One owner thread (ptrace is per
 * thread). */
struct xm_tracker;
/* Injects, registers, arms everything. From the return on, every page written by the process is reported by a
 * collect after the write. -ENOSYS: this kernel cannot; -EPERM: not allowed, the sentence says by what. */
int xm_tracker_open(struct xm_tracker **, const struct xm_ram *, struct xm_error *);
/* Reads which pages were written since the last collect, and re-arms them, in one step; ORs them into
 * dirty[block]. */
int xm_tracker_collect(struct xm_tracker *, struct xm_bitmap *dirty, uint64_t *pages, struct xm_error *);
/* Takes the protection away (slow: 6 to 9 ms a GiB; after the switch, or after a failure). Also fine when the
 * process is gone. */
void xm_tracker_close(struct xm_tracker *);

/* ---- pre-copy, source ---- */

struct xm_round {
    unsigned number;                 /* from 1 */
    uint64_t pages_dirty;            /* collected for this round */
    uint64_t pages_data, pages_zero; /* sent as data; sent as «zero» (a few bytes) */
    uint64_t pages_overtaken;        /* of data: the guest wrote to them on the way; sent again by the next */
    uint64_t wire_bytes;
    uint64_t ns; /* how long it took */
    double rate; /* bytes a second of wire time */
};

struct xm_precopy;
struct xm_precopy *xm_precopy_new(struct xm_ram *, struct xm_transport *, struct xm_error *);
/* One round: collect (the first: everything populated), read, send, wait for the answers. Blocking; `over`,
 * unless it is NULL, is asked some 50 times a second whether to give up. final: the VM is stopped and the
 * driver has drained; what is collected is all that is left. */
int xm_precopy_round(struct xm_precopy *, bool final, bool (*over)(void *), void *ctx, struct xm_round *out,
                     struct xm_error *);
/* Rounds fail with -ETIMEDOUT at this moment (xm_now() scale); 0: never. */
void xm_precopy_deadline(struct xm_precopy *, uint64_t deadline);
/* After a final round that ended, well or too late, or was never begun: its guest runs again, and the
 * next round sends everything. Waits for what is in flight; `over` as above. -errno: it has failed
 * otherwise. */
int xm_precopy_again(struct xm_precopy *, bool (*over)(void *), void *ctx, struct xm_error *);
/* Pages that a round would send if it began now (scan without re-arming), for the estimate. */
int xm_precopy_peek(struct xm_precopy *, uint64_t *pages, struct xm_error *);
void xm_precopy_digest(const struct xm_precopy *, struct xm_digest *);
uint64_t xm_precopy_total_pages(const struct xm_precopy *);
/* Pages answered in this round, and of how many; any thread. */
void xm_precopy_progress(const struct xm_precopy *, uint64_t *done, uint64_t *of);
void xm_precopy_free(struct xm_precopy *);

/* The estimate: pure. All in bytes, bytes a second, ns. */
struct xm_switch_inputs {
    uint64_t dirty_bytes, mirror_backlog;
    double wire_rate;
    uint64_t scan_ns, fixed_ns; /* what does not depend on what is left */
};
uint64_t xm_switch_estimate(const struct xm_switch_inputs *); /* ns; UINT64_MAX when the rate is unknown */

/* What to do after a round: pure. */
enum xm_converge { XM_CONVERGE_SWITCH, XM_CONVERGE_AGAIN, XM_CONVERGE_STUCK };
struct xm_converge_state {
    uint64_t best_dirty;
    unsigned without_gain;
    bool started;
};
/* STUCK: `patience` rounds in a row did not shrink what is dirty by a tenth. */
enum xm_converge xm_converge_judge(struct xm_converge_state *, uint64_t dirty_bytes, uint64_t estimate_ns,
                                   uint64_t budget_ns, unsigned patience);

/* ---- receiving side ---- */

struct xm_ramsink;
struct xm_ramsink *xm_ramsink_new(struct xm_ram *, struct xm_error *);
/* For xm_sink: types RAM_PAGES and RAM_DIGEST; the placer passes all others by. check() judges the header;
 * the placer the table of runs, and has the pages received where they belong; frame() counts them. */
int xm_ramsink_check(struct xm_ramsink *, const struct xm_frame_hdr *, struct xm_error *);
void xm_ramsink_frame(struct xm_ramsink *, struct xm_rx *);
struct xm_placer xm_ramsink_placer(struct xm_ramsink *);
/* Touches RAM ahead of the data, so that first-touch faults do not cost wire time: a background thread, until
 * done or freed. */
void xm_ramsink_populate(struct xm_ramsink *);
void xm_ramsink_free(struct xm_ramsink *);
/* The source has given its switch-over up, and its guest goes on: pages are taken again, until the digest of
 * the next one is asked for, which has its number (xm_frame_hdr.after, from 0). Any thread. */
void xm_ramsink_reopen(struct xm_ramsink *);
/* The newest round of which something has come; any thread. */
uint64_t xm_ramsink_round(struct xm_ramsink *);

/* QEMU's own page tables for what its memory holds, before its guest runs; `bytes` of it in this step,
 * some 40 us a MiB. True: there is more. At a destination only (see warm.c); the owner of the VM's ptrace. */
struct xm_warm {
    unsigned block;
    uint64_t at, mapped; /* bytes */
};
bool xm_ram_warm(const struct xm_ram *, struct xm_warm *, uint64_t bytes);

#endif
