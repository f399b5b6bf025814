// The two kinds of attention over cached sequences (model/kda.py; model/mla.py, absorbed: keys and values are never built).
#include "decode.h"
#include "latents.h"

using threads::parallel;
using threads::ranges;

EXPORT void gated_norm_forward(const float*, const float*, const float*, float*, float, int, int);
EXPORT void kda_gate_forward(const float*, const float*, const float*, float*, int, float, int, int, int);
EXPORT void conv_forward(
    const float*, const float*, const float*, const int64_t*, float*, float*, float*, int, int, int, int, int, float);
EXPORT void kda_forward(
    const float*, const float*, const float*, const float*, const float*, const float*, const int64_t*, float*, float*,
    float*, float*, int, int, int, int, int);

namespace {

// Keeps the last width - 1 inputs of (past, x [n, C]) in past.
void shift(float* past, const float* x, int n, int keep, int C) {
    const int old = std::max(0, keep - n);
    std::memmove(past, past + static_cast<size_t>(keep - old) * C, sizeof(float) * old * C);
    std::memcpy(past + static_cast<size_t>(old) * C, x + static_cast<size_t>(n - (keep - old)) * C,
                sizeof(float) * (keep - old) * C);
}

// q, k, v of one sequence's n tokens from x [n, 3 C] and the inputs before them.
void convolve(const KDA& m, const float* x, const float* past, int n, float* q, float* k, float* v) {
    const int H = m.heads, K = m.head_dim, C = H * K, keep = m.width - 1;
    ranges(n, SOME_TOKENS, [&](int from, int to) {
        const size_t at = static_cast<size_t>(from) * C;
        const float* before = from == 0 ? past : x + 3 * (at - static_cast<size_t>(keep) * C);
        conv_forward(x + 3 * at, m.taps, before, nullptr, q + at, k + at, v + at, 1, to - from, H, K, m.width, m.l2_eps);
    });
}

// One head's part of [n, H, K] as rows of its own, or back.
void take_head(const float* from, float* to, int n, int H, int K) {
    for (int i = 0; i < n; i++) std::memcpy(to + static_cast<size_t>(i) * K, from + static_cast<size_t>(i) * H * K, sizeof(float) * K);
}

// The delta rule of head h over n tokens; q, k, v, g, o [n, H, K], beta [n, H], S [K, K].
void head_rule(const float* q, const float* k, const float* v, const float* g, const float* beta, float* S, float* o,
               int n, int H, int K, int h) {
    if (n == 1) {
        const int at = h * K;
        kda_forward(q + at, k + at, v + at, g + at, beta + h, S, nullptr, o + at, S, nullptr, nullptr, 1, 1, 1, K, K);
        return;
    }
    const size_t size = static_cast<size_t>(n) * K;
    Buffer all = buffer(5 * size + n);
    const float* parts[4] = {q, k, v, g};
    for (int i = 0; i < 4; i++) take_head(parts[i] + h * K, &all[i * size], n, H, K);
    for (int i = 0; i < n; i++) all[5 * size + i] = beta[i * H + h];
    float* mine = &all[4 * size];
    kda_forward(&all[0], &all[size], &all[2 * size], &all[3 * size], &all[5 * size], S, nullptr, mine, S, nullptr, nullptr,
                1, n, 1, K, K);
    for (int i = 0; i < n; i++) std::memcpy(o + (static_cast<size_t>(i) * H + h) * K, mine + static_cast<size_t>(i) * K, sizeof(float) * K);
}

}  // namespace

Buffer attend(const KDA& m, const float* input, const Tokens& t, const State& s) {
    const int N = t.N, H = m.heads, K = m.head_dim, C = H * K;
    Rows x(input, m.qkv.in, N);
    const bool low_rank = m.g_a.panels;
    const Buffer qkv = room(m.qkv, N), f = room(m.f_a, N), raw = room(m.f_b, N), gate = room(m.g, N);
    const Buffer beta = room(m.beta, N), low = room(m.g_a, N);
    apply_all({{m.qkv, x, qkv.get(), 3 * C},
               {m.f_a, x, f.get(), m.f_a.out},
               {low_rank ? m.g_a : m.g, x, (low_rank ? low : gate).get(), low_rank ? m.g_a.out : C},
               {m.beta, x, beta.get(), H}});
    Rows of_f(f.get(), m.f_a.out, N), of_low(low.get(), m.g_a.out, N);
    const Matrix none{};
    apply_all({{m.f_b, of_f, raw.get(), C}, {low_rank ? m.g : none, of_low, gate.get(), C}});
    Buffer g = buffer(N * C), q = buffer(N * C), k = buffer(N * C), v = buffer(N * C);
    sigmoid_rows(beta.get(), N, H);
    ranges(N, FEW_TOKENS, [&](int from, int to) {
        kda_gate_forward(&raw[from * C], m.dt_bias, m.A_log, &g[from * C], m.bounded, m.lower, to - from, H, K);
    });
    Buffer o = buffer(N * C);
    const bool alone = threads::members == 1;
    const auto convolved = [&](int i) {
        const int n = t.starts[i + 1] - t.starts[i];
        const size_t at = static_cast<size_t>(t.starts[i]) * C;
        float* past = s.conv + t.rows[i] * s.conv_row;
        convolve(m, &qkv[3 * at], past, n, &q[at], &k[at], &v[at]);
        shift(past, &qkv[3 * at], n, m.width - 1, 3 * C);
    };
    // Many sequences are shared out whole; of a few, each one's tokens.
    if (t.count < 4)
        for (int i = 0; i < t.count; i++) convolved(i);
    else
        parallel(t.count, [&](int i) {
            const threads::Team by_itself(1);
            convolved(i);
        });
    parallel(alone ? t.count : t.count * H, [&](int part) {
        const int i = alone ? part : part / H, n = t.starts[i + 1] - t.starts[i];
        const size_t at = static_cast<size_t>(t.starts[i]) * C;
        const float* b = &beta[static_cast<size_t>(t.starts[i]) * H];
        float* S = s.memory + t.rows[i] * s.memory_row;
        if (alone)
            kda_forward(&q[at], &k[at], &v[at], &g[at], b, S, nullptr, &o[at], S, nullptr, nullptr, 1, n, H, K, K);
        else
            head_rule(&q[at], &k[at], &v[at], &g[at], b, S + static_cast<size_t>(part % H) * K * K, &o[at], n, H, K, part % H);
    });
    ranges(N, FEW_TOKENS, [&](int from, int to) {
        gated_norm_forward(&o[from * C], m.o_norm, &gate[from * C], &q[from * C], m.eps, (to - from) * H, K);
    });
    return apply(m.o, q.get(), N);
}

