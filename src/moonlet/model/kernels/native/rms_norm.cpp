// RMSNorm over rows: y = w x r, r = (mean x^2 + eps)^-0.5; x, y [rows, d], w [d]. The backward pass recomputes r:
//   d_x = r (w d_y) - x r^3 mean(w d_y x),   d_w = sum over rows of d_y x r
#include "fastmath.h"
#include "rows.h"

EXPORT void rms_norm_forward(const float* x, const float* w, float* y, int rows, int d, float eps) {
    for (int i = 0; i < rows; i++, x += d, y += d) {
        const float r = 1.0f / std::sqrt(dot(x, x, d) / d + eps);
        for (int j = 0; j < d; j++) y[j] = w[j] * (x[j] * r);
    }
}

EXPORT void rms_norm_backward(
    const float* x, const float* w, const float* d_y, float* d_x, float* d_w, int rows, int d, float eps) {
    RowSum sum(d_w, d);
    float* block = sum.block.data();
    for (int i = 0; i < rows; i++, x += d, d_y += d, d_x += d) {
        float square = 0, inner = 0;
        for (int j = 0; j < d; j++) {
            square += x[j] * x[j];
            inner += w[j] * d_y[j] * x[j];
        }
        const float r = 1.0f / std::sqrt(square / d + eps), back = inner * r * r / d;
        for (int j = 0; j < d; j++) {
            block[j] += d_y[j] * x[j] * r;
            d_x[j] = r * (w[j] * d_y[j] - back * x[j]);
        }
        sum.row_done();
    }
    sum.finish();
}
