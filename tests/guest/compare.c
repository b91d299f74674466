/* SPDX-License-Identifier: MIT */
/* tests/guest/compare.c: xm-client compare: the source's kept disk against the destination's, on which the
 * guest writes on.
 *
 * What must hold: outside the span in which the guest writes, all bytes are equal. Within it, where the two
 * differ, the destination has a whole record of a later write than the source has. In the last `trim` bytes
 * of the span the guest discards, so there a block may have become zeros too. (With the guest's writers
 * paused a plain cmp is the test.) */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/guest/client.h"
#include "tests/guest/record.h"

#define PIECE (1024u * 1024)

struct comparison {
    uint64_t id, span, trim;
    uint64_t later, wrong;
    char first[160];
};

static void judge(struct comparison *c, uint64_t off, const unsigned char *a, const unsigned char *b)
{
    uint64_t block = off / REC_BLOCK, old = 0;
    char why[96] = "differs, and no guest writes there";

    if (off < c->span) {
        if (rec_check(a, c->id, block, 0, UINT64_MAX, why, sizeof(why)) == NULL)
            old = rec_sequence(a);
        if (rec_check(b, c->id, block, old + 1, UINT64_MAX, why, sizeof(why)) == NULL ||
            (off >= c->span - c->trim && rec_is_zero(b, REC_BLOCK))) {
            c->later++;
            return;
        }
    }
    if (c->wrong++ == 0)
        snprintf(c->first, sizeof(c->first), "block %llu: %s", (unsigned long long)block, why);
}

static ssize_t read_whole(int fd, unsigned char *buf, uint64_t off)
{
    size_t have = 0;

    while (have < PIECE) {
        ssize_t n = pread(fd, buf + have, PIECE - have, (off_t)(off + have));

        if (n < 0)
            return n;
        if (n == 0)
            break;
        have += (size_t)n;
    }
    memset(buf + have, 0, PIECE - have);
    return (ssize_t)have;
}

int client_compare(const char *source, const char *destination, const char *name, uint64_t seed,
                   uint64_t span, uint64_t trim)
{
    static unsigned char a[PIECE], b[PIECE];
    struct comparison c = {.id = rec_disk_id(name, seed), .span = span, .trim = trim};
    int fa = open(source, O_RDONLY | O_CLOEXEC), fb = open(destination, O_RDONLY | O_CLOEXEC);
    uint64_t off, bytes = 0;
    ssize_t na = 1, nb = 1;

    if (fa < 0 || fb < 0)
        return client_fail(fa < 0 ? source : destination);
    for (off = 0; na > 0 || nb > 0; off += PIECE) {
        size_t i;

        na = read_whole(fa, a, off);
        nb = read_whole(fb, b, off);
        if (na < 0 || nb < 0)
            return client_fail(na < 0 ? source : destination);
        if (na != nb && c.wrong++ == 0)
            snprintf(c.first, sizeof(c.first), "the sizes differ");
        bytes += (uint64_t)na;
        for (i = 0; i < PIECE; i += REC_BLOCK)
            if (memcmp(a + i, b + i, REC_BLOCK) != 0)
                judge(&c, off + i, a + i, b + i);
    }
    close(fa);
    close(fb);
    printf("{\"ok\":%s,\"bytes\":%llu,\"later_blocks\":%llu,\"wrong_blocks\":%llu,\"first\":\"%s\"}\n",
           c.wrong || !bytes ? "false" : "true", (unsigned long long)bytes, (unsigned long long)c.later,
           (unsigned long long)c.wrong, c.first);
    return c.wrong || !bytes ? 1 : 0;
}
