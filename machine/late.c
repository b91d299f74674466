/* SPDX-License-Identifier: MIT */
/* machine/late.c: what comes for a guest while it stands still in a switch-over follows it.
 *
 * Until the network has learned where the guest runs, frames for it go to its tap at the source, which nobody
 * reads any more. They were lost, and a TCP connection waited for its retransmission: 200 ms at least, ten
 * times the downtime. So they are kept there, by a packet socket on each tap, go to the destination over the
 * links, and into the guest's tap. (Sent anew by the source's bridge they would make all switches look for
 * their sender at the source.) When the switch-over fails they are dropped; QEMU reads the very frames from
 * the tap.
 *
 * Left out: what everybody gets (it is at the destination's tap already), frames with a VLAN's tag, and what
 * is beyond LATE_ROOM a NIC. A frame may come twice, as on any Ethernet.
 *
 * The sockets are made before the shim gives up the right to make such. Without that right, or a bridge,
 * nothing follows. From then on they are the migration's thread's; one that has brought the VM may give its
 * guest frames while the next one keeps such: a socket does not hear what it sends. */
#include "machine/machine.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_bridge.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HEAD      sizeof(struct virtio_net_hdr)
#define LATE_ROOM (1 << 20)    /* bytes a NIC, as the kernel counts them */
#define EARLIER   XM_NS_PER_MS /* what QEMU had read, and the guest had not when it stopped */
#define NOBODYS   0x88b5       /* IEEE 802 local experimental: a socket has to have some protocol */

/* ---- the sockets ---- */

void late_open(struct machine *vm)
{
    for (unsigned i = 0; i < vm->spec.nics; i++) {
        int one = 1;
        int fd =
            vm->spec.nic[i].bridge[0] ? socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;

        if (fd >= 0 && (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) < 0 ||
                        setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &one, sizeof one) < 0)) {
            close(fd);
            fd = -1;
        }
        vm->late_fd[i] = fd < 0 ? 0 : fd;
    }
}

bool late_can(const struct machine *vm)
{
    for (unsigned i = 0; i < vm->spec.nics; i++) {
        if (vm->late_fd[i])
            return true;
    }
    return false;
}

void late_close(struct machine *vm)
{
    for (unsigned i = 0; i < vm->spec.nics; i++) {
        if (vm->late_fd[i])
            close(vm->late_fd[i]);
        vm->late_fd[i] = 0;
    }
}

static bool address_of(const struct vm_nic *nic, unsigned char a[ETH_ALEN])
{
    return sscanf(nic->mac, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &a[0], &a[1], &a[2], &a[3], &a[4],
                  &a[5]) == ETH_ALEN;
}

/* Frames to the guest's own address. */
static int only_to(int fd, const unsigned char a[ETH_ALEN])
{
    uint32_t high = (uint32_t)a[0] << 24 | (uint32_t)a[1] << 16 | (uint32_t)a[2] << 8 | a[3];
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 3),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)a[4] << 8 | a[5], 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};

    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

static int listen_for(int fd, uint16_t protocol, const char *interface)
{
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol)};

    at.sll_ifindex = (int)if_nametoindex(interface);
    return at.sll_ifindex ? bind(fd, (struct sockaddr *)&at, sizeof at) : -1;
}

/* Less than a header is refused, and the frame gone. */
static ssize_t take(int fd)
{
    char head[HEAD];

    return recv(fd, head, sizeof head, MSG_TRUNC);
}

/* As long as any socket wants it the kernel stamps every packet of the host. */
static void stamp(int fd, int yes)
{
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes);
}

static void empty(int fd)
{
    while (take(fd) >= 0)
        ;
}

void late_keep(struct machine *vm)
{
    for (unsigned i = 0; i < vm->spec.nics; i++) {
        const struct vm_nic *nic = &vm->spec.nic[i];
        unsigned char a[ETH_ALEN];
        int fd = vm->late_fd[i], room = LATE_ROOM;

        if (!fd || !address_of(nic, a))
            continue;
        empty(fd);
        stamp(fd, 1);
        if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0)
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        if (only_to(fd, a) < 0 || listen_for(fd, ETH_P_ALL, nic->tap) < 0)
            xm_log(XM_LOG_WARN, "NIC %s: what comes while the VM stands still is not kept: %s", nic->name,
                   strerror(errno));
    }
}

void late_drop(struct machine *vm)
{
    for (unsigned i = 0; i < vm->spec.nics; i++) {
        if (!vm->late_fd[i])
            continue;
        listen_for(vm->late_fd[i], NOBODYS, vm->spec.nic[i].tap);
        stamp(vm->late_fd[i], 0);
        empty(vm->late_fd[i]);
    }
}

/* ---- where the guest is, by the bridge ---- */

static unsigned port_of(const char *tap)
{
    char path[80], text[16] = "";
    unsigned port = 0;

    snprintf(path, sizeof path, "/sys/class/net/%s/brport/port_no", tap);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, text, sizeof text - 1) > 0)
        sscanf(text, "%x", &port);
    if (fd >= 0)
        close(fd);
    return port;
}

