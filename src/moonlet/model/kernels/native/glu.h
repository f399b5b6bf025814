// The gated activations on single values, shared by the dense and the routed feed-forward kernels.
//
//   SiTU:    f(g, u) = b1 tanh(g / b1) sigmoid(g) b2 tanh(u / b2);  without b2 (b2 <= 0): the last factor is u
//   SwiGLU:  f(g, u) = g sigmoid(g) u                                (b1 <= 0)
#pragma once
#include "fastmath.h"

// tanh by Cephes: a polynomial near 0, where 2 sigmoid(2x) - 1 would cancel. Relative error below 3e-7.
static inline float tanh_exact(float x) {
    const float z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const float near = p * z * x + x, far = fast_tanh(x);
    return z < 0.390625f ? near : far;
}

struct Glu {
    float beta, linear;

    // out[i] = f(gate[i], up[i])
    void forward(const float* gate, const float* up, float* out, int n) const {
        if (beta <= 0) {
            for (int i = 0; i < n; i++) out[i] = gate[i] * fast_sigmoid(gate[i]) * up[i];
        } else if (linear <= 0) {
            for (int i = 0; i < n; i++)
                out[i] = beta * tanh_exact(gate[i] * (1 / beta)) * fast_sigmoid(gate[i]) * up[i];
        } else {
            for (int i = 0; i < n; i++)
                out[i] = beta * linear * tanh_exact(gate[i] * (1 / beta)) * fast_sigmoid(gate[i]) *
                         tanh_exact(up[i] * (1 / linear));
        }
    }

    // d_gate[i], d_up[i] from d_out[i]; d_gate may be gate and d_up may be up.
    void backward(const float* gate, const float* up, const float* d_out, float* d_gate, float* d_up, int n) const {
        if (beta <= 0) {
            for (int i = 0; i < n; i++) {
                const float g = gate[i], s = fast_sigmoid(g), d = d_out[i];
                d_gate[i] = d * up[i] * s * (1 + g * (1 - s));
                d_up[i] = d * g * s;
            }
        } else {
            const float b2 = linear <= 0 ? 1.0f : linear, slope = linear <= 0 ? 0.0f : 1.0f;
            for (int i = 0; i < n; i++) {
                const float g = gate[i], u = up[i], d = d_out[i];
                const float t = tanh_exact(g * (1 / beta)), s = fast_sigmoid(g);
                const float capped = tanh_exact(u * (1 / b2));
                const float v = slope > 0 ? capped : u;
                d_gate[i] = d * b2 * v * s * ((1 - t) * (1 + t) + beta * t * (1 - s));
                d_up[i] = d * beta * t * s * (1 - slope * v * v);
            }
        }
    }
};
