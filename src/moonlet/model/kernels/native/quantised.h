// Products with matrices in 4 or 8 bits: y [N, out] = x [N, in] W^T, x rounded to 8 bits in groups of 32.
//
// W comes in groups of 32 inputs with a scale each: INT4 (code - 8, scale bf16), MXFP4 (E2M1, scale 2^(e - 127)), INT8
// (scale bf16). x becomes round(x / s), s = max|x| / 127. A group's product is a whole number, exact whatever the order;
// groups are added up in fp32, one after another, so a row gets the same bits alone or among others.
//
// A panel is 8 outputs: per group 8 steps of 4 inputs, byte 4 o + j of a step is output o, input j; 4-bit steps lie in
// pairs, the even one in the low nibbles; then the 8 scales. E2M1 values are doubled to be whole. Instructions multiply
// unsigned with signed bytes, so codes are taken as value + offset, and offset * sum(x) is taken off again: in 16 bits,
// each half of a step's 4 inputs by itself (16 products of 8 or 12 times 127 fit; what comes on the way may wrap).
// Paths: AVX2, with VNNI where the processor has it, and plain C++ with the same numbers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum Kind { FLOAT, INT4, MXFP4, INT8 };

constexpr int GROUP = 32, OUTS = 8, STEPS = 8;
constexpr int8_t E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

constexpr int offset_of(int kind) { return kind == INT4 ? 8 : kind == MXFP4 ? 12 : 128; }
constexpr size_t code_bytes(int kind) { return OUTS * GROUP / (kind == INT8 ? 1 : 2); }
constexpr size_t group_bytes(int kind) { return code_bytes(kind) + OUTS * (kind == MXFP4 ? 1 : 2); }
static inline size_t panel_bytes(int kind, int in) { return group_bytes(kind) * (in / GROUP); }
static inline size_t quantised_bytes(int kind, int in, int out) { return panel_bytes(kind, in) * ((out + OUTS - 1) / OUTS); }

static inline float bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

// Rows of x in 8 bits.
struct Rows8 {
    int groups;
    std::vector<int8_t> codes;  // [N, in]
    std::vector<float> scales;  // [N, groups]
    std::vector<int> minus[2];  // [N, groups], for INT4 and MXFP4: -offset times the sums of both halves, 16 bits each

    Rows8(const float* x, ptrdiff_t ld, int N, int in)
        : groups(in / GROUP), codes(static_cast<size_t>(N) * in), scales(static_cast<size_t>(N) * groups) {
        for (std::vector<int>& one : minus) one.resize(scales.size());
        threads::ranges(N, 8, [&](int from, int to) {
            for (int n = from; n < to; n++)
                for (int g = 0; g < groups; g++) round(x + n * ld + g * GROUP, static_cast<size_t>(n) * groups + g);
        });
    }

  private:
    void round(const float* x, size_t at) {
        int8_t* to = &codes[at * GROUP];
#if defined(__AVX2__)
        __m256 v[4], top = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            top = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), v[i]), top);
        }
        __m128 most = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
        most = _mm_max_ps(most, _mm_movehl_ps(most, most));
        const float largest = _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
        const __m256 inverse = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
        __m256i whole[4];
        for (int i = 0; i < 4; i++) whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        const __m256i low = _mm256_packs_epi32(whole[0], whole[1]), high = _mm256_packs_epi32(whole[2], whole[3]);
        const __m256i all = _mm256_packs_epi16(low, high);
        const __m256i in_order = _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), in_order);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), in_order);
        __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0x4e));
        sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0xb1));
        minus[0][at] = _mm_cvtsi128_si32(_mm_mullo_epi16(sum, _mm_set1_epi16(-offset_of(INT4))));
        minus[1][at] = _mm_cvtsi128_si32(_mm_mullo_epi16(sum, _mm_set1_epi16(-offset_of(MXFP4))));
