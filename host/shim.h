/* host/shim.h: one VM's process: its disks, its QEMU, and its migration. The protocol is told in HACKING.md.
 *
 * Threads, and who owns what:
 *   main        the sockets, `job`, `state`, QEMU's life; runs `mailbox`
 *   one a disk  everything in shim_disk but the names (its engine's mailbox)
 *   source      (while a migration goes out) struct migration
 *   incoming    (while one comes in) struct incoming; runs its mailbox
 *   stream      (for the length of QEMU's device state) the socket to QEMU
 *   and those of the links and of vhost-user's control sockets.
 */
#ifndef XM_HOST_SHIM_H
#define XM_HOST_SHIM_H

#include "host/owner.h"
#include "host/qemu.h"
#include "memxfer/memxfer.h"
#include "mirror/mirror.h"
#include <semaphore.h>

struct shim;

struct shim_disk {
    struct shim *shim;
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

enum shim_role { SHIM_OWNER, SHIM_INCOMING, SHIM_UNDECIDED, SHIM_GONE };

struct migration;
struct incoming;
struct client;

struct shim {
    struct vm_spec vm;
    char *host;      /* this host's name */
    char *run_dir;   /* this VM's: .../vms/NAME */
    char *state_dir; /* this VM's: .../vms/NAME */
    enum xm_engine_kind engine;
    uint64_t epoch;

    enum shim_role role;
    struct xm_mailbox mailbox;
    int listen_fd, signal_fd;
    TAILQ_HEAD(, client) clients;
    bool ending; /* the main loop ends */

    struct qemu qemu;
    bool adopted;       /* an earlier shim started it */
    bool guest_running; /* by QEMU's events */
    struct xm_ram ram;  /* fixed from QEMU's start to its end */
    bool shares_disks;  /* incoming, compute-only: the source has the same disks open until it hands over */
    unsigned disks;
    struct shim_disk disk[VM_DISKS_MAX];

    struct migration *migration; /* going out, or NULL */
    struct incoming *incoming;   /* coming in, or NULL */
    json_t *last_event;          /* repeated to who subscribes late */
    json_t *created; /* incoming: paths made for this migration, deleted at the end unless the VM is ours by
                        then */
};

/* shim_disk.c */
int shim_disk_start(struct shim_disk *, struct xm_error *); /* thread, engine, file, driver */
int shim_disk_serve(struct shim_disk *, struct xm_error *); /* vhost-user socket */
void shim_disk_stop(struct shim_disk *);                    /* all of it; fine in any state */
void shim_disk_call(struct shim_disk *, void (*fn)(struct shim_disk *, void *),
                    void *arg); /* on its thread, waits */

/* shim.c */
int shim_new(struct shim *, const char *config_path, struct xm_error *);
int shim_start(struct shim *,
               struct xm_error *); /* brings the VM up (or adopts it, or makes it wait for its migration) */
void shim_run(struct shim *);      /* until it ends */
void shim_free(struct shim *);
void shim_end(struct shim *); /* main thread: ends QEMU, disks; shim_run returns */
/* Any thread. Takes the reference; adds "vm". Events of a migration go to all who subscribed. */
void shim_emit(struct shim *, json_t *event);
int shim_save_spec(struct shim *, struct xm_error *); /* state_dir/spec.json */
const char *shim_role_name(enum shim_role);

/* shim_commands.c */
json_t *shim_command(struct shim *, struct client *, json_t *request, bool *subscribe);
struct client {
    TAILQ_ENTRY(client) link;
    struct xm_jsonl conn;
    bool subscribed;
};

/* shim_call.c: shim to shim over the links: {"call":…} answered by {"ok":…}. */
json_t *peer_call(struct xm_links *, json_t *steals, uint64_t timeout_ns, struct xm_error *);

#endif
