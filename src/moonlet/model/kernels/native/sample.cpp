// Tokens for rows of logits, where nothing but a temperature is asked for (twin: `choose` in engine/sampling.py).
//
// With p_i = exp((x_i - max x) / temperature) the token is the first whose cumulated p exceeds u sum p, u uniform in
// [0, 1); its log-prob is log p - log sum p. Temperature 0: the first of the largest, its log-prob at temperature 1. What
// lies 87 temperatures below the largest has no mass. Sums are fp64, by blocks of 64. A row's token does not depend on
// the others; it is -1 where the largest is not finite or a logit is not a number.
// Shapes: logits [rows, vocab]; temperature, u, token, logprob [rows].
#include <limits>

#include "fastmath.h"
#include "lines.h"
#include "rows.h"
#include "threads.h"

namespace {

constexpr int BLOCK = 64;

struct Sampler {
    int vocab;
    Floats p;                  // [vocab], up to a multiple of BLOCK
    std::vector<double> mass;  // cumulated, by block

    explicit Sampler(int vocab) : vocab(vocab), p((vocab + BLOCK - 1) / BLOCK * BLOCK, 0.0f), mass(p.size() / BLOCK) {}

    int64_t sample(const float* x, float temperature, double u, float* logprob) {
        const float top = largest_value(x, vocab), inverse = temperature > 0 ? 1.0f / temperature : 1.0f;
        if (!std::isfinite(top)) return -1;
        for (int i = 0; i < vocab; i++) {
            const float z = (x[i] - top) * inverse, e = fast_exp(z);
            p[i] = z < -87.0f ? 0.0f : e;
        }
        double total = 0;
        for (size_t b = 0; b < mass.size(); b++) {
            double sum = 0;
            for (int i = 0; i < BLOCK; i++) sum += p[b * BLOCK + i];
            mass[b] = total += sum;
        }
        if (!(total < std::numeric_limits<double>::infinity())) return -1;  // a NaN somewhere
        const int token = temperature > 0 ? at(std::min(u * total, std::nextafter(total, 0.0))) : first(x, top);
        *logprob = static_cast<float>((x[token] - top) * inverse - std::log(total));
        return token;
    }

  private:
    int first(const float* x, float top) const {
        int i = 0;
        while (x[i] != top) i++;
        return i;
    }
    // The first place whose cumulated mass is above `wanted`; what rounding leaves over goes to the last that has any.
    int at(double wanted) const {
        const size_t b = std::min(std::upper_bound(mass.begin(), mass.end(), wanted) - mass.begin(),
                                  static_cast<ptrdiff_t>(mass.size()) - 1);
        double sum = b > 0 ? mass[b - 1] : 0.0;
        int last = static_cast<int>(b) * BLOCK;
        for (int i = last; i < static_cast<int>(b + 1) * BLOCK; i++) {
            if (p[i] > 0) last = i;
            if ((sum += p[i]) > wanted) return i;
        }
        return last;
    }
};

}  // namespace

EXPORT void sample_rows(const float* logits, const float* temperature, const double* u, int64_t* token, float* logprob,
                        int rows, int vocab, int team) {
    const threads::Team together(team);
    threads::ranges(rows, 4, [&](int from, int to) {
        Sampler sampler(vocab);
        for (int i = from; i < to; i++)
            token[i] = sampler.sample(logits + static_cast<size_t>(i) * vocab, temperature[i], u[i], &logprob[i]);
    });
}
