/* SPDX-License-Identifier: MIT */
/* shim/shim.h: the process that serves one VM: its sockets, its commands, and when it ends. The protocol is
 * told in HACKING.md. Main thread, but for what machine/ and migrate/ say of theirs. */
#ifndef XM_SHIM_H
#define XM_SHIM_H

#include "migrate/migrate.h"
#include <stdatomic.h>

struct client {
    TAILQ_ENTRY(client) link;
    struct xm_jsonl conn;
    bool subscribed;
};

struct shim {
    struct machine machine;
    struct source *source;           /* a migration going out, or NULL */
    struct destination *destination; /* one coming in, or NULL */
    int listen_fd, signal_fd;
    TAILQ_HEAD(, client) clients;
    bool qemu_ended;   /* its QEMU, at whatever moment */
    bool monitor_lost; /* QEMU does not speak to us any more */
    bool serving;      /* its VM is up */
    bool ending;       /* the main loop ends */
    bool asked;        /* its user asked the guest to power down */
    bool let_go;       /* its guest goes on, and no migration of ours has QMP: by whom is to be seen */
    bool holds;        /* we are stopping it */
    atomic_int
        why; /* enum life_why of the VM's end, as far as it is known; a migration's thread writes it, too */
    json_t *last_event; /* repeated to who subscribes late */
};

json_t *shim_config(const char *path, struct xm_error *); /* shim.json; NULL with a sentence */
int shim_new(struct shim *, const char *config_path, struct xm_error *);
int shim_start(struct shim *,
               struct xm_error *); /* brings the VM up, adopts it, or makes it wait for its migration */
void shim_run(struct shim *);      /* until it ends */
void shim_free(struct shim *);
void shim_end(struct shim *);                        /* shim_run returns */
void shim_ended(struct machine *, enum migrate_end); /* a migration is over */
bool shim_owns(const struct shim *);                 /* the VM is this host's */

/* only.c. A descriptor that is kept for as long as the shim lives, its child's included. -EBUSY: the VM has
 * another one. */
int shim_only(const char *run_dir, struct xm_error *);

/* commands.c */
json_t *shim_command(struct shim *, struct client *, json_t *request, bool *subscribe);

#endif
