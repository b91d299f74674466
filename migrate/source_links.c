/* SPDX-License-Identifier: MIT */
/* The source's links. Each comes up on a thread of its own: one whose other end is silent takes 5 s, or twice
 * that, and the destination waits 20 s for the migration to begin. One that comes up is enough. */
#include "migrate/source.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void link_event(void *ctx, int link, enum xm_link_state st, const struct xm_error *e)
{
    struct source *m = ctx;

    xm_log(XM_LOG_INFO, "job %s: link %d is %s%s%s", m->job, link, st == XM_LINK_UP ? "up" : "down",
           e && e->code ? ": " : "", e && e->code ? e->text : "");
    source_disks_links(m);
}

struct joining {
    struct source *m;
    const char *local, *remote, *token;
    uint16_t port;
    pthread_t thread;
    bool started;
    struct xm_error error; /* code 0: it is up */
};

static void *join_link(void *arg)
{
    struct joining *j = arg;
    struct xm_error *e = &j->error;
    char name[64];

    snprintf(name, sizeof name, "%s -> %s", j->local, j->remote);
    int fd = xm_tcp_connect(j->local, j->remote, j->port, 5 * XM_NS_PER_S, e);
    if (fd >= 0) {
        char *preamble = xm_printf("XMIG/1 link %s %s\n", j->token, j->local);
        size_t n = strlen(preamble);
        if (write(fd, preamble, n) != (ssize_t)n) {
            xm_error_errno(e, errno ? errno : EIO, "link %s", name);
            close(fd);
            fd = -1;
        }
        free(preamble);
    }
    if (fd >= 0)
        xm_links_add(j->m->links, fd, true, name, e);
    if (e->code)
        xm_log(XM_LOG_WARN, "job %s: %s", j->m->job, e->text);
    return NULL;
}

/* How many came up. None: m->error says why the last one did not. */
static unsigned join_links(struct source *m, const char *token)
{
    json_t *links = json_object_get(m->request, "links"), *l;
    struct joining *all = calloc(json_array_size(links) + 1, sizeof *all);
    unsigned up = 0;
    size_t i;

    xm_error_set(&m->error, all ? EINVAL : ENOMEM, all ? "there is none" : "no memory");
    if (!all)
        return 0;
    json_array_foreach (links, i, l) {
        all[i] = (struct joining){.m = m,
                                  .local = xm_json_str(l, "local", ""),
                                  .remote = xm_json_str(l, "remote", ""),
                                  .token = token,
                                  .port = (uint16_t)xm_json_int(m->request, "port", 0)};
        all[i].started = pthread_create(&all[i].thread, NULL, join_link, &all[i]) == 0;
        if (!all[i].started)
            join_link(&all[i]);
    }
    for (i = 0; i < json_array_size(links); i++) {
        if (all[i].started)
            pthread_join(all[i].thread, NULL);
        if (all[i].error.code)
            m->error = all[i].error;
        else
            up++;
    }
    free(all);
    return up;
}

int source_links(struct source *m)
{
    struct xm_links_opts o = {.link_timeout = m->opt.link_timeout, .event = link_event, .event_ctx = m};
    const char *token = xm_json_str(m->request, "token", NULL);

    if (xm_hex_get(o.token, sizeof o.token, token) < 0)
        return xm_error_set(&m->error, EINVAL, "the agent gave no usable token");
    m->links = xm_links_new(&o, &m->error);
    if (!m->links)
        return -m->error.code;
    m->to = xm_links_transport(m->links);
    xm_links_set_rate(m->links, m->rate = m->asked.rate);
    xm_links_set_background(m->links, true);
    if (!join_links(m, token))
        return xm_error_prefix(&m->error, "no link to %s comes up", m->destination);
    m->error.code = 0;
    return 0;
}
