// Bits of its own for each head: GGML_ALLOY_KV=<share>. What errors of a head's keys and values would do to the output of its layer's
// attention is measured on sampled queries with exact probabilities; bytes go to where they save most of it.
//
// First order, for a query with probabilities p, output o and logits q.k of one head, errors dk and dv of a cell do
//   |do|^2 = p^2 (q.dk)^2 |v - o|^2    and    |do|^2 = p^2 |dv|^2,
// which counts relative to the energy of that output, and the more the earlier the layer is (docs/performance.md tells what else was tried). All sealed
// cells that the queries see are counted, by some blocks that stand for all. Of these the errors are not known any more: errors of a codec point
// anywhere in turned rows, and are as large beside them as in the blocks about to be sealed. Bits stay within one step of the uniform split of the same bytes: beyond, low rates cost more
// than the first order says. That the last tokens are sampled keeps massive activations of a sequence's first token out of the normaliser.
#pragma once
#include "kv/attention_sample.h"
#include "kv/policy.h"

#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

namespace alloy::kv {

class cache_tensor;

class head_rates {
  public:
    explicit head_rates(const policy & wanted) : policy_(wanted) {}

    bool on() const { return policy_.share > 0; }
    // Whether the next graph that seals something shall be sampled. Counts the asking.
    bool sample_next();
    // Adds what a sample tells: what codecs lose of the rows of these blocks, about to be sealed, and what that does to all cells that are or will be
    // sealed in the stream from first_block on. One thread a layer.
    void measure(const cache_tensor & keys, const cache_tensor & values, const std::vector<int64_t> & to_seal, int64_t first_block,
                 const attention_sample & seen);
    // Gives every measured head its codecs. Blocks sealed before keep theirs.
    void assign();

  private:
    static constexpr int options = 3; // codecs to choose from: one step down, the uniform one, one step up
    struct layer {
        cache_tensor *keys, *values;
        std::vector<double> damage[2]; // of keys, of values: [kv_heads][options], sums
        double energy[2] = {}, lost[2][options] = {}; // of rows, and what codecs lose of it
        int64_t samples = 0;
    };
    std::vector<kv_codec> choices(bool values) const;
    layer & of(const cache_tensor & keys, const cache_tensor & values);

    policy policy_;
    std::mutex lock_;
    std::deque<layer> layers_; // references stay good while it grows
    int64_t asked_ = 0;
};

} // namespace alloy::kv
