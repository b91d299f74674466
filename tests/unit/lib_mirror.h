/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_mirror.h: a test's own mirrored disk (lib_rig.h), and gates that hold its requests back. */
#ifndef TESTS_LIB_MIRROR_H
#define TESTS_LIB_MIRROR_H

#include "lib_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

extern struct rig *r; /* the running test's */
/* cmocka's set-up and tear-down. */
int rig_setup(void **state);
int rig_setup_near(void **state);
int rig_setup_tiny(void **state); /* a mirror buffer with room for four writes of 16 KiB */
int rig_teardown(void **state);
#define MIRROR(name)      cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
#define MIRROR_NEAR(name) cmocka_unit_test_setup_teardown(name, rig_setup_near, rig_teardown)
#define MIRROR_TINY(name) cmocka_unit_test_setup_teardown(name, rig_setup_tiny, rig_teardown)

/* Gates for a disk of the rig: true holds the request back. */
bool hold_writes(struct sim_disk *, struct xm_io *);
bool hold_reads(struct sim_disk *, struct xm_io *);
bool hold_first_chunk_reads(struct sim_disk *, struct xm_io *);
bool hold_flushes(struct sim_disk *, struct xm_io *);
void ungate(struct sim_disk *); /* what was held goes on, and nothing is held any more */

/* Requests that rig_io does not make. */
struct status_breq {
    struct xm_breq breq;
    int *status;
};

void keep_status(struct xm_breq *, int status);

#endif
