/* SPDX-License-Identifier: MIT */
/* A transition that is not in the table is refused, and the state stays: it used to be logged, and done. */
#include "migrate/destination.h"
#include "migrate/source.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void the_source_refuses(void **state)
{
    struct machine vm = {.spec.name = "web1"};
    struct source m = {.machine = &vm, .job = "1"};

    (void)state;
    for (int from = 0; from < SOURCE_STATES; from++) {
        bool ends = from == SOURCE_DONE || from == SOURCE_FAILED || from == SOURCE_UNKNOWN;
        m.state = (enum source_state)from;
        assert_int_equal(source_set_state(&m, SOURCE_PREPARE), -EPROTO);
        assert_int_equal(m.state, from);
        assert_true(strstr(m.error.text, source_step_name((enum source_state)from)) != NULL);
        /* What has been given away, or was over, does not fail afterwards. */
        int r = source_set_state(&m, SOURCE_FAILED);
        assert_int_equal(r, ends || from == SOURCE_SETTLE ? -EPROTO : 0);
        assert_int_equal(m.state, r ? from : SOURCE_FAILED);
    }
}

/* What broke: of disks that had moved on this host it was said that the VM is being handed over to it;
 * likewise of what was over. */
static void what_comes_too_late_is_told_why(void **state)
{
    static const struct {
        enum source_state state;
        bool local;
        const char *says; /* NULL: it is aborted */
    } ways[] = {{SOURCE_DISKS, true, NULL},
                {SOURCE_SETTLE, true, "too late: the disks of VM web1 have moved to datastore 'ds2'"},
                {SOURCE_DONE, true, "VM web1 has no such migration going on"},
                {SOURCE_SWITCH, false, NULL},
                {SOURCE_HANDOFF, false, "too late: VM web1 is being handed over to hostb"},
                {SOURCE_FAILED, false, "VM web1 has no such migration going on"}};
    struct machine vm = {.spec.name = "web1"};

    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct source m = {.machine = &vm, .job = "1", .local = ways[i].local, .state = ways[i].state};
        struct xm_error e = {0};
        snprintf(m.destination, sizeof m.destination, "%s", ways[i].local ? "hosta" : "hostb");
        m.request = json_pack("{s:s}", "datastore", "ds2");
        int r = source_abort(&m, "1", "by its user", &e);
        assert_string_equal(e.text, ways[i].says ? ways[i].says : "");
        assert_int_equal(r == 0, !ways[i].says);
        assert_int_equal(m.asked.abort, !ways[i].says);
        json_decref(m.request);
    }
}

/* What broke: who set it used the links himself, while their thread could be freeing them; or gave them the
 * limit anew when the switch-over had just taken it from them. */
static void a_rate_is_given_to_the_links_by_their_thread(void **state)
{
    void *nobodys = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct source m = {.state = SOURCE_MEMORY, .links = nobodys};

    (void)state;
    source_set_rate(&m, 5);
    assert_int_equal(m.asked.rate, 5);
    munmap(nobodys, 1 << 20);
}

/* The deadline of the switch is counted from there. What broke: the host's clock was set by an hour between
 * QEMU's word and our reading it, and the guest had stood still for an hour, or (a host that is up for less)
 * would for ever. */
static void the_stop_is_in_the_switch_whatever_the_clock_says(void **state)
{
    const uint64_t hour = 3600 * XM_NS_PER_S;
    struct timespec ts;

    (void)state;
    clock_gettime(CLOCK_REALTIME, &ts);
    uint64_t real = (uint64_t)ts.tv_sec * XM_NS_PER_S + (uint64_t)ts.tv_nsec;
    const uint64_t words[] = {real - hour, real - 100000 * hour, real, real + hour};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        struct machine vm = {.spec.name = "web1"};
        struct source m = {
            .machine = &vm, .job = "1", .state = SOURCE_SWITCH, .stopping = true, .seen.status = "active"};
        uint64_t since = m.report.entered[SOURCE_SWITCH] = xm_now() - 1000000;
        source_qmp_event(&m, "STOP", NULL, words[i]);
        assert_true(m.seen.stop >= since && m.seen.stop <= xm_now());
    }
}

