/* SPDX-License-Identifier: MIT */
/* Which users of this host QEMU may be.
 *
 * The default range lies between those that others give out: accounts and their subordinate numbers end at
 * 600 100 000 (login.defs), containers of systemd at 1 879 048 191, directory services (SSSD, FreeIPA) at
 * 2 000 200 000; 2 147 352 576 and above are systemd's again (systemd, docs/UIDS-GIDS.md). */
#include "probe/probe.h"

#include <ctype.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST 2100000000u
#define LAST  2100065535u

/* All of first..last is there in this process's user namespace: its users, and its groups. */
static bool is_mapped(const char *map, unsigned first, unsigned last)
{
    unsigned long begin, outside, count;
    bool yes = false;
    FILE *f = fopen(map, "re");

    if (!f)
        return true; /* a kernel without user namespaces */
    while (!yes && fscanf(f, "%lu %lu %lu", &begin, &outside, &count) == 3)
        yes = first >= begin && last < begin + count;
    fclose(f);
    return yes;
}

static int take_range(const char *text, struct qemu_users *u, struct xm_error *e)
{
    char *end = NULL;
    unsigned long first = strtoul(text, &end, 10), last = 0;
    bool good = end != text && *end == '-' && isdigit((unsigned char)end[1]);

    if (good)
        last = strtoul(end + 1, &end, 10);
    if (!good || *end || first < 1 || last < first || last >= 0xfffffffful)
        return xm_error_set(e, EINVAL, "it has to be root, an account's name, or numbers FIRST-LAST");
    u->first = (unsigned)first;
    u->last = (unsigned)last;
    u->first_one.gid = u->first;
    return 0;
}

static int take_account(const char *name, struct qemu_users *u, struct xm_error *e)
{
    struct passwd p = {0}, *found = NULL;
    char *buf = malloc(1 << 16);
    int err = buf ? getpwnam_r(name, &p, buf, 1 << 16, &found) : ENOMEM, n = QEMU_GROUPS_MAX;

    if (err || !found)
        err = xm_error_set(e, err ? err : ENOENT, "there is no such account");
    else if (!p.pw_uid)
        err = xm_error_set(e, EINVAL, "it is root under another name");
    if (!err) {
        u->name = xm_printf("%s", name);
        u->first = u->last = p.pw_uid;
        u->first_one.gid = p.pw_gid;
        if (getgrouplist(name, p.pw_gid, u->first_one.group, &n) >= 0)
            u->first_one.groups = (unsigned)n;
    }
    free(buf);
    return err;
}

/* The group that /dev/kvm is for. Never root's: files are for it, too. */
static void join_kvm(struct qemu_user *u)
{
    struct stat st;

    if (stat("/dev/kvm", &st) < 0 || (st.st_mode & 06) == 06 || (st.st_mode & 060) != 060 || !st.st_gid)
        return;
    for (unsigned i = 0; i < u->groups; i++) {
        if (u->group[i] == st.st_gid)
            return;
    }
    if (u->groups < QEMU_GROUPS_MAX)
        u->group[u->groups++] = st.st_gid;
}

int qemu_users_find(const char *wanted, struct qemu_users *u, struct xm_error *e)
{
    int r = 0;

    memset(u, 0, sizeof *u);
    if (!wanted)
        u->first = u->first_one.gid = FIRST, u->last = LAST;
    else if (isdigit((unsigned char)wanted[0]))
        r = take_range(wanted, u, e);
    else if (strcmp(wanted, "root") != 0)
        r = take_account(wanted, u, e);
    unsigned gid = u->first_one.gid;
    if (!r && u->last &&
        (!is_mapped("/proc/self/uid_map", u->first, u->last) ||
         !is_mapped("/proc/self/gid_map", gid, gid + (u->last - u->first))))
        r = xm_error_set(e, EINVAL, "this host has no users %u to %u (/proc/self/uid_map, gid_map)", u->first,
                         u->last);
    u->first_one.uid = u->first;
    if (u->last)
        join_kvm(&u->first_one);
    if (r)
        qemu_users_free(u);
    return r;
}

void qemu_users_free(struct qemu_users *u)
{
    free(u->name);
    memset(u, 0, sizeof *u);
}

bool qemu_user_become(const struct qemu_user *u)
{
    /* Not libc's, which would look after other threads. */
    return syscall(SYS_setgroups, (size_t)u->groups, u->group) == 0 &&
           syscall(SYS_setresgid, u->gid, u->gid, u->gid) == 0 &&
           syscall(SYS_setresuid, u->uid, u->uid, u->uid) == 0;
}

/* ---- is it of use? ---- */

enum { GOOD, NOT_BECOME, NO_KVM, NO_PROGRAM };

static int try_as(const struct qemu_user *u, const char *program, bool kvm)
{
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) { /* only system calls: other threads' locks may be held here for ever */
        int how = !qemu_user_become(u)                     ? NOT_BECOME
                  : kvm && access("/dev/kvm", R_OK | W_OK) ? NO_KVM
                  : program && access(program, X_OK)       ? NO_PROGRAM
                                                           : GOOD;
        _exit(how);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : NOT_BECOME;
}

int qemu_user_try(const struct qemu_user *u, const char *program, bool kvm, struct xm_error *e)
{
    struct xm_error why = {0};

    switch (try_as(u, program, kvm)) {
    case GOOD:
        break;
    case NO_KVM:
        return xm_error_set(e, EACCES,
                            "user %u may not use /dev/kvm: it should have a group (kvm) that may read and "
                            "write it",
                            u->uid);
    case NO_PROGRAM:
        return xm_error_set(e, EACCES, "user %u may not run %s", u->uid, program);
    default:
        return xm_error_set(e, EPERM, "no process can become user %u here", u->uid);
    }
    /* A VM that cannot move is no help; one that could not either way loses nothing. */
    if (probe_tracking_as(u, &why) < 0 && probe_tracking(NULL) == 0)
        return xm_error_set(e, why.code, "as another user, %s", why.text);
    return 0;
}
