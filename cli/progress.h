/* SPDX-License-Identifier: MIT */
/* cli/progress.h: a migration's `state` and `progress` events as text. */
#ifndef XM_CLI_PROGRESS_H
#define XM_CLI_PROGRESS_H

#include "cli/cli.h"

struct progress {
    const struct cli_io *io;
    char state[24];
    bool verifying;
    int step;         /* tenths done when a line was printed last (not on a terminal) */
    uint64_t printed; /* when that was */
    bool line;        /* an unfinished line stands on the terminal */
};

/* How often a line is printed, at least and at most, where nothing can be redrawn. */
#define PROGRESS_SELDOM_NS (10 * XM_NS_PER_S)

void progress_init(struct progress *p, const struct cli_io *io);
void progress_event(struct progress *p, const json_t *event, uint64_t now);
/* Percent of the bytes done, of those compared while disks are compared; never over 100; -1 when nothing is
 * known of it. */
int percent_of(const json_t *event);
/* Before anything else is written: takes the unfinished line away. */
void progress_clear(struct progress *p);
/* "disks    42 %  504.00 MiB of 1.20 GiB  410.00 MB/s  2.00 s left  mirror async". What the event lacks is
 * left out. */
void progress_format(char *buf, size_t cap, const char *state, const json_t *event);

#endif
