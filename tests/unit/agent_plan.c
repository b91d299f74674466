/* SPDX-License-Identifier: MIT */
/* The rebalance planner: cases that a person can follow, and thousands of small random ones against trying
 * everything. */
#include "agent/plan.h"
#include "tests/unit/lib_disk.h"

#include <stdio.h>
#include <string.h>

#define G (1ull << 30)

/* ---- a small world to put together ---- */

static struct plan_datastore ds[12];
static struct plan_vm vms[200];
static struct plan_host hosts[] = {{"hostb", UINT64_MAX}, {"hostc", UINT64_MAX}};
static struct plan_input in;
static struct plan p;

static int setup(void **state)
{
    (void)state;
    memset(ds, 0, sizeof(ds));
    memset(vms, 0, sizeof(vms));
    hosts[0].memory_free = hosts[1].memory_free = UINT64_MAX;
    in = (struct plan_input){
        .host = "hosta", .hosts = hosts, .host_count = 2, .datastores = ds, .vms = vms, .concurrent = 2};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    plan_free(&p);
    return 0;
}

static unsigned add_store(const char *host, const char *name, uint64_t size, uint64_t used, unsigned target)
{
    struct plan_datastore *d = &ds[in.datastore_count];

    snprintf(d->host, sizeof(d->host), "%s", host);
    snprintf(d->name, sizeof(d->name), "%s", name);
    d->size = size * G;
    d->used = used * G;
    d->target = target;
    return in.datastore_count++;
}

static struct plan_vm *add_vm(const char *name, int store, uint64_t size)
{
    struct plan_vm *v = &vms[in.vm_count++];

    snprintf(v->name, sizeof(v->name), "%s", name);
    v->memory = G;
    v->disks = 1;
    v->disk[0].datastore = store;
    v->disk[0].bytes = size * G;
    return v;
}

static void add_disk(struct plan_vm *v, int store, uint64_t size)
{
    v->disk[v->disks].datastore = store;
    v->disk[v->disks++].bytes = size * G;
}

static void make_plan(void)
{
    struct xm_error e = {0};

    if (plan_rebalance(&in, &p, &e) < 0)
        fail_msg("%s", e.text);
    for (unsigned i = 0; i < p.move_count; i++)
        assert_non_null(strstr(p.moves[i].reason, vms[p.moves[i].vm].name));
    for (unsigned i = 0; i < p.problem_count; i++)
        assert_non_null(strstr(p.problems[i].reason, ds[p.problems[i].datastore].name));
}

/* ---- cases ---- */

static void test_nothing_to_do(void **state)
{
    (void)state;
    make_plan();
    assert_int_equal(p.move_count + p.problem_count, 0);
    plan_free(&p);
    add_store("hosta", "ssd", 100, 80, 80);
    add_store("hostb", "ssd", 100, 10, 80);
    add_vm("web1", 0, 20);
    make_plan();
    assert_int_equal(p.move_count + p.problem_count, 0);
    assert_true(p.fewest);
}

static void test_one_move_within_the_host_first(void **state)
{
    (void)state;
    add_store("hosta", "ssd", 100, 90, 80);
    add_store("hostb", "far", 100, 10, 80);
    add_store("hosta", "hdd", 100, 10, 80);
    add_vm("small", 0, 5);
    add_vm("right", 0, 12);
    add_vm("big", 0, 50);
    make_plan();
    assert_int_equal(p.move_count, 1);
    assert_string_equal(vms[p.moves[0].vm].name, "right");
    assert_int_equal(p.moves[0].datastore, 2);
    assert_false(p.moves[0].across);
    assert_int_equal(p.moves[0].bytes, 12 * G);
    assert_string_equal(
        p.moves[0].reason,
        "ssd is 90 % full, 10.00 GiB above its target of 80 %; right (12.00 GiB) leaves it at 78 % "
        "and takes hdd from 10 % to 22 %");
    assert_true(p.fewest);
}

