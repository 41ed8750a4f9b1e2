#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace alloy::sampling {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr int64_t exact_draw = 2048;    // rows up to here are drawn from in the host's own arithmetic
constexpr int64_t sorted_nucleus = 256; // a nucleus up to here is found by sorting the highest, as the host does first
constexpr draw bad_argument = {status::bad_argument, -1, 0};
constexpr draw no_token = {status::no_token, -1, 0};

void run_pass(select_op op, const select_args & args) {
    static const select_kernel kernels[] = {find_select(select_op::block_max), find_select(select_op::in_range), find_select(select_op::exp_sums),
                                            find_select(select_op::exp_bins), find_select(select_op::moments)};
    kernels[static_cast<int>(op)](args);
}

// exp((x - highest) / temperature) with the host's rounding. A temperature so small that quotients overflow leaves the highest only.
float weight(float x, float highest, float temperature) {
    if (x == highest) return 1;
    const float d = x / temperature - highest / temperature;
    return d <= 0 ? std::exp(d) : 0; // 0 for NaN
}

float scale_of(float temperature) { return std::min(1 / temperature, 1e30f); } // finite, which the kernels ask for

// The first place at which the running sum reaches `target`, and which has a weight; the last such place if rounding kept the sum below.
template <class Weight> int64_t first_to_reach(int64_t n, double & run, double target, Weight weight_at) {
    int64_t last = -1;
    for (int64_t i = 0; i < n; i++) {
        const auto w = static_cast<double>(weight_at(i));
        if (!(w > 0)) continue;
        run += w;
        last = i;
        if (run >= target) break;
    }
    return last;
}

} // namespace

bool sampler::is_valid(const float * logits, int64_t num_tokens, const chain & c) {
    const float parameters[] = {c.repeat_penalty, c.frequency_penalty, c.presence_penalty, c.top_n_sigma, c.top_p, c.min_p, c.temperature};
    return logits != nullptr && num_tokens > 0 && num_tokens < std::numeric_limits<int32_t>::max() && c.repeat_penalty > 0 &&
           std::none_of(std::begin(parameters), std::end(parameters), [](float x) { return std::isnan(x); });
}

// --- the row

void sampler::edit(row & r, const chain & c) {
    const bool penalised = !c.counts.empty() && (c.repeat_penalty != 1 || c.frequency_penalty != 0 || c.presence_penalty != 0);
    if (c.biases.empty() && !penalised) return;
    edited_.assign(r.values, r.values + r.n);
    r.values = edited_.data();
    const auto inside = [&](int32_t token) { return token >= 0 && token < r.n; };
    for (const token_bias & b : c.biases) {
        if (inside(b.token)) edited_[static_cast<size_t>(b.token)] += b.bias;
    }
    if (!penalised) return;
    for (const token_count & t : c.counts) {
        if (!inside(t.token) || t.count < 1) continue;
        float & x = edited_[static_cast<size_t>(t.token)];
        x = x <= 0 ? x * c.repeat_penalty : x / c.repeat_penalty;
        x -= static_cast<float>(t.count) * c.frequency_penalty + c.presence_penalty;
    }
}

// The maxima that later passes skip blocks by. Lanes are wanted where the highest are selected and blocks are few.
void sampler::measure(row & r, const chain & c) {
    const int64_t k = std::min(r.n, c.top_k > 0 ? c.top_k : c.top_p < 1 ? sorted_nucleus : c.min_keep);
    block_maxima(r.values, r.n, memory_, select_blocks(r.n) < 2 * k);
    r.highest = highest_of(memory_, r.n);
}

// All elements from `lo` on, in their order, as a row of its own.
sampler::row sampler::range(const row & r, float lo, select_memory & m) {
    const int64_t found = find_range(r.values, r.n, lo, inf, m, &m == &memory_);
    if (r.ids != nullptr) {
        for (int64_t i = 0; i < found; i++) m.ids[static_cast<size_t>(i)] = r.ids[m.ids[static_cast<size_t>(i)]];
    }
    return {m.values.data(), m.ids.data(), found, r.highest};
}

// highest - n * standard deviation of what is above -inf. The second pass is about the mean, so no digits cancel.
float sampler::sigma_threshold(const row & r, float top_n_sigma) {
    double moments[3];
    select_args args{};
    args.x = r.values;
    args.n = r.n;
    args.moments = moments;
    args.shift = r.highest;
    run_pass(select_op::moments, args);
    args.shift = static_cast<float>(r.highest + moments[1] / moments[0]);
    run_pass(select_op::moments, args);
    const double mean = moments[1] / moments[0];
    const auto sigma = static_cast<float>(std::sqrt(std::max(moments[2] / moments[0] - mean * mean, 0.0)));
    return r.highest - top_n_sigma * sigma;
}

