/* SPDX-License-Identifier: MIT */
#include "vm/format.h"

#include <stdbool.h>
#include <string.h>

struct magic {
    const char *is;
    size_t at, len;
    const char *bytes;
};
#define MAGIC(is_, at_, bytes_)                                                                              \
    {                                                                                                        \
        .is = (is_), .at = (at_), .len = sizeof(bytes_) - 1, .bytes = (bytes_)                               \
    }
/* QEMU's block/NAME.c has each of them. */
static const struct magic heads[] = {
    MAGIC("a qcow2 image", 0, "QFI\xfb"),
    MAGIC("a qed image", 0, "QED\0"),
    MAGIC("a vmdk image", 0, "KDMV"),
    MAGIC("a vmdk image", 0, "COWD"),
    MAGIC("a vmdk image's description", 0, "# Disk DescriptorFile"),
    MAGIC("a vdi image", 64, "\x7f\x10\xda\xbe"),
    MAGIC("a vhdx image", 0, "vhdxfile"),
    MAGIC("a vhd image", 0, "conectix"),
    MAGIC("encrypted with LUKS", 0, "LUKS\xba\xbe"),
    MAGIC("a parallels image", 0, "WithoutFreeSpace"),
    MAGIC("a parallels image", 0, "WithouFreSpacExt"),
    MAGIC("a bochs image", 0, "Bochs Virtual HD Image"),
};
static const struct magic tails[] = {MAGIC("a vhd image", 0, "conectix"), MAGIC("a dmg image", 0, "koly")};

static bool has(const struct magic *m, const void *data, size_t len)
{
    return m->at + m->len <= len && !memcmp((const char *)data + m->at, m->bytes, m->len);
}

const char *vm_foreign_format(const void *head, size_t len, const void *tail)
{
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        if (has(&heads[i], head, len))
            return heads[i].is;
    }
    for (size_t i = 0; tail && i < sizeof tails / sizeof *tails; i++) {
        if (has(&tails[i], tail, 512))
            return tails[i].is;
    }
    return NULL;
}

unsigned vm_written_block(const void *head, size_t len)
{
    static const struct magic gpt = MAGIC("a GPT", 4096, "EFI PART");
    const char *bytes = head;
    size_t zeros = 0;

    while (zeros < len && !bytes[zeros])
        zeros++;
    if (zeros == len)
        return 0;
    return has(&gpt, head, len) ? 4096 : 512;
}
