#include "kernels/select/rank.h"

#include "base/check.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

namespace alloy {
namespace {

select_kernel kernel_for(select_op op) {
    static const select_kernel kernels[] = {find_select(select_op::block_max), find_select(select_op::in_range)};
    return kernels[static_cast<int>(op)];
}

// --- sorting

constexpr int64_t select_few = 16;  // up to this part of a row, maxima of groups bound what is looked at
constexpr int64_t short_sort = 192; // below, std::sort beats three passes over 2048 counters
constexpr int64_t long_sort = 4096; // from here, counters of eleven bits pay

// Least significant digit first: every pass keeps the order of the one before, so equal values stay in ascending ids when they came so.
template <int digit_bits> struct radix {
    static constexpr int num_digits = (32 + digit_bits - 1) / digit_bits, size = 1 << digit_bits;
    uint32_t counts[num_digits][size] = {};

    static uint32_t digit(rank r, int d) { return static_cast<uint32_t>(r >> (32 + d * digit_bits)) & (size - 1); }
    void count(rank r) {
        for (int d = 0; d < num_digits; d++) counts[d][digit(r, d)]++;
    }
    // All ranks share this digit: no pass.
    bool is_shared(rank any, int d, int64_t n) const { return counts[d][digit(any, d)] == static_cast<uint32_t>(n); }
    template <class T> void pass(const rank * from, T * to, int64_t n, int d) {
        uint32_t *next = counts[d], before = 0;
        for (int i = 0; i < size; i++) before += std::exchange(next[i], before);
        for (int64_t i = 0; i < n; i++) to[next[digit(from[i], d)]++] = static_cast<T>(from[i]); // int32_t: the id
    }
};

template <int digit_bits> void radix_sort(rank * ranks, rank * spare, int64_t n) {
    radix<digit_bits> r;
    for (int64_t i = 0; i < n; i++) r.count(ranks[i]);
    rank *from = ranks, *to = spare;
    for (int d = 0; d < r.num_digits; d++) {
        if (r.is_shared(from[0], d, n)) continue;
        r.pass(from, to, n, d);
        std::swap(from, to);
    }
    if (from != ranks) std::copy(from, from + n, ranks);
}

// Ranks of all elements, `flip` turned over.
void rank_all(const float * x, int64_t n, select_memory & m, rank flip = 0) {
    m.fit(n);
    for (int64_t i = 0; i < n; i++) m.ranks[static_cast<size_t>(i)] = rank_of(x[i], static_cast<int32_t>(i)) ^ flip; // alone, so that it becomes vectors
}

// The last pass writes ids alone.
template <int digit_bits> void radix_argsort(int64_t n, int32_t * ids, select_memory & m) {
    radix<digit_bits> r;
    rank *from = m.ranks.data(), *to = m.spare.data();
    for (int64_t i = 0; i < n; i++) r.count(from[i]);
    int last = r.num_digits - 1;
    while (last >= 0 && r.is_shared(from[0], last, n)) last--;
    for (int d = 0; d < last; d++) {
        if (r.is_shared(from[0], d, n)) continue;
        r.pass(from, to, n, d);
        std::swap(from, to);
    }
    if (last >= 0) r.pass(from, ids, n, last);
    else std::iota(ids, ids + n, 0);
}

// --- a bound from below for the k-th highest element

// The k-th highest of the maxima of disjoint groups: k elements are at least that high. Some slack is cheap (a few candidates more), so
// many groups are counted in bins rather than selected from.
float kth_highest(float * maxima, int64_t num, int64_t k) {
    constexpr int num_bins = 1024;
    if (num > num_bins) {
        float highest = -std::numeric_limits<float>::infinity(), lowest = std::numeric_limits<float>::infinity();
        for (int64_t i = 0; i < num; i++) {
            highest = std::max(highest, maxima[i]);
            lowest = std::min(lowest, maxima[i]);
        }
        const float width = (highest - lowest) / num_bins, per_unit = 1 / width;
        if (width > 0 && std::isfinite(width) && std::isfinite(per_unit)) {
            uint32_t counts[num_bins + 1] = {};
            const auto bin = [&](float y) { return std::min(static_cast<int>((highest - y) * per_unit), num_bins); };
            for (int64_t i = 0; i < num; i++) counts[bin(maxima[i])]++;
            int64_t above = 0;
            int b = 0;
            for (; b < num_bins && above + counts[b] < k; b++) above += counts[b];
            if (above + counts[b] <= k + k / 4 + 16) {
                float bound = highest;
                for (int64_t i = 0; i < num; i++) {
                    if (bin(maxima[i]) <= b) bound = std::min(bound, maxima[i]);
                }
                return bound;
            }
        }
    }
    std::nth_element(maxima, maxima + (k - 1), maxima + num, std::greater<>());
    return maxima[k - 1];
}

// Groups of whole blocks, or of one lane of a block, joined until about two to four groups are left for each element wanted: of 2k equal
// groups about 1.4 k elements reach the bound, if the highest lie anywhere.
float bound_of_top(int64_t n, int64_t k, select_memory & m) {
    const int64_t blocks = select_blocks(n);
    const bool lanes = blocks < 2 * k;
    const std::vector<float> & source = lanes ? m.lane_maxima : m.maxima;
    const int64_t num = lanes ? blocks * select_lanes : blocks;
    const int64_t width = std::max<int64_t>(1, num / (2 * k));
    const int64_t groups = (num + width - 1) / width;
    m.group_maxima.resize(static_cast<size_t>(groups));
    for (int64_t g = 0; g < groups; g++) {
        const int64_t end = std::min(num, (g + 1) * width);
        float top = source[static_cast<size_t>(g * width)];
        for (int64_t i = g * width + 1; i < end; i++) top = std::max(top, source[static_cast<size_t>(i)]);
        m.group_maxima[static_cast<size_t>(g)] = top;
    }
    return kth_highest(m.group_maxima.data(), groups, k);
}

// Where a large part of a row is wanted: an element of a sample of it, low enough that k elements reach it but once in thousands of rows. Then
// too few are found, and everything is sorted.
float sampled_bound(const float * x, int64_t n, int64_t k) {
    constexpr int64_t samples = 1024;
    std::array<float, samples> sample;
    for (int64_t i = 0; i < samples; i++) {
        const float y = x[i * n / samples];
        sample[static_cast<size_t>(i)] = y == y ? y : -std::numeric_limits<float>::infinity();
    }
    const double expected = static_cast<double>(samples * k) / static_cast<double>(n);
    const auto at = static_cast<int64_t>(expected + 4 * std::sqrt(expected) + 1);
    if (at >= samples) return -std::numeric_limits<float>::infinity();
    std::nth_element(sample.begin(), sample.begin() + at, sample.end(), std::greater<>());
    return sample[static_cast<size_t>(at)];
}

} // namespace

void select_memory::fit(int64_t n) {
    const auto room = static_cast<size_t>(n + select_lanes);
    if (ids.size() >= room) return;
    ids.resize(room);
    values.resize(room);
    ranks.resize(room);
    spare.resize(room);
}

void block_maxima(const float * x, int64_t n, select_memory & m, bool with_lanes) {
    const auto blocks = static_cast<size_t>(select_blocks(n));
    if (m.maxima.size() < blocks) m.maxima.resize(blocks);
    if (with_lanes && m.lane_maxima.size() < blocks * select_lanes) m.lane_maxima.resize(blocks * select_lanes);
    select_args args{};
    args.x = x;
    args.n = n;
    args.maxima = m.maxima.data();
    args.lane_maxima = with_lanes ? m.lane_maxima.data() : nullptr;
    kernel_for(select_op::block_max)(args);
}

float highest_of(const select_memory & m, int64_t n) {
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t b = 0; b < select_blocks(n); b++) top = std::max(top, m.maxima[static_cast<size_t>(b)]);
    return top;
}

