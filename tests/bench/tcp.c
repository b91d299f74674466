/* SPDX-License-Identifier: MIT */
/* A TCP connection over XM_BENCH_MOVES (100) moves of a guest with its disk, there and back: a client on
 * a third host sends and compares without end, and the connection stays. How much longer its longest
 * stall in each move was than the downtime by that move's report: the guest's own way back, the
 * network's, and a retransmission that was due in the silence. usage: bench/tcp tcp */
#include "tests/bench/lib_lab.h"
#include "tests/bench/lib_version.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXCESS 50 /* ms */

static char path[200];

/* The client's lines so far; *last: the last one's field. */
static unsigned lines(const char *field, double *last)
{
    char *line = NULL;
    size_t size = 0;
    unsigned n = 0;
    FILE *f = fopen(path, "r");

    while (f && getline(&line, &size, f) > 0) {
        json_t *o = json_loads(line, 0, NULL);
        if (!json_is_true(json_object_get(o, "ok")))
            bench_die("the connection broke, or what came back was wrong: %s", line);
        *last = json_number_value(json_object_get(o, field));
        json_decref(o);
        n++;
    }
    if (f)
        fclose(f);
    free(line);
    return n;
}

/* The longest stall since the last call, ms. */
static double stall(pid_t client)
{
    double ms = 0;
    unsigned before = lines("slowest_ms", &ms);

    kill(client, SIGUSR1);
    for (unsigned i = 0; i < 500; i++) {
        if (lines("slowest_ms", &ms) > before)
            return ms;
        poll(NULL, 0, 10);
    }
    bench_die("the connection does not go on");
}

int main(void)
{
    const char *wanted = getenv("XM_BENCH_MOVES");
    unsigned moves = wanted && atoi(wanted) > 0 ? (unsigned)atoi(wanted) : 100;
    struct lab_guest g = {.name = "tcp",
                          .ip = LAB_IP,
                          .memory = 192,
                          .disks = 1,
                          .file = {"tcp.img"},
                          .append = "xm.mem=16M:rate=1M"};
    struct bench_stat worst = {0}, goal = {0};
    double most = 0, *over = calloc(moves, sizeof *over);

    if (!over)
        bench_die("no memory");
    bench_begin("tcp");
    version_use(version_of_ours());
    lab_up();
    if (bench_run("truncate -s 64M %s", lab_path('A', g.file[0])))
        bench_die("no room for a disk");
    lab_start(&g);
    snprintf(path, sizeof path, "%s/echo", bench_dir(true));
    pid_t client =
        bench_spawn("tests/system/lab.sh run client build/guest/xm-client echo %s 0 >%s", g.ip, path);
    poll(NULL, 0, 500);
    for (unsigned i = 0; i < moves; i++) {
        stall(client);
        double ms = lab_move(i % 2 ? 'B' : 'A', "--with-storage %s host%c:ds1", g.name, "ba"[i % 2]);
        if (ms < 0)
            bench_die("the guest was not moved");
        poll(NULL, 0, 300); /* what is sent again for the last time */
        double stood = stall(client);
        over[i] = stood - ms;
        most = XM_MAX(most, over[i]);
        if (over[i] > EXCESS)
            printf("  move %u: stalled for %.1f ms; by its report %.1f\n", i + 1, stood, ms);
    }
    for (unsigned i = 0; i < moves && i < sizeof worst.v / sizeof *worst.v; i++)
        bench_add(&worst, over[moves - 1 - i]);
    bench_note(
        "%u moves, one connection: beyond the downtime by the report it stalled for %.1f ms in the median "
        "of the last %u, %.1f at worst",
        moves, bench_median(&worst), worst.n, most);
    worst = (struct bench_stat){0};
    bench_add(&worst, most);
    bench_add(&goal, EXCESS);
    bench_result("ms", &worst, &goal, "downtime + 50 ms", 1.0, false);
    if (!lab_verify_guest(g.ip))
        bench_die("the guest finds its data wrong");
    free(over);
    return 0;
}
