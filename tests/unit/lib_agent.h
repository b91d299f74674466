/* SPDX-License-Identifier: MIT */
/* lib_agent: an agent in a child process with a directory of its own, and a shim for it that only speaks the
 * protocol. */
#ifndef LIB_AGENT_H
#define LIB_AGENT_H

#include "base/base.h"
#include "tests/unit/lib_deny.h"
#include <sys/types.h>

struct test_agent {
    char dir[64]; /* with run/, state/, ds/, agent.log, spec.ini */
    pid_t pid;
    unsigned port;  /* of its TCP listener, on 127.0.0.1 */
    enum deny deny; /* to the agent, and to what it starts; set between make and start */
};

/* This program is the agent's shim when it is called as one: to be called first in main(). True: it was;
 * return `status`. */
bool fake_shim_main(int argc, char **argv, int *status);

/* Host «hosta» on 127.0.0.1 with the peer «hostb» on 127.0.0.2 (port peer_port), one datastore «ds». */
int test_agent_make(struct test_agent *, unsigned peer_port);
int test_agent_start(struct test_agent *); /* returns when it answers */
void test_agent_stop(struct test_agent *,
                     int signal);            /* waits for its end; its status must be 0 with SIGTERM */
void test_agent_remove(struct test_agent *); /* shims too */

/* One request on the unix socket: the last answer. The caller's reference. Format as json_pack's. */
json_t *ask(struct test_agent *, json_t *request);
json_t *ask_shim(struct test_agent *, const char *vm, json_t *request);
int connect_from(const char *local, unsigned port); /* TCP to 127.0.0.1 */
/* As hostb, over TCP: one request, its answer. */
json_t *ask_as_peer(struct test_agent *, json_t *request);
char *in_dir(const struct test_agent *, const char *below); /* one of four static buffers */
bool exists(const struct test_agent *, const char *below);
pid_t shim_pid(const struct test_agent *, const char *vm);
/* Waits, at most 10 s. */
bool until_gone(const struct test_agent *, const char *below);
bool until_no_vm(struct test_agent *, const char *vm);

#endif
