// The log decay of KDA (twin: `kda_gate` in kernels/kda/gate.py), z = raw + bias, A = e^A_log of the head:
//
//     bounded    g = lower sigmoid(A z)    dz = lower A s (1 - s) dg         dA_log = sum z dz
//     unbounded  g = -A softplus(z)        dz = -A sigmoid(z) dg             dA_log = sum g dg
//
// Shapes: raw, g [tokens, H K]; bias [H K]; A_log [H].
#include <algorithm>
#include <vector>

#include "fastmath.h"
#include "lines.h"

namespace {

// log(1 + e^z) = max(z, 0) + log1p(e^-|z|); log1p(u) = 2 artanh(w), w = u / (2 + u) <= 1/3, as a series to w^15.
inline float softplus(float z) {
    const float u = fast_exp(-std::fabs(z)), w = u / (2.0f + u), w2 = w * w;
    float p = 1.0f / 15;
    p = p * w2 + 1.0f / 13;
    p = p * w2 + 1.0f / 11;
    p = p * w2 + 1.0f / 9;
    p = p * w2 + 1.0f / 7;
    p = p * w2 + 1.0f / 5;
    p = p * w2 + 1.0f / 3;
    p = p * w2 + 1.0f;
    return (z > 0 ? z : 0.0f) + 2.0f * w * p;
}

// One head of one token; db and da [K] are added to.
void bounded_back(const float* __restrict raw, const float* __restrict bias, const float* __restrict dg,
                  float* __restrict d_raw, float* __restrict db, float* __restrict da, float A, float lower, int K) {
    for (int i = 0; i < K; i++) {
        const float z = raw[i] + bias[i], s = fast_sigmoid(A * z), dz = lower * A * s * (1.0f - s) * dg[i];
        d_raw[i] = dz;
        db[i] += dz;
        da[i] += z * dz;
    }
}

void unbounded_back(const float* __restrict raw, const float* __restrict bias, const float* __restrict dg,
                    float* __restrict d_raw, float* __restrict db, float* __restrict da, float A, int K) {
    for (int i = 0; i < K; i++) {
        const float z = raw[i] + bias[i], dz = -A * fast_sigmoid(z) * dg[i];
        d_raw[i] = dz;
        db[i] += dz;
        da[i] -= A * softplus(z) * dg[i];
    }
}

}  // namespace

EXPORT void kda_gate_forward(const float* raw, const float* bias, const float* A_log, float* g, int bounded,
                             float lower, int tokens, int H, int K) {
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < H; h++) {
            const float A = std::exp(A_log[h]);
            const float *__restrict from = raw + (size_t(t) * H + h) * K, *__restrict b = bias + h * K;
            float* __restrict to = g + (size_t(t) * H + h) * K;
            if (bounded)
                for (int i = 0; i < K; i++) to[i] = lower * fast_sigmoid(A * (from[i] + b[i]));
            else
                for (int i = 0; i < K; i++) to[i] = -A * softplus(from[i] + b[i]);
        }
}

EXPORT void kda_gate_backward(const float* raw, const float* bias, const float* A_log, const float* dg, float* d_raw,
                              float* d_bias, float* d_A_log, int bounded, float lower, int tokens, int H, int K) {
    thread_local Floats scratch;  // [H, K] the sums for A_log, channels still apart
    scratch.assign(size_t(H) * K, 0.0f);
    std::fill(d_bias, d_bias + H * K, 0.0f);
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < H; h++) {
            const float A = std::exp(A_log[h]);
            const size_t at = (size_t(t) * H + h) * K;
            float *db = d_bias + h * K, *da = scratch.data() + h * K;
            if (bounded)
                bounded_back(raw + at, bias + h * K, dg + at, d_raw + at, db, da, A, lower, K);
            else
                unbounded_back(raw + at, bias + h * K, dg + at, d_raw + at, db, da, A, K);
        }
    for (int h = 0; h < H; h++) {
        d_A_log[h] = 0.0f;
        for (int i = 0; i < K; i++) d_A_log[h] += scratch[h * K + i];
    }
}
