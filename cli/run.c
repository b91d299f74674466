/* SPDX-License-Identifier: MIT */
#include "cli/client.h"
#include "cli/verbs.h"

#include <errno.h>
#include <string.h>

#define VERSION "0.1"

static int run(struct args *a, int argc, char **argv, const struct cli_io *io)
{
    struct xm_error e = {0};
    json_t *request = NULL;

    if (args_parse(a, argc, argv, &e) == 0) {
        if (args_has(a, OPT_HELP)) {
            print_help(io->out, a->verb);
            return CLI_DONE;
        }
        if (args_has(a, OPT_VERSION)) {
            fprintf(io->out, "xmigrate %s\n", VERSION);
            return CLI_DONE;
        }
        if (args_has(a, OPT_OPTIONS)) {
            print_options(io->out);
            return CLI_DONE;
        }
        request = verb_request(a, &e);
    }
    if (!request) {
        xm_text_mend(e.text); /* words of the command line are quoted in it */
        if (args_has(a, OPT_JSON)) {
            json_t *o = json_pack("{s:b, s:s, s:i}", "ok", 0, "error", e.text, "exit", CLI_USAGE);
            if (a->verb && a->verb->follows)
                json_object_set_new(o, "event", json_string("failed"));
            json_dumpf(o, io->out, JSON_COMPACT);
            fputc('\n', io->out);
            json_decref(o);
        }
        fprintf(io->err, "xmigrate: %s\n(xmigrate --help tells more)\n", e.text);
        return CLI_USAGE;
    }
    return a->verb->run ? a->verb->run(a, request, io) : client_run(a, request, io);
}

/* What became of a verb whose output was lost. 1 would say that the VM is where it was, also of one that
 * has moved meanwhile. */
static int lost_output(const struct args *a, const struct cli_io *io, int why, int status)
{
    const struct verb *v = a->verb;
    bool asked = !args_has(a, OPT_HELP) && !args_has(a, OPT_VERSION) && !args_has(a, OPT_DRY_RUN);

    fprintf(io->err, "xmigrate: cannot write the output%s%s\n", why ? ": " : "", why ? strerror(why) : "");
    if (status != CLI_DONE)
        return status;
    if (!v || !asked || (!v->changes && !v->follows))
        return CLI_FAILED;
    fputs("What was asked for has been done all the same. See what is:  xmigrate list, xmigrate jobs\n",
          io->err);
    return CLI_UNKNOWN;
}

int cli_run(int argc, char **argv, const struct cli_io *io)
{
    struct args a;
    int status = run(&a, argc, argv, io);
    int why = fflush(io->out) == EOF ? errno : 0; /* of an earlier line the reason is not known any more */

    return why || ferror(io->out) ? lost_output(&a, io, why, status) : status;
}
