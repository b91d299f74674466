/* SPDX-License-Identifier: MIT */
/* The inventory of an agent: what is defined stays known, a VM that is started by its name is the one that is
 * recorded, and no disk is made or taken by a guess. A real agent, with make-believe shims (lib_shim.c). */
#include "tests/unit/lib_agent.h"
#include "vm/vm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/progress.h"

static struct test_agent *const t = &test_agent;

/* ---- asking ---- */

static json_t *about_vm(const char *verb, const char *vm)
{
    return ask(t, json_pack("{s:s, s:s}", "verb", verb, "vm", vm));
}

static json_t *about_spec(const char *verb, const char *file)
{
    return ask(t, json_pack("{s:s, s:s}", "verb", verb, "spec", in_dir(t, file)));
}

static json_t *stop(const char *vm)
{
    return ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", vm, "force", 1));
}

static json_t *autostart(const char *vm, bool yes)
{
    return ask(t, json_pack("{s:s, s:s, s:b}", "verb", "set", "vm", vm, "autostart", yes));
}

/* A field of what `show` says; "" when there is none. */
static const char *shown(const char *vm, const char *in, const char *key)
{
    static char text[200];
    json_t *o = about_vm("show", vm), *at = json_object_get(o, "vm");

    snprintf(text, sizeof text, "%s", xm_json_str(in ? json_object_get(at, in) : at, key, ""));
    json_decref(o);
    return text;
}

static json_t *listed(const char *vm)
{
    json_t *o = ask(t, json_pack("{s:s}", "verb", "list")), *v, *found = NULL;
    size_t i;

    json_array_foreach (json_object_get(o, "vms"), i, v) {
        if (!strcmp(xm_json_str(v, "name", ""), vm))
            found = json_incref(v);
    }
    json_decref(o);
    return found;
}

/* ---- files ---- */

static void write_text(const char *below, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void write_text(const char *below, const char *fmt, ...)
{
    FILE *f = fopen(in_dir(t, below), "we");
    va_list ap;

    va_start(ap, fmt);
    vfprintf(f, fmt, ap);
    va_end(ap);
    fclose(f);
}

static void rename_below(const char *from, const char *to)
{
    assert_int_equal(rename(in_dir(t, from), in_dir(t, to)), 0);
}

static void own(const char *vm, enum owner_side owner, uint64_t epoch, const char *to, bool settled)
{
    struct owner_record rec = {.epoch = epoch, .owner = owner, .settled = settled};
    char below[100];

    snprintf(rec.to, sizeof rec.to, "%s", to);
    snprintf(below, sizeof below, "state/vms/%s", vm);
    assert_int_equal(owner_save(in_dir(t, below), vm, &rec, NULL), 0);
}

static uint64_t epoch_of(const char *vm)
{
    struct owner_record rec;
    char below[100];

    snprintf(below, sizeof below, "state/vms/%s", vm);
    assert_int_equal(owner_load(in_dir(t, below), vm, &rec, NULL), 0);
    return rec.epoch;
}

static void again(int signal)
{
    test_agent_stop(t, signal);
    assert_int_equal(test_agent_start(t), 0);
}

/* The run directory is made of memory: after a boot it is not there. Processes are not either. */
static void reboot(void)
{
    const char *const argv[] = {"rm", "-rf", in_dir(t, "run"), NULL};
    pid_t pid = shim_pid(t, "web1");

    test_agent_stop(t, SIGKILL);
    if (pid > 0)
        kill(pid, SIGKILL);
    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
}

static bool until_state(const char *vm, const char *want)
{
    struct limit l = limit_start(10);

    while (strcmp(shown(vm, NULL, "state"), want) != 0 && limit_wait(&l))
        ;
    return !strcmp(shown(vm, NULL, "state"), want);
}

/* ---- what is known ---- */

static void a_stopped_vm_stays_known_and_starts_by_its_name(void **state)
{
    (void)state;
    need_qemu();
    must_refuse(about_vm("start", "web1"), 1, "there is no VM 'web1' on hosta", NULL);
    must(about_spec("start", "spec.ini"), 0);
    must(stop("web1"), 0);
    assert_string_equal(shown("web1", NULL, "state"), "stopped");
    assert_string_equal(shown("web1", "ended", "why"), "forced");
    assert_string_equal(shown("web1", "owner", "owner"), "mine");
    again(SIGTERM);
    json_t *v = listed("web1");
    assert_string_equal(xm_json_str(v, "state", ""), "stopped");
    json_decref(v);
    must(about_vm("start", "web1"), 0);
    assert_string_equal(shown("web1", NULL, "state"), "running");
    must_refuse(about_vm("start", "web1"), 3, "is on hosta already", NULL);
}

static void why_it_ended_is_told(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("define", "spec.ini"), 0);
    assert_string_equal(shown("web1", NULL, "state"), "stopped");
    assert_string_equal(shown("web1", "ended", "why"), ""); /* it has never run */
    must(about_vm("start", "web1"), 0);
    kill(shim_pid(t, "web1"), SIGKILL); /* and there is no QEMU */
    assert_true(until_state("web1", "stopped"));
    assert_string_equal(shown("web1", "ended", "why"), "unknown");
    must(about_vm("start", "web1"), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "stop", "vm", "web1")), 0);
    assert_string_equal(shown("web1", "ended", "why"), "user");
    must(about_vm("start", "web1"), 0);
    reboot();
    assert_string_equal(shown("web1", NULL, "state"), "stopped");
    assert_string_equal(shown("web1", "ended", "why"), "reboot");
    json_t *o = listed("web1"), *ended = json_object_get(o, "ended");
    assert_null(json_object_get(ended, "at")); /* when it began was told for when it ended */
    assert_true(json_is_integer(json_object_get(ended, "started")));
    json_decref(o);
}