#else
        float largest = 0;
        for (int i = 0; i < GROUP; i++) largest = std::max(largest, std::fabs(x[i]));
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        for (int i = 0; i < GROUP; i++) to[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
#endif
        scales[at] = largest / 127.0f;
    }
};

// Which rows of x a product takes: rows[0] .. rows[count - 1].
struct Chosen {
    const Rows8& x;
    const int* rows;
    int count;
    const int8_t* codes(int r) const { return &x.codes[static_cast<size_t>(rows[r]) * x.groups * GROUP]; }
    const float* scales(int r) const { return &x.scales[static_cast<size_t>(rows[r]) * x.groups]; }
    const int* minus(int r, int kind) const { return &x.minus[kind == MXFP4][static_cast<size_t>(rows[r]) * x.groups]; }
};

#if defined(__AVX2__)

// Steps 2 i and 2 i + 1 of a group.
template <int KIND>
static inline void unpack(const uint8_t* codes, int i, __m256i& even, __m256i& odd) {
    const auto load = [&](int at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes) + at); };
    if (KIND == INT8) {
        even = load(2 * i), odd = load(2 * i + 1);
        return;
    }
    const __m256i nibble = _mm256_set1_epi8(15), both = load(i);
    even = _mm256_and_si256(both, nibble), odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    if (KIND == MXFP4) {
        const __m256i values = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        even = _mm256_shuffle_epi8(values, even), odd = _mm256_shuffle_epi8(values, odd);
    }
}

template <int KIND>
static inline __m256 scales_of(const uint8_t* from) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if (KIND == MXFP4) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23));
    }
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16));
}

// The whole numbers of a group, 8 outputs: where they begin, one step more of them, and what they are in the end.
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
template <int KIND>
static inline __m256i begin(int minus) {
    return _mm256_madd_epi16(_mm256_set1_epi32(minus), _mm256_set1_epi16(KIND == INT8 ? 128 / offset_of(INT4) : 1));
}
template <int KIND>
static inline __m256i step(__m256i whole, __m256i w, __m256i x) {
    return _mm256_dpbusd_epi32(whole, KIND == INT8 ? _mm256_xor_si256(w, _mm256_set1_epi8(-128)) : w, x);
}
template <int KIND>
static inline __m256i end(__m256i whole) {
    return whole;
}
#else
template <int KIND>
static inline __m256i begin(int minus) {
    return KIND == INT8 ? _mm256_setzero_si256() : _mm256_set1_epi32(minus);
}
template <int KIND>
static inline __m256i step(__m256i whole, __m256i w, __m256i x) {
    if (KIND != INT8) return _mm256_add_epi16(whole, _mm256_maddubs_epi16(w, x));
    const __m256i pair = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));  // 2 * 127 * 128 fits 16 bits
    return _mm256_add_epi32(whole, _mm256_madd_epi16(pair, _mm256_set1_epi16(1)));
}
template <int KIND>
static inline __m256i end(__m256i whole) {
    return KIND == INT8 ? whole : _mm256_madd_epi16(whole, _mm256_set1_epi16(1));
}
#endif

static inline __m256i four(const int8_t* x) {
    int32_t bytes;
    std::memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
}