namespace {

// How one position turns the part of a query or a key that all heads' keys share (no rotation: it stays).
struct Turn {
    const MLA& m;
    std::vector<float> cos, sin;

    Turn(const MLA& m, int64_t position) : m(m) {
        for (int i = 0; m.frequencies && i < m.rope / 2; i++) {
            const float angle = static_cast<float>(position) * m.frequencies[i];
            cos.push_back(std::cos(angle) * m.rotation), sin.push_back(std::sin(angle) * m.rotation);
        }
    }
    // Interleaved pairs of x [R]; first halves, then second ones.
    void apply(const float* x, float* out) const {
        if (!m.frequencies) std::memcpy(out, x, sizeof(float) * m.rope);
        for (size_t i = 0; i < cos.size(); i++) {
            out[i] = x[2 * i] * cos[i] - x[2 * i + 1] * sin[i];
            out[cos.size() + i] = x[2 * i + 1] * cos[i] + x[2 * i] * sin[i];
        }
    }
};

}  // namespace

Buffer attend(const MLA& m, const float* input, const Tokens& t, const State& s) {
    const int N = t.N, H = m.heads, P = m.k_up.in, rank = m.k_up.out, V = m.v_up.out, W = rank + m.rope, Q = P + m.rope;
    Rows x(input, m.kv_a.in, N);
    const bool low_rank = m.q_a.panels;
    Buffer q = room(m.q, N), joint = room(m.kv_a, N), latent_q = buffer(static_cast<size_t>(N) * H * W);
    const Buffer low = room(m.q_a, N), gate = room(m.g, N);
    apply_all({{low_rank ? m.q_a : m.q, x, (low_rank ? low : q).get(), low_rank ? m.q_a.out : m.q.out},
               {m.kv_a, x, joint.get(), W},
               {m.g, x, gate.get(), m.g.out}});
    if (low_rank) {
        const Buffer normed = room(m.q_a, N);
        rms_norm_forward(low.get(), m.q_norm, normed.get(), N, m.q_a.out, m.eps);
        q = apply(m.q, normed.get(), N);
    }
    parallel(H, [&](int h) {
        Rows mine(q.get() + h * Q, H * Q, N);
        apply(nth(m.k_up, h), mine, latent_q.get() + h * W, H * W);
    });
    Buffer mixed = buffer(static_cast<size_t>(N) * H * rank);
    for (int i = 0; i < t.count; i++) {
        const int* table = t.pages.table + static_cast<size_t>(t.rows[i]) * t.pages.width;
        const Latents latents{s.memory, s.memory_row, table, t.pages.page, W};
        const int64_t before = t.lengths[t.rows[i]] - t.starts[i];
        std::vector<Query> queries;
        for (int n = t.starts[i]; n < t.starts[i + 1]; n++) {
            float* latent = latents.at(before + n);
            const float* new_one = &joint[static_cast<size_t>(n) * W];
            const Turn turn(m, before + n);
            rms_norm_forward(new_one, m.kv_norm, latent, 1, rank, m.eps);
            turn.apply(new_one + rank, latent + rank);
            for (size_t at = static_cast<size_t>(n) * H; at < static_cast<size_t>(n + 1) * H; at++) {
                turn.apply(&q[at * Q + P], &latent_q[at * W + rank]);
                queries.push_back({&latent_q[at * W], static_cast<int>(before) + n + 1, &mixed[at * rank]});
            }
        }
        mix(queries, latents, rank, m.scale);
    }
    Buffer o = buffer(static_cast<size_t>(N) * H * V);
    parallel(H, [&](int h) {
        Rows mine(mixed.get() + h * rank, H * rank, N);
        apply(nth(m.v_up, h), mine, o.get() + h * V, H * V);
    });
    if (m.g.panels) {
        sigmoid_rows(gate.get(), N, H * V);
        for (int i = 0; i < N * H * V; i++) o[i] *= gate[i];
    }
    return apply(m.o, o.get(), N);
}
