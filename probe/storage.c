/* SPDX-License-Identifier: MIT */
#include "blkcopy/blkcopy.h"
#include "probe/probe.h"

unsigned probe_block_size(const char *path)
{
    return xm_file_block_of(path);
}
