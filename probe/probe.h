/* SPDX-License-Identifier: MIT */
/* probe/probe.h: what this host can do, found by trying it, never by a version: its kernel, its KVM, its
 * QEMU. Any thread. */
#ifndef XM_PROBE_H
#define XM_PROBE_H

#include "base/base.h"

/* ---- the kernel ---- */

/* Can this process track another one's memory (memxfer.h) with this kernel and its rights? Tried on a child
 * of its own, some ms. 0 or a sentence that begins with what cannot be done. */
int probe_tracking(struct xm_error *);
/* The same of another user's process: needs CAP_SYS_PTRACE and CAP_KILL. */
struct qemu_user;
int probe_tracking_as(const struct qemu_user *, struct xm_error *);
/* The same of a process that is sandboxed by seccomp, as QEMU should be: needs CAP_SYS_ADMIN, and no seccomp
 * filter on ourselves (a container's, say). */
int probe_tracking_sandboxed(struct xm_error *);

/* ---- storage ---- */

/* The logical block, 512 to 4096, of this file or device, or of new files in this directory. */
unsigned probe_block_size(const char *path);

/* ---- KVM ---- */

enum kvm_level {
    KVM_NONE,  /* no usable /dev/kvm */
    KVM_PART,  /* it runs guests, but not what an ordinary one consists of: 64-bit code, the FPU, SSE */
    KVM_WHOLE, /* it runs that */
};

/* Tried by a guest of some instructions in a process of its own, some ms. Below KVM_WHOLE, `why` says what
 * went wrong. */
enum kvm_level kvm_probe(struct xm_error *why);

/* ---- users ---- */

#define QEMU_GROUPS_MAX 32

/* Who a QEMU is. */
struct qemu_user {
    unsigned uid; /* 0: whoever starts it; then nothing below is used */
    unsigned gid, groups, group[QEMU_GROUPS_MAX];
};
/* Who it may be: each VM's another one of a range, its group with the same number, or one account for all. */
struct qemu_users {
    unsigned first, last;       /* last 0: root */
    char *name;                 /* NULL: a range; else the account's */
    struct qemu_user first_one; /* and the others, but for the number */
};
/* By what [host] qemu_user says: root, an account's name, FIRST-LAST; NULL: a range that nobody else uses. 0,
 * or a sentence that fits behind the key. */
int qemu_users_find(const char *wanted, struct qemu_users *, struct xm_error *);
void qemu_users_free(struct qemu_users *);
/* Can it run the program (NULL: any), use /dev/kvm, and can its memory be tracked (if anybody's can)? Tried
 * by children, some ms. */
int qemu_user_try(const struct qemu_user *, const char *program, bool kvm, struct xm_error *);
/* In a forked child: only system calls. False: errno. */
bool qemu_user_become(const struct qemu_user *);

/* ---- bridges ---- */

/* How long the bridge will pass nothing yet that comes from this port of it; without one: from a port that is
 * new. 0: it passes all, or nobody knows. ns. */
uint64_t probe_bridge_passes_in(const char *bridge, const char *device);
/* The largest frame that it passes, without the header: bytes. 0: it is not there. */
unsigned probe_bridge_mtu(const char *bridge);

/* ---- QEMU ---- */

/* What a QEMU program says of itself; arguments are chosen by this. Asked once per program (as PATH finds it,
 * and again when another file is there), kept for the life of the process; a failure for some seconds. At
 * most 10 s. */
struct qemu_facts {
    char version[32];  /* "7.2.22" */
    json_t *machines;  /* query-machines: [{"name", "alias"}] */
    bool reconnect_ms; /* -chardev knows reconnect-ms; else reconnect, in seconds */
    bool sandbox;      /* -sandbox knows spawn= */
};

/* NULL with a sentence when it cannot be run (-ENOENT: it is not there) or does not answer. The result is
 * never freed. */
const struct qemu_facts *qemu_facts(const char *program, struct xm_error *);

/* The machine's name without options is known there. An alias ("q35") is written out in `full`
 * ("pc-q35-7.2"), options kept. */
bool qemu_facts_machine(const struct qemu_facts *, const char *machine, char full[128]);

/* The newest machine type of the same kind ("pc-q35-": up to its version) that it has and a QEMU of `version`
 * (NULL: any) knows, too, by the number in its name; "" when it has none. */
void qemu_facts_machine_like(const struct qemu_facts *, const char *machine, const char *version,
                             char like[64]);

/* PATH finds it (or it is there, by its whole path). It is not run. */
bool qemu_present(const char *program);
/* And where; malloc'ed. NULL: it is not there. */
char *qemu_path(const char *program);

/* Can it make this machine, options and all, with this accelerator? Tried, with no guest in it. *pci: the
 * machine has a bus for PCI devices. 0, also when that could not be found out in time (*pci is true then);
 * -EINVAL with QEMU's first line. At most 10 s, once per program file, machine and accelerator that it can
 * make. */
int qemu_machine_try(const char *program, const char *machine, const char *accel, bool *pci,
                     struct xm_error *);

/* It tells its guests that the rings of their devices may be larger than they are (10.0.13 does: 1024). A
 * guest that has set up such rings is refused by a QEMU that looks (11.1). False also when it cannot be
 * found out. At most 10 s, once per program that answers. */
bool qemu_facts_large_rings(const char *program);

/* The CPU features that a guest sees with this -cpu and accelerator ("tcg" or "kvm", options behind a comma
 * are ignored): a sorted array of names, a new reference; NULL with a sentence (-EINVAL: there is no such
 * model, or no such flag). */
json_t *qemu_facts_cpu(const char *program, const char *accel, const char *cpu, struct xm_error *);

#endif