static void a_start_that_fails_changes_nothing_of_a_vm_that_is_known(void **state)
{
    (void)state;
    need_qemu();
    write_text("broken.ini",
               "[vm]\nname = broken\nmemory = 16M\naccel = tcg\n[disk root]\ndatastore = ds\nfile = b.raw\n"
               "size = 1M\n");
    must(about_spec("define", "broken.ini"), 0);
    must_refuse(about_vm("start", "broken"), 1, "it does not want to", NULL);
    assert_string_equal(shown("broken", NULL, "state"), "stopped");
    assert_string_equal(shown("broken", "ended", "why"), "");
    assert_true(exists(t, "ds/b.raw"));
    must_refuse(about_spec("start", "broken.ini"), 1, "it does not want to", NULL);
    assert_string_equal(shown("broken", NULL, "state"), "stopped");
    assert_true(exists(t, "ds/b.raw"));
}

static void a_record_that_cannot_be_read_is_listed_and_nothing_is_done(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("define", "spec.ini"), 0);
    write_text("state/vms/web1/owner.json", "rubbish");
    json_t *v = listed("web1");
    assert_string_equal(xm_json_str(v, "state", ""), "damaged");
    json_decref(v);
    must_refuse(about_vm("start", "web1"), 3, "owner.json", NULL);
    must_refuse(about_spec("start", "spec.ini"), 3, "owner.json", NULL);
    must_refuse(about_vm("undefine", "web1"), 3, "owner.json", NULL);
    assert_true(exists(t, "state/vms/web1/spec.json"));
    assert_int_equal(unlink(in_dir(t, "state/vms/web1/owner.json")), 0);
    own("web1", OWNER_MINE, 1, "", true);
    write_text("state/vms/web1/spec.json", "{\"name\":");
    must_refuse(about_vm("start", "web1"), 1, "spec.json", NULL);
}

/* ---- disks ---- */

/* What broke: an empty file had «0 bytes, which is no multiple of 512», and what to do was not said. */
static void a_file_of_no_size_for_a_disk_is_told_how_to_get_one(void **state)
{
    (void)state;
    need_qemu();
    write_text("odd.ini",
               "[vm]\nname = odd\nmemory = 16M\naccel = tcg\n[disk root]\ndatastore = ds\nfile = o\n");
    write_text("ds/o", "%s", "");
    must_refuse(about_spec("define", "odd.ini"), 3, "/ds/o is empty: enlarge it by `truncate -s SIZE ", NULL);
    write_text("ds/o", "%600s", "an image");
    must_refuse(about_spec("define", "odd.ini"), 3, "has 600 bytes, which is no multiple",
                "truncate -s %512 ", NULL);
    assert_int_equal(truncate(in_dir(t, "ds/o"), 1024), 0);
    must(about_spec("define", "odd.ini"), 0);
}

/* What broke: a VM that was undefined and defined again by its first specification got an empty disk, since
 * the one that it had was called otherwise after a move; nothing said so. */
static void a_disk_that_is_new_and_empty_is_told(void **state)
{
    (void)state;
    need_qemu();
    const char *made = "Made for it, and empty: disk 'root' (";
    json_t *o = about_spec("define", "spec.ini");
    assert_non_null(strstr(xm_json_str(o, "text", ""), made));
    assert_non_null(strstr(xm_json_str(o, "text", ""), "/ds/web1.raw)"));
    json_decref(o);
    o = about_spec("define", "spec.ini");
    assert_null(strstr(xm_json_str(o, "text", ""), "empty"));
    json_decref(o);
    must(about_vm("undefine", "web1"), 0);
    rename_below("ds/web1.raw", "ds/web1-root.raw");
    o = about_spec("start", "spec.ini");
    assert_non_null(strstr(xm_json_str(o, "text", ""), made));
    json_decref(o);
    must(stop("web1"), 0);
    o = about_vm("start", "web1");
    assert_null(strstr(xm_json_str(o, "text", ""), "empty"));
    json_decref(o);
}

