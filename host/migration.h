/* host/migration.h: a migration as the source lives it: one thread walks the states of DESIGN §4, in this
 * order. */
#ifndef XM_HOST_MIGRATION_H
#define XM_HOST_MIGRATION_H

#include "host/handoff.h"
#include "host/shim.h"
#include "host/stream.h"

enum mig_state {
    MIG_PREPARE, /* links, the destination says what it has */
    MIG_DISKS,   /* mirror on, bulk copy */
    MIG_MEMORY,  /* rounds, disks in lock-step */
    MIG_SWITCH,  /* QEMU stops the VM; the last pages; disks settled; device state */
    MIG_HANDOFF, /* ownership passes: no way back from the record on */
    MIG_SETTLE,  /* the VM runs there; this side is taken away */
    MIG_DONE,
    MIG_FAILED,  /* the VM runs here, as before */
    MIG_UNKNOWN, /* given away, but the destination has not answered: the VM is stopped here; `recover` finds
                    out */
    MIG_STATES
};

struct mig_options {
    uint64_t downtime;  /* ns, the budget */
    uint64_t bandwidth; /* bytes a second, all links; 0: none */
    uint64_t link_timeout;
    bool keep_source, verify;
    unsigned patience; /* rounds without gain */
};

/* What is found out on the way, for the report. Times in ns. */
struct mig_report {
    uint64_t began, entered[MIG_STATES];
    uint64_t stopped_at,
        running_at; /* xm_now(): the VM stopped here; the destination's answer that it runs */
    uint64_t ram_bytes, final_pages;
    unsigned rounds;
    uint64_t estimate;
    uint64_t t_final_ram, t_disks, t_device, t_handoff; /* parts of the downtime */
    struct xm_digest digest;
    uint64_t verified; /* bytes of disks that were compared whole */
};

struct migration {
    struct shim *shim;
    pthread_t thread;
    char job[32];
    char destination[64];
    bool storage;              /* disks move too */
    bool zeroed[VM_DISKS_MAX]; /* the destination's disk reads as zeros, it says */
    bool local;                /* storage-only: the disks move on this host, the VM stays */
    json_t *request;           /* links, disks */
    struct mig_options opt;

    _Atomic enum mig_state state; /* set by its thread in set_state alone; any thread reads */
    _Atomic bool abort;           /* any thread */
    _Atomic bool qemu_gone;       /* main */
    char abort_reason[128];
    struct xm_links *links;
    struct xm_transport *to;
    struct xm_precopy *precopy;
    struct stream *stream;
    struct handoff handoff;
    struct xm_meter meter;
    struct mig_report report;
    uint64_t last_progress;
    uint64_t device_state_ns; /* measured or assumed */
    double wire_rate;         /* bytes a second, of the last round of memory */
    uint64_t other_ram;       /* bytes of RAM that go by QEMU's own stream: ROMs, a VGA's */
    bool ram_checked;         /* it sends no more than that */
    /* From QMP's events: */
    char qemu_status[32];    /* of MIGRATION events */
    uint64_t stop_seen;      /* xm_now() at the STOP event */
    uint64_t stream_at_stop; /* bytes that QEMU had sent by then */
    struct xm_error error;
};

/* Main thread. Starts the thread; 0 or -errno with a sentence (and nothing changed). */
int migration_start(struct shim *, const json_t *request, bool local, struct xm_error *);
void migration_abort(struct migration *, const char *reason); /* any thread */
int migration_set_rate(struct migration *, uint64_t bytes_per_s);
void migration_qmp_event(struct migration *, const char *name, const json_t *data, uint64_t when);
void migration_qemu_gone(struct migration *);
const char *migration_state_name(const struct migration *);
const char *migration_step_name(enum mig_state);
void migration_join(struct shim *); /* main thread: waits for its end and frees it */

/* The steps (source_disks.c, source_memory.c, source_switch.c). They return 0 or -errno with m->error filled.
 */
int source_disks(struct migration *);
void source_disks_off(struct migration *); /* mirror off, replicas freed; on failure and at the end */
/* Links have come or gone: without any the guest does not wait for the mirror. Any thread. */
void source_disks_links(struct migration *);
bool source_disks_in_step(struct migration *); /* every chunk of every disk is there, at this look */
int source_disks_wait(struct migration *);     /* until they are */
/* All disks, at the destination, once; before each round, so that little is left of it for the switch. */
int source_disks_flush(struct migration *);
int source_storage(struct migration *); /* storage-only, all of it */
int source_memory(struct migration *);
int source_switch(struct migration *);
int source_handoff_prepare(struct migration *); /* the record says that the VM is ours to give */
int source_handoff(struct migration *);
void source_keep(struct migration *);  /* tells the destination that the VM stays here, if it can be told */
int source_resume(struct migration *); /* after a failed switch: the VM runs here again */

/* Shared by the steps. */
json_t *migration_event(const struct migration *, const char *name);
void migration_set_state(struct migration *, enum mig_state);
int migration_interrupted(
    struct migration *); /* aborted, QEMU gone, links lost: -errno with m->error filled */
void migration_progress(struct migration *, bool now); /* at most twice a second unless now */
json_t *migration_report(struct migration *);          /* the fields of «done» */

#endif
