// Summed cross-entropy of logits [rows, V] and targets [rows], and its gradient written over the logits.
#include "fastmath.h"
#include "rows.h"

// loss = sum_i (lse_i - logits[i, target_i]); lse [rows] = log sum exp of each row.
EXPORT void cross_entropy_forward(
    const float* logits, const int64_t* targets, float* lse, double* loss, int rows, int V) {
    *loss = 0;
    for (int i = 0; i < rows; i++, logits += V) {
        const float top = largest_value(logits, V);
        float sum = 0;
        for (int j = 0; j < V; j++) sum += fast_exp(logits[j] - top);
        lse[i] = top + std::log(sum);
        *loss += lse[i] - logits[targets[i]];
    }
}

// logits <- (softmax - one hot target) * scale.
EXPORT void cross_entropy_backward(
    float* logits, const int64_t* targets, const float* lse, int rows, int V, float scale) {
    for (int i = 0; i < rows; i++, logits += V) {
        for (int j = 0; j < V; j++) logits[j] = scale * fast_exp(logits[j] - lse[i]);
        logits[targets[i]] -= scale;
    }
}
