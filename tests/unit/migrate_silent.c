/* SPDX-License-Identifier: MIT */
/* A destination whose links live, and that never answers something that it was asked, or answers for ever:
 * whoever aborts, or waits for the end, does not wait for it. */
#include "migrate/source.h"
#include "tests/progress.h"
#include "tests/unit/lib_netpair.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE (4u << 20)

static struct end here, there;
static struct machine vm;
static struct source m;
static int unanswered;           /* the type of a frame */
static const char *aborted_when; /* it is asked for this, and does not answer */
static atomic_uint held;
static int tap = -1; /* where one frame more comes for the guest with each of this */

static void keep(struct xm_rx *rx)
{
    pthread_mutex_lock(&there.lock);
    STAILQ_INSERT_TAIL(&there.held, rx, link);
    pthread_mutex_unlock(&there.lock);
    held++;
}

static void destination(void *unused, struct xm_rx *rx)
{
    static const char yes[] = "{\"ok\": true}", frame[74];

    (void)unused;
    bool is = rx->payload && memmem(rx->payload, rx->hdr.length, aborted_when, strlen(aborted_when));
    if (is)
        m.asked.abort = true;
    if (tap >= 0 && rx->payload && memmem(rx->payload, rx->hdr.length, "\"late\"", 6) &&
        write(tap, frame, sizeof frame) < 0)
        tap = -1;
    if (is || rx->hdr.type == unanswered) {
        keep(rx);
    } else if (rx->hdr.type == XM_FRAME_CALL) {
        xm_rx_done(rx, 0, yes, sizeof yes - 1);
    } else {
        xm_rx_done(rx, 0, NULL, 0);
    }
}

static void nobody_hears(struct machine *unused, json_t *event)
{
    (void)unused;
    json_decref(event);
}

static void *qemu_main(void *arg)
{
    struct xm_jsonl c;
    json_t *o;

    xm_jsonl_init(&c, *(int *)arg);
    while ((o = xm_jsonl_recv(&c, UINT64_MAX, NULL))) {
        const char *says = !strcmp(xm_json_str(o, "execute", ""), "query-status")
                               ? "\"status\": \"running\", \"running\": true"
                               : "\"status\": \"none\"";
        dprintf(c.fd, "{\"return\": {%s}, \"id\": %lld}\n", says, (long long)xm_json_int(o, "id", -1));
        json_decref(o);
    }
    xm_jsonl_close(&c);
    return NULL;
}

static pthread_t qemu_thread;
static int qemu_fd[2];

static int set_up(void **state)
{
    if (tmpdir_make(state))
        return -1;
    unanswered = -1;
    aborted_when = "nothing";
    held = 0;
    end_init(&here, 0);
    end_init(&there, 0);
    there.opts.sink.check = NULL;
    there.opts.sink.frame = destination;
    end_open(&here);
    end_open(&there);
    end_join_tcp(&here, &there, 1, NULL);
    vm = (struct machine){.run_dir = xm_printf("%s", tmpdir_path("")), .emit = nobody_hears};
    snprintf(vm.spec.name, sizeof vm.spec.name, "web1");
    qemu_init(&vm.qemu);
    assert_int_equal(xm_mailbox_init(&vm.mailbox), 0);
    net_socketpair(qemu_fd);
    xm_jsonl_init(&vm.qemu.qmp.conn, qemu_fd[0]);
    assert_int_equal(pthread_create(&qemu_thread, NULL, qemu_main, &qemu_fd[1]), 0);
    m = (struct source){.machine = &vm,
                        .job = "1",
                        .destination = "hostb",
                        .storage = true,
                        .links = here.links,
                        .to = xm_links_transport(here.links),
                        .opt = {.downtime = XM_NS_PER_MS, .grace = LIMIT_HANG_NS}};
    return 0;
}

static int tear_down(void **state)
{
    qmp_close(&vm.qemu.qmp);
    pthread_join(qemu_thread, NULL);
    xm_mailbox_destroy(&vm.mailbox);
    free(vm.run_dir);
    if (!m.links)
        end_open(&here); /* the source has freed its own */
    ends_free(&here, &there);
    return tmpdir_remove(state);
}

/* On the source's thread. */
struct step {
    int (*run)(void);
    pthread_t thread;
    atomic_bool over;
    int result;
};

static void *step_main(void *arg)
{
    struct step *s = arg;

    s->result = s->run();
    s->over = true;
    return NULL;
}

static void step_begin(struct step *s)
{
    assert_int_equal(pthread_create(&s->thread, NULL, step_main, s), 0);
}

static int step_must_end(struct step *s, const char *what)
{
    for (struct limit l = limit_start(10); !s->over && limit_wait(&l);)
        ;
    if (!s->over)
        fail_msg("%s waits for what is not answered", what);
    pthread_join(s->thread, NULL);
    return s->result;
}

