// The feed-forward sublayers of the decoder: dense, and a mixture of experts (model/moe.py).
#include <sys/mman.h>
#include <unistd.h>

#include "decode.h"
#include "experts.h"

using threads::parallel;
using threads::ranges;

namespace {

// down f(gate, up); gate is written over.
Buffer behind_gate(const MLP& m, float* gate, const float* up, int N) {
    const int I = m.gate.out;
    const Glu glu{m.beta, m.linear};
    ranges(N, FEW_TOKENS, [&](int from, int to) {
        for (int i = from; i < to; i++) glu.forward(gate + i * I, up + i * I, gate + i * I, I);
    });
    return apply(m.down, gate, N);
}

// The chosen experts of one token, s [E] its scores: the largest of s + bias (of equal ones the first), and their weights.
void choose(const MoE& m, const float* s, int64_t* chosen, float* p) {
    const auto biased = [&](int64_t e) { return s[e] + m.bias[e]; };
    for (int e = 0; e < m.experts; e++) {
        int at = std::min(e, m.chosen);
        while (at > 0 && biased(e) > biased(chosen[at - 1])) at--;
        if (at == m.chosen) continue;
        for (int i = std::min(e, m.chosen - 1); i > at; i--) chosen[i] = chosen[i - 1];
        chosen[at] = e;
    }
    float sum = 1e-20f;
    for (int i = 0; i < m.chosen; i++) sum += p[i] = s[chosen[i]];
    for (int i = 0; i < m.chosen; i++) p[i] = (m.renormalize ? p[i] / sum : p[i]) * m.factor;
}

// Asks the system to read a matrix of a mapped file, all of it at once and nothing around it.
void soon(const Matrix& m) {
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), from = reinterpret_cast<uintptr_t>(m.panels);
    const uintptr_t begin = from / page * page;
    madvise(reinterpret_cast<void*>(begin), from - begin + quantised_bytes(m.kind, m.in, m.out), MADV_WILLNEED);
}

// sum_i p_i E_i(z) with experts in 4 or 8 bits: gate and up of every assignment (sorted by expert), then down, then
// each token's sum in the order of its experts.
Buffer quantised_experts(const MoE& m, Rows& z, const int64_t* chosen, const float* p) {
    const int N = z.N, k = m.chosen, L = m.w1.in, I = m.w1.out, total = N * k;
    std::vector<int64_t> order(total), starts(m.experts + 1);
    sort_by_expert(chosen, total, m.experts, order.data(), starts.data());
    std::vector<int> active, tokens(total), all(total), place(total);
    for (int e = 0; e < m.experts; e++)
        if (starts[e] < starts[e + 1]) active.push_back(e);
    for (int i = 0; i < total; i++) tokens[i] = order[i] / k, all[i] = i, place[order[i]] = i;
    if (m.on_disk)
        for (int e : active)
            for (const Matrix* stack : {&m.w1, &m.w3, &m.w2}) soon(nth(*stack, e));
    // A part is a share of an expert's panels: few experts are split, so that every member has some.
    const int shares = std::max<int>(1, 4 * threads::members / static_cast<int>(active.size()));
    const auto product = [&](const Matrix& stack, const Rows8& x, const int* rows, int part, float* y, ptrdiff_t ld) {
        const int e = active[part / shares], share = part % shares, panels = (stack.out + OUTS - 1) / OUTS;
        const Matrix w = nth(stack, e);
        const Chosen mine{x, rows + starts[e], static_cast<int>(starts[e + 1] - starts[e])};
        quantised_product(w.kind, reinterpret_cast<const uint8_t*>(w.panels), w.in, w.out, mine, y + starts[e] * ld, ld,
                          panels * share / shares, panels * (share + 1) / shares);
    };
    const int parts = static_cast<int>(active.size()) * shares;
    Buffer joint = buffer(static_cast<size_t>(total) * 2 * I), y = buffer(static_cast<size_t>(total) * L);
    const Rows8& narrow = z.rounded(L);
    parallel(parts, [&](int part) {
        product(m.w1, narrow, tokens.data(), part, joint.get(), 2 * I);
        product(m.w3, narrow, tokens.data(), part, joint.get() + I, 2 * I);
    });
    const Glu glu{m.beta, m.linear};
    ranges(total, SOME_TOKENS, [&](int from, int to) {
        for (int i = from; i < to; i++) glu.forward(&joint[i * 2 * I], &joint[i * 2 * I + I], &joint[i * 2 * I], I);
    });
    const Rows8 hidden(joint.get(), 2 * I, total, I);
    parallel(parts, [&](int part) { product(m.w2, hidden, all.data(), part, y.get(), L); });
    Buffer u = buffer(static_cast<size_t>(N) * L);
    ranges(N, SOME_TOKENS, [&](int from, int to) {
        for (int n = from; n < to; n++) {
            std::vector<int> mine(place.begin() + n * k, place.begin() + (n + 1) * k);
            std::sort(mine.begin(), mine.end());
            float* sum = &u[static_cast<size_t>(n) * L];
            std::fill(sum, sum + L, 0.0f);
            for (int i : mine)
                for (int j = 0; j < L; j++) sum[j] += p[order[i]] * y[static_cast<size_t>(i) * L + j];
        }
    });
    return u;
}

