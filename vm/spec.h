/* SPDX-License-Identifier: MIT */
/* vm/spec.h: what a VM is: its specification, as the user wrote it (INI) and as agents and shims pass it on
 * (JSON). */
#ifndef XM_VM_SPEC_H
#define XM_VM_SPEC_H

#include "base/base.h"

#define VM_DISKS_MAX 16
#define VM_NICS_MAX  8
#define VM_NAME_MAX  63
#define VM_QEMU      "qemu-system-x86_64" /* the program of one that names none */

#define VM_CDROMS_MAX 4

struct vm_disk {
    char name[32]; /* [a-z0-9-]+, unique in the VM; also the serial the guest sees */
    char *path; /* absolute: a raw file or a block device. From an INI with datastore=: the file's name in it,
                 * until the agent has made it whole (JSON always has it whole) */
    uint64_t size;      /* bytes, a multiple of 512; 0 in an INI: the size the file has */
    char datastore[64]; /* the datastore it lies in; "": none of ours (a block device, say) */
    unsigned queues;    /* virtqueues; 0: one per vCPU, at most 4 */
    unsigned
        block_size; /* what the guest sees as its logical block, 512 or 4096, wherever it goes; 0: what the
                          * file has here (until a start has put it in) */
    bool raw;       /* never looked at for another format: said so, or in use already (all JSON) */
    bool read_only; /* for the guest; the file is this VM's alone all the same, and goes with it */
    unsigned boot;  /* the firmware tries it as the N-th, from 1; 0: not said */
};

/* An image that QEMU opens by itself, read-only: it stays where it is, and every host that the VM comes to
 * has it under this path. */
struct vm_cdrom {
    char name[32]; /* as a disk's */
    char *path;
    unsigned boot; /* as a disk's */
};

struct vm_nic {
    char name[32];
    char bridge[16]; /* Linux bridge the tap is put on; "": user-mode none */
    char mac[18];    /* "52:54:00:12:34:56"; made up from the VM's name and NIC's number when not given */
    char tap[16];    /* tap device's name; made up when not given */
};

/* What else the guest has. Each text is NULL when it was not given. */
struct vm_devices {
    bool rng;         /* virtio-rng */
    bool balloon;     /* virtio-balloon */
    bool guest_agent; /* a channel for QEMU's guest agent: run_dir/qga.sock */
    bool tablet;      /* USB tablet: a pointer that VNC's viewers can follow */
    char *clock;      /* what the guest's clock shows when it is started: "utc", "localtime"; NULL: utc */
    char *video;      /* "std", "virtio"; NULL: std with vnc, else none */
    char *vnc;        /* "unix": run_dir/vnc.sock; "N": the display's number, at the host's address for it */
    char *vnc_password; /* 1 to 8 characters; with a number, and only then */
    char *uuid;
    char *smbios_manufacturer, *smbios_product, *smbios_version, *smbios_serial, *smbios_sku, *smbios_family;
};

struct vm_spec {
    char name[VM_NAME_MAX + 1]; /* [A-Za-z0-9][A-Za-z0-9._-]*, not a verb's name */
    uint64_t memory;            /* bytes, a multiple of 2 MiB */
    unsigned vcpus;
    char *qemu;    /* "qemu-system-x86_64" */
    char *machine; /* "q35": without options of its own about memory-backend */
    char *accel; /* "kvm", "tcg"; default: kvm where /dev/kvm works, else tcg; resolved when the VM is started
                  */
    char *cpu;   /* "host" with kvm, "max" with tcg; resolved likewise */
    char *kernel, *initrd, *append, *firmware; /* NULL when not given */
    char *
        nvram; /* template of the firmware's variables: then both are flash, and the VM has its own; or NULL */
    char **extra;   /* further QEMU arguments, one each; NULL-terminated; NULL when none */
    bool autostart; /* the host that owns it starts it when it has booted (agent/inventory.h) */
    unsigned disks;
    struct vm_disk disk[VM_DISKS_MAX];
    unsigned nics;
    struct vm_nic nic[VM_NICS_MAX];
    unsigned cdroms;
    struct vm_cdrom cdrom[VM_CDROMS_MAX];
    struct vm_devices devices;
};

/* All fill a zeroed spec, own its strings; vm_spec_free after success or failure. */
int vm_spec_load(struct vm_spec *, const char *ini_path, struct xm_error *);
int vm_spec_from_json(struct vm_spec *, const json_t *, struct xm_error *);
json_t *vm_spec_to_json(const struct vm_spec *);
/* The INI that vm_spec_load makes this of again, malloc'ed (spec_dump.c). A disk whose path has no '/' is
 * written as `datastore` and `file`. NULL with a sentence when a value cannot be written in an INI. */
char *vm_spec_to_ini(const struct vm_spec *, struct xm_error *);
void vm_spec_free(struct vm_spec *);
/* 0 when the name is a legal VM name, else a sentence. */
int vm_name_check(const char *name, struct xm_error *);

#endif
