// Sums over one row, and sums over many rows that stay accurate: rows are added in blocks of 64, then the blocks.
#pragma once
#include <vector>

static inline float dot(const float* a, const float* b, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
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
