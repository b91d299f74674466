/* SPDX-License-Identifier: MIT */
/* xmigrated: the agent of one host. agent/agent.h has the map of its threads. */
#include "agent/agent.h"
#include "agent/facts.h"
#include "probe/probe.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void usage(FILE *f)
{
    fprintf(f, "usage: xmigrated [--config FILE] [--check]\n"
               "  --config FILE  configuration (default " CONFIG_PATH ")\n"
               "  --check        read the configuration, say whether it is good, and end\n"
               "  --version, --help\n");
}

/* Who QEMU will be; as bad news, or in any case. */
static void say_user(const struct config *c, bool always)
{
    const char *wanted = c->qemu_user, *else_ = wanted ? "will not be started" : "run as root's user";
    struct qemu_users u = {0};
    struct xm_error e = {0};
    int r = c->qemu_rights ? 0 : facts_qemu_user(wanted, NULL, false, &e);

    if (r)
        fprintf(stderr, "xmigrated: VMs %s: %s\n", else_, e.text);
    else if (!c->qemu_rights && access("/dev/kvm", F_OK) == 0 && facts_qemu_user(wanted, NULL, true, &e))
        fprintf(stderr, "xmigrated: VMs with KVM %s: %s\n", else_, e.text);
    if (r || !always)
        return;
    if (c->qemu_rights || qemu_users_find(wanted, &u, &e) < 0 || !u.last)
        printf("QEMU runs as root%s\n",
               c->qemu_rights ? ", with all rights" : "'s user, without capabilities");
    else if (u.name)
        printf("QEMU runs as %s\n", u.name);
    else
        printf("each VM's QEMU runs as a user of its own, of %u to %u\n", u.first, u.last);
    qemu_users_free(&u);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"check", no_argument, NULL, 'k'},
                                            {"version", no_argument, NULL, 'v'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    static struct config conf;
    struct xm_error e = {0};
    const char *path = CONFIG_PATH;
    bool check = false;

    umask(077);
    xm_log_open("xmigrated", XM_LOG_INFO);
    for (int o, i = 0; (o = getopt_long(argc, argv, "", options, &i)) != -1;) {
        const char *cut = o == '?' ? NULL : xm_option_cut(argv, optind, optarg, options[i].name);
        if (cut) {
            fprintf(stderr, "xmigrated: there is no option %.*s: is --%s meant?\n",
                    (int)XM_MIN(strcspn(cut, "="), 60), cut, options[i].name);
            return 2;
        }
        if (o == 'c') {
            path = optarg;
        } else if (o == 'k') {
            check = true;
        } else if (o == 'v') {
            printf("xmigrated %s\n", XMIGRATE_VERSION);
            return 0;
        } else {
            usage(o == 'h' ? stdout : stderr);
            return o == 'h' ? 0 : 2;
        }
    }
    if (optind < argc) {
        usage(stderr);
        return 2;
    }
    int r = config_load(&conf, path, &e);
    if (r) {
        fprintf(stderr, "xmigrated: %s\n", e.text);
        config_free(&conf);
        return 2;
    }
    if (check)
        printf("%s: good\n", path);
    if (geteuid() == 0)
        say_user(&conf, check);
    if (!check)
        r = agent_run(&conf, &e);
    if (r)
        fprintf(stderr, "xmigrated: %s\n", e.text);
    config_free(&conf);
    return r ? 1 : 0;
}
