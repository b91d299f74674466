/* SPDX-License-Identifier: MIT */
/* One JSON object a line. What arrives is kept in one buffer: [start, len) is unread, [start, scanned)
 * known to hold no newline. A line is bounded by its sender's limits, so the buffer is too: at most one
 * such line and one more read. */
#include "base/base.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define READ_MIN        4096u  /* room that each read is given at least */
#define READ_AHEAD      65536u /* bytes behind the longest line */
#define SEND_TIMEOUT_NS (10 * XM_NS_PER_S)

const struct xm_json_limits xm_json_local = {XM_JSONL_MAX, 64, 1u << 17};
const struct xm_json_limits xm_json_answer = {XM_JSONL_MAX, 16, 1u << 16};
const struct xm_json_limits xm_json_request = {XM_JSONL_MAX / 4, 16, 1u << 13};

/* Every value but the first of its array or object stands behind a comma, and every first one behind a
 * bracket. What is no JSON may be counted wrong: the parser finds out what it is. */
static int judge_size(const char *text, size_t len, const struct xm_json_limits *limits, struct xm_error *e)
{
    unsigned depth = 0, values = 0;
    bool quoted = false;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (quoted) {
            i += c == '\\';
            quoted = c != '"';
            continue;
        }
        quoted = c == '"';
        if (c == '[' || c == '{') {
            if (++depth > limits->depth)
                return xm_error_set(e, EMSGSIZE, "values are nested more than %u deep", limits->depth);
        } else if ((c == ']' || c == '}') && depth) {
            depth--;
        } else if (c != ',') {
            continue;
        }
        if (c != ']' && c != '}' && ++values > limits->values)
            return xm_error_set(e, EMSGSIZE, "it has more than %u values", limits->values);
    }
    return 0;
}

json_t *xm_json_parse(const char *text, size_t len, const struct xm_json_limits *limits, struct xm_error *e)
{
    json_error_t je;

    if (len > limits->bytes) {
        xm_error_set(e, EMSGSIZE, "a message is longer than %zu bytes", limits->bytes);
        return NULL;
    }
    if (judge_size(text, len, limits, e) < 0) {
        xm_error_prefix(e, "a message is too much to take in");
        return NULL;
    }
    json_t *o = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (json_is_object(o))
        return o;
    xm_error_set(e, EPROTO, "a message is no JSON object (%s): \"%.*s\"", o ? "another value" : je.text,
                 (int)XM_MIN(len, 60), text);
    json_decref(o);
    return NULL;
}

void xm_jsonl_init(struct xm_jsonl *j, int fd)
{
    *j = (struct xm_jsonl){.fd = fd, .limits = &xm_json_local, .passed_fd = -1};
}

void xm_jsonl_close(struct xm_jsonl *j)
{
    if (j->fd >= 0)
        close(j->fd);
    if (j->passed_fd >= 0)
        close(j->passed_fd);
    free(j->buf);
    xm_jsonl_init(j, -1);
}

/* Keeps the last descriptor that came, closes the others: none may leak, whatever the peer sends. */
static void take_fds(struct xm_jsonl *j, struct msghdr *mh)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            if (j->passed_fd >= 0)
                close(j->passed_fd);
            memcpy(&j->passed_fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
        }
    }
}

static int make_room(struct xm_jsonl *j)
{
    if (j->start) {
        memmove(j->buf, j->buf + j->start, j->len - j->start);
        j->len -= j->start;
        j->scanned -= j->start;
        j->start = 0;
    }
    if (j->cap - j->len >= READ_MIN)
        return 0;
    size_t most = j->limits->bytes + READ_AHEAD;
    if (j->cap >= most)
        return -ENOBUFS;
    size_t cap = XM_MIN(XM_MAX(j->cap * 2, 4 * READ_MIN), most);
    char *buf = realloc(j->buf, cap);
    if (!buf)
        return -ENOMEM;
    j->buf = buf;
    j->cap = cap;
    return 0;
}