static void a_disk_that_is_gone_is_never_made_anew(void **state)
{
    struct owner_record rec = {.epoch = 1, .owner = OWNER_MINE};
    (void)state;
    need_qemu();

    must(about_spec("start", "spec.ini"), 0);
    must(stop("web1"), 0);
    rename_below("ds", "unmounted");
    assert_int_equal(mkdir(in_dir(t, "ds"), 0755), 0);
    must_refuse(about_vm("start", "web1"), 3, "/ds/web1.raw is not there", "mounted at", NULL);
    must_refuse(about_spec("start", "spec.ini"), 3, "/ds/web1.raw is not there", "mounted at", NULL);
    must_refuse(about_spec("define", "spec.ini"), 3, "/ds/web1.raw is not there", NULL);
    assert_false(exists(t, "ds/web1.raw"));
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    json_t *o = about_vm("show", "web1");
    assert_true(json_is_true(json_object_get(json_array_get(json_object_get(o, "disks"), 0), "missing")));
    json_decref(o);
    assert_int_equal(rmdir(in_dir(t, "ds")), 0);
    rename_below("unmounted", "ds");
    must(about_vm("start", "web1"), 0);
}

/* With the manual's own example: after a move the record has another path than the specification. */
static void a_spec_that_contradicts_the_record_is_refused(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("start", "spec.ini"), 0);
    must(stop("web1"), 0);
    rename_below("ds/web1.raw", "ds/web1-root.raw"); /* as a move names it */
    write_text("sed", "s|/ds/web1.raw|/ds/web1-root.raw|");
    const char *const argv[] = {"sed", "-i", "-f", in_dir(t, "sed"), in_dir(t, "state/vms/web1/spec.json"),
                                NULL};
    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);

    must_refuse(about_spec("start", "spec.ini"), 3, "/ds/web1.raw in the specification",
                "/ds/web1-root.raw in the record", NULL);
    assert_false(exists(t, "ds/web1.raw"));
    write_text("ds/web1.raw", "%1048575c\n", 'x'); /* a stale one of two moves ago */
    must_refuse(about_spec("start", "spec.ini"), 3, "/ds/web1.raw in the specification",
                "/ds/web1-root.raw in the record", NULL);
    must_refuse(about_spec("define", "spec.ini"), 3, "/ds/web1.raw in the specification", NULL);
    must(about_vm("start", "web1"), 0);
    must(stop("web1"), 0);
    /* Another size of the same disk. */
    write_text(
        "size.ini",
        "[vm]\nname = web1\nmemory = 16M\naccel = tcg\n[disk root]\ndatastore = ds\nfile = web1-root.raw\n"
        "size = 2M\n");
    must_refuse(about_spec("start", "size.ini"), 3, "2097152 bytes in the specification",
                "1048576 in the record", NULL);
    /* The file has grown under us: that is another one than the record's, too. */
    assert_int_equal(truncate(in_dir(t, "ds/web1-root.raw"), 4 << 20), 0);
    must_refuse(about_vm("start", "web1"), 3, "4194304 bytes", "1048576", "define with size = 4194304", NULL);
    /* What the message of the path advises is no dead end. */
    must(about_vm("undefine", "web1"), 0);
    must(about_spec("start", "spec.ini"), 0);
}

/* Seen: a VM with an image that only root may read, as it was copied here, moved away and could not come
 * back. */
static void a_way_that_does_not_lead_back_is_told_before(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(xm_file_replace(in_dir(t, "seed.iso"), "seed", 4, NULL), 0);
    assert_int_equal(chmod(in_dir(t, "seed.iso"), 0600), 0);
    write_text("way.ini", "[vm]\nname = web1\nmemory = 16M\naccel = tcg\n[cdrom seed]\npath = %s\n",
               in_dir(t, "seed.iso"));
    must(about_spec("start", "way.ini"), 0);
    json_t *o = ask(
        t, json_pack("{s:s, s:s, s:s, s:b}", "verb", "check", "vm", "web1", "host", "hostb", "storage", 1));
    char *text = json_dumps(json_object_get(o, "notes"), 0);
    assert_non_null(text);
    assert_non_null(strstr(text, "as it is now web1 could not come back from hostb: hosta lets web1 of "
                                 "another host use no image"));
    assert_non_null(strstr(text, "/seed.iso on hosta is not readable by everybody (chmod o+r)"));
    free(text);
    json_decref(o);
}

static void define_size(const char *size)
{
    write_text("grown.ini",
               "[vm]\nname = web1\nmemory = 16M\naccel = tcg\n[disk root]\ndatastore = ds\n"
               "file = web1.raw\n%s\n",
               size);
}

