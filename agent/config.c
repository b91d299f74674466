/* SPDX-License-Identifier: MIT */
#include "agent/config.h"
#include "agent/storage.h"
#include "probe/probe.h"

#include <ctype.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int config_name_check(const char *kind, const char *name, struct xm_error *e)
{
    size_t n = strlen(name);
    bool good = n && n <= CONFIG_NAME_MAX;

    for (size_t i = 0; good && i < n; i++) {
        unsigned char c = (unsigned char)name[i];
        good = isascii(c) && (isalnum(c) || (i && strchr("._-", c)));
    }
    if (!good)
        return xm_error_set(e, EINVAL,
                            "'%.70s' is no legal name of a %s: up to %d letters, digits, '.', '_' and '-'",
                            name, kind, CONFIG_NAME_MAX);
    return 0;
}

/* ---- the named sections ---- */

static int open_named(const char *kind, const char *name, unsigned have, const char *names, size_t stride,
                      struct xm_error *e)
{
    int r = config_name_check(kind, name, e);

    for (unsigned i = 0; !r && i < have; i++) {
        if (!strcmp(names + i * stride, name))
            r = xm_error_set(e, EINVAL, "there is another %s of this name", kind);
    }
    if (!r && have == CONFIG_MANY)
        r = xm_error_set(e, EINVAL, "there can be at most %d of them", CONFIG_MANY);
    return r;
}

static void *open_datastore(void *root, const char *name, struct xm_error *e)
{
    struct config *c = root;
    struct conf_datastore *d = &c->datastore[c->datastores];

    if (open_named("datastore", name, c->datastores, c->datastore[0].name, sizeof *d, e))
        return NULL;
    snprintf(d->name, sizeof d->name, "%s", name);
    d->target = 80;
    d->incoming = true;
    c->datastores++;
    return d;
}

static void *open_link(void *root, const char *name, struct xm_error *e)
{
    struct config *c = root;
    struct conf_link *l = &c->link[c->links];

    if (open_named("link", name, c->links, c->link[0].name, sizeof *l, e))
        return NULL;
    snprintf(l->name, sizeof l->name, "%s", name);
    c->links++;
    return l;
}

static void *open_peer(void *root, const char *name, struct xm_error *e)
{
    struct config *c = root;
    struct conf_peer *p = &c->peer[c->peers];

    if (open_named("peer", name, c->peers, c->peer[0].name, sizeof *p, e))
        return NULL;
    snprintf(p->name, sizeof p->name, "%s", name);
    p->port = 7070;
    c->peers++;
    return p;
}

/* ---- the table ---- */

