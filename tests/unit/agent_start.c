/* SPDX-License-Identifier: MIT */
/* A VM that is started: with which disks, and what is refused. A real agent, with make-believe shims
 * (lib_shim.c). */
#include "tests/unit/lib_agent.h"
#include "vm/journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/progress.h"

static struct test_agent *const t = &test_agent;
static char fault[64];

static void a_vm_is_started_found_again_and_stopped(void **state)
{
    (void)state;
    need_qemu();
    must(ask(t, start_request()), 0);
    assert_true(exists(t, "ds/web1.raw"));
    assert_true(exists(t, "state/vms/web1/owner.json"));
    assert_string_equal(state_of("web1"), "running");
    must(ask(t, start_request()), 3); /* twice is once too often */
    test_agent_stop(t, SIGKILL);
    assert_int_equal(test_agent_start(t), 0);
    assert_string_equal(state_of("web1"), "running");
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    assert_string_equal(state_of("web1"), "stopped");
    assert_false(exists(t, "run/vms/web1"));
    assert_true(exists(t, "ds/web1.raw"));
    must(ask(t, start_request()), 0); /* and again, with the disk that it has */
}

/* Seen: a disk was made below the mount point of a datastore that was not mounted, and hidden by the next
 * mount. */
static void nothing_is_made_where_a_datastore_is_not_mounted(void **state)
{
    char away[256], here[256];
    (void)state;
    need_qemu();

    snprintf(here, sizeof here, "%s", in_dir(t, "ds"));
    snprintf(away, sizeof away, "%s", in_dir(t, "ds.mounted"));
    must(ask(t, start_request()), 0); /* the first use */
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "undefine", "vm", "web1")), 0);
    assert_int_equal(rename(here, away), 0);
    assert_int_equal(mkdir(here, 0700), 0);
    json_t *o = ask(t, start_request());
    if (!strstr(xm_json_str(o, "error", ""), "is it mounted?"))
        fail_msg("%s", json_dumps(o, 0));
    must(o, 3);
    assert_int_equal(files_in_ds(), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/datastores.json"), "{", 1, NULL), 0);
    must(ask(t, start_request()), 3); /* what it was is not known: not a first use */
    assert_int_equal(unlink(in_dir(t, "state/datastores.json")), 0);
    assert_int_equal(rmdir(here), 0); /* nothing at all */
    assert_int_equal(rename(away, here), 0);
    must(ask(t, start_request()), 0);
}

static void edit_spec(const char *how)
{
    const char *const argv[] = {"sed", "-i", how, in_dir(t, "spec.ini"), NULL};

    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
}

static void must_refuse_disk(const char *part)
{
    json_t *answer = ask(t, start_request());

    if (!strstr(xm_json_str(answer, "error", ""), part))
        fail_msg("%s", json_dumps(answer, 0));
    must(answer, 3);
}

/* Seen: taken as raw, silently. What a guest has written to a disk in use is its own business. */
static void an_image_of_another_format_is_no_disk(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(xm_file_replace(in_dir(t, "ds/web1.raw"), "QFI\xfb\0\0\0\3", 8, NULL), 0);
    assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), 1000), 0); /* a qcow2 file has any size */
    must_refuse_disk(
        "looks like a qcow2 image, and disks are raw here: convert it by qemu-img, or write «format = raw»");
    assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), 1 << 20), 0);
    must_refuse_disk("looks like a qcow2 image");
    edit_spec("$aformat = raw");
    must(ask(t, start_request()), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    edit_spec("$d");
    must(ask(t, start_request()), 0); /* it has been in use as raw */
}

static void the_firmwares_variables_are_made_once(void **state)
{
    char *text = NULL, *insert;
    size_t len;
    (void)state;
    need_qemu();
    json_t *stop = json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1);
    assert_int_equal(xm_file_replace(in_dir(t, "vars"), "no multiple", 11, NULL), 0);
    insert = xm_printf("/^accel/a firmware = %s\\nnvram = %s", in_dir(t, "vars"), in_dir(t, "vars"));
    edit_spec(insert);
    free(insert);
    must(ask(t, start_request()), 1);
    assert_false(exists(t, "state/vms/web1"));
    assert_int_equal(truncate(in_dir(t, "vars"), 8192), 0);
    must(ask(t, start_request()), 0);
    must(ask(t, json_incref(stop)), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/vms/web1/nvram.fd"), "set", 3, NULL), 0);
    must(ask(t, start_request()), 0);
    must(ask(t, stop), 0);
    assert_int_equal(xm_file_read(in_dir(t, "state/vms/web1/nvram.fd"), 1 << 20, &text, &len, NULL), 0);
    assert_string_equal(text, "set");
    free(text);
    assert_int_equal(unlink(in_dir(t, "state/vms/web1/nvram.fd")), 0);
    json_t *answer = ask(t, start_request()); /* no guess */
    assert_non_null(
        strstr(xm_json_str(answer, "error", ""), "the variables of its firmware, has gone: put a copy"));
    must(answer, 1);
}

