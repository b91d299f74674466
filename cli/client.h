/* cli/client.h: one request to the agent and its answer. */
#ifndef XM_CLI_CLIENT_H
#define XM_CLI_CLIENT_H

#include "cli/verbs.h"

/* Sends the request (steals the reference), follows the answer, prints it. Returns the exit status. SIGINT
 * and SIGTERM are blocked meanwhile: they end the waiting, never the migration. */
int client_run(const struct args *a, json_t *request, const struct cli_io *io);

#endif
