#include "blkcopy/engine.h"
#include "base/base.h"
struct xm_engine *aio_open(unsigned depth, struct xm_error *e)
{
    (void)depth;
    xm_error_set(e, ENOSYS, "libaio");
    return NULL;
}