template <int KIND, int R>
static inline void panel_rows(const uint8_t* panel, const Chosen& x, int first, float (*out)[OUTS]) {
    __m256 total[R];
    const int8_t* codes[R];
    const float* scales[R];
    const int* minus[R];
    for (int r = 0; r < R; r++) {
        total[r] = _mm256_setzero_ps();
        codes[r] = x.codes(first + r), scales[r] = x.scales(first + r), minus[r] = x.minus(first + r, KIND);
    }
    for (int g = 0; g < x.x.groups; g++, panel += group_bytes(KIND)) {
        __builtin_prefetch(panel + 1024);
        __builtin_prefetch(panel + 1088);
        __m256i whole[R];
        for (int r = 0; r < R; r++) whole[r] = begin<KIND>(minus[r][g]);
        for (int i = 0; i < STEPS / 2; i++) {
            __m256i even, odd;
            unpack<KIND>(panel, i, even, odd);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const int8_t* x_r = codes[r] + g * GROUP + 8 * i;
                whole[r] = step<KIND>(step<KIND>(whole[r], even, four(x_r)), odd, four(x_r + 4));
            }
        }
        const __m256 scale = scales_of<KIND>(panel + code_bytes(KIND));
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(scales[r][g]));
            total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(end<KIND>(whole[r])), factor, total[r]);
        }
    }
    for (int r = 0; r < R; r++) _mm256_storeu_ps(out[r], total[r]);
}

#else

// Code of output o, input i of a group, as its value.
template <int KIND>
static inline int value(const uint8_t* codes, int o, int i) {
    const int step = i / 4, byte = 4 * o + i % 4;
    if (KIND == INT8) return static_cast<int8_t>(codes[step * 32 + byte]);
    const int code = codes[step / 2 * 32 + byte] >> (step % 2 * 4) & 15;
    return KIND == INT4 ? code - 8 : E2M1[code];
}

template <int KIND>
static inline float scale(const uint8_t* scales, int o) {
    if (KIND == MXFP4) return std::ldexp(1.0f, scales[o] - 127);
    uint16_t bits;
    std::memcpy(&bits, scales + 2 * o, 2);
    return bf16(bits);
}

template <int KIND, int R>
static inline void panel_rows(const uint8_t* panel, const Chosen& x, int first, float (*out)[OUTS]) {
    for (int r = 0; r < R; r++)
        for (int o = 0; o < OUTS; o++) {
            const uint8_t* group = panel;
            float total = 0;
            for (int g = 0; g < x.x.groups; g++, group += group_bytes(KIND)) {
                int whole = 0;
                for (int i = 0; i < GROUP; i++) whole += value<KIND>(group, o, i) * x.codes(first + r)[g * GROUP + i];
                total = std::fma(static_cast<float>(whole), scale<KIND>(group + code_bytes(KIND), o) * x.scales(first + r)[g], total);
            }
            out[r][o] = total;
        }
}

#endif

// y [count, out] = chosen rows times panels [from, to) of W; rows of y are ld apart.
template <int KIND>
static inline void quantised_product(const uint8_t* panels, int in, int out, const Chosen& x, float* y, ptrdiff_t ld, int from, int to) {
    const float factor = KIND == MXFP4 ? 0.5f : 1.0f;
    for (int p = from; p < to; p++) {
        const uint8_t* panel = panels + panel_bytes(KIND, in) * p;
        const int n = std::min(OUTS, out - p * OUTS);
        float sums[4][OUTS];
        for (int r = 0; r < x.count;) {
            const int rows = std::min(4, x.count - r);
            switch (rows) {
                case 1: panel_rows<KIND, 1>(panel, x, r, sums); break;
                case 2: panel_rows<KIND, 2>(panel, x, r, sums); break;
                case 3: panel_rows<KIND, 3>(panel, x, r, sums); break;
                default: panel_rows<KIND, 4>(panel, x, r, sums);
            }
            for (int i = 0; i < rows; i++)
                for (int o = 0; o < n; o++) y[(r + i) * ld + p * OUTS + o] = factor * sums[i][o];
            r += rows;
        }
    }
}

static inline void quantised_product(int kind, const uint8_t* panels, int in, int out, const Chosen& x, float* y, ptrdiff_t ld, int from, int to) {
    if (kind == INT4) quantised_product<INT4>(panels, in, out, x, y, ld, from, to);
    if (kind == MXFP4) quantised_product<MXFP4>(panels, in, out, x, y, ld, from, to);
    if (kind == INT8) quantised_product<INT8>(panels, in, out, x, y, ld, from, to);
}
