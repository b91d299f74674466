/* SPDX-License-Identifier: MIT */
/* agent/facts.h: what the host is, read from the kernel. Any thread. */
#ifndef XM_AGENT_FACTS_H
#define XM_AGENT_FACTS_H

#include "base/base.h"

const char *facts_cpu_flags(void); /* of the first CPU; "" when unknown; never freed */
uint64_t facts_memory_available(void);
uint64_t
    facts_shared_rss(pid_t); /* bytes of shared memory that the process has touched; 0: no such process */
bool facts_bridge(const char *name);
/* The speed of the interface that has this address, in bytes a second, 0 when unknown; *up: there is one and
 * it is up. */
uint64_t facts_link_speed(const char *address, bool *up);
/* Somebody listens there. The address in numbers. */
bool facts_port_busy(const char *address, uint16_t port);
/* strict: for a name from outside: a plain file that everybody may read, so that nothing secret gets into a
 * guest. */
bool facts_file(const char *path, bool strict);
/* There is such a plain file, and not everybody may read it: why facts_file says no. */
bool facts_file_private(const char *path);
uint64_t facts_file_size(const char *path); /* 0: it cannot be told */
/* Can QEMU be who [host] qemu_user says (NULL: nothing)? 0: it can. 1: it will be root's user, and a sentence
 * why. -errno: it will not be started, and why. */
int facts_qemu_user(const char *wanted, const char *program, bool kvm, struct xm_error *);

#endif
