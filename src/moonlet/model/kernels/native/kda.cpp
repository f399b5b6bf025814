// The KDA recurrence, forward and backward (twin: kernels/kda/naive.py). Per head, with d = exp(g):
//
//     u = v - (d * S)^T k,   delta = beta u,   S <- d * S + k delta^T,   o = S^T q
//
// The columns of S [K, V] never meet, so a head is worked in blocks of 32 columns: K x 32 floats stay in the L1 cache.
// Tokens go in tiles of 16, all heads of a tile in turn, so that memory is read from front to back (backward: from back
// to front). Inside, K is padded to a multiple of 8 and V to a multiple of 32 with zeros, which stay zeros.
// Forward keeps u and the state before each tile; backward makes the states inside a tile again from these and then
// takes the tokens in reverse, with e = dS^T k once dS has taken up q do^T:
//
//     dv = beta e,  dbeta = e.u,  X = dS - k dv^T,  dS <- d * X
//     dq = S do,    dk = dS delta - (d * S) dv,     dg = rowsum(X * d * S)      (S before the token, in dq after it)
//
// Shapes: q, k, g [B, T, H, K]; v, o, u [B, T, H, V]; beta [B, T, H]; first, last [B, H, K, V]; segments [B, T] or
// NULL (the state is zero where a segment begins); states [B, T / 16, H, V / 32, K, 32], both quotients rounded up.
#include <algorithm>

#include "fastmath.h"
#include "lines.h"
#include "vector.h"