static void test_not_where_it_is_refused(void **state)
{
    (void)state;
    add_store("hosta", "ssd", 100, 90, 80);
    add_store("hosta", "hdd", 100, 10, 80);
    add_store("hostb", "far", 100, 10, 80);
    add_store("hostc", "far", 100, 10, 80);
    struct plan_vm *v = add_vm("web1", 0, 12);
    static const unsigned goes[] = {1, 2, 3};
    for (unsigned i = 0; i < 3; i++) { /* hosta, hostb, hostc */
        make_plan();
        assert_int_equal(p.move_count, 1);
        assert_int_equal(p.moves[0].datastore, goes[i]);
        v->barred |= 1u << i;
        plan_free(&p);
    }
    make_plan();
    assert_int_equal(p.move_count, 0);
    assert_int_equal(p.problem_count, 1);
    assert_non_null(strstr(p.problems[0].reason, "no moves of its VMs that are let in fit"));
}

static void test_goes_to_another_host_when_it_has_to(void **state)
{
    (void)state;
    add_store("hosta", "ssd", 100, 90, 80);
    add_store("hostb", "far", 100, 10, 80);
    add_store("hosta", "hdd", 100, 79, 80);
    add_vm("web1", 0, 12);
    make_plan();
    assert_int_equal(p.move_count, 1);
    assert_int_equal(p.moves[0].datastore, 1);
    assert_true(p.moves[0].across);
    assert_non_null(strstr(p.moves[0].reason, "takes hostb:far from"));
}

static void test_a_full_hosts_memory_is_no_target(void **state)
{
    (void)state;
    add_store("hosta", "ssd", 100, 90, 80);
    add_store("hostb", "far", 100, 10, 80);
    add_vm("web1", 0, 12)->memory = 8 * G;
    hosts[0].memory_free = 4 * G;
    make_plan();
    assert_int_equal(p.move_count, 0);
    assert_int_equal(p.problem_count, 1);
}

/* Two moves to one place: the second has to find the space that the first left. */
static void test_space_is_reserved_while_planning(void **state)
{
    (void)state;
    add_store("hosta", "ssd", 100, 100, 80);
    add_store("hosta", "hdd", 100, 68, 80);
    add_store("hostb", "far", 100, 68, 80);
    add_vm("a", 0, 10);
    add_vm("b", 0, 10);
    make_plan();
    assert_int_equal(p.move_count, 2);
    assert_int_not_equal(p.moves[0].datastore, p.moves[1].datastore);
    assert_int_equal(p.moves[0].wave, 0);
    assert_int_equal(p.moves[1].wave, 0);
}

static void test_at_most_so_many_at_once(void **state)
{
    (void)state;
    add_store("hosta", "ssd", 100, 100, 50);
    add_store("hosta", "hdd", 100, 0, 80);
    for (int i = 0; i < 6; i++)
        add_vm("vm", 0, 10);
    make_plan();
    assert_int_equal(p.move_count, 5);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(p.moves[i].wave, i / 2);
}

/* What comes needs the space of what goes: a later wave. */
static void test_makes_room_in_a_chain(void **state)
{
    (void)state;
    add_store("hosta", "ssd", 100, 90, 80);
    add_store("hosta", "hdd", 100, 75, 80);
    add_store("hostb", "far", 20, 0, 80);
    add_vm("big", 0, 30);
    add_vm("little", 1, 2);
    add_vm("middle", 1, 14);
    vms[1].fixed = true;
    add_vm("more", 1, 15);
    make_plan();
    assert_int_equal(p.move_count, 0); /* big needs 25 free in hdd, far takes one of 14 or 15 */
    assert_int_equal(p.problem_count, 1);
    plan_free(&p);
    ds[2].size = 100 * G;
    vms[0].disk[0].bytes = 30 * G;
    add_disk(&vms[0], -1, 1); /* a block device: big cannot leave the host */
    make_plan();
    assert_int_equal(p.move_count, 3);
    assert_string_equal(vms[p.moves[2].vm].name, "big");
    assert_int_equal(p.moves[2].wave, 1);
    assert_int_equal(p.moves[0].wave, 0);
    assert_int_equal(p.moves[1].wave, 0);
    assert_non_null(strstr(p.moves[0].reason, "make room"));
}

