// What the parts of the decoder share: the structures that engine/packed.py fills in, field by field, and the two kinds of
// sublayer. Each takes the tokens of all sequences, x [N, d], and gives [N, d].
#pragma once
#include "fastmath.h"
#include "matrix.h"

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
    int experts, chosen, renormalize, on_disk;  // on_disk: the experts' panels are mapped from a file
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

struct Tokens {
    const int *rows, *starts;
    const int64_t* lengths;  // of the cache's rows, before these tokens
    Pages pages;
    int count, N;
};

constexpr int SOME_TOKENS = 16, FEW_TOKENS = 4;  // the least that a member takes of what is done to each; with exponentials

// Row by row, as the compiler's vectors and the rest of a loop may round differently: a row's place must not matter.
static inline void sigmoid_rows(float* x, int N, int width) {
    for (int i = 0; i < N; i++, x += width)
        for (int j = 0; j < width; j++) x[j] = fast_sigmoid(x[j]);
}

Buffer attend(const KDA& m, const float* x, const Tokens& t, const State& s);
Buffer attend(const MLA& m, const float* x, const Tokens& t, const State& s);
Buffer feed_forward(const MLP& m, Rows& x);
Buffer feed_forward(const MoE& m, Rows& x);

EXPORT void rms_norm_forward(const float*, const float*, float*, int, int, float);
EXPORT void decode(
    const Model*, const int64_t*, const int*, const int*, const int64_t*, const State*, const int*, int, int, const int*,
    float*, float*, int, int);
