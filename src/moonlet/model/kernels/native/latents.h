// Softmax attention of queries in latent space to the cached latents of one sequence: out = sum_j p_j latent_j[:rank],
// p = softmax(scale q . latent), without the logits in memory (online softmax, Milakov and Gimelshein).
//
// Queries (heads of tokens) go four at a time over blocks of 16 latents, which stay in the nearest cache meanwhile;
// a block is two parts of 8, which may lie in different pages.
// Spans of 4,096 latents are averaged by themselves and then joined in order (as in flash decoding): where there are
// few queries, the team shares out the spans. Every sum has an order that depends on nothing but the positions: not on
// the other queries, the pages (of a multiple of 8 tokens), or the team.
// Shapes: q [W], out [rank], rank <= W; a latent is W numbers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fastmath.h"
#include "lines.h"
#include "rows.h"
#include "threads.h"
#include "vector.h"
#if defined(__FMA__)
#include <immintrin.h>
#endif

// The latents of one sequence.
struct Latents {
    float* memory;
    size_t row;
    const int* table;
    int page, W;
    float* at(int64_t token) const { return memory + table[token / page] * row + token % page * W; }
};

struct Query {
    const float* q;
    int seen;  // it attends to the first `seen` latents
    float* out;
};

namespace latent_attention {

constexpr int FOUR = 4, PART = 8, BLOCK = 2 * PART, SPAN = 4096, TOGETHER = 16;

static inline vec8& at(float* x) { return *reinterpret_cast<vec8*>(x); }
static inline const vec8& at(const float* x) { return *reinterpret_cast<const vec8*>(x); }

// Eight numbers in a register: left to itself GCC loads them again for every product that they go into.
static inline vec loaded(const float* x) {
    vec v = at(x);
#if defined(__AVX__)
    asm("" : "+x"(v));
#endif
    return v;
}

// a b + sum, as one instruction: left to itself -fassociative-math makes trees of products and sums, which are slower.
static inline vec fused(vec a, vec b, vec sum) {
#if defined(__FMA__)
    return _mm256_fmadd_ps(a, b, sum);
#else
    return a * b + sum;
#endif
}

// to[i][j] = scale q[i] . latent j of n <= PART latents, rows W apart, R queries; a whole part's products are one
// running vector each, and its sum.
template <int R>
static inline void logits_of(const float* const* q, const float* latents, int n, int W, float scale, float* const* to) {
    if (n < PART) {
        for (int i = 0; i < R; i++)
            for (int j = 0; j < n; j++) to[i][j] = scale * dot(q[i], latents + static_cast<size_t>(j) * W, W);
        return;
    }
    constexpr int ROWS = LANES / R;
    for (int j = 0; j < PART; j += ROWS) {
        const float* first = latents + static_cast<size_t>(j) * W;
        vec products[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES; i++) products[i] = vec{};
        int w = 0;
        for (; w + LANES <= W; w += LANES) {
            vec part[R];
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) part[i] = loaded(q[i] + w);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                __builtin_prefetch(first + (BLOCK + r) * W + w);
                const vec latent = loaded(first + r * W + w);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) products[r * R + i] = fused(part[i], latent, products[r * R + i]);
            }
        }
        vec done[LANES];  // what is handed over by its address is kept in memory, in the loop too
#pragma GCC unroll 8
        for (int i = 0; i < LANES; i++) done[i] = products[i];
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < R; i++) done[r * R + i][0] += dot(q[i] + w, first + r * W + w, W - w);
        const vec total = sums(done);
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < R; i++) to[i][j + r] = scale * total[r * R + i];
    }
}

