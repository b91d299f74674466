/* SPDX-License-Identifier: MIT */
/* tests/guest/client.h: the parts of xm-client. Each returns the program's exit status and has printed its
 * JSON line. */
#ifndef XM_TESTS_GUEST_CLIENT_H
#define XM_TESTS_GUEST_CLIENT_H

#include <signal.h>
#include <stdint.h>

extern volatile sig_atomic_t client_stopped; /* a signal asks for a regular end */

int client_fail(const char *what);   /* with errno */
uint64_t client_size(const char *s); /* 4K, 256M, 1G */
/* compare.c */
int client_compare(const char *source, const char *destination, const char *name, uint64_t seed,
                   uint64_t span, uint64_t trim);
/* proxy.c */
int client_proxy(const char *addresses, uint16_t port, const char *harm, uint64_t after);

#endif
