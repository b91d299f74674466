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
/* The same as another one, which is a [peer] with that address. */
json_t *ask_as(struct test_agent *, const char *name, const char *address, json_t *request);
char *in_dir(const struct test_agent *, const char *below); /* one of four static buffers */
bool exists(const struct test_agent *, const char *below);
pid_t shim_pid(const struct test_agent *, const char *vm);
/* Waits, at most 10 s. */
bool until_gone(const struct test_agent *, const char *below);
bool until_no_vm(struct test_agent *, const char *vm);

/* ---- one agent a program: these are about it ---- */

extern struct test_agent test_agent;
int agent_set_up(void **state); /* of a test: made and started; at its peer there is nobody */
int agent_tear_down(void **state);
int peer_set_up(void **state); /* at its peer listens this program: *state is that socket (int *) */
int peer_tear_down(void **state);
void need_qemu(void); /* skips the test where there is none */
int agent_socket(void);

/* Take the answer: ok, or (want_exit) refused with that status; and each of the texts (NULL ends them) in
 * its sentence. */
void must(json_t *answer, int want_exit);
void must_refuse(json_t *answer, int want_exit, ...) __attribute__((sentinel));
json_t *last_of(struct xm_jsonl *);   /* of a request's events and answer: the answer */
json_t *start_request(void);          /* of web1, by spec.ini */
const char *state_of(const char *vm); /* "": it is not there; static */
unsigned files_in_ds(void);

/* This program as hostb. A request to prepare web1, and an answer to one. */
json_t *prepare_request(const char *job);
json_t *prepared(void);
/* The next request; its answer is the caller's, or this one. */
json_t *serve_begin(int listener, struct xm_jsonl *);
json_t *serve_one(int listener, json_t *answer);

#endif