// out[i] [size] += sum_j weights[i][j] x[j] over both parts of a block, R queries; 16 sums of each stay in registers.
template <int R>
static inline void weighted_sum(const float (*weights)[BLOCK], const float* const* parts, int n, int W, int size,
                                float* const* out) {
    int c = 0;
    for (; c + 16 <= size; c += 16) {
        vec total[R][2];
#pragma GCC unroll 4
        for (int i = 0; i < R; i++) total[i][0] = at(out[i] + c), total[i][1] = at(out[i] + c + 8);
        for (int j = 0; j < n; j++) {
            const float* row = parts[j / PART] + j % PART * W + c;
            const vec low = loaded(row), high = loaded(row + 8);
#pragma GCC unroll 4
            for (int i = 0; i < R; i++) {
                const vec weight = vec{} + weights[i][j];
                total[i][0] = fused(weight, low, total[i][0]);
                total[i][1] = fused(weight, high, total[i][1]);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < R; i++) at(out[i] + c) = total[i][0], at(out[i] + c + 8) = total[i][1];
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < n; j++)
            for (int k = c; k < size; k++) out[i][k] += weights[i][j] * parts[j / PART][j % PART * W + k];
}

// A mean that has taken up some latents: `out` is not yet divided by the total of the weights exp(logit - top).
struct Mean {
    float top = -INFINITY, total = 0;

    // Where a larger logit turns up, the sums so far shrink.
    void raise(float to, float* out, int rank) {
        if (!(to > top)) return;
        const float shrink = fast_exp(top - to);
        top = to, total *= shrink;
        for (int r = 0; r < rank; r++) out[r] *= shrink;
    }
};

// R queries over n <= BLOCK latents.
template <int R>
static inline void block(const float* const* q, const float* const* parts, int n, int W, int rank, float scale,
                         Mean* means, float* const* out) {
    float weights[R][BLOCK];
    for (int from = 0; from < n; from += PART) {
        float* to[R];
        for (int i = 0; i < R; i++) to[i] = weights[i] + from;
        logits_of<R>(q, parts[from / PART], std::min(PART, n - from), W, scale, to);
    }
    for (int i = 0; i < R; i++) {
        means[i].raise(largest_value(weights[i], n), out[i], rank);
        float total = 0;
        for (int j = 0; j < n; j++) total += weights[i][j] = fast_exp(weights[i][j] - means[i].top);
        means[i].total += total;
    }
    weighted_sum<R>(weights, parts, n, W, rank, out);
}

// `count` queries over span s, into means and out (count rows of rank), which are new.
static inline void over_span(const Query* queries, int count, int s, const Latents& latents, int rank, float scale,
                             Mean* means, float* const* out) {
    int longest = 0;
    for (int i = 0; i < count; i++) {
        longest = std::max(longest, queries[i].seen);
        means[i] = Mean();
        std::fill(out[i], out[i] + rank, 0.0f);
    }
    for (int j = s * SPAN; j < std::min(longest, (s + 1) * SPAN); j += BLOCK) {
        const float* parts[2] = {latents.at(j), j + PART < longest ? latents.at(j + PART) : nullptr};
        for (int i = 0, some; i < count; i += some) {
            const auto size = [&](int k) { return std::min(BLOCK, queries[k].seen - j); };
            some = i + FOUR <= count && size(i) == size(i + FOUR - 1) ? FOUR : 1;  // `seen` never falls
            const float* q[FOUR];
            for (int k = 0; k < some; k++) q[k] = queries[i + k].q;
            if (size(i) <= 0) continue;
            if (some == FOUR)
                block<FOUR>(q, parts, size(i), latents.W, rank, scale, means + i, out + i);
            else
                block<1>(q, parts, size(i), latents.W, rank, scale, means + i, out + i);
        }
    }
}

static inline void join(Mean& mean, float* out, Mean other, float* more, int rank) {
    const float top = std::max(mean.top, other.top);
    mean.raise(top, out, rank), other.raise(top, more, rank);
    mean.total += other.total;
    for (int r = 0; r < rank; r++) out[r] += more[r];
}

}  // namespace latent_attention

// Queries of one sequence, `seen` never falling.
static inline void mix(const std::vector<Query>& queries, const Latents& latents, int rank, float scale) {
    using namespace latent_attention;
    const int count = static_cast<int>(queries.size()), spans = (queries.back().seen + SPAN - 1) / SPAN;
    const int few = std::max(FOUR, count / threads::members), together = std::min(TOGETHER, spans > 1 ? count : few);
    const int groups = (count + together - 1) / together;
    const bool by_span = groups < 4 * threads::members;  // else a group goes through its spans
    const int parts = by_span ? spans : 1;
    std::vector<Mean> means(static_cast<size_t>(parts) * count);
    Floats later(static_cast<size_t>(parts - 1) * count * rank);
    // Where span s of a query has its sums: the first lies in the result itself.
    const auto sums_of = [&](int s, int i) {
        return s ? &later[(static_cast<size_t>(s - 1) * count + i) * rank] : queries[i].out;
    };
    threads::parallel(groups * parts, [&](int part) {
        const int from = part / parts * together, n = std::min(together, count - from), s = part % parts;
        float* out[TOGETHER];
        for (int i = 0; i < n; i++) out[i] = sums_of(s, from + i);
        Mean* mine = &means[static_cast<size_t>(s) * count + from];
        over_span(&queries[from], n, s, latents, rank, scale, mine, out);
        if (by_span || spans == 1) return;
        Floats room(static_cast<size_t>(n) * rank);
        Mean next[TOGETHER];
        float* more[TOGETHER];
        for (int i = 0; i < n; i++) more[i] = &room[static_cast<size_t>(i) * rank];
        for (int later_span = 1; later_span < spans; later_span++) {
            over_span(&queries[from], n, later_span, latents, rank, scale, next, more);
            for (int i = 0; i < n; i++) join(mine[i], out[i], next[i], more[i], rank);
        }
    });
    threads::ranges(count, TOGETHER, [&](int from, int to) {
        for (int i = from; i < to; i++) {
            for (int s = 1; s < parts; s++)
                join(means[i], queries[i].out, means[static_cast<size_t>(s) * count + i], sums_of(s, i), rank);
            for (int r = 0; r < rank; r++) queries[i].out[r] *= 1.0f / means[i].total;
        }
    });
}
