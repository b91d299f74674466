/* SPDX-License-Identifier: MIT */
/* memxfer/warm.c: the destination's QEMU gets its page tables for the pages that have come, before the guest
 * runs.
 *
 * Pages that we receive lie in the memfd; QEMU's own mapping of it knows nothing of them, and the guest's
 * first touch of each would be a fault, thousands in its first moments. So QEMU is made to call
 * madvise(MADV_POPULATE_READ) on its own mapping, for what the memfd holds: on a shared mapping of a memfd a
 * read fault maps the page writable. Holes are left (such a call would fill them), and so are pieces that one
 * fault maps at once.
 *
 * In steps, from the thread that answers the source's calls; a thread of QEMU that nobody waits for stands
 * still for the length of a step (inject.c). Should we be killed in it, that QEMU is lost: so only before
 * the source may have given the VM to it. It is for speed alone: when it fails once, it is left. */
#include "memxfer/inject.h"
#include "memxfer/memxfer.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

#define CALLS  64u
#define AROUND 65536u /* what the kernel maps at a fault (fault_around_bytes) */

/* The next stretch of pages that are there, at most `most` bytes. 0: there is none. */
static uint64_t next_stretch(const struct xm_ram_block *b, uint64_t *at, uint64_t most)
{
    off_t from = lseek(b->memfd, (off_t)*at, SEEK_DATA);
    off_t to = from < 0 ? -1 : lseek(b->memfd, from, SEEK_HOLE);

    if (to < 0 || (uint64_t)from >= b->size)
        return 0;
    *at = (uint64_t)from;
    return XM_MIN(XM_MIN((uint64_t)to, b->size) - (uint64_t)from, most);
}

bool xm_ram_warm(const struct xm_ram *ram, struct xm_warm *w, uint64_t bytes)
{
    struct inject_call call[CALLS];
    struct xm_error e = {0};
    unsigned n = 0;

    while (n < CALLS && bytes && w->block < ram->blocks) {
        const struct xm_ram_block *b = &ram->block[w->block];
        uint64_t at = XM_MAX(w->at, b->qemu_off), len = b->qemu_va ? next_stretch(b, &at, bytes) : 0;
        if (!len) {
            w->block++;
            w->at = 0;
            continue;
        }
        w->at = at + len;
        bytes -= len;
        if (len >= AROUND)
            call[n++] = (struct inject_call){
                .nr = SYS_madvise, .arg = {b->qemu_va + (at - b->qemu_off), len, MADV_POPULATE_READ}};
    }
    if (n && inject_calls(ram->pid, call, n, &e) < 0)
        xm_log(XM_LOG_INFO, "QEMU's page tables are not filled ahead: %s", e.text);
    if (n && !e.code && call[n - 1].result < 0)
        xm_error_errno(&e, (int)-call[n - 1].result, "madvise");
    if (e.code)
        w->block = ram->blocks;
    for (unsigned i = 0; i < n && !e.code; i++)
        w->mapped += call[i].arg[1];
    return w->block < ram->blocks;
}