/* What broke: with a budget as long as the grace the first try had all of both, and there was no second. */
static void the_first_try_leaves_time_to_give_it_up(void **state)
{
    static const unsigned budgets_ms[] = {100, 900, 5000}, last_ms[] = {200, 1400, 5500};

    (void)state;
    for (size_t i = 0; i < sizeof budgets_ms / sizeof *budgets_ms; i++) {
        struct machine vm = {.spec.name = "web1"};
        struct source m = {.machine = &vm,
                           .job = "1",
                           .state = SOURCE_SWITCH,
                           .can_try_again = true,
                           .opt = {.downtime = budgets_ms[i] * XM_NS_PER_MS, .grace = XM_NS_PER_S}};
        m.seen.stop = xm_now() - last_ms[i] * XM_NS_PER_MS;
        assert_int_equal(source_overdue(&m), -ETIMEDOUT);
        m.can_try_again = false;
        uint64_t left = source_time_left(&m, UINT64_MAX / 2);
        assert_true(left > 400 * XM_NS_PER_MS && left <= XM_NS_PER_S);
        assert_int_equal(source_overdue(&m), 0);
    }
}

static void the_destination_refuses(void **state)
{
    struct machine vm = {.spec.name = "web1"};
    struct destination dst = {.machine = &vm, .job = "1", .source = "hosta"};
    struct xm_error e = {0};

    (void)state;
    for (int from = 0; from < DEST_STATES; from++) {
        dst.state = (enum dest_state)from;
        assert_int_equal(destination_set_state(&dst, DEST_WAITING, &e), -EPROTO);
        assert_int_equal(dst.state, from);
        /* The guest that runs here is not given up by anything. */
        int r = destination_set_state(&dst, DEST_FAILED, &e);
        assert_int_equal(r, from == DEST_RUNNING || from == DEST_FAILED ? -EPROTO : 0);
    }
    dst.state = DEST_LOADING;
    assert_int_equal(destination_set_state(&dst, DEST_RUNNING, &e), -EPROTO); /* nobody has given it to us */
}

static int answered, says;

static void done(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    (void)rx, (void)reply, (void)len;
    answered++;
    says = status;
}

/* The switch was given up, the guest goes on at the source, and its mirror has not ended yet: a VM that was
 * then taken here on its operator's word had a disk that was newer than its memory. Found by the simulator.
 */
static void what_comes_after_the_digests_is_not_taken(void **state)
{
    static const uint8_t digests[] = {XM_FRAME_DISK_DIGEST, XM_FRAME_RAM_DIGEST},
                         late[] = {XM_FRAME_DISK_DATA, XM_FRAME_DISK_ZERO};
    static struct machine vm;
    struct destination dst = {.machine = &vm, .closed = true, .storage = true};
    struct xm_engine engine = {0};
    struct xm_frame_hdr page = {
        .type = XM_FRAME_RAM_PAGES, .extent = XM_PAGE, .length = 64 + XM_PAGE, .seq = 1, .after = 1};
    struct xm_ram ram = {0};
    int fd = memfd_create("ram", MFD_CLOEXEC);
    struct xm_file file = {.size = 1 << 20};
    struct xm_rx rx = {.done = done};
    struct xm_error e = {0};

    (void)state;
    vm.disks = 1;
    vm.disk[0].engine = &engine;
    vm.disk[0].file = &file;
    pthread_mutex_init(&dst.lock, NULL);
    assert_int_equal(ftruncate(fd, 16 * XM_PAGE), 0);
    assert_int_equal(xm_ram_add(&ram, "ram", fd, 0, &e), 0);
    dst.ramsink = xm_ramsink_new(&ram, &e);
    assert_false(dst.sealed);
    for (unsigned i = 0; i < 2; i++) {
        dst.sealed = false;
        rx.hdr.type = digests[i];
        if (digests[i] == XM_FRAME_DISK_DIGEST)
            destination_take_frame(&dst, &rx); /* handed on, and to nobody */
        else
            dst.sealed = true;
        assert_true(dst.sealed);
        for (unsigned k = 0; k < 2; k++) {
            answered = 0;
            rx.hdr.type = late[k];
            destination_take_frame(&dst, &rx);
            assert_int_equal(answered, 1);
            assert_int_equal(says, -ECANCELED);
        }
        /* What broke: once more by a link that had been given up, it ended all links. */
        assert_int_equal(destination_check_frame(&dst, &page, &e), 0);
    }
    xm_ramsink_free(dst.ramsink);
    xm_ram_close(&ram);
    close(fd);
}

