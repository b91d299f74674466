/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_mirror.h"

struct rig *r;

int rig_setup(void **state)
{
    (void)state;
    r = rig_new(NULL);
    return 0;
}

int rig_setup_near(void **state)
{
    (void)state;
    r = rig_new(&(struct rig_opts){.near = true});
    return 0;
}

int rig_setup_tiny(void **state)
{
    (void)state;
    r = rig_new(&(struct rig_opts){.mirror_buffer = 64 << 10});
    return 0;
}

int rig_teardown(void **state)
{
    (void)state;
    rig_free(r);
    return 0;
}

bool hold_writes(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    return io->op == XM_IO_WRITE || io->op == XM_IO_ZERO;
}

bool hold_reads(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    return io->op == XM_IO_READ;
}

bool hold_first_chunk_reads(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    return io->op == XM_IO_READ && io->offset < RIG_CHUNK;
}

bool hold_flushes(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    return io->op == XM_IO_FLUSH;
}

void ungate(struct sim_disk *d)
{
    d->gate = NULL;
    sim_disk_go(d);
}

void keep_status(struct xm_breq *b, int status)
{
    *xm_container_of(b, struct status_breq, breq)->status = status;
}
