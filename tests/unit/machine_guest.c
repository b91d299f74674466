/* SPDX-License-Identifier: MIT */
/* Whether a guest that stands still is to go on, and whether all that it has asked for is done: what QEMU
 * says, beside what the record and the journal say. */
#include "machine/machine.h"
#include "tests/progress.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* QEMU's monitor: the guest is in this state. */
struct monitor {
    int fd;
    const char *status;
};

static void *monitor_main(void *arg)
{
    struct monitor *m = arg;
    struct xm_jsonl c;

    xm_jsonl_init(&c, m->fd);
    json_t *o = xm_jsonl_recv(&c, UINT64_MAX, NULL);
    dprintf(c.fd, "{\"return\": {\"status\": \"%s\", \"running\": false}, \"id\": %lld}\n", m->status,
            (long long)xm_json_int(o, "id", -1));
    json_decref(o);
    xm_jsonl_close(&c);
    return NULL;
}

static bool is_paused(struct machine *vm, const char *status)
{
    struct monitor m = {.status = status};
    struct xm_error e = {0};
    int pair[2];
    bool paused = false;
    pthread_t t;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    m.fd = pair[1];
    assert_int_equal(pthread_create(&t, NULL, monitor_main, &m), 0);
    qemu_init(&vm->qemu);
    xm_jsonl_init(&vm->qemu.qmp.conn, pair[0]);
    if (machine_guest_paused(vm, &paused, &e) < 0)
        fail_msg("%s", e.text);
    pthread_join(t, NULL);
    qmp_close(&vm->qemu.qmp);
    return paused;
}

/* What broke: the journal of the destination outlives the move, until the source is known to have settled,
 * too. It was taken for «loaded, and not let run yet», and a guest that its user had paused days later went
 * on when its shim died. */
static void a_guest_that_has_run_here_is_paused_by_its_user(void **state)
{
    static const struct {
        enum owner_side owner; /* NONE: no record */
        bool settled;
        enum journal_side journal; /* NONE: no journal */
        bool paused;
    } rows[] = {
        {OWNER_MINE, true, JOURNAL_NONE, true},
        {OWNER_MINE, true, JOURNAL_SOURCE, true},
        {OWNER_MINE, true, JOURNAL_DESTINATION, true},
        {OWNER_MINE, false, JOURNAL_DESTINATION, false},
        {OWNER_PROMISED, true, JOURNAL_DESTINATION, false},
        {OWNER_NONE, true, JOURNAL_DESTINATION, false},
        {OWNER_GIVEN, true, JOURNAL_DESTINATION, false}, /* of an earlier stay */
    };
    char run[300], dir[300], name[32];

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct owner_record rec = {.epoch = 7, .owner = rows[i].owner, .settled = rows[i].settled};
        struct machine vm = {.run_dir = run, .state_dir = dir};
        snprintf(name, sizeof name, "%zu", i);
        snprintf(vm.spec.name, sizeof vm.spec.name, "%s", name);
        snprintf(run, sizeof run, "%s", tmpdir_path(""));
        snprintf(dir, sizeof dir, "%s/%zu", tmpdir_path(""), i);
        if (rows[i].owner)
            assert_int_equal(owner_save(dir, name, &rec, NULL), 0);
        if (rows[i].journal)
            assert_int_equal(journal_write(dir, rows[i].journal, 7, "hostb", NULL, NULL, NULL), 0);
        if (is_paused(&vm, "paused") != rows[i].paused)
            fail_msg("row %zu: it is said to be %s", i, rows[i].paused ? "stopped by us" : "paused");
        assert_false(is_paused(&vm, "inmigrate"));
        assert_false(is_paused(&vm, "suspended"));
        assert_true(vm.guest_running);
        /* Until QEMU goes, or it runs. */
        machine_note_paused(&vm, true);
        assert_true(is_paused(&vm, "postmigrate"));
        machine_note_paused(&vm, false);
        /* A shim that was killed between its stop and its cont. */
        machine_note_stopped(&vm, true);
        assert_false(is_paused(&vm, "paused"));
        machine_note_paused(&vm, true);
        assert_true(is_paused(&vm, "paused"));
        machine_note_paused(&vm, false);
        assert_false(is_paused(&vm, "running"));
        assert_int_equal(is_paused(&vm, "paused"), rows[i].paused);
    }
}

