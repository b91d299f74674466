/* SPDX-License-Identifier: MIT */
/* What a host tells another of a VM is what stands durably in its record: a shim may write at the same
 * moment. fsync is watched by standing in front of libc's. */
#include "agent/known.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char dir[400];
static uint64_t comes; /* a record of this epoch is visible, and not durable, right after the next fsync */
static unsigned files, directories;

int fsync(int fd)
{
    struct owner_record rec = {.epoch = comes, .owner = OWNER_MINE, .settled = true};
    struct stat st;
    int r = (int)syscall(SYS_fsync, fd);

    fstat(fd, &st);
    *(S_ISDIR(st.st_mode) ? &directories : &files) += 1;
    comes = 0;
    if (rec.epoch)
        assert_int_equal(owner_save(dir, "web1", &rec, NULL), 0);
    return r;
}

/* What broke: it was synced, then read. Killed in between, the writer of what was read had not made it
 * durable; it was told, the other host acted upon it, and after a power cut it had never been. */
static void what_was_read_is_durable(void **state)
{
    struct agent a = {.conf = {.state_dir = (char *)tmpdir_path("")}};
    struct owner_record rec = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb"};
    struct xm_error e = {0};
    struct known k;

    (void)state;
    pthread_mutex_init(&a.lock, NULL);
    TAILQ_INIT(&a.vms);
    char *path = vm_state_path(&a, "web1", NULL);
    snprintf(dir, sizeof dir, "%s", path);
    free(path);
    assert_int_equal(known_here(&a, "web1", &k, &e), 0); /* nothing at all is known of it */
    assert_int_equal(k.rec.owner, OWNER_NONE);
    assert_int_equal(owner_save(dir, "web1", &rec, NULL), 0);
    files = 0;
    comes = 5;
    assert_int_equal(known_here(&a, "web1", &k, &e), 0);
    assert_int_equal(files > 0, true);
    assert_int_equal(k.rec.epoch, 4);
    assert_int_equal(known_here(&a, "web1", &k, &e), 0);
    assert_int_equal(k.rec.epoch, 5);
}

/* That there is none is told, too. */
static void that_it_was_removed_is_durable(void **state)
{
    struct agent a = {.conf = {.state_dir = (char *)tmpdir_path("")}};
    struct owner_record rec = {.epoch = 4, .owner = OWNER_MINE};
    struct xm_error e = {0};
    struct known k;

    (void)state;
    pthread_mutex_init(&a.lock, NULL);
    TAILQ_INIT(&a.vms);
    assert_int_equal(owner_save(dir, "web1", &rec, NULL), 0);
    char *path = vm_state_path(&a, "web1", "owner.json");
    assert_int_equal(unlink(path), 0);
    free(path);
    directories = 0;
    assert_int_equal(known_here(&a, "web1", &k, &e), 0);
    assert_int_equal(k.rec.owner, OWNER_NONE);
    assert_int_equal(directories, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_read_is_durable),
        cmocka_unit_test(that_it_was_removed_is_durable),
    };

    return cmocka_run_group_tests_name("what is told of a VM", tests, tmpdir_make, tmpdir_remove);
}
