// A weight matrix of the decoder, in fp32 panels (gemm.h) or in 4 or 8 bits (quantised.h), and its product with rows.
#pragma once
#include <memory>

#include "gemm.h"
#include "quantised.h"

extern "C" {
struct Matrix {  // x [N, in] -> [N, out]; panels NULL: not there. A stack: one after another
    const char* panels;
    int in, out, kind;
};
}

using Buffer = std::unique_ptr<float[]>;

static inline Buffer buffer(size_t n) { return Buffer(new float[n]); }

static inline Matrix nth(const Matrix& stack, int i) {
    const size_t bytes = stack.kind == FLOAT ? sizeof(float) * packed_size(stack.in, stack.out)
                                             : quantised_bytes(stack.kind, stack.in, stack.out);
    return {stack.panels + bytes * i, stack.in, stack.out, stack.kind};
}

// Rows that several matrices are applied to; rounded to 8 bits once, when one asks for it.
class Rows {
  public:
    Rows(const float* x, ptrdiff_t ld, int N) : x(x), ld(ld), N(N) {}
    const float* const x;
    const ptrdiff_t ld;
    const int N;

    const Rows8& rounded(int in) {
        if (!eight) eight = std::make_unique<Rows8>(x, ld, N, in);
        return *eight;
    }

  private:
    std::unique_ptr<Rows8> eight;
};

// y [N, out], rows ld apart. Columns are shared out where that is worth a team's while.
static inline void apply(const Matrix& m, Rows& x, float* y, ptrdiff_t ld) {
    const int columns = m.kind == FLOAT ? PANEL : OUTS, panels = (m.out + columns - 1) / columns;
    const int least = std::max<int64_t>(1, 100000 / (static_cast<int64_t>(x.N) * m.in * columns));
    if (m.kind == FLOAT) {
        const float* from = reinterpret_cast<const float*>(m.panels);
        threads::ranges(panels, least, [&](int first, int last) {
            multiply_packed(x.x, {x.ld, 1}, from + static_cast<size_t>(first) * PANEL * m.in, m.in, y + first * PANEL, ld,
                            x.N, m.in, std::min(m.out, last * PANEL) - first * PANEL, false);
        });
        return;
    }
    std::vector<int> all(x.N);
    for (int n = 0; n < x.N; n++) all[n] = n;
    const Chosen rows{x.rounded(m.in), all.data(), x.N};
    const auto* from = reinterpret_cast<const uint8_t*>(m.panels);
    threads::ranges(panels, least, [&](int first, int last) {
        quantised_product(m.kind, from, m.in, m.out, rows, y, ld, first, last);
    });
}

static inline Buffer apply(const Matrix& m, Rows& x) {
    Buffer y = buffer(static_cast<size_t>(x.N) * m.out);
    apply(m, x, y.get(), m.out);
    return y;
}

static inline Buffer apply(const Matrix& m, const float* x, int N) {
    Rows rows(x, m.in, N);
    return apply(m, rows);
}