/* Device state is on its way. Its QEMU's end. */
static int stream_something(void)
{
    struct xm_error e = {0};
    int fd[2];

    unanswered = XM_FRAME_STREAM;
    net_socketpair(fd);
    m.stream = stream_send(fd[0], m.to, 0, &e);
    assert_non_null(m.stream);
    assert_int_equal(write(fd[1], "state", 5), 5);
    for (struct limit l = limit_start(10); !held && limit_wait(&l);)
        ;
    assert_true(held);
    return fd[1];
}

static int again(void)
{
    return source_again(&m, -ETIMEDOUT);
}

/* What broke: the switch-over was given up, and the guest ran; an abort was taken, and not heard. */
static void an_abort_after_a_switch_that_was_given_up(void **state)
{
    struct step s = {.run = again};
    int qemu = stream_something();

    (void)state;
    aborted_when = "ready";
    m.state = SOURCE_SWITCH;
    m.can_try_again = true;
    m.seen.stop = xm_now() - XM_NS_PER_S;
    step_begin(&s);
    assert_int_equal(step_must_end(&s, "who gives a switch-over up"), -ECANCELED);
    assert_int_equal(m.state, SOURCE_MEMORY);
    assert_int_equal(m.attempt, 1);
    xm_links_abort(m.links, "the test ends it");
    stream_free(m.old_stream);
    close(qemu);
}

static int end(void)
{
    source_end(&m, -EIO);
    return 0;
}

/* What broke: the VM was given away, and whoever was told by its operator that the other host is dead could
 * not have it from the shim that waited. */
static void the_end_of_one_that_was_given_away(void **state)
{
    struct step s = {.run = end};
    int qemu = stream_something();

    (void)state;
    m.state = SOURCE_UNKNOWN;
    step_begin(&s);
    step_must_end(&s, "a migration that is over");
    assert_null(m.links);
    close(qemu);
}

static int verify(void)
{
    return source_disks_verify(&m);
}

/* What broke: storage of the destination hung, and an abort was not heard before it had come back. */
static void an_abort_while_both_sides_are_compared(void **state)
{
    struct vm_disk spec = {.name = "root", .path = (char *)tmpdir_write("root.raw", ""), .size = SIZE};
    struct machine_disk *d = &vm.disk[0];
    struct step s = {.run = verify};
    struct xm_error e = {0};

    (void)state;
    unanswered = XM_FRAME_DISK_HASH;
    assert_int_equal(truncate(spec.path, SIZE), 0);
    *d = (struct machine_disk){.machine = &vm, .spec = &spec};
    vm.disks = 1;
    if (machine_disk_start(d, &e) < 0)
        fail_msg("%s", e.text);
    m.state = SOURCE_DISKS;
    if (source_disk_mirror(&m, d, false, NULL) < 0 || source_disks_wait(&m) < 0)
        fail_msg("%s", m.error.text);
    step_begin(&s);
    for (struct limit l = limit_start(10); !held && limit_wait(&l);)
        ;
    assert_true(held);
    m.asked.abort = true;
    assert_int_equal(step_must_end(&s, "the comparison of both sides"), -ECANCELED);
    source_disks_off(&m);
    machine_disk_stop(d);
    vm.disks = 0;
}

static int late(void)
{
    source_send_late(&m, xm_now() + 100 * XM_NS_PER_MS);
    return 0;
}

/* Each time that some were sent there are more: its bridge learns no addresses, or the destination sends them
 * itself. What broke: QEMU, with all of the memory of a VM that had gone, was not let go before the other
 * side had closed its links. */
static void the_end_while_frames_come_for_the_guest_for_ever(void **state)
{
    struct step s = {.run = late};
    int fd[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
    tap = fd[1];
    assert_int_equal(write(tap, "one", 3), 3);
    vm.spec.nics = 1;
    vm.spec.nic[0] = (struct vm_nic){.name = "lan", .mac = "52:54:00:12:34:56", .tap = "xmt-tap0"};
    vm.late_fd[0] = fd[0];
    m.takes_late = true;
    m.seen.stop = xm_now();
    step_begin(&s);
    for (struct limit l = limit_start(10); !s.over && limit_wait(&l);)
        ;
    bool ended = s.over;
    xm_links_abort(m.links, "the test ends it");
    step_must_end(&s, "what is sent after the guest");
    assert_true(ended);
    assert_true(m.report.late_frames > 1);
    tap = -1;
    late_close(&vm);
    vm.spec.nics = 0;
    close(fd[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_abort_after_a_switch_that_was_given_up, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_end_of_one_that_was_given_away, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_abort_while_both_sides_are_compared, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_end_while_frames_come_for_the_guest_for_ever, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
