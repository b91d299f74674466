/* SPDX-License-Identifier: MIT */
/* Memory that a front end shares with the driver: none that it could make smaller afterwards, which would
 * end us by a SIGBUS at our next touch. */
#include "mirror/guestmem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (1u << 20)

static int memory(unsigned seals)
{
    int fd = memfd_create("m", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_int_equal(ftruncate(fd, SIZE), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static int map(int fd, bool sealed, struct xm_error *e)
{
    void *m = NULL;
    size_t len;
    uint8_t *at;
    int r = map_shared(fd, 0, SIZE, &m, &len, &at, "guest memory", sealed, e);

    if (!r)
        munmap(m, len);
    return r;
}

static void what_could_shrink_is_refused(void **state)
{
    struct xm_error e = {0};
    int loose = memory(0), fast = memory(F_SEAL_SHRINK);
    char path[] = "/tmp/xmt-guestmem-XXXXXX";
    int file = mkstemp(path);

    (void)state;
    unlink(path);
    assert_int_equal(ftruncate(file, SIZE), 0);
    assert_int_equal(map(loose, true, &e), -EPERM);
    assert_non_null(strstr(e.text, "F_SEAL_SHRINK"));
    assert_int_equal(map(file, true, &e), -EPERM); /* no memfd */
    assert_int_equal(map(fast, true, &e), 0);
    assert_int_equal(map(loose, false, &e), 0);
    close(loose), close(fast), close(file);
}

/* What broke: a sealed file of huge pages, of which the host may have none: a hole in it is as good as its
 * end. */
static void huge_pages_are_refused(void **state)
{
    struct xm_error e = {0};
    int fd = memfd_create("m", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);

    (void)state;
    if (fd < 0 || ftruncate(fd, 64 << 20) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)) {
        print_message("skipped: this kernel has no memfd of huge pages\n");
        skip();
    }
    assert_int_equal(map(fd, true, &e), -EPERM);
    assert_int_equal(map(fd, false, &e), 0); /* a user's own, by `extra` */
    close(fd);
}

static void the_log_and_the_guests_memory_likewise(void **state)
{
    struct xm_guest_mem_ops ops = {.sealed = true};
    struct vu_msg msg = {.p.mem = {.count = 1, .region[0] = {.size = SIZE}}};
    struct dirtylog log = {0};
    struct xm_error e = {0};

    (void)state;
    msg.fd[0] = memory(0);
    assert_null(guestmem_new(&msg, &ops, &e));
    assert_int_equal(e.code, EPERM);
    assert_int_equal(dirtylog_map(&log, msg.fd[0], SIZE, 0, true, &e), -EPERM);
    close(msg.fd[0]);
    msg.fd[0] = memory(F_SEAL_SHRINK);
    struct guestmem *m = guestmem_new(&msg, &ops, &e);
    assert_non_null(m);
    guestmem_free(m);
    close(msg.fd[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_could_shrink_is_refused),
        cmocka_unit_test(huge_pages_are_refused),
        cmocka_unit_test(the_log_and_the_guests_memory_likewise),
    };
    return cmocka_run_group_tests_name("mirror_guestmem", tests, NULL, NULL);
}
