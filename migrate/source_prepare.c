/* SPDX-License-Identifier: MIT */
/* The source's first step: links to the destination, and both sides number disks and RAM blocks alike. One
 * link that comes up is enough; none ends the migration. */
#include "migrate/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BRIDGES_MAX (60 * XM_NS_PER_S) /* two forward delays of 30 s, the longest */

static void link_event(void *ctx, int link, enum xm_link_state st, const struct xm_error *e)
{
    struct source *m = ctx;

    xm_log(XM_LOG_INFO, "job %s: link %d is %s%s%s", m->job, link, st == XM_LINK_UP ? "up" : "down",
           e && e->code ? ": " : "", e && e->code ? e->text : "");
    source_disks_links(m);
}

static int add_link(struct source *m, const char *local, const char *remote, uint16_t port, const char *token)
{
    struct xm_error e = {0};
    char name[64];
    char *preamble;

    snprintf(name, sizeof name, "%s -> %s", local, remote);
    int fd = xm_tcp_connect(local, remote, port, 5 * XM_NS_PER_S, &e);
    if (fd >= 0) {
        preamble = xm_printf("XMIG/1 link %s %s\n", token, local);
        size_t n = strlen(preamble);
        if (write(fd, preamble, n) != (ssize_t)n) {
            xm_error_errno(&e, errno, "link %s", name);
            close(fd);
            fd = -1;
        }
        free(preamble);
    }
    if (fd >= 0 && xm_links_add(m->links, fd, true, name, &e) >= 0)
        return 0;
    xm_log(XM_LOG_WARN, "job %s: %s", m->job, e.text);
    m->error = e;
    return -e.code;
}

/* Tells the destination what comes, so that both sides number disks and RAM blocks alike; learns which disks
 * read as zeros. */
static int source_begin(struct source *m)
{
    struct machine *vm = m->machine;
    struct owner_record rec;
    json_t *disks = json_array();
    json_t *ram = json_array();

    /* An operator may have declared a peer dead since this shim read it. */
    if (owner_load(vm->state_dir, vm->spec.name, &rec, &m->error) < 0) {
        json_decref(disks);
        json_decref(ram);
        return -m->error.code;
    }
    vm->epoch = rec.epoch;
    for (unsigned i = 0; i < vm->disks; i++)
        json_array_append_new(disks, json_pack("{s:s s:I s:i}", "name", vm->disk[i].spec->name, "size",
                                               (json_int_t)vm->disk[i].file->size, "block",
                                               (int)vm->disk[i].spec->block_size));
    for (unsigned i = 0; i < vm->ram.blocks; i++)
        json_array_append_new(ram, json_pack("{s:s s:I}", "name", vm->ram.block[i].name, "size",
                                             (json_int_t)vm->ram.block[i].size));
    json_int_t epoch = (json_int_t)vm->epoch + 1;
    json_t *reply =
        call_destination(m->links,
                         json_pack("{s:s s:s s:I s:b s:o s:o}", "call", "begin", "job", m->job, "epoch",
                                   epoch, "storage", m->storage, "disks", disks, "ram", ram),
                         30 * XM_NS_PER_S, &m->error);
    if (!reply)
        return -m->error.code;
    for (unsigned i = 0; i < vm->disks; i++)
        m->zeroed[i] = xm_json_bool(json_array_get(json_object_get(reply, "disks"), i), "zeroed", false);
    uint64_t bridges = (uint64_t)XM_MAX(xm_json_int(reply, "bridges_ms", 0), 0) * XM_NS_PER_MS;
    m->bridges_at = xm_now() + XM_MIN(bridges, BRIDGES_MAX);
    json_decref(reply);
    return 0;
}

int source_prepare(struct source *m)
{
    struct xm_links_opts o = {.link_timeout = m->opt.link_timeout, .event = link_event, .event_ctx = m};
    const char *token = xm_json_str(m->request, "token", NULL);
    uint16_t port = (uint16_t)xm_json_int(m->request, "port", 0);
    json_t *links = json_object_get(m->request, "links");
    json_t *l;
    size_t i;
    int up = 0;

    if (xm_hex_get(o.token, sizeof o.token, token) < 0)
        return xm_error_set(&m->error, EINVAL, "the agent gave no usable token");
    m->links = xm_links_new(&o, &m->error);
    if (!m->links)
        return -m->error.code;
    m->to = xm_links_transport(m->links);
    xm_links_set_rate(m->links, m->rate);
    xm_links_set_background(m->links, true);
    json_array_foreach (links, i, l)
        up += add_link(m, xm_json_str(l, "local", ""), xm_json_str(l, "remote", ""), port, token) == 0;
    if (!up)
        return xm_error_prefix(&m->error, "no link to %s comes up", m->destination);
    m->error.code = 0;
    xm_fault("source-linked");
    int r = source_begin(m);
    xm_links_set_rate(m->links, m->rate); /* whoever set it meanwhile may not have seen the links */
    return r;
}
