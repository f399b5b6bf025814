// The whole model over new tokens of cached sequences, in one call (twin: `Model.hidden` with a cache, then lm_head).
//
// The new tokens of all sequences lie one after another: sequence i has tokens [starts[i], starts[i + 1]) of x [N, d],
// its state is row rows[i] of the cache, its latents lie in the pages of that row's table. What acts on single tokens
// (projections, norms, experts) runs over all N; what has a memory (convolution, delta rule, attention) runs sequence by
// sequence. Every sum is taken in an order that depends on nothing else, so a sequence gets the same bits alone or in a
// batch, whole or token by token, in pages (of a multiple of 8 tokens) or in one piece.
//
// Equations: model/kda.py, mla.py (absorbed: keys and values are never built), moe.py, attn_res.py. Matrices come packed
// (matrix.h). The structures below are mirrored in engine/packed.py. Work is shared out by columns, heads, tokens and
// experts among a team of threads, and never by the terms of a sum.
#include <numeric>

#include "experts.h"
#include "matrix.h"
#include "vector.h"

using threads::parallel;
using threads::ranges;

EXPORT void attn_res_forward(const float* const*, const float*, const float*, float*, int, int, int, float, float);
EXPORT void rms_norm_forward(const float*, const float*, float*, int, int, float);
EXPORT void gated_norm_forward(const float*, const float*, const float*, float*, float, int, int);
EXPORT void kda_gate_forward(const float*, const float*, const float*, float*, int, float, int, int, int);
EXPORT void conv_forward(
    const float*, const float*, const float*, const int64_t*, float*, float*, float*, int, int, int, int, int, float);
EXPORT void kda_forward(
    const float*, const float*, const float*, const float*, const float*, const float*, const int64_t*, float*, float*,
    float*, float*, int, int, int, int, int);

extern "C" {

struct KDA {
    Matrix qkv, f_a, f_b, beta, g_a, g, o;  // g_a only where the gate is low rank
    const float *taps, *dt_bias, *A_log, *o_norm;
    int heads, head_dim, width, bounded;
    float lower, eps, l2_eps;
};

struct MLA {
    Matrix q_a, q, kv_a, k_up, v_up, g, o;  // k_up (nope -> rank), v_up (rank -> v): one after another, a head each
    const float *q_norm, *kv_norm, *frequencies;  // frequencies NULL: no rotation
    int heads, rope;
    float scale, rotation, eps;
};

struct MLP {
    Matrix gate, up, down;
    float beta, linear;
};

struct MoE {
    Matrix router, down, up, w1, w3, w2;  // w1, w3, w2: one after another, an expert each
    const float *bias, *norm;
    int experts, chosen, renormalize;
    float factor, beta, linear, eps;
    MLP shared;
};

struct Layer {
    const KDA* kda;  // NULL: mla
    const MLA* mla;
    const MoE* moe;  // NULL: mlp
    const MLP* mlp;
    const float *attention_query, *attention_norm, *ffn_query, *ffn_norm;  // queries NULL: a plain residual
    int banks;  // the live sum is banked behind this layer's attention
};

struct Model {
    const float* embedding;
    const Layer* layers;
    const float *query, *norm;
    Matrix head;
    int depth;
    float eps;
};

struct State {  // of one layer
    float* memory;  // KDA, a row a sequence: S [H, K, K];  MLA, a row a page: latents [page, rank + rope]
    float* conv;    // KDA: [width - 1, 3 H K]
    size_t memory_row, conv_row;
};

struct Pages {  // which pages each row of the cache has, in order
    const int* table;  // [rows, width]
    int width, page;   // tokens of a page
};
}

