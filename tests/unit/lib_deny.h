/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_deny.h: what another kernel, or a policy of the host, would refuse, by a seccomp filter on
 * this process and all that it starts. */
#ifndef LIB_DENY_H
#define LIB_DENY_H

enum deny {
    DENY_NOTHING,
    DENY_SCAN,   /* the ioctl PAGEMAP_SCAN: ENOTTY, as before Linux 6.7 */
    DENY_KVM,    /* the ioctl KVM_CREATE_VM: EPERM */
    DENY_PTRACE, /* ptrace(2): EPERM */
};

/* 0, or -1 with errno. Cannot be taken back. */
int deny(enum deny);

#endif
