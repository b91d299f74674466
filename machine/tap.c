/* SPDX-License-Identifier: MIT */
/* Tap devices for the guest's NICs: made persistent, so that their end is ours to say, put on the bridge, and
 * taken away again. QEMU is handed a descriptor. */
#include "machine/qemu.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUSY_PATIENCE (60 * XM_NS_PER_S)

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

static int enslave(const struct vm_nic *nic, struct xm_error *e)
{
    struct ifreq ifr = {0};
    int r = 0;
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    memcpy(ifr.ifr_name, nic->tap, strnlen(nic->tap, IFNAMSIZ - 1));
    if (s < 0 || ioctl(s, SIOCGIFINDEX, &ifr) < 0)
        r = xm_error_errno(e, errno, "NIC %s: tap %s", nic->name, nic->tap);
    int index = ifr.ifr_ifindex;
    if (!r && nic->bridge[0]) {
        memset(&ifr, 0, sizeof ifr);
        memcpy(ifr.ifr_name, nic->bridge, strnlen(nic->bridge, IFNAMSIZ - 1));
        ifr.ifr_ifindex = index;
        if (ioctl(s, SIOCBRADDIF, &ifr) < 0 && errno != EBUSY)
            r = xm_error_errno(e, errno, "NIC %s: cannot put tap %s on bridge %s", nic->name, nic->tap,
                               nic->bridge);
    }
    memset(&ifr, 0, sizeof ifr);
    memcpy(ifr.ifr_name, nic->tap, strnlen(nic->tap, IFNAMSIZ - 1));
    if (!r && ioctl(s, SIOCGIFFLAGS, &ifr) == 0) {
        ifr.ifr_flags |= IFF_UP;
        if (ioctl(s, SIOCSIFFLAGS, &ifr) < 0)
            r = xm_error_errno(e, errno, "NIC %s: cannot bring up tap %s", nic->name, nic->tap);
    }
    if (s >= 0)
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
        r = enslave(nic, e);
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
