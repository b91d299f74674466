/* SPDX-License-Identifier: MIT */
/* net/hello.c: how two ends of a new connection find out that they belong together.
 *
 * Happy path: the client sends HELLO; the server judges it, and only then sends its own (so a stranger who
 * connects learns nothing); the client judges that. Payload of HELLO, little endian:
 *
 *    0 u32 version       XM_PROTOCOL_VERSION; another one is refused
 *    4 u32 required      features that the other side has to know, or it refuses
 *    8 u32 optional      features that may be used when both sides set them; unknown ones are ignored
 *   12 u32 max_payload   bytes of payload that this side accepts; at least XM_PAYLOAD_MAX in this version
 *   16 u64 window_bytes  unanswered payload that this side accepts on this link
 *   24 u32 window_frames unanswered frames, likewise
 *   28 u32 reserved      0, not judged
 *   32     token         XM_TOKEN_BYTES, compared in constant time
 *
 * Failures: silence for 5 s (or opts.silence, if that is less), a closed connection, no HELLO, another
 * version or token. Who refuses says why in an ABORT whose extent is the errno, so that the other side can
 * say the same. A refused connection concerns nobody else in the bundle.
 */
#include "net/bundle.h"

#include <endian.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define KNOWN_FEATURES XM_FEATURE_HEAD

struct wire_hello {
    uint32_t version, required, optional, max_payload;
    uint64_t window_bytes;
    uint32_t window_frames, reserved;
    uint8_t token[XM_TOKEN_BYTES];
};
_Static_assert(sizeof(struct wire_hello) == HELLO_BYTES, "HELLO on the wire");

