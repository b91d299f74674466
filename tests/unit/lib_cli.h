/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_cli.h: the program, and an agent that takes one request and says what it is told to. */
#ifndef LIB_CLI_H
#define LIB_CLI_H

#include "cli/cli.h"
#include "tests/unit/lib_tmpdir.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

extern char *cli_out, *cli_err; /* what the program wrote */
extern json_t *cli_asked;       /* what it asked */
extern bool cli_full;           /* its output goes where nothing can be written; cli_out is NULL then */
/* Runs `xmigrate line`. The agent's lines (NULL: there is no agent), and whether it then hangs up or waits
 * for the other to do it. Returns the exit status. */
int run_cli(const char *line, const char *const *lines, bool hang_up, bool terminal);
void expect_out(const char *text);
void expect_in(const char *all, const char *part);
int cli_tear_down(void **state);
#define WITH_AGENT(f) cmocka_unit_test_setup_teardown(f, tmpdir_make, cli_tear_down)

#define INTERRUPT "!" /* instead of a line: interrupts the program */

#define SAYS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define JOB       "{\"event\":\"job\",\"job\":\"7\"}"
#define DISKS                                                                                                \
    "{\"event\":\"progress\",\"state\":\"disks\",\"bytes_done\":52428800,\"bytes_total\":104857600,"         \
    "\"rate\":1e8,\"eta_s\":0.5,\"disks\":[{\"name\":\"a\",\"mode\":\"async\"},{\"name\":\"b\",\"mode\":"    \
    "\"async\"}]}"
#define DONE                                                                                                 \
    "{\"event\":\"done\",\"vm\":\"web1\",\"source\":\"hosta\",\"destination\":\"hostb\",\"total_s\":12.5,"   \
    "\"downtime_ms\":21.25,\"disk_bytes\":1073741824,\"ram_bytes\":536870912,\"wire_bytes\":1610612736,"     \
    "\"rounds\":4,\"mirror\":{\"switches\":2,\"gave_up\":0},\"digest\":\"equal\"}"

#endif
