// What the last tokens of a graph saw in one layer: from it the store learns what errors of keys and values would cost.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace alloy::kv {

struct attention_sample {
    static constexpr int64_t max_tokens = 8;
    bool wanted = false; // in this run; else nothing below is touched

    int64_t tokens = 0, heads = 0, kv_heads = 0, d_k = 0, d_v = 0;
    float scale = 0;            // of logits
    std::vector<float> q;       // [heads][tokens][d_k]
    std::vector<float> log_sum; // [heads][tokens] log2 of the sum of exp(logit) over all cells
    std::vector<float> out;     // [heads][tokens][d_v], in the transform that values lie in

    int64_t n = 0;                // elements of the residual stream; 0: it was not found
    std::vector<float> residual;  // [tokens][n] before the layer's attention was added
    double added = 0, before = 0; // energies: of what was added, and of the residual stream before

    void resize() {
        q.resize(static_cast<size_t>(heads * tokens * d_k));
        log_sum.resize(static_cast<size_t>(heads * tokens));
        out.resize(static_cast<size_t>(heads * tokens * d_v));
        residual.resize(static_cast<size_t>(tokens * n));
    }
};

} // namespace alloy::kv