/* Seen: a disk could not be enlarged but by undefine, and a move left what was behind its old end. */
static void a_disk_grows_to_what_its_file_has(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("start", "spec.ini"), 0);
    assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), 4 << 20), 0);
    json_t *o = ask(
        t, json_pack("{s:s, s:s, s:s, s:b}", "verb", "check", "vm", "web1", "host", "hostb", "storage", 1));
    char *text = json_dumps(json_object_get(o, "notes"), 0);
    assert_non_null(strstr(text, "web1.raw has 4.00 MiB, and disk 'root' of VM web1 1.00 MiB"));
    free(text);
    json_decref(o);
    /* What broke: it was moved, and what it had lost were zeros then. */
    for (off_t left = 512 << 10; left >= 0; left -= 512 << 10) {
        assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), left), 0);
        o = ask(t, json_pack("{s:s, s:s, s:s, s:b}", "verb", "check", "vm", "web1", "host", "hostb",
                             "storage", 1));
        text = json_dumps(json_object_get(o, "reasons"), 0);
        assert_non_null(strstr(text, left ? "web1.raw has 512.00 KiB, and" : "web1.raw has 0 B, and"));
        assert_non_null(strstr(text, "disk 'root' of VM web1 1.00 MiB: it was cut short"));
        free(text);
        json_decref(o);
    }
    assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), 4 << 20), 0);
    must(stop("web1"), 0);
    define_size("size = 2M"); /* neither the record's nor the file's */
    must_refuse(about_spec("define", "grown.ini"), 3, "make its file larger first", NULL);
    define_size("size = 4M");
    must(about_spec("define", "grown.ini"), 0);
    must(about_vm("start", "web1"), 0);
    must(stop("web1"), 0);
    assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), 5 << 20), 0);
    define_size(""); /* as large as its file */
    must(about_spec("start", "grown.ini"), 0);
    must(stop("web1"), 0);
    assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), 1 << 20), 0);
    define_size("size = 1M");
    must_refuse(about_spec("define", "grown.ini"), 3, "1048576 bytes in the specification",
                "5242880 in the record", NULL);
    must_refuse(about_vm("start", "web1"), 3, "has 1048576 bytes", NULL);
    define_size("");
    must_refuse(about_spec("define", "grown.ini"), 3, "5242880 in the record", NULL);
}

static void two_vms_never_have_one_file(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("define", "spec.ini"), 0);
    write_text("two.ini", "[vm]\nname = web2\nmemory = 16M\naccel = tcg\n[disk data]\npath = %s\n",
               in_dir(t, "ds/web1.raw"));
    must_refuse(about_spec("define", "two.ini"), 3, "disk 'data' of VM web2", "is disk 'root' of VM web1",
                NULL);
    assert_int_equal(symlink("web1.raw", in_dir(t, "ds/other.raw")), 0);
    write_text("two.ini", "[vm]\nname = web2\nmemory = 16M\naccel = tcg\n[disk data]\npath = %s\n",
               in_dir(t, "ds/other.raw"));
    must_refuse(about_spec("start", "two.ini"), 3, "disk 'data' of VM web2", "is disk 'root' of VM web1",
                NULL);
    assert_false(exists(t, "state/vms/web2"));
    must(about_vm("undefine", "web1"), 0);
    write_text("two.ini", "[vm]\nname = web2\nmemory = 16M\naccel = tcg\n[disk data]\npath = %s\n",
               in_dir(t, "ds/web1.raw"));
    must(about_spec("define", "two.ini"), 0);
}

/* What was given away and is not settled may be handed back. What broke: another VM was defined on its disk.
 */
static void a_disk_that_may_come_back_is_not_another_vms(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("define", "spec.ini"), 0);
    own("web1", OWNER_GIVEN, 2, "hostb", false);
    write_text("two.ini", "[vm]\nname = web2\nmemory = 16M\naccel = tcg\n[disk root]\ndatastore = ds\nfile = "
                          "web1.raw\n");
    must_refuse(about_spec("define", "two.ini"), 3, "is disk 'root' of VM web1", NULL);
    own("web1", OWNER_GIVEN, 2, "hostb", true);
    must(about_spec("define", "two.ini"), 0);
}

/* What broke: the advice was to declare a host dead that had nothing to do with it, this very one even. */
static void undefine_says_what_is_not_cleaned_up(void **state)
{
    json_t *files = json_pack("[s]", in_dir(t, "ds/web1.raw")), *none = json_array();
    (void)state;
    need_qemu();

    must(about_spec("define", "spec.ini"), 0);
    assert_int_equal(unlink(in_dir(t, "ds/web1.raw")), 0); /* so what else there is may be the only copy */
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_STORAGE, 1, "hosta", NULL, files, NULL), 0);
    must_refuse(about_vm("undefine", "web1"), 3, "ds/web1.raw", "With --force", NULL);
    assert_int_equal(journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 2, "hostb", NULL, none, NULL),
                     0);
    must_refuse(about_vm("undefine", "web1"), 3, "when hostb answers", "recover web1 --peer-is-dead`", NULL);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "undefine", "vm", "web1", "force", 1)), 0);
    json_decref(files);
    json_decref(none);
}

