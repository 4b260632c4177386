// Xtensa with register windows (ESP32, S2, S3): the first instruction of the module, and the
// helpers that the compiler calls. It counts on the ESP8266's instructions only; the processors
// here divide in hardware. Division by zero is an exception, as everywhere in the core: refused
// before.

    .macro function name
    .section .text.\name, "ax"
    .align 4
    .global \name
    .hidden \name
    .type \name, @function
\name:
    entry a1, 32
    .endm

    .macro end name
    retw
    .size \name, . - \name
    .endm

// Constants that code loads must lie before it, so the code cannot begin with mpy_entry itself.
    .section .start, "ax"
    .align 4
    .global mpy_start
mpy_start:
    j mpy_entry

    function __udivsi3
    quou a2, a2, a3
    end __udivsi3

    function __umodsi3
    remu a2, a2, a3
    end __umodsi3

    function __divsi3
    quos a2, a2, a3
    end __divsi3

    function __modsi3
    rems a2, a2, a3
    end __modsi3

// a3:a2 = a3:a2 * a5:a4. The cores that this can be tested on have no MULUH: 16 bits at a time.
    function __muldi3
    srli a6, a2, 16
    extui a7, a4, 16, 16
    mull a3, a3, a4
    mull a5, a2, a5
    mul16u a8, a6, a4
    mul16u a9, a2, a7
    mul16u a6, a6, a7
    mul16u a2, a2, a4
    add a3, a3, a5
    add a3, a3, a6
    extui a7, a2, 16, 16
    add a8, a8, a7
    add a8, a8, a9
    extui a2, a2, 0, 16
    movi a4, 1
    slli a4, a4, 16
    bgeu a8, a9, 1f
    add a3, a3, a4
1:
    extui a9, a8, 16, 16
    add a3, a3, a9
    slli a8, a8, 16
    or a2, a2, a8
    end __muldi3

// a3:a2 shifted by a4, 0 to 63
    function __ashrdi3
    ssr a4
    bbsi a4, 5, 1f
    src a2, a3, a2
    sra a3, a3
    retw
1:
    sra a2, a3
    srai a3, a3, 31
    end __ashrdi3

    function __lshrdi3
    ssr a4
    bbsi a4, 5, 1f
    src a2, a3, a2
    srl a3, a3
    retw
1:
    srl a2, a3
    movi a3, 0
    end __lshrdi3

    function __ashldi3
    ssl a4
    bbsi a4, 5, 1f
    src a3, a3, a2
    sll a2, a2
    retw
1:
    sll a3, a2
    movi a2, 0
    end __ashldi3
