/* SPDX-License-Identifier: MIT */
#include "vm/cost.h"

#include <stdlib.h>
#include <string.h>

/* Measured (docs/facts.md, «What a switch takes by a VM's devices»). */
#define BASE (19 * XM_NS_PER_MS) /* one disk, one NIC */

static const struct {
    uint64_t disk, nic;                                                              /* each further one */
} more[] = {{6 * XM_NS_PER_MS, 2 * XM_NS_PER_MS}, {2 * XM_NS_PER_MS, XM_NS_PER_MS}}; /* under TCG, KVM */

/* So that 95 of 100 moves take no more than a fifth beyond it (docs/notebook.md, «What was estimated»). */
#define USUAL(median) ((median) + (median) / 5 * 3)

#define MOST (10 * XM_NS_PER_S) /* nothing waits for longer in a switch */

uint64_t switch_cost_guess(const struct vm_spec *vm)
{
    bool kvm = vm->accel && !strcmp(vm->accel, "kvm");

    return BASE + (vm->disks > 1 ? (vm->disks - 1) * more[kvm].disk : 0) +
           (vm->nics > 1 ? (vm->nics - 1) * more[kvm].nic : 0);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

uint64_t switch_cost_expect(const struct switch_cost *c, const struct vm_spec *vm, uint64_t budget_ns)
{
    struct switch_cost sorted = *c;

    if (c->n < 2)
        return switch_cost_guess(vm);
    qsort(sorted.ns, c->n, sizeof *sorted.ns, by_size);
    uint64_t usual = USUAL(sorted.ns[(c->n - 1) / 2]);
    return usual < budget_ns ? usual : sorted.ns[0];
}

void switch_cost_add(struct switch_cost *c, uint64_t ns)
{
    memmove(c->ns + 1, c->ns, (SWITCH_COSTS - 1) * sizeof *c->ns);
    c->ns[0] = XM_MIN(XM_MAX(ns, 1u), MOST);
    c->n = XM_MIN(c->n + 1, SWITCH_COSTS);
}

json_t *switch_cost_pack(const struct switch_cost *c)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < c->n; i++)
        json_array_append_new(list, json_integer((json_int_t)c->ns[i]));
    return list;
}

void switch_cost_unpack(struct switch_cost *c, const json_t *list)
{
    size_t i;
    json_t *v;

    *c = (struct switch_cost){0};
    json_array_foreach (list, i, v) {
        json_int_t ns = json_integer_value(v);
        if (ns > 0 && (uint64_t)ns <= MOST && c->n < SWITCH_COSTS)
            c->ns[c->n++] = (uint64_t)ns;
    }
}

void switch_cost_load(const char *dir, struct switch_cost *c)
{
    char *path = xm_printf("%s/switch.json", dir);
    struct xm_error e = {0};
    json_t *o = NULL;

    xm_json_load(path, &o, &e);
    switch_cost_unpack(c, json_object_get(o, "took_ns"));
    json_decref(o);
    free(path);
}

int switch_cost_save(const char *dir, const struct switch_cost *c, struct xm_error *e)
{
    char *path = xm_printf("%s/switch.json", dir);
    json_t *o = json_pack("{s:o}", "took_ns", switch_cost_pack(c));
    int r = xm_json_save(path, o, e);

    json_decref(o);
    free(path);
    return r;
}
