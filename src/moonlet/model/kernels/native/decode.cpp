// The whole model over new tokens of cached sequences, in one call (twin: `Model.hidden` with a cache, then lm_head).
//
// The new tokens of all sequences lie one after another: sequence i has tokens [starts[i], starts[i + 1]) of x [N, d],
// its state is row rows[i] of the cache, its latents lie in the pages of that row's table. What acts on single tokens
// (projections, norms, experts) runs over all N; what has a memory (convolution, delta rule, attention) runs sequence by
// sequence. Every sum is taken in an order that depends on nothing else, so a sequence gets the same bits alone or in a
// batch, whole or token by token, in pages (of a multiple of 8 tokens) or in one piece.
//
// Equations: model/kda.py, mla.py (absorbed: keys and values are never built), moe.py, attn_res.py. Matrices come packed
// (matrix.h). Work is shared out by columns, heads, tokens and experts among a team of threads, and never by the terms of
// a sum.
#include "decode.h"

using threads::ranges;

EXPORT void attn_res_forward(const float* const*, const float*, const float*, float*, int, int, int, float, float);

namespace {

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

// logits [wanted.size(), vocab] after the tokens `wanted`; features [N, blocks, d], or NULL: what each block of layers
// adds up to (a plain residual is one block).
void pass(const Model& m, const int64_t* ids, const Tokens& t, const State* states, const std::vector<int>& wanted,
          float* logits, float* features) {
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
    const size_t blocks = s.banked.empty() ? 1 : s.banked.size();  // the first that is banked is the embedding
    for (size_t b = 0; features && b < blocks; b++) {
        const float* block = b + 1 < blocks ? s.banked[b + 1].get() : s.live.get();
        for (int i = 0; i < N; i++)
            std::memcpy(features + (i * blocks + b) * d, block + static_cast<size_t>(i) * d, sizeof(float) * d);
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
// tokens, lengths stay; features as in `pass`. Sequences go in groups of about 256 tokens, so that their activations stay in the cache.
EXPORT void decode(
    const Model* model, const int64_t* ids, const int* rows, const int* starts, const int64_t* lengths,
    const State* states, const int* table, int table_width, int page, const int* wanted, float* logits, float* features,
    int count, int team) {
    const threads::Team together(team);
    int blocks = 0;
    for (int i = 0; i < model->depth; i++) blocks += model->layers[i].banks;
    const size_t width = static_cast<size_t>(std::max(1, blocks)) * model->head.in;
    for (int from = 0, to; from < count; from = to) {
        to = from + 1;
        while (to < count && starts[to + 1] - starts[from] <= 256) to++;
        std::vector<int> local(starts + from, starts + to + 1), after;
        for (int& start : local) start -= starts[from];
        for (int i = from; i < to; i++)
            for (int back = wanted[i]; back > 0; back--) after.push_back(local[i - from + 1] - back);
        const Tokens t{rows + from, local.data(), lengths, {table, table_width, page}, to - from, local.back()};
        pass(*model, ids + starts[from], t, states, after, logits, features ? features + starts[from] * width : nullptr);
        logits += after.size() * model->head.out;
    }
}
