// RMSNorm per head times a sigmoid gate (twin: `gated_norm` in kernels/gated_norm.py).
//
//     r = (mean x^2 + eps)^-0.5,   y = w x r sigmoid(gate)
//     dn = dy w sigmoid(gate),     dx = r (dn - x r^2 mean(x dn)),   d_gate = y (1 - sigmoid(gate)) dy
//
// Shapes: x, gate, y [rows, V], one row a head of a token; w [V]. Backward starts again from x and gate.
#include <algorithm>

#include "fastmath.h"

namespace {

float root(const float* __restrict x, float eps, int V) {
    float sum = 0;
    for (int i = 0; i < V; i++) sum += x[i] * x[i];
    return 1.0f / std::sqrt(sum / V + eps);
}

void row_back(const float* __restrict x, const float* __restrict w, const float* __restrict gate,
              const float* __restrict dy, float* __restrict dx, float* __restrict dw, float* __restrict dz, float r,
              int V) {
    float along = 0;
    for (int i = 0; i < V; i++) {
        const float s = fast_sigmoid(gate[i]), n = dy[i] * s, normed = x[i] * r, dn = n * w[i];
        dw[i] += n * normed;
        dz[i] = dn * normed * (1.0f - s);
        dx[i] = dn;
        along += dn * x[i];
    }
    along *= r * r / V;
    for (int i = 0; i < V; i++) dx[i] = r * (dx[i] - x[i] * along);
}

}  // namespace

EXPORT void gated_norm_forward(const float* x, const float* weight, const float* gate, float* y, float eps, int rows,
                               int V) {
    for (size_t at = 0; at < size_t(rows) * V; at += V) {
        const float *__restrict from = x + at, *__restrict z = gate + at, *__restrict w = weight;
        float* __restrict to = y + at;
        const float r = root(from, eps, V);
        for (int i = 0; i < V; i++) to[i] = w[i] * from[i] * r * fast_sigmoid(z[i]);
    }
}

EXPORT void gated_norm_backward(const float* x, const float* weight, const float* gate, const float* dy, float* dx,
                                float* d_weight, float* d_gate, float eps, int rows, int V) {
    std::fill(d_weight, d_weight + V, 0.0f);
    for (size_t at = 0; at < size_t(rows) * V; at += V)
        row_back(x + at, weight, gate + at, dy + at, dx + at, d_weight, d_gate + at, root(x + at, eps, V), V);
}