static void a_disk_is_added_by_define_and_made_once(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("define", "spec.ini"), 0);
    write_text("more.ini",
               "[vm]\nname = web1\nmemory = 32M\naccel = tcg\n[disk root]\ndatastore = ds\nfile = web1.raw\n"
               "[disk data]\ndatastore = ds\nfile = data.raw\nsize = 2M\n");
    must(about_spec("define", "more.ini"), 0);
    assert_true(exists(t, "ds/data.raw"));
    assert_int_equal(unlink(in_dir(t, "ds/data.raw")), 0);
    must_refuse(about_vm("start", "web1"), 3, "/ds/data.raw is not there", NULL);
    must_refuse(about_spec("define", "more.ini"), 3, "/ds/data.raw is not there", NULL);
    assert_false(exists(t, "ds/data.raw"));
}

/* ---- definitions ---- */

static void an_image_smaller_than_its_disk_shall_be_gets_advice(void **state)
{
    (void)state;
    write_text("ds/image.raw", "%1024s", "");
    write_text("web5.ini", "[vm]\nname = web5\nmemory = 16M\naccel = tcg\n"
                           "[disk root]\ndatastore = ds\nfile = image.raw\nsize = 2M\nformat = raw\n");
    must_refuse(about_spec("define", "web5.ini"), 3, "image.raw has 1024 bytes", "take that size out",
                "truncate -s 2097152 /", NULL);
}

static void a_running_vm_is_neither_defined_nor_undefined(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("start", "spec.ini"), 0);
    must_refuse(about_spec("define", "spec.ini"), 3, "when it is stopped", NULL);
    must_refuse(about_vm("undefine", "web1"), 3, "when it is stopped", NULL);
    assert_string_equal(shown("web1", NULL, "state"), "running");
}

static void undefine_keeps_disks_and_the_name_goes_on_in_a_higher_epoch(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("define", "spec.ini"), 0);
    own("web1", OWNER_MINE, 7, "", true);
    json_t *o = about_vm("undefine", "web1");
    assert_string_equal(xm_json_str(json_array_get(json_object_get(o, "disks_kept"), 0), "path", ""),
                        in_dir(t, "ds/web1.raw"));
    must(o, 0);
    assert_true(exists(t, "ds/web1.raw"));
    assert_false(exists(t, "state/vms/web1"));
    must_refuse(about_vm("undefine", "web1"), 1, "there is no VM 'web1'", NULL);
    must(about_spec("define", "spec.ini"), 0);
    assert_int_equal(epoch_of("web1"), 8);
}

/* UEFI's variables are the guest's, as its disks are: never lost, and never made anew behind its back. */
static void the_firmwares_variables_are_kept(void **state)
{
    char *text;
    size_t len;
    (void)state;
    need_qemu();

    write_text("spec.ini",
               "[vm]\nname = web1\nmemory = 16M\naccel = tcg\nfirmware = %s\nnvram = %s\n[disk root]\n"
               "datastore = ds\nfile = web1.raw\nsize = 1M\n",
               in_dir(t, "code.fd"), in_dir(t, "vars.fd"));
    write_text("code.fd", "%4096s", "code");
    write_text("vars.fd", "%4096s", "new");
    must(about_spec("define", "spec.ini"), 0);
    write_text("state/vms/web1/nvram.fd", "%4096s", "the guest's");
    json_t *o = about_vm("undefine", "web1");
    const char *kept = xm_json_str(o, "nvram_kept", "");
    assert_string_equal(kept, in_dir(t, "state/kept/web1-nvram.fd"));
    assert_int_equal(xm_file_read(kept, 1 << 20, &text, &len, NULL), 0);
    assert_string_equal(text + 4096 - 11, "the guest's");
    free(text);
    must(o, 0);
    must(about_spec("define", "spec.ini"), 0);
    assert_int_equal(unlink(in_dir(t, "state/vms/web1/nvram.fd")), 0);
    must_refuse(about_vm("start", "web1"), 1, "nvram.fd, the variables of its firmware, has gone", NULL);
    assert_false(exists(t, "state/vms/web1/nvram.fd"));
}

