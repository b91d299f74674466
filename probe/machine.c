/* SPDX-License-Identifier: MIT */
/* probe/machine.c: can a QEMU make a machine, and has that a PCI bus? Its list of machine types does not
 * say, so the machine is made, with no guest in it, asked, and ended: 0.3 s. */
#include "probe/probe.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define ASK_TIMEOUT (10 * XM_NS_PER_S)
#define KEPT        16

struct tried {
    const struct qemu_facts *of; /* one for each program file */
    char *what;                  /* machine and accelerator */
    bool pci;
    struct xm_error error;
};

/* False: it could not be found out, and QEMU has said nothing against it. */
static bool try_it(const char *program, const char *machine, const char *accel, struct tried *t)
{
    static const struct xm_run_input input = {"{\"execute\":\"qmp_capabilities\"}\n"
                                              "{\"execute\":\"query-pci\",\"id\":\"asked\"}\n",
                                              "asked", "{\"execute\":\"quit\"}\n"};
    const char *argv[] = {program, "-machine", machine, "-accel", accel,   "-nodefaults", "-no-user-config",
                          "-S",    "-display", "none",  "-qmp",   "stdio", NULL};
    char *out = NULL;

    t->pci = true;
    int r = xm_run_input(argv, &input, ASK_TIMEOUT, &out, &t->error);
    bool told = !r || r == -EIO;
    t->error.code = r && told ? EINVAL : 0;
    for (char *line = out, *next; !r && line && *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next)
            *next++ = 0;
        json_t *o = json_loads(line, 0, NULL), *buses = json_object_get(o, "return");
        if (!strcmp(xm_json_str(o, "id", ""), "asked"))
            t->pci = !json_is_array(buses) || json_array_size(buses);
        json_decref(o);
    }
    free(out);
    return told;
}

int qemu_machine_try(const char *program, const char *machine, const char *accel, bool *pci,
                     struct xm_error *e)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct tried kept[KEPT];
    static unsigned next;
    const struct qemu_facts *q = qemu_facts(program, NULL);
    struct tried *t = NULL;

    *pci = true;
    if (!q)
        return 0;
    char *what = xm_printf("%s %s", machine, accel);
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < KEPT && !t; i++) {
        if (kept[i].of == q && !strcmp(kept[i].what, what))
            t = &kept[i];
    }
    if (!t) {
        t = &kept[next++ % KEPT];
        free(t->what);
        *t = (struct tried){.of = q, .what = what};
        what = NULL;
        if (!try_it(program, machine, accel, t) || t->error.code)
            t->of = NULL; /* the next one asks again: the host may have been busy, or a file missing */
    }
    *pci = t->pci;
    int r = t->error.code ? xm_error_set(e, t->error.code, "%s", t->error.text) : 0;
    pthread_mutex_unlock(&lock);
    free(what);
    return r;
}
