// The functions a C compiler may call although nobody wrote the call: copying a struct, clearing
// an array. build.py links only those that are used.

#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
int memcmp(const void *a, const void *b, size_t n);

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    uint8_t *d = to;
    const uint8_t *s = from;
    while (n--) {
        *d++ = *s++;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t n) {
    uint8_t *d = to;
    const uint8_t *s = from;
    if (d <= s) {
        return memcpy(to, from, n);
    }
    while (n--) {
        d[n] = s[n];
    }
    return to;
}

void *memset(void *to, int value, size_t n) {
    uint8_t *d = to;
    while (n--) {
        *d++ = (uint8_t)value;
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t n) {
    const uint8_t *x = a;
    const uint8_t *y = b;
    for (; n; --n, ++x, ++y) {
        if (*x != *y) {
            return *x < *y ? -1 : 1;
        }
    }
    return 0;
}

#if defined(__arm__)
// The Arm ABI's own names; its memset has the last two arguments the other way round.
void __aeabi_memcpy(void *to, const void *from, size_t n) { memcpy(to, from, n); }

void __aeabi_memmove(void *to, const void *from, size_t n) { memmove(to, from, n); }

void __aeabi_memset(void *to, size_t n, int value) { memset(to, value, n); }

void __aeabi_memclr(void *to, size_t n) { memset(to, 0, n); }

// Aligned, and so whole words but for the end of an array of bytes.
void __aeabi_memcpy4(void *to, const void *from, size_t n) {
    uint32_t *d = to;
    const uint32_t *s = from;
    for (; n >= 4; n -= 4) {
        *d++ = *s++;
    }
    memcpy(d, s, n);
}

void __aeabi_memcpy8(void *to, const void *from, size_t n)
    __attribute__((alias("__aeabi_memcpy4")));
void __aeabi_memmove4(void *to, const void *from, size_t n)
    __attribute__((alias("__aeabi_memmove")));
void __aeabi_memmove8(void *to, const void *from, size_t n)
    __attribute__((alias("__aeabi_memmove")));
void __aeabi_memset4(void *to, size_t n, int value) __attribute__((alias("__aeabi_memset")));
void __aeabi_memset8(void *to, size_t n, int value) __attribute__((alias("__aeabi_memset")));
void __aeabi_memclr4(void *to, size_t n) {
    uint32_t *d = to;
    for (; n >= 4; n -= 4) {
        *d++ = 0;
    }
    memset(d, 0, n);
}

void __aeabi_memclr8(void *to, size_t n) __attribute__((alias("__aeabi_memclr4")));
#endif
