// A chain of guesses by a draft, for several sequences, in one call (model/draft.py has the equations).
//
// The draft's layer runs as a model of one layer: its rows x_t stand where an embedding would, and what it adds up to, g_t,
// is a feature of that model. The first step takes all tokens that the draft is behind, each with the model's features of
// the place before it; every further one takes the last guess, with the draft's own output in the features' place.
#include "decode.h"

extern "C" {
struct Draft {
    Model layer;  // its embedding is not used
    const float *embedding, *embedding_norm, *feature_norm;
    Matrix fuse, join;  // the features of some blocks -> d, 2 d -> d
};
}

namespace {

Buffer inputs(const Draft& m, const std::vector<int64_t>& ids, const float* h) {
    const int N = static_cast<int>(ids.size()), d = m.layer.head.in;
    Buffer both = buffer(static_cast<size_t>(N) * 2 * d);
    float* to = both.get();
    for (int i = 0; i < N; i++, h += d, to += 2 * d) {
        rms_norm_forward(m.embedding + ids[i] * d, m.embedding_norm, to, 1, d, m.layer.eps);
        rms_norm_forward(h, m.feature_norm, to + d, 1, d, m.layer.eps);
    }
    return apply(m.join, both.get(), N);
}

// The likeliest token of `vocab` logits; *p: its probability.
int likeliest(const float* logits, int vocab, float* p) {
    int best = 0;
    for (int v = 1; v < vocab; v++)
        if (logits[v] > logits[best]) best = v;
    float sum = 0;
    for (int v = 0; v < vocab; v++) sum += fast_exp(logits[v] - logits[best]);
    *p = 1.0f / sum;
    return best;
}

}  // namespace

// Sequence i has tokens [starts[i], starts[i + 1]) of ids and of features; its latents take them up behind its first
// lengths[row]. features [N, fuse.in]. guesses [count, most] and made [count] take at most `most` guesses each: those before the first of which
// the draft is less sure than `sure`. With `most` 0 the tokens are taken up and nothing is guessed.
EXPORT void draft_chain(
    const Draft* draft, const int64_t* ids, const int* rows, const int* starts, const int64_t* lengths,
    const State* state, const int* table, int table_width, int page, const float* features, int64_t* guesses, int* made,
    int count, int most, float sure, int team) {
    const int d = draft->layer.head.in, vocab = draft->layer.head.out;
    std::vector<int> which(count), row(rows, rows + count), start(starts, starts + count + 1), wanted(count, most > 0);
    for (int i = 0; i < count; i++) which[i] = i, made[i] = 0;
    std::vector<int64_t> tokens(ids, ids + starts[count]), places;
    std::vector<int64_t> length(lengths, lengths + *std::max_element(rows, rows + count) + 1);
    Buffer before = apply(draft->fuse, features, starts[count]);
    for (int step = 0; !which.empty(); step++) {
        const int n = static_cast<int>(which.size()), N = static_cast<int>(tokens.size());
        const Buffer x = inputs(*draft, tokens, before.get());
        Buffer g = buffer(static_cast<size_t>(N) * d), logits = buffer(static_cast<size_t>(n) * vocab);
        Model layer = draft->layer;
        layer.embedding = x.get();
        for (int i = static_cast<int>(places.size()); i < N; i++) places.push_back(i);
        decode(&layer, places.data(), row.data(), start.data(), length.data(), state, table, table_width, page,
               wanted.data(), logits.get(), g.get(), n, team);
        int kept = 0;
        tokens.clear();
        before = buffer(static_cast<size_t>(n) * d);
        for (int i = 0; i < n && step < most; i++) {
            float p;
            const int best = likeliest(&logits[static_cast<size_t>(i) * vocab], vocab, &p);
            if (!(p >= sure)) continue;  // nor where it is no number
            guesses[which[i] * most + step] = best;
            made[which[i]] = step + 1;
            if (step + 1 == most) continue;
            length[row[i]] += start[i + 1] - start[i];
            std::memcpy(&before[static_cast<size_t>(kept) * d], &g[static_cast<size_t>(start[i + 1] - 1) * d], sizeof(float) * d);
            which[kept] = which[i], row[kept] = row[i];
            tokens.push_back(best);
            kept++;
        }
        which.resize(kept), row.resize(kept), wanted.resize(kept);
        start.resize(kept + 1);
        for (int i = 0; i <= kept; i++) start[i] = i;
    }
}
