/* SPDX-License-Identifier: MIT */
/* Frames that came for the guest while it stood still (machine/late.c), from the source to the destination:
 * the call «late», with frames of one NIC, each behind its length (4 bytes, little endian), in base64. */
#include "migrate/destination.h"
#include "migrate/source.h"

#include <endian.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define ONE_CALL (128u << 10) /* bytes of frames in one; the limit of a call is twice that */
#define ANSWER   XM_NS_PER_S  /* the destination makes its record durable first */

struct bundle {
    unsigned char bytes[ONE_CALL];
    char text[ONE_CALL / 3 * 4 + 8];
    size_t n;
};

/* How many frames of this NIC it has now. */
static unsigned fill(struct source *m, unsigned nic, struct bundle *b)
{
    unsigned frames = 0;

    b->n = 0;
    while (b->n + 4 + LATE_FRAME_MAX <= sizeof b->bytes) {
        ssize_t n = late_next(m->machine, nic, m->seen.stop, b->bytes + b->n + 4);
        if (n < 0)
            break;
        uint32_t length = htole32((uint32_t)n);
        memcpy(b->bytes + b->n, &length, sizeof length);
        b->n += sizeof length + (size_t)n;
        frames++;
    }
    return frames;
}

/* A bridge that learns no addresses brings all that comes for it for ever. */
static bool send_nic(struct source *m, unsigned nic, struct bundle *b, uint64_t until)
{
    unsigned frames;

    while (xm_now() < until && (frames = fill(m, nic, b))) {
        struct xm_error e = {0};
        xm_base64_encode(b->bytes, b->n, b->text);
        json_t *o = json_pack("{s:s s:i s:s}", "call", "late", "nic", (int)nic, "frames", b->text);
        json_t *reply = source_call(m, o, ANSWER, &e);
        if (!reply) {
            xm_log(XM_LOG_INFO, "VM %s: %u frames for it are lost: %s", m->machine->spec.name, frames,
                   e.text);
            return false;
        }
        json_decref(reply);
        m->report.late_frames += frames;
    }
    return true;
}

void source_send_late(struct source *m, uint64_t until)
{
    struct bundle *b = m->takes_late && m->seen.stop ? malloc(sizeof *b) : NULL;
    bool over, good = b != NULL;

    while (good) {
        over = late_over(m->machine); /* before the last look */
        for (unsigned i = 0; good && i < m->machine->spec.nics; i++)
            good = send_nic(m, i, b, until);
        if (over || xm_now() >= until)
            break;
        poll(NULL, 0, 1);
    }
    late_drop(m->machine);
    free(b);
}

/* What a peer sends: at most a call's length of it is taken, and only for the guest. */
int destination_late(struct destination *dst, const json_t *o, struct xm_error *e)
{
    const char *text = xm_json_str(o, "frames", "");
    size_t len = strlen(text);
    json_int_t nic = xm_json_int(o, "nic", -1);
    unsigned char *bytes = malloc(len + 1);
    ssize_t n = bytes ? xm_base64_decode(text, bytes, len) : -1;
    int r = n < 0 || nic < 0 || nic >= VM_NICS_MAX ? xm_error_set(e, EPROTO, "no frames") : 0;

    if (!r && dst->handoff.state != HANDOFF_OWNER)
        r = xm_error_set(e, EPROTO, "the VM is not known to run here");
    for (size_t at = 0; !r && at + 4 <= (size_t)n;) {
        uint32_t length;
        memcpy(&length, bytes + at, sizeof length);
        length = le32toh(length);
        at += sizeof length;
        r = length > (size_t)n - at ? xm_error_set(e, EPROTO, "a frame that is cut")
                                    : late_give(dst->machine, (unsigned)nic, bytes + at, length, e);
        at += r ? 0 : length;
    }
    free(bytes);
    return r;
}
