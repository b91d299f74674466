/* base/spawn.h: starting other programs, and becoming a daemon.
 *
 * argv ends with NULL; argv[0] is looked up in PATH. The new program has /dev/null as its input, no
 * descriptors of ours but those named in `keep`, no blocked signals and all signals at their defaults.
 */
#ifndef XM_BASE_SPAWN_H
#define XM_BASE_SPAWN_H

#include <stdint.h>
#include <sys/types.h>
#include "base/error.h"

struct xm_spawn_opts {
    const char *log_path; /* output and errors are appended to it; NULL: /dev/null */
    const int *keep;      /* descriptors to hand on under the same numbers, ends with -1; NULL: none */
};

/* Starts a child that the caller has to wait for. Its pid, or -errno when it could not be started (exec's
 * failure included). Any thread. */
pid_t xm_spawn(const char *const argv[], const struct xm_spawn_opts *opts, struct xm_error *e);

/* Runs a program to its end, at most timeout_ns (then it is killed: -ETIMEDOUT). 0 when it exits with 0; else
 * -EIO and a sentence made of the first line that it wrote on its standard error. Does not wait for daemons
 * that it leaves behind. out, unless NULL: malloc'ed text of its output (the first MiB), also on failure;
 * NULL when it was not started. Any thread. */
int xm_run(const char *const argv[], uint64_t timeout_ns, char **out, struct xm_error *e);

/* Goes on in a child without terminal, in /, input and output /dev/null, errors appended to log_path (NULL:
 * kept). The parent waits for xm_daemon_ready and ends: with 0 when the daemon runs, with 1 and the failure
 * on its standard error when not or when the daemon died before it said so. To be called before there are
 * threads. 0 (in the child, with *ready) or -errno. */
int xm_daemonize(const char *log_path, int *ready, struct xm_error *e);
/* failure NULL: we run. Closes `ready`; a negative one is ignored. */
void xm_daemon_ready(int ready, const char *failure);

#endif
