// Family select: passes over one long row of f32 (logits, scores) that find its highest elements and their weights without sorting it.
#pragma once
#include "base/isa.h"
#include <cstdint>

namespace alloy {

// A row is seen in blocks of 128 elements, a block as 8 lines of 16 lanes.
constexpr int64_t select_block = 128, select_lanes = 16;
constexpr int64_t select_blocks(int64_t n) { return (n + select_block - 1) / select_block; }

// Bins of exp_bins: equal steps of (shift - x), the last one takes the rest. In f32, so that every caller gets the same bin.
constexpr int select_bins = 2048;
constexpr float bins_per_unit = 64;
inline int bin_of(float x, float shift) {
    const float d = (shift - x) * bins_per_unit;
    if (!(d < static_cast<float>(select_bins - 1))) return select_bins - 1; // NaN as well
    return d > 0 ? static_cast<int>(d) : 0;
}

// CONTRACT select
//   Computes    with y[i] = x[i], NaN taken as -inf:
//                 block_max  maxima[b] = max of y over block b; lane_maxima[b][j] = max of y[128 b + 16 r + j] over r (if not null)
//                 in_range   ids and values (y) of all lo <= y[i] <= hi, ids ascending; *count = how many. Blocks with
//                            maxima[b] < lo are not read (if maxima is not null)
//                 exp_sums   e[i] = exp((y[i] - shift) * scale); sums[b] = sum of e over block b; exps[i] = e[i] (if not null)
//                 exp_bins   mass[bin_of(y[i], shift)] += e[i]; blocks with maxima[b] < lo are not read (if maxima is not null)
//                 moments    moments[0..2] = number, sum and sum of squares of y[i] - shift over all y[i] > -inf
//   Layout      one dense row; lane_maxima is [blocks][16]
//   Shape       0 <= n < 2^31; ids and values have room for 16 elements more than are found
//   Range       exp_sums, exp_bins: y[i] <= shift, shift finite, scale > 0; moments: differences below 2^60
//   Alignment   natural
//   Over-read   none
//   Numerics    block_max, in_range: exact. e: relative error <= (4 + 2 |d|) eps, d = (y - shift) * scale, eps = 2^-24; 0 for d < -87.
//               sums: 16 lanes of 8 f32 terms, lanes joined in a fixed tree: relative error <= 12 eps beyond that of e; mass: f64.
//               moments: f32 within a block, f64 across: relative error <= 16 eps, plus 2^-120 a term
//   Threads     a pure function of its row; `reproducible`: all ISAs give identical bits
//   Never       allocates, locks, logs, throws, reads globals or the environment, writes outside what is found, whatever x holds
struct select_args {
    const float * x;       // [n]
    int64_t n;
    float * maxima;        // [select_blocks(n)]
    float * lane_maxima;   // [select_blocks(n)][16] or null
    float lo, hi;
    int32_t * ids;         // [*count + 16]
    float * values;        // [*count + 16]
    int64_t * count;
    float shift, scale;
    double * sums;         // [select_blocks(n)]
    float * exps;          // [n] or null
    double * mass;         // [select_bins], added to
    double * moments;      // [3]
};

enum class select_op : uint8_t { block_max, in_range, exp_sums, exp_bins, moments, count };

using select_kernel = void (*)(const select_args &);

#define ALLOY_KERNEL(op, isa) void select_f32_##op##_##isa(const select_args & args);
#include "kernels/select/kernels.inc"
#undef ALLOY_KERNEL

// The best kernel for `op` within `allowed`, or null.
select_kernel find_select(select_op op, isa_set allowed = isa_allowed());

} // namespace alloy
