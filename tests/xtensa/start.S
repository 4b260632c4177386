// From reset to main on a bare dc233c: register windows, a stack, and calls of the emulator.

// The processor jumps to these when it runs out of registers (overflow: a caller's go to the
// stack) and when a caller's have to come back (underflow). Frames of 4, 8 and 12 registers.
    .section .vectors, "ax"
    .org 0x000
    s32e a0, a5, -16
    s32e a1, a5, -12
    s32e a2, a5, -8
    s32e a3, a5, -4
    rfwo
    .org 0x040
    l32e a0, a5, -16
    l32e a1, a5, -12
    l32e a2, a5, -8
    l32e a3, a5, -4
    rfwu
    .org 0x080
    s32e a0, a9, -16
    l32e a0, a1, -12
    s32e a1, a9, -12
    s32e a2, a9, -8
    s32e a3, a9, -4
    s32e a4, a0, -32
    s32e a5, a0, -28
    s32e a6, a0, -24
    s32e a7, a0, -20
    rfwo
    .org 0x0c0
    l32e a0, a9, -16
    l32e a1, a9, -12
    l32e a2, a9, -8
    l32e a7, a1, -12
    l32e a3, a9, -4
    l32e a4, a7, -32
    l32e a5, a7, -28
    l32e a6, a7, -24
    l32e a7, a7, -20
    rfwu
    .org 0x100
    s32e a0, a13, -16
    l32e a0, a1, -12
    s32e a1, a13, -12
    s32e a2, a13, -8
    s32e a3, a13, -4
    s32e a4, a0, -48
    s32e a5, a0, -44
    s32e a6, a0, -40
    s32e a7, a0, -36
    s32e a8, a0, -32
    s32e a9, a0, -28
    s32e a10, a0, -24
    s32e a11, a0, -20
    rfwo
    .org 0x140
    l32e a0, a13, -16
    l32e a1, a13, -12
    l32e a2, a13, -8
    l32e a11, a1, -12
    l32e a3, a13, -4
    l32e a4, a11, -48
    l32e a5, a11, -44
    l32e a6, a11, -40
    l32e a7, a11, -36
    l32e a8, a11, -32
    l32e a9, a11, -28
    l32e a10, a11, -24
    l32e a11, a11, -20
    rfwu

// Every other exception ends the program: main's caller hears of the cause and the address.
    .macro stop_at offset
    .org \offset
    j fault
    .endm
    .org 0x300
    .type exception, @function
exception:
    wsr a0, excsave1
    rsr a0, exccause
    bnez a0, 1f
    j illegal
1:
    rsr a0, excsave1
    j fault
    stop_at 0x340
    stop_at 0x3c0

// An instruction that this core does not have. The module has one that the ESP32, S2 and S3 do have,
// "mulsh a13, a12, a10": its product is put together from 16-bit pieces here, and it is counted.
    .text
    .align 4
    .type illegal, @function
illegal:
    movi a0, saved
    s32i a2, a0, 0
    s32i a3, a0, 4
    s32i a4, a0, 8
    s32i a5, a0, 12
    l32i a2, a0, 16
    addi a2, a2, 1
    s32i a2, a0, 16
    rsr a2, epc1
    addi a3, a2, 3
    l8ui a4, a2, 0
    l8ui a5, a2, 1
    l8ui a2, a2, 2
    slli a5, a5, 8
    slli a2, a2, 16
    or a4, a4, a5
    or a2, a2, a4
    movi a4, 0xb2dca0
    bne a2, a4, other
    wsr a3, epc1
    extui a2, a12, 0, 16 // al
    extui a3, a10, 0, 16 // bl
    srai a4, a12, 16     // ah
    mul16u a5, a2, a3
    extui a5, a5, 16, 16
    mull a3, a4, a3
    add a3, a3, a5 // t = ah * bl + (al * bl >> 16)
    srai a5, a10, 16
    mull a2, a2, a5
    mul16s a4, a4, a5
    extui a5, a3, 0, 16
    add a2, a2, a5 // u = al * bh + (t & 0xffff)
    srai a2, a2, 16
    srai a3, a3, 16
    add a4, a4, a3
    add a13, a4, a2
    l32i a2, a0, 0
    l32i a3, a0, 4
    l32i a4, a0, 8
    l32i a5, a0, 12
    rsr a0, excsave1
    rfe
    .type other, @function
other:
    l32i a2, a0, 0
    l32i a3, a0, 4
    l32i a4, a0, 8
    l32i a5, a0, 12
    j fault

fault:
    movi a2, 0x4000f
    wsr a2, ps
    rsync
    rsr a10, exccause
    rsr a11, epc1
    rsr a12, excvaddr
    movi a1, fault_stack
    call8 on_fault

// The processor starts here, out of reach of everything else.
    .section .reset, "ax"
    .global reset
reset:
    movi a0, 1
    slli a0, a0, 16
    jx a0

    .section .start, "ax" // at 0x10000
    movi a0, 0
    wsr a0, windowbase
    rsync
    movi a0, 1
    wsr a0, windowstart
    rsync
    movi a0, vectors
    wsr a0, vecbase
    movi a0, 0x4000f // windows on, interrupts off
    wsr a0, ps
    rsync
    movi a0, 0
    movi a1, stack_top
    call8 main

    .text
// int emulator(int call, ...): QEMU's semihosting
    .align 4
    .global emulator
    .type emulator, @function
emulator:
    entry a1, 32
    simcall
    retw

// uint32_t stack_pointer(void): the caller's
    .align 4
    .global stack_pointer
    .type stack_pointer, @function
stack_pointer:
    entry a1, 32
    addi a2, a1, 32
    retw

// uint32_t clock(void)
    .align 4
    .global clock
    .type clock, @function
clock:
    entry a1, 32
    rsr a2, ccount
    retw

// void unmap(void): no memory any more for the second 512 MB, and no table to find some in
    .align 4
    .global unmap
    .type unmap, @function
unmap:
    entry a1, 32
    movi a2, 0xe0000000
    wsr a2, ptevaddr
    movi a2, 0x20000006 // what maps them: way 6
    iitlb a2
    idtlb a2
    dsync
    isync
    retw

// void translate(uint32_t entry, uint32_t at): for data; `at` includes the way
    .align 4
    .global translate
    .type translate, @function
translate:
    entry a1, 32
    wdtlb a2, a3
    dsync
    retw

    .data
    .align 4
    .global saved
saved: // a2 to a5, and how many instructions were illegal
    .space 20