static int64_t recorded_block(void)
{
    json_t *spec = json_load_file(in_dir(t, "state/vms/web1/spec.json"), 0, NULL);
    int64_t block = xm_json_int(json_array_get(json_object_get(spec, "disks"), 0), "block_size", 0);

    json_decref(spec);
    return block;
}

static void write_to_disk(const char *bytes, off_t at)
{
    int fd = open(in_dir(t, "ds/web1.raw"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_int_equal(pwrite(fd, bytes, strlen(bytes), at), (ssize_t)strlen(bytes));
    close(fd);
}

/* What broke: it was the block of the storage that the file lies on just now, so that a guest did not find
 * its partitions; also of a VM that was known, when its specification was given again. */
static void a_disks_block_is_that_of_its_partitions_and_stays(void **state)
{
    (void)state;
    need_qemu();
    write_to_disk("EFI PART", 4096);
    must(ask(t, start_request()), 0);
    assert_int_equal(recorded_block(), 4096);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    write_to_disk("________", 4096); /* it is the guest's */
    must(ask(t, start_request()), 0);
    assert_int_equal(recorded_block(), 4096);
}

static void a_disk_in_a_datastore_is_no_link(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(xm_file_replace(in_dir(t, "elsewhere"), "", 0, NULL), 0);
    assert_int_equal(truncate(in_dir(t, "elsewhere"), 1 << 20), 0);
    assert_int_equal(symlink(in_dir(t, "elsewhere"), in_dir(t, "ds/web1.raw")), 0);
    must_refuse_disk("ds/web1.raw is a link, and a disk in a datastore is a plain file");
}

/* Processes that have its shim.json on their command line. */
static int shims_of(const char *vm)
{
    char *what = xm_printf("grep -ls '%s/run/vms/%s/shim[.]json' /proc/[0-9]*/cmdline | wc -l", t->dir, vm);
    char *out = NULL;
    const char *const argv[] = {"sh", "-c", what, NULL};

    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, &out, NULL), 0);
    int n = atoi(out);
    free(what);
    free(out);
    return n;
}

static void a_start_that_fails_leaves_nothing(void **state)
{
    (void)state;
    need_qemu();

    edit_spec("s/web1$/broken/");
    json_t *answer = ask(t, start_request());
    assert_string_equal(xm_json_str(answer, "error", ""), "VM broken: it does not want to");
    must(answer, 1);
    assert_int_equal(files_in_ds(), 0);
    assert_false(exists(t, "run/vms/broken"));
    assert_false(exists(t, "state/vms/broken"));
}

/* A start that is given up after its time. What broke: its shim lived on, with the disks and perhaps a
 * running guest, and the VM was said to be stopped. */
static void a_shim_that_does_not_come_up_is_ended(void **state)
{
    (void)state;
    need_qemu();
    edit_spec("s/web1$/late/");
    assert_int_equal(xm_file_replace(fault, "shim-late:1:error", 17, NULL), 0);
    json_t *answer = ask(t, json_pack("{s:s, s:s}", "verb", "define", "spec", in_dir(t, "spec.ini")));
    must(answer, 0);
    must_refuse(ask(t, json_pack("{s:s, s:s}", "verb", "start", "vm", "late")), 1,
                "did not end within 1.00 s", NULL);
    assert_false(exists(t, "run/vms/late"));
    assert_string_equal(state_of("late"), "stopped");
    assert_int_equal(shims_of("late"), 0);
}

/* It came up just then. */
static void a_shim_that_is_late_counts(void **state)
{
    (void)state;
    need_qemu();
    edit_spec("s/web1$/mute/");
    assert_int_equal(xm_file_replace(fault, "shim-late:1:error", 17, NULL), 0);
    must(ask(t, start_request()), 0);
    assert_string_equal(state_of("mute"), "running");
    assert_int_equal(shims_of("mute"), 1);
}

static void a_vm_that_was_given_away_is_not_started(void **state)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb"};
    (void)state;
    need_qemu();

    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    must(ask(t, start_request()), 3);
    assert_int_equal(files_in_ds(), 0);
}

/* What broke: two hosts that defined one name at the same moment each heard that the other had no such VM. */
static void the_name_is_held_while_others_are_asked(void **state)
{
    int hostb = *(int *)*state;

    need_qemu();
    for (int define = 0; define < 2; define++) {
        struct xm_jsonl mine, its;
        json_t *request = start_request();
        if (define)
            json_object_set_new(request, "verb", json_string("define"));
        xm_jsonl_init(&mine, agent_socket());
        assert_int_equal(xm_jsonl_send(mine.fd, request, -1, NULL), 0);
        json_decref(serve_begin(hostb, &its));
        json_t *o = ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.owner", "vm", "web1"));
        if (!xm_json_bool(o, "present", false))
            fail_msg("%s", json_dumps(o, 0));
        json_decref(o);
        xm_jsonl_send(its.fd,
                      json_pack("{s:b, s:s, s:i, s:b}", "ok", 1, "owner", "none", "epoch", 0, "present", 1),
                      -1, NULL); /* it defines one, too */
        xm_jsonl_close(&its);
        must_refuse(last_of(&mine), 3, "just being defined there", NULL);
        xm_jsonl_close(&mine);
        assert_string_equal(state_of("web1"), "");
        assert_false(exists(t, "ds/web1.raw"));
    }
}

