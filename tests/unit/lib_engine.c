/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_engine.h"
#include "tests/progress.h"

#include <stdio.h>
#include <stdlib.h>

struct engine_rig rig;

static void guard_fired(struct xm_timer *t)
{
    (void)t;
    fail_msg("nothing happened for 20 s");
}

void engine_rig_open(void **state, unsigned depth)
{
    const struct variant *v = *state;
    struct xm_error e = {0};

    rig = (struct engine_rig){.file.fd = -1};
    rig.engine = xm_engine_open(v->kind, depth, &e);
    if (!rig.engine && v->kind == XM_ENGINE_URING) {
        print_message("SKIPPED: %s\n", e.text);
        skip();
    }
    if (!rig.engine)
        fail_msg("%s", e.text);
    if (v->on == ON_FILE)
        assert_int_equal(xm_file_open(&rig.file, lib_path("disk"), XM_FILE_CREATE, SIZE, &e), 0);
    else if (v->on == ON_LOOP && xm_file_open(&rig.file, lib_loop("disk", SIZE), 0, 0, &e) < 0)
        fail_msg("%s", e.text);
    rig.guard.fire = guard_fired;
    xm_engine_timer_set(rig.engine, &rig.guard, xm_now() + LIMIT_HANG_NS);
}

int engine_teardown(void **state)
{
    if (rig.engine)
        xm_engine_free(rig.engine);
    if (rig.file.path)
        xm_file_close(&rig.file);
    rig = (struct engine_rig){.file.fd = -1};
    return lib_disk_clean(state);
}

void engine_turn_until(const unsigned *counter, unsigned target)
{
    while (*counter < target)
        xm_engine_turn(rig.engine);
}

static void timer_fired(struct xm_timer *t)
{
    (void)t;
}

void engine_brief_turn(void)
{
    struct xm_timer now = {.fire = timer_fired};

    xm_engine_timer_set(rig.engine, &now, 0);
    xm_engine_turn(rig.engine);
    xm_engine_timer_cancel(rig.engine, &now);
}

void one_done(struct xm_io *io, int res)
{
    struct one *o = xm_container_of(io, struct one, io);
    o->res = res;
    o->done++;
}

static const struct variant variants[] = {
    {XM_ENGINE_URING, NONE},  {XM_ENGINE_URING, ON_FILE},  {XM_ENGINE_URING, ON_LOOP},
    {XM_ENGINE_LIBAIO, NONE}, {XM_ENGINE_LIBAIO, ON_FILE}, {XM_ENGINE_LIBAIO, ON_LOOP},
};

const struct variant engine_uring_on_file = {XM_ENGINE_URING, ON_FILE};

#define VARIANTS (sizeof(variants) / sizeof(*variants))

int engine_tests_run(const char *group, const struct engine_test *tests, size_t count,
                     const struct CMUnitTest *last)
{
    static const char *const kinds[] = {"auto", "io_uring", "libaio"}, *const on[] = {"", ", file",
                                                                                      ", loop device"};
    struct CMUnitTest *all = calloc(count * VARIANTS + 1, sizeof(*all));
    char(*names)[120] = calloc(count * VARIANTS, sizeof(*names));
    size_t n = 0;

    for (size_t t = 0; t < count; t++) {
        for (size_t v = 0; v < VARIANTS; v++) {
            if (!(tests[t].over & 1u << variants[v].on))
                continue;
            snprintf(names[n], sizeof(names[n]), "%s (%s%s)", tests[t].name, kinds[variants[v].kind],
                     on[variants[v].on]);
            all[n] = (struct CMUnitTest){names[n], tests[t].run, NULL, engine_teardown, (void *)&variants[v]};
            n++;
        }
    }
    all[n++] = *last;
    int rc = _cmocka_run_group_tests(group, all, n, NULL, NULL);
    free(all);
    free(names);
    return rc;
}
