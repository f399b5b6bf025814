// The gated activations on single values, shared by the dense and the routed feed-forward kernels.
//
//   SiTU:    f(g, u) = b1 tanh(g / b1) sigmoid(g) b2 tanh(u / b2);  without b2 (b2 <= 0): the last factor is u
//   SwiGLU:  f(g, u) = g sigmoid(g) u                                (b1 <= 0)
#pragma once
#include "fastmath.h"
#include "rows.h"

// tanh of |x| < 0.625 by the polynomial of Cephes; exp would cancel near 0. Relative error below 3e-7.
static inline float tanh_near(float x) {
    const float z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    return p * z * x + x;
}

static inline float within(float x, float bound) {
    x = x < -bound ? -bound : x;
    return x > bound ? bound : x;
}

static inline float tanh_any(float x) {
    return x * x < 0.390625f ? tanh_near(x) : fast_tanh(x);
}

// t = tanh(g / beta) and s = sigmoid(g) with one division, and with one exponential where beta = 4 (FOUR), as in K3:
// exp(-g) is the square of exp(-2 g / 4). Exponents are held within +-40, so that products stay finite.
template <bool FOUR>
static inline void tanh_and_sigmoid(float g, float inverse_beta, float& t, float& s) {
    const float x = g * inverse_beta;
    const float e = fast_exp(within(-2 * x, FOUR ? 20 : 40)), f = FOUR ? e * e : fast_exp(within(-g, 40));
    const float d = 1 / ((1 + e) * (1 + f));
    const float far = (1 - e) * (1 + f) * d;
    s = (1 + e) * d;
    t = x * x < 0.390625f ? tanh_near(x) : far;
}

struct Glu {
    float beta, linear;

    // out[i] = f(gate[i], up[i])
    void forward(const float* gate, const float* up, float* out, int n) const {
        if (beta <= 0)
            for (int i = 0; i < n; i++) out[i] = gate[i] * fast_sigmoid(gate[i]) * up[i];
        else if (linear <= 0)
            situ(gate, up, out, n, beta, [](float u) { return u; });
        else if (const float inverse = 1 / linear; largest_magnitude(up, n) * inverse < 0.625f)  // nearly every row
            situ(gate, up, out, n, beta * linear, [=](float u) { return tanh_near(u * inverse); });
        else
            situ(gate, up, out, n, beta * linear, [=](float u) { return tanh_any(u * inverse); });
    }

    // d_gate[i], d_up[i] from d_out[i].
    void backward(const float* gate, const float* up, const float* d_out, float* d_gate, float* d_up, int n) const {
        if (beta <= 0) {
            for (int i = 0; i < n; i++) {
                const float g = gate[i], s = fast_sigmoid(g), d = d_out[i];
                d_gate[i] = d * up[i] * s * (1 + g * (1 - s));
                d_up[i] = d * g * s;
            }
        } else if (linear <= 0)
            situ_backward(gate, up, d_out, d_gate, d_up, n, 1, 0, [](float u) { return u; });
        else if (const float inverse = 1 / linear; largest_magnitude(up, n) * inverse < 0.625f)
            situ_backward(
                gate, up, d_out, d_gate, d_up, n, linear, 1, [=](float u) { return tanh_near(u * inverse); });
        else
            situ_backward(gate, up, d_out, d_gate, d_up, n, linear, 1, [=](float u) { return tanh_any(u * inverse); });
    }

  private:
    // factor tanh(gate / beta) sigmoid(gate) cap(up)
    template <class Cap>
    void situ(const float* gate, const float* up, float* out, int n, float factor, Cap cap) const {
        beta == 4 ? situ<true>(gate, up, out, n, factor, cap) : situ<false>(gate, up, out, n, factor, cap);
    }

    template <bool FOUR, class Cap>
    void situ(const float* gate, const float* up, float* out, int n, float factor, Cap cap) const {
        const float inverse = 1 / beta;
        for (int i = 0; i < n; i++) {
            float t, s;
            tanh_and_sigmoid<FOUR>(gate[i], inverse, t, s);
            out[i] = factor * t * s * cap(up[i]);
        }
    }

    // With v = cap(up), whose slope times b2 is 1 - curve v^2.
    template <class Cap>
    void situ_backward(
        const float* gate, const float* up, const float* d_out, float* d_gate, float* d_up, int n, float b2,
        float curve, Cap cap) const {
        beta == 4 ? situ_backward<true>(gate, up, d_out, d_gate, d_up, n, b2, curve, cap)
                  : situ_backward<false>(gate, up, d_out, d_gate, d_up, n, b2, curve, cap);
    }

    template <bool FOUR, class Cap>
    void situ_backward(
        const float* gate, const float* up, const float* d_out, float* d_gate, float* d_up, int n, float b2,
        float curve, Cap cap) const {
        const float inverse = 1 / beta;
        for (int i = 0; i < n; i++) {
            float t, s;
            tanh_and_sigmoid<FOUR>(gate[i], inverse, t, s);
            const float v = cap(up[i]), d = d_out[i];
            d_gate[i] = d * b2 * v * s * ((1 - t) * (1 + t) + beta * t * (1 - s));
            d_up[i] = d * beta * t * s * (1 - curve * v * v);
        }
    }
};
