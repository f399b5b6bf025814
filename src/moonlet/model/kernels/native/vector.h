// Eight floats as one value: GCC and Clang map it to whatever vectors the processor has (one AVX register, two NEON).
#pragma once
#include <vector>

typedef float vec __attribute__((vector_size(32)));
constexpr int LANES = 8;

// A vector of lanes of a (0 to 7) and b (8 to 15).
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int lanes __attribute__((vector_size(32)));
#define PICK(a, b, ...) __builtin_shuffle(a, b, lanes{__VA_ARGS__})
#endif

static inline float sum(vec a) { return ((a[0] + a[4]) + (a[1] + a[5])) + ((a[2] + a[6]) + (a[3] + a[7])); }

// The sums of eight vectors, as one vector.
static inline vec sums(const vec* r) {
#define LOW(a, b) PICK(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b) PICK(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
    const vec a = LOW(r[0], r[1]) + HIGH(r[0], r[1]), b = LOW(r[2], r[3]) + HIGH(r[2], r[3]);
    const vec c = LOW(r[4], r[5]) + HIGH(r[4], r[5]), d = LOW(r[6], r[7]) + HIGH(r[6], r[7]);
#undef LOW
#undef HIGH
#define FOUR(a, b) (PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15))
    const vec e = FOUR(a, b), f = FOUR(c, d);
#undef FOUR
    return PICK(e, f, 0, 1, 2, 3, 8, 9, 10, 11) + PICK(e, f, 4, 5, 6, 7, 12, 13, 14, 15);
}
