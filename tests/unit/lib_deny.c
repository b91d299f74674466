/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_deny.h"
#include "memxfer/uffd.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

int deny(enum deny what)
{
    static const struct {
        unsigned call, error, request;
    } row[] = {
        [DENY_NOTHING] = {~0u, 0, 0},
        [DENY_SCAN] = {SYS_ioctl, ENOTTY, (unsigned)SCAN_IOCTL},
        [DENY_KVM] = {SYS_ioctl, EPERM, KVM_CREATE_VM},
        [DENY_PTRACE] = {SYS_ptrace, EPERM, 0},
    };
    /* Of ioctl only the one request, whose low half is args[1]'s first word. */
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, row[what].call, 0, row[what].request ? 3 : 1),
        row[what].request
            ? (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1]))
            : (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | row[what].error),
        row[what].request ? (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, row[what].request, 0, 1)
                          : (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | row[what].error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
