// A weight matrix of the decoder, in fp32 panels (gemm.h) or in 4 or 8 bits (quantised.h), and its product with rows.
#pragma once
#include <initializer_list>
#include <memory>
#include <numeric>

#include "gemm.h"
#include "lines.h"
#include "quantised.h"

extern "C" {
struct Matrix {  // x [N, in] -> [N, out]; panels NULL: not there. A stack: one after another
    const char* panels;
    int in, out, kind;
};
}

struct Free {
    void operator()(float* memory) const { ::operator delete(memory, LINE); }
};
using Buffer = std::unique_ptr<float[], Free>;

static inline Buffer buffer(size_t n) { return Buffer(Lines<float>().allocate(n)); }

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
        if (!eight) {
            eight = std::make_unique<Rows8>(x, ld, N, in);
            all.resize(N);
            std::iota(all.begin(), all.end(), 0);
        }
        return *eight;
    }
    Chosen all_rounded() const { return {*eight, all.data(), N}; }

  private:
    std::unique_ptr<Rows8> eight;
    std::vector<int> all;
};

// y [N, out] = x W^T, rows of y ld apart.
struct Product {
    const Matrix& W;
    Rows& x;
    float* y;
    ptrdiff_t ld;

    int columns() const { return W.kind == FLOAT ? PANEL : OUTS; }
    int panels() const { return (W.out + columns() - 1) / columns(); }
    // The columns of panels [first, last).
    void run(int first, int last) const {
        if (W.kind == FLOAT) {
            const float* from = reinterpret_cast<const float*>(W.panels) + static_cast<size_t>(first) * PANEL * W.in;
            multiply_packed(x.x, {x.ld, 1}, from, W.in, y + first * PANEL, ld, x.N, W.in,
                            std::min(W.out, last * PANEL) - first * PANEL, false);
        } else {
            const auto* from = reinterpret_cast<const uint8_t*>(W.panels);
            quantised_product(W.kind, from, W.in, W.out, x.all_rounded(), y, ld, first, last);
        }
    }
};

// Products that do not wait for each other, as one round of the team (what is not there is left out). Columns are
// shared out where that is worth a member's while.
static inline void apply_all(std::initializer_list<Product> products) {
    struct Piece {
        const Product* of;
        int first, last;
    };
    std::vector<Piece> all;
    for (const Product& one : products) {
        if (!one.W.panels) continue;
        if (one.W.kind != FLOAT) one.x.rounded(one.W.in);
        const int64_t panel = static_cast<int64_t>(one.x.N) * one.W.in * one.columns();
        const threads::Pieces pieces(one.panels(), static_cast<int>(100000 / panel));
        for (int i = 0; i < pieces.count; i++) all.push_back({&one, pieces.from(i), pieces.from(i + 1)});
    }
    threads::parallel(static_cast<int>(all.size()), [&](int i) { all[i].of->run(all[i].first, all[i].last); });
}

static inline void apply(const Matrix& W, Rows& x, float* y, ptrdiff_t ld) { apply_all({{W, x, y, ld}}); }

static inline Buffer room(const Matrix& W, int N) { return buffer(static_cast<size_t>(N) * W.out); }

static inline Buffer apply(const Matrix& W, Rows& x) {
    Buffer y = room(W, x.N);
    apply(W, x, y.get(), W.out);
    return y;
}

static inline Buffer apply(const Matrix& W, const float* x, int N) {
    Rows rows(x, W.in, N);
    return apply(W, rows);
}
