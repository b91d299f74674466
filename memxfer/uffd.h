/* SPDX-License-Identifier: MIT */
/* memxfer/uffd.h: what Debian 12's <linux/userfaultfd.h> and <linux/fs.h> lack: asynchronous write-protection
 * (Linux 6.7) and PAGEMAP_SCAN. Values and layouts are the kernel's ABI:
 * Documentation/admin-guide/mm/pagemap.rst and userfaultfd.rst. */
#ifndef XM_MEMXFER_UFFD_H
#define XM_MEMXFER_UFFD_H

#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>

#define WP_HUGETLBFS_SHMEM (1ull << 12) /* write-protection of shared memory */
#define WP_UNPOPULATED     (1ull << 13) /* also where no page is mapped yet */
#define WP_ASYNC                                                                                             \
    (1ull << 15) /* the kernel lifts the protection by itself at the first write, and remembers */

/* System call flag: we read no faults, so kernel-mode faults need no privilege either. */
#define UFFD_USER_ONLY 1

struct scan_region {
    uint64_t start, end; /* addresses in the tracked process */
    uint64_t categories;
};

struct scan_arg {
    uint64_t size; /* of this struct */
    uint64_t flags;
    uint64_t start, end;
    uint64_t walk_end; /* out: where it stopped: `end`, or less when vec was full */
    uint64_t vec, vec_len;
    uint64_t max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN_IOCTL         _IOWR('f', 16, struct scan_arg)
#define SCAN_WP_MATCHING   1ull /* flag: protect again what is reported */
#define SCAN_CHECK_WPASYNC 2ull /* flag: fail where the range is not (any more) registered */
#define SCAN_WRITTEN       2ull /* category: not write-protected */

#endif