static void test_one_vm_can_relieve_two(void **state)
{
    (void)state;
    add_store("hosta", "one", 100, 90, 80);
    add_store("hosta", "two", 100, 90, 80);
    add_store("hosta", "three", 100, 10, 80);
    add_vm("a", 0, 10);
    add_vm("b", 1, 10);
    struct plan_vm *both = add_vm("both", 0, 15);
    add_disk(both, 1, 15);
    make_plan();
    assert_int_equal(p.move_count, 1);
    assert_string_equal(vms[p.moves[0].vm].name, "both");
}

static void test_says_what_cannot_be_solved(void **state)
{
    (void)state;
    add_store("hosta", "ssd", 100, 90, 80);  /* its VMs take too little */
    add_store("hosta", "hdd", 100, 95, 80);  /* nobody has so much room */
    add_store("hosta", "nvme", 100, 81, 80); /* can be helped */
    add_store("hostb", "far", 100, 90, 80);  /* not ours to help */
    add_store("hostc", "spare", 100, 78, 80);
    add_store("hostx", "unknown", 100, 0, 80); /* no peer of ours */
    add_vm("small", 0, 2);
    add_vm("large", 1, 60);
    add_vm("fixed", 0, 20)->fixed = true;
    add_vm("helps", 2, 2);
    make_plan();
    assert_int_equal(p.move_count, 1); /* after it nobody has room for small */
    assert_string_equal(vms[p.moves[0].vm].name, "helps");
    assert_int_equal(p.moves[0].datastore, 4);
    assert_int_equal(p.problem_count, 3);
    assert_non_null(strstr(p.problems[0].reason, "could be moved take only 2.00 GiB"));
    assert_non_null(strstr(p.problems[1].reason, "the most is 1.00 GiB, in hosta:nvme"));
    assert_non_null(strstr(p.problems[2].reason, "run rebalance on hostb"));
}

/* A target that cannot be reached is come near to. */
static void test_what_cannot_be_solved_is_relieved(void **state)
{
    (void)state;
    add_store("hosta", "fast", 100, 30, 2);
    add_store("hosta", "slow", 100, 70, 80);
    add_vm("a", 0, 3);
    add_vm("b", 0, 9);
    add_vm("stays", 0, 10)->fixed = true;
    make_plan();
    assert_int_equal(p.move_count, 1); /* 12 do not fit */
    assert_string_equal(vms[p.moves[0].vm].name, "b");
    assert_int_equal(p.problem_count, 1);
    assert_int_equal(p.problems[0].over, 19 * G);
    assert_non_null(strstr(p.problems[0].reason, "28.00 GiB above its target of 2 %, and stays at 21 %, "
                                                 "19.00 GiB above it, since the VMs here that could be "
                                                 "moved take only 12.00 GiB"));
    assert_true(p.fewest);
    plan_free(&p);
    ds[1].used = 60 * G;
    make_plan();
    assert_int_equal(p.move_count, 2);
    assert_int_equal(p.problems[0].over, 16 * G);
}

/* The room that there is goes to the one that it helps wholly, what is left of it to the other. */
static void test_relief_gives_up_nothing_that_can_be_solved(void **state)
{
    (void)state;
    add_store("hosta", "worse", 100, 100, 60);
    add_store("hosta", "ssd", 100, 90, 80);
    add_store("hostb", "far", 100, 60, 80);
    add_vm("a", 0, 20);
    add_vm("b", 1, 12);
    add_vm("c", 0, 7);
    add_vm("d", 0, 5);
    make_plan();
    assert_int_equal(p.move_count, 2);
    assert_int_equal(p.problem_count, 1);
    assert_int_equal(p.problems[0].datastore, 0);
    assert_int_equal(p.problems[0].over, 33 * G);
}

static void test_bad_input_is_refused(void **state)
{
    struct xm_error e = {0};

    (void)state;
    add_store("hosta", "ssd", 100, 90, 80);
    add_store("hostb", "far", 100, 90, 80);
    add_vm("web1", 1, 5);
    assert_int_equal(plan_rebalance(&in, &p, &e), -EINVAL);
    assert_non_null(strstr(e.text, "web1"));
    vms[0].disk[0].datastore = 2;
    assert_int_equal(plan_rebalance(&in, &p, &e), -EINVAL);
    vms[0].disk[0].datastore = 0;
    vms[0].disks = VM_DISKS_MAX + 1;
    assert_int_equal(plan_rebalance(&in, &p, &e), -EINVAL);
}

