/* SPDX-License-Identifier: MIT */
/* cli/client.h: one request to the agent and its answer. */
#ifndef XM_CLI_CLIENT_H
#define XM_CLI_CLIENT_H

#include "cli/verbs.h"

/* One request and its answer, for verbs that do something with it: a new reference (ok is true in it), or
 * NULL: it has been said why, and *status is what to exit with. Steals the request. */
json_t *client_ask(const struct args *a, json_t *request, const struct cli_io *io, int *status);

/* Sends the request (steals the reference), follows the answer, prints it. Returns the exit status. SIGINT
 * and SIGTERM are blocked meanwhile: they end the waiting, never the migration. */
int client_run(const struct args *a, json_t *request, const struct cli_io *io);

#endif
