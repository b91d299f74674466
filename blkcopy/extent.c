/* SPDX-License-Identifier: MIT */
/* Holes and zeros: what need not be copied. */
#include "blkcopy/blkcopy.h"
#include "base/base.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool xm_extent_is_hole(const struct xm_file *f, uint64_t offset, uint64_t length, uint64_t *hole_end)
{
    if (f->block_device || offset >= f->size)
        return false;
    off_t data = lseek(f->fd, (off_t)offset, SEEK_DATA);
    uint64_t end = data < 0 ? f->size : XM_MIN((uint64_t)data, f->size);
    /* ENXIO: no data up to the end of the file. */
    if ((data < 0 && errno != ENXIO) || end - offset < length)
        return false;
    if (hole_end)
        *hole_end = end;
    return true;
}

/* The first bytes decide most of the time. Then each byte equals the one 16 before it: memcmp is vectorised
 * by libc. */
bool xm_is_zero(const void *buf, size_t len)
{
    static const char none[16];
    const char *p = buf;

    if (len <= sizeof(none))
        return memcmp(p, none, len) == 0;
    return memcmp(p, none, sizeof(none)) == 0 && memcmp(p, p + sizeof(none), len - sizeof(none)) == 0;
}

uint64_t xm_file_allocated(const struct xm_file *f)
{
    struct stat st;

    if (f->block_device)
        return f->size;
    return fstat(f->fd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}
