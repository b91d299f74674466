/* SPDX-License-Identifier: MIT */
/* Configuration files: every value lands where the table says, every mistake gets one sentence with file and
 * line. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

#include <stdlib.h>
#include "tests/unit/lib_tmpdir.h"

struct disk {
    char *path;
    uint64_t size;
};

struct config {
    struct {
        char *name;
        char **extra;
        uint64_t timeout, rate;
        unsigned vcpus, fill;
        bool verify;
    } vm;
    unsigned port;
    unsigned disks;
    struct disk disk[3];
    char names[3][16];
};

#define VM_KEY(key, kind, ...)                                                                               \
    {                                                                                                        \
        .name = #key, .type = kind, .offset = offsetof(struct config, vm.key) - offsetof(struct config, vm), \
        __VA_ARGS__                                                                                          \
    }
static const struct xm_ini_key vm_keys[] = {
    VM_KEY(name, XM_INI_STRING, .required = true),
    VM_KEY(extra, XM_INI_STRINGS),
    VM_KEY(timeout, XM_INI_TIME),
    VM_KEY(rate, XM_INI_RATE),
    VM_KEY(vcpus, XM_INI_UINT, .min = 1, .max = 64),
    VM_KEY(fill, XM_INI_PERCENT),
    VM_KEY(verify, XM_INI_BOOL),
    {0},
};
static const struct xm_ini_key listen_keys[] = {{.name = "port", .type = XM_INI_UINT, .max = 65535}, {0}};
static const struct xm_ini_key disk_keys[] = {
    {.name = "path", .type = XM_INI_STRING, .offset = offsetof(struct disk, path), .required = true},
    {.name = "size", .type = XM_INI_SIZE, .offset = offsetof(struct disk, size)},
    {0},
};

static void *open_disk(void *root, const char *name, struct xm_error *e)
{
    struct config *c = root;
    for (unsigned i = 0; i < c->disks; i++) {
        if (!strcmp(c->names[i], name)) {
            xm_error_set(e, EEXIST, "there is a disk of this name already");
            return NULL;
        }
    }
    if (c->disks == 3 || strlen(name) > 15) {
        xm_error_set(e, EINVAL, "too many disks, or too long a name");
        return NULL;
    }
    strcpy(c->names[c->disks], name);
    return &c->disk[c->disks++];
}

static const struct xm_ini_section sections[] = {
    {"vm", .required = true, .keys = vm_keys, .offset = offsetof(struct config, vm)},
    {"listen", .keys = listen_keys, .offset = offsetof(struct config, port)},
    {"disk", .named = true, .keys = disk_keys, .open = open_disk},
    {0},
};

static struct config c;

static int clean(void **state)
{
    free(c.vm.name);
    for (char **x = c.vm.extra; x && *x; x++)
        free(*x);
    free(c.vm.extra);
    for (unsigned i = 0; i < c.disks; i++)
        free(c.disk[i].path);
    memset(&c, 0, sizeof c);
    return state ? tmpdir_remove(state) : 0;
}

static void load(const char *text)
{
    struct xm_error e = {0};
    if (xm_ini_load(tmpdir_write("vm.ini", text), sections, &c, &e))
        fail_msg("%s", e.text);
}

/* The sentence is "PATH:LINE: <says>", or "PATH: <says>" for line 0. */
static void refuse(const char *text, unsigned line, const char *says)
{
    struct xm_error e = {0};
    const char *path = tmpdir_write("vm.ini", text);
    char *want = line ? xm_printf("%s:%u: %s", path, line, says) : xm_printf("%s: %s", path, says);
    int err = xm_ini_load(path, sections, &c, &e);

    if (err != -EINVAL || strncmp(e.text, want, strlen(want)))
        fail_msg("returned %d with\n  %s\ninstead of\n  %s", err, e.text, want);
    free(want);
    clean(NULL);
}

static void every_kind_of_value_lands_in_its_place(void **state)
{
    (void)state;
    load("; a comment\n# another\n\n[vm]\nname = web1 ; behind a value\nextra = -device\nextra=rng, x = 1\n  "
         "timeout=50ms\n"
         "rate : 10Gbit\nvcpus = 4\nfill = 80 %\nverify = yes\n[disk root]\npath=/dev/loop0\nsize = "
         "1G\n\n[disk\tdata]\n"
         "path = ds1:a#b;c.img\n[listen]\nport = 7070");
    assert_string_equal(c.vm.name, "web1");
    assert_string_equal(c.vm.extra[0], "-device");
    assert_string_equal(c.vm.extra[1], "rng, x = 1");
    assert_null(c.vm.extra[2]);
    assert_int_equal(c.vm.timeout, 50 * XM_NS_PER_MS);
    assert_int_equal(c.vm.rate, 1250000000);
    assert_int_equal(c.vm.vcpus, 4);
    assert_int_equal(c.vm.fill, 80);
    assert_true(c.vm.verify);
    assert_int_equal(c.disks, 2);
    assert_string_equal(c.names[0], "root");
    assert_string_equal(c.names[1], "data");
    assert_string_equal(c.disk[1].path, "ds1:a#b;c.img");
    assert_int_equal(c.disk[0].size, 1 << 30);
    assert_int_equal(c.port, 7070);
}

