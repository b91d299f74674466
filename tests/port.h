/* SPDX-License-Identifier: MIT */
/* tests/port.h: TCP ports of this machine that no other run of the tests gets. */
#ifndef XM_TESTS_PORT_H
#define XM_TESTS_PORT_H

/* A port of 127.0.0.1 that is free and stays ours until this process ends: whoever sets SO_REUSEADDR (QEMU,
 * xmigrated) may listen there, and the kernel gives it to nobody who asks for any. 0: there is none. */
unsigned held_port(void);

#endif