// The row that the filters from top-k on see.
status sampler::prepare(const float * logits, int64_t num_tokens, const chain & c, row & r) {
    r = {logits, nullptr, num_tokens, 0};
    edit(r, c);
    measure(r, c);
    if (r.highest == -inf) return status::no_token;
    if (c.temperature <= 0) return status::ok;
    float lo = -inf;
    if (r.highest < inf) {
        if (c.top_n_sigma > 0) lo = sigma_threshold(r, c.top_n_sigma);
        if (!(lo > -inf)) return status::ok; // a row too wide for a deviation is left as it is
        r = range(r, lo, earlier_);
    } else { // infinite logits share everything
        r = range(r, inf, earlier_);
        std::fill_n(earlier_.values.begin(), r.n, 0.0f);
    }
    measure(r, c);
    return status::ok;
}

// --- filters

// The first k of the order as a sorted row.
sampler::row sampler::highest(const row & r, int64_t k) {
    const int64_t found = top_ranks(r.values, r.n, k, memory_, true);
    list_values_.resize(static_cast<size_t>(found));
    list_ids_.resize(static_cast<size_t>(found));
    int64_t n = 0;
    for (int64_t i = 0; i < found; i++) {
        const float value = r.values[id_of(memory_.ranks[static_cast<size_t>(i)])];
        if (!(value > -inf)) break; // no token, and none behind it
        list_values_[static_cast<size_t>(i)] = value;
        list_ids_[static_cast<size_t>(i)] = r.id(id_of(memory_.ranks[static_cast<size_t>(i)]));
        n++;
    }
    return {list_values_.data(), list_ids_.data(), n, r.highest};
}

// How many of a sorted row hold top_p of its mass. In the host's arithmetic, which is f32.
int64_t sampler::cut_top_p(const row & sorted, float top_p, int64_t min_keep) {
    weights_.resize(static_cast<size_t>(sorted.n));
    float total = 0, run = 0;
    for (int64_t i = 0; i < sorted.n; i++) total += weights_[static_cast<size_t>(i)] = std::exp(sorted.values[i] - sorted.highest);
    for (int64_t i = 0; i < sorted.n; i++) {
        run += weights_[static_cast<size_t>(i)] / total;
        if (run >= top_p && i + 1 >= min_keep) return i + 1;
    }
    return sorted.n;
}

int64_t sampler::cut_min_p(const row & sorted, float min_p, int64_t min_keep) {
    const float lowest = sorted.highest + std::log(min_p);
    int64_t n = std::min<int64_t>(1, sorted.n);
    while (n < sorted.n && (sorted.values[n] >= lowest || n < min_keep)) n++;
    return n;
}

sampler::selection sampler::select(const row & r, const chain & c) {
    if (c.top_k > 0) {
        row sorted = highest(r, c.top_k);
        if (c.top_p < 1) sorted.n = cut_top_p(sorted, c.top_p, c.min_keep);
        if (c.min_p > 0) sorted.n = cut_min_p(sorted, c.min_p, c.min_keep);
        return {sorted};
    }
    if (c.top_p < 1) return nucleus(r, c);
    if (c.min_p > 0) return likely(r, c);
    return {r};
}

// min-p alone: one pass, and the order of the vocabulary stays.
sampler::selection sampler::likely(const row & r, const chain & c) {
    const row left = range(r, r.highest + std::log(c.min_p), memory_);
    const int64_t least = std::max<int64_t>(1, c.min_keep);
    if (left.n >= least) return {left};
    return {highest(r, least)};
}

