/* SPDX-License-Identifier: MIT */
/* The QMP client against a monitor that answers as it likes. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "machine/qmp.h"

#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/unit/lib_tmpdir.h"
#include "tests/progress.h"

struct monitor {
    int listen_fd;
    const char *answers[4]; /* to each command, after the greeting */
};

static void *monitor_main(void *arg)
{
    struct monitor *m = arg;
    struct xm_jsonl c;
    xm_jsonl_init(&c, accept(m->listen_fd, NULL, NULL));
    dprintf(c.fd, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n");
    for (unsigned i = 0; i < 4 && m->answers[i]; i++) {
        json_t *o = xm_jsonl_recv(&c, UINT64_MAX, NULL);
        if (!o)
            break;
        /* «@» stands for this command's id, «<» for that of the one before. */
        const char *at = m->answers[i];
        for (size_t n; *at; at += n) {
            n = strcspn(at, "@<");
            if (!n) {
                dprintf(c.fd, "%lld", (long long)xm_json_int(o, "id", -1) - (*at == '<'));
                n = 1;
            } else if (write(c.fd, at, n) != (ssize_t)n) {
                break; /* the client has hung up without waiting for it */
            }
        }
        json_decref(o);
    }
    json_decref(xm_jsonl_recv(&c, UINT64_MAX, NULL)); /* until the client hangs up */
    xm_jsonl_close(&c);
    return NULL;
}

static char seen[200];
static void on_event(void *ctx, const char *name, const json_t *data, uint64_t when)
{
    (void)ctx, (void)when;
    strcat(seen, name);
    strcat(seen, xm_json_str(data, "status", "-"));
}

static bool always(void *ctx)
{
    (void)ctx;
    return true;
}

static void open_against(struct qmp *q, struct monitor *m, pthread_t *t)
{
    struct xm_error e = {0};
    const char *path = tmpdir_path("qmp.sock");

    seen[0] = 0;
    *q = (struct qmp){.event = on_event};
    m->listen_fd = xm_unix_listen(path, &e);
    assert_int_equal(pthread_create(t, NULL, monitor_main, m), 0);
    assert_int_equal(qmp_open(q, path, xm_now() + LIMIT_HANG_NS, always, NULL, &e), 0);
}

static void close_against(struct qmp *q, struct monitor *m, pthread_t t)
{
    qmp_close(q);
    pthread_join(t, NULL);
    close(m->listen_fd);
}

/* What broke: events that came in one read with an answer were looked at only when more came. A switch-over
 * waited for «completed» that it had already. */
static void test_events_behind_an_answer(void **state)
{
    struct monitor m = {
        .answers = {
            "{\"return\": {}, \"id\": @}\n",
            "{\"return\": {}, \"id\": @}\n{\"event\": \"MIGRATION\", \"data\": {\"status\": \"device\"}}\n"
            "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n"}};
    struct qmp q;
    pthread_t t;
    struct xm_error e = {0};

    (void)state;
    open_against(&q, &m, &t);
    assert_int_equal(qmp_do(&q, "migrate-continue", NULL, LIMIT_HANG_NS, &e), 0);
    assert_int_equal(qmp_pump(&q, 0, &e), 0);
    assert_string_equal(seen, "MIGRATIONdeviceMIGRATIONcompleted");
    close_against(&q, &m, t);
}

/* QEMU's own words reach the user. */
static void test_refusal(void **state)
{
    struct monitor m = {.answers = {"{\"return\": {}, \"id\": @}\n",
                                    "{\"event\": \"STOP\"}\n{\"error\": {\"class\": \"GenericError\", "
                                    "\"desc\": \"no such thing\"}, \"id\": @}\n"}};
    struct qmp q;
    pthread_t t;
    struct xm_error e = {0};

    (void)state;
    open_against(&q, &m, &t);
    assert_true(qmp_do(&q, "frobnicate", NULL, LIMIT_HANG_NS, &e) < 0);
    assert_string_equal(e.text, "QEMU refuses frobnicate: no such thing");
    assert_string_equal(seen, "STOP-");
    close_against(&q, &m, t);
}

/* A monitor that does not answer is an error after the time given, not a hang. */
static void test_silence(void **state)
{
    struct monitor m = {.answers = {"{\"return\": {}, \"id\": @}\n", ""}};
    struct qmp q;
    pthread_t t;
    struct xm_error e = {0};

    (void)state;
    open_against(&q, &m, &t);
    assert_true(qmp_do(&q, "query-status", NULL, 50 * XM_NS_PER_MS, &e) < 0);
    assert_non_null(strstr(e.text, "query-status"));
    close_against(&q, &m, t);
}

/* What broke: the answer of a call that had timed out was taken for that of the next one, and so on for ever:
 * «cont» was believed done when «query-status» was. */
static void test_a_late_answer_is_nobody_elses(void **state)
{
    struct monitor m = {.answers = {"{\"return\": {}, \"id\": @}\n", "",
                                    "{\"return\": {\"is\": \"late\"}, \"id\": <}\n"
                                    "{\"return\": {\"is\": \"right\"}, \"id\": @}\n",
                                    "{\"error\": {\"desc\": \"late\"}, \"id\": <}\n"
                                    "{\"return\": {\"is\": \"right\"}, \"id\": @}\n"}};
    struct qmp q;
    pthread_t t;
    struct xm_error e = {0};

    (void)state;
    open_against(&q, &m, &t);
    assert_int_equal(qmp_do(&q, "cont", NULL, 50 * XM_NS_PER_MS, &e), -ETIMEDOUT);
    for (int i = 0; i < 2; i++) {
        json_t *o = qmp_call(&q, "query-status", NULL, LIMIT_HANG_NS, &e);
        assert_string_equal(xm_json_str(o, "is", e.text), "right");
        json_decref(o);
    }
    close_against(&q, &m, t);
}

/* A line that QEMU cannot read has no id for it to give back. */
static void test_an_error_without_id(void **state)
{
    struct monitor m = {
        .answers = {"{\"return\": {}, \"id\": @}\n", "{\"error\": {\"desc\": \"JSON parse error\"}}\n"}};
    struct qmp q;
    pthread_t t;
    struct xm_error e = {0};

    (void)state;
    open_against(&q, &m, &t);
    assert_int_equal(qmp_do(&q, "cont", NULL, LIMIT_HANG_NS, &e), -EIO);
    assert_string_equal(e.text, "QEMU refuses cont: JSON parse error");
    close_against(&q, &m, t);
}

/* What is said against a command that nobody waits for is known when it is heard, whoever hears it; and is
 * forgotten with the next one. */
static void test_a_command_that_is_only_told(void **state)
{
    struct monitor m = {.answers = {"{\"return\": {}, \"id\": @}\n",
                                    "{\"error\": {\"desc\": \"not now\"}, \"id\": @}\n",
                                    "{\"return\": {}, \"id\": @}\n", "{\"return\": {}, \"id\": @}\n"}};
    struct xm_error e = {0};
    struct qmp q;
    pthread_t t;

    (void)state;
    open_against(&q, &m, &t);
    assert_int_equal(qmp_tell(&q, "go-on", NULL, &e), 0);
    assert_int_equal(qmp_do(&q, "look", NULL, LIMIT_HANG_NS, &e), 0);
    assert_int_equal(qmp_refusal(&q, &e), -EIO);
    assert_non_null(strstr(e.text, "not now"));
    assert_int_equal(qmp_tell(&q, "go-on", NULL, &e), 0);
    assert_int_equal(qmp_refusal(&q, &e), 0);
    close_against(&q, &m, t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_command_that_is_only_told, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_events_behind_an_answer, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_refusal, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_silence, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_a_late_answer_is_nobody_elses, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_an_error_without_id, tmpdir_make, tmpdir_remove),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("machine_qmp", tests, NULL, NULL);
}