namespace {

struct Tokens {
    const int *rows, *starts;
    const int64_t* lengths;  // of the cache's rows, before these tokens
    Pages pages;
    int count, N;
};

// The latents of one sequence.
struct Latents {
    float* memory;
    size_t row;
    const int* table;
    int page, W;
    float* at(int64_t token) const { return memory + table[token / page] * row + token % page * W; }
};

// Row by row, as the compiler's vectors and the rest of a loop may round differently: a row's place must not matter.
void sigmoid_rows(float* x, int N, int width) {
    for (int i = 0; i < N; i++, x += width)
        for (int j = 0; j < width; j++) x[j] = fast_sigmoid(x[j]);
}

// Keeps the last width - 1 inputs of (past, x [n, C]) in past.
void shift(float* past, const float* x, int n, int keep, int C) {
    const int old = std::max(0, keep - n);
    std::memmove(past, past + static_cast<size_t>(keep - old) * C, sizeof(float) * old * C);
    std::memcpy(past + static_cast<size_t>(old) * C, x + static_cast<size_t>(n - (keep - old)) * C,
                sizeof(float) * (keep - old) * C);
}

constexpr int SOME_TOKENS = 16;  // the least that a member takes of work that goes token by token

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

Buffer attend(const KDA& m, const float* input, const Tokens& t, const State& s) {
    const int N = t.N, H = m.heads, K = m.head_dim, C = H * K;
    Rows x(input, m.qkv.in, N);
    const Buffer qkv = apply(m.qkv, x), raw = apply(m.f_b, apply(m.f_a, x).get(), N);
    Buffer beta = apply(m.beta, x), g = buffer(N * C), q = buffer(N * C), k = buffer(N * C), v = buffer(N * C);
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
    const Buffer gate = m.g_a.panels ? apply(m.g, apply(m.g_a, x).get(), N) : apply(m.g, x);
    ranges(N, SOME_TOKENS, [&](int from, int to) {
        gated_norm_forward(&o[from * C], m.o_norm, &gate[from * C], &q[from * C], m.eps, (to - from) * H, K);
    });
    return apply(m.o, q.get(), N);
}

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
        vec products[8] = {};
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

// q [W] against the first `seen` latents -> the mean [rank] of their first parts, weighted by softmax(scale q . latent).
void mix(const float* q, const Latents& latents, int seen, int rank, float scale, float* weights, float* out) {
    const int page = latents.page, W = latents.W;
    for (int j = 0; j < seen; j += page)
        logits_of(q, latents.at(j), std::min(page, seen - j), W, scale, weights + j);
    const float top = largest_value(weights, seen);
    float sum = 0;
    for (int j = 0; j < seen; j++) sum += weights[j] = fast_exp(weights[j] - top);
    const float inverse = 1.0f / sum;
    for (int j = 0; j < seen; j++) weights[j] *= inverse;
    std::fill(out, out + rank, 0.0f);
    for (int j = 0; j < seen; j += page)
        weighted_sum(weights + j, latents.at(j), std::min(page, seen - j), W, rank, out);
}

Buffer attend(const MLA& m, const float* input, const Tokens& t, const State& s) {
    const int N = t.N, H = m.heads, P = m.k_up.in, rank = m.k_up.out, V = m.v_up.out, W = rank + m.rope, Q = P + m.rope;
    Rows x(input, m.kv_a.in, N);
    Buffer q, joint = apply(m.kv_a, x), latent_q = buffer(static_cast<size_t>(N) * H * W);
    if (m.q_a.panels) {
        Buffer low = apply(m.q_a, x), normed = buffer(static_cast<size_t>(N) * m.q_a.out);
        rms_norm_forward(low.get(), m.q_norm, normed.get(), N, m.q_a.out, m.eps);
        q = apply(m.q, normed.get(), N);
    } else {
        q = apply(m.q, x);
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
        parallel((t.starts[i + 1] - t.starts[i]) * H, [&](int part) {
            const int n = t.starts[i] + part / H;
            const size_t at = static_cast<size_t>(n) * H + part % H;
            thread_local std::vector<float> weights;
            weights.resize(before + n + 1);
            place(m, &q[at * Q + P], before + n, &latent_q[at * W + rank]);
            mix(&latent_q[at * W], latents, before + n + 1, rank, m.scale, weights.data(), &mixed[at * rank]);
        });
    }
    Buffer o = buffer(static_cast<size_t>(N) * H * V);
    parallel(H, [&](int h) {
        Rows mine(mixed.get() + h * rank, H * rank, N);
        apply(nth(m.v_up, h), mine, o.get() + h * V, H * V);
    });
    if (m.g.panels) {
        const Buffer gate = apply(m.g, x);
        sigmoid_rows(gate.get(), N, H * V);
        for (int i = 0; i < N * H * V; i++) o[i] *= gate[i];
    }
    return apply(m.o, o.get(), N);
}

Buffer feed_forward(const MLP& m, Rows& x) {
    const int I = m.gate.out;
    const Buffer gate = apply(m.gate, x), up = apply(m.up, x);
    const Glu glu{m.beta, m.linear};
    ranges(x.N, SOME_TOKENS, [&](int from, int to) {
        for (int i = from; i < to; i++) glu.forward(&gate[i * I], &up[i * I], &gate[i * I], I);
    });
    return apply(m.down, gate.get(), x.N);
}

// The chosen experts of one token, s [E] its scores: the largest of s + bias, and their weights.
void choose(const MoE& m, const float* s, int64_t* chosen, float* p) {
    std::vector<int64_t> order(m.experts);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + m.chosen, order.end(), [&](int64_t a, int64_t b) {
        return s[a] + m.bias[a] > s[b] + m.bias[b];
    });
    float sum = 1e-20f;
    for (int i = 0; i < m.chosen; i++) {
        chosen[i] = order[i];
        sum += p[i] = s[order[i]];
    }
    for (int i = 0; i < m.chosen; i++) p[i] = (m.renormalize ? p[i] / sum : p[i]) * m.factor;
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

Buffer feed_forward(const MoE& m, Rows& x) {
    const int N = x.N, E = m.experts, k = m.chosen, L = m.w1.in;
    Buffer scores = apply(m.router, x), p = buffer(static_cast<size_t>(N) * k);
    std::vector<int64_t> chosen(static_cast<size_t>(N) * k);
    sigmoid_rows(scores.get(), N, E);
    for (int i = 0; i < N; i++) choose(m, &scores[i * E], &chosen[i * k], &p[i * k]);
    const Buffer low = m.down.panels ? apply(m.down, x) : nullptr;
    Rows latent(low.get(), L, N);
    Rows& z = low ? latent : x;
    Buffer u = m.w1.kind == FLOAT ? float_experts(m, z, chosen.data(), p.get())
                                  : quantised_experts(m, z, chosen.data(), p.get());
    if (m.norm) {
        Buffer normed = buffer(static_cast<size_t>(N) * L);
        rms_norm_forward(u.get(), m.norm, normed.get(), N, L, m.eps);
        u.swap(normed);
    }
    Buffer y = m.up.panels ? apply(m.up, u.get(), N) : std::move(u);
    if (m.shared.gate.panels) {
        const Buffer more = feed_forward(m.shared, x);
        for (int i = 0; i < N * m.shared.down.out; i++) y[i] += more[i];
    }
    return y;
}

// The residual stream of `rows` tokens: banked block sums and the live one, each [rows, d] (AttnRes), or the live alone.
struct Stream {
    std::vector<Buffer> banked;
    Buffer live;
    int rows, d;
    float eps;

