// Family rowwise: arithmetic on independent rows of f32.
#pragma once
#include "base/isa.h"
#include <cstdint>

namespace alloy {

// CONTRACT rowwise
//   Computes    per row r in [0, num_rows), with a = row r of `a`, b = row r of `b`:
//                 rms_norm      out[i] = a[i] * s,         s = 1 / sqrt(mean(a^2) + eps), eps = p0
//                 rms_norm_mul  out[i] = a[i] * s * b[i]   (b: the norm weight)
//                 add           out[i] = a[i] + b[i]
//                 scale         out[i] = a[i] * p0 + p1
//                 swiglu        out[i] = a[i] / (1 + exp(-a[i])) * b[i]
//                 geglu         out[i] = gelu(a[i]) * b[i], gelu(x) = x/2 * (1 + tanh(sqrt(2/pi) * x * (1 + 0.044715 x^2)))
//                 rope_normal   pairs (2j, 2j+1), rope_neox pairs (j, j + n/2), n = num_rotated, j in [0, n/2):
//                                 out[lo] = a[lo] * b[2j] - a[hi] * b[2j+1],  out[hi] = a[lo] * b[2j+1] + a[hi] * b[2j]
//                               b: (cos, sin) pairs of the row's position; elements from n on are copied
//                 hadamard      out = H a / sqrt(k), H the Walsh-Hadamard matrix in natural order
//   Layout      dense f32 rows, strides in bytes; stride_b = 0 repeats one row of b
//   Shape       k >= 1, any (hadamard: a power of two from 16 on); num_rotated even, <= k (rope only)
//   Alias       out may be a or b themselves (same address and stride); no other overlap
//   Alignment   natural (4 B)
//   Over-read   none
//   Numerics    add, scale, rope: each product and sum rounded once or fused once: |error| <= 2 eps (|terms|), eps = 2^-24
//               rms_norm: |error| <= (k / 64 + 16) eps |result|; hadamard: |error| <= (log2(k) + 2) eps sum |a| / sqrt(k); swiglu, geglu: |error| <= 8 eps |result|
//               all but add: plus 1e-36 (1 + |b|), where factors or results leave f32's normal range; NaN gives NaN
//   Threads     a pure function of its rows; disjoint rows may run concurrently. `reproducible`: a row's result does not
//               depend on which call computes it
//   Never       allocates, locks, logs, throws, reads globals or the environment
struct rowwise_args {
    const float * a;      // [num_rows][k]
    const float * b;      // [num_rows][k], or one row, or [num_rows][num_rotated] for rope, or null
    float * out;          // [num_rows][k]
    int64_t stride_a;     // bytes
    int64_t stride_b;     // bytes, 0: the same row for all
    int64_t stride_out;   // bytes
    int64_t num_rows;
    int64_t k;
    int64_t num_rotated;  // rope only
    float p0, p1;
};

enum class rowwise_op : uint8_t { rms_norm, rms_norm_mul, add, scale, swiglu, geglu, rope_normal, rope_neox, hadamard, count };
const char * rowwise_op_name(rowwise_op op);

using rowwise_kernel = void (*)(const rowwise_args &);

#define ALLOY_KERNEL(op, isa) void rowwise_f32_##op##_##isa(const rowwise_args & args);
#include "kernels/rowwise/kernels.inc"
#undef ALLOY_KERNEL

// The best kernel for `op` within `allowed`, or null.
rowwise_kernel find_rowwise(rowwise_op op, isa_set allowed = isa_allowed());

// The best hadamard kernel on `num` rows of n elements, one after another, in place.
void hadamard_in_place(float * x, int64_t num, int64_t n);

} // namespace alloy
