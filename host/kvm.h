/* host/kvm.h: what KVM can run here. */
#ifndef XM_HOST_KVM_H
#define XM_HOST_KVM_H

#include "base/base.h"

enum kvm_level {
    KVM_NONE,  /* no usable /dev/kvm */
    KVM_PART,  /* it runs guests, but not what an ordinary one consists of: 64-bit code, the FPU, SSE */
    KVM_WHOLE, /* it runs that */
};

/* Tried by a guest of some instructions in a process of its own, some ms. Below KVM_WHOLE, `why` says what
 * went wrong. Any thread. */
enum kvm_level kvm_probe(struct xm_error *why);

#endif