    // What a sublayer reads: the norm of the mix.
    Buffer read(const float* query, const float* norm) const {
        Buffer h = buffer(static_cast<size_t>(rows) * d);
        ranges(rows, SOME_TOKENS, [&](int from, int to) {
            const size_t at = static_cast<size_t>(from) * d;
            if (banked.empty()) return rms_norm_forward(&live[at], norm, &h[at], to - from, d, eps);
            std::vector<const float*> sources;
            for (const Buffer& b : banked) sources.push_back(&b[at]);
            sources.push_back(&live[at]);
            attn_res_forward(sources.data(), query, norm, &h[at], to - from, d, static_cast<int>(sources.size()), eps, eps);
        });
        return h;
    }
    void add(const float* o) {
        for (size_t i = 0; i < static_cast<size_t>(rows) * d; i++) live[i] += o[i];
    }
    // The stream of some tokens alone.
    Stream only(const int* tokens, int n) const {
        Stream s{{}, take(live, tokens, n), n, d, eps};
        for (const Buffer& b : banked) s.banked.push_back(take(b, tokens, n));
        return s;
    }
    Buffer take(const Buffer& from, const int* tokens, int n) const {
        Buffer to = buffer(static_cast<size_t>(n) * d);
        for (int i = 0; i < n; i++)
            std::memcpy(&to[static_cast<size_t>(i) * d], &from[static_cast<size_t>(tokens[i]) * d], sizeof(float) * d);
        return to;
    }
};

// logits [wanted.size(), vocab] after the tokens `wanted`.
void pass(const Model& m, const int64_t* ids, const Tokens& t, const State* states, const std::vector<int>& wanted,
          float* logits) {
    const int N = t.N, d = m.head.in;
    Stream s{{}, buffer(static_cast<size_t>(N) * d), N, d, m.eps};
    for (int i = 0; i < N; i++) std::memcpy(&s.live[static_cast<size_t>(i) * d], m.embedding + ids[i] * d, sizeof(float) * d);
    for (int i = 0; i < m.depth; i++) {
        const Layer& layer = m.layers[i];
        Buffer x = s.read(layer.attention_query, layer.attention_norm);
        Buffer o = layer.kda ? attend(*layer.kda, x.get(), t, states[i]) : attend(*layer.mla, x.get(), t, states[i]);
        if (layer.banks) {
            s.banked.push_back(std::move(s.live));
            s.live = std::move(o);
        } else {
            s.add(o.get());
        }
        x = s.read(layer.ffn_query, layer.ffn_norm);
        Rows rows(x.get(), d, N);
        s.add((layer.moe ? feed_forward(*layer.moe, rows) : feed_forward(*layer.mlp, rows)).get());
    }
    if (wanted.empty()) return;
    const int n = static_cast<int>(wanted.size());
    const Buffer h = s.only(wanted.data(), n).read(m.query, m.norm);
    Rows rows(h.get(), d, n);
    apply(m.head, rows, logits, m.head.out);
}

}  // namespace

EXPORT void pack_matrix(const float* W, float* panels, int in, int out) { pack(W, {1, in}, in, out, panels); }

// ids [N] -> the logits after the last `wanted[i]` tokens of each sequence, one below the other; the states take up the
// tokens, lengths stay. Sequences go in groups of about 256 tokens, so that their activations stay in the cache.
EXPORT void decode(
    const Model* model, const int64_t* ids, const int* rows, const int* starts, const int64_t* lengths,
    const State* states, const int* table, int table_width, int page, const int* wanted, float* logits, int count,
    int team) {
    const threads::Team together(team);
    for (int from = 0, to; from < count; from = to) {
        to = from + 1;
        while (to < count && starts[to + 1] - starts[from] <= 256) to++;
        std::vector<int> local(starts + from, starts + to + 1), after;
        for (int& start : local) start -= starts[from];
        for (int i = from; i < to; i++)
            for (int back = wanted[i]; back > 0; back--) after.push_back(local[i - from + 1] - back);
        const Tokens t{rows + from, local.data(), lengths, {table, table_width, page}, to - from, local.back()};
        pass(*model, ids + starts[from], t, states, after, logits);
        logits += after.size() * model->head.out;
    }
}