namespace {

constexpr int TILE = 16, BLOCK = 32, N = BLOCK / LANES;

// One block of columns of a row of V floats; columns past V read as zero and are not written.
struct Columns {
    int start, count;
    Columns(int block, int V) : start(block * BLOCK), count(std::min(BLOCK, V - start)) {}
    void load(const float* row, vec* to) const {
        if (count == BLOCK) {
            std::memcpy(to, row + start, sizeof(vec) * N);
        } else {
            std::memset(to, 0, sizeof(vec) * N);
            std::memcpy(to, row + start, sizeof(float) * count);
        }
    }
    void store(const vec* from, float* row) const {
        if (count == BLOCK)
            std::memcpy(row + start, from, sizeof(vec) * N);
        else
            std::memcpy(row + start, from, sizeof(float) * count);
    }
};

bool begins(const int64_t* segments, int t) { return segments && t > 0 && segments[t] != segments[t - 1]; }

// Asks for a row of floats that is needed soon: rows lie H * K floats apart, which the processor does not foresee.
inline void fetch(const float* row, int count) {
    for (int i = 0; i < count; i += 16) __builtin_prefetch(row + i);
}

inline vec spread(float x) { return vec{} + x; }

inline void put(const float* __restrict from, float* __restrict to, int count, bool add) {
    if (add)
        for (int i = 0; i < count; i++) to[i] += from[i];
    else
        std::memcpy(to, from, sizeof(float) * count);
}

// One token: S [rows, 32], rows `width` vectors apart, goes to the next state; value v becomes the residual u; out = o.
// c = d * k.
inline void step(vec* __restrict S, int width, int rows, const float* __restrict q, const float* __restrict k,
                 const float* __restrict d, const float* __restrict c, float beta, vec* value, vec* out) {
    vec even[N] = {}, odd[N] = {};  // two rows at a time: eight sums under way hide the latency of one
    for (int i = 0; i < rows; i += 2) {
        const vec a = spread(c[i]), b = spread(c[i + 1]);
        for (int j = 0; j < N; j++) {
            even[j] += S[i * width + j] * a;
            odd[j] += S[(i + 1) * width + j] * b;
        }
    }
    vec delta[N], o[N] = {};
    for (int j = 0; j < N; j++) {
        value[j] -= even[j] + odd[j];
        delta[j] = value[j] * beta;
    }
    for (int i = 0; i < rows; i++) {
        const vec di = spread(d[i]), ki = spread(k[i]), qi = spread(q[i]);
        for (int j = 0; j < N; j++) {
            const vec s = S[i * width + j] * di + delta[j] * ki;
            S[i * width + j] = s;
            o[j] += s * qi;
        }
    }
    for (int j = 0; j < N; j++) out[j] = o[j];
}

// One token in reverse: dS [rows, 32] goes from the gradient of the state after it to that of the state S before it.
// u and d_o as in the formulas; dv is written; dq, dk, dg [rows] are this block's share. Returns its share of dbeta.
inline float step_back(vec* __restrict dS, const vec* __restrict S, int rows, const float* __restrict q,
                       const float* __restrict k, const float* __restrict d, float beta, const vec* u, const vec* d_o,
                       vec* dv_out, vec* __restrict parts, float* __restrict dq, float* __restrict dk,
                       float* __restrict dg) {
    vec grad[N], delta[N], dv[N], even[N] = {}, odd[N] = {}, eu{}, along{};
    for (int j = 0; j < N; j++) grad[j] = d_o[j];
    for (int i = 0; i < rows; i += 2) {
        const vec q0 = spread(q[i]), q1 = spread(q[i + 1]), k0 = spread(k[i]), k1 = spread(k[i + 1]);
        for (int j = 0; j < N; j++) {
            const vec a = dS[i * N + j] + grad[j] * q0, b = dS[(i + 1) * N + j] + grad[j] * q1;
            dS[i * N + j] = a;
            dS[(i + 1) * N + j] = b;
            even[j] += a * k0;
            odd[j] += b * k1;
        }
    }
    for (int j = 0; j < N; j++) {
        const vec e = even[j] + odd[j];
        dv[j] = dv_out[j] = e * beta;
        delta[j] = u[j] * beta;
        eu += e * u[j];
        along += delta[j] * grad[j];
    }
    vec* __restrict part_q = parts;  // sums over columns, eight lanes still apart
    vec* __restrict part_k = parts + rows;
    vec* __restrict part_g = parts + 2 * rows;
    for (int i = 0; i < rows; i++) {
        const vec di = spread(d[i]), ki = spread(k[i]);
        vec pq{}, pk{}, pg{};
        for (int j = 0; j < N; j++) {
            const vec s = S[i * N + j] * di, a = dS[i * N + j];
            const vec x = a - dv[j] * ki;
            pq += s * grad[j];
            pk += a * delta[j];
            pk -= s * dv[j];
            pg += x * s;
            dS[i * N + j] = x * di;
        }
        part_q[i] = pq;
        part_k[i] = pk;
        part_g[i] = pg;
    }
    const float delta_grad = sum(along);  // S after the token holds k delta^T too: its part of dq
    for (int i = 0; i < rows; i += LANES) {
        vec key;
        std::memcpy(&key, k + i, sizeof key);
        const vec a = sums(part_q + i) + key * delta_grad, b = sums(part_k + i), c = sums(part_g + i);
        std::memcpy(dq + i, &a, sizeof a);
        std::memcpy(dk + i, &b, sizeof b);
        std::memcpy(dg + i, &c, sizeof c);
    }
    return sum(eu);
}

// One token of one sequence, its state [H, K, V] worked in place; for shapes without padding (K of whole vectors, V of
// whole blocks).
void one_token(const float* q, const float* k, const float* v, const float* g, const float* beta, float* o, float* state,
               int H, int K, int V) {
    thread_local Floats rows;
    rows.resize(2 * K);
    float *__restrict d = rows.data(), *__restrict c = d + K;
    for (int h = 0; h < H; h++, q += K, k += K, g += K, v += V, o += V, state += size_t(K) * V) {
        for (int i = 0; i < K; i++) d[i] = fast_exp(g[i]);
        for (int i = 0; i < K; i++) c[i] = d[i] * k[i];
        for (int block = 0; block < V / BLOCK; block++) {
            const Columns columns(block, V);
            vec value[N], out[N];
            columns.load(v, value);
            step(reinterpret_cast<vec*>(state + block * BLOCK), V / LANES, K, q, k, d, c, beta[h], value, out);
            columns.store(out, o);
        }
    }
}

}  // namespace

