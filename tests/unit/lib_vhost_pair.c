/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_vhost_pair.h"

#include <string.h>
#include <unistd.h>

struct vdisk vd;
struct vf vf;
static bool vd_up;

void pair_fill(uint8_t *p, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = (uint8_t)(seed >> 24);
    }
}

void pair_connect(unsigned queues, uint16_t size, uint64_t without)
{
    const char *why = vd_open(&vd, "disk", queues);
    if (why)
        fail_msg("%s", why);
    vd_up = true;
    assert_int_equal(vf_init(&vf, queues, size), 0);
    assert_int_equal(vf_connect(&vf, vd.path, without), 0);
}

void pair_begin(unsigned queues, uint16_t size, uint64_t without)
{
    pair_connect(queues, size, without);
    assert_int_equal(vf_start(&vf), 0);
}

int pair_end(void **state)
{
    if (vd_up) {
        vf_free(&vf);
        vd_close(&vd);
    }
    vd_up = false;
    vd_kind = XM_ENGINE_AUTO;
    return lib_disk_clean(state);
}

void pair_wait_held(unsigned n)
{
    while (vd_held(&vd) != n)
        usleep(100);
    vd_held(&vd);
}

void pair_check_basic(struct vf *f)
{
    uint8_t *a = f->mem + VF_DATA, *b = a + (1 << 20);

    for (unsigned q = 0; q < f->queues; q++) {
        pair_fill(a, 65536, q + 1);
        memset(b, 0, 65536);
        assert_int_equal(vf_do(f, q, T_OUT, 8 + q * 128, VF_DATA, 65536), OK);
        assert_int_equal(vf_do(f, q, T_IN, 8 + q * 128, VF_DATA + (1 << 20), 65536), OK);
        assert_memory_equal(a, b, 65536);
        assert_int_equal(vf_do(f, q, VIRTIO_BLK_T_FLUSH, 0, 0, 0), OK);
    }
    struct virtio_blk_discard_write_zeroes z = {.sector = 8, .num_sectors = 64};
    memcpy(a, &z, sizeof z);
    assert_int_equal(vf_do(f, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, VF_DATA, sizeof z), OK);
    assert_int_equal(vf_do(f, 0, T_IN, 8, VF_DATA + (1 << 20), 65536), OK);
    memset(a, 0, 32768);
    assert_memory_equal(a, b, 32768);
    pair_fill(a, 65536, 1);
    assert_memory_equal(a + 32768, b + 32768, 32768);
    /* Out of range, and a type that nobody knows. */
    assert_int_equal(vf_do(f, 0, T_IN, VD_SIZE / 512, VF_DATA, 512), IOERR);
    assert_int_equal(vf_do(f, 0, T_IN, UINT64_MAX / 512 - 1, VF_DATA, 4096), IOERR);
    assert_int_equal(vf_do(f, 0, T_OUT, VD_SIZE / 512 - 1, VF_DATA, 1024), IOERR);
    assert_int_equal(vf_do(f, 0, 99, 0, VF_DATA, 512), UNSUPP);
}

/* ---- a hostile guest ---- */

static struct vf good; /* a guest of another device on the same engine */
static struct xm_vhost *second;

int hostile_begin(void **state)
{
    (void)state;
    const char *why = vd_open(&vd, "disk", 2);
    if (why)
        fail_msg("%s", why);
    const char *path = vd.path;
    second = vd_second(&vd, "good");
    assert_non_null(second);
    assert_int_equal(vf_init(&good, 1, HOSTILE_RING), 0);
    assert_int_equal(vf_connect(&good, vd.path, 0), 0);
    assert_int_equal(vf_start(&good), 0);
    vd.path = path;
    assert_int_equal(vf_init(&vf, 2, HOSTILE_RING), 0);
    return 0;
}

int hostile_end(void **state)
{
    vf_free(&vf);
    vf_free(&good);
    xm_vhost_free(second);
    vd_close(&vd);
    return lib_disk_clean(state);
}

void hostile_check_good(void)
{
    assert_int_equal(vf_do(&good, 0, T_OUT, 0, VF_DATA, 4096), VIRTIO_BLK_S_OK);
    assert_int_equal(xm_vhost_broken(second), 0);
}

void hostile_reset(void)
{
    assert_int_equal(vf_stop(&vf), 0);
    for (unsigned i = 0; i < vf.queues; i++) {
        struct vf_queue *q = &vf.q[i];
        memset(vf.mem + q->area, 0, VF_Q_AREA);
        q->avail_idx = q->last_used = q->kicked = q->free_head = 0;
        q->free_count = HOSTILE_RING;
        q->pending = 0;
        memset(q->length, 0, sizeof q->length);
        for (uint16_t k = 0; k < HOSTILE_RING; k++)
            q->desc[k].next = (uint16_t)(k + 1);
    }
    /* A new in-flight region, too, as QEMU has it. */
    if (vf.inflight_fd >= 0)
        close(vf.inflight_fd);
    vf.inflight_fd = -1;
    assert_int_equal(vf_start(&vf), 0);
}
