/* SPDX-License-Identifier: MIT */
/* agent/config.h: the agent's configuration, xmigrated.conf. Read once at the start, then never changed: any
 * thread may read it. */
#ifndef XM_AGENT_CONFIG_H
#define XM_AGENT_CONFIG_H

#include "base/base.h"
#include "agent/address.h"

#define CONFIG_PATH     "/etc/xmigrate/xmigrated.conf"
#define CONFIG_MANY     32 /* datastores, links, peers: at most so many of each */
#define CONFIG_NAME_MAX 63

struct conf_datastore {
    char name[CONFIG_NAME_MAX + 1];
    char *path;
    unsigned target; /* percent full that rebalancing aims to stay under */
    bool incoming;   /* takes disks from other hosts */
};

struct conf_link {
    char name[CONFIG_NAME_MAX + 1];
    char *address;
};

struct conf_peer {
    char name[CONFIG_NAME_MAX + 1];
    char *address;
    unsigned port;
    char **extra; /* words of QEMU's command line that its VMs may bring along; NULL: none */
    struct address parsed;
};

struct config {
    char *name, *state_dir, *run_dir, *engine;
    char *shim;        /* the program xmigrate-shim; default: beside this one */
    char *qemu_user;   /* who QEMU is: qemu_users_find; NULL: not said */
    bool qemu_rights;  /* QEMU is started with all of the shim's rights: for a wrapper that needs them */
    bool partial_kvm;  /* VMs may be started with a KVM that runs no ordinary guest */
    char *vnc_address; /* where VMs' displays with a number listen; NULL: nowhere */
    char *listen_address;
    unsigned port; /* 0: any free one (for tests) */
    unsigned storage_migrations, migrations;
    uint64_t min_bandwidth; /* bytes a second that a link must at least have, where that can be read */
    uint64_t bandwidth;     /* bytes a second that a migration may send; 0: no limit */
    uint64_t downtime, link_timeout; /* ns */
    uint64_t switch_grace;           /* ns beyond the downtime; then a VM that stands still goes on here */
    uint64_t incoming_silence;       /* ns that the source of a migration that comes in may send nothing */
    uint64_t min_free, min_memory;   /* bytes that admission leaves free in each datastore, of RAM */
    /* What VMs of other hosts may use here; each ends with NULL, or is NULL: none. The last three are
     * directories. */
    char **bridge, **kernels, **firmware, **images;
    unsigned datastores, links, peers;
    struct conf_datastore datastore[CONFIG_MANY];
    struct conf_link link[CONFIG_MANY];
    struct conf_peer peer[CONFIG_MANY];
};

/* Fills a zeroed config; config_free after success or failure. The sentence has file and line. */
int config_load(struct config *, const char *path, struct xm_error *);
void config_free(struct config *);
const struct conf_peer *config_peer(const struct config *, const char *name);
const struct conf_datastore *config_datastore(const struct config *, const char *name);
/* The datastore that has this path as one of its own files (not in a folder below it), or NULL. */
const struct conf_datastore *config_datastore_of(const struct config *, const char *path);
/* 0 when it may name a host, datastore, link: letters, digits, '.', '_', '-'; the first a letter or digit. */
int config_name_check(const char *kind, const char *name, struct xm_error *);

#endif
