/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_engine.h: an I/O engine under test, and the tables that run each test over every engine. */
#ifndef TESTS_LIB_ENGINE_H
#define TESTS_LIB_ENGINE_H

#include "blkcopy/blkcopy.h"
#include "tests/unit/lib_disk.h"

#define MIB  (1u << 20)
#define SIZE (4u * MIB) /* of the file */

enum backing { NONE, ON_FILE, ON_LOOP };
struct variant {
    enum xm_engine_kind kind;
    enum backing on;
};

/* What a test works with; freed by engine_teardown however the test ends. */
extern struct engine_rig {
    struct xm_engine *engine;
    struct xm_file file;
    struct xm_timer guard;
} rig;

void engine_rig_open(void **state, unsigned depth); /* state: the variant */
int engine_teardown(void **state);
void engine_turn_until(const unsigned *counter, unsigned target);
void engine_brief_turn(void); /* a turn that does not wait for anything */

struct one {
    struct xm_io io;
    struct iovec iov;
    unsigned done;
    int res;
};

void one_done(struct xm_io *io, int res);

/* A test, with the backings it is run over: bit 1 << enum backing. */
struct engine_test {
    const char *name;
    CMUnitTestFunction run;
    unsigned over;
};
#define ENGINE_TEST(name, over)                                                                              \
    {                                                                                                        \
#name, test_##name, over                                                                             \
    }
extern const struct variant engine_uring_on_file;
/* Each of them over each engine that has such a backing, then `last`. Returns what main does. */
int engine_tests_run(const char *group, const struct engine_test *, size_t count,
                     const struct CMUnitTest *last);

#endif
