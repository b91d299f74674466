/* SPDX-License-Identifier: MIT */
/* Files by which hosts find out whether a datastore is shared (reasons.c makes them, asked.c looks for them) live
 * for seconds. What an agent that was killed has left of them is taken away here, once an hour. */
#include "agent/agent.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PASS_NS (3600 * XM_NS_PER_S)
#define OLD_S   600 /* nobody waits so long for one */

static void sweep(const char *datastore)
{
    DIR *d = opendir(datastore);
    struct stat st;

    for (struct dirent *f; d && (f = readdir(d));) {
        if (!strncmp(f->d_name, PROBE_PREFIX, strlen(PROBE_PREFIX)) &&
            fstatat(dirfd(d), f->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
            st.st_mtime < time(NULL) - OLD_S)
            unlinkat(dirfd(d), f->d_name, 0);
    }
    if (d)
        closedir(d);
}

/* A thread of its own: storage may hang. */
static void *probes_main(void *arg)
{
    struct agent *a = arg;
    bool ending = false;

    while (!ending) {
        for (unsigned i = 0; i < a->conf.datastores; i++)
            sweep(a->conf.datastore[i].path);
        agent_lock(a);
        uint64_t until = xm_now() + PASS_NS;
        while (agent_wait(a, until))
            ;
        ending = a->ending;
        agent_unlock(a);
    }
    agent_thread_ends(a);
    return NULL;
}

int probes_start(struct agent *a, struct xm_error *e)
{
    return agent_thread(a, probes_main, a, e);
}