/* Its disk was about to move when the state directory failed, twice; then its guest powered itself off. What
 * broke: no command brought it back. */
static void a_move_of_its_disk_that_was_left_uncertain_is_no_obstacle(void **state)
{
    json_t *spec, *files;
    (void)state;
    need_qemu();

    must(ask(t, start_request()), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    files = json_pack("[{s:s, s:s, s:s}, s]", "path", in_dir(t, "ds/new.raw"), "was",
                      in_dir(t, "ds/web1.raw"), "datastore", "ds", in_dir(t, "ds/web1.raw"));
    assert_int_equal(xm_json_load(in_dir(t, "state/vms/web1/spec.json"), &spec, NULL), 0);
    json_object_set(json_array_get(json_object_get(spec, "disks"), 0), "path",
                    json_object_get(json_array_get(files, 0), "path"));
    assert_int_equal(xm_file_replace(in_dir(t, "ds/new.raw"), "", 0, NULL), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_STORAGE, 1, "hosta", NULL, files, NULL), 0);
    assert_int_equal(xm_json_save(in_dir(t, "state/vms/web1/spec.json"), spec, NULL), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "vm", "web1")), 0);
    assert_true(until_gone(t, "ds/new.raw"));
    assert_true(exists(t, "ds/web1.raw"));
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    json_decref(files);
    json_decref(spec);
}

/* What broke: who mended where its disk is had read its definition before that was changed, and wrote the
 * old one back: what its user had been told to be set was lost. */
static void what_is_set_while_it_is_mended_stays(void **state)
{
    json_t *spec, *files, *disk;
    (void)state;
    need_qemu();

    must(ask(t, json_pack("{s:s, s:s}", "verb", "define", "spec", in_dir(t, "spec.ini"))), 0);
    test_agent_stop(t, SIGTERM);
    files = json_pack("[{s:s, s:s, s:s}, s]", "path", in_dir(t, "ds/new.raw"), "was",
                      in_dir(t, "ds/web1.raw"), "datastore", "ds", in_dir(t, "ds/web1.raw"));
    assert_int_equal(xm_json_load(in_dir(t, "state/vms/web1/spec.json"), &spec, NULL), 0);
    disk = json_array_get(json_object_get(spec, "disks"), 0);
    json_object_set(disk, "path", json_object_get(json_array_get(files, 0), "path"));
    assert_int_equal(xm_file_replace(in_dir(t, "ds/new.raw"), "", 0, NULL), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_STORAGE, 1, "hosta", NULL, files, NULL), 0);
    assert_int_equal(xm_json_save(in_dir(t, "state/vms/web1/spec.json"), spec, NULL), 0);
    json_decref(files);
    json_decref(spec);
    assert_int_equal(xm_file_replace(fault, "journal-mend:1:delay=2000", 25, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    for (struct limit l = limit_start(20); access(fault, F_OK) == 0 && limit_wait(&l);)
        ; /* it has been read */
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "set", "vm", "web1", "autostart", 1)), 0);
    assert_true(until_gone(t, "ds/new.raw"));
    assert_int_equal(xm_json_load(in_dir(t, "state/vms/web1/spec.json"), &spec, NULL), 0);
    disk = json_array_get(json_object_get(spec, "disks"), 0);
    assert_string_equal(xm_json_str(disk, "path", ""), in_dir(t, "ds/web1.raw"));
    assert_true(json_is_true(json_object_get(spec, "autostart")));
    json_decref(spec);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, agent_set_up, agent_tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(a_vm_is_started_found_again_and_stopped),
        TEST(nothing_is_made_where_a_datastore_is_not_mounted),
        TEST(an_image_of_another_format_is_no_disk),
        TEST(the_firmwares_variables_are_made_once),
        TEST(a_disk_in_a_datastore_is_no_link),
        TEST(a_disks_block_is_that_of_its_partitions_and_stays),
        TEST(a_start_that_fails_leaves_nothing),
        TEST(a_move_of_its_disk_that_was_left_uncertain_is_no_obstacle),
        TEST(what_is_set_while_it_is_mended_stays),
        TEST(a_shim_that_does_not_come_up_is_ended),
        TEST(a_shim_that_is_late_counts),
        TEST(a_vm_that_was_given_away_is_not_started),
        cmocka_unit_test_setup_teardown(the_name_is_held_while_others_are_asked, peer_set_up, peer_tear_down),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    snprintf(fault, sizeof fault, "@/tmp/xmt-start-fault-%d", getpid());
    setenv("XMIGRATE_FAULT", fault, 1);
    memmove(fault, fault + 1, strlen(fault));
    return cmocka_run_group_tests_name("agent: VMs of its own", tests, NULL, NULL);
}
