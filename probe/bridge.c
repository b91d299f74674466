/* SPDX-License-Identifier: MIT */
/* What there is to know of a bridge. In one that keeps a spanning tree a new port listens, then learns, a
 * forward delay each (15 s, unless set), and only then passes anything. Asked by ioctl: /sys may be another
 * network namespace's. */
#include "probe/probe.h"

#include <linux/if.h>
#include <linux/if_bridge.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS_MAX 1024 /* of a bridge of the kernel's */
/* Of the clock by which bridges tell (but for __bridge_info.forward_delay, which is the kernel's own). */
#define TICK (10 * XM_NS_PER_MS)

static struct ifreq named(const char *name)
{
    struct ifreq ifr = {0};

    memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    return ifr;
}

static int ask(int s, const char *bridge, unsigned long what, void *to, unsigned long more)
{
    unsigned long args[4] = {what, (unsigned long)to, more, 0};
    struct ifreq ifr = named(bridge);

    ifr.ifr_data = (char *)args;
    return ioctl(s, SIOCDEVPRIVATE, &ifr);
}

static int port_of(int s, const char *bridge, const char *device)
{
    int ports[PORTS_MAX] = {0};
    struct ifreq ifr = named(device);

    if (ioctl(s, SIOCGIFINDEX, &ifr) < 0 || ask(s, bridge, BRCTL_GET_PORT_LIST, ports, PORTS_MAX) < 0)
        return -1;
    for (int i = 0; i < PORTS_MAX; i++) {
        if (ports[i] == ifr.ifr_ifindex)
            return i;
    }
    return -1;
}

/* One that is blocked stays so. Where a program keeps the tree, and not the kernel, there is no timer. The
 * delay is the root bridge's, of which the timer is what is left. */
static uint64_t ticks_left(int s, const char *bridge, const char *device, uint64_t delay)
{
    struct __port_info port = {0};
    int number = port_of(s, bridge, device);

    if (number < 0 || ask(s, bridge, BRCTL_GET_PORT_INFO, &port, (unsigned long)number) < 0)
        return 0;
    if (port.state == BR_STATE_LISTENING)
        return port.forward_delay_timer_value + XM_MAX(port.forward_delay_timer_value, delay);
    return port.state == BR_STATE_LEARNING ? port.forward_delay_timer_value : 0;
}

uint64_t probe_bridge_passes_in(const char *bridge, const char *device)
{
    struct __bridge_info b = {0};
    uint64_t ticks = 0;
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (s >= 0 && ask(s, bridge, BRCTL_GET_BRIDGE_INFO, &b, 0) == 0 && b.stp_enabled)
        ticks = device ? ticks_left(s, bridge, device, b.bridge_forward_delay)
                       : 2 * (uint64_t)b.bridge_forward_delay;
    if (s >= 0)
        close(s);
    return ticks * TICK;
}

unsigned probe_bridge_mtu(const char *bridge)
{
    struct ifreq ifr = named(bridge);
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool known = s >= 0 && ioctl(s, SIOCGIFMTU, &ifr) == 0;

    if (s >= 0)
        close(s);
    return known ? (unsigned)XM_MAX(ifr.ifr_mtu, 0) : 0;
}
