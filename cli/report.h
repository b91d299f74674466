/* SPDX-License-Identifier: MIT */
/* cli/report.h: the agent's answers to verbs as people read them. Fields that are missing are left out. */
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

#endif
