/* SPDX-License-Identifier: MIT */
/* xmigrate-shim: one VM's block driver and migrator; started by xmigrated, outlives it. See HACKING.md and
 * shim/shim.h. */
#include "shim/shim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_pid(struct shim *s, struct xm_error *e)
{
    char *path = xm_printf("%s/shim.pid", s->machine.run_dir);
    char text[32];
    int r = xm_file_replace(path, text, (size_t)snprintf(text, sizeof text, "%d\n", getpid()), e);

    free(path);
    return r;
}

/* The child's side: a session of its own, no terminal, its log for stderr. The pipe tells the parent how it
 * went. */
static int serve(struct shim *s, int report)
{
    struct xm_error e = {0};
    char *log = xm_printf("%s/shim.log", s->machine.run_dir);
    int in = open("/dev/null", O_RDWR | O_CLOEXEC);
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    setsid();
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    close(in);
    close(out);
    free(log);
    int r = write_pid(s, &e);
    if (!r)
        r = shim_start(s, &e);
    if (r) {
        xm_log(XM_LOG_ERROR, "%s", e.text);
        dprintf(report, "%s\n", e.text);
    } else {
        dprintf(report, "ok\n");
    }
    close(report);
    if (!r)
        shim_run(s);
    shim_free(s);
    return r ? 1 : 0;
}

/* What a VM that has ended without its shim leaves in the kernel: its taps. */
static int clean_up(struct machine *vm, const char *config)
{
    struct xm_error e = {0};
    json_t *o = shim_config(config, &e);
    int r = o ? machine_init(vm, o, &e) : -1;

    for (unsigned i = 0; !r && i < vm->spec.nics; i++)
        r = tap_delete(&vm->spec.nic[i], &e);
    if (r)
        fprintf(stderr, "%s\n", e.text);
    json_decref(o);
    machine_free(vm);
    return r ? 1 : 0;
}

int main(int argc, char **argv)
{
    static struct shim shim;
    struct xm_error e = {0};
    int report[2];
    char said[600] = "";
    size_t n = 0;

    umask(077);
    xm_log_open("xmigrate-shim", XM_LOG_INFO);
    if (argc == 3 && !strcmp(argv[1], "--clean-up"))
        return clean_up(&shim.machine, argv[2]);
    if (argc != 2) {
        fprintf(stderr, "usage: xmigrate-shim [--clean-up] FILE (started by xmigrated)\n");
        return 2;
    }
    if (shim_new(&shim, argv[1], &e) < 0 ||
        (pipe2(report, O_CLOEXEC) < 0 && xm_error_errno(&e, errno, "pipe") < 0)) {
        fprintf(stderr, "%s\n", e.text);
        shim_free(&shim);
        return 1;
    }
    if (shim_only(shim.machine.run_dir, &e) < 0) { /* what there is belongs to the other one */
        fprintf(stderr, "VM %s: %s\n", shim.machine.spec.name, e.text);
        return 1;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        close(report[0]);
        return serve(&shim, report[1]);
    }
    close(report[1]);
    for (ssize_t got; n < sizeof said - 1 && (got = read(report[0], said + n, sizeof said - 1 - n)) > 0;)
        n += (size_t)got;
    shim.listen_fd = -1; /* the child's */
    if (!strcmp(said, "ok\n"))
        return 0;
    fprintf(stderr, "%s", n ? said : "the shim ended before it said why; see its shim.log\n");
    return 1;
}