static void what_is_dumped_can_be_defined(void **state)
{
    (void)state;
    need_qemu();
    write_text(
        "spec.ini",
        "[vm]\nname = web1\nmemory = 16M\naccel = tcg\nautostart = yes\nextra = -rtc\nextra = base=utc\n"
        "[disk root]\ndatastore = ds\nfile = web1.raw\nsize = 1M\n[disk two]\npath = %s\n[nic lan]\n",
        in_dir(t, "two.raw"));
    write_text("two.raw", "%511c\n", 'x');
    must(about_spec("define", "spec.ini"), 0);
    json_t *before = about_vm("dump", "web1");
    const char *ini = xm_json_str(before, "ini", "");
    assert_non_null(strstr(ini, "datastore = ds\nfile = web1.raw\nsize = 1M\n"));
    assert_non_null(strstr(ini, "autostart = yes\n"));
    write_text("dump.ini", "%s", ini);
    must(about_spec("define", "dump.ini"), 0);
    json_t *after = about_vm("dump", "web1");
    assert_string_equal(xm_json_str(after, "ini", ""), ini);
    json_decref(before);
    json_decref(after);
    must_refuse(
        ask(t, json_pack("{s:s, s:s, s:s}", "verb", "define", "spec", in_dir(t, "dump.ini"), "vm", "web2")),
        2, "not of web2", NULL); /* edit does not rename */
}

/* ---- given away ---- */

/* Asks the agent, and answers for the peer whom it asks meanwhile. */
static json_t *with_peer(int listener, json_t *request, json_t *peers_answer)
{
    struct xm_jsonl js;

    xm_jsonl_init(&js, xm_unix_connect(in_dir(t, "run/agent.sock"), NULL));
    xm_jsonl_send(js.fd, request, -1, NULL);
    json_t *asked = serve_one(listener, peers_answer);
    assert_string_equal(xm_json_str(asked, "verb", ""), "peer.owner");
    json_decref(asked);
    json_t *answer = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
    xm_jsonl_close(&js);
    return answer;
}

static json_t *vm_request(const char *verb)
{
    return json_pack("{s:s, s:s}", "verb", verb, "vm", "web1");
}

static json_t *peers_record(const char *owner, int epoch, const char *to)
{
    return json_pack("{s:b, s:s, s:i, s:s}", "ok", 1, "owner", owner, "epoch", epoch, "to", to);
}

static void who_gave_it_away_says_where_it_is(void **state)
{
    int listener = *(int *)*state;
    need_qemu();

    must(about_spec("define", "spec.ini"), 0);
    own("web1", OWNER_GIVEN, 4, "hostb", false);
    must_refuse(with_peer(listener, vm_request("start"), peers_record("mine", 4, "")), 3,
                "it is hostb's (epoch 4)", NULL);
    must_refuse(with_peer(listener, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini")),
                          peers_record("mine", 6, "")),
                3, "it is hostb's (epoch 6)", NULL);
    must_refuse(with_peer(listener, vm_request("show"), peers_record("none", 0, "")), 1,
                "gave it to hostb (epoch 4)", "recover web1", NULL);
    assert_null(listed("web1"));
    /* Not settled: not forgotten, unless its user says so. */
    must_refuse(with_peer(listener, vm_request("undefine"), peers_record("mine", 4, "")), 3, "not settled",
                NULL);
    assert_int_equal(epoch_of("web1"), 4);
    own("web1", OWNER_GIVEN, 4, "hostb", true);
    must(with_peer(listener, vm_request("undefine"), peers_record("none", 0, "")), 0);
    assert_false(exists(t, "state/vms/web1"));
    own("web1", OWNER_GIVEN, 5, "hostb", false);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "undefine", "vm", "web1", "force", 1)), 0);
    assert_false(exists(t, "state/vms/web1"));
}

static json_t *spec_request(const char *verb)
{
    return json_pack("{s:s, s:s}", "verb", verb, "spec", in_dir(t, "spec.ini"));
}

/* What broke: the VM ran at hostb, and after the `undefine` that start advised it was started here, too. */
static void what_keeps_a_second_vm_of_its_name_away_is_not_forgotten(void **state)
{
    int listener = *(int *)*state;
    need_qemu();

    must(about_spec("define", "spec.ini"), 0);
    own("web1", OWNER_GIVEN, 4, "hostb", true);
    must_refuse(with_peer(listener, spec_request("start"), peers_record("mine", 4, "")), 3,
                "it is hostb's (epoch 4). Start it there; another VM needs another name", NULL);
    must_refuse(with_peer(listener, vm_request("undefine"), peers_record("mine", 6, "")), 3,
                "it is hostb's (epoch 6). Nothing needs to be done here", NULL);
    assert_int_equal(epoch_of("web1"), 4);
    /* Who had it last has forgotten it: then it is over here, too. */
    must_refuse(with_peer(listener, spec_request("start"), peers_record("none", 0, "")), 3,
                "hostb has no record of it any more. If that VM is to be forgotten here: `xmigrate undefine "
                "web1`",
                NULL);
    must(with_peer(listener, vm_request("undefine"), peers_record("none", 0, "")), 0);
    must(about_spec("start", "spec.ini"), 0);
    assert_int_equal(epoch_of("web1"), 5);
    must(stop("web1"), 0);
    /* Who may have it is silent: only its user can say so. */
    own("web1", OWNER_GIVEN, 7, "hostb", true);
    must_refuse(ask(t, vm_request("undefine")), 3, "cannot be asked", "`xmigrate undefine --force web1`",
                NULL);
    json_t *o = ask(t, json_pack("{s:s, s:s, s:b}", "verb", "undefine", "vm", "web1", "force", 1));
    assert_null(json_object_get(o, "disks_kept")); /* they may be the VM's, by now at another host */
    assert_string_equal(xm_json_str(json_array_get(json_object_get(o, "disks_left"), 0), "path", ""),
                        in_dir(t, "ds/web1.raw"));
    must(o, 0);
}

