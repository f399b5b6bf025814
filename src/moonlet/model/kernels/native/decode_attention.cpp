// The two kinds of attention over cached sequences (model/kda.py; model/mla.py, absorbed: keys and values are never built).
#include "decode.h"
#include "rows.h"
#include "vector.h"

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

// The latents of one sequence.
struct Latents {
    float* memory;
    size_t row;
    const int* table;
    int page, W;
    float* at(int64_t token) const { return memory + table[token / page] * row + token % page * W; }
};

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
    ranges(N, SOME_TOKENS, [&](int from, int to) {
        kda_gate_forward(&raw[from * C], m.dt_bias, m.A_log, &g[from * C], m.bounded, m.lower, to - from, H, K);
    });
    Buffer o = buffer(N * C);
    for (int i = 0; i < t.count; i++) {
        const int n = t.starts[i + 1] - t.starts[i];
        const size_t at = static_cast<size_t>(t.starts[i]) * C;
        float* past = s.conv + t.rows[i] * s.conv_row;
        convolve(m, &qkv[3 * at], past, n, &q[at], &k[at], &v[at]);
        shift(past, &qkv[3 * at], n, m.width - 1, 3 * C);
    }
    const bool alone = threads::members == 1;
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
    ranges(N, SOME_TOKENS, [&](int from, int to) {
        gated_norm_forward(&o[from * C], m.o_norm, &gate[from * C], &q[from * C], m.eps, (to - from) * H, K);
    });
    return apply(m.o, q.get(), N);
}

namespace {

// Interleaved pairs of x [R], rotated by the position; first halves, then second ones.
void rotate(const MLA& m, const float* x, int64_t position, float* out) {
    for (int i = 0; i < m.rope / 2; i++) {
        const float angle = static_cast<float>(position) * m.frequencies[i];
        const float c = std::cos(angle) * m.rotation, s = std::sin(angle) * m.rotation;
        out[i] = x[2 * i] * c - x[2 * i + 1] * s;
        out[m.rope / 2 + i] = x[2 * i + 1] * c + x[2 * i] * s;
    }
}

// The part of a query or a key that all heads' keys share.
void place(const MLA& m, const float* x, int64_t position, float* out) {
    if (m.frequencies)
        rotate(m, x, position, out);
    else
        std::memcpy(out, x, sizeof(float) * m.rope);
}

const vec8& at(const float* x) { return *reinterpret_cast<const vec8*>(x); }

// out [n] = scale q . latent of n latents [n, W], eight at a time.
void logits_of(const float* q, const float* latents, int n, int W, float scale, float* out) {
    int j = 0;
    for (; j + 8 <= n; j += 8) {
        const float* first = latents + static_cast<size_t>(j) * W;
        vec products[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) products[i] = vec{};
        int w = 0;
        for (; w + 8 <= W; w += 8)
            for (int i = 0; i < 8; i++) products[i] += at(q + w) * at(first + i * W + w);
        for (int i = 0; i < 8; i++) products[i][0] += dot(q + w, first + i * W + w, W - w);
        const vec total = sums(products);
        for (int i = 0; i < 8; i++) out[j + i] = scale * total[i];
    }
    for (; j < n; j++) out[j] = scale * dot(q, latents + static_cast<size_t>(j) * W, W);
}

// out [size] += sum_j weights[j] x[j], rows of x W apart; 64 sums at a time stay in registers.
void weighted_sum(const float* weights, const float* x, int n, int W, int size, float* out) {
    int r = 0;
    for (; r + 64 <= size; r += 64) {
        vec8 total[8];
        std::memcpy(total, out + r, sizeof total);
        for (int j = 0; j < n; j++)
            for (int i = 0; i < 8; i++) total[i] += weights[j] * at(x + static_cast<size_t>(j) * W + r + 8 * i);
        std::memcpy(out + r, total, sizeof total);
    }
    for (int j = 0; j < n; j++)
        for (int i = r; i < size; i++) out[i] += weights[j] * x[static_cast<size_t>(j) * W + i];
}

constexpr int TOGETHER = 16;  // heads of tokens, at most, that pass over the latents together

// One head of one token against the first `seen` latents: q [W] -> the mean [rank] of their first parts, weighted by
// softmax(scale q . latent).
struct Query {
    const float* q;
    int seen;
    float* out;
};

// Several of one sequence pass over its latents together, so that these are fetched once for all, and the softmax is
// taken on the way (Milakov and Gimelshein, online softmax): where a larger logit turns up, the sums so far shrink.
// Blocks begin at multiples of 64 tokens, whatever the pages, so that bits do not depend on them.
void mix(const std::vector<Query>& queries, const Latents& latents, int rank, float scale) {
    constexpr int BLOCK = 64;
    float weights[BLOCK];
    std::vector<float> tops(queries.size(), -INFINITY), totals(queries.size(), 0.0f);
    int longest = 0;
    for (const Query& one : queries) {
        longest = std::max(longest, one.seen);
        std::fill(one.out, one.out + rank, 0.0f);
    }
    for (int j = 0; j < longest; j += BLOCK)
        for (size_t i = 0; i < queries.size(); i++) {
            const Query& one = queries[i];
            const int n = std::min(BLOCK, one.seen - j);
            if (n <= 0) continue;
            const auto by_page = [&](auto&& each) {
                for (int at = 0, some; at < n; at += some) {
                    some = std::min(latents.page - (j + at) % latents.page, n - at);
                    each(weights + at, latents.at(j + at), some);
                }
            };
            by_page([&](float* to, const float* from, int some) { logits_of(one.q, from, some, latents.W, scale, to); });
            const float top = std::max(tops[i], largest_value(weights, n)), shrink = fast_exp(tops[i] - top);
            float total = 0;
            for (int k = 0; k < n; k++) total += weights[k] = fast_exp(weights[k] - top);
            tops[i] = top, totals[i] = totals[i] * shrink + total;
            if (shrink != 1.0f)
                for (int r = 0; r < rank; r++) one.out[r] *= shrink;
            by_page([&](float* by, const float* from, int some) { weighted_sum(by, from, some, latents.W, rank, one.out); });
        }
    for (size_t i = 0; i < queries.size(); i++)
        for (int r = 0; r < rank; r++) queries[i].out[r] *= 1.0f / totals[i];
}

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
        for (int n = t.starts[i]; n < t.starts[i + 1]; n++) {
            float* latent = latents.at(before + n);
            rms_norm_forward(&joint[static_cast<size_t>(n) * W], m.kv_norm, latent, 1, rank, m.eps);
            place(m, &joint[static_cast<size_t>(n) * W + rank], before + n, latent + rank);
        }
        const int first = t.starts[i] * H, pairs = t.starts[i + 1] * H - first;
        const int together = std::min(TOGETHER, (pairs + threads::members - 1) / threads::members);
        parallel((pairs + together - 1) / together, [&](int part) {
            std::vector<Query> queries;
            for (int at = part * together; at < std::min(pairs, (part + 1) * together); at++) {
                const size_t pair = first + at;  // token * H + head
                const int64_t position = before + (first + at) / H;
                place(m, &q[pair * Q + P], position, &latent_q[pair * W + rank]);
                queries.push_back({&latent_q[pair * W], static_cast<int>(position) + 1, &mixed[pair * rank]});
            }
            mix(queries, latents, rank, m.scale);
        });
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
