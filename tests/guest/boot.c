/* SPDX-License-Identifier: MIT */
/* tests/guest/boot.c: what an init has to do before anything else: mounts, modules, the NIC, the command
 * line. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <net/route.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "tests/guest/guest.h"

void boot_mounts(void)
{
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mkdir("/mnt", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* The initramfs numbers them in the order they need: /modules/01-virtio_ring.ko ... */
void boot_modules(void)
{
    struct dirent **list = NULL;
    int i, n = scandir("/modules", &list, NULL, by_name);

    for (i = 0; i < n; i++) {
        char path[320];
        int fd;

        if (list[i]->d_name[0] != '.') {
            snprintf(path, sizeof(path), "/modules/%s", list[i]->d_name);
            fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
                guest_fail("module %s: %s", list[i]->d_name, strerror(errno));
            if (fd >= 0)
                close(fd);
        }
        free(list[i]);
    }
    free(list);
}

int boot_wait_device(const char *dev)
{
    char path[64];
    int i;

    snprintf(path, sizeof(path), "/dev/%s", dev);
    for (i = 0; i < 6000; i++) {
        if (access(path, F_OK) == 0)
            return 0;
        usleep(10000);
    }
    guest_fail("no device %s after a minute", path);
    return -1;
}

static void set_address(struct ifreq *ifr, uint32_t addr)
{
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_addr.s_addr = addr};

    memcpy(&ifr->ifr_addr, &sin, sizeof(sin));
}

static int raise_interface(int s, const char *name)
{
    struct ifreq ifr = {0};

    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    if (ioctl(s, SIOCGIFFLAGS, &ifr) < 0)
        return -1;
    ifr.ifr_flags |= IFF_UP | IFF_RUNNING;
    return ioctl(s, SIOCSIFFLAGS, &ifr);
}

int boot_network(const char *cidr)
{
    struct ifreq ifr = {.ifr_name = "eth0"};
    char addr[32];
    char *slash;
    unsigned bits = 24;
    int i, s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    raise_interface(s, "lo");
    if (!*cidr) {
        close(s);
        return 0;
    }
    snprintf(addr, sizeof(addr), "%s", cidr);
    slash = strchr(addr, '/');
    if (slash) {
        *slash = 0;
        bits = (unsigned)atoi(slash + 1);
    }
    for (i = 0; i < 6000 && !if_nametoindex("eth0"); i++)
        usleep(10000);
    set_address(&ifr, inet_addr(addr));
    if (ioctl(s, SIOCSIFADDR, &ifr) < 0)
        goto fail;
    set_address(&ifr, bits ? htonl(~0u << (32 - bits)) : 0);
    if (ioctl(s, SIOCSIFNETMASK, &ifr) < 0 || raise_interface(s, "eth0") < 0)
        goto fail;
    close(s);
    return 0;
fail:
    guest_fail("eth0 %s: %s", cidr, strerror(errno));
    close(s);
    return -1;
}

static void parse_mem(struct params *p, const char *v)
{
    const char *rate = strstr(v, ":rate=");

    p->mem_bytes = parse_size(v);
    p->mem_rate = rate ? parse_size(rate + 6) : 0;
}

void boot_params(struct params *p)
{
    static char line[4096];
    char *word, *save = NULL;
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);

    if (fd >= 0)
        close(fd);
    line[n < 0 ? 0 : n] = 0;
    memset(p, 0, sizeof(*p));
    p->seed = 1;
    for (word = strtok_r(line, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
        if (strncmp(word, "xm.disk=", 8) == 0) {
            if (p->disks < 8)
                snprintf(p->disk[p->disks++], sizeof(p->disk[0]), "%s", word + 8);
        } else if (strncmp(word, "xm.mem=", 7) == 0) {
            parse_mem(p, word + 7);
        } else if (strncmp(word, "xm.ip=", 6) == 0) {
            snprintf(p->ip, sizeof(p->ip), "%s", word + 6);
        } else if (strncmp(word, "xm.seed=", 8) == 0) {
            p->seed = strtoull(word + 8, NULL, 0);
        } else if (strncmp(word, "xm.", 3) == 0) {
            guest_fail("unknown parameter %s", word);
        }
    }
}

/* The ACPI power button is an input device: pressing it (QMP system_powerdown) powers the guest off. */
static void *watch_button(void *arg)
{
    int fd = (int)(intptr_t)arg;
    struct input_event ev;

    while (read(fd, &ev, sizeof(ev)) == sizeof(ev)) {
        if (ev.type == EV_KEY && ev.code == KEY_POWER && ev.value == 1) {
            guest_say("power button");
            disks_pause();
            sync();
            reboot(RB_POWER_OFF);
        }
    }
    return NULL;
}

void boot_watch_power_button(void)
{
    char path[64];
    int i;

    for (i = 0; i < 8; i++) {
        int fd;

        snprintf(path, sizeof(path), "/dev/input/event%d", i);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            start_thread(watch_button, (void *)(intptr_t)fd);
    }
}
