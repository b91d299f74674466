/* SPDX-License-Identifier: MIT */
/* Disks are deleted after a migration only where the journal names them and the record says that they are not
 * needed here: every kind of record beside both kinds of journal; and when nobody uses their paths again. */
#include "tests/unit/lib_tmpdir.h"
#include "vm/journal.h"
#include "vm/left.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define E 7u /* the epoch of the hand-off */

static char dir[300], disk[300], other[300];

static void make(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0600);

    assert_true(fd >= 0);
    close(fd);
}

static void journal(enum journal_side side)
{
    json_t *files = json_pack("[s]", disk);

    snprintf(dir, sizeof dir, "%s/vms/web1", tmpdir_path(""));
    snprintf(disk, sizeof disk, "%s", tmpdir_path("disk.raw"));
    snprintf(other, sizeof other, "%s", tmpdir_path("other.raw"));
    json_decref(files);
    files = json_pack("[s]", disk);
    make(disk);
    make(other);
    assert_int_equal(journal_write(dir, side, E, "hostb", NULL, files, NULL), 0);
    json_decref(files);
}

static void record(enum owner_side owner, uint64_t epoch, bool settled)
{
    struct owner_record rec = {.epoch = epoch, .owner = owner, .settled = settled};

    snprintf(owner == OWNER_GIVEN ? rec.to : rec.from, sizeof rec.to, "hostb");
    assert_int_equal(owner_save(dir, "web1", &rec, NULL), 0);
}

static bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* What is on the list goes, as the agent does it. Why one of it stays, or 0. */
static int delete_left(left_used *used, struct xm_error *e)
{
    char *in = left_dir(dir);
    DIR *d = opendir(in);
    int r = 0;

    for (struct dirent *f; d && (f = readdir(d));) {
        char *entry = xm_printf("%s/%s", in, f->d_name);
        int it = f->d_name[0] == '.' ? 0 : left_delete(entry, used, NULL, e);
        r = it ? it : r;
        free(entry);
    }
    if (d)
        closedir(d);
    free(in);
    return r;
}

/* What broke: the agent was killed when it had deleted a disk in a datastore of two hosts and not yet noted
 * that. The other host made a disk of that name, and it was deleted as soon as its VM was stopped. (Among
 * the first: fault points are read once in a process.) */
static void what_was_deleted_is_not_deleted_twice(void **state)
{
    int status;
    pid_t child = fork();

    (void)state;
    if (!child) {
        setenv("XMIGRATE_FAULT", "left-deleted:1:kill", 1);
        journal(JOURNAL_SOURCE);
        json_t *files = json_pack("[s]", disk);
        left_add(dir, "web1", files, false, NULL);
        chmod(disk, 0640); /* changed before it was first looked at: it goes */
        delete_left(NULL, NULL);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    snprintf(dir, sizeof dir, "%s/vms/web1", tmpdir_path(""));
    snprintf(disk, sizeof disk, "%s", tmpdir_path("disk.raw"));
    assert_false(is_there(disk));
    make(disk);
    /* What broke: nobody was told that a file stays, for ever. */
    char said[300] = "";
    int out = memfd_create("log", MFD_CLOEXEC), before = dup(2);
    fflush(stderr);
    dup2(out, 2);
    int r = delete_left(NULL, NULL);
    fflush(stderr);
    dup2(before, 2);
    close(before);
    assert_int_equal(r, 0);
    assert_true(is_there(disk));
    assert_true(pread(out, said, sizeof said - 1, 0) > 0);
    close(out);
    assert_non_null(strstr(said, "disk.raw stays: it is not the file, or not as it was,"));
}

/* The file of that path as a journal names it; the caller's. */
static json_t *named(const char *path)
{
    int fd = open(path, O_RDONLY);
    json_t *file = left_file(path, fd);

    assert_true(fd >= 0);
    close(fd);
    return file;
}

/* In a process of its own. 0: as it should be. */
static int another_file(const char *by, int other_one)
{
    char *kept = xm_printf("%s", tmpdir_path("kept.raw"));
    json_t *files = json_array();

    journal(JOURNAL_SOURCE);
    json_array_append_new(files, named(disk));
    if (!json_object_get(json_array_get(files, 0), by))
        return 77; /* this file system does not say that */
    journal_write(dir, JOURNAL_SOURCE, E, "hostb", NULL, files, NULL);
    int fd = open(disk, O_WRONLY);
    if (pwrite(fd, "data", 4, 0) != 4) /* its guest writes on, until the VM has gone */
        return 1;
    close(fd);
    record(OWNER_GIVEN, E, true);
    if (journal_settle(dir, "web1", NULL))
        return 2;
    if (other_one == 1) {
        unlink(disk);
        make(disk); /* whose number may be that of the other */
    } else if (other_one == 2) {
        make(kept);
        rename(kept, disk);
    }
    return delete_left(NULL, NULL) ? 3 : is_there(disk) != (other_one != 0) ? 4 : 0;
}

/* What broke: an old disk could not be deleted for long (its storage was read-only, say), and somebody
 * deleted it by hand; another host made a disk of its own at that path, or its own VM's, and that was
 * deleted. It is told from the journal's file by what it is, from when the journal knew of it. (Before the
 * others: fault points are read once in a process.) */
static void another_file_at_that_path_is_not_deleted(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        int status;
        pid_t child = fork();
        if (!child) {
            if (i >= 3)
                setenv("XMIGRATE_FAULT", "left-unborn:*:error", 1);
            _exit(another_file(i < 3 ? "born" : "handle", i % 3));
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WEXITSTATUS(status) == 77)
            print_message("skipped: this file system says of no file which it is\n");
        else
            assert_int_equal(status, 0);
        unlink(tmpdir_path("disk.raw"));
    }
}

