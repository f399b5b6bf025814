// Rounds weights to the MXFP4 grid (quant/grids.py): n groups of 32 floats, each with the scale 2^(floor(log2 amax) - 2).
//
// Below 2 the grid has steps of 1/2, up to 4 of 1, up to 6 of 2: a value times the inverse step is rounded half to even,
// which is the even code in each range. Scales are powers of two, so all products are exact.
#include "fastmath.h"
#include "rows.h"

EXPORT void mxfp4_round(const float* w, float* out, int n) {
    constexpr int GROUP = 32;
    for (int group = 0; group < n; group++, w += GROUP, out += GROUP) {
        const float amax = largest_magnitude(w, GROUP);
        int exponent;
        std::frexp(amax, &exponent);
        exponent = amax > 0 && exponent - 3 > -127 ? exponent - 3 : -127;
        const float scale = std::ldexp(1.0f, exponent), inverse = std::ldexp(1.0f, -exponent);
        for (int i = 0; i < GROUP; i++) {
            const float x = std::fabs(w[i]) * inverse;
            const float step = x < 2 ? 0.5f : x < 4 ? 1.0f : 2.0f, back = x < 2 ? 2.0f : x < 4 ? 1.0f : 0.5f;
            const float r = std::nearbyint(x * back) * step;
            out[i] = std::copysign((r > 6 ? 6 : r) * scale, w[i]);
        }
    }
}
