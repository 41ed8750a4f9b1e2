#include "kv/channel_balance.h"

#include <cmath>

namespace alloy::kv {
namespace {

// Of the mean channel's energy, taken for granted: weights near 0 are not that far from what is seen of the channel, and factors stay within 1/10 and 10
// or so.
constexpr double least_share = 0.02;

int64_t partner_of(int64_t channel, const turned_channels & turned) {
    if (channel >= turned.num) return channel;
    return turned.halves ? (channel + turned.num / 2) % turned.num : channel ^ 1;
}

// Of the channels of each of `heads` heads, on the average over the heads of `of` that belong to it: shares of the mean channel's.
std::vector<double> energies(const norm_weights & of, int64_t heads, int64_t d, const turned_channels & turned) {
    std::vector<double> energy(static_cast<size_t>(heads * d)), shares;
    for (int64_t i = 0; i < of.heads * d; i++) {
        const double w = of.values[i % of.num];
        energy[static_cast<size_t>(i / d * heads / of.heads * d + i % d)] += w * w;
    }
    for (int64_t head = 0; head < heads; head++) {
        const double * x = energy.data() + head * d;
        double sum = 0;
        for (int64_t i = 0; i < d; i++) sum += x[i];
        for (int64_t i = 0; i < d; i++) shares.push_back((x[i] + x[partner_of(i, turned)]) / 2 / sum * static_cast<double>(d) + least_share);
    }
    return shares;
}

} // namespace

channel_balance::channel_balance(const norm_weights & queries, const norm_weights & keys, int64_t d, const turned_channels & turned) : d_(d) {
    const std::vector<double> of_queries = energies(queries, keys.heads, d, turned), of_keys = energies(keys, keys.heads, d, turned);
    for (size_t i = 0; i < of_keys.size(); i++) {
        factors_.push_back(static_cast<float>(std::pow(of_queries[i] / of_keys[i], 0.25)));
        if (!std::isfinite(factors_.back())) {
            *this = {}; // weights that are all 0, or not numbers
            return;
        }
    }
}

void channel_balance::multiply(int64_t head, std::vector<float> & rows) const {
    if (is_none()) return;
    for (float * row = rows.data(); row < rows.data() + rows.size(); row += d_) {
        for (int64_t i = 0; i < d_; i++) row[i] *= of(head)[i];
    }
}

void channel_balance::divide(int64_t head, std::vector<float> & rows) const {
    if (is_none()) return;
    for (float * row = rows.data(); row < rows.data() + rows.size(); row += d_) {
        for (int64_t i = 0; i < d_; i++) row[i] /= of(head)[i];
    }
}

} // namespace alloy::kv
