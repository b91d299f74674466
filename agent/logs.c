/* SPDX-License-Identifier: MIT */
/* logs/ of the state directory: what VMs that have ended here have said. The logs of a VM that this host
 * knows stay. Of others, that have come to nothing or were forgotten, the latest stay: a peer names what it
 * sends here as it likes, and each name would leave something for ever. */
#include "agent/agent.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_KEPT   (256u << 10) /* the end of one */
#define OTHERS_MAX 200u         /* files of VMs that are not known here */

/* A log outlives its run directory: someone will ask why. */
static void keep_log(struct agent *a, const char *name, const char *file)
{
    char *from = vm_path(a, name, file), *to = xm_printf("%s/logs/%s-%s", a->conf.state_dir, name, file);
    char *text = malloc(LOG_KEPT);
    int in = open(from, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (text && in >= 0 && !fstat(in, &st) && st.st_size > 0) {
        ssize_t n = pread(in, text, LOG_KEPT, st.st_size > LOG_KEPT ? st.st_size - LOG_KEPT : 0);
        int out = n > 0 ? open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
        if (out >= 0 && write(out, text, (size_t)n) < 0)
            xm_log(XM_LOG_WARN, "cannot keep %s: %s", to, strerror(errno));
        if (out >= 0)
            close(out);
    }
    if (in >= 0)
        close(in);
    free(text);
    free(from);
    free(to);
}

/* A VM's log, and the VM has nothing in the inventory. */
static bool is_of_other(struct agent *a, const char *file)
{
    static const char *const kinds[] = {"-shim.log", "-qemu.log", "-console.log", "-console.log.1"};
    bool other = false;

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t len = strlen(file), kind = strlen(kinds[i]);
        if (len <= kind || strcmp(file + len - kind, kinds[i]) != 0)
            continue;
        char *name = xm_printf("%.*s", (int)(len - kind), file), *dir = vm_state_path(a, name, NULL);
        other = !vm_name_check(name, NULL) && access(dir, F_OK) < 0 && errno == ENOENT;
        free(dir);
        free(name);
    }
    return other;
}

struct old {
    time_t at;
    char *path;
};

static int by_age(const void *x, const void *y)
{
    const struct old *a = x, *b = y;

    return (a->at > b->at) - (a->at < b->at);
}

static void drop_oldest(struct agent *a)
{
    char *dir = xm_printf("%s/logs", a->conf.state_dir);
    struct old *all = NULL;
    struct stat st;
    size_t n = 0;
    DIR *d = opendir(dir);

    for (struct dirent *f; d && (f = readdir(d));) {
        struct old *more = is_of_other(a, f->d_name) ? realloc(all, (n + 1) * sizeof *all) : NULL;
        if (!more)
            continue;
        all = more;
        all[n].path = xm_printf("%s/%s", dir, f->d_name);
        all[n].at = lstat(all[n].path, &st) ? 0 : st.st_mtime;
        n++;
    }
    if (d)
        closedir(d);
    if (n > OTHERS_MAX)
        qsort(all, n, sizeof *all, by_age);
    for (size_t i = 0; i < n; i++) {
        if (i + OTHERS_MAX < n && unlink(all[i].path) < 0 && errno != ENOENT)
            xm_log(XM_LOG_WARN, "cannot delete %s: %s", all[i].path, strerror(errno));
        free(all[i].path);
    }
    free(all);
    free(dir);
}

void logs_keep(struct agent *a, const char *name)
{
    keep_log(a, name, "shim.log");
    keep_log(a, name, "qemu.log");
    drop_oldest(a);
}