/* The bridge has seen a frame of the guest's come in by another port than its tap's. */
static bool has_moved(const struct vm_nic *nic, const unsigned char a[ETH_ALEN])
{
    struct __fdb_entry entry[256];
    unsigned port = port_of(nic->tap);
    bool moved = false;
    char path[80];
    ssize_t n;

    snprintf(path, sizeof path, "/sys/class/net/%s/brforward", nic->bridge);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && !moved && (n = read(fd, entry, sizeof entry)) > 0) {
        for (size_t i = 0; i < (size_t)n / sizeof *entry; i++) {
            unsigned at = entry[i].port_no | (unsigned)entry[i].port_hi << 8;
            moved = moved || (!memcmp(entry[i].mac_addr, a, ETH_ALEN) && !entry[i].is_local && at != port);
        }
    }
    if (fd >= 0)
        close(fd);
    return moved;
}

bool late_over(const struct machine *vm)
{
    for (unsigned i = 0; i < vm->spec.nics; i++) {
        unsigned char a[ETH_ALEN];
        if (vm->late_fd[i] && address_of(&vm->spec.nic[i], a) && !has_moved(&vm->spec.nic[i], a))
            return false;
    }
    return true;
}

/* ---- the frames ---- */

static uint64_t real_time(uint64_t at)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * XM_NS_PER_S + (uint64_t)ts.tv_nsec - (xm_now() - at);
}

/* What the kernel says beside a frame: when it came; and one with a VLAN's tag has that here. */
static uint64_t time_of(struct msghdr *m, bool *tagged)
{
    uint64_t when = UINT64_MAX;

    *tagged = false;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        struct tpacket_auxdata aux;
        struct timespec ts;
        if (c->cmsg_level == SOL_PACKET && c->cmsg_type == PACKET_AUXDATA) {
            memcpy(&aux, CMSG_DATA(c), sizeof aux);
            *tagged = aux.tp_status & TP_STATUS_VLAN_VALID;
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
            memcpy(&ts, CMSG_DATA(c), sizeof ts);
            when = (uint64_t)ts.tv_sec * XM_NS_PER_S + (uint64_t)ts.tv_nsec;
        }
    }
    return when;
}

/* As recv; with the time, by CLOCK_REALTIME, and whether all of it is here. */
static ssize_t receive(int fd, void *to, size_t size, int flags, uint64_t *when, bool *whole)
{
    union {
        char room[256];
        struct cmsghdr align;
    } control;
    struct iovec v = {to, size};
    struct msghdr m = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    bool tagged = false;

    ssize_t n = recvmsg(fd, &m, flags);
    *when = n < 0 ? 0 : time_of(&m, &tagged);
    *whole = n >= 0 && !tagged && !(m.msg_flags & MSG_TRUNC);
    return n;
}

void late_trim(struct machine *vm, uint64_t age_ns)
{
    uint64_t since = real_time(xm_now() - age_ns), when;
    char head[HEAD];
    bool whole;

    for (unsigned i = 0; i < vm->spec.nics; i++) {
        while (vm->late_fd[i] && receive(vm->late_fd[i], head, sizeof head, MSG_PEEK, &when, &whole) >= 0 &&
               when < since)
            take(vm->late_fd[i]);
    }
}

ssize_t late_next(struct machine *vm, unsigned nic, uint64_t since, void *frame)
{
    uint64_t from = real_time(since - EARLIER), when = 0; /* what came before is the guest's already */
    bool whole = false;
    ssize_t n = -1;

    while (vm->late_fd[nic]) {
        n = receive(vm->late_fd[nic], frame, LATE_FRAME_MAX, 0, &when, &whole);
        if (n < 0 || (whole && when >= from))
            break;
    }
    return n;
}

int late_give(struct machine *vm, unsigned nic, const void *frame, size_t n, struct xm_error *e)
{
    const unsigned char *f = frame;
    struct sockaddr_ll to = {.sll_family = AF_PACKET};
    unsigned char a[ETH_ALEN];

    if (nic >= vm->spec.nics || n < HEAD + ETH_HLEN || n > LATE_FRAME_MAX ||
        !address_of(&vm->spec.nic[nic], a) || memcmp(f + HEAD, a, sizeof a) != 0)
        return xm_error_set(e, EPROTO, "a frame that is not for this guest");
    if (!vm->late_fd[nic])
        return xm_error_set(e, ENOTSUP, "NIC %s takes no frames", vm->spec.nic[nic].name);
    memcpy(&to.sll_protocol, f + HEAD + 2 * (size_t)ETH_ALEN, sizeof to.sll_protocol);
    to.sll_ifindex = (int)if_nametoindex(vm->spec.nic[nic].tap);
    return sendto(vm->late_fd[nic], frame, n, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to) == (ssize_t)n
               ? 0
               : xm_error_errno(e, errno, "NIC %s: a frame", vm->spec.nic[nic].name);
}
