/* SPDX-License-Identifier: MIT */
/* tests/guest/command.c: the commands, from the serial console and from TCP; one at a time, each answered by
 * one JSON line.
 *
 *   status                        figures, and how many failures there were so far
 *   verify                        pauses all writers, reads back everything, goes on
 *   pause | resume                disk and memory writers; after the answer to `pause` nothing is in flight and all is flushed
 *   pause-disks | resume-disks    the disk writers alone
 *   io SECONDS DEPTH [DEV]        verified mixed load
 *   fs DEV SECONDS                ext4 with verified files (the host has made the file system)
 *   read PATH                     the first line of a file below /sys or /proc
 *   reset                         forgets the longest gap and the slowest request
 *   reboot                        resets the machine
 *   quit                          powers off */
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>
#include "tests/guest/guest.h"

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static void print_fails(FILE *out)
{
    const char *p;

    fprintf(out, "\"fails\":%u,\"first_fail\":\"", guest_fails());
    for (p = guest_first_fail(); *p; p++)
        fputc(*p == '"' || *p == '\\' || (unsigned char)*p < ' ' ? '\'' : *p, out);
    fprintf(out, "\"");
}

/* Another one after each boot. */
static void print_boot(FILE *out)
{
    char id[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (f) {
        if (fgets(id, sizeof(id), f))
            id[strcspn(id, "\n")] = 0;
        fclose(f);
    }
    fprintf(out, "\"boot\":\"%s\",", id);
}

static void do_status(FILE *out)
{
    fprintf(out, "{\"ok\":%s,\"uptime_ms\":%llu,\"clock_gap_ms\":%.3f,\"disks\":",
            guest_fails() ? "false" : "true", (unsigned long long)(now_ns() / 1000000),
            (double)tcp_clock_gap(false) / 1e6);
    disks_status(out);
    fprintf(out, ",\"memory\":");
    memory_status(out);
    fprintf(out, ",");
    print_boot(out);
    print_fails(out);
    fprintf(out, "}\n");
}

static void do_verify(FILE *out)
{
    uint64_t began = now_ns(), blocks, pages, bad_blocks, bad_pages;

    disks_pause();
    memory_pause();
    bad_blocks = disks_verify(&blocks);
    bad_pages = memory_verify(&pages);
    memory_resume();
    disks_resume();
    fprintf(
        out,
        "{\"ok\":%s,\"blocks\":%llu,\"wrong_blocks\":%llu,\"pages\":%llu,\"wrong_pages\":%llu,\"ms\":%llu,",
        bad_blocks || bad_pages || guest_fails() ? "false" : "true", (unsigned long long)blocks,
        (unsigned long long)bad_blocks, (unsigned long long)pages, (unsigned long long)bad_pages,
        (unsigned long long)((now_ns() - began) / 1000000));
    print_fails(out);
    fprintf(out, "}\n");
}

static void do_load(FILE *out, int words, char (*word)[32])
{
    unsigned before = guest_fails();
    char *figures = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&figures, &len);
    int rc = -1;

    if (strcmp(word[0], "io") == 0 && words >= 3)
        rc = disks_load(words > 3 ? word[3] : NULL, (unsigned)atoi(word[1]), (unsigned)atoi(word[2]), f);
    else if (strcmp(word[0], "fs") == 0 && words >= 3)
        rc = files_load(word[1], (unsigned)atoi(word[2]), f);
    fclose(f);
    fprintf(out, "{\"ok\":%s,%s%s", rc == 0 && guest_fails() == before ? "true" : "false",
            figures ? figures : "", len ? "," : "");
    print_fails(out);
    fprintf(out, "}\n");
    free(figures);
}

static void do_read(FILE *out, const char *path)
{
    char line[200] = "";
    FILE *f = fopen(path, "re");
    bool ok = f && fgets(line, sizeof(line), f);

    if (f)
        fclose(f);
    line[strcspn(line, "\n\"\\")] = 0;
    fprintf(out, "{\"ok\":%s,\"line\":\"%s\"}\n", ok ? "true" : "false", line);
}

static void run(const char *line, FILE *out)
{
    char word[5][32] = {{0}};
    int words = sscanf(line, "%31s %31s %31s %31s %31s", word[0], word[1], word[2], word[3], word[4]);
    const char *ok = "{\"ok\":true}\n";

    if (strcmp(word[0], "status") == 0) {
        do_status(out);
    } else if (strcmp(word[0], "verify") == 0) {
        do_verify(out);
    } else if (strcmp(word[0], "read") == 0) {
        do_read(out, word[1]);
    } else if (strcmp(word[0], "pause") == 0) {
        disks_pause();
        memory_pause();
        fputs(ok, out);
    } else if (strcmp(word[0], "resume") == 0) {
        memory_resume();
        disks_resume();
        fputs(ok, out);
    } else if (strcmp(word[0], "pause-disks") == 0) {
        disks_pause();
        fputs(ok, out);
    } else if (strcmp(word[0], "resume-disks") == 0) {
        disks_resume();
        fputs(ok, out);
    } else if (strcmp(word[0], "io") == 0 || strcmp(word[0], "fs") == 0) {
        do_load(out, words, word);
    } else if (strcmp(word[0], "reset") == 0) {
        disks_reset();
        tcp_clock_gap(true);
        fputs(ok, out);
    } else if (strcmp(word[0], "quit") == 0 || strcmp(word[0], "reboot") == 0) {
        disks_pause();
        sync();
        reboot(word[0][0] == 'q' ? RB_POWER_OFF : RB_AUTOBOOT);
    } else {
        fprintf(out, "{\"ok\":false,\"error\":\"unknown command\"}\n");
    }
}

char *command_run(const char *line)
{
    char *answer = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&answer, &len);

    if (!out)
        return NULL;
    pthread_mutex_lock(&one_at_a_time);
    run(line, out);
    pthread_mutex_unlock(&one_at_a_time);
    fclose(out);
    return answer;
}
