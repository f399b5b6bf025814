// The whole model over new tokens of cached sequences, in one call (twin: `Model.hidden` with a cache, then lm_head).
//
// The new tokens of all sequences lie one after another: sequence i has tokens [starts[i], starts[i + 1]) of x [N, d],
// its state is row rows[i] of the cache, its latents lie in the pages of that row's table. What acts on single tokens
// (projections, norms, experts) runs over all N; what has a memory (convolution, delta rule, attention) runs sequence by
// sequence. Every sum is taken in an order that depends on nothing else, so a sequence gets the same bits alone or in a
// batch, whole or token by token, in pages (of a multiple of 8 tokens) or in one piece.
//
// Equations: model/kda.py, mla.py (absorbed: keys and values are never built), moe.py, attn_res.py. Matrices come packed
// (gemm.h). The structures below are mirrored in engine/packed.py. Left out: threads (callers share out the sequences).
#include <memory>
#include <numeric>

#include "experts.h"
#include "vector.h"

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

struct Matrix {  // x [N, in] -> [N, out]; panels NULL: not there
    const float* panels;
    int in, out;
};

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

using Buffer = std::unique_ptr<float[]>;

Buffer buffer(size_t n) { return Buffer(new float[n]); }

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

Buffer apply(const Matrix& m, const float* x, int N) {
    Buffer y = buffer(static_cast<size_t>(N) * m.out);
    multiply_packed(x, {m.in, 1}, m.panels, m.in, y.get(), m.out, N, m.in, m.out, false);
    return y;
}

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

