/* SPDX-License-Identifier: MIT */
/* tests/guest/kvm/kvmguest.h: what the parts of the KVM guest share. kvmguest.c tells what it is. */
#ifndef XM_TESTS_GUEST_KVM_KVMGUEST_H
#define XM_TESTS_GUEST_KVM_KVMGUEST_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE      4096u
#define SECTOR    512u
#define DISKS_MAX 2u

/* The rates, from the command line. */
struct options {
    uint32_t beat;  /* µs between two beats */
    uint32_t ram;   /* pages a second that are checked and written anew */
    uint32_t words; /* of each page: a divisor of 1024 */
    uint32_t disk;  /* requests a second to each disk */
    uint32_t span;  /* KiB of each disk that are used */
    uint32_t tell;  /* ms between two lines that say how far it is */
    uint32_t seed;  /* disks that a guest of another seed has written are strange */
};

/* ---- memory.c: all RAM behind the image ---- */

/* bytes at a page boundary, taken from the RAM that would be tested otherwise. */
void *memory_take(uint32_t bytes);
/* From the loader's memory map; before the first memory_take. */
void memory_find(const uint32_t *multiboot);
void memory_begin(const struct options *);
void memory_step(void); /* the next page */
uint32_t memory_pages(void);
uint32_t memory_rounds(void);  /* times that all pages were checked */
uint32_t memory_checked(void); /* pages so far */

/* `words` words spread over `bytes`; the last of them is the last there is. */
void pattern_write(uint32_t *at, uint32_t bytes, uint32_t words, uint32_t value);
/* Reports the first wrong one by that letter; false: there was one. */
bool pattern_check(const uint32_t *at, uint32_t bytes, uint32_t words, uint32_t value, char letter,
                   uint32_t where);

/* ---- disk.c: virtio-blk ---- */

void disk_begin(const struct options *); /* finds the disks */
uint32_t disk_count(void);
void disk_poll(void); /* takes what has been completed */
void disk_step(void); /* the next request to each disk that has been filled */
void disk_fill(void); /* the same to each disk that is still being read for the first time, or filled */
void disk_tell(void); /* a line: the number of each part's last acknowledged write */
uint32_t disk_sectors(uint32_t disk);
uint32_t disk_rounds(void);  /* times that all sectors of all disks were compared */
uint32_t disk_checked(void); /* sectors so far */

/* ---- serial.c ---- */

void serial_char(char c);
void serial_text(const char *s);
void serial_number(uint32_t v);
/* An error: the letter, where, what is there and what should be (hexadecimal). Counts them, and says the
 * first few. */
void serial_error(char letter, uint32_t where, uint32_t have, uint32_t want);
uint32_t serial_errors(void);

/* ---- start.S ---- */

extern char image_end[];
void guest_main(const uint32_t *multiboot);
void interrupts_begin(uint32_t beat_us);
void wait_for_tick(void);
void fault(void);

static inline void out8(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}
static inline uint8_t in8(uint16_t port)
{
    uint8_t v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline void out32(uint16_t port, uint32_t v)
{
    __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}
static inline uint32_t in32(uint16_t port)
{
    uint32_t v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

#endif
