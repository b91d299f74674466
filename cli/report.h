/* SPDX-License-Identifier: MIT */
/* cli/report.h: the agent's answers and a migration's result as people read them. Fields that are missing are
 * left out. */
#ifndef XM_CLI_REPORT_H
#define XM_CLI_REPORT_H

#include "cli/verbs.h"

/* For the table of verbs: print an answer, return the exit status. */
int report_text(const struct args *a, const json_t *answer, const struct cli_io *io);
int report_check(const struct args *a, const json_t *answer, const struct cli_io *io);
int report_list(const struct args *a, const json_t *answer, const struct cli_io *io);
int report_show(const struct args *a, const json_t *answer, const struct cli_io *io);
int report_undefine(const struct args *a, const json_t *answer, const struct cli_io *io);
int report_dump(const struct args *a, const json_t *answer, const struct cli_io *io);
int report_logs(const struct args *a, const json_t *answer, const struct cli_io *io);
int report_jobs(const struct args *a, const json_t *answer, const struct cli_io *io);
int report_plan(const struct args *a, const json_t *answer, const struct cli_io *io);

/* The `done` event of a migration; first: its `job` event, which may say more, or NULL. */
void report_done(const json_t *done, const json_t *first, const struct cli_io *io);
/* A `failed` event, or an answer with ok false: says why, and where the VM is. Returns the exit status. */
int report_failure(const json_t *failure, const struct cli_io *io);
/* The exit status that such an object stands for. */
int exit_of_failure(const json_t *failure);

#endif