// states and u may be NULL (no backward pass will follow), first and segments too.
EXPORT void kda_forward(const float* q, const float* k, const float* v, const float* g, const float* beta,
                        const float* first, const int64_t* segments, float* o, float* last, float* states, float* u,
                        int B, int T, int H, int K, int V) {
    if (B == 1 && T == 1 && first == last && !u && K % LANES == 0 && V % BLOCK == 0 &&
        reinterpret_cast<uintptr_t>(last) % sizeof(vec) == 0)
        return one_token(q, k, v, g, beta, o, last, H, K, V);
    const int P = (K + LANES - 1) / LANES * LANES, size = P * N, blocks = (V + BLOCK - 1) / BLOCK;
    thread_local std::vector<vec> scratch;
    thread_local Floats rows;
    scratch.resize(size_t(H) * blocks * size);
    rows.assign((2 * TILE + 2) * P, 0.0f);
    float *decay = rows.data(), *product = decay + TILE * P;  // [TILE, P] d and d * k
    float *kt = product + TILE * P, *qt = kt + P;             // [P]
    for (int b = 0; b < B; b++) {
        const int64_t* seg = segments ? segments + size_t(b) * T : nullptr;
        std::fill(scratch.begin(), scratch.end(), vec{});
        if (first)
            for (int hb = 0; hb < H * blocks; hb++)
                for (int i = 0; i < K; i++)
                    Columns(hb % blocks, V).load(first + ((size_t(b) * H + hb / blocks) * K + i) * V,
                                                 &scratch[size_t(hb) * size + i * N]);
        for (int start = 0; start < T; start += TILE)
            for (int h = 0; h < H; h++) {
                const int end = std::min(T, start + TILE);
                for (int t = start; t < end; t++) {
                    const size_t token = (size_t(b) * T + t) * H + h, at = token * K;
                    fetch(q + at, K);
                    fetch(v + token * V, V);
                    fetch(g + at + (h + 1 < H ? K : ((TILE - 1) * H + 1) * K), K);
                    fetch(k + at + (h + 1 < H ? K : ((TILE - 1) * H + 1) * K), K);
                    float *__restrict d = decay + (t - start) * P, *__restrict c = product + (t - start) * P;
                    for (int i = 0; i < K; i++) d[i] = fast_exp(g[at + i]);
                    for (int i = 0; i < K; i++) c[i] = d[i] * k[at + i];
                }
                for (int block = 0; block < blocks; block++) {
                    const Columns columns(block, V);
                    vec* S = &scratch[(size_t(h) * blocks + block) * size];
                    if (begins(seg, start)) std::fill(S, S + size, vec{});
                    if (states) {
                        std::memcpy(states, S, sizeof(float) * K * BLOCK);
                        states += size_t(K) * BLOCK;
                    }
                    for (int t = start; t < end; t++) {
                        const size_t at = (size_t(b) * T + t) * H + h;
                        if (t > start && begins(seg, t)) std::fill(S, S + size, vec{});
                        std::memcpy(kt, k + at * K, sizeof(float) * K);
                        std::memcpy(qt, q + at * K, sizeof(float) * K);
                        vec value[N], out[N];
                        columns.load(v + at * V, value);
                        step(S, N, P, qt, kt, decay + (t - start) * P, product + (t - start) * P, beta[at], value, out);
                        if (u) columns.store(value, u + at * V);
                        columns.store(out, o + at * V);
                    }
                }
            }
        for (int hb = 0; hb < H * blocks; hb++)
            for (int i = 0; i < K; i++)
                Columns(hb % blocks, V).store(&scratch[size_t(hb) * size + i * N],
                                              last + ((size_t(b) * H + hb / blocks) * K + i) * V);
    }
}

