/* SPDX-License-Identifier: MIT */
#include "agent/facts.h"
#include "agent/address.h"
#include "agent/storage.h"
#include "probe/probe.h"

#include <ctype.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- CPU, memory ---- */

static char cpu_flags[8192];

static void read_cpu_flags(void)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char *line = NULL;
    size_t cap = 0;

    while (f && getline(&line, &cap, f) > 0) {
        const char *colon = strchr(line, ':');
        if (colon && !strncmp(line, "flags", 5)) {
            snprintf(cpu_flags, sizeof cpu_flags, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
            break;
        }
    }
    free(line);
    if (f)
        fclose(f);
}

const char *facts_cpu_flags(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_cpu_flags);
    return cpu_flags;
}

/* A line «KEY:   N kB» of a file below /proc, in bytes. */
static uint64_t proc_kb(const char *path, const char *key)
{
    FILE *f = fopen(path, "re");
    char line[256];
    uint64_t kb = 0;
    size_t n = strlen(key);

    while (f && fgets(line, sizeof line, f)) {
        if (!strncmp(line, key, n) && line[n] == ':' && sscanf(line + n + 1, "%" SCNu64, &kb) == 1)
            break;
    }
    if (f)
        fclose(f);
    return kb << 10;
}

uint64_t facts_memory_available(void)
{
    return proc_kb("/proc/meminfo", "MemAvailable");
}

uint64_t facts_shared_rss(pid_t pid)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/status", pid);
    return pid > 0 ? proc_kb(path, "RssShmem") : 0;
}

/* ---- network ---- */

/* Asked of the kernel and not of /sys, which may be another network namespace's. */
bool facts_bridge(const char *name)
{
    struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
    struct ifreq req = {.ifr_data = (char *)&info};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    snprintf(req.ifr_name, sizeof req.ifr_name, "%s", name);
    bool yes = fd >= 0 && ioctl(fd, SIOCETHTOOL, &req) == 0 && !strcmp(info.driver, "bridge");
    if (fd >= 0)
        close(fd);
    return yes;
}

static uint64_t interface_speed(const char *name)
{
    char path[64];
    long mbit = 0;

    snprintf(path, sizeof path, "/sys/class/net/%.15s/speed", name);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%ld", &mbit) != 1)
        mbit = 0; /* virtual devices refuse to say */
    if (f)
        fclose(f);
    return mbit > 0 ? (uint64_t)mbit * 1000000 / 8 : 0;
}

uint64_t facts_link_speed(const char *address, bool *up)
{
    struct ifaddrs *all = NULL;
    struct address want, have;
    uint64_t speed = 0;

    *up = false;
    if (!address_parse(&want, address) || getifaddrs(&all) < 0)
        return 0;
    for (struct ifaddrs *i = all; i; i = i->ifa_next) {
        if (i->ifa_addr && address_of(&have, i->ifa_addr) && address_equal(&want, &have) &&
            (i->ifa_flags & IFF_UP)) {
            *up = true;
            speed = interface_speed(i->ifa_name);
        }
    }
    freeifaddrs(all);
    return speed;
}

/* By binding and no more: two who look at once do not see each other. */
bool facts_port_busy(const char *address, uint16_t port)
{
    struct address a;

    if (!address_parse(&a, address))
        return false;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    bool six = a.family == AF_INET6;
    const struct sockaddr *sa = six ? (const void *)&v6 : (const void *)&v4;
    int one = 1, fd = socket(a.family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    memcpy(&v4.sin_addr, a.bytes, sizeof v4.sin_addr);
    memcpy(&v6.sin6_addr, a.bytes, sizeof v6.sin6_addr);
    if (fd < 0)
        return false;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    bool busy = bind(fd, sa, six ? sizeof v6 : sizeof v4) < 0 && errno == EADDRINUSE;
    close(fd);
    return busy;
}

/* ---- files ---- */

bool facts_file(const char *path, bool strict)
{
    struct stat st;

    if (strict &&
        (strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/sys/", 5) == 0 || strncmp(path, "/dev/", 5) == 0))
        return false;
    if (storage_stat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    return !strict || (st.st_mode & S_IROTH);
}

bool facts_file_private(const char *path)
{
    struct stat st;

    return storage_stat(path, &st) == 0 && S_ISREG(st.st_mode) && !(st.st_mode & S_IROTH);
}

uint64_t facts_file_size(const char *path)
{
    struct stat st;

    return storage_stat(path, &st) < 0 ? 0 : (uint64_t)st.st_size;
}

/* ---- QEMU's user ---- */

int facts_qemu_user(const char *wanted, const char *program, bool kvm, struct xm_error *e)
{
    struct qemu_users u;
    char *path = program ? qemu_path(program) : NULL; /* that it is not there is another matter */
    int r = qemu_users_find(wanted, &u, e);

    if (!r && u.last)
        r = qemu_user_try(&u.first_one, path, kvm, e);
    qemu_users_free(&u);
    free(path);
    return r && !wanted ? 1 : r;
}