/* What is made for a move of the disk on this host is told apart likewise, and the empty file that stands
 * for it when the disk has not moved there after all goes like it. */
static void an_empty_file_in_its_place_goes(void **state)
{
    (void)state;
    for (int empty = 0; empty < 2; empty++) {
        journal(JOURNAL_SOURCE);
        json_t *file = named(other), *files = json_array();
        json_t *spec = json_pack("{s:[{s:s}]}", "disks", "path", disk);
        char *path = xm_printf("%s/spec.json", dir);
        if (!json_is_object(file))
            skip();
        json_object_set_new(file, "was", json_string(disk));
        json_array_append_new(files, file);
        assert_int_equal(journal_write(dir, JOURNAL_STORAGE, E, "hosta", NULL, files, NULL), 0);
        assert_int_equal(xm_json_save(path, spec, NULL), 0);
        record(OWNER_MINE, E, true);
        unlink(other);
        assert_int_equal(xm_file_replace(other, "disk", empty ? 0 : 4, NULL), 0);
        assert_int_equal(journal_sweep(dir, "web1", NULL), 0);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_int_equal(is_there(other), !empty);
        unlink(other);
        json_decref(files);
        json_decref(spec);
        free(path);
    }
}

struct row {
    enum owner_side owner; /* NONE: no record */
    uint64_t epoch;
    bool settled, deleted;
};

static void try_all(enum journal_side side, const struct row *r, size_t rows,
                    int (*end)(const char *, const char *, struct xm_error *))
{
    for (size_t i = 0; i < rows; i++) {
        journal(side);
        char *path = xm_printf("%s/owner.json", dir);
        unlink(path);
        free(path);
        if (r[i].owner)
            record(r[i].owner, r[i].epoch, r[i].settled);
        int result = end(dir, "web1", NULL);
        assert_int_equal(delete_left(NULL, NULL), 0);
        if (is_there(disk) == r[i].deleted || (result == 0) != r[i].deleted)
            fail_msg("row %zu: result %d, the disk is %s", i, result, is_there(disk) ? "there" : "gone");
        assert_true(is_there(other));
        path = xm_printf("%s/journal.json", dir);
        assert_int_equal(is_there(path), !r[i].deleted);
        free(path);
    }
}

static void a_migration_that_came_to_nothing(void **state)
{
    static const struct row rows[] = {
        {OWNER_NONE, 0, false, true},       {OWNER_GIVEN, E - 1, true, true},
        {OWNER_GIVEN, E - 1, false, true},  {OWNER_GIVEN, E + 1, true, true}, /* handed back */
        {OWNER_GIVEN, E + 1, false, false}, {OWNER_PROMISED, E, false, false},
        {OWNER_MINE, E, false, false},      {OWNER_MINE, E, true, false},
        {OWNER_MINE, E - 1, true, false},
    };

    (void)state;
    try_all(JOURNAL_DESTINATION, rows, sizeof rows / sizeof *rows, journal_undo);
}

