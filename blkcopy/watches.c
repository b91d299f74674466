/* SPDX-License-Identifier: MIT */
#include "blkcopy/watches.h"

#include <fcntl.h>
#include <stdlib.h>

int watches_add(struct watches *t, struct xm_watch *w)
{
    uint32_t i = 0;

    if (fcntl(w->fd, F_GETFD) < 0)
        return -EBADF;
    while (i < t->count && (t->slot[i].watch || t->slot[i].armed))
        i++;
    if (i == t->count) {
        uint32_t count = t->count ? 2 * t->count : 16;
        struct watch_slot *slot = realloc(t->slot, count * sizeof(*slot));
        if (!slot)
            return -ENOMEM;
        for (uint32_t k = t->count; k < count; k++)
            slot[k] = (struct watch_slot){0};
        t->slot = slot;
        t->count = count;
    }
    t->slot[i].watch = w;
    t->slot[i].generation = ++t->generation;
    w->slot = i;
    w->active = true;
    return 0;
}

void watches_remove(struct watches *t, struct xm_watch *w)
{
    t->slot[w->slot].watch = NULL;
    w->active = false;
}

uint64_t watches_key(const struct watches *t, uint32_t slot)
{
    return (uint64_t)t->slot[slot].generation << 32 | slot << WATCH_KEY_SHIFT;
}

struct watch_slot *watches_find(struct watches *t, uint64_t key)
{
    uint32_t i = (uint32_t)key >> WATCH_KEY_SHIFT;

    return i < t->count && t->slot[i].generation == key >> 32 ? &t->slot[i] : NULL;
}

void watches_fini(struct watches *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->slot[i].watch)
            t->slot[i].watch->active = false;
    }
    free(t->slot);
    *t = (struct watches){0};
}
