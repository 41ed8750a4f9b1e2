// packed: weights in groups of 16 rows, so that one vector holds the same columns of many rows and no dot product ends in a
// horizontal sum. A re-arrangement of the GGUF bits, of the same size: pack and unpack are exact inverses for every bit pattern.
//
// A matrix is ceil(rows / 16) groups; rows beyond the last are zero bits. A group of k columns:
//
//   byte 0             header  [chunks][header_chunk]   what K-quants keep once for 256 columns
//   body_offset(k)     chunk   [chunks]                 256 columns each; 32-column types may end with a shorter one
//   group_bytes(k)     end, a multiple of 64
//
// Header of a chunk (256-column types only), r = row in group:
//   super [supers][16]      f16    d, then dmin:       byte 32 s + 2 r
//   high  [2][16]           u8     six_bits_8 only: bits 4..5 of sub-scale j at byte 16 (j % 2) + r, bits 2 (j / 2)
// Chunk of `blocks` blocks of 32 columns:
//   super [blocks][supers][16] f16   (32-column types) d, then m
//   sub-scales:
//     none
//     exponent      [blocks][16] u8     the block's power of two
//     bytes_16      [16][16]     u8     sub-scale j of row r at byte 16 j + r
//     six_bits_8    [4][16]      u8     bits 0..3 of sub-scale j at byte 16 (j % 4) + r, low nibble for j < 4, else high
//     six_bits_16   192 B: two of the above for j < 8 and j >= 8, then [4][16] u8: bits 4..5 of sub-scale j at byte
//                   16 (j % 4) + r, bits 2 (j / 4). Types with minima: j < 8 scales, j >= 8 minima
//   code planes of each block, 64 B for each bit of a code. Column c of the block belongs to vector v = c / 4 and there to byte
//   p = 4 r + c % 4:
//     8 bits          byte 64 v + p
//     low 4 bits      byte 64 (v % 4) + p, low nibble for v < 4, else high
//     2 bits          byte 64 (v / 4) + p, bits 2 (v % 4)
//     1 bit           byte p, bit v
//   Codes of 5, 6 and 3 bits are 4 + 1, 4 + 2 and 2 + 1, the low part first.
// Floating types have no blocks: f32 and f16 as [k][16], bf16 as [ceil(k / 2)][16][2], so that a shift or a mask widens a vector.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace alloy {

enum class weight_type : uint8_t {
#define ALLOY_WEIGHT(name, ...) name,
#include "formats/weights.inc"
#undef ALLOY_WEIGHT
    count,
};

enum class sub_scales : uint8_t { none, exponent, bytes_16, six_bits_8, six_bits_16 };
enum class activation : uint8_t { q8_32, q8_256, f32 }; // what the kernels multiply with, see act_q8.h

struct weight_format {
    const char * name;
    int host_type;
    int block;       // columns of a GGUF block
    int block_bytes;
    int code_bits;   // 16 and 32: floating
    int supers;
    sub_scales subs;
    activation acts;
};

constexpr int packed_rows = 16;     // of a group
constexpr int packed_columns = 256; // of a chunk

static constexpr weight_format weight_formats[] = {
#define ALLOY_WEIGHT(name, type, block, bytes, bits, supers, subs, acts) \
    {#name, type, block, bytes, bits, supers, sub_scales::subs, activation::acts},
#include "formats/weights.inc"
#undef ALLOY_WEIGHT
};

static constexpr const weight_format & format_of(weight_type t) { return weight_formats[static_cast<int>(t)]; }

// --- sizes, all in bytes -------------------------------------------------------------------------------------------------------------
static constexpr bool is_floating(const weight_format & f) { return f.block == 1; }
static constexpr int64_t packed_header_chunk(const weight_format & f) {
    return f.block == 256 ? f.supers * 32 + (f.subs == sub_scales::six_bits_8 ? 32 : 0) : 0;
}
// What stands before the codes of a chunk.
static constexpr int64_t packed_prefix(const weight_format & f, int64_t blocks) {
    const int64_t subs = f.subs == sub_scales::none          ? 0
                         : f.subs == sub_scales::exponent    ? blocks * 16
                         : f.subs == sub_scales::bytes_16    ? 256
                         : f.subs == sub_scales::six_bits_8  ? 64
                                                             : 192;
    return (f.block == 32 ? blocks * f.supers * 32 : 0) + subs;
}
static constexpr int64_t packed_chunk_bytes(const weight_format & f, int64_t blocks = packed_columns / 32) {
    return packed_prefix(f, blocks) + blocks * f.code_bits * 64;
}
static constexpr int64_t packed_body_offset(const weight_format & f, int64_t k) {
    return (k / packed_columns * packed_header_chunk(f) + 63) / 64 * 64;
}
static constexpr int64_t packed_group_bytes(const weight_format & f, int64_t k) {
    if (is_floating(f)) return (f.code_bits == 32 ? k * 64 : (k + 1) / 2 * 64);
    const int64_t last = k % packed_columns / 32;
    const int64_t body = k / packed_columns * packed_chunk_bytes(f) + (last ? packed_chunk_bytes(f, last) : 0);
    return packed_body_offset(f, k) + (body + 63) / 64 * 64;
}
static constexpr int64_t packed_groups(int64_t rows) { return (rows + packed_rows - 1) / packed_rows; }

// --- the format's definition -----------------------------------------------------------------------------------------------------------
// The type that the host numbers `host_type`, or weight_type::count.
weight_type weight_type_of(int host_type);

// Rows [first, first + num_rows) of a group from GGUF rows of k columns at gguf + r * stride_gguf (bytes). k is a multiple of the
// block. Other rows of the group are left alone, so that disjoint rows may be packed in any order, one after another.
void pack_rows(weight_type type, int64_t k, const void * gguf, int64_t stride_gguf, int first, int num_rows, void * group);
void unpack_rows(weight_type type, int64_t k, void * gguf, int64_t stride_gguf, int first, int num_rows, const void * group);

} // namespace alloy
