/* SPDX-License-Identifier: MIT */
/* xmigrate: see cli/cli.h. */
#include "cli/cli.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct cli_io io = {.out = stdout, .err = stderr, .terminal = isatty(STDOUT_FILENO), .columns = 80};
    struct winsize w;

    xm_log_open("xmigrate", XM_LOG_WARN);
    if (io.terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col)
        io.columns = w.ws_col;
    return cli_run(argc, argv, &io);
}
