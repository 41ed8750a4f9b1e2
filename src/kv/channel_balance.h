// Factors by which the channels of keys are multiplied before they are sealed, and queries divided.
//
// What a codec loses of a turned row points anywhere, and its size is a share of the row's. A query does not point anywhere: in some channels it is
// large where keys are small. With factors f the error of q.k has the energy
//   sum_i (f_i k_i)^2 * sum_i (q_i / f_i)^2,     k, q: rms of channels,
// which is least for f_i^2 = q_i / k_i. Moving scale from one operand to the other is SmoothQuant's idea (Xiao et al. 2022, arXiv 2211.10438).
// Where queries and keys pass a norm with weights of each channel, these weights tell q and k: better than samples do, which are of a few tokens at
// a few positions (docs/performance.md), and the same whenever a state is restored.
#pragma once
#include <cstdint>
#include <vector>

namespace alloy::kv {

struct norm_weights {
    const float * values;
    int64_t num;   // a head's, for all, or those of all heads
    int64_t heads;
};

// Channels that the position of a token turns into one another (ROPE): on the average over positions they are equally large.
struct turned_channels {
    int64_t num = 0;     // the first so many of a head
    bool halves = false; // i and i + num / 2; otherwise 2 i and 2 i + 1
};

class channel_balance {
  public:
    channel_balance() = default; // none
    channel_balance(const norm_weights & queries, const norm_weights & keys, int64_t d, const turned_channels & turned);
    bool fits(int64_t heads, int64_t d) const { return d == d_ && static_cast<int64_t>(factors_.size()) == heads * d; }
    bool is_none() const { return factors_.empty(); }
    const float * of(int64_t head) const { return is_none() ? nullptr : factors_.data() + head * d_; } // [d]; null: none
    void multiply(int64_t head, std::vector<float> & rows) const; // [any][d]
    void divide(int64_t head, std::vector<float> & rows) const;
    bool operator==(const channel_balance &) const = default;

  private:
    int64_t d_ = 0;
    std::vector<float> factors_; // [heads][d]
};

} // namespace alloy::kv
