// exp, sigmoid and tanh in a form that compilers turn into vector code on any processor (no calls, no branches).
// exp: Cody-Waite reduction and a degree-6 polynomial, relative error below 2e-7; arguments are clamped to +-87.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Without fused products the reduction must stay two steps: joined into one, as -fassociative-math may, they lose bits.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && !defined(__FMA__)
#define APART(x) __builtin_assoc_barrier(x)
#else
#define APART(x) (x)
#endif

static inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = APART(x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

static inline float fast_sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

static inline float fast_tanh(float x) { return 2.0f * fast_sigmoid(2.0f * x) - 1.0f; }
