// One token from a row of raw logits: llama.cpp's default chain of samplers (bias, penalties, top-n-sigma, top-k, top-p, min-p,
// temperature, one uniform) without an array of candidates and without sorting the row.
//
// Order everywhere: (logit descending, id ascending), NaN as -inf. Every filter keeps a beginning of that order. Weights are those of the
// host's samplers: filters see T = 1, the draw sees T; top-p after top-k takes the mass inside the top k. Small sets are walked in the
// host's own arithmetic, large ones by their blocks or bins, so a uniform gives the host's token up to the rounding of sums.
#pragma once
#include "kernels/select/rank.h"

#include <cstdint>
#include <span>
#include <vector>

namespace alloy::sampling {

struct token_bias {
    int32_t token;
    float bias;
};
struct token_count {
    int32_t token;
    int32_t count; // how often among the last tokens
};

// Defaults change nothing. Tokens out of range and counts below 1 are passed over.
struct chain {
    std::span<const token_bias> biases = {};
    std::span<const token_count> counts = {}; // of tokens that the penalties apply to, each token once
    float repeat_penalty = 1;                 // above 0
    float frequency_penalty = 0;
    float presence_penalty = 0;
    float top_n_sigma = 0;                    // <= 0: off
    int64_t top_k = 0;                        // <= 0: off; above the row's length: all
    float top_p = 1;                          // >= 1: off; <= 0: the first token
    float min_p = 0;                          // <= 0: off; above 1: the first token
    int64_t min_keep = 0;                     // top-p and min-p keep at least as many
    float temperature = 1;                    // <= 0: the first token of the order
};

enum class status {
    ok,
    bad_argument, // no row, a parameter is NaN, or the uniform is not in [0, 1]
    no_token,     // every logit is -inf or NaN
};

struct draw {
    status result;
    int32_t token;     // -1 unless ok
    float probability; // of the token in the distribution that was drawn from
};

struct survivor {
    int32_t token;
    float logit; // with bias and penalties
};

// The memory of one thread's sampling; it grows to the longest row and stays (about 32 bytes a token).
class sampler {
  public:
    // The token that `uniform` selects: the first in the host's order whose running sum of weights reaches uniform * (sum of all), and
    // which has a weight. Exactly one uniform for each token, whatever the chain. [num_tokens] logits, not changed.
    draw sample(const float * logits, int64_t num_tokens, const chain & c, double uniform);

    // The tokens that `sample` would draw from, highest first (id breaks ties), tokens of weight 0 at T = 1 among them.
    status survivors(const float * logits, int64_t num_tokens, const chain & c, std::vector<survivor> & out);

  private:
    // A row of logits; ids: of its elements in the vocabulary, null when they are their places.
    struct row {
        const float * values;
        const int32_t * ids;
        int64_t n;
        float highest;
        int32_t id(int64_t i) const { return ids ? ids[i] : static_cast<int32_t>(i); }
    };
    // Where a nucleus too long to sort ends: in a bin of (highest - x), after `members` ranks of it.
    struct bin_cut {
        int bin;
        int64_t members;
    };
    // What is left: a row in the order of the draw, or the beginning of a row by bins.
    struct selection {
        row left;
        bool binned = false;
        bin_cut cut = {};
    };

    static bool is_valid(const float * logits, int64_t num_tokens, const chain & c);
    status prepare(const float * logits, int64_t num_tokens, const chain & c, row & r);
    void edit(row & r, const chain & c);
    void measure(row & r, const chain & c);
    row range(const row & r, float lo, select_memory & m);
    float sigma_threshold(const row & r, float top_n_sigma);

    selection select(const row & r, const chain & c);
    row highest(const row & r, int64_t k);
    int64_t cut_top_p(const row & sorted, float top_p, int64_t min_keep);
    static int64_t cut_min_p(const row & sorted, float min_p, int64_t min_keep);
    selection nucleus(const row & r, const chain & c);
    bin_cut nucleus_end(const row & r, const chain & c);
    selection likely(const row & r, const chain & c);
    int64_t rank_bin(const row & r, int bin);
    void fill_bins(const row & r, float scale, float lo);

    draw draw_from(const row & r, float temperature, double uniform);
    draw draw_by_blocks(const row & r, float temperature, double uniform);
    draw draw_by_bins(const selection & s, float temperature, double uniform);

    select_memory memory_;  // of the row at hand
    select_memory earlier_; // holds that row when a filter made it
    std::vector<float> edited_, list_values_, weights_;
    std::vector<int32_t> list_ids_;
    std::vector<double> sums_, mass_;
};

} // namespace alloy::sampling
