/* SPDX-License-Identifier: MIT */
/* See verdict.h. */
#include "vm/verdict.h"

#include <string.h>

bool verdict_open(const struct owner_record *ours)
{
    return ours->owner == OWNER_PROMISED || (ours->owner == OWNER_GIVEN && !ours->settled);
}

const char *verdict_peer(const struct owner_record *ours)
{
    return ours->owner == OWNER_PROMISED ? ours->from : ours->to;
}

static enum verdict doubt(const struct owner_record *ours, const struct owner_record *theirs,
                          struct xm_error *why)
{
    const char *peer = verdict_peer(ours);

    if (theirs->owner == OWNER_NONE)
        xm_error_set(why, ENODATA,
                     "%s has no record of it, though it must have had one: has its state directory been "
                     "lost? Nothing is changed here",
                     peer);
    else
        xm_error_set(why, ENODATA,
                     "the records do not decide it: here «%s» with epoch %llu, at %s «%s%s%s» with epoch "
                     "%llu. Nothing is changed here",
                     owner_side_name(ours->owner), (unsigned long long)ours->epoch, peer,
                     owner_side_name(theirs->owner), theirs->owner == OWNER_GIVEN ? " to " : "",
                     theirs->owner == OWNER_GIVEN ? theirs->to : "", (unsigned long long)theirs->epoch);
    return VERDICT_DOUBT;
}

static enum verdict promised(const char *self, const struct owner_record *ours,
                             const struct owner_record *theirs, uint64_t *epoch, struct xm_error *why)
{
    bool to_us = theirs->owner == OWNER_GIVEN && !strcmp(theirs->to, self);

    *epoch = ours->epoch;
    if (to_us && theirs->epoch == ours->epoch)
        return VERDICT_TAKE;
    if (theirs->owner == OWNER_MINE && theirs->epoch + 1 >= ours->epoch)
        return VERDICT_DISCARD;
    if (theirs->owner == OWNER_GIVEN && !to_us && theirs->epoch >= ours->epoch) /* so never to us */
        return VERDICT_DISCARD;
    return doubt(ours, theirs, why);
}

static enum verdict given(const char *self, const struct owner_record *ours,
                          const struct owner_record *theirs, bool runs, uint64_t *epoch, struct xm_error *why)
{
    bool later = theirs->epoch > ours->epoch;

    *epoch = theirs->epoch;
    if (theirs->owner == OWNER_MINE && (later || (theirs->epoch == ours->epoch && (theirs->settled || runs))))
        return VERDICT_SETTLED;
    if (theirs->owner == OWNER_MINE && theirs->epoch == ours->epoch)
        return VERDICT_THEIRS;
    bool to_us = !strcmp(theirs->to, self);
    /* With our epoch: it has given way to a host that had taken an earlier offer of ours by a word. */
    if (theirs->owner == OWNER_GIVEN && (later || (theirs->epoch == ours->epoch && !to_us)))
        return to_us ? VERDICT_BACK : VERDICT_SETTLED;
    if (theirs->owner == OWNER_PROMISED && theirs->epoch == ours->epoch)
        return VERDICT_TELL;
    return doubt(ours, theirs, why);
}

enum verdict verdict_of(const char *self, const struct owner_record *ours, const struct owner_record *theirs,
                        bool runs, uint64_t *epoch, struct xm_error *why)
{
    if (!verdict_open(ours))
        return VERDICT_NOTHING;
    return ours->owner == OWNER_PROMISED ? promised(self, ours, theirs, epoch, why)
                                         : given(self, ours, theirs, runs, epoch, why);
}