static void a_vm_that_has_gone(void **state)
{
    static const struct row rows[] = {
        {OWNER_GIVEN, E, true, true},      {OWNER_GIVEN, E, false, false},
        {OWNER_GIVEN, E + 1, true, false}, {OWNER_MINE, E - 1, true, false},
        {OWNER_MINE, E + 1, true, false},  {OWNER_NONE, 0, false, false},
        {OWNER_PROMISED, E, false, false},
    };

    (void)state;
    try_all(JOURNAL_SOURCE, rows, sizeof rows / sizeof *rows, journal_settle);
}

/* Found by the simulator: an agent that was killed between making a disk and writing the journal left it
 * for ever. Now the journal comes first; what it only planned, and somebody else made meanwhile and has
 * written to, is not deleted. */
static void a_disk_that_was_about_to_be_made(void **state)
{
    (void)state;
    for (int written = 0; written < 2; written++) {
        journal(JOURNAL_DESTINATION);
        json_t *files = json_pack("[s s]", disk, "/nonexistent/never-made.raw");
        assert_int_equal(journal_plan(dir, JOURNAL_DESTINATION, E, "hostb", NULL, files, NULL), 0);
        json_decref(files);
        char *path = xm_printf("%s/owner.json", dir);
        unlink(path);
        free(path);
        int fd = open(disk, O_WRONLY);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(ftruncate(fd, 1 << 20), 0);
        if (written)
            assert_int_equal(pwrite(fd, "data", 4, 4096), 4);
        assert_int_equal(fsync(fd), 0);
        close(fd);
        assert_int_equal(journal_undo(dir, "web1", NULL), 0);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_int_equal(is_there(disk), written);
        assert_true(is_there(other));
        unlink(disk);
    }
}

/* The same of a disk that is about to move on this host: somebody else was given its name, too. */
static void a_file_that_it_was_about_to_move_to(void **state)
{
    (void)state;
    for (int written = 0; written < 2; written++) {
        journal(JOURNAL_SOURCE);
        json_t *files = json_pack("[s, s]", disk, other);
        json_t *spec = json_pack("{s:[{s:s}]}", "disks", "path", other);
        char *path = xm_printf("%s/spec.json", dir);
        assert_int_equal(journal_plan(dir, JOURNAL_STORAGE, E, "hosta", NULL, files, NULL), 0);
        assert_int_equal(xm_json_save(path, spec, NULL), 0);
        record(OWNER_MINE, E, true);
        int fd = open(disk, O_WRONLY);
        assert_true(fd >= 0);
        if (written)
            assert_int_equal(pwrite(fd, "data", 4, 0), 4);
        assert_int_equal(fsync(fd), 0);
        close(fd);
        assert_int_equal(journal_sweep(dir, "web1", NULL), 0);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_int_equal(is_there(disk), written);
        assert_true(is_there(other));
        unlink(disk);
        free(path);
        json_decref(files);
        json_decref(spec);
    }
}

/* The record of a host whose disk has lost a block. */
static void an_unreadable_record_deletes_nothing(void **state)
{
    (void)state;
    for (int side = JOURNAL_SOURCE; side <= JOURNAL_DESTINATION; side++) {
        journal((enum journal_side)side);
        char *path = xm_printf("%s/owner.json", dir);
        char junk[8192];
        memset(junk, 'x', sizeof junk);
        assert_int_equal(xm_file_replace(path, junk, sizeof junk, NULL), 0);
        free(path);
        assert_true(journal_undo(dir, "web1", NULL) < 0 || side == JOURNAL_SOURCE);
        assert_true(journal_settle(dir, "web1", NULL) < 0 || side == JOURNAL_DESTINATION);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_true(is_there(disk));
    }
}

static void the_other_sides_journal_is_not_touched(void **state)
{
    struct journal j;

    (void)state;
    journal(JOURNAL_SOURCE);
    assert_int_equal(journal_undo(dir, "web1", NULL), 0);
    assert_true(is_there(disk));
    journal(JOURNAL_DESTINATION);
    assert_int_equal(journal_settle(dir, "web1", NULL), 0);
    assert_true(is_there(disk));
    assert_int_equal(journal_read(dir, &j, NULL), 0);
    assert_int_equal(j.side, JOURNAL_DESTINATION);
    assert_int_equal(j.epoch, E);
    assert_false(j.had_record);
    journal_free(&j);
}

