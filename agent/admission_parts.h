/* SPDX-License-Identifier: MIT */
/* agent/admission_parts.h: what the files of admission share. */
#ifndef XM_ADMISSION_PARTS_H
#define XM_ADMISSION_PARTS_H

#include "agent/admission.h"

/* One more reason against it, or note. */
void because(json_t *reasons, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* QEMU here is older than the source's, in a move. */
bool admission_older(const struct host_facts *, const struct admission_request *);
/* Model and features of the VM's CPU. */
void admission_cpu(const struct host_facts *, const struct admission_request *, json_t *why);

#endif
