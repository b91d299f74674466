/* SPDX-License-Identifier: MIT */
/* cli/verbs.h: the one table of verbs. */
#ifndef XM_CLI_VERBS_H
#define XM_CLI_VERBS_H

#include "cli/options.h"

struct verb {
    const char *name;
    const char *words; /* what stands behind it, for the help: "VM HOST[:DATASTORE]" */
    int min, max;      /* how many words */
    unsigned options;  /* OPT_BITs that it takes besides the common ones */
    unsigned needs;    /* of these, those it cannot do without */
    const char *help;
    bool follows; /* a migration's events come, and `done` or `failed` is the last */
    bool moves;   /* runs migrations, one after the other, and tells of them */
    bool changes; /* changes something: when the connection is lost, what became of it is not known */
    /* Checks what the table cannot say and fills the request. 0 or -EINVAL with the sentence. */
    int (*request)(const struct args *a, json_t *request, struct xm_error *e);
    /* Of verbs that are more than a request and its answer; takes over the request. NULL: it is no more.
     * Returns the exit status. */
    int (*run)(const struct args *a, json_t *request, const struct cli_io *io);
    /* Prints the agent's answer (ok is true in it). NULL: nothing to say. Returns the exit status. */
    int (*print)(const struct args *a, const json_t *answer, const struct cli_io *io);
};
extern const struct verb verb_table[]; /* ends with name NULL; the first is move */

const struct verb *verb_find(const char *name);
/* The request that the command line stands for: a new reference, or NULL. */
json_t *verb_request(const struct args *a, struct xm_error *e);

#endif
