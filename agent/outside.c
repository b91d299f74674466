/* SPDX-License-Identifier: MIT */
#include "agent/outside.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

static void because(json_t *reasons, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void because(json_t *reasons, const char *fmt, ...)
{
    char text[500];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    xm_text_mend(text);
    json_array_append_new(reasons, json_string(text));
}

/* ---- machine, accel, cpu: a name, then OPTION=VALUE behind commas ---- */

/* Options that name no file, no device and no other object of the host, in QEMU 7.2 to 11. */
static const char *const machine_options[] = {"acpi",
                                              "default-bus-bypass-iommu",
                                              "dump-guest-core",
                                              "graphics",
                                              "hmat",
                                              "hpet",
                                              "i8042",
                                              "kernel-irqchip",
                                              "kernel_irqchip",
                                              "max-ram-below-4g",
                                              "mem-merge",
                                              "pic",
                                              "pit",
                                              "sata",
                                              "smbios-entry-point-type",
                                              "smbus",
                                              "smm",
                                              "suppress-vmdesc",
                                              "usb",
                                              "vmport",
                                              NULL};
static const char *const accel_options[] = {"dirty-ring-size", "eager-split-size", "honor-guest-pat",
                                            "kernel-irqchip",  "kvm-shadow-mem",   "notify-vmexit",
                                            "notify-window",   "one-insn-per-tb",  "split-wx",
                                            "tb-size",         "thread",           NULL};

static bool listed(const char *const *list, const char *word, size_t n)
{
    for (; *list; list++) {
        if (strlen(*list) == n && !strncmp(*list, word, n))
            return true;
    }
    return false;
}

/* One piece behind a comma; options NULL: any name (a CPU's feature). */
static bool option_ok(const char *piece, size_t n, const char *const *options)
{
    size_t sign = !options && n && (*piece == '+' || *piece == '-'), name = sign;

    while (name < n && strchr(NAME_CHARS, piece[name]))
        name++;
    if (name == sign || (options && !listed(options, piece, name)))
        return false;
    if (name == n)
        return true;
    if (sign || piece[name] != '=' || name + 1 == n)
        return false;
    for (size_t i = name + 1; i < n; i++) {
        if (!strchr(NAME_CHARS, piece[i]))
            return false;
    }
    return true;
}

/* A comma that is doubled is a comma in a value to QEMU: the piece between the two is empty, and refused. */
static bool words_ok(const char *text, const char *const *options)
{
    size_t n = strcspn(text, ",");

    if (!n || *text == '-' || strspn(text, NAME_CHARS) < n)
        return false;
    for (const char *at = text + n; *at; at += n) {
        n = strcspn(++at, ",");
        if (!option_ok(at, n, options))
            return false;
    }
    return text[strlen(text) - 1] != ',';
}

static void judge_words(const struct vm_spec *s, const char *peer, json_t *reasons)
{
    if (!words_ok(s->machine, machine_options))
        because(reasons, "machine = '%s' of %s has a word that is not taken from another host (%s)",
                s->machine, s->name, peer);
    if (s->accel && !words_ok(s->accel, accel_options))
        because(reasons, "accel = '%s' of %s has a word that is not taken from another host (%s)", s->accel,
                s->name, peer);
    if (s->cpu && !words_ok(s->cpu, NULL))
        because(reasons, "cpu = '%s' of %s has a word that is not taken from another host (%s)", s->cpu,
                s->name, peer);
}

int outside_program(const struct vm_spec *s, struct xm_error *e)
{
    static const char prefix[] = "qemu-system-";
    const char *arch = s->qemu + sizeof prefix - 1;

    if (strncmp(s->qemu, prefix, sizeof prefix - 1) || !*arch || strlen(arch) > 20 ||
        strspn(arch, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(arch))
        return xm_error_set(
            e, EPERM,
            "the program '%s' is taken from another host only when it is a qemu-system-ARCH without a path",
            s->qemu);
    return 0;
}

/* ---- extra ---- */

/* What used to be written into extra, and the key that has taken its place. */
static const struct {
    const char *part, *key;
} typed[] = {
    {"virtio-rng", "rng = yes"},
    {"rng-", "rng = yes"},
    {"balloon", "balloon = yes"},
    {"guest_agent", "guest_agent = yes"},
    {"virtserialport", "guest_agent = yes"},
    {"virtio-serial", "guest_agent = yes"},
    {"usb-tablet", "tablet = yes"},
    {"usb-mouse", "tablet = yes"},
    {"xhci", "tablet = yes"},
    {"-smbios", "smbios_manufacturer = … and its like"},
    {"-uuid", "uuid = …"},
    {"-rtc", "clock = utc or localtime"},
    {"-vnc", "vnc = unix"},
    {"-vga", "video = std or virtio"},
    {"virtio-vga", "video = virtio"},
    {"virtio-gpu", "video = virtio"},
    {"VGA", "video = std"},
    {"pflash", "firmware and nvram"},
    {"-bios", "firmware"},
    {"-cdrom", "[cdrom NAME]"},
    {"ide-cd", "[cdrom NAME]"},
    {"scsi-cd", "[cdrom NAME]"},
    {"media=cdrom", "[cdrom NAME]"},
    {"-boot", "boot = N of a disk"},
    {"-drive", "[disk NAME]"},
    {"-blockdev", "[disk NAME]"},
    {"-netdev", "[nic NAME]"},
    {"virtio-net", "[nic NAME]"},
};

/* How many words of extra, from the first, are exactly those of the line, which blanks separate. 0: they are
 * not. */
static size_t match_line(char *const *extra, const char *line)
{
    size_t words = 0;

    for (;;) {
        line += strspn(line, " \t");
        size_t n = strcspn(line, " \t");
        if (!n)
            return words;
        if (!extra[words] || strlen(extra[words]) != n || memcmp(extra[words], line, n) != 0)
            return 0;
        words++;
        line += n;
    }
}

static size_t allowed(const struct conf_peer *p, char *const *extra)
{
    size_t longest = 0;

    for (char **line = p ? p->extra : NULL; line && *line; line++) {
        size_t n = match_line(extra, *line);
        longest = XM_MAX(longest, n);
    }
    return longest;
}

static void refuse_extra(const struct vm_spec *s, const struct config *conf, const char *peer,
                         const char *option, const char *value, json_t *reasons)
{
    const char *key = NULL;

    for (size_t i = 0; !key && i < sizeof typed / sizeof *typed; i++) {
        if (strstr(value, typed[i].part) || strstr(option, typed[i].part))
            key = typed[i].key;
    }
    if (key)
        because(reasons, "extra = '%.100s%s%.100s' of %s is not taken from %s: write «%s» instead", option,
                *value ? " " : "", value, s->name, peer, key);
    else
        because(reasons,
                "extra = '%.100s%s%.100s' of %s is not taken from %s; «extra = %.60s%s%.60s» in [peer %s] of "
                "%s's configuration would allow exactly that",
                option, *value ? " " : "", value, s->name, peer, option, *value ? " " : "", value, peer,
                conf->name);
}

static void judge_extra(const struct vm_spec *s, const struct config *conf, const char *peer, json_t *reasons)
{
    const struct conf_peer *p = config_peer(conf, peer);
    char **x = s->extra;

    while (x && *x) {
        size_t n = allowed(p, x);
        if (!n) {
            bool pair = x[0][0] == '-' && x[1] && x[1][0] != '-';
            refuse_extra(s, conf, peer, x[0], pair ? x[1] : "", reasons);
            n = pair ? 2 : 1;
        }
        x += n;
    }
}

/* ---- what of this host it may use ---- */

bool outside_allows(char **dirs, const char *path)
{
    for (const char *up = path; (up = strstr(up, "/..")); up += 3) {
        if (!up[3] || up[3] == '/')
            return false;
    }
    for (; dirs && *dirs; dirs++) {
        size_t n = strlen(*dirs);
        while (n > 1 && (*dirs)[n - 1] == '/')
            n--;
        if (!strncmp(path, *dirs, n) && (path[n] == '/' || n == 1) && path[n + 1])
            return true;
    }
    return false;
}

static void judge_file(const struct vm_spec *s, const struct config *conf, char **dirs, const char *what,
                       const char *key, const char *path, json_t *reasons)
{
    if (path && !outside_allows(dirs, path))
        because(
            reasons,
            "%s lets %s of another host use no %s '%s': its configuration names the directories, by «%s» in "
            "[incoming]",
            conf->name, s->name, what, path, key);
}

static void judge_bridges(const struct vm_spec *s, const struct config *conf, json_t *reasons)
{
    for (unsigned i = 0; i < s->nics; i++) {
        const char *bridge = s->nic[i].bridge;
        bool found = !bridge[0];
        for (char **b = conf->bridge; b && *b && !found; b++)
            found = !strcmp(*b, bridge);
        if (!found)
            because(reasons,
                    "%s lets %s of another host use no bridge '%s' (for NIC '%s'): «bridge = %s» in "
                    "[incoming] of "
                    "its configuration would allow that",
                    conf->name, s->name, bridge, s->nic[i].name, bridge);
    }
}

unsigned outside_judge(const struct vm_spec *s, const struct config *conf, const char *peer, json_t *reasons)
{
    size_t before = json_array_size(reasons);
    struct xm_error e;

    if (outside_program(s, &e) < 0)
        because(reasons, "%s", e.text);
    judge_words(s, peer, reasons);
    judge_extra(s, conf, peer, reasons);
    judge_bridges(s, conf, reasons);
    judge_file(s, conf, conf->kernels, "kernel", "kernels", s->kernel, reasons);
    judge_file(s, conf, conf->kernels, "initrd", "kernels", s->initrd, reasons);
    judge_file(s, conf, conf->firmware, "firmware", "firmware", s->firmware, reasons);
    for (unsigned i = 0; i < s->cdroms; i++)
        judge_file(s, conf, conf->images, "image", "images", s->cdrom[i].path, reasons);
    return (unsigned)(json_array_size(reasons) - before);
}
