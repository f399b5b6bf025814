// Causal attention of MLA in blocks of query rows, keys beyond the diagonal or before the document never touched.
//
//   q [B, T, H, P + R];  kv [B, T, H, P + V] = (k_nope | v);  k_r [B, T, R] shared by all heads;  o [B, T, H, V]
//   logits = scale q . (k_nope | k_r);  o = softmax(logits) v;  lse [B, H, T];  largest [H] = max logit of each head
//
// segments [B, T] (or NULL): tokens see their own document only; a document is a run of equal numbers. The backward
// pass recomputes the weights from lse. Everything of one block (48 rows by the keys they see) stays in the cache.
#include "fastmath.h"
#include "gemm.h"
#include "rows.h"

namespace {

constexpr int BLOCK = 48;

struct Shape {
    int B, T, H, P, R, V;
    int K() const { return P + R; }
};

// first[t]: where the document of token t starts.
void find_first(const int64_t* segments, int T, int* first) {
    for (int t = 0; t < T; t++) first[t] = segments && t && segments[t] == segments[t - 1] ? first[t - 1] : t;
    if (!segments) std::fill(first, first + T, 0);
}

// Keys of one head in one piece: k [T, P + R].
void join_keys(const Shape& s, const float* kv, const float* k_r, float* k) {
    const ptrdiff_t step = static_cast<ptrdiff_t>(s.H) * (s.P + s.V);
    for (int t = 0; t < s.T; t++) {
        std::memcpy(k + t * s.K(), kv + t * step, sizeof(float) * s.P);
        std::memcpy(k + t * s.K() + s.P, k_r + t * s.R, sizeof(float) * s.R);
    }
}

// Keys that a block of rows [from, to) works on: whole panels, from the first row's document on.
int first_key(const int* first, int from) { return first[from] / PANEL * PANEL; }

}  // namespace

EXPORT void attention_forward(
    const float* q, const float* kv, const float* k_r, const int64_t* segments, float* o, float* lse, float* largest,
    int B, int T, int H, int P, int R, int V, float scale) {
    const Shape s{B, T, H, P, R, V};
    const int K = s.K();
    const ptrdiff_t q_step = static_cast<ptrdiff_t>(H) * K, kv_step = static_cast<ptrdiff_t>(H) * (P + V);
    const ptrdiff_t o_step = static_cast<ptrdiff_t>(H) * V;
    Floats k(static_cast<size_t>(T) * K), keys(packed_size(K, T)), values(packed_size(T, V));
    Floats weights(static_cast<size_t>(BLOCK) * T);
    std::vector<int> first(T);
    std::fill(largest, largest + H, -INFINITY);
    for (int b = 0; b < B; b++) {
        find_first(segments ? segments + static_cast<ptrdiff_t>(b) * T : nullptr, T, first.data());
        for (int h = 0; h < H; h++) {
            const ptrdiff_t row = static_cast<ptrdiff_t>(b) * T;
            const float *q_h = q + row * q_step + h * K, *kv_h = kv + row * kv_step + h * (P + V);
            float *o_h = o + row * o_step + h * V, *lse_h = lse + (static_cast<ptrdiff_t>(b) * H + h) * T;
            join_keys(s, kv_h, k_r + row * R, k.data());
            pack(k.data(), {1, K}, K, T, keys.data());
            pack(kv_h + P, {kv_step, 1}, T, V, values.data());
            for (int from = 0; from < T; from += BLOCK) {
                const int count = std::min(BLOCK, T - from), low = first_key(first.data(), from);
                const int n = from + count - low;
                multiply_packed(
                    q_h + from * q_step, {q_step, 1}, &keys[static_cast<size_t>(low) * K], K, weights.data(), n,
                    count, K, n, false);
                for (int i = 0; i < count; i++) {
                    float* w = &weights[static_cast<size_t>(i) * n];
                    const int start = first[from + i] - low, end = from + i + 1 - low;
                    float sum = 0;
                    for (int j = start; j < end; j++) w[j] *= scale;
                    const float top = largest_value(w + start, end - start);
                    for (int j = start; j < end; j++) sum += w[j] = fast_exp(w[j] - top);
                    const float inverse = 1.0f / sum;
                    for (int j = start; j < end; j++) w[j] *= inverse;
                    std::fill(w, w + start, 0.0f);
                    std::fill(w + end, w + n, 0.0f);
                    lse_h[from + i] = top + std::log(sum);
                    largest[h] = top > largest[h] ? top : largest[h];
                }
                multiply_packed(
                    weights.data(), {n, 1}, &values[static_cast<size_t>(low) * PANEL], T, o_h + from * o_step, o_step,
                    count, n, V, false);
            }
        }
    }
}