static void a_name_that_a_peer_has_is_not_defined_anew(void **state)
{
    int listener = *(int *)*state;
    need_qemu();

    must_refuse(with_peer(listener, spec_request("start"), peers_record("mine", 5, "")), 3,
                "hostb has a VM web1 (epoch 5)", "another VM needs another name", NULL);
    must_refuse(with_peer(listener, spec_request("define"), peers_record("promised", 5, "")), 3,
                "hostb has a VM web1 (epoch 5)", NULL);
    must_refuse(with_peer(listener, spec_request("define"), peers_record("given", 5, "hostc")), 3,
                "hostb has given a VM web1 to hostc", "`xmigrate recover web1` there", NULL);
    must_refuse(
        with_peer(listener, spec_request("define"),
                  json_pack("{s:b, s:s, s:i}", "ok", 0, "error", "web1 is being handed over", "exit", 4)),
        3, "whether hostb has a VM web1 is not known: web1 is being handed over", NULL);
    assert_false(exists(t, "state/vms/web1"));
    assert_false(exists(t, "ds/web1.raw"));
    json_t *settled = peers_record("given", 5, "hosta");
    json_object_set_new(settled, "settled", json_true());
    must(with_peer(listener, spec_request("define"), settled), 0);
    must(ask(t, spec_request("define")), 0); /* it has a record now: nobody is asked */
}

/* What may be the only copy is listed, and nobody starts or takes it by a guess. */
static void one_that_was_promised_is_undecided(void **state)
{
    struct owner_record rec = {.epoch = 3, .owner = OWNER_PROMISED, .from = "hostb"};
    (void)state;
    need_qemu();

    must(about_spec("define", "spec.ini"), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_string_equal(shown("web1", NULL, "state"), "undecided");
    must_refuse(about_vm("start", "web1"), 3, "hostb may have given it to hosta (epoch 3)", "recover web1",
                NULL);
    must_refuse(about_spec("start", "spec.ini"), 3, "hostb may have given it to hosta (epoch 3)", NULL);
    must_refuse(about_vm("undefine", "web1"), 3, "not settled", NULL);
    must_refuse(autostart("web1", true), 1, "recover web1", NULL);
    write_text("two.ini",
               "[vm]\nname = web2\nmemory = 16M\naccel = tcg\n[disk a]\ndatastore = ds\nfile = web1.raw\n");
    must_refuse(about_spec("define", "two.ini"), 3, "is disk 'root' of VM web1", NULL);
    assert_true(exists(t, "ds/web1.raw"));
}

/* What broke: at its source it was listed as paused, as if its user might let it go on; at its destination as
 * incoming. */
static void one_whose_hand_off_was_cut_is_undecided(void **state)
{
    (void)state;
    need_qemu();

    must(ask(t, start_request()), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/stands"), "", 0, NULL), 0);
    assert_string_equal(shown("web1", NULL, "state"), "paused");
    own("web1", OWNER_GIVEN, epoch_of("web1") + 1, "hostb", false);
    assert_string_equal(shown("web1", NULL, "state"), "undecided");
    own("web1", OWNER_MINE, epoch_of("web1") + 1, "", true);
    assert_string_equal(shown("web1", NULL, "state"), "paused");
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* At a destination: not taken for the one that comes, and its definition is not lost. */
static void a_stopped_vm_is_in_the_way_of_another_of_its_name(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("define", "spec.ini"), 0);
    json_t *vm = json_load_file(in_dir(t, "state/vms/web1/spec.json"), 0, NULL);
    assert_non_null(vm);
    must(ask_as_peer(t, json_pack("{s:s, s:o, s:b, s:i, s:i, s:[i], s:s}", "verb", "peer.prepare", "vm", vm,
                                  "storage", 1, "epoch", 9, "protocol", 1, "used", 0, "job", "1")),
         3);
    assert_string_equal(shown("web1", NULL, "state"), "stopped");
    assert_true(exists(t, "state/vms/web1/spec.json"));
}

/* ---- autostart ---- */

static void autostart_is_set_for_running_and_stopped_ones(void **state)
{
    (void)state;
    need_qemu();
    must_refuse(autostart("web1", true), 1, "there is no VM 'web1'", NULL);
    must(about_spec("start", "spec.ini"), 0);
    must(autostart("web1", true), 0);
    must(stop("web1"), 0);
    json_t *v = listed("web1");
    assert_true(json_is_true(json_object_get(v, "autostart")));
    json_decref(v);
    must(autostart("web1", false), 0);
    v = listed("web1");
    assert_true(json_is_false(json_object_get(v, "autostart")));
    json_decref(v);
}

static void after_a_boot_those_with_autostart_are_started(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("start", "spec.ini"), 0);
    must(autostart("web1", true), 0);
    write_text(
        "two.ini",
        "[vm]\nname = web2\nmemory = 16M\naccel = tcg\n[disk a]\ndatastore = ds\nfile = 2.raw\nsize = 1M\n");
    must(about_spec("define", "two.ini"), 0);
    reboot();
    assert_true(until_state("web1", "running"));
    assert_string_equal(shown("web2", NULL, "state"), "stopped");
    /* Stopped on purpose, it stays so, whatever becomes of the agent, until the host boots again. */
    must(stop("web1"), 0);
    again(SIGKILL);
    again(SIGTERM);
    assert_string_equal(shown("web1", NULL, "state"), "stopped");
    reboot();
    assert_true(until_state("web1", "running"));
}

static void autostart_makes_no_disk(void **state)
{
    (void)state;
    need_qemu();
    must(about_spec("define", "spec.ini"), 0);
    must(autostart("web1", true), 0);
    rename_below("ds", "unmounted");
    assert_int_equal(mkdir(in_dir(t, "ds"), 0755), 0);
    reboot();
    for (struct limit l = limit_start(10); limit_wait(&l);) {
        char *log;
        size_t len;
        assert_int_equal(xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL), 0);
        bool said =
            strstr(log, "could not be started by itself, and will be when its disks are there: disk 'root'");
        free(log);
        if (said)
            break;
    }
    assert_string_equal(shown("web1", NULL, "state"), "stopped");
    assert_false(exists(t, "ds/web1.raw"));
    /* What broke: it was tried once, and stayed off when its datastore was mounted a moment later. */
    assert_int_equal(rmdir(in_dir(t, "ds")), 0);
    rename_below("unmounted", "ds");
    assert_true(until_state("web1", "running"));
}