static void what_was_before_is_kept(void **state)
{
    struct owner_record before = {.epoch = 5, .owner = OWNER_GIVEN, .to = "hostc", .settled = true}, now;
    struct journal j;

    (void)state;
    journal(JOURNAL_SOURCE);
    assert_int_equal(journal_write(dir, JOURNAL_DESTINATION, E, "hostb", &before, NULL, NULL), 0);
    record(OWNER_PROMISED, E, false);
    assert_int_equal(journal_read(dir, &j, NULL), 0);
    assert_true(j.had_record);
    assert_int_equal(owner_restore(dir, "web1", &j.before, NULL), 0);
    assert_int_equal(owner_load(dir, "web1", &now, NULL), 0);
    assert_memory_equal(&now, &before, sizeof now);
    assert_int_equal(owner_restore(dir, "web1", NULL, NULL), 0);
    assert_int_equal(owner_load(dir, "web1", &now, NULL), -ENOENT);
    journal_free(&j);
}

/* Storage-only: of the old and the new file that one stays which the specification names. */
static void of_two_files_the_named_one_stays(void **state)
{
    (void)state;
    for (int named = 0; named < 2; named++) {
        journal(JOURNAL_SOURCE);
        json_t *files = json_pack("[s, s]", disk, other);
        json_t *spec = json_pack("{s:[{s:s}]}", "disks", "path", named ? other : disk);
        char *path = xm_printf("%s/spec.json", dir);
        assert_int_equal(journal_write(dir, JOURNAL_STORAGE, E, "hosta", NULL, files, NULL), 0);
        record(OWNER_MINE, E, true);
        unlink(path);
        assert_true(journal_sweep(dir, "web1", NULL) < 0); /* which one it is is not known */
        assert_int_equal(xm_json_save(path, spec, NULL), 0);
        record(OWNER_GIVEN, E, true);
        assert_int_equal(journal_sweep(dir, "web1", NULL), -EBUSY);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_true(is_there(disk) && is_there(other));
        record(OWNER_MINE, E, true);
        assert_int_equal(journal_sweep(dir, "web1", NULL), 0);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_int_equal(is_there(disk), !named);
        assert_int_equal(is_there(other), named);
        free(path);
        json_decref(files);
        json_decref(spec);
    }
}

/* What broke: the datastore was unmounted while its disks were to go. They counted as gone, nothing named
 * them any more, and they came back with the datastore. */
static void what_is_not_mounted_is_not_gone(void **state)
{
    char *ds = xm_printf("%s", tmpdir_path("ds")), *path = xm_printf("%s/disk.raw", ds),
         *mark = xm_printf("%s/.mark", ds);
    json_t *files = json_pack("[s]", path);

    (void)state;
    journal(JOURNAL_SOURCE);
    assert_int_equal(journal_end(dir, NULL), 0);
    record(OWNER_GIVEN, E, true);
    assert_int_equal(journal_write(dir, JOURNAL_SOURCE, E, "hostb", NULL, files, NULL), 0);
    assert_int_equal(journal_settle(dir, "web1", NULL), 0);
    assert_int_equal(delete_left(NULL, NULL), -ENODEV); /* no mount point */
    assert_int_equal(mkdir(ds, 0700), 0);
    assert_int_equal(delete_left(NULL, NULL), -ENODEV); /* an empty one */
    make(path);
    make(mark);
    assert_int_equal(delete_left(NULL, NULL), 0); /* mounted again */
    assert_false(is_there(path));
    assert_int_equal(left_add(dir, "web1", files, false, NULL), 0);
    assert_int_equal(delete_left(NULL, NULL), 0); /* deleted, and killed before that was noted */
    unlink(mark);
    rmdir(ds);
    json_decref(files);
    free(mark);
    free(path);
    free(ds);
}

static unsigned asks(struct journal_open *open)
{
    struct owner_record rec = {.owner = OWNER_MINE, .epoch = E};
    struct journal j;

    assert_int_equal(journal_read(dir, &j, NULL), 0);
    unsigned n = journal_asks(&j, &rec, open);
    journal_free(&j);
    return n;
}