EXPORT void attention_backward(
    const float* d_o, const float* q, const float* kv, const float* k_r, const int64_t* segments,
    const float* lse, float* d_q, float* d_kv, float* d_k_r, int B, int T, int H, int P, int R, int V, float scale) {
    const Shape s{B, T, H, P, R, V};
    const int K = s.K();
    const ptrdiff_t q_step = static_cast<ptrdiff_t>(H) * K, kv_step = static_cast<ptrdiff_t>(H) * (P + V);
    const ptrdiff_t o_step = static_cast<ptrdiff_t>(H) * V;
    Floats k(static_cast<size_t>(T) * K), keys(packed_size(K, T)), rows_of_k(packed_size(T, K));
    Floats values(packed_size(V, T)), d_k(static_cast<size_t>(T) * K), scratch;
    Floats weights(static_cast<size_t>(BLOCK) * T), d_logits(static_cast<size_t>(BLOCK) * T);
    std::vector<int> first(T);
    std::memset(d_kv, 0, sizeof(float) * B * T * kv_step);
    std::memset(d_k_r, 0, sizeof(float) * B * T * R);
    for (int b = 0; b < B; b++) {
        find_first(segments ? segments + static_cast<ptrdiff_t>(b) * T : nullptr, T, first.data());
        for (int h = 0; h < H; h++) {
            const ptrdiff_t row = static_cast<ptrdiff_t>(b) * T;
            const float *q_h = q + row * q_step + h * K, *kv_h = kv + row * kv_step + h * (P + V);
            const float *d_o_h = d_o + row * o_step + h * V, *lse_h = lse + (static_cast<ptrdiff_t>(b) * H + h) * T;
            float *d_q_h = d_q + row * q_step + h * K, *d_kv_h = d_kv + row * kv_step + h * (P + V);
            join_keys(s, kv_h, k_r + row * R, k.data());
            pack(k.data(), {1, K}, K, T, keys.data());
            pack(k.data(), {K, 1}, T, K, rows_of_k.data());
            pack(kv_h + P, {1, kv_step}, V, T, values.data());
            std::fill(d_k.begin(), d_k.end(), 0.0f);
            for (int from = 0; from < T; from += BLOCK) {
                const int count = std::min(BLOCK, T - from), low = first_key(first.data(), from);
                const int n = from + count - low;
                const float *q_block = q_h + from * q_step, *d_o_block = d_o_h + from * o_step;
                multiply_packed(
                    q_block, {q_step, 1}, &keys[static_cast<size_t>(low) * K], K, weights.data(), n, count, K, n,
                    false);
                multiply_packed(
                    d_o_block, {o_step, 1}, &values[static_cast<size_t>(low) * V], V, d_logits.data(), n, count, V, n,
                    false);
                for (int i = 0; i < count; i++) {
                    float *w = &weights[static_cast<size_t>(i) * n], *d_w = &d_logits[static_cast<size_t>(i) * n];
                    const int start = first[from + i] - low, end = from + i + 1 - low;
                    const float norm = lse_h[from + i];
                    float sum = 0, inner = 0;  // the sum is 1 but for rounding, which must cancel in d_w - mean
                    for (int j = start; j < end; j++) {
                        w[j] = fast_exp(w[j] * scale - norm);
                        sum += w[j];
                        inner += w[j] * d_w[j];
                    }
                    const float mean = inner / sum;
                    for (int j = start; j < end; j++) d_w[j] = w[j] * (d_w[j] - mean) * scale;
                    std::fill(w, w + start, 0.0f);
                    std::fill(w + end, w + n, 0.0f);
                    std::fill(d_w, d_w + start, 0.0f);
                    std::fill(d_w + end, d_w + n, 0.0f);
                }
                multiply_packed(
                    d_logits.data(), {n, 1}, &rows_of_k[static_cast<size_t>(low) * PANEL], T, d_q_h + from * q_step,
                    q_step, count, n, K, false);
                multiply(
                    d_logits.data(), {1, n}, q_block, {q_step, 1}, &d_k[static_cast<size_t>(low) * K], K, n, count, K,
                    true, scratch);
                multiply(
                    weights.data(), {1, n}, d_o_block, {o_step, 1}, d_kv_h + low * kv_step + P, kv_step, n, count, V,
                    true, scratch);
            }
            for (int t = 0; t < T; t++) {
                std::memcpy(d_kv_h + t * kv_step, &d_k[static_cast<size_t>(t) * K], sizeof(float) * P);
                for (int j = 0; j < R; j++) d_k_r[(row + t) * R + j] += d_k[static_cast<size_t>(t) * K + P + j];
            }
        }
    }
}