static const struct xm_ini_key host_keys[] = {
    XM_INI_KEY(struct config, name, XM_INI_STRING),
    XM_INI_KEY(struct config, state_dir, XM_INI_STRING),
    XM_INI_KEY(struct config, run_dir, XM_INI_STRING),
    XM_INI_KEY(struct config, engine, XM_INI_STRING),
    XM_INI_KEY(struct config, shim, XM_INI_STRING),
    XM_INI_KEY(struct config, vnc_address, XM_INI_STRING),
    XM_INI_KEY(struct config, partial_kvm, XM_INI_BOOL),
    XM_INI_KEY(struct config, qemu_user, XM_INI_STRING),
    XM_INI_KEY(struct config, qemu_rights, XM_INI_BOOL),
    {.name = NULL},
};
static const struct xm_ini_key listen_keys[] = {
    {.name = "address", .type = XM_INI_STRING, .offset = offsetof(struct config, listen_address)},
    XM_INI_KEY(struct config, port, XM_INI_UINT, .max = 65535),
    {.name = NULL},
};
static const struct xm_ini_key limit_keys[] = {
    XM_INI_KEY(struct config, storage_migrations, XM_INI_UINT, .min = 1, .max = 64),
    XM_INI_KEY(struct config, migrations, XM_INI_UINT, .min = 1, .max = 64),
    XM_INI_KEY(struct config, min_bandwidth, XM_INI_RATE),
    XM_INI_KEY(struct config, bandwidth, XM_INI_RATE),
    XM_INI_KEY(struct config, downtime, XM_INI_TIME, .min = XM_NS_PER_MS, .max = 3600 * XM_NS_PER_S),
    XM_INI_KEY(struct config, link_timeout, XM_INI_TIME),
    XM_INI_KEY(struct config, switch_grace, XM_INI_TIME),
    XM_INI_KEY(struct config, incoming_silence, XM_INI_TIME, .min = XM_NS_PER_S),
    XM_INI_KEY(struct config, min_free, XM_INI_SIZE),
    XM_INI_KEY(struct config, min_memory, XM_INI_SIZE),
    {.name = NULL},
};
static const struct xm_ini_key incoming_keys[] = {
    XM_INI_KEY(struct config, bridge, XM_INI_STRINGS),
    XM_INI_KEY(struct config, kernels, XM_INI_STRINGS),
    XM_INI_KEY(struct config, firmware, XM_INI_STRINGS),
    XM_INI_KEY(struct config, images, XM_INI_STRINGS),
    {.name = NULL},
};
static const struct xm_ini_key datastore_keys[] = {
    XM_INI_KEY(struct conf_datastore, path, XM_INI_STRING, .required = true),
    XM_INI_KEY(struct conf_datastore, target, XM_INI_PERCENT),
    XM_INI_KEY(struct conf_datastore, incoming, XM_INI_BOOL),
    {.name = NULL},
};
static const struct xm_ini_key link_keys[] = {
    XM_INI_KEY(struct conf_link, address, XM_INI_STRING, .required = true),
    {.name = NULL},
};
static const struct xm_ini_key peer_keys[] = {
    XM_INI_KEY(struct conf_peer, address, XM_INI_STRING, .required = true),
    XM_INI_KEY(struct conf_peer, port, XM_INI_UINT, .min = 1, .max = 65535),
    XM_INI_KEY(struct conf_peer, extra, XM_INI_STRINGS),
    {.name = NULL},
};
static const struct xm_ini_key no_keys[] = {{.name = NULL}};
static const struct xm_ini_section sections[] = {
    {.name = "host", .keys = host_keys},
    {.name = "listen", .keys = listen_keys},
    {.name = "limits", .keys = limit_keys},
    {.name = "incoming", .keys = incoming_keys},
    {.name = "datastore", .named = true, .keys = datastore_keys, .open = open_datastore},
    {.name = "link", .named = true, .keys = link_keys, .open = open_link},
    {.name = "peer", .named = true, .keys = peer_keys, .open = open_peer},
    {.name = "tls", .keys = no_keys}, /* refused below, by a sentence of its own */
    {.name = NULL},
};

/* ---- what the table cannot judge ---- */

static int check_directory(const char *file, const char *section, const char *key, const char *dir,
                           bool exists, struct xm_error *e)
{
    struct stat st;

    if (dir[0] != '/')
        return xm_error_set(e, EINVAL, "%s:%u: the path '%s' has to begin with /", file,
                            xm_ini_line(file, section, key), dir);
    /* It stands in options of QEMU, where a comma begins the next one. */
    if (!exists && strchr(dir, ','))
        return xm_error_set(e, EINVAL, "%s:%u: the path '%s' may not have a comma", file,
                            xm_ini_line(file, section, key), dir);
    int r = exists ? storage_stat(dir, &st) : 0;
    /* What hangs, fails or is not there may come (back), and the other datastores' VMs need their agent. */
    if (r && r != -ENOTDIR)
        xm_log(XM_LOG_WARN, "%s:%u: %s: %s", file, xm_ini_line(file, section, key), dir,
               r == -ENOENT      ? "there is no such directory"
               : r == -ETIMEDOUT ? "it does not answer: its storage hangs"
                                 : strerror(-r));
    else if (exists && (r || !S_ISDIR(st.st_mode)))
        return xm_error_set(e, ENOTDIR, "%s:%u: %s is no directory", file, xm_ini_line(file, section, key),
                            dir);
    return 0;
}

static int check_address(const char *file, const char *section, const char *text, struct address *a,
                         struct xm_error *e)
{
    if (!address_parse(a, text))
        return xm_error_set(e, EINVAL, "%s:%u: '%s' is no IP address in numbers", file,
                            xm_ini_line(file, section, "address"), text);
    return 0;
}

/* What it starts VMs by. Not refused when it is not there: an upgrade may be just putting another one. */
static int check_shim(const struct config *c, const char *file, struct xm_error *e)
{
    if (c->shim[0] != '/')
        return xm_error_set(e, EINVAL, "%s:%u: the path '%s' has to begin with /", file,
                            xm_ini_line(file, "host", "shim"), c->shim);
    if (access(c->shim, X_OK) < 0)
        xm_log(XM_LOG_WARN, "no VM can be started or come here: the program %s: %s", c->shim,
               strerror(errno));
    return 0;
}

