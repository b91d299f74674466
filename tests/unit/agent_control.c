/* SPDX-License-Identifier: MIT */
/* The agent's protocols, on a real agent in a process of its own: hostile lines on both sockets, and what a
 * peer may and may not ask for. */
#include "tests/unit/lib_agent.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/progress.h"

static struct test_agent *const t = &test_agent;

static json_t *verb(const char *name)
{
    return json_pack("{s:s}", "verb", name);
}

static void must_live(void)
{
    must(ask(t, verb("list")), 0);
}

/* ---- hostile lines ---- */

static json_t *answer_to(int fd, const char *text, size_t len)
{
    struct xm_jsonl js;

    xm_jsonl_init(&js, fd);
    for (size_t at = 0; at < len;) {
        ssize_t n = send(fd, text + at, len - at, MSG_NOSIGNAL);
        if (n <= 0)
            break; /* it may have closed before the end */
        at += (size_t)n;
    }
    json_t *o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
    xm_jsonl_close(&js);
    return o;
}

static void what_is_no_message_is_refused(void **state)
{
    static const char *const lines[] = {"garbage\n",    "[1,2]\n",
                                        "{\"verb\":\n", "{\"verb\":\"list\",\"verb\":\"stop\"}\n",
                                        "\n",           "\x01\x02\xff\n"};
    (void)state;

    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        must(answer_to(agent_socket(), lines[i], strlen(lines[i])), 2);
    must_live();
}

static void an_endless_line_is_not_kept(void **state)
{
    size_t len = 2 << 20;
    char *text = malloc(len);
    (void)state;

    memset(text, 'x', len);
    json_t *o = answer_to(agent_socket(), text, len);
    assert_false(xm_json_bool(o, "ok", false)); /* an answer, or none when it was faster to hang up */
    json_decref(o);
    free(text);
    must_live();
}

static void half_a_line_and_silence_holds_nobody_up(void **state)
{
    int fds[20];
    (void)state;

    for (int i = 0; i < 20; i++) {
        fds[i] = agent_socket();
        assert_int_equal(send(fds[i], "{\"verb\"", 7, MSG_NOSIGNAL), 7);
    }
    must_live();
    for (int i = 0; i < 20; i++)
        close(fds[i]);
    must_live();
}

static void fields_of_wrong_types_are_refused(void **state)
{
    static const char *const lines[] = {
        "{'verb':7}",
        "{}",
        "{'verb':'fly'}",
        "{'verb':'peer.prepare'}",
        "{'verb':'start'}",
        "{'verb':'start','spec':[1]}",
        "{'verb':'start','spec':'relative.ini'}",
        "{'verb':'start','spec':'/nowhere.ini'}",
        "{'verb':'stop','vm':{}}",
        "{'verb':'show','vm':['a']}",
        "{'verb':'show','vm':'../../etc'}",
        "{'verb':'move','vm':1,'host':2}",
        "{'verb':'move','vm':'a','host':'nobody','options':7}",
        "{'verb':'move','vm':'a','host':'hostb','options':[]}",
        "{'verb':'check','vm':'a','storage_only':true,'datastore':'../x'}",
        "{'verb':'watch','job':{}}",
        "{'verb':'watch','job':'../../x'}",
        "{'verb':'abort','job':-1}",
        "{'verb':'set','job':'1','bandwidth':'fast'}",
        "{'verb':'recover','vm':null}",
        "{'verb':'recover','vm':'..'}",
    };
    (void)state;

    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        char text[200];
        snprintf(text, sizeof text, "%s\n", lines[i]);
        for (char *c = text; *c; c++)
            *c = *c == '\'' ? '"' : *c;
        json_t *o = answer_to(agent_socket(), text, strlen(text));
        if (!o || xm_json_bool(o, "ok", true) || !xm_json_str(o, "error", "")[0] ||
            xm_json_int(o, "exit", 0) < 1)
            fail_msg("%s", text);
        json_decref(o);
    }
    must_live();
}

/* ---- TCP ---- */

static bool closed_without_a_word(int fd, const char *text, size_t len)
{
    char c;
    struct pollfd p = {.fd = fd, .events = POLLIN};

    send(fd, text, len, MSG_NOSIGNAL);
    bool closed = poll(&p, 1, LIMIT_HANG_MS) == 1 && recv(fd, &c, 1, 0) <= 0;
    close(fd);
    return closed;
}