/* A host that swaps, say: the question is not answered in time, or QEMU is about to end. What broke: it was
 * taken for «not running», and a guest that ran was called paused from then on. */
static void no_answer_says_nothing(void **state)
{
    struct machine vm = {.guest_running = true, .postmigrate = true};
    struct xm_error e = {0};
    bool paused = false;
    int pair[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    qemu_init(&vm.qemu);
    xm_jsonl_init(&vm.qemu.qmp.conn, pair[0]);
    close(pair[1]);
    assert_true(machine_guest_paused(&vm, &paused, &e) < 0);
    qmp_close(&vm.qemu.qmp);
    assert_true(vm.guest_running);
    assert_true(vm.postmigrate);
}

/* QEMU's monitor: each letter is an answer about a ring. */
struct rings {
    int fd;
    const char *answers;
};

static void *rings_main(void *arg)
{
    struct rings *r = arg;
    struct xm_jsonl c;
    json_t *o;

    xm_jsonl_init(&c, r->fd);
    for (const char *a = r->answers; *a && (o = xm_jsonl_recv(&c, UINT64_MAX, NULL)); a++) {
        long long id = (long long)xm_json_int(o, "id", -1);
        if (*a == 'r')
            dprintf(c.fd, "{\"error\": {\"desc\": \"no such ring\"}, \"id\": %lld}\n", id);
        else if (*a != 'h')
            dprintf(c.fd, "{\"return\": {\"last-avail-idx\": 7, \"used-idx\": %d}, \"id\": %lld}\n",
                    *a == 'd' ? 7 : 6, id);
        json_decref(o);
    }
    xm_jsonl_close(&c);
    return NULL;
}

/* Of a paused guest whose shim is new. What broke: a QEMU that did not answer was taken for one that has no
 * more rings, and the VM moved without what its guest had asked for. */
static void what_is_left_of_a_disk_is_known_or_not(void **state)
{
    static const struct {
        const char *answers; /* done, left, refused, hangs up */
        int left;            /* -1: not known */
    } rows[] = {{"dr", 0}, {"ddr", 0}, {"l", 1}, {"dl", 1}, {"r", -1}, {"h", -1}, {"dh", -1}};
    char run[300], file[300];
    struct machine vm = {.run_dir = run, .engine = XM_ENGINE_LIBAIO, .spec.vcpus = 1};
    struct vm_disk spec = {.name = "root", .path = file, .size = 1u << 20};
    struct machine_disk d = {.machine = &vm, .spec = &spec};
    struct xm_error e = {0};

    (void)state;
    snprintf(run, sizeof run, "%s", tmpdir_path(""));
    snprintf(file, sizeof file, "%s", tmpdir_write("disk.raw", ""));
    assert_int_equal(truncate(file, 1 << 20), 0);
    if (machine_disk_start(&d, &e) < 0 || machine_disk_serve(&d, &e) < 0)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct rings r = {.answers = rows[i].answers};
        int pair[2];
        pthread_t t;
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        r.fd = pair[1];
        assert_int_equal(pthread_create(&t, NULL, rings_main, &r), 0);
        qemu_init(&vm.qemu);
        xm_jsonl_init(&vm.qemu.qmp.conn, pair[0]);
        int left = machine_disk_left(&d, &e);
        qmp_close(&vm.qemu.qmp);
        pthread_join(t, NULL);
        if (XM_MAX(left, -1) != rows[i].left)
            fail_msg("%s: %d", rows[i].answers, left);
    }
    machine_disk_stop(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_guest_that_has_run_here_is_paused_by_its_user, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test(no_answer_says_nothing),
        cmocka_unit_test_setup_teardown(what_is_left_of_a_disk_is_known_or_not, tmpdir_make, tmpdir_remove),
    };

    return cmocka_run_group_tests_name("machine_guest", tests, NULL, NULL);
}
