// GLU of gate, up [rows, width] -> y [rows, width], and the sigmoid gate: one pass each way.
// The backward passes recompute the activations. beta, linear: see glu.h.
#include "glu.h"

EXPORT void glu_forward(
    const float* gate, const float* up, float* y, int rows, int width, float beta, float linear) {
    const Glu glu{beta, linear};
    for (int i = 0; i < rows; i++, gate += width, up += width, y += width) glu.forward(gate, up, y, width);
}

EXPORT void glu_backward(
    const float* gate, const float* up, const float* d_y, float* d_gate, float* d_up, int rows, int width, float beta,
    float linear) {
    const Glu glu{beta, linear};
    for (int i = 0; i < rows; i++, gate += width, up += width, d_y += width, d_gate += width, d_up += width)
        glu.backward(gate, up, d_y, d_gate, d_up, width);
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
