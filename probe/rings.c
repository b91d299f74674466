/* SPDX-License-Identifier: MIT */
/* probe/rings.c: does a QEMU tell its guests larger rings than its devices have? A QEMU of its own is
 * started for it, with a network card and no guest: what is asked of it is experimental (on 11.1 some of it
 * ends QEMU). A QEMU with a guest is asked such a question only about a device of ours while the guest is
 * paused (machine/guest.c). */
#include "probe/probe.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define ASK_TIMEOUT (10 * XM_NS_PER_S)
#define KEPT        16
#define RING        256 /* what a virtio-net has */

/* -1: it has not come to an end in time. */
static int64_t told(const char *program)
{
    static const struct xm_run_input input = {
        "{\"execute\":\"qmp_capabilities\"}\n"
        "{\"execute\":\"x-query-virtio-queue-status\",\"id\":\"asked\","
        "\"arguments\":{\"path\":\"/machine/peripheral/n/virtio-backend\",\"queue\":0}}\n",
        "asked", "{\"execute\":\"quit\"}\n"};
    const char *argv[] = {program,
                          "-machine",
                          "pc",
                          "-accel",
                          "tcg",
                          "-nodefaults",
                          "-no-user-config",
                          "-S",
                          "-display",
                          "none",
                          "-device",
                          "virtio-net-pci,id=n,romfile=,rx_queue_size=256",
                          "-qmp",
                          "stdio",
                          NULL};
    char *out = NULL;
    int64_t n = 0;

    int r = xm_run_input(argv, &input, ASK_TIMEOUT, &out, NULL);
    for (char *line = out, *next; line && *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next)
            *next++ = 0;
        json_t *o = json_loads(line, 0, NULL);
        if (!strcmp(xm_json_str(o, "id", ""), "asked"))
            n = xm_json_int(json_object_get(o, "return"), "vring-num-default", 0);
        json_decref(o);
    }
    free(out);
    return r && r != -EIO ? -1 : n;
}

bool qemu_facts_large_rings(const char *program)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        const struct qemu_facts *of; /* one for each program file */
        bool large;
    } kept[KEPT];
    static unsigned next;
    const struct qemu_facts *q = qemu_facts(program, NULL);
    bool large = false, known = false;

    if (!q)
        return false;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < KEPT; i++) {
        if (kept[i].of == q) {
            large = kept[i].large;
            known = true;
        }
    }
    if (!known) {
        int64_t ring = told(program);
        large = ring > RING;
        if (ring >= 0) { /* else the next one asks again */
            kept[next % KEPT].of = q;
            kept[next++ % KEPT].large = large;
        }
    }
    pthread_mutex_unlock(&lock);
    return large;
}
