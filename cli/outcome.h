/* SPDX-License-Identifier: MIT */
/* cli/outcome.h: how a migration, or a request that was refused, has ended. Fields that are missing are left
 * out. */
#ifndef XM_CLI_OUTCOME_H
#define XM_CLI_OUTCOME_H

#include "cli/cli.h"

/* The `done` event of a migration; first: its `job` event, which may say more, or NULL. */
void report_done(const json_t *done, const json_t *first, const struct cli_io *io);
/* A `failed` event, or an answer with ok false: says why, and where the VM is. Returns the exit status. */
int report_failure(const json_t *failure, const struct cli_io *io);
/* The exit status that such an object stands for. */
int exit_of_failure(const json_t *failure);

#endif