/* The names that a specification may have (vm/spec.c). */
static int check_bridges(const struct config *c, const char *file, struct xm_error *e)
{
    for (char **name = c->bridge; name && *name; name++) {
        if (strlen(*name) > 15 || strpbrk(*name, " \t/:,"))
            return xm_error_set(e, EINVAL,
                                "%s:%u: '%s' is no legal name of a bridge; several go on a line each", file,
                                xm_ini_line(file, "incoming", "bridge"), *name);
    }
    return 0;
}

static int check_lists(struct config *c, const char *file, struct xm_error *e)
{
    static const char *const keys[] = {"kernels", "firmware", "images"};
    char **const lists[] = {c->kernels, c->firmware, c->images};

    for (unsigned i = 0; i < 3; i++) {
        for (char **dir = lists[i]; dir && *dir; dir++) {
            if ((*dir)[0] != '/')
                return xm_error_set(e, EINVAL, "%s:%u: the path '%s' has to begin with /", file,
                                    xm_ini_line(file, "incoming", keys[i]), *dir);
        }
    }
    return 0;
}

static int check_user(struct config *c, const char *file, struct xm_error *e)
{
    struct qemu_users users;
    struct xm_error why = {0};
    int r = c->qemu_user ? qemu_users_find(c->qemu_user, &users, &why) : 0;

    if (r)
        return xm_error_set(e, why.code, "%s:%u: qemu_user = %s: %s", file,
                            xm_ini_line(file, "host", "qemu_user"), c->qemu_user, why.text);
    if (c->qemu_user)
        qemu_users_free(&users);
    return 0;
}

static int check_host(struct config *c, const char *file, struct xm_error *e)
{
    struct xm_error why;
    struct address a;

    if (config_name_check("host", c->name, &why))
        return xm_error_set(e, EINVAL, "%s:%u: %s", file, xm_ini_line(file, "host", "name"), why.text);
    if (strcmp(c->engine, "auto") && strcmp(c->engine, "io_uring") && strcmp(c->engine, "libaio"))
        return xm_error_set(e, EINVAL, "%s:%u: the engine has to be auto, io_uring or libaio, and is '%s'",
                            file, xm_ini_line(file, "host", "engine"), c->engine);
    int r = check_directory(file, "host", "state_dir", c->state_dir, false, e);
    if (!r)
        r = check_directory(file, "host", "run_dir", c->run_dir, false, e);
    if (!r)
        r = check_address(file, "listen", c->listen_address, &a, e);
    if (!r && c->vnc_address && !address_parse(&a, c->vnc_address))
        r = xm_error_set(e, EINVAL, "%s:%u: '%s' is no IP address in numbers", file,
                         xm_ini_line(file, "host", "vnc_address"), c->vnc_address);
    if (!r)
        r = check_user(c, file, e);
    if (!r)
        r = check_shim(c, file, e);
    if (!r)
        r = check_bridges(c, file, e);
    if (!r)
        r = check_lists(c, file, e);
    return r;
}

static int check(struct config *c, const char *file, struct xm_error *e)
{
    char section[96];
    struct address a;
    int r = check_host(c, file, e);

    for (unsigned i = 0; !r && i < c->datastores; i++) {
        snprintf(section, sizeof section, "datastore %s", c->datastore[i].name);
        r = check_directory(file, section, "path", c->datastore[i].path, true, e);
    }
    for (unsigned i = 0; !r && i < c->links; i++) {
        snprintf(section, sizeof section, "link %s", c->link[i].name);
        r = check_address(file, section, c->link[i].address, &a, e);
    }
    for (unsigned i = 0; !r && i < c->peers; i++) {
        snprintf(section, sizeof section, "peer %s", c->peer[i].name);
        r = check_address(file, section, c->peer[i].address, &c->peer[i].parsed, e);
        /* Not refused: an agent that does not start leaves its VMs without one, and a peer need not reach us.
         */
        if (!r && c->peer[i].parsed.family == AF_INET6 && !strchr(c->listen_address, ':'))
            xm_log(
                XM_LOG_WARN,
                "%s:%u: '%s' is of IPv6, and this agent listens to IPv4 alone (%s), so that this peer cannot "
                "reach it: write «address = ::» into [listen], for both",
                file, xm_ini_line(file, section, "address"), c->peer[i].address, c->listen_address);
        if (!r && !strcmp(c->peer[i].name, c->name))
            r = xm_error_set(e, EINVAL, "%s:%u: this host itself has the name '%s'", file,
                             xm_ini_line(file, section, NULL), c->name);
    }
    return r;
}

