// Small matrix products in fp32, for operands that a kernel has in hand: C [M, N] = A B or C += A B.
//
// B is first packed into panels of 16 columns [ceil(N / 16)][K][16], zeros past N; packing takes any strides, so a
// transposed B costs nothing more. A is read in place with any strides. A tile of 6 x 16 sums stays in registers (the
// vector type is a compiler extension of GCC and Clang: AVX, SSE or NEON code by the target). K is taken in blocks, so
// that a panel stays in the first-level cache. Left out: threads, and blocking for matrices beyond the second-level
// cache.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "lines.h"

constexpr int PANEL = 16, TILE = 6, DEPTH = 256;

typedef float vec8 __attribute__((vector_size(32), aligned(4), may_alias));

struct Strides {
    ptrdiff_t row, col;
};

static inline size_t packed_size(int K, int N) { return static_cast<size_t>((N + PANEL - 1) / PANEL) * PANEL * K; }

// B [K, N] -> panels.
static inline void pack(const float* B, Strides s, int K, int N, float* panels) {
    for (int n0 = 0; n0 < N; n0 += PANEL) {
        const int n = std::min(PANEL, N - n0);
        const float* from = B + n0 * s.col;
        if (n < PANEL) std::memset(panels, 0, sizeof(float) * PANEL * K);
        if (s.row == 1)
            for (int j = 0; j < n; j++)
                for (int k = 0; k < K; k++) panels[k * PANEL + j] = from[k + j * s.col];
        else
            for (int k = 0; k < K; k++)
                for (int j = 0; j < n; j++) panels[k * PANEL + j] = from[k * s.row + j * s.col];
        panels += static_cast<size_t>(PANEL) * K;
    }
}

// R rows of A [R, K] times one panel [K, 16] -> C [R, n].
template <int R>
static inline void tile(const float* A, Strides s, const float* panel, int K, float* C, ptrdiff_t ldc, int n, bool add) {
    vec8 sum[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = vec8{};  // with `= {}` GCC clears them in memory
    for (int k = 0; k < K; k++) {
        const vec8 b0 = *reinterpret_cast<const vec8*>(panel + k * PANEL);
        const vec8 b1 = *reinterpret_cast<const vec8*>(panel + k * PANEL + 8);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const float a = A[r * s.row + k * s.col];
            sum[r][0] += a * b0;
            sum[r][1] += a * b1;
        }
    }
    for (int r = 0; r < R; r++) {
        float* c = C + r * ldc;
        if (n == PANEL) {
            vec8* out = reinterpret_cast<vec8*>(c);
            out[0] = add ? out[0] + sum[r][0] : sum[r][0];
            out[1] = add ? out[1] + sum[r][1] : sum[r][1];
        } else {
            for (int j = 0; j < n; j++) c[j] = (add ? c[j] : 0.0f) + sum[r][j / 8][j % 8];
        }
    }
}

// R rows at most TILE: as many sums at once as there are rows.
static inline void tile(int R, const float* A, Strides s, const float* panel, int K, float* C, ptrdiff_t ldc, int n, bool add) {
    switch (R) {
        case 1: return tile<1>(A, s, panel, K, C, ldc, n, add);
        case 2: return tile<2>(A, s, panel, K, C, ldc, n, add);
        case 3: return tile<3>(A, s, panel, K, C, ldc, n, add);
        case 4: return tile<4>(A, s, panel, K, C, ldc, n, add);
        case 5: return tile<5>(A, s, panel, K, C, ldc, n, add);
        default: return tile<TILE>(A, s, panel, K, C, ldc, n, add);
    }
}

// C [M, N] (+)= A [M, K] times packed B. `depth` is the K that B was packed with: at least K, more when only rows of
// the panels from somewhere on take part. `lower`: C is symmetric, tiles above its diagonal are left out. Rows are
// dealt to tiles evenly: few sums at once wait for each other.
static inline void multiply_packed(
    const float* A, Strides s, const float* panels, int depth, float* C, ptrdiff_t ldc, int M, int K, int N, bool add,
    bool lower = false) {
    const int tiles = (M + TILE - 1) / TILE;
    for (int n0 = 0; n0 < N; n0 += PANEL, panels += static_cast<size_t>(PANEL) * depth) {
        const int n = std::min(PANEL, N - n0);
        for (int i = lower ? n0 * tiles / M : 0, m = M * i / tiles, next; m < M; i++, m = next) {
            next = M * (i + 1) / tiles;
            tile(next - m, A + m * s.row, s, panels, K, C + m * ldc + n0, ldc, n, add);
        }
    }
}

// C [M, N] (+)= A [M, K] B [K, N]; `scratch` grows as needed.
static inline void multiply(
    const float* A, Strides a, const float* B, Strides b, float* C, ptrdiff_t ldc, int M, int K, int N, bool add,
    Floats& scratch, bool lower = false) {
    const size_t size = packed_size(std::min(K, DEPTH), N);
    if (scratch.size() < size) scratch.resize(size);
    if (K == 0 && !add)
        for (int m = 0; m < M; m++) std::memset(C + m * ldc, 0, sizeof(float) * N);
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        const int depth = std::min(DEPTH, K - k0);
        pack(B + k0 * b.row, b, depth, N, scratch.data());
        multiply_packed(A + k0 * a.col, a, scratch.data(), depth, C, ldc, M, depth, N, add || k0, lower);
    }
}
