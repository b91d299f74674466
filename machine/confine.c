/* SPDX-License-Identifier: MIT */
/* The stages in which a forked child gives up what QEMU does not need. What is still needed after each:
 *
 * 1. umask: whatever QEMU makes (its display's socket) is for nobody else.
 * 2. The capability bounding set is emptied, so that exec by user 0 does not bring them all back. Needs
 *    CAP_SETPCAP, so it comes before 4.
 * 3. no_new_privs: no set-user-id program, no file's capabilities, and QEMU's seccomp filter needs no right.
 * 4. It becomes the VM's own user (user.c). Needs CAP_SETUID and CAP_SETGID, which end with it. What QEMU
 *    needs of its host it has been handed (hand.c), but for /dev/kvm, which has a group.
 * 5. All three capability sets are emptied, for those who stay root.
 *
 * The memory plane needs nothing of QEMU: the shim, which keeps its capabilities, stops a thread of it
 * (ptrace) and suspends its sandbox for the system calls that it has this thread make (memxfer/inject.c):
 * userfaultfd, whose descriptor it takes, and close; at the destination madvise (memxfer/warm.c). A
 * userfaultfd for asynchronous tracking (UFFD_USER_MODE_ONLY) is open to every process.
 *
 * The shim has two stages: from its start on, and from when QEMU runs. The thread of a migration that
 * comes in stays in the first: it may have to start QEMU a second time (machine_wait_anew). */
#include "machine/confine.h"

#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BIT(cap) (1ull << (cap))
/* Disks' files, whoever's they are; QEMU's sockets. */
#define FOR_FILES (BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_FOWNER))
/* Another user's process: its memory and descriptors, its sandbox, its end. */
#define FOR_QEMU (BIT(CAP_SYS_PTRACE) | BIT(CAP_SYS_ADMIN) | BIT(CAP_KILL))
/* Taps; priorities of threads that migrate; the I/O engine's memory. */
#define FOR_REST  (BIT(CAP_NET_ADMIN) | BIT(CAP_SYS_NICE) | BIT(CAP_IPC_LOCK))
#define FOR_START (BIT(CAP_SETUID) | BIT(CAP_SETGID) | BIT(CAP_SETPCAP))

/* EINVAL: there are no more. EPERM: a process without CAP_SETPCAP, which keeps no more than it has. */
static bool bound(uint64_t keep)
{
    errno = 0;
    for (unsigned long cap = 0; cap < 64; cap++) {
        if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            break;
    }
    return !errno || errno == EINVAL || errno == EPERM;
}

static bool keep_only(uint64_t keep)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct set[2] = {{0}};

    if (keep && syscall(SYS_capget, &head, set) < 0)
        return false;
    for (unsigned i = 0; i < 2; i++) {
        set[i].permitted &= (uint32_t)(keep >> 32 * i);
        set[i].effective &= (uint32_t)(keep >> 32 * i);
        set[i].inheritable = 0;
    }
    return syscall(SYS_capset, &head, set) == 0;
}

const char *confine_self(const struct qemu_user *user)
{
    umask(077);
    if (!bound(0))
        return "the capability bounding set";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return "no_new_privs";
    if (user && user->uid && !qemu_user_become(user))
        return "root's user";
    if (!keep_only(0))
        return "capset";
    return NULL;
}

void confine_shim(bool started)
{
    uint64_t keep = FOR_FILES | FOR_QEMU | FOR_REST | (started ? 0 : FOR_START);

    if (!bound(keep) || !keep_only(keep))
        xm_log(XM_LOG_WARN, "the shim keeps rights that it does not need: %s", strerror(errno));
}