/* ---- defaults ---- */

static char *own_name(void)
{
    char name[CONFIG_NAME_MAX + 1] = "";

    gethostname(name, sizeof name - 1);
    return xm_printf("%s", name[0] ? name : "localhost");
}

static char *shim_beside_us(void)
{
    char self[PATH_MAX] = "";
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);

    return n > 0 ? xm_printf("%s/xmigrate-shim", dirname(self)) : xm_printf("xmigrate-shim");
}

/* Where Debian's packages put it: the same files on every host, and no secret in them. */
static char **packaged_firmware(void)
{
    static const char *const dirs[] = {"/usr/share/OVMF",  "/usr/share/ovmf",
                                       "/usr/share/qemu",  "/usr/share/seabios",
                                       "/usr/share/AAVMF", "/usr/share/qemu-efi-aarch64"};
    size_t n = sizeof dirs / sizeof *dirs;
    char **list = calloc(n + 1, sizeof *list);

    for (size_t i = 0; list && i < n; i++)
        list[i] = xm_printf("%s", dirs[i]);
    return list;
}

int config_load(struct config *c, const char *path, struct xm_error *e)
{
    c->port = 7070;
    c->storage_migrations = 2;
    c->migrations = 4;
    c->min_bandwidth = 250000000 / 8;
    c->downtime = 100 * XM_NS_PER_MS;
    c->link_timeout = 30 * XM_NS_PER_S;
    c->switch_grace = XM_NS_PER_S;
    c->incoming_silence = 600 * XM_NS_PER_S;
    c->min_free = 64 << 20;
    c->min_memory = 64 << 20;
    int r = xm_ini_load(path, sections, c, e);
    unsigned tls = xm_ini_line(path, "tls", NULL);
    if (tls) /* whatever stands in it */
        return xm_error_set(
            e, EINVAL,
            "%s:%u: [tls]: this version cannot encrypt between hosts yet; remove the section and use "
            "links that nobody else can listen on",
            path, tls);
    if (r)
        return r;
    if (!c->name)
        c->name = own_name();
    if (!c->state_dir)
        c->state_dir = xm_printf("/var/lib/xmigrate");
    if (!c->run_dir)
        c->run_dir = xm_printf("/run/xmigrate");
    if (!c->engine)
        c->engine = xm_printf("auto");
    if (!c->shim)
        c->shim = shim_beside_us();
    if (!c->listen_address)
        c->listen_address = xm_printf("0.0.0.0");
    if (!c->firmware)
        c->firmware = packaged_firmware();
    return check(c, path, e);
}

static void free_list(char **list)
{
    for (char **s = list; s && *s; s++)
        free(*s);
    free(list);
}

void config_free(struct config *c)
{
    free_list(c->bridge), free_list(c->kernels), free_list(c->firmware), free_list(c->images);
    free(c->name), free(c->state_dir), free(c->run_dir), free(c->engine), free(c->shim), free(c->vnc_address),
        free(c->qemu_user), free(c->listen_address);
    for (unsigned i = 0; i < c->datastores; i++)
        free(c->datastore[i].path);
    for (unsigned i = 0; i < c->links; i++)
        free(c->link[i].address);
    for (unsigned i = 0; i < c->peers; i++)
        free(c->peer[i].address), free_list(c->peer[i].extra);
    memset(c, 0, sizeof *c);
}

const struct conf_peer *config_peer(const struct config *c, const char *name)
{
    for (unsigned i = 0; i < c->peers; i++) {
        if (!strcmp(c->peer[i].name, name))
            return &c->peer[i];
    }
    return NULL;
}

const struct conf_datastore *config_datastore(const struct config *c, const char *name)
{
    for (unsigned i = 0; i < c->datastores; i++) {
        if (!strcmp(c->datastore[i].name, name))
            return &c->datastore[i];
    }
    return NULL;
}

const struct conf_datastore *config_datastore_of(const struct config *c, const char *path)
{
    for (unsigned i = 0; i < c->datastores; i++) {
        size_t n = strlen(c->datastore[i].path);
        while (n > 1 && c->datastore[i].path[n - 1] == '/')
            n--;
        if (!strncmp(path, c->datastore[i].path, n) && path[n] == '/' && path[n + 1] &&
            !strchr(path + n + 1, '/'))
            return &c->datastore[i];
    }
    return NULL;
}
