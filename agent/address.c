/* SPDX-License-Identifier: MIT */
#include "agent/address.h"

#include <arpa/inet.h>
#include <string.h>

bool address_parse(struct address *a, const char *text)
{
    memset(a, 0, sizeof *a);
    a->family = strchr(text, ':') ? AF_INET6 : AF_INET;
    return inet_pton(a->family, text, a->bytes) == 1;
}

bool address_of(struct address *a, const struct sockaddr *sa)
{
    memset(a, 0, sizeof *a);
    a->family = sa->sa_family;
    if (sa->sa_family == AF_INET) {
        memcpy(a->bytes, &((const struct sockaddr_in *)(const void *)sa)->sin_addr, 4);
        return true;
    }
    if (sa->sa_family != AF_INET6)
        return false;
    const struct in6_addr *six = &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
    if (IN6_IS_ADDR_V4MAPPED(six)) {
        a->family = AF_INET;
        memcpy(a->bytes, six->s6_addr + 12, 4);
    } else {
        memcpy(a->bytes, six, 16);
    }
    return true;
}

bool address_equal(const struct address *a, const struct address *b)
{
    return a->family == b->family && !memcmp(a->bytes, b->bytes, sizeof a->bytes);
}

bool address_same_family(const char *a, const char *b)
{
    struct address x, y;
    return address_parse(&x, a) && address_parse(&y, b) && x.family == y.family;
}

struct address_text address_format(const struct address *a)
{
    struct address_text t = {"?"};
    inet_ntop(a->family, a->bytes, t.s, sizeof t.s);
    return t;
}
