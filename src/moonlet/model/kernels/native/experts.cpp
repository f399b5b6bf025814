// Routed experts on the rows that chose them: u[token] += p E(z[token]), with no padding and no loop outside.
//
//   E_e(z) = w2_e f(w1_e z, w3_e z);   z, u [N, L];  w1, w3 [E, I, L];  w2 [E, L, I];  chosen, p [N, k]
//
// The forward pass stands in experts.h; kept of it: gate and up of every assignment, joint [N k, 2 I] in sorted order.
#include "experts.h"

EXPORT void experts_forward(
    const float* z, const int64_t* chosen, const float* p, const float* w1, const float* w3, const float* w2,
    float* u, float* joint, int64_t* order, int64_t* starts, int N, int k, int E, int L, int I, float beta,
    float linear) {
    Floats in(packed_size(L, I)), in3(packed_size(L, I)), out(packed_size(I, L));
    const auto packed = [&](int e) {
        const size_t at = static_cast<size_t>(e) * I * L;
        pack(w1 + at, {1, L}, L, I, in.data());
        pack(w3 + at, {1, L}, L, I, in3.data());
        pack(w2 + at, {1, I}, I, L, out.data());
        return Expert{in.data(), in3.data(), out.data()};
    };
    run_experts(z, chosen, p, packed, u, joint, order, starts, N, k, E, L, I, Glu{beta, linear});
}

// With g = d_u[token]: d_hidden = g w2 (before the weight p), d_p = d_hidden . hidden, and the rest by the chain rule.
EXPORT void experts_backward(
    const float* d_u, const float* z, const float* p, const float* w1, const float* w3, const float* w2,
    const float* joint, const int64_t* order, const int64_t* starts, float* d_z, float* d_p, float* d_w1, float* d_w3,
    float* d_w2, int N, int k, int E, int L, int I, float beta, float linear) {
    const Glu glu{beta, linear};
    Floats back2(packed_size(L, I)), back1(packed_size(I, L)), back3(packed_size(I, L));
    Floats g(EXPERT_ROWS * L), rows(EXPERT_ROWS * L), hidden(EXPERT_ROWS * I);
    Floats d_hidden(EXPERT_ROWS * I), d_gate(EXPERT_ROWS * I);
    Floats d_up(EXPERT_ROWS * I), d_rows(EXPERT_ROWS * L), scratch;
    std::memset(d_z, 0, sizeof(float) * N * L);
    for (int e = 0; e < E; e++) {
        const size_t at = static_cast<size_t>(e) * I * L;
        std::memset(d_w1 + at, 0, sizeof(float) * I * L);
        std::memset(d_w3 + at, 0, sizeof(float) * I * L);
        std::memset(d_w2 + at, 0, sizeof(float) * I * L);
        if (starts[e] == starts[e + 1]) continue;
        pack(w2 + at, {I, 1}, L, I, back2.data());
        pack(w1 + at, {L, 1}, I, L, back1.data());
        pack(w3 + at, {L, 1}, I, L, back3.data());
        for (int64_t from = starts[e]; from < starts[e + 1]; from += EXPERT_ROWS) {
            const int count = static_cast<int>(std::min<int64_t>(EXPERT_ROWS, starts[e + 1] - from));
            for (int i = 0; i < count; i++) {
                const int64_t token = order[from + i] / k;
                std::memcpy(&rows[i * L], z + token * L, sizeof(float) * L);
                std::memcpy(&g[i * L], d_u + token * L, sizeof(float) * L);
            }
            multiply_packed(g.data(), {L, 1}, back2.data(), L, d_hidden.data(), I, count, L, I, false);
            for (int i = 0; i < count; i++) {
                const float *gate = joint + (from + i) * 2 * I, *up = gate + I;
                const float weight = p[order[from + i]];
                float *h = &hidden[i * I], *d_h = &d_hidden[i * I];
                glu.forward(gate, up, h, I);
                float inner = 0;
                for (int j = 0; j < I; j++) {
                    inner += h[j] * d_h[j];
                    h[j] *= weight;
                    d_h[j] *= weight;
                }
                d_p[order[from + i]] = inner;
                glu.backward(gate, up, d_h, &d_gate[i * I], &d_up[i * I], I);
            }
            multiply_packed(d_gate.data(), {I, 1}, back1.data(), I, d_rows.data(), L, count, I, L, false);
            multiply_packed(d_up.data(), {I, 1}, back3.data(), I, d_rows.data(), L, count, I, L, true);
            for (int i = 0; i < count; i++) {
                float *to = d_z + order[from + i] / k * L, *row = &d_rows[i * L];
                for (int j = 0; j < L; j++) to[j] += row[j];
            }
            multiply(g.data(), {1, L}, hidden.data(), {I, 1}, d_w2 + at, I, L, count, I, true, scratch);
            multiply(d_gate.data(), {1, I}, rows.data(), {L, 1}, d_w1 + at, L, I, count, L, true, scratch);
            multiply(d_up.data(), {1, I}, rows.data(), {L, 1}, d_w3 + at, L, I, count, L, true, scratch);
        }
    }
}
