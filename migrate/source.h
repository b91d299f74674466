/* SPDX-License-Identifier: MIT */
/* migrate/source.h: a migration as the source lives it: one thread walks the states of
 * docs/design.md, «A migration», in this order. */
#ifndef XM_MIGRATE_SOURCE_H
#define XM_MIGRATE_SOURCE_H

#include "migrate/call.h"
#include "migrate/migrate.h"
#include "migrate/pace.h"
#include "migrate/stream.h"

enum source_state {
    SOURCE_PREPARE, /* links, the destination says what it has */
    SOURCE_DISKS,   /* mirror on, bulk copy */
    SOURCE_MEMORY,  /* rounds, disks in lock-step */
    SOURCE_SWITCH,  /* QEMU stops the VM; the last pages; disks quiesced; device state */
    SOURCE_HANDOFF, /* ownership passes: no way back from the record on */
    SOURCE_SETTLE,  /* the VM runs there; this side is taken away */
    SOURCE_DONE,
    SOURCE_FAILED, /* the VM runs here, as before */
    /* Given away, but the destination has not answered: the VM is stopped here; `recover` finds out. */
    SOURCE_UNKNOWN,
    SOURCE_STATES
};

struct source_options {
    uint64_t downtime; /* ns, the budget */
    uint64_t link_timeout;
    uint64_t grace; /* ns beyond the budget, after which a VM that stands still goes on here */
    bool keep_source, verify;
    unsigned patience; /* rounds without gain */
};

struct source_span {
    uint64_t from, to; /* xm_now(); to 0: not over */
};

/* What is found out on the way, for the report. Times in ns. */
struct source_report {
    uint64_t began, entered[SOURCE_STATES];
    uint64_t stopped_at,
        running_at; /* xm_now(): the VM stopped here; the destination's answer that it runs */
    uint64_t ram_bytes;
    unsigned rounds;
    unsigned late_frames; /* that came for the guest while it stood still, and were sent after it */
    uint64_t estimate;
    /* Parts of the downtime, the first three of them side by side; device_state: from QEMU's being told to
     * write it until the destination has loaded it. */
    struct source_span final_ram, disks, device_state, handoff;
    uint64_t stood;           /* in switch-overs that were given up, ns */
    struct xm_error given_up; /* why the last of them was */
    struct xm_digest digest;
    uint64_t verified; /* bytes of disks that were compared whole */
};

/* An abort that was taken is honoured: either it comes first, or the step that cannot be taken back. */
enum abort_first { ABORT_MAY_COME, ABORT_CAME, ABORT_TOO_LATE };

struct source {
    struct machine *machine;
    pthread_t thread;
    struct xm_post over; /* to the main thread, when the thread has ended */
    migrate_ended *ended;
    char job[32];
    char destination[64];
    bool storage;    /* disks move too */
    bool local;      /* storage-only: the disks move on this host, the VM stays */
    json_t *request; /* links, disks */
    struct source_options opt;

    /* Others ask this of it while it runs: any thread, or the main one. */
    struct {
        _Atomic uint64_t rate; /* bytes a second, --bandwidth; 0: no limit */
        _Atomic bool persist;  /* go on also when the guest outruns the copy */
        _Atomic bool abort;
        char reason[128];   /* of the abort, there before it */
        _Atomic int first;  /* enum abort_first */
        _Atomic bool leave; /* main: the shim ends; nothing is tried again */
    } asked;

    _Atomic enum source_state state; /* set by its thread in source_set_state alone; any thread reads */
    _Atomic bool qemu_gone;          /* main */
    _Atomic bool stands;             /* it has failed, and its guest does not go on */

