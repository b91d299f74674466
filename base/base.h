/* SPDX-License-Identifier: MIT */
/* base/base.h: the words that every folder of xmigrate shares. Each header says its own units, ownership and
 * threads. */
#ifndef XM_BASE_H
#define XM_BASE_H

#include "base/error.h"
#include "base/log.h"
#include "base/clock.h"
#include "base/units.h"
#include "base/mailbox.h"
#include "base/bufpool.h"
#include "base/bitmap.h"
#include "base/rate.h"
#include "base/sched.h"
#include "base/file.h"
#include "base/fault.h"
#include "base/hex.h"
#include "base/text.h"
#include "base/wait.h"
#include "base/jsonl.h"
#include "base/ini.h"
#include "base/spawn.h"

#define XM_MIN(a, b)                       ((a) < (b) ? (a) : (b))
#define XM_MAX(a, b)                       ((a) > (b) ? (a) : (b))
#define XM_ROUND_DOWN(x, to)               ((x) / (to) * (to))
#define XM_ROUND_UP(x, to)                 (((x) + (to)-1) / (to) * (to))
#define xm_container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#include <stddef.h>

#endif
