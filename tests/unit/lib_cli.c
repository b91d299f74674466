/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_cli.h"
#include "tests/progress.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* One connection: takes one request, says its lines, and hangs up, or waits for the other to do it. */
struct fake_agent {
    int listener;
    const char *const *lines;
    bool hang_up;
    json_t *request;
    pthread_t thread;
};

static void *agent_run(void *arg)
{
    struct fake_agent *a = arg;
    struct xm_jsonl j;

    xm_jsonl_init(&j, accept(a->listener, NULL, NULL));
    a->request = xm_jsonl_recv(&j, xm_now() + LIMIT_HANG_NS, NULL);
    for (const char *const *l = a->lines; *l; l++) {
        if (!strcmp(*l, INTERRUPT))
            kill(getpid(), SIGINT);
        else if (send(j.fd, *l, strlen(*l), MSG_NOSIGNAL) < 0 || send(j.fd, "\n", 1, MSG_NOSIGNAL) < 0)
            break;
    }
    if (!a->hang_up) {
        struct pollfd p = {.fd = j.fd, .events = POLLIN};
        poll(&p, 1, LIMIT_HANG_MS);
    }
    xm_jsonl_close(&j);
    return NULL;
}

char *cli_out, *cli_err;
json_t *cli_asked;
bool cli_full;

static void cli_forget(void)
{
    free(cli_out);
    free(cli_err);
    json_decref(cli_asked);
    cli_out = cli_err = NULL;
    cli_asked = NULL;
}

int run_cli(const char *line, const char *const *lines, bool hang_up, bool terminal)
{
    char buf[300], *argv[12];
    int argc = 0;
    size_t ignored;
    struct xm_error e = {0};
    struct fake_agent a = {.lines = lines, .hang_up = hang_up};

    cli_forget();
    if (lines) {
        a.listener = xm_unix_listen(tmpdir_path("agent.sock"), &e);
        assert_true(a.listener >= 0);
        assert_int_equal(pthread_create(&a.thread, NULL, agent_run, &a), 0);
    }
    setenv("XMIGRATE_SOCKET", tmpdir_path("agent.sock"), 1);
    snprintf(buf, sizeof buf, "xmigrate %s", line);
    for (char *save, *w = strtok_r(buf, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    FILE *out = cli_full ? fopen("/dev/full", "w") : open_memstream(&cli_out, &ignored);
    struct cli_io io = {out, open_memstream(&cli_err, &ignored), terminal, 60};
    int status = cli_run(argc, argv, &io);
    fclose(io.out);
    fclose(io.err);
    if (lines) {
        pthread_join(a.thread, NULL);
        close(a.listener);
        cli_asked = a.request;
    }
    return status;
}

void expect_out(const char *text)
{
    if (strcmp(cli_out, text))
        fail_msg("printed\n%s\ninstead of\n%s", cli_out, text);
}

void expect_in(const char *all, const char *part)
{
    if (!strstr(all, part))
        fail_msg("%s\nlacks %s", all, part);
}

int cli_tear_down(void **state)
{
    cli_forget();
    return tmpdir_remove(state);
}