/* ---- does a plan keep its promises? ---- */

static uint64_t reached[12]; /* what each datastore holds in the end */

static uint64_t limit_of(unsigned d)
{
    return ds[d].target ? ds[d].size / 100 * ds[d].target + ds[d].size % 100 * ds[d].target / 100
                        : ds[d].size;
}

static uint64_t out_of(const struct plan_vm *v, unsigned from, unsigned to)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < v->disks && from != to; i++)
        sum += v->disk[i].datastore == (int)from ? v->disk[i].bytes : 0;
    return sum;
}

static uint64_t into(const struct plan_vm *v, unsigned to)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < v->disks; i++)
        sum += v->disk[i].datastore >= 0 && v->disk[i].datastore != (int)to ? v->disk[i].bytes : 0;
    return sum;
}

static void check_plan(void)
{
    uint64_t used[12];
    bool moved[200] = {false};

    for (unsigned d = 0; d < in.datastore_count; d++)
        used[d] = ds[d].used;
    for (unsigned i = 0, first = 0; i <= p.move_count; i++) {
        if (i == p.move_count || (i && p.moves[i].wave != p.moves[i - 1].wave)) {
            assert_true(i - first <= in.concurrent);
            for (; first < i; first++) {
                for (unsigned d = 0; d < in.datastore_count; d++)
                    used[d] -= out_of(&vms[p.moves[first].vm], d, p.moves[first].datastore);
            }
        }
        if (i == p.move_count)
            break;
        const struct plan_move *m = &p.moves[i];
        assert_false(vms[m->vm].fixed || moved[m->vm]);
        moved[m->vm] = true;
        assert_int_equal(m->bytes, into(&vms[m->vm], m->datastore));
        used[m->datastore] += m->bytes;
        assert_true(used[m->datastore] <= limit_of(m->datastore));
    }
    unsigned problems = 0;
    for (unsigned d = 0; d < in.datastore_count; d++) {
        reached[d] = used[d];
        problems += used[d] > limit_of(d);
        assert_true(used[d] <= XM_MAX(limit_of(d), ds[d].used));
    }
    assert_int_equal(problems, p.problem_count);
}

/* ---- trying everything ---- */

static uint64_t now_used[12];
static bool now_moved[8];
static unsigned best_solved, best_moves, best_across;
static bool nearer; /* a state as good everywhere and nearer to a target somewhere is possible */

/* The plan is to solve as many as can be, and to reach what it reaches with the fewest moves; nothing that it
 * leaves above its target can be brought nearer without another getting worse. */
static void try_all(unsigned moves, unsigned across)
{
    unsigned solved = 0;
    bool as_good = true, better = false;

    for (unsigned d = 0; d < in.datastore_count; d++) {
        solved += now_used[d] <= limit_of(d);
        as_good = as_good && now_used[d] <= XM_MAX(limit_of(d), reached[d]);
        better = better || (reached[d] > limit_of(d) && now_used[d] < reached[d]);
    }
    best_solved = XM_MAX(best_solved, solved);
    nearer = nearer || (as_good && better);
    if (as_good && (moves < best_moves || (moves == best_moves && across < best_across))) {
        best_moves = moves;
        best_across = across;
    }
    for (unsigned v = 0; v < in.vm_count; v++) {
        for (unsigned to = 0; to < in.datastore_count; to++) {
            bool is_across = strcmp(ds[to].host, "hosta") != 0, outside = false;
            for (unsigned i = 0; i < vms[v].disks; i++)
                outside = outside || vms[v].disk[i].datastore < 0;
            if (now_moved[v] || vms[v].fixed || (is_across && outside) || !into(&vms[v], to) ||
                now_used[to] + into(&vms[v], to) > limit_of(to))
                continue;
            uint64_t before[12];
            memcpy(before, now_used, sizeof(before));
            now_used[to] += into(&vms[v], to);
            for (unsigned d = 0; d < in.datastore_count; d++)
                now_used[d] -= out_of(&vms[v], d, to);
            now_moved[v] = true;
            try_all(moves + 1, across + is_across);
            now_moved[v] = false;
            memcpy(now_used, before, sizeof(before));
        }
    }
}

