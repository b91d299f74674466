/* SPDX-License-Identifier: MIT */
/* edit: the VM's definition as `dump` prints it goes into a file, the user's editor, and to `define`.
 *
 * Failures: the editor fails, or the text is the same: nothing is changed. define refuses it: the file stays,
 * and is named, so that no work is lost. What is typed to interrupt the editor is the editor's alone: it goes
 * to all of the terminal's foreground, and we would die before the text is defined or named.
 */
#include "cli/edit.h"
#include "cli/client.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the agent was not asked about. */
static int say(const struct args *a, const struct cli_io *io, const char *error)
{
    json_t *o = error ? json_pack("{s:b, s:s, s:i}", "ok", 0, "error", error, "exit", CLI_FAILED)
                      : json_pack("{s:b, s:s}", "ok", 1, "text", "Nothing has been changed.");

    if (args_has(a, OPT_JSON)) {
        json_dumpf(o, io->out, JSON_COMPACT);
        fputc('\n', io->out);
    } else if (!error) {
        fprintf(io->out, "%s\n", xm_json_str(o, "text", ""));
    }
    if (error)
        fprintf(io->err, "xmigrate: %s\n", error);
    json_decref(o);
    return error ? CLI_FAILED : CLI_DONE;
}

static int say_errno(const struct args *a, const struct cli_io *io, const char *what, const char *path)
{
    char *error = xm_printf("%s %s: %s", what, path, strerror(errno));
    int status = say(a, io, error);

    free(error);
    return status;
}

static const char *editor(void)
{
    static const char *const names[] = {"VISUAL", "EDITOR"};

    for (size_t i = 0; i < 2; i++) {
        const char *e = getenv(names[i]);
        if (e && *e)
            return e;
    }
    return "vi";
}

static const int typed[] = {SIGINT, SIGQUIT};

/* EDITOR may have arguments of its own: a shell takes it apart, as everywhere. 0: it ended well. */
static int run_editor(const struct args *a, const char *path, const struct cli_io *io)
{
    char *command = xm_printf("%s \"$1\"", editor());
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before[2];
    int status = 0;

    for (int i = 0; i < 2; i++)
        sigaction(typed[i], &ignore, &before[i]);
    pid_t pid = fork();
    if (pid == 0) {
        for (int i = 0; i < 2; i++)
            sigaction(typed[i], &before[i], NULL);
        execl("/bin/sh", "sh", "-c", command, "sh", path, (char *)NULL);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    for (int i = 0; i < 2; i++)
        sigaction(typed[i], &before[i], NULL);
    free(command);
    if (pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    char *error = xm_printf("the editor '%s' failed: nothing has been changed", editor());
    say(a, io, error);
    free(error);
    return CLI_FAILED;
}

static int define(const struct args *a, const char *path, const struct cli_io *io)
{
    return client_run(a, json_pack("{s:s, s:s, s:s}", "verb", "define", "spec", path, "vm", a->word[0]), io);
}

static int edit(const struct args *a, const char *ini, const char *path, const struct cli_io *io)
{
    char *after = NULL;
    size_t len = 0;
    struct xm_error e = {0};
    int r = xm_file_replace(path, ini, strlen(ini), &e) < 0 ? CLI_FAILED : run_editor(a, path, io);

    if (!r && xm_file_read(path, 1 << 20, &after, &len, &e) < 0)
        r = CLI_FAILED;
    if (e.code)
        say(a, io, e.text);
    if (!r && strcmp(after, ini) != 0)
        r = define(a, path, io);
    else if (!r)
        say(a, io, NULL);
    if (r && after && strcmp(after, ini) != 0)
        fprintf(io->err, "What you wrote is in %s\n", path);
    else
        unlink(path);
    free(after);
    return r;
}

int edit_run(const struct args *a, json_t *request, const struct cli_io *io)
{
    const char *tmp = getenv("TMPDIR");
    int status;

    json_object_set_new(request, "verb", json_string("dump"));
    json_object_set_new(request, "edit", json_true());
    json_t *answer = client_ask(a, request, io, &status);
    if (!answer)
        return status;
    char *path = xm_printf("%s/xmigrate-%s-XXXXXX.ini", tmp && *tmp == '/' ? tmp : "/tmp", a->word[0]);
    int fd = mkstemps(path, 4);
    if (fd < 0) {
        status = say_errno(a, io, "cannot make", path);
    } else {
        close(fd);
        status = edit(a, xm_json_str(answer, "ini", ""), path, io);
    }
    free(path);
    json_decref(answer);
    return status;
}
