/* SPDX-License-Identifier: MIT */
/* machine/qemu.h: the QEMU process of a VM: its command line, its taps, its start and end. */
#ifndef XM_MACHINE_QEMU_H
#define XM_MACHINE_QEMU_H

#include "machine/qmp.h"
#include "machine/user.h"
#include "memxfer/memxfer.h"
#include "probe/probe.h"
#include "vm/vm.h"

/* One thread's at a time: main's, or a migration's until it is over. pid and pidfd main reads meanwhile. */
struct qemu {
    _Atomic pid_t pid; /* 0: none */
    _Atomic int pidfd; /* readable when it has ended; -1: none */
    bool child;        /* ours to reap */
    struct qmp qmp;
};

void qemu_init(struct qemu *);

/* What QEMU is started with, by the numbers under which it finds it: whatever it needs of its host, but for
 * its program and /dev/kvm, since its user may open nothing (user.h). Some of it is named on the command line
 * as /proc/self/fd/N: no directory is passed through then, but the file itself is opened anew; and some as
 * /dev/fdset/N, which is the descriptor itself. */
enum qemu_fd {
    QEMU_FD_RAM = 3,
    QEMU_FD_CONSOLE, /* the file that the guest's console is recorded in */
    QEMU_FD_DIR,  /* the run directory: of disks' sockets, which it connects to again after a shim's death */
    QEMU_FD_MARK, /* of no use to QEMU: its line says whose QEMU it is */
    QEMU_FD_QMP,  /* sockets, bound */
    QEMU_FD_SERIAL,
    QEMU_FD_AGENT,
    QEMU_FD_KERNEL,
    QEMU_FD_INITRD,
    QEMU_FD_FIRMWARE,
    QEMU_FD_NVRAM,      /* to read and write */
    QEMU_FD_NVRAM_READ, /* QEMU looks at a file before it writes to it */
    QEMU_FD_CDROM,      /* one each */
    QEMU_FD_TAP = QEMU_FD_CDROM + VM_CDROMS_MAX,
    QEMU_FD_END = QEMU_FD_TAP + VM_NICS_MAX
};
/* What of a QEMU's command line is its host's and not the VM's. */
struct qemu_place {
    const char *host;    /* its name */
    const char *run_dir; /* the VM's */
    const char
        *nvram; /* the VM's own variables of its firmware, a file; used when the specification has `nvram` */
    const char *vnc_address;      /* where displays with a number listen; NULL: nowhere */
    int ram;                      /* the memory of a QEMU before it, the caller's; 0: it gets its own */
    int console;                  /* a descriptor to record the guest's console in, the caller's; 0: none */
    const struct qemu_user *user; /* NULL: whoever starts it */
    bool incoming;                /* it waits for a migration */
    bool rights;                  /* it keeps those it is started with */
};
/* arguments.c: the command line, its program first, for the QEMU that was asked: a malloc'ed list that ends
 * with NULL. Both hosts build the same devices in the same order. */
char **qemu_arguments(const struct vm_spec *, const struct qemu_facts *, const struct qemu_place *);
void qemu_arguments_free(char **);

/* Opens what QEMU is handed, makes the taps, and starts QEMU with its guest stopped (-S), then waits for its
 * monitor. Its stdout and stderr go to run_dir/qemu.log, whose last line is part of the sentence when it does
 * not come up; with `incoming` the sentence goes to another host, and only says where that log is. */
int qemu_start(struct qemu *, const struct vm_spec *, const struct qemu_place *, struct xm_error *);
/* A QEMU that an earlier shim of this VM has started runs still. */
bool qemu_is_left(const char *run_dir);
/* Takes over a QEMU that an earlier shim of this VM left running. -ESRCH: there is none. */
int qemu_adopt(struct qemu *, const char *run_dir, struct xm_error *);
/* Bytes of RAM that it has besides the guest's: ROMs, a VGA's. */
int qemu_other_ram(struct qemu *, const struct xm_ram *, uint64_t *bytes, struct xm_error *);
/* The sum of the column «Used» in the answer to the monitor's `info ramblock`. */
uint64_t qemu_ramblocks_sum(const char *text);
/* The bytes in use of the block NAME there; 0: it has no such block. */
uint64_t qemu_ramblock_used(const char *text, const char *name);
/* The size of the firmware that it was started with, as it is part of the guest's RAM; 0: not known. The file
 * may be another one by now. */
uint64_t qemu_firmware_size(struct qemu *);
/* Whatever migration it is in, it is in none when this returns 0. */
int qemu_cancel_migration(struct qemu *, uint64_t timeout_ns, struct xm_error *);
/* The guest runs, or sleeps by its own will, when this returns 0. */
int qemu_continue(struct qemu *, uint64_t timeout_ns, struct xm_error *);
/* Lets go of an adopted one, without ending it. */
void qemu_leave(struct qemu *);
bool qemu_alive(const struct qemu *);
void qemu_wait_end(const struct qemu *, uint64_t timeout_ns); /* until it has ended */
/* Ends it: asks by QMP, then SIGKILL after 5 s. Closes everything; removes the taps. */
void qemu_end(struct qemu *, const struct vm_spec *);

/* hand.c: opens all of it. A number that this VM's QEMU does not need is -1. hand_close after success or
 * failure. */
struct hand {
    int fd[QEMU_FD_END];
};
int hand_open(struct hand *, const struct vm_spec *, const struct qemu_place *, struct xm_error *);
void hand_close(struct hand *);
bool hand_over(const struct hand *); /* in the forked child: under the numbers. False: errno */

/* Taps: persistent, on the bridge, up. A descriptor of it or -errno. */
int tap_create(const struct vm_nic *, struct xm_error *);
int tap_delete(const struct vm_nic *, struct xm_error *);
/* How long one of their bridges will pass nothing of the guest yet (probe/bridge.c); ns. */
uint64_t taps_pass_in(const struct vm_spec *);
/* What has come for the guest of a QEMU that has not let it run yet is thrown away, but for the one frame of
 * each NIC that QEMU has read: the guest has heard all of it where it runs, and an older word (whose an IP
 * address is, say) would come after the newer one. */
void taps_forget(const struct qemu *, const struct vm_spec *);

#endif
