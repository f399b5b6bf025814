// Matrices in 4 or 8 bits for the decoder: packing, and the product alone (quantised.h; twin: engine/packed.py's tests).
#include "fastmath.h"
#include "quantised.h"

// codes [out, in], a byte each (INT4: value + 8; MXFP4: sign and E2M1; INT8: the value), scales [out, in / 32] (bf16 as
// 16 bits, MXFP4 a byte) -> panels. Outputs past the last are zero by their scale.
EXPORT void pack_quantised(const uint8_t* codes, const uint8_t* scales, uint8_t* panels, int kind, int in, int out) {
    const int groups = in / GROUP, width = kind == MXFP4 ? 1 : 2;
    std::memset(panels, 0, quantised_bytes(kind, in, out));
    for (int o = 0; o < out; o++)
        for (int g = 0; g < groups; g++) {
            uint8_t* group = panels + panel_bytes(kind, in) * (o / OUTS) + group_bytes(kind) * g;
            const uint8_t* from = codes + static_cast<size_t>(o) * in + g * GROUP;
            for (int i = 0; i < GROUP; i++) {
                const int step = i / 4, byte = 4 * (o % OUTS) + i % 4;
                if (kind == INT8)
                    group[step * 32 + byte] = from[i];
                else
                    group[step / 2 * 32 + byte] |= from[i] << (step % 2 * 4);
            }
            std::memcpy(group + code_bytes(kind) + width * (o % OUTS), scales + width * (static_cast<size_t>(o) * groups + g), width);
        }
}

// y [N, out] = x [N, in] W^T by a team of `team` threads.
EXPORT void multiply_quantised(const uint8_t* panels, const float* x, float* y, int kind, int N, int in, int out, int team) {
    const threads::Team together(team);
    const Rows8 rows(x, in, N, in);
    std::vector<int> all(N);
    for (int n = 0; n < N; n++) all[n] = n;
    threads::ranges((out + OUTS - 1) / OUTS, 4, [&](int from, int to) {
        quantised_product(kind, panels, in, out, {rows, all.data(), N}, y, out, from, to);
    });
}
