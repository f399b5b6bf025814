// Short causal depthwise convolution, SiLU and the L2 norm per head of q and k (twin: `conv_qkv` in kernels/conv.py).
//
//     z_t = sum_j taps[width-1-j] x_{t-j}  over j < width and x of the same segment,   s = z sigmoid(z)
//     q = s r K^-0.5,  k = s r  with r = (sum s^2 + eps)^-0.5 per head,   v = s
//     ds = scale (r dy - r^3 (s.dy) s),   dz = ds sigmoid(z) (1 + z (1 - sigmoid(z)))
//
// Shapes: x [B, T, C], C = 3 H K (all of q, then k, then v); taps [width, C]; past [B, width-1, C], the inputs before
// the first, or NULL (zeros); segments [B, T] or NULL; q, k, v [B, T, H, K]. Backward starts again from x.
#include <algorithm>
#include <vector>

#include "fastmath.h"
#include "lines.h"

namespace {

struct Rows {
    const float *x, *past;
    const int64_t* segments;
    int T, C, width;
    // The input j tokens before token t of row b; NULL where there is none, or it is another document's.
    const float* back(int b, int t, int j) const {
        if (t < j) return past ? past + (size_t(b) * (width - 1) + (width - 1 + t - j)) * C : nullptr;
        if (segments && segments[size_t(b) * T + t] != segments[size_t(b) * T + t - j]) return nullptr;
        return x + (size_t(b) * T + t - j) * C;
    }
};

void add_product(const float* __restrict a, const float* __restrict b, float* __restrict to, int n) {
    for (int c = 0; c < n; c++) to[c] += a[c] * b[c];
}

// z [C] of token t.
void convolve(const Rows& in, const float* taps, int b, int t, float* __restrict z) {
    const float *__restrict now = in.back(b, t, 0), *__restrict tap = taps + size_t(in.width - 1) * in.C;
    for (int c = 0; c < in.C; c++) z[c] = now[c] * tap[c];
    for (int j = 1; j < in.width; j++)
        if (const float* row = in.back(b, t, j)) add_product(row, taps + size_t(in.width - 1 - j) * in.C, z, in.C);
}

float dot(const float* __restrict a, const float* __restrict b, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

}  // namespace

EXPORT void conv_forward(const float* x, const float* taps, const float* past, const int64_t* segments, float* q,
                         float* k, float* v, int B, int T, int H, int K, int width, float eps) {
    const int C = 3 * H * K;
    const Rows in{x, past, segments, T, C, width};
    thread_local Floats scratch;
    scratch.resize(C);
    float* __restrict s = scratch.data();
    float* const outputs[3] = {q, k, v};
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++) {
            convolve(in, taps, b, t, s);
            for (int c = 0; c < C; c++) s[c] *= fast_sigmoid(s[c]);
            for (int part = 0; part < 3; part++)
                for (int h = 0; h < H; h++) {
                    const float* __restrict from = s + (part * H + h) * K;
                    float* __restrict to = outputs[part] + ((size_t(b) * T + t) * H + h) * K;
                    const float scale = part == 2   ? 1.0f
                                        : part == 1 ? 1.0f / std::sqrt(dot(from, from, K) + eps)
                                                    : 1.0f / std::sqrt((dot(from, from, K) + eps) * K);
                    for (int i = 0; i < K; i++) to[i] = from[i] * scale;
                }
        }
}

// dx like x and d_taps like taps; nothing for past.
EXPORT void conv_backward(const float* x, const float* taps, const float* past, const int64_t* segments,
                          const float* d_q, const float* d_k, const float* d_v, float* dx, float* d_taps, int B, int T,
                          int H, int K, int width, float eps) {
    const int C = 3 * H * K;
    const Rows in{x, past, segments, T, C, width};
    thread_local Floats scratch;
    scratch.resize(4 * size_t(C));
    float *__restrict z = scratch.data(), *__restrict gate = z + C;
    float *__restrict s = gate + C, *__restrict dz = s + C;
    const float* const grads[3] = {d_q, d_k, d_v};
    std::fill(d_taps, d_taps + size_t(width) * C, 0.0f);
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++) {
            convolve(in, taps, b, t, z);
            for (int c = 0; c < C; c++) {
                gate[c] = fast_sigmoid(z[c]);
                s[c] = z[c] * gate[c];
            }
            for (int part = 0; part < 3; part++)
                for (int h = 0; h < H; h++) {
                    const float* __restrict from = s + (part * H + h) * K;
                    const float* __restrict dy = grads[part] + ((size_t(b) * T + t) * H + h) * K;
                    float* __restrict ds = dz + (part * H + h) * K;
                    float scale = 1.0f, along = 0.0f;
                    if (part < 2) {
                        const float r = 1.0f / std::sqrt(dot(from, from, K) + eps);
                        scale = part == 0 ? r / std::sqrt(float(K)) : r;
                        along = scale * r * r * dot(from, dy, K);
                    }
                    for (int i = 0; i < K; i++) ds[i] = scale * dy[i] - along * from[i];
                }
            for (int c = 0; c < C; c++) dz[c] *= gate[c] * (1.0f + z[c] * (1.0f - gate[c]));
            float* __restrict here = dx + (size_t(b) * T + t) * C;
            const float* __restrict tap = taps + size_t(width - 1) * C;
            for (int c = 0; c < C; c++) here[c] = dz[c] * tap[c];
            for (int j = 0; j < width; j++)
                if (const float* row = in.back(b, t, j)) {
                    const size_t at = size_t(width - 1 - j) * C;
                    add_product(row, dz, d_taps + at, C);
                    if (j > 0 && j <= t) add_product(taps + at, dz, here - size_t(j) * C, C);
                }
        }
}