int64_t find_range(const float * x, int64_t n, float lo, float hi, select_memory & m, bool use_maxima) {
    m.fit(n);
    int64_t found = 0;
    select_args args{};
    args.x = x;
    args.n = n;
    args.maxima = use_maxima ? m.maxima.data() : nullptr;
    args.lo = lo;
    args.hi = hi;
    args.ids = m.ids.data();
    args.values = m.values.data();
    args.count = &found;
    kernel_for(select_op::in_range)(args);
    return found;
}

void sort_ranks(rank * ranks, rank * spare, int64_t n) {
    ALLOY_EXPECT(n < (int64_t{1} << 31));
    if (n < short_sort) {
        std::sort(ranks, ranks + n);
    } else if (n < long_sort) {
        radix_sort<8>(ranks, spare, n);
    } else {
        radix_sort<11>(ranks, spare, n);
    }
}

int64_t top_ranks(const float * x, int64_t n, int64_t k, select_memory & m, bool maxima_known) {
    k = std::min(k, n);
    if (k <= 0) return 0;
    int64_t found = 0;
    if (n >= 512 && k <= n / select_few) {
        if (!maxima_known) block_maxima(x, n, m, select_blocks(n) < 2 * k);
        found = find_range(x, n, bound_of_top(n, k, m), std::numeric_limits<float>::infinity(), m, true);
    } else if (n >= 4096 && k <= n / 2) {
        found = find_range(x, n, sampled_bound(x, n, k), std::numeric_limits<float>::infinity(), m, false);
    }
    if (found >= k) {
        for (int64_t i = 0; i < found; i++) m.ranks[static_cast<size_t>(i)] = rank_of(m.values[static_cast<size_t>(i)], m.ids[static_cast<size_t>(i)]);
    } else {
        rank_all(x, n, m);
        found = n;
    }
    ALLOY_EXPECT(found >= k);
    if (found > 2 * k) {
        std::nth_element(m.ranks.begin(), m.ranks.begin() + (k - 1), m.ranks.begin() + found);
        std::sort(m.ranks.begin(), m.ranks.begin() + k); // ids are no longer in order, which the radix sort relies on
        return k;
    }
    sort_ranks(m.ranks.data(), m.spare.data(), found);
    return k;
}

void argsort(const float * x, int64_t n, bool descending, int32_t * ids, select_memory & m) {
    rank_all(x, n, m, descending ? 0 : 0xffffffff00000000u);
    if (n < short_sort) {
        std::sort(m.ranks.begin(), m.ranks.begin() + n);
        for (int64_t i = 0; i < n; i++) ids[i] = id_of(m.ranks[static_cast<size_t>(i)]);
    } else if (n < long_sort) {
        radix_argsort<8>(n, ids, m);
    } else {
        radix_argsort<11>(n, ids, m);
    }
}

int32_t argmax(const float * x, int64_t n, select_memory & m) {
    if (n <= 0) return 0;
    block_maxima(x, n, m);
    return first_of_maxima(x, n, m);
}

int32_t first_of_maxima(const float * x, int64_t n, const select_memory & m) {
    const float top = highest_of(m, n);
    if (top == -std::numeric_limits<float>::infinity()) return 0; // all are equal, NaN among them
    for (int64_t b = 0; b < select_blocks(n); b++) {
        if (m.maxima[static_cast<size_t>(b)] != top) continue;
        const int64_t end = std::min(n, (b + 1) * select_block);
        for (int64_t i = b * select_block; i < end; i++) {
            if (x[i] == top) return static_cast<int32_t>(i);
        }
    }
    return 0;
}

} // namespace alloy
