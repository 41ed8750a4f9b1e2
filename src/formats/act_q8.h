// act_q8: one row of f32 activations as int8 codes, for integer dot products. Two formats differ in what shares a scale:
// blocks of 32 (q8_32, for weights in blocks of 32) or of 256 (q8_256, for K-quants), with sums of codes per 32 or per 16,
// which weights with a minimum or an unsigned code need.
//
//   x[i] = scale[i / block] * code[i]          sum[g] = code[g * group] + ... + code[g * group + group - 1]
//
//   byte 0                     code  [k]          int8    in [-127, 127]
//   act_q8_scales_offset       scale [k / block]  f32     max|x| / 127 over the block
//   act_q8_sums_offset         sum   [k / group]  int16   |sum| <= 127 * 32
//   act_q8_row_size            end
//
// Each section starts at a multiple of 64 bytes and so does the next row; the bytes between sections are never written.
// A block that holds NaN has scale NaN, one that holds Inf has scale Inf: products stay as wrong as their factors.
// A row of 2048: q8_32 2048 + 256 + 128 = 2432 bytes, q8_256 2048 + 64 + 256 = 2368 bytes.
// Sections instead of interleaved blocks: codes are loaded 64 at a time, scales and sums of many blocks as vectors.
#pragma once
#include <stdint.h>

namespace alloy {

struct act_q8_layout {
    int64_t block; // codes per scale; k is a multiple of it
    int64_t group; // codes per sum
};
constexpr act_q8_layout act_q8_32 = {.block = 32, .group = 32};
constexpr act_q8_layout act_q8_256 = {.block = 256, .group = 16};

// A block whose largest |x| is below this is stored as zeros: its scale, or 1 / scale, would leave f32's normal range.
constexpr float act_q8_smallest = 0x1p-119f;

// `static`, and no `inline` above: ISA files include this header, and a function or constant that they emit must not be shared
// with the rest of the program.
static constexpr int64_t act_q8_aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
static constexpr int64_t act_q8_scales_offset(int64_t k) { return act_q8_aligned(k); }
static constexpr int64_t act_q8_sums_offset(act_q8_layout layout, int64_t k) {
    return act_q8_scales_offset(k) + act_q8_aligned(k / layout.block * 4);
}
static constexpr int64_t act_q8_row_size(act_q8_layout layout, int64_t k) {
    return act_q8_sums_offset(layout, k) + act_q8_aligned(k / layout.group * 2);
}

// Pack and unpack one row: the definition of the format. Kernels of family quantize produce the same bytes for finite x.
void act_q8_pack(act_q8_layout layout, const float * x, int64_t k, void * row);
void act_q8_unpack(act_q8_layout layout, const void * row, int64_t k, float * x);

} // namespace alloy
