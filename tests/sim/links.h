/* SPDX-License-Identifier: MIT */
/* The simulator's links, for what goes over them: links.c (calls, device state), disks.c, ram.c. */
#ifndef XM_TESTS_SIM_LINKS_H
#define XM_TESTS_SIM_LINKS_H

#include "net/net.h"
#include "tests/sim/sim.h"

struct xm_links {
    struct xm_links_opts o;
    struct xm_transport transport;
    struct proc *proc;
    struct obj *socket;
    int fd;
    struct xm_links *peer;
    bool up, was_up, freed, silent;
    unsigned turn; /* of its silences */
    struct xm_error error, said;
    unsigned serving;
    struct xm_links *next;
};

#endif
