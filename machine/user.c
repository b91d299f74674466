/* SPDX-License-Identifier: MIT */
/* The user that a VM's QEMU is.
 *
 * Whoever takes a QEMU over is that user. So each VM has one of its own, out of a range that belongs to
 * nobody else (probe/user.c): it owns no file, can neither trace nor signal another VM's QEMU, and has no
 * group but that of /dev/kvm. There is no account for it, and nothing to set up.
 *
 * Which one: the number stands in the file qemu.user of the VM's run directory, and is what the VM's QEMU is,
 * as long as that runs, whatever the configuration says by then; after it the number is chosen anew. All
 * these files together say what is taken; who looks for a free number holds a lock on the directory of them
 * all. A number that a process has is taken besides, whatever that process is: another agent's VM, what a
 * removed directory has left.
 *
 * It is tried before it is said: a child becomes that user and opens what QEMU will have to open by name.
 * All else QEMU is handed as a descriptor (hand.c). */
#include "machine/qemu.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_NAME "qemu.user"

int qemu_user_give(const struct qemu_user *u, const char *path, struct xm_error *e)
{
    if (u->uid && lchown(path, u->uid, u->gid) < 0)
        return xm_error_errno(e, errno, "cannot give %s to QEMU's user", path);
    return 0;
}

/* ---- the file ---- */

static bool read_user(const char *dir, struct qemu_user *u)
{
    char *path = xm_printf("%s/" FILE_NAME, dir), *text = NULL;
    size_t len = 0;
    bool there = xm_file_read(path, 64, &text, &len, NULL) == 0 &&
                 sscanf(text, "%u %u", &u->uid, &u->gid) == 2 && u->uid;

    free(text);
    free(path);
    return there;
}

static int write_user(const char *dir, const struct qemu_user *u, struct xm_error *e)
{
    char *path = xm_printf("%s/" FILE_NAME, dir), text[64];
    int n = snprintf(text, sizeof text, "%u %u\n", u->uid, u->gid);
    int r = xm_file_replace(path, text, (size_t)n, e);

    free(path);
    return r;
}

/* Root's user it is then, also for the shim that finds this QEMU. */
static void forget_user(const char *dir)
{
    char *path = xm_printf("%s/" FILE_NAME, dir);

    unlink(path);
    free(path);
}

/* ---- which one ---- */

/* Another VM's. */
static bool is_given(const char *all, const char *own, uid_t uid)
{
    DIR *d = opendir(all);
    bool given = false;

    for (struct dirent *f; d && !given && (f = readdir(d));) {
        struct qemu_user u;
        char *dir = xm_printf("%s/%s", all, f->d_name);
        given = f->d_name[0] != '.' && strcmp(f->d_name, own) != 0 && read_user(dir, &u) && u.uid == uid;
        free(dir);
    }
    if (d)
        closedir(d);
    return given;
}

static bool is_somebody(uid_t uid)
{
    DIR *d = opendir("/proc");
    bool found = false;

    for (struct dirent *f; d && !found && (f = readdir(d));) {
        struct stat st;
        found = isdigit((unsigned char)f->d_name[0]) && fstatat(dirfd(d), f->d_name, &st, 0) == 0 &&
                st.st_uid == uid;
    }
    if (d)
        closedir(d);
    return found;
}

/* So that a VM mostly gets the same, and two agents of one host (a test's) seldom look at the same. */
static unsigned hash(const char *text)
{
    unsigned h = 2166136261u; /* FNV-1a */

    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 16777619u;
    return h;
}

static int pick(const struct qemu_users *p, const char *run_dir, struct qemu_user *u, struct xm_error *e)
{
    const char *own = strrchr(run_dir, '/');
    char *all = xm_printf("%.*s", own ? (int)(own - run_dir) : 1, own ? run_dir : ".");
    unsigned count = p->last - p->first + 1, from = hash(run_dir) % count, i;

    own = own ? own + 1 : run_dir;
    for (i = 0; i < count && i < 4096; i++) {
        u->uid = u->gid = p->first + (from + i) % count;
        if (!is_given(all, own, u->uid) && !is_somebody(u->uid))
            break;
    }
    if (i == count || i == 4096) {
        u->uid = 0;
        xm_error_set(e, EAGAIN, "all users from %u to %u are taken", p->first, p->last);
    }
    free(all);
    return u->uid ? 0 : -EAGAIN;
}

/* ---- all of it ---- */

/* QEMU may go through the directory, to what it knows the name of; it may not list it. */
static int open_directory(const char *run_dir, const struct qemu_user *u, struct xm_error *e)
{
    if (chown(run_dir, (uid_t)-1, u->gid) < 0 || chmod(run_dir, 0710) < 0)
        return xm_error_errno(e, errno, "cannot open %s to QEMU's user", run_dir);
    return 0;
}

static int choose_new(const struct vm_spec *vm, const char *run_dir, const struct qemu_users *p,
                      struct qemu_user *u, struct xm_error *e)
{
    char *all = xm_printf("%s/..", run_dir), *program = qemu_path(vm->qemu); /* NULL: is said later */
    int lock = open(all, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;

    if (lock < 0 || flock(lock, LOCK_EX) < 0)
        r = xm_error_errno(e, errno, "cannot lock the directory above %s", run_dir);
    if (!r && !p->name)
        r = pick(p, run_dir, u, e);
    if (!r)
        r = qemu_user_try(u, program, vm->accel && !strncmp(vm->accel, "kvm", 3), e);
    if (!r)
        r = write_user(run_dir, u, e);
    if (lock >= 0)
        close(lock);
    free(program);
    free(all);
    return r;
}

int qemu_user_choose(const struct vm_spec *vm, const char *run_dir, const char *wanted, struct qemu_user *u,
                     struct xm_error *e)
{
    struct qemu_users p = {0};
    struct xm_error why = {0};
    bool left = qemu_is_left(run_dir);

    memset(u, 0, sizeof *u);
    if (geteuid())
        return 0;
    int r = qemu_users_find(wanted, &p, &why);
    *u = p.first_one;
    if (left) {
        r = 0;
        if (!read_user(run_dir, u))
            u->uid = 0; /* of a version that knew none, or it is root's */
    } else if (!r && p.last) {
        r = choose_new(vm, run_dir, &p, u, &why);
    }
    qemu_users_free(&p);
    if (!r && u->uid)
        r = open_directory(run_dir, u, &why);
    if (r)
        u->uid = 0;
    if (!u->uid)
        forget_user(run_dir);
    if (!r)
        return 0;
    if (wanted)
        return xm_error_set(e, why.code, "qemu_user = %s: %s", wanted, why.text);
    xm_log(XM_LOG_WARN, "VM %s: QEMU runs as root's user: %s", vm->name, why.text);
    return 0;
}
