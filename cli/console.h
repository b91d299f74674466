/* SPDX-License-Identifier: MIT */
/* cli/console.h: `xmigrate console`. */
#ifndef XM_CLI_CONSOLE_H
#define XM_CLI_CONSOLE_H

#include "cli/verbs.h"

#define CONSOLE_ESCAPE 0x1d /* control-], as telnet and virsh have it */

int console_run(const struct args *a, json_t *request, const struct cli_io *io);

#endif
