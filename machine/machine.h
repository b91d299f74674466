/* SPDX-License-Identifier: MIT */
/* machine/machine.h: one VM's things on this host: its directories, its disks with their threads, its QEMU
 * and RAM. What a migration does with them is migrate/'s; who serves whom, shim/'s.
 *
 * Threads, and who owns what:
 *   main        the specification, QEMU's life; runs `mailbox`
 *   one a disk  everything in machine_disk but the names (its engine's mailbox)
 *   while a migration goes on, QMP and the specification are its thread's (migrate/). */
#ifndef XM_MACHINE_H
#define XM_MACHINE_H

#include "machine/qemu.h"
#include "mirror/mirror.h"
#include "vm/vm.h"
#include <semaphore.h>

struct machine;

struct machine_disk {
    struct machine *machine;
    struct vm_disk *spec;
    uint16_t object; /* its number on the wire */
    pthread_t thread;
    bool started;
    bool stop;   /* disk thread only */
    sem_t ready; /* the thread has set itself up, or failed (error.code) */
    struct xm_error error;
    struct xm_engine *engine;
    struct xm_file *file; /* malloc'ed: a pivot swaps it */
    struct xm_disk *disk;
    struct xm_vhost *vhost;
    struct xm_replica *replica; /* while a migration goes out */
    struct xm_writer *writer;   /* while one comes in */
};

struct machine {
    struct vm_spec spec;
    char *host;        /* this host's name */
    char *run_dir;     /* this VM's: .../vms/NAME */
    char *state_dir;   /* this VM's: .../vms/NAME */
    char *log_dir;     /* all VMs': state directory, logs */
    bool qemu_rights;  /* of this host's configuration: QEMU keeps the rights that it is started with */
    char *qemu_user;   /* likewise: who QEMU is to be; NULL: not said */
    char *vnc_address; /* of this host's configuration; NULL: none */
    enum xm_engine_kind engine;
    _Atomic uint64_t epoch; /* while a migration goes on its thread's, as the next two; main reads them */

    bool incoming;     /* it was started to be filled by a migration: nobody's guest waits for its disks */
    bool shares_disks; /* incoming, compute-only: the source has the same disks open until it hands over */

    struct xm_mailbox mailbox; /* the main thread's */
    struct qemu qemu;
    struct qemu_user user;      /* QEMU's; uid 0: ours */
    int late_fd[VM_NICS_MAX];   /* late.c; 0: none */
    bool adopted;               /* an earlier shim started it */
    _Atomic bool guest_running; /* by QEMU's events */
    /* When it was asked last, it stood still since a migration: 7.2 begins no other then. */
    _Atomic bool postmigrate;
    struct xm_ram ram; /* fixed from QEMU's start to its end, and through machine_wait_anew */
    /* One QEMU has ended, or is about to, and the next is not up: from when machine_wait_anew is certain to
     * be called until it returns. */
    _Atomic bool between;
    unsigned disks;
    struct machine_disk disk[VM_DISKS_MAX];
    bool
        spec_uncertain; /* spec.json may name a file that the VM's disk is not in: it has to be saved again */

    /* Any thread. Takes the reference; adds "vm". Events go to all who subscribed. */
    void (*emit)(struct machine *, json_t *event);
    /* QEMU's, as its QMP is read; data may be NULL. `when`: ns of CLOCK_REALTIME. */
    void (*qmp_event)(struct machine *, const char *name, const json_t *data, uint64_t when);
};

/* From what the agent wrote for the shim (HACKING.md, shim.json). machine_free after success or failure. What
 * this VM's shim does not need it gives up here, before it has threads, and when QEMU runs. */
int machine_init(struct machine *, const json_t *config, struct xm_error *);
/* Disks, their sockets, and QEMU: one that an earlier shim of this VM left running, or a new one. A guest
 * runs after it only where the owner record says so; with `incoming` it waits for its migration. */
int machine_start(struct machine *, struct xm_error *);
/* The record says that it is ours (again): cancels what QEMU was in the middle of, and lets the guest run,
 * unless its user has paused it. */
int machine_resume(struct machine *, struct xm_error *);
/* The migration's thread. A QEMU that waits for one, and has begun to load it, loads no other: it is
 * ended, and one that waits takes its place, with the same memory. -errno: none waits. */
