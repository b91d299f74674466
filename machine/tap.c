/* SPDX-License-Identifier: MIT */
/* Tap devices for the guest's NICs: made persistent, so that their end is ours to say, put on the bridge, and
 * taken away again. QEMU is handed a descriptor. */
#include "machine/qemu.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BUSY_PATIENCE (60 * XM_NS_PER_S)
#define FORGET_MAX    10000 /* who fills it faster than it is read ends nothing */

static int tun_open(const struct vm_nic *nic, struct xm_error *e)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

    if (fd < 0)
        return xm_error_errno(e, errno, "NIC %s: /dev/net/tun", nic->name);
    memcpy(ifr.ifr_name, nic->tap, strnlen(nic->tap, IFNAMSIZ - 1));
    if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
        int code = errno;
        close(fd);
        return xm_error_errno(e, code, "NIC %s: cannot make tap %s", nic->name, nic->tap);
    }
    return fd;
}

static struct ifreq named(const char *name)
{
    struct ifreq ifr = {0};

    memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    return ifr;
}

/* A bridge without an address of its own takes the lowest of its ports', and all who know the host by it
 * would lose it when a VM starts or ends: ours is the guest's, with the highest first byte that may be.
 * (The guest's own would make the bridge keep what is for the guest.) Where it cannot be set nothing else
 * fails. */
static void set_address(int s, const struct vm_nic *nic)
{
    struct ifreq ifr = named(nic->tap);
    unsigned char a[6] = {0xfe};

    if (sscanf(nic->mac, "%*2x:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &a[1], &a[2], &a[3], &a[4], &a[5]) != 5)
        return;
    ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(ifr.ifr_hwaddr.sa_data, a, sizeof a);
    if (ioctl(s, SIOCSIFHWADDR, &ifr) < 0)
        xm_log(XM_LOG_WARN, "NIC %s: the address of tap %s cannot be set: %s", nic->name, nic->tap,
               strerror(errno));
}

/* As large as the bridge's: its own would become the smallest of its ports', the host's frames with it. */
static void set_mtu(int s, const struct vm_nic *nic)
{
    struct ifreq bridge = named(nic->bridge), ifr = named(nic->tap);

    if (ioctl(s, SIOCGIFMTU, &bridge) < 0)
        return;
    ifr.ifr_mtu = bridge.ifr_mtu;
    if (ioctl(s, SIOCSIFMTU, &ifr) < 0)
        xm_log(XM_LOG_WARN, "NIC %s: tap %s cannot have the MTU %d of bridge %s: %s", nic->name, nic->tap,
               bridge.ifr_mtu, nic->bridge, strerror(errno));
}

static int join_bridge(int s, const struct vm_nic *nic, struct xm_error *e)
{
    struct ifreq ifr = named(nic->tap);

    if (ioctl(s, SIOCGIFINDEX, &ifr) < 0)
        return xm_error_errno(e, errno, "NIC %s: tap %s", nic->name, nic->tap);
    int index = ifr.ifr_ifindex;
    set_mtu(s, nic);
    ifr = named(nic->bridge);
    ifr.ifr_ifindex = index;
    if (ioctl(s, SIOCBRADDIF, &ifr) < 0 && errno != EBUSY)
        return xm_error_errno(e, errno, "NIC %s: cannot put tap %s on bridge %s", nic->name, nic->tap,
                              nic->bridge);
    return 0;
}

static int bring_up(int s, const struct vm_nic *nic, struct xm_error *e)
{
    struct ifreq ifr = named(nic->tap);

    if (ioctl(s, SIOCGIFFLAGS, &ifr) == 0) {
        ifr.ifr_flags |= IFF_UP;
        if (ioctl(s, SIOCSIFFLAGS, &ifr) < 0)
            return xm_error_errno(e, errno, "NIC %s: cannot bring up tap %s", nic->name, nic->tap);
    }
    return 0;
}

static int connect_tap(const struct vm_nic *nic, struct xm_error *e)
{
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), r = 0;

    if (s < 0)
        return xm_error_errno(e, errno, "NIC %s: a socket", nic->name);
    set_address(s, nic);
    if (nic->bridge[0])
        r = join_bridge(s, nic, e);
    if (!r)
        r = bring_up(s, nic, e);
    close(s);
    return r;
}

int tap_create(const struct vm_nic *nic, struct xm_error *e)
{
    int fd = tun_open(nic, e);

    if (fd < 0)
        return fd;
    /* One without an owner is everybody's. */
    int r = ioctl(fd, TUNSETOWNER, (unsigned long)geteuid()) < 0 || ioctl(fd, TUNSETPERSIST, 1) < 0
                ? xm_error_errno(e, errno, "NIC %s: cannot keep tap %s", nic->name, nic->tap)
                : 0;
    if (!r)
        r = connect_tap(nic, e);
    if (!r)
        return fd;
    close(fd);
    tap_delete(nic, NULL);
    return r;
}

/* A QEMU that was killed a moment ago has its tap open until its memory has been given back, which takes
 * seconds for a large one; and what is not deleted now nobody deletes. */
int tap_delete(const struct vm_nic *nic, struct xm_error *e)
{
    uint64_t deadline = xm_now() + BUSY_PATIENCE;
    int fd;

    while ((fd = tun_open(nic, e)) == -EBUSY && xm_now() < deadline)
        poll(NULL, 0, 20);
    if (fd < 0)
        return fd;
    ioctl(fd, TUNSETPERSIST, 0);
    close(fd);
    return 0;
}

uint64_t taps_pass_in(const struct vm_spec *vm)
{
    uint64_t longest = 0;

    for (unsigned i = 0; i < vm->nics; i++) {
        const struct vm_nic *nic = &vm->nic[i];
        uint64_t t = nic->bridge[0] ? probe_bridge_passes_in(nic->bridge, nic->tap) : 0;
        longest = XM_MAX(longest, t);
    }
    return longest;
}

/* Its kernel keeps the first txqueuelen (1000) frames that nobody reads, and drops what comes later. They are
 * read by QEMU's own descriptor: a second one of such a tap cannot be opened. */
static void forget(int fd)
{
    char frame[1 << 16]; /* what does not fit is cut */
    struct pollfd p = {.fd = fd, .events = POLLIN};

    for (int n = 0; n < FORGET_MAX && poll(&p, 1, 0) > 0 && read(fd, frame, sizeof frame) > 0; n++)
        ;
}

void taps_forget(const struct qemu *q, const struct vm_spec *vm)
{
    for (unsigned i = 0; i < vm->nics && q->pidfd >= 0; i++) {
        int fd = (int)syscall(SYS_pidfd_getfd, q->pidfd, QEMU_FD_TAP + (int)i, 0);
        if (fd < 0)
            xm_log(XM_LOG_WARN, "NIC %s: its guest hears what came while it was moved: %s", vm->nic[i].name,
                   strerror(errno));
        if (fd >= 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK)) /* QEMU makes it so */
            forget(fd);
        if (fd >= 0)
            close(fd);
    }
}