static void strangers_are_closed(void **state)
{
    static const char hello[] = "XMIG/1 control\n";
    (void)state;

    assert_true(closed_without_a_word(connect_from("127.0.0.3", t->port), hello, sizeof hello - 1));
    must_live();
}

static void a_first_line_of_another_kind_is_closed(void **state)
{
    static const char *const lines[] = {
        "GET / HTTP/1.1\r\n",
        "XMIG/2 control\n",
        "XMIG/1 control \n",
        "XMIG/1 link\n",
        "XMIG/1 link abc\n",
        "XMIG/1 link 00112233 ../../x y\n",
        "\n",
        "XMIG/1 link 0000000000000000000000000000000000000000000000000000000000000000 l1\n",
    };
    char endless[400];
    (void)state;

    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!closed_without_a_word(connect_from("127.0.0.2", t->port), lines[i], strlen(lines[i])))
            fail_msg("%s", lines[i]);
    }
    memset(endless, 'x', sizeof endless);
    assert_true(closed_without_a_word(connect_from("127.0.0.2", t->port), endless, sizeof endless));
    must_live();
}

static void a_peer_has_a_peers_verbs_and_its_own_name(void **state)
{
    static const char text[] = "XMIG/1 control\n{nonsense\n";
    (void)state;

    must(ask_as_peer(t, verb("list")), 2);
    must(ask_as_peer(t, verb("stop")), 2);
    must(ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.hello", "from", "hosta")), 3);
    must(ask_as_peer(t, json_pack("{s:s, s:i}", "verb", "peer.hello", "from", 1)), 3);
    must(ask_as_peer(t, verb("peer.hello")), 0);
    must(answer_to(connect_from("127.0.0.2", t->port), text, sizeof text - 1), 2);
    must_live();
}

static bool is_closed(int fd)
{
    char c;
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, LIMIT_HANG_MS) == 1 && recv(fd, &c, 1, MSG_DONTWAIT) <= 0;
}

/* 64 of them kept everybody out, before they had said a word. Some have introduced themselves, some are
 * half a message further. */
static void idle_connections_keep_nobody_out(void **state)
{
    static const char *const said[] = {"", "XMIG/1 con", "XMIG/1 control\n", "XMIG/1 control\n{\"verb\""};
    int fds[200];
    (void)state;

    for (int i = 0; i < 200; i++) {
        fds[i] = connect_from("127.0.0.2", t->port);
        assert_true(fds[i] >= 0);
        send(fds[i], said[i % 4], strlen(said[i % 4]), MSG_NOSIGNAL);
    }
    must(ask_as_peer(t, verb("peer.hello")), 0);
    for (int i = 0; i < 180; i++) /* the oldest made room */
        assert_true(is_closed(fds[i]));
    struct pollfd newest = {.fd = fds[199], .events = POLLIN};
    assert_int_equal(poll(&newest, 1, 0), 0);
    for (int i = 0; i < 200; i++)
        close(fds[i]);
    must_live();
}

/* Each wrote a line into our log, which is on a disk that is somebody else's too. */
static void strangers_do_not_fill_the_log(void **state)
{
    char *log = NULL;
    size_t len;
    unsigned lines = 0;
    (void)state;

    for (int i = 0; i < 100; i++) {
        assert_true(closed_without_a_word(connect_from("127.0.0.3", t->port), "", 0));
        assert_true(closed_without_a_word(connect_from("127.0.0.2", t->port), "GET /\n", 6));
    }
    must_live();
    assert_int_equal(xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL), 0);
    for (char *l = log; (l = strchr(l, '\n')); l++)
        lines++;
    assert_non_null(strstr(log, "no [peer] has this address"));
    assert_true(lines < 40);
    free(log);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, agent_set_up, agent_tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_no_message_is_refused),
        TEST(an_endless_line_is_not_kept),
        TEST(half_a_line_and_silence_holds_nobody_up),
        TEST(fields_of_wrong_types_are_refused),
        TEST(strangers_are_closed),
        TEST(a_first_line_of_another_kind_is_closed),
        TEST(a_peer_has_a_peers_verbs_and_its_own_name),
        TEST(idle_connections_keep_nobody_out),
        TEST(strangers_do_not_fill_the_log),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("agent: its protocols", tests, NULL, NULL);
}
