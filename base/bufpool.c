#include "base/bufpool.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#define CLASS_MIN_SHIFT 12
#define CLASSES         10

/* A free buffer's first bytes hold the list. */
struct free_buf {
    struct free_buf *next;
};

struct xm_bufpool {
    pthread_mutex_t lock; /* protects all below */
    size_t max, used, idle;
    struct free_buf *head[CLASSES];
};

static unsigned class_of(size_t len)
{
    unsigned c = 0;
    while (((size_t)1 << (CLASS_MIN_SHIFT + c)) < len)
        c++;
    return c;
}

static size_t class_bytes(unsigned c)
{
    return (size_t)1 << (CLASS_MIN_SHIFT + c);
}

struct xm_bufpool *xm_bufpool_new(size_t max_bytes)
{
    struct xm_bufpool *p = calloc(1, sizeof *p);
    if (p) {
        pthread_mutex_init(&p->lock, NULL);
        p->max = max_bytes;
    }
    return p;
}

/* Gives idle buffers of other classes back to the kernel so that handed-out plus idle never passes the bound.
 */
static void shrink(struct xm_bufpool *p, size_t need)
{
    for (unsigned c = CLASSES; c-- > 0 && p->used + p->idle + need > p->max;) {
        while (p->head[c] && p->used + p->idle + need > p->max) {
            struct free_buf *b = p->head[c];
            p->head[c] = b->next;
            p->idle -= class_bytes(c);
            munmap(b, class_bytes(c));
        }
    }
}

void *xm_bufpool_get(struct xm_bufpool *p, size_t len)
{
    assert(len > 0 && len <= XM_BUF_MAX);
    unsigned c = class_of(len);
    size_t bytes = class_bytes(c);
    void *buf = NULL;

    pthread_mutex_lock(&p->lock);
    if (p->head[c]) {
        buf = p->head[c];
        p->head[c] = p->head[c]->next;
        p->idle -= bytes;
        p->used += bytes;
    } else if (p->used + bytes <= p->max) {
        shrink(p, bytes);
        buf = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (buf == MAP_FAILED)
            buf = NULL;
        else
            p->used += bytes;
    }
    pthread_mutex_unlock(&p->lock);
    return buf;
}

void xm_bufpool_put(struct xm_bufpool *p, void *buf, size_t len)
{
    if (!buf)
        return;
    unsigned c = class_of(len);
    struct free_buf *b = buf;

    pthread_mutex_lock(&p->lock);
    /* Invariant: what is handed out was counted. */
    assert(p->used >= class_bytes(c));
    p->used -= class_bytes(c);
    p->idle += class_bytes(c);
    b->next = p->head[c];
    p->head[c] = b;
    pthread_mutex_unlock(&p->lock);
}

size_t xm_bufpool_used(struct xm_bufpool *p)
{
    pthread_mutex_lock(&p->lock);
    size_t used = p->used;
    pthread_mutex_unlock(&p->lock);
    return used;
}

size_t xm_bufpool_limit(struct xm_bufpool *p)
{
    return p->max;
}

void xm_bufpool_free(struct xm_bufpool *p)
{
    if (!p)
        return;
    assert(p->used == 0);
    for (unsigned c = 0; c < CLASSES; c++) {
        for (struct free_buf *b = p->head[c], *next; b; b = next) {
            next = b->next;
            munmap(b, class_bytes(c));
        }
    }
    pthread_mutex_destroy(&p->lock);
    free(p);
}
