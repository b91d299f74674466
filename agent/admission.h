/* SPDX-License-Identifier: MIT */
/* agent/admission.h: may this VM come here? A pure function over what a host is and what is asked of it, so
 * that every rule of docs/design.md, «Admission», is tested without a host. It collects every reason against
 * at once: who asks has one round to fix them all. */
#ifndef XM_AGENT_ADMISSION_H
#define XM_AGENT_ADMISSION_H

#include "base/base.h"
#include "probe/probe.h"
#include "vm/vm.h"

#define AGENT_PROTOCOL 2
#define VNC_PORT       5900 /* of display 0 */

struct fact_datastore {
    const char *name;
    uint64_t size, free;
    uint64_t reserved; /* promised to migrations that come in, and not written yet */
    unsigned target;   /* percent */
    bool closed;       /* takes no disks from other hosts */
    unsigned block;    /* logical block of new files in it, bytes */
    bool hangs;        /* its storage does not answer */
    const char *wrong; /* why no disk may be made there; NULL: it may */
};

struct fact_link {
    const char *name, *address;
    bool up;
    uint64_t speed; /* bytes a second; 0: it could not be read */
};

/* A host, as it is now, seen for one request: what is said of bridges and files is about those that the
 * request names. */
struct host_facts {
    const char *host;
    unsigned protocol;
    const char *qemu_version; /* of the program that the VM wants; NULL: it is not there */
    const char *qemu_why;     /* without a version: why it cannot be asked; NULL: it is not there */
    bool machine;             /* that QEMU has the machine type */
    const char *machine_like; /* one that it has, and that both sides know; NULL: none */
    const char *machine_why;  /* why it cannot make it, options and all; NULL: it can, or was not tried */
    bool no_pci;              /* the machine has no bus for PCI devices; found out for a start alone */
    enum kvm_level kvm;       /* what KVM can run */
    const char *kvm_why;      /* below KVM_WHOLE: why no more */
    const char *no_tracking;  /* why the memory of VMs cannot be tracked; NULL: it can */
    const json_t *cpu;        /* features that the VM's CPU has with this QEMU; NULL: not known */
    const char *cpu_why;      /* why not */
    bool cpu_unknown;         /* cpu_why is that QEMU knows no such model or flag */
    bool partial_kvm;         /* a VM may be started with less than KVM_WHOLE */
    const char *cpu_flags;    /* of /proc/cpuinfo, separated by blanks */
    bool bridge[VM_NICS_MAX]; /* by NIC: its bridge exists */
    const char *twin[VM_NICS_MAX]; /* another VM here that has its MAC address on its bridge; NULL: none */
    bool kernel, initrd, firmware; /* the file is there, and may be used by who asks */
    bool cdrom[VM_CDROMS_MAX];     /* likewise */
    bool cdrom_private[VM_CDROMS_MAX];   /* it is not: the file is there, and not everybody may read it */
    uint64_t cdrom_bytes[VM_CDROMS_MAX]; /* its size; 0: not known */
    bool vnc_address;                    /* it gives VMs an address for VNC */
    bool vnc_busy;                       /* somebody listens at the port of the VM's display there */
    uint64_t firmware_bytes;             /* its size; 0: not known */
    bool present;                        /* a VM of this name runs or is expected here */
    uint64_t owned_epoch; /* this host's record says that it owns the VM, in this epoch; 0: it does not */
    uint64_t known_epoch; /* the record's, whosever the VM is; 0: there is none */
    uint64_t memory_free,
        memory_promised; /* bytes available; of these, promised to VMs that have not used them yet */
    uint64_t min_memory, min_free, min_bandwidth;
    unsigned migrations, max_migrations, storage_migrations, max_storage_migrations;
    unsigned datastores;
    const struct fact_datastore *datastore;
    unsigned links;
    const struct fact_link *link;
};

struct admission_request {
    const struct vm_spec *spec;
    bool start;                  /* it is started here, not moved: only what a start needs is asked */
    bool storage;                /* its disks come along */
    const char *datastore;       /* wanted by name; NULL: choose */
    uint64_t used[VM_DISKS_MAX]; /* bytes that each disk holds (a thin disk stays thin) */
    bool shared[VM_DISKS_MAX];   /* without storage: this host reaches the very same disk, proved by a probe
                                    file */
    uint64_t epoch;
    unsigned protocol;
    const char *source, *qemu_version, *cpu_flags;
    enum kvm_level kvm;  /* of the source */
    const json_t *cpu;   /* features that the source's QEMU gives to the VM's CPU; NULL: not known */
    const char *cpu_why; /* it should have known, and why it does not; NULL: it need not know */
    bool booted; /* the guest was started there, so it has seen them; else it may have, or may see them any
                    time */
    bool large_rings;                    /* the guest may have larger rings than its devices have */
    bool allow_older;                    /* QEMU may be an older one here, if machine type and CPU allow */
    uint64_t firmware_bytes;             /* of the firmware that the guest has as ROM; 0: not known */
    uint64_t cdrom_bytes[VM_CDROMS_MAX]; /* of the images that the guest has; 0: not known */
    unsigned links;
    const struct fact_link *link; /* of the source: how many, their addresses' families */
};

/* Appends a sentence to `reasons` for each thing that is against it; returns how many. *datastore: the index
 * of the one chosen for the disks, -1 when there is none. */
unsigned admit(const struct host_facts *, const struct admission_request *, json_t *reasons, int *datastore);

/* What its user may want to know, though it speaks against nothing: appended to `notes`. The disk comes to
 * lie on storage with blocks of `block` bytes, which `where` names. */
void admit_note_block(const struct vm_disk *, const char *vm, const char *where, unsigned block,
                      json_t *notes);

/* What in `extra` cannot move, wherever it is to go (agent/outside.h: what a peer takes of it). */
unsigned admit_extra(const struct vm_spec *, json_t *reasons);

#endif