int xm_jsonl_fill(struct xm_jsonl *j, struct xm_error *e)
{
    bool any = false;

    if (j->fd < 0)
        return xm_error_set(e, ENOTCONN, "the connection is closed");
    for (;;) {
        int err = make_room(j);
        if (err == -ENOMEM)
            return xm_error_set(e, ENOMEM, "no memory to receive a message");
        if (err)
            /* Full: with whole lines, and the caller takes them now; or with one too long, and then it has
             * been told. */
            return any ? 1
                       : xm_error_set(e, EMSGSIZE, "a message is longer than %zu bytes", j->limits->bytes);
        union {
            char buf[CMSG_SPACE(8 * sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec iov = {j->buf + j->len, j->cap - j->len};
        struct msghdr mh = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(j->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 1;
        if (n <= 0 && any)
            return 1; /* what came is to be read first; the end or the error is there at the next call too */
        if (n < 0)
            return xm_error_errno(e, errno, "cannot receive");
        if (n == 0)
            return 0;
        take_fds(j, &mh);
        j->len += (size_t)n;
        any = true;
    }
}

json_t *xm_jsonl_next(struct xm_jsonl *j, bool *bad, struct xm_error *e)
{
    bool ignored;

    if (!bad)
        bad = &ignored;
    *bad = false;
    if (j->scanned == j->len)
        return NULL;
    char *nl = memchr(j->buf + j->scanned, '\n', j->len - j->scanned);
    size_t line = (nl ? (size_t)(nl - j->buf) : j->len) - j->start;
    if (line > j->limits->bytes) {
        *bad = true;
        xm_error_set(e, EMSGSIZE, "a message is longer than %zu bytes", j->limits->bytes);
        return NULL;
    }
    if (!nl) {
        j->scanned = j->len;
        return NULL;
    }
    const char *text = j->buf + j->start;
    j->start = j->scanned = (size_t)(nl - j->buf) + 1;
    json_t *o = xm_json_parse(text, line, j->limits, e);
    *bad = !o;
    return o;
}

json_t *xm_jsonl_recv(struct xm_jsonl *j, uint64_t deadline, struct xm_error *e)
{
    for (;;) {
        bool bad;
        json_t *o = xm_jsonl_next(j, &bad, e);
        if (o || bad)
            return o;
        if (j->fd < 0) {
            xm_error_set(e, ENOTCONN, "the connection is closed");
            return NULL;
        }
        int waited = xm_wait_fd(j->fd, POLLIN, deadline);
        if (waited == -ETIMEDOUT) {
            xm_error_set(e, ETIMEDOUT, "no answer in time");
            return NULL;
        }
        if (waited < 0) {
            xm_error_errno(e, -waited, "cannot wait for an answer");
            return NULL;
        }
        int got = xm_jsonl_fill(j, e);
        if (got < 0)
            return NULL;
        if (got == 0) {
            xm_error_set(e, ECONNRESET,
                         j->len > j->start ? "the peer closed the connection in the middle of a message"
                                           : "the peer closed the connection");
            return NULL;
        }
    }
}

/* Sends what it can; the descriptor goes with the first byte. */
static ssize_t send_some(int fd, const char *data, size_t len, int pass_fd)
{
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {(char *)data, len};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

    if (pass_fd >= 0) {
        mh.msg_control = &control;
        mh.msg_controllen = sizeof control;
        struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &pass_fd, sizeof(int));
    }
    return sendmsg(fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int send_all(int fd, const char *data, size_t len, int pass_fd, struct xm_error *e)
{
    uint64_t deadline = xm_now() + SEND_TIMEOUT_NS;

    while (len) {
        ssize_t n = send_some(fd, data, len, pass_fd);
        if (n >= 0) {
            pass_fd = -1;
            data += n;
            len -= (size_t)n;
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return xm_error_errno(e, errno, "cannot send");
        int waited = xm_wait_fd(fd, POLLOUT, deadline);
        if (waited == -ETIMEDOUT)
            return xm_error_set(e, ETIMEDOUT, "the peer does not read what it is sent");
        if (waited < 0)
            return xm_error_errno(e, -waited, "cannot wait until the peer reads");
    }
    return 0;
}

int xm_jsonl_send(int fd, json_t *steals, int pass_fd, struct xm_error *e)
{
    char *text = steals ? json_dumps(steals, JSON_COMPACT) : NULL;
    int err;

    json_decref(steals);
    if (!text)
        return xm_error_set(e, ENOMEM,
                            "cannot put a message together (no memory, or text that is not UTF-8)");
    size_t len = strlen(text);
    if (len > XM_JSONL_MAX) {
        err = xm_error_set(e, EMSGSIZE, "a message of %zu bytes is longer than the %u allowed", len,
                           XM_JSONL_MAX);
    } else {
        text[len] = '\n'; /* instead of the 0 */
        err = send_all(fd, text, len + 1, pass_fd, e);
    }
    free(text);
    return err;
}

/* An address has room for 107 bytes of path. A longer one goes by a descriptor of its directory, *dir, which
 * is closed when the address has been used (-1: none). */
static int unix_address(struct sockaddr_un *a, const char *path, int *dir, struct xm_error *e)
{
    const char *slash = strrchr(path, '/');

    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    *dir = -1;
    if (*path && strlen(path) < sizeof a->sun_path) {
        memcpy(a->sun_path, path, strlen(path) + 1);
        return 0;
    }
    if (!slash || slash == path || strlen(slash) > sizeof a->sun_path - sizeof "/proc/self/fd/4294967295")
        return xm_error_set(e, ENAMETOOLONG, "the name of a socket is too long, or empty: %s", path);
    char *in = xm_printf("%.*s", (int)(slash - path), path);
    *dir = open(in, O_PATH | O_DIRECTORY | O_CLOEXEC);
    free(in);
    if (*dir < 0)
        return xm_error_errno(e, errno, "the directory of the socket %s", path);
    snprintf(a->sun_path, sizeof a->sun_path, "/proc/self/fd/%d%s", *dir, slash);
    return 0;
}

int xm_unix_connect(const char *path, struct xm_error *e)
{
    struct sockaddr_un a;
    int dir, err = unix_address(&a, path, &dir, e);
    if (err)
        return err;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        err = xm_error_errno(e, errno, "cannot make a socket");
    else if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
        err = xm_error_errno(e, errno, "cannot connect to %s", path);
    if (err && fd >= 0)
        close(fd);
    if (dir >= 0)
        close(dir);
    return err ? err : fd;
}

/* Removes a socket that nobody listens on any more. What is no socket, or is in use, stays. */
static int remove_stale(const char *path, struct xm_error *e)
{
    struct stat st;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : xm_error_errno(e, errno, "cannot listen on %s", path);
    if (!S_ISSOCK(st.st_mode))
        return xm_error_set(e, EEXIST, "cannot listen on %s: it exists and is no socket", path);
    int fd = xm_unix_connect(path, NULL);
    if (fd >= 0)
        close(fd);
    if (fd != -ECONNREFUSED && fd != -ENOENT)
        return xm_error_set(e, EADDRINUSE, "cannot listen on %s: another process does", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return xm_error_errno(e, errno, "cannot remove the stale socket %s", path);
    return 0;
}

int xm_unix_bind(const char *path, struct xm_error *e)
{
    struct sockaddr_un a;
    int err = remove_stale(path, e), dir, fd = -1;

    if (err || (err = unix_address(&a, path, &dir, e)))
        return err;
    /* fchmod before bind: the socket's file is made with this mode, at no moment with a wider one (unix(7)
     * and the umask aside). */
    if ((fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0)
        err = xm_error_errno(e, errno, "cannot make a socket");
    else if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0)
        err = xm_error_errno(e, errno, "cannot make the socket %s", path);
    if (err && fd >= 0)
        close(fd);
    if (dir >= 0)
        close(dir);
    return err ? err : fd;
}

int xm_unix_listen(const char *path, struct xm_error *e)
{
    int fd = xm_unix_bind(path, e);

    if (fd >= 0 && listen(fd, 64) < 0) {
        int err = xm_error_errno(e, errno, "cannot listen on %s", path);
        close(fd);
        return err;
    }
    return fd;
}

const char *xm_json_str(const json_t *o, const char *key, const char *otherwise)
{
    const json_t *v = json_object_get(o, key);
    return json_is_string(v) ? json_string_value(v) : otherwise;
}

int64_t xm_json_int(const json_t *o, const char *key, int64_t otherwise)
{
    const json_t *v = json_object_get(o, key);
    return json_is_integer(v) ? (int64_t)json_integer_value(v) : otherwise;
}

double xm_json_real(const json_t *o, const char *key, double otherwise)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : otherwise;
}

bool xm_json_bool(const json_t *o, const char *key, bool otherwise)
{
    const json_t *v = json_object_get(o, key);
    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

bool xm_json_lists(const json_t *array, const char *text)
{
    const json_t *v;
    size_t i;

    json_array_foreach (array, i, v) {
        if (json_is_string(v) && !strcmp(json_string_value(v), text))
            return true;
    }
    return false;
}

/* ---- files ---- */

#define FILE_MAX (4u << 20)

int xm_json_save(const char *path, const json_t *o, struct xm_error *e)
{
    char *text = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
    int r = text ? xm_file_replace(path, text, strlen(text), e)
                 : xm_error_set(e, EINVAL, "cannot write %s: a text in it is not UTF-8, or memory is short",
                                path);

    free(text);
    return r;
}

int xm_json_load(const char *path, json_t **out, struct xm_error *e)
{
    char *text;
    size_t len;
    json_error_t why;
    int r = xm_file_read(path, FILE_MAX, &text, &len, e);

    *out = NULL;
    if (r < 0)
        return r;
    json_t *o = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    free(text);
    if (json_is_object(o)) {
        *out = o;
        return 0;
    }
    r = xm_error_set(e, EINVAL, "%s:%d: %s", path, why.line, o ? "no JSON object" : why.text);
    json_decref(o);
    return r;
}
