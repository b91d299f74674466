/* SPDX-License-Identifier: MIT */
#include "lib_rig.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rig *rig_new(const struct rig_opts *o)
{
    struct rig *r = calloc(1, sizeof *r);
    struct xm_disk_opts opts = {.chunk_size = RIG_CHUNK};

    if (o) {
        opts.mirror_buffer = o->mirror_buffer;
        opts.bulk_buffer = o->bulk_buffer;
    }
    r->sim = sim_new(1);
    r->source = sim_disk_new(r->sim, RIG_SIZE);
    r->target = sim_disk_new(r->sim, RIG_SIZE);
    for (uint64_t i = 0; i < RIG_SIZE; i++)
        r->source->data[i] = (uint8_t)(1 + i / 512 % 251);
    r->writer = xm_writer_new(&r->sim->engine, &r->target->file, NULL);
    if (o && o->near) {
        r->replica = xm_replica_near(&r->sim->engine, r->writer, RIG_CHUNK);
    } else {
        r->links = sim_links_new(r->sim, r->writer, 2);
        r->replica = xm_replica_far(&r->sim->engine, &r->links->transport, 0, RIG_CHUNK);
    }
    r->disk = xm_disk_new(&r->sim->engine, &r->source->file, &opts, NULL);
    assert(r->writer && r->replica && r->disk);
    return r;
}

void rig_run(struct rig *r, uint64_t ms)
{
    sim_run_for(r->sim, ms * XM_NS_PER_MS);
}

static void is_off(void *arg)
{
    ((struct rig *)arg)->off = true;
}

void rig_mirror_off(struct rig *r)
{
    r->off = false;
    xm_disk_mirror_off(r->disk, is_off, r);
}

void rig_free(struct rig *r)
{
    r->source->gate = r->target->gate = NULL;
    sim_disk_go(r->source);
    sim_disk_go(r->target);
    if (r->links) {
        sim_links_go(r->links);
        for (unsigned i = 0; i < r->links->count; i++)
            sim_links_up(r->links, i);
    }
    rig_mirror_off(r);
    for (unsigned i = 0; i < 100 && !r->off; i++)
        rig_run(r, 100);
    assert(r->off);
    rig_run(r, 1000);
    xm_disk_free(r->disk);
    xm_replica_free(r->replica);
    if (r->links)
        sim_links_free(r->links);
    xm_writer_free(r->writer);
    sim_disk_free(r->source);
    sim_disk_free(r->target);
    sim_free(r->sim);
    for (struct rig_op *op; (op = r->ops);) {
        r->ops = op->next;
        assert(op->done);
        free(op->buf);
        free(op);
    }
    free(r);
}

static void op_done(struct xm_breq *b, int status)
{
    struct rig_op *op = xm_container_of(b, struct rig_op, breq);

    assert(!op->done);
    op->done = true;
    op->status = status;
    op->took = op->rig->sim->now - op->began;
}

struct rig_op *rig_io(struct rig *r, enum xm_io_op what, uint64_t offset, uint64_t length, int byte)
{
    struct rig_op *op = calloc(1, sizeof *op);

    assert(op);
    op->rig = r;
    op->next = r->ops;
    r->ops = op;
    op->buf = malloc(length + 1);
    assert(op->buf);
    memset(op->buf, byte, length);
    op->iov = (struct iovec){op->buf, length};
    op->began = r->sim->now;
    op->breq = (struct xm_breq){
        .op = what, .offset = offset, .length = length, .iov = &op->iov, .iovcnt = 1, .done = op_done};
    xm_disk_submit(r->disk, &op->breq);
    return op;
}

void rig_mirror_on(struct rig *r, bool target_zeroed)
{
    struct xm_error e;

    if (xm_disk_mirror_on(r->disk, r->replica, target_zeroed, &e) < 0) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
}

void rig_in_step(struct rig *r)
{
    for (unsigned i = 0; i < 100000 && !xm_disk_in_step(r->disk); i++)
        xm_engine_turn(&r->sim->engine);
    assert(xm_disk_in_step(r->disk));
}

static void ended(void *arg, int status, const char *why)
{
    struct rig *r = arg;

    r->ended = true;
    r->status = status;
    snprintf(r->why, sizeof r->why, "%s", why ? why : "");
}

void rig_quiesce(struct rig *r)
{
    r->ended = false;
    xm_disk_quiesce(r->disk, ended, r);
}

void rig_pivot(struct rig *r)
{
    r->ended = false;
    xm_disk_pivot(r->disk, &r->target->file, NULL, ended, r);
}

struct xm_disk_status rig_status(struct rig *r)
{
    struct xm_disk_status st;

    xm_disk_status(r->disk, &st);
    return st;
}

bool rig_same(struct rig *r)
{
    struct xm_digest here, there;

    xm_replica_digest(r->replica, &here);
    xm_writer_digest(r->writer, &there);
    return xm_digest_equal(&here, &there) && memcmp(r->source->data, r->target->data, RIG_SIZE) == 0;
}
