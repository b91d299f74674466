/* SPDX-License-Identifier: MIT */
/* cli/edit.h: `xmigrate edit`. */
#ifndef XM_CLI_EDIT_H
#define XM_CLI_EDIT_H

#include "cli/verbs.h"

int edit_run(const struct args *a, json_t *request, const struct cli_io *io);

#endif