/* What broke: the next move wrote over the journal, and with it over the only note that hostb may have taken
 * the VM. It came from hosta, was offered to hostb, then to hostc, then its disks moved. */
static void hand_offs_that_are_open_are_kept(void **state)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    json_t *none = json_array();

    (void)state;
    journal(JOURNAL_DESTINATION); /* of hostb */
    record(OWNER_MINE, E, true);
    assert_int_equal(journal_write(dir, JOURNAL_SOURCE, E + 1, "hostc", NULL, none, NULL), 0);
    assert_int_equal(journal_write(dir, JOURNAL_SOURCE, E + 1, "hostd", NULL, none, NULL), 0);
    assert_int_equal(journal_write(dir, JOURNAL_SOURCE, E + 1, "hostc", NULL, none, NULL), 0);
    assert_int_equal(journal_write(dir, JOURNAL_STORAGE, E, "hosta", NULL, none, NULL), 0);
    assert_int_equal(asks(open), 3);
    assert_string_equal(open[0].peer, "hostc");
    assert_int_equal(open[0].side, JOURNAL_SOURCE);
    assert_int_equal(open[0].epoch, E + 1);
    assert_string_equal(open[1].peer, "hostd");
    assert_string_equal(open[2].peer, "hostb");
    assert_int_equal(open[2].side, JOURNAL_DESTINATION);
    assert_int_equal(journal_close(dir, "hostd", E + 1, NULL),
                     0); /* behind a journal that is none of a hand-off */
    assert_int_equal(asks(open), 2);
    assert_int_equal(journal_end(dir, NULL), 0);
    assert_int_equal(asks(open), 2);
    assert_string_equal(open[0].peer, "hostc");
    assert_int_equal(journal_close(dir, "hostc", E, NULL), 0); /* its word is about another one */
    assert_int_equal(asks(open), 2);
    assert_int_equal(journal_close(dir, "hostc", E + 1, NULL), 0); /* it is the first one by now */
    assert_int_equal(journal_close(dir, "nobody", E + 1, NULL), 0);
    assert_int_equal(asks(open), 1);
    assert_string_equal(open[0].peer, "hostb");
    assert_int_equal(journal_undo(dir, "web1", NULL), -EBUSY); /* which names no files any more */
    assert_true(is_there(disk));
    assert_int_equal(journal_close(dir, "hostb", E + 1, NULL), 0);
    assert_int_equal(asks(open), 0);
    assert_int_equal(journal_close(dir, "hostb", E + 1, NULL), 0);
    json_decref(none);
}

static void there_is_an_end_to_them(void **state)
{
    struct xm_error e = {0};
    json_t *none = json_array();
    char peer[16];
    int r = 0;

    (void)state;
    journal(JOURNAL_SOURCE);
    for (unsigned i = 0; !r && i < 100; i++) {
        snprintf(peer, sizeof peer, "host%u", i);
        r = journal_write(dir, JOURNAL_SOURCE, E, peer, NULL, none, &e);
    }
    assert_int_equal(r, -EBUSY);
    json_decref(none);
}

typedef int ending(const char *, const char *, struct xm_error *);

/* The i-th of the three functions that delete, with a journal, a record and a specification that let it. */
static ending *ends(unsigned i)
{
    static const enum journal_side sides[] = {JOURNAL_SOURCE, JOURNAL_DESTINATION, JOURNAL_STORAGE};
    static ending *const by[] = {journal_settle, journal_undo, journal_sweep};

    journal(sides[i]);
    record(i < 2 ? OWNER_GIVEN : OWNER_MINE, i == 1 ? E + 1 : E, true);
    char *path = xm_printf("%s/spec.json", dir);
    json_t *spec = json_pack("{s:[{s:s}]}", "disks", "path", other);
    assert_int_equal(xm_json_save(path, spec, NULL), 0);
    json_decref(spec);
    free(path);
    return by[i];
}

/* A process has it open as a disk, whatever the specification says. */
static void a_file_in_use_is_not_deleted(void **state)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        ending *end = ends(i);
        int fd = open(disk, O_RDWR);
        assert_int_equal(fcntl(fd, F_OFD_SETLK, &all), 0);
        assert_int_equal(end(dir, "web1", NULL), 0);
        assert_int_equal(delete_left(NULL, NULL), -EBUSY);
        assert_true(is_there(disk));
        close(fd);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_false(is_there(disk));
    }
}

