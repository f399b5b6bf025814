// Routed experts, forward: u[token] += p E(z[token]) over the assignments, each expert on the rows that chose it.
//
// Assignments (token, choice) are sorted by expert once: order [N k] their numbers token * k + choice, starts [E + 1].
// Each expert takes its rows in blocks that stay in the cache: gather, multiply, activate, multiply, scatter. Left
// behind: gate and up of every assignment, joint [N k, 2 I] in sorted order. Experts come in order, so sums are the same
// every time. Shapes: z, u [N, L]; chosen, p [N, k].
#pragma once
#include <memory>

#include "gemm.h"
#include "glu.h"

constexpr int EXPERT_ROWS = 96;

// One expert's packed matrices: in, in3 [L, I], out [I, L].
struct Expert {
    const float *in, *in3, *out;
};

static inline void sort_by_expert(const int64_t* chosen, int count, int E, int64_t* order, int64_t* starts) {
    std::fill(starts, starts + E + 1, 0);
    for (int i = 0; i < count; i++) starts[chosen[i] + 1]++;
    for (int e = 0; e < E; e++) starts[e + 1] += starts[e];
    std::vector<int64_t> next(starts, starts + E);
    for (int i = 0; i < count; i++) order[next[chosen[i]]++] = i;
}

// `packed(e)` gives expert e, asked for once and only if it has rows.
template <class Packed>
static inline void run_experts(
    const float* z, const int64_t* chosen, const float* p, Packed packed, float* u, float* joint, int64_t* order,
    int64_t* starts, int N, int k, int E, int L, int I, const Glu& glu) {
    sort_by_expert(chosen, N * k, E, order, starts);
    Floats scratch(EXPERT_ROWS * (2 * L + I));
    float *rows = scratch.data(), *hidden = rows + EXPERT_ROWS * L, *y = hidden + EXPERT_ROWS * I;
    std::memset(u, 0, sizeof(float) * N * L);
    for (int e = 0; e < E; e++) {
        if (starts[e] == starts[e + 1]) continue;
        const Expert expert = packed(e);
        for (int64_t from = starts[e]; from < starts[e + 1]; from += EXPERT_ROWS) {
            const int count = static_cast<int>(std::min<int64_t>(EXPERT_ROWS, starts[e + 1] - from));
            float* gu = joint + from * 2 * I;
            for (int i = 0; i < count; i++)
                std::memcpy(&rows[i * L], z + order[from + i] / k * L, sizeof(float) * L);
            multiply_packed(rows, {L, 1}, expert.in, L, gu, 2 * I, count, L, I, false);
            multiply_packed(rows, {L, 1}, expert.in3, L, gu + I, 2 * I, count, L, I, false);
            for (int i = 0; i < count; i++) glu.forward(gu + i * 2 * I, gu + i * 2 * I + I, &hidden[i * I], I);
            multiply_packed(hidden, {I, 1}, expert.out, I, y, L, count, I, L, false);
            for (int i = 0; i < count; i++) {
                const float weight = p[order[from + i]], *row = &y[i * L];
                float* to = u + order[from + i] / k * L;
                for (int j = 0; j < L; j++) to[j] += weight * row[j];
            }
        }
    }
}