Buffer float_experts(const MoE& m, const Rows& z, const int64_t* chosen, const float* p) {
    const int N = z.N, k = m.chosen, L = m.w1.in, I = m.w1.out;
    std::vector<int64_t> order(static_cast<size_t>(N) * k), starts(m.experts + 1);
    Buffer joint = buffer(static_cast<size_t>(N) * k * 2 * I), u = buffer(static_cast<size_t>(N) * L);
    const auto panels = [](const Matrix& stack, int e) { return reinterpret_cast<const float*>(nth(stack, e).panels); };
    const auto packed = [&](int e) { return Expert{panels(m.w1, e), panels(m.w3, e), panels(m.w2, e)}; };
    run_experts(z.x, chosen, p, packed, u.get(), joint.get(), order.data(), starts.data(), N, k, m.experts, L, I,
                Glu{m.beta, m.linear});
    return u;
}

}  // namespace

Buffer feed_forward(const MLP& m, Rows& x) {
    const Buffer gate = room(m.gate, x.N), up = room(m.up, x.N);
    apply_all({{m.gate, x, gate.get(), m.gate.out}, {m.up, x, up.get(), m.up.out}});
    return behind_gate(m, gate.get(), up.get(), x.N);
}

Buffer feed_forward(const MoE& m, Rows& x) {
    const int N = x.N, E = m.experts, k = m.chosen, L = m.w1.in, shared = m.shared.gate.out;
    const Buffer scores = room(m.router, N), p = buffer(static_cast<size_t>(N) * k), low = room(m.down, N);
    const Buffer gate = room(m.shared.gate, N), up = room(m.shared.up, N);
    apply_all({{m.shared.gate, x, gate.get(), shared},
               {m.shared.up, x, up.get(), shared},
               {m.down, x, low.get(), L},
               {m.router, x, scores.get(), E}});
    std::vector<int64_t> chosen(static_cast<size_t>(N) * k);
    ranges(N, FEW_TOKENS, [&](int from, int to) {
        sigmoid_rows(&scores[from * E], to - from, E);
        for (int i = from; i < to; i++) choose(m, &scores[i * E], &chosen[i * k], &p[i * k]);
    });
    Rows latent(low.get(), L, N);
    Rows& z = m.down.panels ? latent : x;
    Buffer u = m.w1.kind == FLOAT ? float_experts(m, z, chosen.data(), p.get())
                                  : quantised_experts(m, z, chosen.data(), p.get());
    if (m.norm) {
        Buffer normed = buffer(static_cast<size_t>(N) * L);
        rms_norm_forward(u.get(), m.norm, normed.get(), N, L, m.eps);
        u.swap(normed);
    }
    Buffer y = m.up.panels ? apply(m.up, u.get(), N) : std::move(u);
    if (m.shared.gate.panels) {
        const Buffer more = behind_gate(m.shared, gate.get(), up.get(), N);
        for (int i = 0; i < N * m.shared.down.out; i++) y[i] += more[i];
    }
    return y;
}