// top-p without top-k: most often the highest few hold the mass.
sampler::selection sampler::nucleus(const row & r, const chain & c) {
    sums_.resize(static_cast<size_t>(select_blocks(r.n)));
    select_args args{};
    args.x = r.values;
    args.n = r.n;
    args.shift = r.highest;
    args.scale = 1;
    args.sums = sums_.data();
    run_pass(select_op::exp_sums, args);
    const double wanted = static_cast<double>(c.top_p) * std::accumulate(sums_.begin(), sums_.end(), 0.0);

    row sorted = highest(r, c.min_keep > sorted_nucleus ? r.n : sorted_nucleus);
    const bool complete = sorted.n < sorted_nucleus || sorted.n == r.n || c.min_keep > sorted_nucleus;
    double run = 0;
    int64_t n = 0;
    while (n < sorted.n) {
        run += static_cast<double>(std::exp(sorted.values[n++] - r.highest));
        if (run >= wanted && n >= c.min_keep) break;
    }
    const bool all = run >= wanted || complete;
    sorted.n = n;
    if (c.min_p > 0) {
        const int64_t likely = cut_min_p(sorted, c.min_p, c.min_keep);
        if (all || likely < sorted.n) return {{sorted.values, sorted.ids, likely, r.highest}};
    }
    if (all) return {sorted};
    return {r, true, nucleus_end(r, c)};
}

void sampler::fill_bins(const row & r, float scale, float lo) {
    mass_.assign(select_bins, 0);
    select_args args{};
    args.x = r.values;
    args.n = r.n;
    args.maxima = memory_.maxima.data();
    args.lo = lo;
    args.shift = r.highest;
    args.scale = scale;
    args.mass = mass_.data();
    run_pass(select_op::exp_bins, args);
}

// The elements of a bin as sorted ranks; how many.
int64_t sampler::rank_bin(const row & r, int bin) {
    // Half a bin wider on either side than the bin is, so that no rounding hides a member.
    const float lo = bin == select_bins - 1 ? -std::numeric_limits<float>::max() : r.highest - (static_cast<float>(bin) + 1.5f) / bins_per_unit;
    const float hi = r.highest - (static_cast<float>(bin) - 0.5f) / bins_per_unit;
    const int64_t found = find_range(r.values, r.n, lo, hi, memory_, true);
    int64_t members = 0;
    for (int64_t i = 0; i < found; i++) {
        const float value = memory_.values[static_cast<size_t>(i)];
        if (bin_of(value, r.highest) == bin) memory_.ranks[static_cast<size_t>(members++)] = rank_of(value, memory_.ids[static_cast<size_t>(i)]);
    }
    sort_ranks(memory_.ranks.data(), memory_.spare.data(), members);
    return members;
}

// Where the nucleus of a row ends that is too long to be sorted, min-p applied. Leaves the bins' masses at T = 1.
sampler::bin_cut sampler::nucleus_end(const row & r, const chain & c) {
    fill_bins(r, 1, -inf);
    const double wanted = static_cast<double>(c.top_p) * std::accumulate(mass_.begin(), mass_.end(), 0.0);
    bin_cut cut{0, 0};
    double run = 0;
    while (cut.bin < select_bins - 1 && run + mass_[static_cast<size_t>(cut.bin)] < wanted) run += mass_[static_cast<size_t>(cut.bin++)];
    const float lowest = c.min_p > 0 ? r.highest + std::log(c.min_p) : -inf;
    const bool by_min_p = c.min_p > 0 && bin_of(lowest, r.highest) < cut.bin;
    if (by_min_p) cut.bin = bin_of(lowest, r.highest);
    const int64_t members = rank_bin(r, cut.bin);
    while (cut.members < members) {
        const float value = value_of(memory_.ranks[static_cast<size_t>(cut.members)]);
        if (value < lowest) break;
        cut.members++;
        run += static_cast<double>(std::exp(value - r.highest));
        if (!by_min_p && run >= wanted) break;
    }
    return cut;
}

// --- the draw

draw sampler::draw_from(const row & r, float temperature, double uniform) {
    if (r.n > exact_draw) return draw_by_blocks(r, temperature, uniform);
    weights_.resize(static_cast<size_t>(r.n));
    double sum = 0, run = 0;
    for (int64_t i = 0; i < r.n; i++) {
        weights_[static_cast<size_t>(i)] = weight(r.values[i], r.highest, temperature);
        sum += static_cast<double>(weights_[static_cast<size_t>(i)]);
    }
    const int64_t i = first_to_reach(r.n, run, sum * uniform, [&](int64_t at) { return weights_[static_cast<size_t>(at)]; });
    if (i < 0) return no_token;
    return {status::ok, r.id(i), static_cast<float>(static_cast<double>(weights_[static_cast<size_t>(i)]) / sum)};
}

