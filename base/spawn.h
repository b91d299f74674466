/* SPDX-License-Identifier: MIT */
/* base/spawn.h: running other programs.
 *
 * argv ends with NULL; argv[0] is looked up in PATH. The new program has /dev/null as its input, no
 * descriptors of ours, no blocked signals and all signals at their defaults.
 */
#ifndef XM_BASE_SPAWN_H
#define XM_BASE_SPAWN_H

#include <stdint.h>
#include "base/error.h"

/* Runs a program to its end, at most timeout_ns (then it is killed with the children that are in its process
 * group, which is its own: -ETIMEDOUT). 0 when it exits with 0; else
 * -EIO and a sentence made of the first line that it wrote on its standard error. Does not wait for daemons
 * that it leaves behind. out, unless NULL: malloc'ed text of its output (the first MiB), also on failure;
 * NULL when it was not started. Any thread. */
int xm_run(const char *const argv[], uint64_t timeout_ns, char **out, struct xm_error *e);
/* What a program is told on its standard input, which stays open until the program ends: `first` at once;
 * `last` when its output (of which the first MiB is looked at) has a whole line with `until` in it. until
 * NULL: `last` is not told. At most 64 KiB together. The process ignores SIGPIPE. */
struct xm_run_input {
    const char *first, *until, *last;
};
/* xm_run with an input; the program is killed when the calling thread ends. NULL: /dev/null, and it is
 * not. */
int xm_run_input(const char *const argv[], const struct xm_run_input *, uint64_t timeout_ns, char **out,
                 struct xm_error *e);

#endif