    /* Its thread's from here on. */
    struct xm_links *links;
    struct xm_transport *to;
    struct xm_precopy *precopy;
    struct stream *stream, *old_stream; /* old: of a switch-over that was given up; it has been stopped */
    struct handoff handoff;
    bool can_try_again;        /* the destination can; this one has not used it up */
    unsigned attempt;          /* switch-overs that were given up */
    bool takes_late;           /* the destination can: late.c */
    bool may_be_promised;      /* the destination may have recorded that the VM is promised to it */
    bool zeroed[VM_DISKS_MAX]; /* the destination's disk reads as zeros, it says */
    json_t *kept;              /* paths of disks that have moved, and whose old file stays */
    struct xm_error left;      /* why what is to be deleted here is not on the list yet; code 0: it is */
    struct source_report report;
    struct {
        struct pace pace;  /* of the disks' copy */
        struct pace shown; /* the same without the holes of sparse disks: for the time left */
        bool verifying;    /* `shown` is of the comparison then */
        uint64_t last;     /* xm_now() when it was told */
    } progress;
    uint64_t bridges_at;     /* xm_now(): from then on the destination's bridges pass what the guest sends */
    uint64_t rate;           /* bytes a second that the links have been given; 0: no limit */
    double wire_rate;        /* bytes a second, of the last round of memory */
    struct switch_cost took; /* this VM's switches; with this one when it runs there */
    uint64_t other_ram;      /* bytes of RAM that go by QEMU's own stream: ROMs, a VGA's */
    bool stopping;    /* QEMU has been told to stop the guest, when it has sent what comes before that */
    bool told;        /* QEMU, to write its device state */
    bool ram_checked; /* it sends no more than that */
    bool paused;      /* the guest stood still when the switch began: it is to, wherever it comes to be */
    /* What QMP's events have said. */
    struct {
        char status[32];         /* of MIGRATION events */
        bool powered_off;        /* the guest did, by itself */
        uint64_t stop;           /* xm_now() at the STOP event */
        uint64_t stream_at_stop; /* bytes that QEMU had sent by then */
        bool resumed;            /* its user has let the guest go on since the switch-over began */
    } seen;
    struct xm_error error;
};

const char *source_state_name(const struct source *);
const char *source_step_name(enum source_state);

/* The steps (source_prepare.c, source_disks.c, source_memory.c, source_switch.c, source_handoff.c). They
 * return 0 or -errno with m->error filled. */
int source_prepare(struct source *); /* links; the destination knows what comes */
void source_note_bridges(struct source *,
                         const json_t *reply); /* as the destination says, of begin and ready */
int source_links(struct source *);             /* of that: m->links, with all that come up */
int source_disks(struct source *);
/* One disk's second side: at the destination, or `near`, a file of this host. */
int source_disk_mirror(struct source *, struct machine_disk *, bool zeroed, struct xm_writer *near);
void source_disk_mirror_off(struct machine_disk *);
bool source_disk_moves(const struct source *, const struct machine_disk *); /* storage-only: some may not */
/* When it has moved, its old file is not deleted: only files of our datastores are ours to delete. */
bool source_disk_stays(const struct source *, const struct machine_disk *);
int source_disk_check(struct source *, struct machine_disk *); /* a chunk that cannot be copied is an error */
bool source_disk_in_step(struct machine_disk *);
int source_disks_verify(struct source *); /* each reads both sides whole */
void source_disks_off(struct source *);   /* mirror off, replicas freed; on failure and at the end */
/* Links have come or gone: without any the guest does not wait for the mirror. Any thread. */
void source_disks_links(struct source *);
/* The guest writes faster than the copy comes on, and nobody wants to wait for that: -ETIMEDOUT. */
int source_disks_pace(struct source *);
bool source_disks_in_step(struct source *); /* every chunk of every disk is there, at this look */
int source_disks_wait(struct source *);     /* until they are */
/* All disks, at the destination, once; before each round, so that little is left of it for the switch. */
int source_disks_flush(struct source *);
int source_storage(struct source *); /* storage-only, all of it */
int source_memory(struct source *);
/* Rounds do not shrink any more: why the switch does not fit into its budget, and what it would need. Pure;
 * limit: --bandwidth; 0: none. -ETIMEDOUT. */
