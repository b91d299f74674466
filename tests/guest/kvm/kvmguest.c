/* SPDX-License-Identifier: MIT */
/* tests/guest/kvm: a guest without an operating system, for KVM: build/guest/kvmguest, which QEMU boots by
 * -kernel.
 *
 * It needs little enough of a processor (integer code in protected mode, no paging, one interrupt, no
 * `iret`) to run on a KVM that emulates each instruction, about 10^6 a second; a Linux guest does not boot
 * there. It runs under TCG, too. It
 * - writes and checks all of its RAM behind its own image, a set number of pages a second (memory.c);
 * - writes, reads and compares sectors of up to two virtio-blk disks (disk.c), whatever they held before:
 *   it fills them first;
 * - sleeps otherwise, and writes a beat `.` to the serial port at every tick of the PIT: each byte that
 *   comes is a sign of life.
 *
 * Every quarter of a second it tells how far it is, in a line of its own between the beats:
 *
 *     up 8000 ram 3 pages 16384 disk 2 sectors 4096 errors 0
 *
 * ticks since it began, rounds through all RAM and pages checked, rounds through all sectors of all disks
 * and sectors compared, errors. An error is told at once by a capital letter, which nothing else contains:
 * M memory, B contents of a disk, E an error that a disk reported, F a fault of the processor (its last
 * word). Errors stay counted: an M that was said where nobody listened any more is still seen in the next
 * line.
 *
 * What was written to the disks, so that it can be judged when a guest starts from them later (disk.c):
 * beside the beats a letter a to h for each write that is acknowledged, of a disk's four parts (a to d are
 * the first disk's); and in lines of their own
 *
 *     told 130 129 129 130 97 97 97 96               the number of each part's last acknowledged write
 * synced 0 120 119 119 119                       a flush of disk 0 is done: each part's writes up to these
 * kept 3 newest 131 complete 130                 at the start, of part 3, when there was something of its own
 *
 * Parameters (-append), with their defaults: beat=1000 (µs between ticks, at most 50000), ram=3000 (pages
 * a second), words=4 (of a page that are written and checked), disk=200 (requests a second to each disk;
 * 0: they are let alone), span=2048 (KiB of each disk), tell=250 (ms between two lines), seed=0 (disks that
 * another seed wrote are strange). What does not fit into a tick makes the beat uneven. */
#include "tests/guest/kvm/kvmguest.h"

static struct options options = {
    .beat = 1000, .ram = 3000, .words = 4, .disk = 200, .span = 2048, .tell = 250};

/* Key of the form " beat=": the first word is the image's path. */
static void read_option(const char *line, const char *key, uint32_t least, uint32_t most, uint32_t *out)
{
    for (; *line; line++) {
        const char *a = line, *b = key;
        uint32_t v = 0;
        while (*b && *a == *b)
            a++, b++;
        if (*b)
            continue;
        while (*a >= '0' && *a <= '9')
            v = v * 10 + (uint32_t)(*a++ - '0');
        *out = v < least ? least : v > most ? most : v;
    }
}

static void read_options(const char *line)
{
    read_option(line, " beat=", 100, 50000, &options.beat);
    read_option(line, " ram=", 0, 1000000, &options.ram);
    read_option(line, " words=", 1, 1024, &options.words);
    read_option(line, " disk=", 0, 100000, &options.disk);
    read_option(line, " span=", 64, 65536, &options.span);
    read_option(line, " tell=", 10, 10000, &options.tell);
    read_option(line, " seed=", 0, ~0u, &options.seed);
    while (options.words & (options.words - 1))
        options.words &= options.words - 1; /* to a power of two */
}

void fault(void)
{
    serial_error('F', 0, 0, 0);
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* How many are due in this tick of `rate` a second; what does not make a whole one is kept for the next
 * tick. */
static uint32_t due(uint32_t *kept, uint32_t rate)
{
    uint32_t n = 0;

    /* In ten-thousandths: within the bounds of both it fits into 32 bits. */
    *kept += rate * (options.beat / 100);
    while (*kept >= 10000) {
        *kept -= 10000;
        n++;
    }
    return n;
}

static void tell(uint32_t ticks)
{
    serial_text("\nup ");
    serial_number(ticks);
    serial_text(" ram ");
    serial_number(memory_rounds());
    serial_text(" pages ");
    serial_number(memory_checked());
    serial_text(" disk ");
    serial_number(disk_rounds());
    serial_text(" sectors ");
    serial_number(disk_checked());
    serial_text(" errors ");
    serial_number(serial_errors());
    serial_char('\n');
    if (options.disk)
        disk_tell();
}

static void introduce(void)
{
    serial_text("\nkvmguest with ");
    serial_number(memory_pages());
    serial_text(" pages, disks of");
    for (uint32_t i = 0; i < disk_count(); i++) {
        serial_char(' ');
        serial_number(disk_sectors(i));
    }
    serial_text(" sectors\n");
}

void guest_main(const uint32_t *multiboot)
{
    uint32_t kept_ram = 0, kept_disk = 0, kept_tell = 0;

    /* The loader's words lie behind the image: they are read before that memory is used. */
    if (multiboot[0] & 1u << 2)
        read_options((const char *)multiboot[4]);
    memory_find(multiboot);
    disk_begin(&options);
    memory_begin(&options);
    introduce();
    interrupts_begin(options.beat);
    for (uint32_t tick = 1;; tick++) {
        wait_for_tick();
        serial_char('.');
        for (uint32_t n = due(&kept_ram, options.ram); n; n--)
            memory_step();
        disk_poll();
        if (options.disk)
            disk_fill();
        for (uint32_t n = due(&kept_disk, options.disk); n; n--)
            disk_step();
        kept_tell += options.beat;
        if (kept_tell >= options.tell * 1000) {
            kept_tell = 0;
            tell(tick);
        }
    }
}
