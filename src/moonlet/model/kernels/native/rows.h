// Sums over one row, and sums over many rows that stay accurate: rows are added in blocks of 64, then the blocks.
#pragma once
#include <cmath>
#include <vector>

#include "gemm.h"

static inline float dot(const float* a, const float* b, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// The largest of n values, and of their magnitudes. (Compilers do not vectorise a maximum that must respect NaN.)
template <class Map>
static inline float largest_of(const float* x, int n, float least, Map map) {
    vec8 top = {least, least, least, least, least, least, least, least};
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        const vec8 v = map(*reinterpret_cast<const vec8*>(x + i));
        top = v > top ? v : top;
    }
    for (int j = 0; i + j < n; j++) {
        const vec8 v = map(vec8{x[i + j]});
        top[j] = v[0] > top[j] ? v[0] : top[j];
    }
    float result = top[0];
    for (int j = 1; j < 8; j++) result = top[j] > result ? top[j] : result;
    return result;
}

static inline float largest_value(const float* x, int n) {
    return largest_of(x, n, -INFINITY, [](vec8 v) { return v; });
}

static inline float largest_magnitude(const float* x, int n) {
    return largest_of(x, n, 0.0f, [](vec8 v) { return v > -v ? v : -v; });
}

// Collects a gradient [d] that is a sum over rows: add to `block`, call `row_done` after each row, `finish` at the end.
struct RowSum {
    float* total;
    std::vector<float> block;
    int rows = 0;

    RowSum(float* total, int d) : total(total), block(d, 0.0f) {
        for (int i = 0; i < d; i++) total[i] = 0;
    }
    void row_done() {
        if (++rows % 64 == 0) finish();
    }
    void finish() {
        for (size_t i = 0; i < block.size(); i++) {
            total[i] += block[i];
            block[i] = 0;
        }
    }
};
