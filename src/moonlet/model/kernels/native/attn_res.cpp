// One read of the depth bus and the norm behind it, row by row; sources v_i [rows, d] (n of them), w, norm [d]:
//
//   s_i = (w . v_i) r_i,  r_i = (mean v_i^2 + eps)^-0.5,  alpha = softmax(s),  h = sum_i alpha_i v_i,  y = norm h r
//
// with r = (mean h^2 + norm_eps)^-0.5. The backward pass recomputes all of it from the sources:
//
//   d_h = r (norm d_y) - h r^3 mean(norm d_y h),  d_s_i = alpha_i (d_h . v_i - sum_j alpha_j d_h . v_j)
//   d_v_i = alpha_i d_h + d_s_i (w r_i - v_i s_i r_i^2 / d),  d_w = sum d_s_i r_i v_i,  d_norm = sum d_y h r
#include "fastmath.h"
#include "rows.h"

namespace {

struct Mix {
    int n, d;
    float eps;
    Floats scale, score, alpha, h;

    Mix(int n, int d, float eps) : n(n), d(d), eps(eps), scale(n), score(n), alpha(n), h(d) {}

    // Fills scale (r_i), score, alpha and h for one row, and returns sum h^2.
    float read(const float* const* sources, size_t at, const float* w) {
        float largest = -INFINITY;
        for (int i = 0; i < n; i++) {
            const float* v = sources[i] + at;
            float square = 0, inner = 0;
            for (int j = 0; j < d; j++) {
                square += v[j] * v[j];
                inner += v[j] * w[j];
            }
            scale[i] = 1.0f / std::sqrt(square / d + eps);
            score[i] = inner * scale[i];
            largest = score[i] > largest ? score[i] : largest;
        }
        float sum = 0;
        for (int i = 0; i < n; i++) sum += alpha[i] = fast_exp(score[i] - largest);
        for (int i = 0; i < n; i++) alpha[i] /= sum;
        float* mixed = h.data();
        for (int j = 0; j < d; j++) mixed[j] = alpha[0] * sources[0][at + j];
        for (int i = 1; i < n; i++) {
            const float a = alpha[i], *v = sources[i] + at;
            for (int j = 0; j < d; j++) mixed[j] += a * v[j];
        }
        return dot(mixed, mixed, d);
    }
};

}  // namespace

EXPORT void attn_res_forward(
    const float* const* sources, const float* w, const float* norm, float* y, int rows, int d, int n, float eps,
    float norm_eps) {
    Mix mix(n, d, eps);
    const float* h = mix.h.data();
    for (int row = 0; row < rows; row++, y += d) {
        const float r = 1.0f / std::sqrt(mix.read(sources, static_cast<size_t>(row) * d, w) / d + norm_eps);
        for (int j = 0; j < d; j++) y[j] = norm[j] * (h[j] * r);
    }
}

EXPORT void attn_res_backward(
    const float* const* sources, const float* w, const float* norm, const float* d_y, float* const* d_sources,
    float* d_w, float* d_norm, int rows, int d, int n, float eps, float norm_eps) {
    Mix mix(n, d, eps);
    RowSum w_sum(d_w, d), norm_sum(d_norm, d);
    Floats d_mixed(d), inner(n);
    const float* h = mix.h.data();
    float *d_h = d_mixed.data(), *w_block = w_sum.block.data(), *norm_block = norm_sum.block.data();
    for (int row = 0; row < rows; row++, d_y += d) {
        const size_t at = static_cast<size_t>(row) * d;
        const float r = 1.0f / std::sqrt(mix.read(sources, at, w) / d + norm_eps);
        float along = 0;
        for (int j = 0; j < d; j++) along += norm[j] * d_y[j] * h[j];
        const float back = along * r * r / d;
        for (int j = 0; j < d; j++) {
            norm_block[j] += d_y[j] * h[j] * r;
            d_h[j] = r * (norm[j] * d_y[j] - back * h[j]);
        }
        float mean = 0;
        for (int i = 0; i < n; i++) mean += mix.alpha[i] * (inner[i] = dot(d_h, sources[i] + at, d));
        for (int i = 0; i < n; i++) {
            const float a = mix.alpha[i], d_s = a * (inner[i] - mean), to_w = d_s * mix.scale[i];
            const float to_v = d_s * mix.score[i] * mix.scale[i] * mix.scale[i] / d;
            const float* v = sources[i] + at;
            float* d_v = d_sources[i] + at;
            for (int j = 0; j < d; j++) {
                w_block[j] += to_w * v[j];
                d_v[j] = a * d_h[j] + to_w * w[j] - to_v * v[j];
            }
        }
        w_sum.row_done();
        norm_sum.row_done();
    }
    w_sum.finish();
    norm_sum.finish();
}
