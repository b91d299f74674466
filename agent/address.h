/* SPDX-License-Identifier: MIT */
/* agent/address.h: numeric IP addresses of peers and links, compared without their ports. */
#ifndef XM_AGENT_ADDRESS_H
#define XM_AGENT_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

struct address {
    int family; /* AF_INET, AF_INET6; an IPv4 address in IPv6 clothes is AF_INET */
    unsigned char bytes[16];
};

bool address_parse(struct address *, const char *text); /* numeric only: no name is ever looked up */
bool address_of(struct address *, const struct sockaddr *);
bool address_equal(const struct address *, const struct address *);
bool address_same_family(const char *a, const char *b); /* both are addresses of one family */
struct address_text {
    char s[INET6_ADDRSTRLEN];
};
struct address_text address_format(const struct address *);

#endif