static void long_values_and_windows_line_ends_are_fine(void **state)
{
    (void)state;
    static char text[6000];
    strcpy(text, "[vm]\r\nname = ");
    size_t n = strlen(text);
    memset(text + n, 'n', 5000);
    strcpy(text + n + 5000, "\r\nvcpus = 2\r\n");
    load(text);
    assert_int_equal(strlen(c.vm.name), 5000);
    assert_int_equal(c.vm.vcpus, 2);
}

static void a_default_is_replaced_not_leaked(void **state)
{
    (void)state;
    c.vm.name = xm_printf("default");
    load("[vm]\nname=given\n");
    assert_string_equal(c.vm.name, "given");
}

static void sections_are_checked(void **state)
{
    (void)state;
    refuse("", 0, "there is no section [vm]");
    refuse("[vm]\nname=x\n[what]\n", 3, "there is no section [what]");
    refuse("[vm]\nname=x\n\n[vm]\n", 4, "a second [vm]");
    refuse("[vm two]\n", 1, "[vm] takes no name");
    refuse("[disk]\n", 1, "[disk] needs a name, as in [disk NAME]");
    refuse("[disk a]\npath=x\n[disk a]\n", 3, "[disk a]: there is a disk of this name already");
    refuse("name = x\n", 1, "\"name\" stands before the first [section]");
    refuse("[vm\nname=x\n", 1, "the section's name has no ] behind it");
    refuse("[vm] name=x\n", 1, "what is \"name=x\" behind the section's name?");
    refuse("[disk 0123456789012345678901234567890123456789012345]\n", 1,
           "the section's name is longer than 49 bytes");
}

static void keys_are_checked(void **state)
{
    (void)state;
    refuse("[vm]\nname=x\nnmae=y\n", 3, "[vm] has no key \"nmae\"");
    refuse("[vm]\nname=x\n\n# c\nname=y\n", 5, "\"name\" a second time in [vm]");
    refuse("[vm]\nvcpus=1\n[listen]\n", 1, "[vm] lacks the key \"name\"");
    refuse("[vm]\nname=x\n[disk a]\nsize=1G\n", 3, "[disk a] lacks the key \"path\"");
    refuse("[vm]\nname=x\n[disk a]\n[disk b]\npath=/b\n", 3, "[disk a] lacks the key \"path\"");
    refuse("[vm]\njust words\n", 2, "this is neither [section], nor key = value, nor a comment");
    refuse("[vm]\n= x\n", 2, "[vm] has no key \"\"");
    refuse("[vm]\nname = x\n  more of it\n", 3, "this is neither");
}

static void values_are_checked(void **state)
{
    (void)state;
    refuse("[vm]\nname=\n", 2, "name: a value is missing");
    refuse("[vm]\nname= ; only a comment\n", 2, "name: a value is missing");
    refuse("[vm]\nname=x\ntimeout=5\n", 3, "timeout: \"5\" is no time");
    refuse("[vm]\nname=x\nrate=fast\n", 3, "rate: \"fast\" is no rate");
    refuse("[vm]\nname=x\nvcpus=0\n", 3, "vcpus: 0 is not between 1 and 64");
    refuse("[vm]\nname=x\nvcpus=99999999999999999999\n", 3,
           "vcpus: 99999999999999999999 is not between 1 and 64");
    refuse("[vm]\nname=x\nvcpus=-1\n", 3, "vcpus: \"-1\" is no whole number");
    refuse("[vm]\nname=x\nfill=101%\n", 3, "fill: \"101%\" is no percentage from 0 to 100");
    refuse("[vm]\nname=x\nfill=%\n", 3, "fill: \"%\" is no percentage");
    refuse("[vm]\nname=x\nverify=maybe\n", 3, "verify: \"maybe\" is neither yes nor no");
    refuse("[disk a]\npath=x\nsize=12Q\n", 3, "size: \"12Q\" is no size");
    refuse("[listen]\nport=65536\n", 2, "port: 65536 is not between 0 and 65535");
}

static void files_that_are_no_text_or_not_there_are_named(void **state)
{
    (void)state;
    struct xm_error e = {0};
    static char text[10000];
    const char *path = tmpdir_path("none.ini");

    assert_int_equal(xm_ini_load(path, sections, &c, &e), -ENOENT);
    assert_non_null(strstr(e.text, path));
    memset(text, 'x', sizeof text - 1);
    memcpy(text, "[vm]\n", 5);
    refuse(text, 2, "the line is longer than 8189 bytes");
    path = tmpdir_path("zero.ini");
    assert_int_equal(xm_file_replace(path, "[vm]\nname=a\0b\n", 14, &e), 0);
    assert_int_equal(xm_ini_load(path, sections, &c, &e), -EINVAL);
    assert_non_null(strstr(e.text, "holds a zero byte"));
}

#define WITH_DIR(f) cmocka_unit_test_setup_teardown(f, tmpdir_make, clean)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_DIR(every_kind_of_value_lands_in_its_place),
        WITH_DIR(long_values_and_windows_line_ends_are_fine),
        WITH_DIR(a_default_is_replaced_not_leaked),
        WITH_DIR(sections_are_checked),
        WITH_DIR(keys_are_checked),
        WITH_DIR(values_are_checked),
        WITH_DIR(files_that_are_no_text_or_not_there_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
