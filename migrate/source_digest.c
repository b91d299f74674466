/* SPDX-License-Identifier: MIT */
/* In the switch-over: what was sent is what was applied. Each side has a sum over the headers and hashes
 * of all frames of a disk, or of memory, in any order; a page or a block that got lost, or that was
 * applied twice, shows in it. */
#include "migrate/source.h"

#include <stdlib.h>
#include <string.h>

#define DIGEST_TIMEOUT (10 * XM_NS_PER_S) /* while the guest stands still, source_time_left cuts it */

static int compare(struct source *m, const struct xm_msg *msg, const struct xm_digest *ours, const char *what)
{
    struct xm_digest theirs = {0};

    if (msg->reply_len == sizeof theirs)
        memcpy(&theirs, msg->reply, sizeof theirs);
    m->report.digest.frames += ours->frames;
    m->report.digest.bytes += ours->bytes;
    m->report.digest.sum += ours->sum;
    if (xm_digest_equal(ours, &theirs))
        return 0;
    return xm_error_set(&m->error, EBADMSG,
                        "%s: the two sides differ (sent %llu frames, %llu bytes; applied %llu frames, %llu "
                        "bytes): this must "
                        "not happen, please report it",
                        what, (unsigned long long)ours->frames, (unsigned long long)ours->bytes,
                        (unsigned long long)theirs.frames, (unsigned long long)theirs.bytes);
}

static struct xm_msg ask_digest(const struct source *m, uint8_t type, unsigned object)
{
    return (struct xm_msg){.type = type, .object = (uint16_t)object, .after = m->attempt, .urgent = true};
}

/* All are asked for at once: the guest stands still. */
int source_compare(struct source *m)
{
    unsigned disks = m->storage ? m->machine->disks : 0;
    struct xm_digest ours[VM_DISKS_MAX + 1];
    struct xm_msg msg[VM_DISKS_MAX + 1];

    _Static_assert(VM_DISKS_MAX < XM_CALLS_MAX, "a call for each disk, and one for memory");
    for (unsigned i = 0; i < disks; i++) {
        struct xm_disk_status st;
        xm_disk_status(m->machine->disk[i].disk, &st);
        ours[i] = st.digest;
        msg[i] = ask_digest(m, XM_FRAME_DISK_DIGEST, i);
    }
    xm_precopy_digest(m->precopy, &ours[disks]);
    msg[disks] = ask_digest(m, XM_FRAME_RAM_DIGEST, 0);
    int r = xm_transport_calls(m->to, msg, disks + 1, source_time_left(m, DIGEST_TIMEOUT), &m->error);
    m->report.digest = (struct xm_digest){0};
    for (unsigned i = 0; i <= disks; i++) {
        if (!r)
            r = compare(m, &msg[i], &ours[i], i < disks ? m->machine->disk[i].spec->name : "memory");
        free(msg[i].reply);
    }
    return r;
}