static int hello_send(int fd, const void *data, size_t len, uint64_t deadline)
{
    for (const uint8_t *p = data; len;) {
        ssize_t n = send(fd, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            p += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            int err = xm_wait_fd(fd, POLLOUT, deadline);
            if (err < 0)
                return err;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static int hello_recv(int fd, void *data, size_t len, uint64_t deadline)
{
    for (uint8_t *p = data; len;) {
        ssize_t n = recv(fd, p, len, MSG_DONTWAIT);
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        } else if (n == 0) {
            return -ECONNRESET;
        } else if (errno == EAGAIN) {
            int err = xm_wait_fd(fd, POLLIN, deadline);
            if (err < 0)
                return err;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static int send_frame(int fd, uint8_t type, uint64_t extent, const void *payload, uint32_t len,
                      uint64_t deadline)
{
    uint8_t wire[FRAME_HDR + HELLO_MAX];

    frame_encode(wire, &(struct xm_frame_hdr){
                           .type = type, .extent = extent, .length = len, .hash = frame_hash(payload, len)});
    memcpy(wire + FRAME_HDR, payload, len);
    return hello_send(fd, wire, FRAME_HDR + len, deadline);
}

static int send_hello(int fd, const struct xm_links_opts *o, uint64_t deadline)
{
    struct wire_hello w = {.version = htole32(XM_PROTOCOL_VERSION),
                           .required = htole32(0),
                           .optional = htole32(KNOWN_FEATURES),
                           .max_payload = htole32(XM_PAYLOAD_MAX),
                           .window_bytes = htole64(o->window_bytes),
                           .window_frames = htole32(o->window_frames)};

    memcpy(w.token, o->token, sizeof w.token);
    return send_frame(fd, XM_FRAME_HELLO, 0, &w, sizeof w, deadline);
}

static bool token_equal(const uint8_t *a, const uint8_t *b)
{
    volatile uint8_t diff = 0;

    for (size_t i = 0; i < XM_TOKEN_BYTES; i++)
        diff = (uint8_t)(diff | (a[i] ^ b[i]));
    return diff == 0;
}

static int judge_hello(const struct wire_hello *w, const struct xm_links_opts *o, struct hello *peer,
                       struct xm_error *e)
{
    /* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): recv_hello has read all of it */
    *peer = (struct hello){.version = le32toh(w->version),
                           .required = le32toh(w->required),
                           .optional = le32toh(w->optional) & KNOWN_FEATURES,
                           .max_payload = le32toh(w->max_payload),
                           .window_bytes = le64toh(w->window_bytes),
                           .window_frames = le32toh(w->window_frames)};
    if (peer->version != XM_PROTOCOL_VERSION)
        return xm_error_set(
            e, EPROTONOSUPPORT,
            "the other side speaks protocol version %u, this one %u; install the same xmigrate on both hosts",
            peer->version, XM_PROTOCOL_VERSION);
    if (peer->required & ~KNOWN_FEATURES)
        return xm_error_set(e, EPROTONOSUPPORT,
                            "the other side requires features (%#x) that this one does not have",
                            peer->required & ~KNOWN_FEATURES);
    if (!token_equal(w->token, o->token))
        return xm_error_set(e, EACCES, "the other side's token is not that of this migration");
    if (peer->max_payload < XM_PAYLOAD_MAX || !peer->window_bytes || !peer->window_frames)
        return xm_error_set(
            e, EPROTO,
            "the other side accepts too little: payloads of %u bytes, a window of %llu bytes and %u frames",
            peer->max_payload, (unsigned long long)peer->window_bytes, peer->window_frames);
    return 0;
}

static int recv_hello(int fd, const struct xm_links_opts *o, struct hello *peer, bool *spoken,
                      struct xm_error *e, uint64_t deadline)
{
    uint8_t wire[FRAME_HDR], payload[HELLO_MAX];
    struct xm_frame_hdr h;
    int err = hello_recv(fd, wire, sizeof wire, deadline);

    *spoken = false;
    if (err < 0)
        return err == -ETIMEDOUT ? xm_error_set(e, ETIMEDOUT, "no HELLO from the other side in time")
                                 : xm_error_errno(e, -err, "waiting for the other side's HELLO");
    *spoken = true;
    err = frame_decode(&h, wire, e);
    if (err < 0)
        return err;
    if (h.type != XM_FRAME_HELLO && h.type != XM_FRAME_ABORT)
        return xm_error_set(e, EPROTO, "a %s frame where HELLO was expected", frame_kind(h.type)->name);
    err = hello_recv(fd, payload, h.length, deadline); /* at most HELLO_MAX: frame_decode saw to that */
    if (err < 0)
        return xm_error_errno(e, -err, "receiving the other side's HELLO");
    if (h.hash != frame_hash(payload, h.length))
        return xm_error_set(e, EBADMSG,
                            "the checksum of the other side's HELLO is wrong: damaged on the way");
    if (h.type == XM_FRAME_HELLO)
        return judge_hello((const struct wire_hello *)(const void *)payload, o, peer, e);
    *spoken = false; /* it has ended already, there is nothing to tell it */
    int code = h.extent && h.extent < 4096 ? (int)h.extent : ECONNREFUSED;
    return xm_error_set(e, code, "the other side refused: %.*s", (int)h.length, (const char *)payload);
}

int hello_exchange(int fd, bool client, const struct xm_links_opts *o, const char *name, struct hello *peer,
                   struct xm_error *e)
{
    uint64_t deadline = xm_now() + XM_MIN(HELLO_TIME, o->silence);
    struct xm_error own = {0};
    bool spoken = false;
    int err = client ? send_hello(fd, o, deadline) : 0;

    if (err < 0)
        xm_error_errno(&own, -err, "sending HELLO");
    else
        err = recv_hello(fd, o, peer, &spoken, &own, deadline);
    if (!err && !client && (err = send_hello(fd, o, deadline)) < 0)
        xm_error_errno(&own, -err, "sending HELLO");
    if (err < 0 && spoken)
        send_frame(fd, XM_FRAME_ABORT, (uint64_t)own.code, own.text, (uint32_t)strnlen(own.text, ABORT_MAX),
                   deadline);
    if (err < 0)
        xm_error_set(e, own.code, "link %s: %.400s", name, own.text);
    return err;
}