Buffer attend(const KDA& m, const float* x, const Tokens& t, const State& s) {
    const int N = t.N, H = m.heads, K = m.head_dim, C = H * K;
    const Buffer qkv = apply(m.qkv, x, N), raw = apply(m.f_b, apply(m.f_a, x, N).get(), N);
    Buffer beta = apply(m.beta, x, N), g = buffer(N * C), q = buffer(N * C), k = buffer(N * C), v = buffer(N * C);
    sigmoid_rows(beta.get(), N, H);
    kda_gate_forward(raw.get(), m.dt_bias, m.A_log, g.get(), m.bounded, m.lower, N, H, K);
    Buffer o = buffer(N * C);
    for (int i = 0; i < t.count; i++) {
        const int n = t.starts[i + 1] - t.starts[i];
        const size_t at = static_cast<size_t>(t.starts[i]) * C;
        float *past = s.conv + t.rows[i] * s.conv_row, *S = s.memory + t.rows[i] * s.memory_row;
        conv_forward(&qkv[3 * at], m.taps, past, nullptr, &q[at], &k[at], &v[at], 1, n, H, K, m.width, m.l2_eps);
        shift(past, &qkv[3 * at], n, m.width - 1, 3 * C);
        kda_forward(&q[at], &k[at], &v[at], &g[at], &beta[static_cast<size_t>(t.starts[i]) * H], S, nullptr, &o[at], S,
                    nullptr, nullptr, 1, n, H, K, K);
    }
    const Buffer gate = m.g_a.panels ? apply(m.g, apply(m.g_a, x, N).get(), N) : apply(m.g, x, N);
    gated_norm_forward(o.get(), m.o_norm, gate.get(), q.get(), m.eps, N * H, K);
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

Buffer attend(const MLA& m, const float* x, const Tokens& t, const State& s) {
    const int N = t.N, H = m.heads, P = m.k_up.in, rank = m.k_up.out, V = m.v_up.out, W = rank + m.rope, Q = P + m.rope;
    Buffer q, joint = apply(m.kv_a, x, N), latent_q = buffer(static_cast<size_t>(N) * H * W);
    if (m.q_a.panels) {
        Buffer low = apply(m.q_a, x, N), normed = buffer(static_cast<size_t>(N) * m.q_a.out);
        rms_norm_forward(low.get(), m.q_norm, normed.get(), N, m.q_a.out, m.eps);
        q = apply(m.q, normed.get(), N);
    } else {
        q = apply(m.q, x, N);
    }
    for (int h = 0; h < H; h++)
        multiply_packed(q.get() + h * Q, {H * Q, 1}, m.k_up.panels + h * packed_size(P, rank), P,
                        latent_q.get() + h * W, H * W, N, P, rank, false);
    Buffer mixed = buffer(static_cast<size_t>(N) * H * rank);
    std::vector<float> weights;
    for (int i = 0; i < t.count; i++) {
        const int* table = t.pages.table + static_cast<size_t>(t.rows[i]) * t.pages.width;
        const Latents latents{s.memory, s.memory_row, table, t.pages.page, W};
        for (int n = t.starts[i]; n < t.starts[i + 1]; n++) {
            const int64_t position = t.lengths[t.rows[i]] + n - t.starts[i];
            float* latent = latents.at(position);
            rms_norm_forward(&joint[static_cast<size_t>(n) * W], m.kv_norm, latent, 1, rank, m.eps);
            place(m, &joint[static_cast<size_t>(n) * W + rank], position, latent + rank);
            weights.resize(position + 1);
            for (int h = 0; h < H; h++) {
                const size_t at = static_cast<size_t>(n) * H + h;
                place(m, &q[at * Q + P], position, &latent_q[at * W + rank]);
                mix(&latent_q[at * W], latents, position + 1, rank, m.scale, weights.data(), &mixed[at * rank]);
            }
        }
    }
    Buffer o = buffer(static_cast<size_t>(N) * H * V);
    for (int h = 0; h < H; h++)
        multiply_packed(mixed.get() + h * rank, {H * rank, 1}, m.v_up.panels + h * packed_size(rank, V), rank,
                        o.get() + h * V, H * V, N, rank, V, false);
    if (m.g.panels) {
        const Buffer gate = apply(m.g, x, N);
        sigmoid_rows(gate.get(), N, H * V);
        for (int i = 0; i < N * H * V; i++) o[i] *= gate[i];
    }
    return apply(m.o, o.get(), N);
}

Buffer feed_forward(const MLP& m, const float* x, int N) {
    const int I = m.gate.out;
    const Buffer gate = apply(m.gate, x, N), up = apply(m.up, x, N);
    const Glu glu{m.beta, m.linear};
    for (int i = 0; i < N; i++) glu.forward(&gate[i * I], &up[i * I], &gate[i * I], I);
    return apply(m.down, gate.get(), N);
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

Buffer feed_forward(const MoE& m, const float* x, int N) {
    const int E = m.experts, k = m.chosen, L = m.w1.in, I = m.w1.out;
    Buffer scores = apply(m.router, x, N), p = buffer(static_cast<size_t>(N) * k);
    std::vector<int64_t> chosen(static_cast<size_t>(N) * k), order(chosen.size()), starts(E + 1);
    sigmoid_rows(scores.get(), N, E);
    for (int i = 0; i < N; i++) choose(m, &scores[i * E], &chosen[i * k], &p[i * k]);
    Buffer low = m.down.panels ? apply(m.down, x, N) : nullptr, u = buffer(static_cast<size_t>(N) * L);
    Buffer joint = buffer(static_cast<size_t>(N) * k * 2 * I);
    const auto packed = [&](int e) {
        const size_t in = e * packed_size(L, I), out = e * packed_size(I, L);
        return Expert{m.w1.panels + in, m.w3.panels + in, m.w2.panels + out};
    };
    run_experts(low ? low.get() : x, chosen.data(), p.get(), packed, u.get(), joint.get(), order.data(), starts.data(),
                N, k, E, L, I, Glu{m.beta, m.linear});
    if (m.norm) {
        Buffer normed = buffer(static_cast<size_t>(N) * L);
        rms_norm_forward(u.get(), m.norm, normed.get(), N, L, m.eps);
        u.swap(normed);
    }
    Buffer y = m.up.panels ? apply(m.up, u.get(), N) : std::move(u);
    if (m.shared.gate.panels) {
        const Buffer more = feed_forward(m.shared, x, N);
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
        if (banked.empty()) {
            rms_norm_forward(live.get(), norm, h.get(), rows, d, eps);
            return h;
        }
        std::vector<const float*> sources;
        for (const Buffer& b : banked) sources.push_back(b.get());
        sources.push_back(live.get());
        attn_res_forward(sources.data(), query, norm, h.get(), rows, d, static_cast<int>(sources.size()), eps, eps);
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
        s.add((layer.moe ? feed_forward(*layer.moe, x.get(), N) : feed_forward(*layer.mlp, x.get(), N)).get());
    }
    if (wanted.empty()) return;
    const int n = static_cast<int>(wanted.size());
    const Buffer h = s.only(wanted.data(), n).read(m.query, m.norm);
    multiply_packed(h.get(), {d, 1}, m.head.panels, d, logits, m.head.out, n, d, m.head.out, false);
}

}  // namespace

EXPORT void pack_matrix(const float* W, float* panels, int in, int out) { pack(W, {1, in}, in, out, panels); }

// ids [N] -> the logits after the last `wanted[i]` tokens of each sequence, one below the other; the states take up the
// tokens, lengths stay. Sequences go in groups of about 256 tokens, so that their activations stay in the cache.
EXPORT void decode(
    const Model* model, const int64_t* ids, const int* rows, const int* starts, const int64_t* lengths,
    const State* states, const int* table, int table_width, int page, const int* wanted, float* logits, int count) {
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
