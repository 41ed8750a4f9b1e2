// Family quantize: f32 rows -> int8 activation rows for integer dot products.
#pragma once
#include "base/isa.h"
#include <cstddef>
#include <cstdint>

namespace alloy {

// The two activation formats (bytes in formats/act_q8.h): a scale per 32 for the 32-block weight types, per 256 for the K-quants.
enum class act_format : uint8_t { q8_32, q8_256, count };

// CONTRACT quantize
//   Computes    per row and block: d = max|x| / 127, code[i] = round_to_nearest_even(x[i] * (127 / max|x|)), sum of codes per
//               group of 32 (q8_32) or 16 (q8_256); max|x| < 2^-119 (1 / d would overflow) gives d = 0 and zero codes
//   Layout      in: dense f32 rows; out: one act_q8 row each (formats/act_q8.h), strides in bytes
//   Shape       k a positive multiple of the block (32 or 256)
//   Alignment   natural; out rows 64 B
//   Over-read   none
//   Numerics    |x - d * code| <= d * (0.5 + 127 * 2^-22) + 2^-119: half a step, and one rounding each of 127 / max|x|, of
//               its product with x and of d; codes in [-127, 127]. A block with NaN has scale NaN, one with Inf scale Inf;
//               codes are unspecified in that range then, never a trap
//   Threads     a pure function of its rows; `reproducible`: all ISAs give identical bytes
//   Never       allocates, locks, logs, throws, reads globals or the environment
struct quantize_args {
    const float * in;     // [num_rows][k]
    void * out;           // [num_rows] act_q8 rows
    int64_t stride_in;    // bytes
    int64_t stride_out;   // bytes
    int64_t num_rows;
    int64_t k;
};

using quantize_kernel = void (*)(const quantize_args &);

#define ALLOY_KERNEL(format, isa) void quantize_##format##_f32_##isa(const quantize_args & args);
#include "kernels/quantize/kernels.inc"
#undef ALLOY_KERNEL

// The best kernel for `format` within `allowed`, or null.
quantize_kernel find_quantize(act_format format, isa_set allowed = isa_allowed());

} // namespace alloy
