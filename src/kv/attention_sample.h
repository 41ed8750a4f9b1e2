// What some tokens of a graph saw in one layer: from it the store learns what errors of keys and values would cost, and which cells matter.
#pragma once
#include "base/returning_allocator.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace alloy::kv {

struct sampled_token {
    int64_t token;                  // of the graph
    int64_t row = -1;               // of the cache, where the token observes a run; -1: it does not
    int64_t run_begin = 0, run_end = 0; // cells of the stream that it observes
};

struct attention_sample {
    static constexpr int64_t max_last_tokens = 8; // for rates of heads
    std::vector<sampled_token> which; // ascending; none: nothing below is touched in this run

    int64_t heads = 0, kv_heads = 0, d_k = 0;
    int64_t d_v = 0;            // 0: outputs are not wanted
    float scale = 0;            // of logits
    returning_vector<float> q;       // [heads][tokens][d_k]
    returning_vector<float> log_sum; // [heads][tokens] log2 of the sum of exp(logit) over all cells
    returning_vector<float> out;     // [heads][tokens][d_v], in the transform that values lie in
    returning_vector<uint8_t> sees_run; // [heads][tokens] whether the mask hides no cell that is observed
    std::vector<uint8_t> sees_block;    // [blocks of the stream] whether it hides no cell of it from the last token

    // Where a token of the graph stands in `which`, or would be put.
    int64_t place_of(int64_t token) const {
        const auto at = std::lower_bound(which.begin(), which.end(), token, [](const sampled_token & t, int64_t x) { return t.token < x; });
        return at - which.begin();
    }
    bool has(int64_t token) const {
        const auto at = static_cast<size_t>(place_of(token));
        return at < which.size() && which[at].token == token;
    }
    int64_t tokens() const { return static_cast<int64_t>(which.size()); }
    void resize() {
        q.resize(static_cast<size_t>(heads * tokens() * d_k));
        log_sum.resize(static_cast<size_t>(heads * tokens()));
        out.resize(static_cast<size_t>(heads * tokens() * d_v));
        sees_run.resize(static_cast<size_t>(heads * tokens()));
    }
    // Plans are kept, and what a long prompt's needs is not little.
    void release() {
        for (returning_vector<float> * floats : {&q, &log_sum, &out}) returning_vector<float>().swap(*floats);
        returning_vector<uint8_t>().swap(sees_run);
    }
};

} // namespace alloy::kv
