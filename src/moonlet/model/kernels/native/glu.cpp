// GLU of a joint projection: x [rows, 2 width] = (gate | up) -> y [rows, width], one pass each way.
// The backward pass recomputes the activations from x. beta, linear: see glu.h.
#include "glu.h"

EXPORT void glu_forward(const float* x, float* y, int rows, int width, float beta, float linear) {
    const Glu glu{beta, linear};
    for (int i = 0; i < rows; i++, x += 2 * width, y += width) glu.forward(x, x + width, y, width);
}

EXPORT void glu_backward(
    const float* x, const float* d_y, float* d_x, int rows, int width, float beta, float linear) {
    const Glu glu{beta, linear};
    for (int i = 0; i < rows; i++, x += 2 * width, d_x += 2 * width, d_y += width)
        glu.backward(x, x + width, d_y, d_x, d_x + width, width);
}

// out = o * sigmoid(g) over n values, and its gradients.
EXPORT void gate_forward(const float* o, const float* g, float* out, int n) {
    for (int i = 0; i < n; i++) out[i] = o[i] * fast_sigmoid(g[i]);
}

EXPORT void gate_backward(const float* o, const float* g, const float* d_out, float* d_o, float* d_g, int n) {
    for (int i = 0; i < n; i++) {
        const float s = fast_sigmoid(g[i]), d = d_out[i];
        d_o[i] = d * s;
        d_g[i] = d * o[i] * s * (1 - s);
    }
}
