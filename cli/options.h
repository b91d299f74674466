/* SPDX-License-Identifier: MIT */
/* cli/options.h: the one table of options. Parsing, --help, and the check of the manual page are made from
 * it. */
#ifndef XM_CLI_OPTIONS_H
#define XM_CLI_OPTIONS_H

#include "cli/cli.h"

enum option_id {
    OPT_WITH_STORAGE,
    OPT_STORAGE_ONLY,
    OPT_DOWNTIME,
    OPT_BANDWIDTH,
    OPT_POSTCOPY,
    OPT_VERIFY,
    OPT_COMPRESS,
    OPT_RESUME,
    OPT_KEEP_SOURCE,
    OPT_ALLOW_OLDER,
    OPT_OUTRUN,
    OPT_DETACH,
    OPT_DRY_RUN,
    OPT_FORCE,
    OPT_TIMEOUT,
    OPT_PEER_IS_DEAD,
    OPT_AUTOSTART,
    OPT_JSON,
    OPT_SOCKET,
    OPT_HELP,
    OPT_VERSION,
    OPT_OPTIONS,
    OPTIONS
};
#define OPT_BIT(id) (1u << (id))
/* What every verb takes. */
#define OPT_COMMON                                                                                           \
    (OPT_BIT(OPT_JSON) | OPT_BIT(OPT_SOCKET) | OPT_BIT(OPT_HELP) | OPT_BIT(OPT_VERSION) |                    \
     OPT_BIT(OPT_OPTIONS))

struct option_row {
    enum option_id id;
    const char *name;
    const char *arg;     /* its argument's name in the help; NULL: none */
    const char *initial; /* the default, as the help and the manual say it; NULL: off */
    const char *choices; /* "no auto now"; NULL: free */
    const char
        *not_yet; /* of the choices, those announced but not done; "" for a flag that is not; NULL: all are */
    const char *help;
    bool hidden;
};
extern const struct option_row option_table[OPTIONS];

struct verb;

struct args {
    const struct verb *verb;
    const char *word[3]; /* the words behind the verb */
    int words;
    unsigned given; /* OPT_BITs */
    const char *value[OPTIONS];
    uint64_t downtime_ms, timeout_ms, bandwidth;
};

static inline bool args_has(const struct args *a, enum option_id id)
{
    return a->given & OPT_BIT(id);
}

/* Reads the command line. The strings stay argv's. 0 or -EINVAL with the sentence. With --help, --version or
 * --options given, nothing else is checked. */
int args_parse(struct args *a, int argc, char **argv, struct xm_error *e);
/* "--downtime MS"; for the help and for messages. */
struct xm_text option_usage(const struct option_row *o);
void print_help(FILE *out, const struct verb *only);
/* For tests of the manual: one line for each verb and option, fields separated by tabs. */
void print_options(FILE *out);

#endif
