/* SPDX-License-Identifier: MIT */
/* The source's first step: links to the destination, and both sides number disks and RAM blocks alike. */
#include "migrate/source.h"

#define BRIDGES_MAX   (60 * XM_NS_PER_S) /* two forward delays of 30 s, the longest */
#define BEGIN_TIMEOUT (30 * XM_NS_PER_S)

void source_note_bridges(struct source *m, const json_t *reply)
{
    uint64_t bridges = (uint64_t)XM_MAX(xm_json_int(reply, "bridges_ms", 0), 0) * XM_NS_PER_MS;

    m->bridges_at = xm_now() + XM_MIN(bridges, BRIDGES_MAX);
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
        source_call_awake(m,
                          json_pack("{s:s s:s s:I s:b s:o s:o}", "call", "begin", "job", m->job, "epoch",
                                    epoch, "storage", m->storage, "disks", disks, "ram", ram),
                          BEGIN_TIMEOUT);
    if (!reply)
        return -m->error.code;
    for (unsigned i = 0; i < vm->disks; i++)
        m->zeroed[i] = xm_json_bool(json_array_get(json_object_get(reply, "disks"), i), "zeroed", false);
    m->can_try_again = m->storage && xm_json_bool(reply, "again", false);
    m->takes_late = xm_json_bool(reply, "late", false);
    source_note_bridges(m, reply);
    json_decref(reply);
    return 0;
}

int source_prepare(struct source *m)
{
    int r = source_links(m);

    if (r < 0)
        return r;
    xm_fault("source-linked");
    return source_begin(m);
}
