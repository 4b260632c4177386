// What tests/emulator.py counts with: called for every basic block an emulated processor enters.

#include <stdint.h>

typedef struct {
    uint64_t base, size; // of the machine code
    uint64_t previous;   // end of the block before, 0 outside the code
    int64_t *entered;    // by halfword: +1 where a block starts, -1 where it ends
    int64_t *jumped;     // by halfword: the instruction that ends there went somewhere else
    int (*read)(void *uc, int id, void *value); // uc_reg_read
    int32_t sp;                                 // number of the stack pointer
    uint32_t lowest;                            // value it had at least
} counter_t;

void count_block(void *uc, uint64_t address, uint32_t size, counter_t *c);

void count_block(void *uc, uint64_t address, uint32_t size, counter_t *c) {
    const uint64_t at = address - c->base;
    if (c->previous && c->previous != address) {
        ++c->jumped[(c->previous - c->base) >> 1];
    }
    if (at >= c->size) {
        c->previous = 0;
        return;
    }
    ++c->entered[at >> 1];
    --c->entered[(at + size) >> 1];
    c->previous = address + size;
    uint32_t sp = 0;
    c->read(uc, c->sp, &sp);
    if (sp < c->lowest) {
        c->lowest = sp;
    }
}
