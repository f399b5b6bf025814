// Several steps of decoding in one call: each sequence is fed its last token, the next one is drawn, and so on, until it
// has made `limits` tokens or one of its stop tokens, which is not fed. The numbers are those of `decode` and
// `sample_rows` called in turn, so the texts are too; what is saved is the way through Python between two tokens.
// Shapes: ids, rows, temperature, limits, made [count]; uniforms, tokens, logprobs [count, steps]; stops [count, width],
// filled up with -1. A row that is broken makes the token -1 and leaves.
#include <algorithm>
#include <numeric>

#include "decode.h"

EXPORT void sample_rows(const float*, const float*, const double*, int64_t*, float*, int, int, int);

EXPORT void decode_burst(
    const Model* model, const int64_t* ids, const int* rows, const int64_t* lengths, const State* states, const int* table,
    int table_width, int page, const float* temperature, const double* uniforms, const int* limits, const int64_t* stops,
    int width, int steps, int64_t* tokens, float* logprobs, int* made, int count, int team) {
    const int vocab = model->head.out;
    std::vector<int> live(count), where(count), starts(count + 1), wanted(count, 1);
    std::vector<int64_t> fed(ids, ids + count), drawn(count), now(lengths, lengths + *std::max_element(rows, rows + count) + 1);
    std::vector<float> warmth(count), logprob(count);
    std::vector<double> u(count);
    const Buffer logits = buffer(static_cast<size_t>(count) * vocab);
    std::iota(live.begin(), live.end(), 0);
    std::iota(starts.begin(), starts.end(), 0);
    for (int step = 0; !live.empty(); step++) {
        const int n = static_cast<int>(live.size());
        for (int i = 0; i < n; i++) {
            where[i] = rows[live[i]], warmth[i] = temperature[live[i]];
            u[i] = uniforms[static_cast<size_t>(live[i]) * steps + step];
        }
        decode(model, fed.data(), where.data(), starts.data(), now.data(), states, table, table_width, page, wanted.data(),
               logits.get(), nullptr, n, team);
        sample_rows(logits.get(), warmth.data(), u.data(), drawn.data(), logprob.data(), n, vocab, team);
        int left = 0;
        for (int i = 0; i < n; i++) {
            const int row = live[i];
            tokens[static_cast<size_t>(row) * steps + step] = drawn[i];
            logprobs[static_cast<size_t>(row) * steps + step] = logprob[i];
            made[row] = step + 1;
            now[rows[row]]++;
            const int64_t* mine = stops + static_cast<size_t>(row) * width;
            const bool ended = drawn[i] < 0 || made[row] == limits[row] || std::find(mine, mine + width, drawn[i]) != mine + width;
            if (!ended) fed[left] = drawn[i], live[left++] = row;
        }
        live.resize(left);
    }
}
