/* SPDX-License-Identifier: MIT */
/* cli/cli.h: the command `xmigrate`. It turns a command line into one request to the agent, and the agent's
 * answer into text.
 *
 *   options.c   the table of options; parsing; --help
 *   verbs.c     the table of verbs; the request of each
 *   client.c    the connection: sends the request, follows the events until the answer is there
 *   progress.c  a migration's events as a line on a terminal, or as few lines elsewhere
 *   report.c    the answers to verbs as people read them
 *   outcome.c   how a migration has ended: its result, or why it failed and where the VM is
 *   fields.c    an answer's fields as text
 *   text.c      tables, and text from outside made harmless for a terminal
 *
 * Everything is one thread. Nothing here decides anything about a VM: what is refused here is a command line.
 */
#ifndef XM_CLI_H
#define XM_CLI_H

#include <stdio.h>
#include "base/base.h"

#define CLI_SOCKET "/run/xmigrate/agent.sock"

enum cli_exit {
    CLI_DONE = 0,
    CLI_FAILED = 1, /* the VM is safe where it was */
    CLI_USAGE = 2,
    CLI_REFUSED = 3, /* by checks; nothing was changed */
    CLI_UNKNOWN = 4, /* interrupted, or the connection was lost: what was said tells how to find out */
};

struct cli_io {
    FILE *out, *err;
    bool terminal;    /* out is one: progress is redrawn in place */
    unsigned columns; /* its width */
};

/* All of the program but the process around it. Returns an enum cli_exit. */
int cli_run(int argc, char **argv, const struct cli_io *io);

#endif
