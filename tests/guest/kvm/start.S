/* SPDX-License-Identifier: MIT */
/* tests/guest/kvm/start.S: the multiboot header, the first instructions, and the two ways in from outside:
 * the timer and a fault.
 *
 * The loader (QEMU's -kernel) has switched to protected mode without paging. KVM that emulates each
 * instruction does not know `iret` there. So interrupts are let in at one place only, where the processor
 * waits for one, and the handler drops the frame that it was given. */
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002                /* magic */
    .long 2                         /* wants the memory map */
    .long -(0x1badb002 + 2)         /* checksum */

    .text
    .globl _start, wait_for_tick, load_tables, timer, fault_entry
_start:
    mov $stack_top, %esp
    push %ebx                       /* the multiboot information */
    call guest_main

/* void wait_for_tick(void): until the timer's next interrupt. */
wait_for_tick:
    sti                             /* takes effect behind the next instruction: no tick is missed */
    hlt
    cli
    ret
timer:
    add $12, %esp                   /* the frame: back to the caller of wait_for_tick */
    mov $0x20, %al
    out %al, $0x20
    ret                             /* the gate has cleared the interrupt flag */

fault_entry:
    call fault

/* void load_tables(const void *gdt, const void *idt) */
load_tables:
    mov 4(%esp), %eax
    lgdt (%eax)
    mov 8(%esp), %eax
    lidt (%eax)
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    ljmp $8, $1f
1:  ret

    .bss
    .align 16
    .skip 8192
stack_top:
    .section .note.GNU-stack, "", @progbits
