/* SPDX-License-Identifier: MIT */
/* base/jsonl.h: JSON objects, one a line, over a stream socket: the protocol of the agent, of the shim,
 * and of QMP. How long a line is, how deep its values nest and how many there are is bounded by who sends
 * it, and judged before it is parsed: a value of 2 bytes costs some 100 of memory. What is beyond, no JSON
 * or no object is an error that ends the connection. One owner. */
#ifndef XM_BASE_JSONL_H
#define XM_BASE_JSONL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>
#include "base/error.h"

#define XM_JSONL_MAX (1u << 20) /* bytes of a line, whoever sends it */

struct xm_json_limits {
    size_t bytes; /* of a line, at most XM_JSONL_MAX */
    unsigned depth, values;
};
extern const struct xm_json_limits xm_json_local;   /* this host's own programs and QEMU: 1 MiB, 64, 131072 */
extern const struct xm_json_limits xm_json_answer;  /* a peer that was asked: 1 MiB, 16, 65536 */
extern const struct xm_json_limits xm_json_request; /* a peer that asks: 256 KiB, 16, 8192 */

/* Parses one object; a new reference, or NULL with a sentence. */
json_t *xm_json_parse(const char *text, size_t len, const struct xm_json_limits *, struct xm_error *);

struct xm_jsonl {
    int fd;                              /* owned; -1: closed */
    const struct xm_json_limits *limits; /* xm_json_local at first */
    char *buf;
    size_t start, len, cap, scanned;
    int passed_fd; /* the last descriptor that came with SCM_RIGHTS, or -1; whoever takes it sets -1 */
};

void xm_jsonl_init(struct xm_jsonl *, int fd);
void xm_jsonl_close(struct xm_jsonl *); /* and a passed_fd that nobody has taken */
/* Reads what is there without waiting (a socket watched by level). 1: go on, 0: the peer closed, -errno. Call
 * xm_jsonl_next until NULL after it. */
int xm_jsonl_fill(struct xm_jsonl *, struct xm_error *);
/* The next whole line as an object (a new reference), NULL when there is none; *bad is set when the line is
 * no JSON object. */
json_t *xm_jsonl_next(struct xm_jsonl *, bool *bad, struct xm_error *);
/* Waits for one object until the deadline (xm_now() scale; UINT64_MAX: for ever). NULL: closed, bad or too
 * late (-> e). */
json_t *xm_jsonl_recv(struct xm_jsonl *, uint64_t deadline, struct xm_error *);
/* Writes the object and a newline, waiting until all is written (at most 10 s for a reader that does not
 * read). fd >= 0 is passed along with SCM_RIGHTS (unix sockets). `steals` the reference. 0 or -errno. */
int xm_jsonl_send(int fd, json_t *steals, int pass_fd, struct xm_error *);

/* Connects to a unix socket. Returns the descriptor or -errno. */
int xm_unix_connect(const char *path, struct xm_error *);
/* Makes a unix socket with mode 0600 that nobody listens on yet, replacing one that nobody listens on.
 * Descriptor or -errno. */
int xm_unix_bind(const char *path, struct xm_error *);
/* Makes a listening unix socket (blocking) with mode 0600, replacing one that nobody listens on. Descriptor
 * or -errno. */
int xm_unix_listen(const char *path, struct xm_error *);

/* A JSON file, replaced atomically and durable when it returns 0; `o` NULL: no memory, or a text that is not
 * UTF-8. */
int xm_json_save(const char *path, const json_t *o, struct xm_error *);
/* An object of at most 4 MiB; -ENOENT: there is none. */
int xm_json_load(const char *path, json_t **, struct xm_error *);

/* Field access with checks, for objects that came from outside. Missing or of another type: the default. */
const char *xm_json_str(const json_t *o, const char *key, const char *otherwise);
int64_t xm_json_int(const json_t *o, const char *key, int64_t otherwise);
double xm_json_real(const json_t *o, const char *key, double otherwise);
bool xm_json_bool(const json_t *o, const char *key, bool otherwise);
/* The array has this text among its members. NULL: no. */
bool xm_json_lists(const json_t *array, const char *text);

#endif
