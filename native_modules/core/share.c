// Two cores share a layer. What they share is rows of the output: the main core posts a block of
// channels, does the first half and never waits for a core that has not begun the other one. The
// helper leaves between blocks only.

#include "layer.h"

#define FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)

// Sleep until the other core calls, or for a moment.
#if defined(__arm__)
#define WAIT() __asm__ volatile("wfe")
#define CALL() __asm__ volatile("sev")
#elif defined(__x86_64__)
#define WAIT() __asm__ volatile("pause")
#define CALL()
#else
#define WAIT()
#define CALL()
#endif

share_t *sp_share(void *buffer, layer_t *l) {
    share_t *s = buffer;
    const tensor_t *out = l->backward ? &l->as.backward.dx : &l->as.forward.y;
    const int32_t rows = out->h;
    int32_t first = (rows + 1) >> 1;
    if (!s || !s->present) {
        return NULL;
    }
    // No byte of a mask has bits of both halves.
    while (!l->backward && l->as.forward.out.mask && at(out, first, 0) & 7) {
        --first;
    }
    if (first == 0 || first == rows) {
        return NULL;
    }
    s->second = *l;
    if (l->backward) {
        sp_conv_grad_rows(&l->as.backward, 0, first);
        sp_conv_grad_rows(&s->second.as.backward, first, rows - first);
    } else {
        sp_conv_rows(&l->as.forward, 0, first);
        sp_conv_rows(&s->second.as.forward, first, rows - first);
    }
    return s;
}

uint32_t sp_share_block(share_t *s, const layer_t *l, const block_t *block) {
    const uint32_t number = s->posted + 1;
    s->block = *block;
    FENCE();
    s->posted = number;
    CALL();
    const uint32_t seen = sp_layer_block(l, block);
    s->posted = number + 1;
    FENCE();
    while (s->taken == number && s->done != number) {
        WAIT();
    }
    FENCE();
    if (s->done != number) {
        s->seen = sp_layer_block(&s->second, block);
    }
    return seen | s->seen;
}

void sprout_assist(void *buffer) {
    share_t *s = buffer;
    uint32_t last = s->posted;
    for (s->present = 1; !s->leave;) {
        const uint32_t number = s->posted;
        if (number == last || (number & 1) == 0) {
            WAIT();
            continue;
        }
        last = number;
        s->taken = number;
        FENCE();
        if (s->posted == number) {
            s->seen = sp_layer_block(&s->second, &s->block);
            ++s->blocks;
            FENCE();
            s->done = number;
        } else {
            s->taken = 0;
        }
        CALL();
    }
    s->present = 0;
}

void sprout_dismiss(void *buffer) {
    ((share_t *)buffer)->leave = 1;
    FENCE();
    CALL();
}