// The block first, then the element in it.
draw sampler::draw_by_blocks(const row & r, float temperature, double uniform) {
    const int64_t blocks = select_blocks(r.n);
    sums_.resize(static_cast<size_t>(blocks));
    select_args args{};
    args.x = r.values;
    args.n = r.n;
    args.shift = r.highest;
    args.scale = scale_of(temperature);
    args.sums = sums_.data();
    run_pass(select_op::exp_sums, args);
    const double sum = std::accumulate(sums_.begin(), sums_.end(), 0.0), target = sum * uniform;
    double run = 0;
    const int64_t b = first_to_reach(blocks, run, target, [&](int64_t at) { return sums_[static_cast<size_t>(at)]; });
    if (b < 0) return no_token;
    run -= sums_[static_cast<size_t>(b)];
    const int64_t begin = b * select_block;
    const auto weight_at = [&](int64_t i) { return weight(r.values[begin + i], r.highest, temperature); };
    const int64_t i = first_to_reach(std::min(select_block, r.n - begin), run, target, weight_at);
    if (i < 0) return no_token;
    return {status::ok, r.id(begin + i), static_cast<float>(static_cast<double>(weight_at(i)) / sum)};
}

// The bin first, then its elements in their order: the host's walk down the sorted nucleus.
draw sampler::draw_by_bins(const selection & s, float temperature, double uniform) {
    const row & r = s.left;
    if (temperature != 1) fill_bins(r, scale_of(temperature), r.highest - (static_cast<float>(s.cut.bin) + 1.5f) / bins_per_unit);
    const auto ranked = [&](int64_t i) { return weight(value_of(memory_.ranks[static_cast<size_t>(i)]), r.highest, temperature); };
    double whole = 0, part = 0;
    for (int b = 0; b < s.cut.bin; b++) whole += mass_[static_cast<size_t>(b)];
    int64_t members = std::min(rank_bin(r, s.cut.bin), s.cut.members);
    for (int64_t i = 0; i < members; i++) part += static_cast<double>(ranked(i));
    const double sum = whole + part, target = sum * uniform;
    double run = 0;
    const int64_t b = first_to_reach(s.cut.bin, run, target, [&](int64_t at) { return mass_[static_cast<size_t>(at)]; });
    if (b >= 0 && (run >= target || !(part > 0))) {
        run -= mass_[static_cast<size_t>(b)];
        members = rank_bin(r, static_cast<int>(b));
    }
    const int64_t i = first_to_reach(members, run, target, ranked);
    if (i < 0) return no_token;
    return {status::ok, r.id(id_of(memory_.ranks[static_cast<size_t>(i)])), static_cast<float>(static_cast<double>(ranked(i)) / sum)};
}

draw sampler::sample(const float * logits, int64_t num_tokens, const chain & c, double uniform) {
    if (!is_valid(logits, num_tokens, c) || !(uniform >= 0 && uniform <= 1)) return bad_argument;
    row r;
    const status prepared = prepare(logits, num_tokens, c, r);
    if (prepared != status::ok) return {prepared, -1, 0};
    if (c.temperature <= 0) return {status::ok, first_of_maxima(r.values, r.n, memory_), 1};
    const selection s = select(r, c);
    return s.binned ? draw_by_bins(s, c.temperature, uniform) : draw_from(s.left, c.temperature, uniform);
}

status sampler::survivors(const float * logits, int64_t num_tokens, const chain & c, std::vector<survivor> & out) {
    out.clear();
    if (!is_valid(logits, num_tokens, c)) return status::bad_argument;
    row r;
    const status prepared = prepare(logits, num_tokens, c, r);
    if (prepared != status::ok) return prepared;
    if (c.temperature <= 0) {
        const int32_t token = first_of_maxima(r.values, r.n, memory_);
        out.push_back({token, r.values[token]});
        return status::ok;
    }
    const selection s = select(r, c);
    const row & left = s.left;
    const auto last = s.binned && rank_bin(left, s.cut.bin) > 0 && s.cut.members > 0 ? memory_.ranks[static_cast<size_t>(s.cut.members - 1)] : 0;
    std::vector<rank> kept;
    for (int64_t i = 0; i < left.n; i++) {
        const float value = left.values[i];
        if (!(value > -inf)) continue;
        const int32_t place = static_cast<int32_t>(i);
        if (s.binned && bin_of(value, left.highest) >= s.cut.bin && (bin_of(value, left.highest) > s.cut.bin || rank_of(value, place) > last)) continue;
        kept.push_back(rank_of(value, place));
    }
    std::sort(kept.begin(), kept.end());
    for (const rank k : kept) out.push_back({left.id(id_of(k)), left.values[id_of(k)]});
    return status::ok;
}

} // namespace alloy::sampling
