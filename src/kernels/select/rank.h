// The highest elements of a row in their total order, from the passes of family select: (value descending, id ascending), NaN as
// -inf, -0 equal to +0. Nothing here depends on the ISA.
#pragma once
#include "kernels/select/select.h"

#include <bit>
#include <limits>
#include <vector>

namespace alloy {

// A value and its id in one number: ascending ranks are descending values, equal values ascending ids.
using rank = uint64_t;

// Without branches: signs of logits are a coin's flips.
inline rank rank_of(float value, int32_t id) {
    constexpr uint32_t infinity = 0x7f800000u, sign = 0x80000000u;
    uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f); // -0 + 0 is +0
    bits = (bits & ~sign) > infinity ? sign | infinity : bits;
    const uint32_t descending = bits ^ (~static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) & ~sign);
    return static_cast<rank>(descending) << 32 | static_cast<uint32_t>(id);
}
inline int32_t id_of(rank r) { return static_cast<int32_t>(r & 0xffffffffu); }
inline float value_of(rank r) { // -0 comes back as +0, NaN as -inf
    const auto descending = static_cast<uint32_t>(r >> 32);
    return std::bit_cast<float>((descending >> 31) != 0 ? descending : ~descending & 0x7fffffffu);
}

// Memory of one thread's selections; it grows to the longest row and stays.
struct select_memory {
    std::vector<float> maxima, lane_maxima, group_maxima, values;
    std::vector<int32_t> ids;
    std::vector<rank> ranks, spare;

    // Room for what a range of n elements may hold.
    void fit(int64_t n);
};

// The passes, with the best kernels of this CPU.
void block_maxima(const float * x, int64_t n, select_memory & m, bool with_lanes = false); // into maxima, lane_maxima
float highest_of(const select_memory & m, int64_t n);                                      // after block_maxima; -inf for none
int64_t find_range(const float * x, int64_t n, float lo, float hi, select_memory & m, bool use_maxima); // into ids, values: how many

// Sorts ranks ascending; `spare` has room for as many.
void sort_ranks(rank * ranks, rank * spare, int64_t n);

// The first min(k, n) of the order into m.ranks, sorted; how many. `maxima_known`: block_maxima ran on this row, with lanes.
int64_t top_ranks(const float * x, int64_t n, int64_t k, select_memory & m, bool maxima_known = false);

// All ids in their order, or by ascending value (equal values: ascending ids; NaN first).
void argsort(const float * x, int64_t n, bool descending, int32_t * ids, select_memory & m);

// The first of the order; 0 for an empty row.
int32_t argmax(const float * x, int64_t n, select_memory & m);
int32_t first_of_maxima(const float * x, int64_t n, const select_memory & m); // the same after block_maxima

} // namespace alloy
