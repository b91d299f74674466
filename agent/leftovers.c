/* SPDX-License-Identifier: MIT */
/* What an agent or a shim that was killed has left: the unfinished files of xm_file_replace in the state
 * directory, and those by which hosts find out whether a datastore is shared (reasons.c makes them, asked.c
 * looks for them; they live for seconds). They are taken away once an hour when they are old; the unfinished
 * ones that nobody can be writing, when the agent starts. */
#include "agent/agent.h"
#include "agent/storage.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PASS_NS (3600 * XM_NS_PER_S)
#define OLD_S   600 /* nobody works so long on one */

static bool is_probe(const char *name)
{
    return !strncmp(name, PROBE_PREFIX, strlen(PROBE_PREFIX));
}

static bool is_unfinished(const char *name)
{
    const char *at = strstr(name, ".tmp-");

    return at && strlen(at) == strlen(".tmp-XXXXXX");
}

static void sweep(const char *path, bool (*is_one)(const char *name), time_t age)
{
    DIR *d = opendir(path);
    struct stat st;

    for (struct dirent *f; d && (f = readdir(d));) {
        if (is_one(f->d_name) && fstatat(dirfd(d), f->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(st.st_mode) && st.st_mtime <= time(NULL) - age)
            unlinkat(dirfd(d), f->d_name, 0);
    }
    if (d)
        closedir(d);
}

static void sweep_state(struct agent *a, bool at_start)
{
    static const char *const below[] = {"", "/jobs", "/left"};
    char *vms = xm_printf("%s/vms", a->conf.state_dir);

    for (unsigned i = 0; i < sizeof below / sizeof *below; i++) {
        char *path = xm_printf("%s%s", a->conf.state_dir, below[i]);
        sweep(path, is_unfinished, at_start ? 0 : OLD_S);
        free(path);
    }
    DIR *d = opendir(vms);
    for (struct dirent *f; d && (f = readdir(d));) {
        char *path = xm_printf("%s/%s", vms, f->d_name);
        if (f->d_name[0] != '.') /* its shim writes there, too */
            sweep(path, is_unfinished, at_start && !vm_process(a, f->d_name, "shim.pid") ? 0 : OLD_S);
        free(path);
    }
    if (d)
        closedir(d);
    free(vms);
}

/* A thread of its own: storage may hang. */
static void *leftovers_main(void *arg)
{
    struct agent *a = arg;
    bool ending = false;

    while (!ending) {
        sweep_state(a, false);
        for (unsigned i = 0; i < a->conf.datastores; i++) {
            if (storage_hangs(a->conf.datastore[i].path, NULL) == 0) /* the others have theirs, too */
                sweep(a->conf.datastore[i].path, is_probe, OLD_S);
        }
        ending = agent_pause(a, PASS_NS);
    }
    agent_thread_ends(a);
    return NULL;
}

void leftovers_at_start(struct agent *a)
{
    sweep_state(a, true);
}

int leftovers_start(struct agent *a, struct xm_error *e)
{
    return agent_thread(a, leftovers_main, a, e);
}
