/* SPDX-License-Identifier: MIT */
/* The stages in which a forked child gives up what QEMU does not need. What is still needed after each:
 *
 * 1. umask: whatever QEMU makes (its sockets) is for nobody else.
 * 2. The capability bounding set is emptied, so that exec by user 0 does not bring them all back. Needs
 *    CAP_SETPCAP, so it comes before 4.
 * 3. no_new_privs: no set-user-id program, no file's capabilities, and QEMU's seccomp filter needs no right.
 * 4. All three capability sets are emptied. Taps are opened by their owner (tap.c), /dev/kvm by its
 *    permissions, sockets in a directory that is its user's.
 *
 * The memory plane needs nothing of QEMU: the shim, which keeps its capabilities, stops a thread of it
 * (ptrace), suspends its sandbox for two system calls, and takes the descriptor (memxfer/inject.c). A
 * userfaultfd for asynchronous tracking (UFFD_USER_MODE_ONLY) is open to every process. */
#include "machine/confine.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

const char *confine_self(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};

    umask(077);
    errno = 0;
    /* EINVAL: there are no more. EPERM: a process without CAP_SETPCAP, which loses what it has at 4. */
    for (unsigned long cap = 0; cap < 64 && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++) {
    }
    if (errno && errno != EINVAL && errno != EPERM)
        return "the capability bounding set";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return "no_new_privs";
    if (syscall(SYS_capset, &head, none) < 0)
        return "capset";
    return NULL;
}