static char told[200];

static void note_reply(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    (void)rx;
    says = status;
    snprintf(told, sizeof told, "%.*s", (int)len, (const char *)reply);
}

static void call(struct destination *dst, uint64_t seq, const char *text)
{
    struct xm_rx rx = {.hdr = {.type = XM_FRAME_CALL, .seq = seq, .length = (uint32_t)strlen(text)},
                       .payload = (void *)(uintptr_t)text,
                       .owner = dst,
                       .done = note_reply};

    told[0] = 0;
    destination_call(&rx.post);
    assert_int_equal(says, 0);
}

/* By another link, the one that brought it being lost with its answer. What broke: it was refused, as a
 * second one, and with it the migration ended; so it was with «incoming» and «again». */
static void a_call_that_comes_again_is_answered_as_the_first_time(void **state)
{
    static const char begin[] = "{\"call\":\"begin\",\"epoch\":8,\"storage\":true,\"disks\":[],\"ram\":[]}",
                      run[] = "{\"call\":\"handoff\",\"handoff\":\"run\",\"epoch\":8}";
    struct machine vm = {.spec.name = "web1", .epoch = 7};
    struct destination dst = {.machine = &vm,
                              .job = "1",
                              .source = "hosta",
                              .storage = true,
                              .handoff = {.destination = true, .state = HANDOFF_WAITING}};
    char first[sizeof told];

    (void)state;
    call(&dst, 3, begin);
    assert_non_null(strstr(told, "\"ok\":true"));
    assert_int_equal(dst.state, DEST_COPYING);
    memcpy(first, told, sizeof first);
    call(&dst, 3, begin);
    assert_string_equal(told, first);
    call(&dst, 4, begin); /* that is a second one */
    assert_non_null(strstr(told, "it has begun already"));
    call(&dst, 0, begin); /* of a source that does not number them */
    call(&dst, 0, begin);
    assert_non_null(strstr(told, "it has begun already"));
    /* Judged anew each time. */
    call(&dst, 5, run);
    assert_non_null(strstr(told, "not loaded"));
    dst.state = DEST_PROMISED;
    dst.handoff = (struct handoff){.destination = true, .state = HANDOFF_DISCARDED, .record.epoch = 9};
    call(&dst, 5, run);
    assert_non_null(strstr(told, "\"handoff\":\"answer\""));
    free(dst.answered.text);
}

static bool over;

static void is_over(struct machine *vm, enum migrate_end how)
{
    (void)vm;
    over = how == MIGRATE_NOT;
}

static void nobody_hears(struct machine *vm, json_t *event)
{
    (void)vm;
    json_decref(event);
}

/* What broke: its thread had ended, and who decided before it was freed waited for ever. */
static void one_that_has_ended_answers_until_it_is_freed(void **state)
{
    struct machine vm = {
        .spec.name = "web1", .host = "hosta", .state_dir = "/nonexistent", .emit = nobody_hears};
    json_t *in =
        json_pack("{s:s}", "token", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff");
    struct xm_error e = {0};

    (void)state;
    qemu_init(&vm.qemu);
    assert_int_equal(xm_mailbox_init(&vm.mailbox), 0);
    struct destination *dst = destination_new(&vm, in, is_over, &e);
    assert_int_equal(destination_start(dst, &e), 0);
    destination_fail(dst, "the test ends it");
    while (!over)
        xm_mailbox_wait(&vm.mailbox, -1);
    assert_int_equal(destination_decide(dst, true, &e), -EINVAL);
    destination_free(dst);
    xm_mailbox_destroy(&vm.mailbox);
    json_decref(in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_source_refuses),
        cmocka_unit_test(the_stop_is_in_the_switch_whatever_the_clock_says),
        cmocka_unit_test(the_first_try_leaves_time_to_give_it_up),
        cmocka_unit_test(what_comes_too_late_is_told_why),
        cmocka_unit_test(a_rate_is_given_to_the_links_by_their_thread),
        cmocka_unit_test(the_destination_refuses),
        cmocka_unit_test(what_comes_after_the_digests_is_not_taken),
        cmocka_unit_test(a_call_that_comes_again_is_answered_as_the_first_time),
        cmocka_unit_test(one_that_has_ended_answers_until_it_is_freed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
