// RMSNorm per head times a sigmoid gate (twin: `gated_norm` in kernels/gated_norm.py).
//
//     r = (mean x^2 + eps)^-0.5,   y = w x r sigmoid(gate)
//     dn = dy w sigmoid(gate),     dx = r (dn - x r^2 mean(x dn)),   d_gate = y (1 - sigmoid(gate)) dy
//
// Shapes: x, gate, y [rows, V], one row a head of a token; w [V]. Backward starts again from x and gate.
#include <algorithm>
#include <vector>

#include "fastmath.h"

namespace {

float root(const float* __restrict x, float eps, int V) {
    float sum = 0;
    for (int i = 0; i < V; i++) sum += x[i] * x[i];
    return 1.0f / std::sqrt(sum / V + eps);
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
    for (size_t at = 0; at < size_t(rows) * V; at += V) {
        const float *__restrict from = x + at, *__restrict z = gate + at, *__restrict w = weight;
        const float* __restrict grad = dy + at;
        float *__restrict to = dx + at, *__restrict dz = d_gate + at, *__restrict dw = d_weight;
        const float r = root(from, eps, V);
        float along = 0;
        for (int i = 0; i < V; i++) {
            const float s = fast_sigmoid(z[i]), n = grad[i] * s, normed = from[i] * r;
            dw[i] += n * normed;
            dz[i] = n * w[i] * normed * (1.0f - s);
            to[i] = n * w[i];
            along += to[i] * from[i];
        }
        along *= r * r / V;
        for (int i = 0; i < V; i++) to[i] = r * (to[i] - from[i] * along);
    }
}
