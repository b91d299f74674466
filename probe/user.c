/* SPDX-License-Identifier: MIT */
/* Which users of this host QEMU may be.
 *
 * The default range lies between those that others give out: accounts and their subordinate numbers end at
 * 600 100 000 (login.defs), containers of systemd at 1 879 048 191, directory services (SSSD, FreeIPA) at
 * 2 000 200 000; 2 147 352 576 and above are systemd's again (systemd, docs/UIDS-GIDS.md). */
#include "probe/probe.h"

#include <ctype.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static int take_range(const char *text, struct probe_user *u, struct xm_error *e)
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
    return 0;
}

static int take_account(const char *name, struct probe_user *u, struct xm_error *e)
{
    struct passwd p, *found = NULL;
    char *buf = malloc(1 << 16);
    int err = buf ? getpwnam_r(name, &p, buf, 1 << 16, &found) : ENOMEM;

    if (err || !found)
        err = xm_error_set(e, err ? err : ENOENT, "there is no such account");
    else if (!p.pw_uid)
        err = xm_error_set(e, EINVAL, "it is root under another name");
    if (!err) {
        u->name = xm_printf("%s", name);
        u->first = u->last = p.pw_uid;
        u->gid = p.pw_gid;
    }
    free(buf);
    return err;
}

int probe_qemu_user(const char *wanted, struct probe_user *u, struct xm_error *e)
{
    int r = 0;

    memset(u, 0, sizeof *u);
    if (!wanted)
        u->first = FIRST, u->last = LAST;
    else if (isdigit((unsigned char)wanted[0]))
        r = take_range(wanted, u, e);
    else if (strcmp(wanted, "root") != 0)
        r = take_account(wanted, u, e);
    if (!r && u->last &&
        (!is_mapped("/proc/self/uid_map", u->first, u->last) ||
         !is_mapped("/proc/self/gid_map", u->name ? u->gid : u->first, u->name ? u->gid : u->last)))
        r = xm_error_set(e, EINVAL, "this host has no users %u to %u (/proc/self/uid_map, gid_map)", u->first,
                         u->last);
    if (r)
        probe_user_free(u);
    return r;
}

void probe_user_free(struct probe_user *u)
{
    free(u->name);
    memset(u, 0, sizeof *u);
}