/* Its storage is read-only by now, say; here it is a directory. What broke: no move of the VM began any more;
 * and then the next move forgot the file. */
static void a_file_that_cannot_be_deleted_stays_on_the_list_and_nobody_waits(void **state)
{
    struct xm_error e;
    json_t *none = json_array();

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        ending *end = ends(i);
        char *journal_file = xm_printf("%s/journal.json", dir);
        assert_int_equal(unlink(disk) | mkdir(disk, 0700), 0);
        assert_int_equal(end(dir, "web1", NULL), 0);
        assert_false(is_there(journal_file));
        e.text[0] = 0;
        assert_true(delete_left(NULL, &e) < 0);
        assert_non_null(strstr(e.text, disk));
        assert_int_equal(journal_write(dir, JOURNAL_SOURCE, E + 1, "hostc", NULL, none, NULL), 0);
        assert_int_equal(journal_end(dir, NULL), 0); /* the next one, and its end */
        assert_true(delete_left(NULL, NULL) < 0);
        assert_int_equal(rmdir(disk), 0);
        make(disk);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_false(is_there(disk));
        free(journal_file);
    }
    json_decref(none);
}

/* What broke: beside «given to hostb» stood the definition that a migration from hostc had brought, which
 * came to nothing: `dump` told of disks that never were. */
static void the_definition_of_the_earlier_stay_is_there_again(void **state)
{
    struct owner_record before = {.epoch = 5, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};

    (void)state;
    for (int had = 0; had < 2; had++) {
        journal(JOURNAL_SOURCE);
        char *path = xm_printf("%s/spec.json", dir);
        json_t *old = json_pack("{s:s}", "name", "old"), *new = json_pack("{s:s}", "name", "new"), *is = NULL;
        unlink(path);
        if (had)
            assert_int_equal(xm_json_save(path, old, NULL), 0);
        assert_int_equal(journal_plan(dir, JOURNAL_DESTINATION, E, "hostc", &before, NULL, NULL), 0);
        assert_int_equal(journal_write(dir, JOURNAL_DESTINATION, E, "hostc", &before, NULL, NULL), 0);
        assert_int_equal(xm_json_save(path, new, NULL), 0);
        record(OWNER_PROMISED, E, false);
        assert_int_equal(journal_close(dir, "hostd", E + 1, NULL), 0);
        assert_int_equal(journal_undo(dir, "web1", NULL), -EBUSY);
        assert_int_equal(owner_restore(dir, "web1", &before, NULL), 0);
        assert_int_equal(journal_undo(dir, "web1", NULL), 0);
        assert_int_equal(xm_json_load(path, &is, NULL), had ? 0 : -ENOENT);
        assert_string_equal(xm_json_str(is, "name", ""), had ? "old" : "");
        json_decref(is);
        json_decref(old);
        json_decref(new);
        free(path);
    }
}

static int use; /* what is said of each path */

static int said(void *ctx, const char *path, struct xm_error *e)
{
    (void)ctx;
    return use < 0 ? xm_error_set(e, -use, "not known of %s", path) : use;
}

static void a_path_that_is_used_again_is_never_swept(void **state)
{
    json_t *files = json_pack("[s]", disk);

    (void)state;
    journal(JOURNAL_SOURCE);
    json_array_set_new(files, 0, json_string(disk));
    for (int i = 0; i < 2; i++)
        assert_int_equal(left_add(dir, "web1", files, false, NULL), 0); /* it stands there once */
    use = -EAGAIN;
    assert_int_equal(delete_left(said, NULL), -EAGAIN);
    assert_true(is_there(disk));
    use = 1;
    assert_int_equal(delete_left(said, NULL), 0);
    assert_true(is_there(disk));
    use = 0;
    assert_int_equal(delete_left(said, NULL), 0); /* it was forgotten by then */
    assert_true(is_there(disk));
    json_decref(files);
}

/* The variables of its firmware, of which the next migration makes a file of the same name. */
static void what_lies_in_its_own_directory_goes_at_once(void **state)
{
    (void)state;
    journal(JOURNAL_SOURCE);
    char *nvram = xm_printf("%s/nvram.fd", dir);
    json_t *files = json_pack("[s]", nvram);
    make(nvram);
    assert_int_equal(left_add(dir, "web1", files, false, NULL), 0);
    assert_false(is_there(nvram));
    make(nvram);
    assert_int_equal(delete_left(NULL, NULL), 0);
    assert_true(is_there(nvram));
    json_decref(files);
    free(nvram);
}