static void autostart_leaves_alone_what_a_peer_owns_by_now(void **state)
{
    int listener = *(int *)*state;
    need_qemu();

    must(about_spec("define", "spec.ini"), 0);
    must(autostart("web1", true), 0);
    reboot();
    json_decref(serve_one(listener, peers_record("mine", 2, "")));
    for (struct limit l = limit_start(10); limit_wait(&l);) {
        char *log;
        size_t len;
        assert_int_equal(xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL), 0);
        bool said = strstr(log, "hostb owns a newer epoch");
        free(log);
        if (said)
            break;
    }
    assert_string_equal(shown("web1", NULL, "state"), "stopped");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, agent_set_up, agent_tear_down)
#define PEER(f) cmocka_unit_test_setup_teardown(f, peer_set_up, peer_tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(a_stopped_vm_stays_known_and_starts_by_its_name),
        TEST(why_it_ended_is_told),
        TEST(a_start_that_fails_changes_nothing_of_a_vm_that_is_known),
        TEST(a_record_that_cannot_be_read_is_listed_and_nothing_is_done),
        TEST(a_file_of_no_size_for_a_disk_is_told_how_to_get_one),
        TEST(a_disk_that_is_new_and_empty_is_told),
        TEST(a_disk_that_is_gone_is_never_made_anew),
        TEST(a_spec_that_contradicts_the_record_is_refused),
        TEST(a_way_that_does_not_lead_back_is_told_before),
        TEST(a_disk_grows_to_what_its_file_has),
        TEST(two_vms_never_have_one_file),
        TEST(a_disk_that_may_come_back_is_not_another_vms),
        TEST(undefine_says_what_is_not_cleaned_up),
        TEST(a_disk_is_added_by_define_and_made_once),
        TEST(an_image_smaller_than_its_disk_shall_be_gets_advice),
        TEST(a_running_vm_is_neither_defined_nor_undefined),
        TEST(undefine_keeps_disks_and_the_name_goes_on_in_a_higher_epoch),
        TEST(the_firmwares_variables_are_kept),
        TEST(what_is_dumped_can_be_defined),
        PEER(who_gave_it_away_says_where_it_is),
        PEER(what_keeps_a_second_vm_of_its_name_away_is_not_forgotten),
        PEER(a_name_that_a_peer_has_is_not_defined_anew),
        TEST(one_that_was_promised_is_undecided),
        TEST(one_whose_hand_off_was_cut_is_undecided),
        TEST(a_stopped_vm_is_in_the_way_of_another_of_its_name),
        TEST(autostart_is_set_for_running_and_stopped_ones),
        TEST(after_a_boot_those_with_autostart_are_started),
        TEST(autostart_makes_no_disk),
        PEER(autostart_leaves_alone_what_a_peer_owns_by_now),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    return cmocka_run_group_tests_name("agent: inventory", tests, NULL, NULL);
}