// Gradients of o and of the last state (NULL: zero) -> gradients of all inputs; d_first may be NULL.
EXPORT void kda_backward(const float* q, const float* k, const float* g, const float* beta, const int64_t* segments,
                         const float* states, const float* u, const float* d_o, const float* d_last, float* d_q,
                         float* d_k, float* d_v, float* d_g, float* d_beta, float* d_first, int B, int T, int H, int K,
                         int V) {
    const int P = (K + LANES - 1) / LANES * LANES, size = P * N, blocks = (V + BLOCK - 1) / BLOCK;
    const int tiles = (T + TILE - 1) / TILE;
    thread_local std::vector<vec> scratch;
    thread_local Floats rows;
    scratch.assign(size_t(H) * blocks * size + TILE * size + 3 * P, vec{});
    rows.assign((TILE + 5) * P, 0.0f);
    vec* grads = scratch.data();                        // [H, V / 32, P, 32] dS
    vec* before = grads + size_t(H) * blocks * size;    // [TILE, P, 32] the state that each token of the tile finds
    vec* parts = before + TILE * size;                  // [3, P]
    float* decay = rows.data();                         // [TILE, P]
    float *kt = decay + TILE * P, *qt = kt + P;         // [P]
    float *dq = qt + P, *dk = dq + P, *dg = dk + P;     // [P]
    for (int b = 0; b < B; b++) {
        const int64_t* seg = segments ? segments + size_t(b) * T : nullptr;
        std::fill(grads, before, vec{});
        if (d_last)
            for (int hb = 0; hb < H * blocks; hb++)
                for (int i = 0; i < K; i++)
                    Columns(hb % blocks, V).load(d_last + ((size_t(b) * H + hb / blocks) * K + i) * V,
                                                 grads + size_t(hb) * size + i * N);
        for (int tile = tiles - 1; tile >= 0; tile--)
            for (int h = 0; h < H; h++) {
                const int start = tile * TILE, end = std::min(T, start + TILE);
                for (int t = start; t < end; t++) {
                    const size_t token = (size_t(b) * T + t) * H + h, at = token * K;
                    fetch(k + at, K);
                    fetch(q + at, K);
                    fetch(u + token * V, V);
                    fetch(d_o + token * V, V);
                    fetch(g + at + (h + 1 < H ? K : -((TILE + 1) * H - 1) * K), K);
                    float* __restrict d = decay + (t - start) * P;
                    for (int i = 0; i < K; i++) d[i] = fast_exp(g[at + i]);
                }
                for (int block = 0; block < blocks; block++) {
                    const Columns columns(block, V);
                    vec* dS = grads + (size_t(h) * blocks + block) * size;
                    std::memcpy(before, states + (((size_t(b) * tiles + tile) * H + h) * blocks + block) * K * BLOCK,
                                sizeof(float) * K * BLOCK);
                    for (int t = start; t + 1 < end; t++) {
                        const size_t at = (size_t(b) * T + t) * H + h;
                        const vec* __restrict S = before + (t - start) * size;
                        vec* __restrict next = before + (t + 1 - start) * size;
                        const float *__restrict d = decay + (t - start) * P, *__restrict key = k + at * K;
                        if (begins(seg, t + 1)) {
                            std::fill(next, next + size, vec{});
                            continue;
                        }
                        vec delta[N];
                        columns.load(u + at * V, delta);
                        for (int j = 0; j < N; j++) delta[j] *= beta[at];
                        for (int i = 0; i < K; i++) {
                            const vec di = spread(d[i]), ki = spread(key[i]);
                            for (int j = 0; j < N; j++) next[i * N + j] = S[i * N + j] * di + delta[j] * ki;
                        }
                    }
                    for (int t = end - 1; t >= start; t--) {
                        const size_t at = (size_t(b) * T + t) * H + h;
                        std::memcpy(kt, k + at * K, sizeof(float) * K);
                        std::memcpy(qt, q + at * K, sizeof(float) * K);
                        vec residual[N], grad[N], dv[N];
                        columns.load(u + at * V, residual);
                        columns.load(d_o + at * V, grad);
                        const float db = step_back(dS, before + (t - start) * size, P, qt, kt, decay + (t - start) * P,
                                                   beta[at], residual, grad, dv, parts, dq, dk, dg);
                        if (begins(seg, t)) std::fill(dS, dS + size, vec{});
                        columns.store(dv, d_v + at * V);
                        put(dq, d_q + at * K, K, block > 0);
                        put(dk, d_k + at * K, K, block > 0);
                        put(dg, d_g + at * K, K, block > 0);
                        d_beta[at] = block > 0 ? d_beta[at] + db : db;
                    }
                }
            }
        if (d_first)
            for (int hb = 0; hb < H * blocks; hb++)
                for (int i = 0; i < K; i++)
                    Columns(hb % blocks, V).store(grads + size_t(hb) * size + i * N,
                                                  d_first + ((size_t(b) * H + hb / blocks) * K + i) * V);
    }
}