int source_stuck(const struct xm_switch_inputs *, const struct xm_round *last, uint64_t budget_ns,
                 uint64_t limit, struct xm_error *);
/* Bytes of device state that a VM may have for this budget; pure. The rate: bytes a second, 0: not known. */
uint64_t source_state_max(double wire_rate, uint64_t budget_ns);
int source_switch(struct source *);
int source_compare(struct source *); /* of that: the digests of all disks and of memory; source_digest.c */
int source_handoff_prepare(struct source *); /* the record says that the VM is ours to give */
int source_handoff(struct source *);
/* From here on nothing gives the VM away any more: it stays here. True: *word is to be told to the
 * destination. */
bool source_keep(struct source *, struct handoff_msg *word);
void source_tell(struct source *, const struct handoff_msg *); /* if it can be told within a second */
/* Our record says that the VM is the destination's and runs there. A destination that hears it needs
 * nobody's word to start the VM again; one that does not asks our agent (agent/tidy.c). */
void source_tell_settled(struct source *);
/* Our disks are idle from here on: another host may use them, or they may be deleted. */
void source_unlock_disks(struct source *);
/* After a failed switch: the VM runs here again; one try. Fine to be called again. */
int source_resume(struct source *, struct xm_error *);
/* A switch that took too long, and may have come to an end: the guest goes on here, and 0: all is as
 * before the first round of memory, for another try. -errno: there is none (m->error), or that failed,
 * too. */
int source_again(struct source *, int r);
/* A switch in which the guest stands still has so long for something, `most` at most: ns, never 0. That
 * is twice its downtime budget, or half the grace beyond it, where another try can follow. The guest goes
 * on here when the budget and the grace are over, whatever the destination does, until the record says
 * that it is given away. */
uint64_t source_time_left(const struct source *, uint64_t most);
/* After a switch that failed: when it was too late then, the sentence says that, too. What it failed with. */
int source_late(struct source *, int r);
int source_overdue(struct source *); /* -ETIMEDOUT with m->error filled, or 0 */
/* From here on an abort is refused. False: one has come. Any thread. */
bool source_past_abort(struct source *);
void source_abort_again(struct source *); /* that step has come to nothing */
/* After the last step, or the one that returned r: settles, or fails with the VM here, and says so. */
void source_end(struct source *, int r);

/* source_qemu.c. QEMU's migration, into m->stream: begins it; waits until it is in that state, by its
 * events. */
#define QEMU_TIMEOUT (10 * XM_NS_PER_S) /* while the guest runs; once it stands, source_time_left cuts it */
int source_qemu_begin(struct source *);
int source_qemu_wait(struct source *, const char *status);

/* Shared by the steps. */
json_t *source_call(struct source *, json_t *steals, uint64_t timeout_ns, struct xm_error *); /* call.h */
/* The same, while the guest runs: it is heard, and so are an abort and QEMU. NULL: m->error says why. */
json_t *source_call_awake(struct source *, json_t *steals, uint64_t timeout_ns);
/* late_frames.c. The guest runs there: what has come for it here goes after it, and what comes, until the
 * network knows where it is, or until then (xm_now()). */
void source_send_late(struct source *, uint64_t until);
json_t *source_event(const struct source *, const char *name);
/* The only one that changes it. -EPROTO with m->error filled: no such way; the state stays. */
int source_set_state(struct source *, enum source_state);
int source_interrupted(struct source *); /* aborted, QEMU gone, links lost: -errno with m->error filled */
/* What its thread does again and again as long as the guest runs, whatever it waits for: it hears QEMU, for
 * `ms` at most, tells how far it is, and gives the links the rate that was asked for. */
void source_turn(struct source *, int ms);
/* A turn for who waits with a callback, and whether to give up then. */
bool source_waits(void *source);
void source_progress(struct source *, bool now); /* at most twice a second unless now */
void source_report_given_up(const struct source *,
                            json_t *into); /* what is known of a switch-over that was */
json_t *source_report(struct source *);    /* the fields of «done» */

#endif
