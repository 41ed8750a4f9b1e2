// Family matmul: packed weights times activations, from one column to whole prompts.
#pragma once
#include "base/isa.h"
#include "formats/packed.h"
#include <cstdint>

namespace alloy {

// CONTRACT matmul
//   Computes    for each row r in [0, num_rows), R = first_row + r, and column c in [0, n):
//                 out[c][R] = scale * sum_i W[r][i] * A[c][i] + bias[R] + residual[c][R]       i in [0, k)
//               W: the weights as their GGUF type defines them; A: the activations as their row stores them (codes times scale)
//   Layout      weights: groups of packed.h, stride_group apart; acts[c]: one row of act_q8.h (q8_32 or q8_256) or of f32,
//               whichever the weight type's line of formats/weights.inc names; out[c], residual[c]: f32 rows
//   Shape       num_rows >= 1, n >= 0, any; k >= 1, a multiple of the type's block; of 32 for a quantised type
//   Tile start  at any group, which `weights` points at; the other operands by first_row, so that tiles share their arrays
//   Alias       residual[c] may be out[c]; no other overlap
//   Alignment   groups 64 B; quantised activation rows 64 B; others natural
//   Over-read   none of activations, out, bias, residual; weights of a partial last group are read whole, and prefetched beyond
//   Numerics    dot products of codes within a sub-block are exact (int32; |sum| <= 32 * 255 * 127, no saturation on the way).
//               |error| <= (k / block + 24) eps sum_i |W[r][i] A[c][i]| + the same for each minimum's part, eps = 2^-24;
//               floating types (k / 4 + 8) eps
//               NaN or Inf in a scale gives NaN or Inf in its row, and only there
//   Threads     a pure function of its rows and columns; disjoint rows may run concurrently. Not `reproducible` in n: the order
//               of additions differs between n <= 8 and n > 8
//   Never       allocates, locks, logs, throws, reads globals or the environment. Takes up to 192 KiB of stack
struct matmul_args {
    const uint8_t * weights;        // [ceil(num_rows / 16)] groups
    int64_t stride_group;           // bytes
    int64_t num_rows;               // output features of this call
    int64_t first_row;              // the first of them in out, bias and residual
    int64_t k;
    int64_t n;
    const void * const * acts;      // [n]
    float * const * out;            // [n] -> [first_row + num_rows]
    const float * bias;             // [first_row + num_rows] or null
    const float * const * residual; // [n] -> [first_row + num_rows] or null
    float scale;
};

using matmul_kernel = void (*)(const matmul_args &);

// matmul_f32_<weights>_<isa>; the weight type implies the activations.
#define ALLOY_KERNEL(weights, isa) void matmul_f32_##weights##_##isa(const matmul_args & args);
#include "kernels/matmul/kernels.inc"
#undef ALLOY_KERNEL

// The best kernel for weights of `type` within `allowed`, or null.
matmul_kernel find_matmul(weight_type type, isa_set allowed = isa_allowed());

} // namespace alloy
