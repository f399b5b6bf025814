// Newton-Schulz orthogonalisation of each matrix of G [n, rows, cols] (optim/muon.py), one matrix at a time in cache:
//
//   X = G / (|G| + 1e-7);   `steps` times:  A = X X^T,  X = a X + (b A + c A^2) X       (transposed where rows > cols)
//
// A and A^2 are symmetric: half of each is computed and mirrored. `muon` is one update of n matrices around it, each in
// the cache from momentum to decay, and each of its lines rounds as the operator of PyTorch that it stands for:
//
//   M = mu M + G,  W = keep W - rate NewtonSchulz(mu M + G)
#include <cmath>

#include "fastmath.h"
#include "gemm.h"

namespace {

// Copies the lower half of C [r, r] to the upper one, in squares of 16 that the cache holds.
void mirror(float* C, int r) {
    for (int i0 = 0; i0 < r; i0 += 16)
        for (int j0 = 0; j0 <= i0; j0 += 16)
            for (int j = j0; j < std::min(j0 + 16, r); j++)
                for (int i = std::max(i0, j + 1); i < std::min(i0 + 16, r); i++) C[j * r + i] = C[i * r + j];
}

struct Orthogonal {
    const int rows, cols, steps;
    const float a, b, c;
    const bool tall = rows > cols;
    const int r = tall ? cols : rows, k = tall ? rows : cols, size = r * k;
    Floats X = Floats(size), Y = X, A = Floats(r * r), P = A, scratch = {};

    void operator()(const float* G, float* O) {
        double square = 0;
        for (int i = 0; i < size; i++) square += static_cast<double>(G[i]) * G[i];
        const float scale = 1.0f / (static_cast<float>(std::sqrt(square)) + 1e-7f);
        for (int i = 0; i < r; i++)
            for (int j = 0; j < k; j++) X[i * k + j] = scale * (tall ? G[j * r + i] : G[i * k + j]);
        for (int step = 0; step < steps; step++) {
            multiply(X.data(), {k, 1}, X.data(), {1, k}, A.data(), r, r, k, r, false, scratch, true);
            mirror(A.data(), r);
            multiply(A.data(), {r, 1}, A.data(), {r, 1}, P.data(), r, r, r, r, false, scratch, true);
            mirror(P.data(), r);
            for (int i = 0; i < r * r; i++) P[i] = b * A[i] + c * P[i];
            for (int i = 0; i < size; i++) Y[i] = a * X[i];
            multiply(P.data(), {r, 1}, X.data(), {k, 1}, Y.data(), k, r, r, k, true, scratch);
            X.swap(Y);
        }
        for (int i = 0; i < r; i++)
            for (int j = 0; j < k; j++) O[tall ? j * r + i : i * k + j] = X[i * k + j];
    }
};

}  // namespace

EXPORT void newton_schulz(const float* G, float* O, int n, int rows, int cols, int steps, float a, float b, float c) {
    Orthogonal orthogonal{rows, cols, steps, a, b, c};
    const size_t size = static_cast<size_t>(rows) * cols;
    for (int i = 0; i < n; i++) orthogonal(G + i * size, O + i * size);
}

EXPORT void muon(
    const float* G, float* M, float* W, int n, int rows, int cols, int steps, float a, float b, float c, float mu,
    float keep, float rate) {
    Orthogonal orthogonal{rows, cols, steps, a, b, c};
    const int size = rows * cols;
    Floats O(size);
    for (int matrix = 0; matrix < n; matrix++, G += size, M += size, W += size) {
        for (int i = 0; i < size; i++) M[i] *= mu;
        for (int i = 0; i < size; i++) M[i] += G[i];
        for (int i = 0; i < size; i++) O[i] = G[i] + mu * M[i];
        orthogonal(O.data(), O.data());
        for (int i = 0; i < size; i++) W[i] *= keep;
        for (int i = 0; i < size; i++) W[i] += -rate * O[i];
    }
}
