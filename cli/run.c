/* SPDX-License-Identifier: MIT */
#include "cli/client.h"
#include "cli/verbs.h"

#define VERSION "0.1"

int cli_run(int argc, char **argv, const struct cli_io *io)
{
    struct args a;
    struct xm_error e = {0};
    json_t *request = NULL;

    if (args_parse(&a, argc, argv, &e) == 0) {
        if (args_has(&a, OPT_HELP)) {
            print_help(io->out, a.verb);
            return CLI_DONE;
        }
        if (args_has(&a, OPT_VERSION)) {
            fprintf(io->out, "xmigrate %s\n", VERSION);
            return CLI_DONE;
        }
        if (args_has(&a, OPT_OPTIONS)) {
            print_options(io->out);
            return CLI_DONE;
        }
        request = verb_request(&a, &e);
    }
    if (!request) {
        fprintf(io->err, "xmigrate: %s\n(xmigrate --help tells more)\n", e.text);
        return CLI_USAGE;
    }
    return a.verb->run ? a.verb->run(&a, request, io) : client_run(&a, request, io);
}