int machine_wait_anew(struct machine *, struct xm_error *);
void machine_stop(struct machine *); /* ends QEMU, then the disks; fine in any state */
void machine_free(struct machine *);
/* After machine_start, by its thread, which may have made another one before that is to start a QEMU:
 * what is needed for a start alone is given up. */
void machine_started(void);
/* Where the agent keeps a log of the run directory when that is removed, for sentences that send there;
 * malloc'ed. */
char *machine_kept_log(const struct machine *, const char *file);
int machine_save_spec(struct machine *, struct xm_error *); /* state_dir/spec.json */

/* guest.c. *paused: the guest stands still by its user's will, or its QEMU's, and not for a start or a
 * migration. Sets guest_running. 0, or -EIO: QEMU does not say. */
int machine_guest_paused(struct machine *, bool *paused, struct xm_error *);
/* Its user, or QEMU itself, has paused it: it stays so, whoever finds its QEMU later, after a switch-over
 * that was cut, say. Or it is to run. */
void machine_note_paused(struct machine *, bool paused);
bool machine_noted_paused(const struct machine *);
/* Of QEMU's run state: it stood still so by its user's will, or its QEMU's. */
bool machine_paused_in(const char *runstate);
/* The shim is about to stop it, to let it go on at once; or it runs. */
void machine_note_stopped(struct machine *, bool stopped);
/* The VM was given to another host, and somebody has let its guest go on here, by a monitor of his own: it
 * would run on both. Stops it. */
int machine_hold(struct machine *, const char *owner, struct xm_error *);
/* Something that the disk has taken of its guest, which is paused, is not done, and comes again when the
 * guest goes on. By QEMU's word: one that stood still when an earlier shim died begins with this one only
 * then (7.2), so that nothing is known of it here. (One that has begun is not asked: it would stop its rings
 * for that. It may have begun with a paused guest, 10, and then such a request may be done by now, which that
 * QEMU would not tell the next one.) 1, 0, or -errno: QEMU does not say. */
int machine_disk_left(struct machine_disk *, struct xm_error *);

/* plugged.c. Appends what QEMU has beside the devices that it was started with, and the ids of those that it
 * has no more. -errno: not known. */
int machine_plugged(struct machine *, json_t *more, json_t *less, struct xm_error *);
/* Once more, when all has been copied: -EBUSY with a sentence where it has more by now than a destination
 * would make. 0 also where that is not known. */
int machine_none_plugged(struct machine *, const char *destination, struct xm_error *);

/* logs.c. Nothing that fails there fails anything else. */
int machine_console_open(struct machine *); /* where the guest's console is recorded; -errno: nowhere */
void machine_console_end(struct machine *); /* no file is left of a guest that said nothing */
void machine_logs_turn(struct machine *);   /* once a second or so: keeps them bounded */
/* When the file is longer than limit: its end goes to FILE.1, and it is emptied. True: it was. */
bool machine_log_cut(const char *path, size_t limit);

/* late.c: what comes for a guest while it stands still in a switch-over follows it. */
#define LATE_FRAME_MAX (10 + 14 + 64 * 1024) /* struct virtio_net_hdr, and the largest that is not cut yet */
void late_open(struct machine *);            /* before the shim gives up the right to open such sockets */
void late_close(struct machine *);
bool late_can(const struct machine *);
/* The source. From now on what comes is kept. */
void late_keep(struct machine *);
/* While the guest runs: what came longer ago than that is its own by now, and takes the room of what it may
 * not get. */
void late_trim(struct machine *, uint64_t age_ns);
/* The next that came to this NIC after that, xm_now(): how long it is, with a header as the tap has it; -1:
 * there are no more now. */
ssize_t late_next(struct machine *, unsigned nic, uint64_t since, void *frame);
/* Every NIC's bridge has seen its guest behind another port than its tap's: nothing comes any more. */
bool late_over(const struct machine *);
void late_drop(struct machine *);
/* The destination, where the guest runs: gives it a frame that the source has sent. */
int late_give(struct machine *, unsigned nic, const void *frame, size_t n, struct xm_error *);

/* disk.c */
int machine_disk_start(struct machine_disk *, struct xm_error *); /* thread, engine, file, driver */
int machine_disk_serve(struct machine_disk *, struct xm_error *); /* vhost-user socket */
void machine_disk_stop(struct machine_disk *);                    /* all of it; fine in any state */
/* On its thread; waits. */
void machine_disk_call(struct machine_disk *, void (*fn)(struct machine_disk *, void *), void *arg);

#endif