/* The specification names a file that is not there: the other one may be the only copy. */
static void the_named_file_has_to_be_there(void **state)
{
    (void)state;
    journal(JOURNAL_SOURCE);
    json_t *files = json_pack("[s, s]", disk, other),
           *spec = json_pack("{s:[{s:s}]}", "disks", "path", other);
    char *path = xm_printf("%s/spec.json", dir);
    assert_int_equal(journal_write(dir, JOURNAL_STORAGE, E, "hosta", NULL, files, NULL), 0);
    record(OWNER_MINE, E, true);
    assert_int_equal(xm_json_save(path, spec, NULL), 0);
    unlink(other);
    assert_int_equal(journal_sweep(dir, "web1", NULL), -ENOENT);
    assert_int_equal(delete_left(NULL, NULL), 0);
    assert_true(is_there(disk));
    free(path);
    json_decref(files);
    json_decref(spec);
}

/* What broke: the state directory failed twice while a disk was being swapped, and the guest powered itself
 * off before it was well again: spec.json named a file without the disk for good. */
static void a_disk_that_did_not_move_is_where_it_was(void **state)
{
    (void)state;
    for (int moved = 0; moved < 2; moved++) {
        journal(JOURNAL_SOURCE);
        json_t *files = json_pack("[{s:s s:s s:s} s]", "path", other, "was", disk, "datastore", "ds1", disk),
               *spec = json_pack("{s:[{s:s s:s}]}", "disks", "path", other, "datastore", "ds2"), *is;
        char *path = xm_printf("%s/spec.json", dir);
        assert_int_equal(journal_write(dir, JOURNAL_STORAGE, E, "hosta", NULL, files, NULL), 0);
        record(OWNER_MINE, E, true);
        assert_int_equal(xm_json_save(path, spec, NULL), 0);
        assert_int_equal(xm_file_replace(other, "data", moved ? 4 : 0, NULL), 0);
        assert_int_equal(journal_sweep(dir, "web1", NULL), moved ? 0 : -ENOENT);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_int_equal(is_there(disk), !moved);
        assert_int_equal(journal_mend(dir, NULL), 0);
        assert_int_equal(xm_json_load(path, &is, NULL), 0);
        const json_t *d = json_array_get(json_object_get(is, "disks"), 0);
        assert_string_equal(xm_json_str(d, "path", ""), moved ? other : disk);
        assert_string_equal(xm_json_str(d, "datastore", ""), moved ? "ds2" : "ds1");
        assert_int_equal(journal_sweep(dir, "web1", NULL), 0);
        assert_int_equal(delete_left(NULL, NULL), 0);
        assert_int_equal(is_there(other), moved);
        json_decref(is);
        json_decref(files);
        json_decref(spec);
        free(path);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, tmpdir_make, tmpdir_remove)
    const struct CMUnitTest tests[] = {
        T(another_file_at_that_path_is_not_deleted),
        T(what_was_deleted_is_not_deleted_twice),
        T(an_empty_file_in_its_place_goes),
        T(what_is_not_mounted_is_not_gone),
        T(hand_offs_that_are_open_are_kept),
        T(there_is_an_end_to_them),
        T(a_migration_that_came_to_nothing),
        T(a_vm_that_has_gone),
        T(a_disk_that_was_about_to_be_made),
        T(a_file_that_it_was_about_to_move_to),
        T(an_unreadable_record_deletes_nothing),
        T(the_other_sides_journal_is_not_touched),
        T(what_was_before_is_kept),
        T(of_two_files_the_named_one_stays),
        T(a_file_in_use_is_not_deleted),
        T(a_file_that_cannot_be_deleted_stays_on_the_list_and_nobody_waits),
        T(the_definition_of_the_earlier_stay_is_there_again),
        T(a_path_that_is_used_again_is_never_swept),
        T(what_lies_in_its_own_directory_goes_at_once),
        T(the_named_file_has_to_be_there),
        T(a_disk_that_did_not_move_is_where_it_was),
    };
    return cmocka_run_group_tests_name("vm_journal", tests, NULL, NULL);
}