static uint64_t seed;

static uint64_t pick(uint64_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
}

static void random_world(unsigned stores, unsigned count)
{
    setup(NULL);
    in.concurrent = 1 + (unsigned)pick(3);
    for (unsigned d = 0; d < stores; d++) {
        char name[16];
        snprintf(name, sizeof(name), "ds%u", d);
        add_store(pick(3) ? "hosta" : "hostb", name, 20 + pick(80), 0, 60 + (unsigned)pick(4) * 10);
        ds[d].used = ds[d].size / 100 * pick(60);
    }
    for (unsigned v = 0; v < count; v++) {
        char name[16];
        snprintf(name, sizeof(name), "vm%u", v);
        struct plan_vm *vm = &vms[in.vm_count++];
        snprintf(vm->name, sizeof(vm->name), "%s", name);
        vm->fixed = pick(10) == 0;
        for (unsigned i = 1 + (pick(3) == 0); i; i--) {
            int d = (int)pick(stores + 1) - 1;
            if (d >= 0 && strcmp(ds[d].host, "hosta") != 0)
                continue;
            uint64_t size = 1 + pick(15);
            add_disk(vm, d, size);
            if (d >= 0)
                ds[d].used += size * G;
        }
    }
    for (unsigned d = 0; d < stores; d++)
        ds[d].size = XM_MAX(ds[d].size, ds[d].used);
}

static void test_as_few_moves_as_trying_everything(void **state)
{
    unsigned with_moves = 0, chains = 0, unsolved = 0, relieved = 0;

    (void)state;
    for (uint64_t s = 1; s <= 3000; s++) {
        seed = s;
        random_world(2 + (unsigned)pick(3), 2 + (unsigned)pick(3));
        make_plan();
        check_plan();
        best_solved = 0;
        nearer = false;
        best_moves = best_across = UINT32_MAX;
        for (unsigned d = 0; d < in.datastore_count; d++)
            now_used[d] = ds[d].used;
        try_all(0, 0);
        unsigned across = 0;
        for (unsigned i = 0; i < p.move_count; i++)
            across += p.moves[i].across;
        if (p.problem_count != in.datastore_count - best_solved || p.move_count != best_moves ||
            across != best_across || nearer || !p.fewest)
            fail_msg("seed %u: %u moves (%u across), %u unsolved; possible: %u (%u), %u%s", (unsigned)s,
                     p.move_count, across, p.problem_count, best_moves, best_across,
                     in.datastore_count - best_solved, nearer ? ", and nearer to a target" : "");
        with_moves += p.move_count > 0;
        chains += p.move_count > 1 && p.moves[p.move_count - 1].wave > 0;
        unsolved += p.problem_count > 0;
        for (unsigned i = 0; i < p.problem_count; i++)
            relieved += reached[p.problems[i].datastore] < ds[p.problems[i].datastore].used;
        plan_free(&p);
    }
    print_message("%u with moves, %u with several waves, %u with something unsolved, %u relieved in part\n",
                  with_moves, chains, unsolved, relieved);
    assert_true(with_moves > 200 && chains > 20 && unsolved > 100 && relieved > 20);
}

static void test_large_ones_keep_their_promises(void **state)
{
    (void)state;
    for (uint64_t s = 1; s <= 10; s++) {
        seed = s;
        random_world(10, 120);
        for (unsigned d = 0; d < in.datastore_count; d++)
            ds[d].size += pick(100) * G;
        make_plan();
        check_plan();
        plan_free(&p);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(nothing_to_do),
        T(one_move_within_the_host_first),
        T(not_where_it_is_refused),
        T(goes_to_another_host_when_it_has_to),
        T(a_full_hosts_memory_is_no_target),
        T(space_is_reserved_while_planning),
        T(at_most_so_many_at_once),
        T(makes_room_in_a_chain),
        T(one_vm_can_relieve_two),
        T(says_what_cannot_be_solved),
        T(what_cannot_be_solved_is_relieved),
        T(relief_gives_up_nothing_that_can_be_solved),
        T(bad_input_is_refused),
        T(as_few_moves_as_trying_everything),
        T(large_ones_keep_their_promises),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
