// A sealed page of the KV store: 64 cells (tokens) of one head, each a row of d numbers, d a multiple of 32.
//
//   x[cell][i] = scale[cell] * level[code[cell][i]]
//
//   byte 0                 code  [64][d]    `bits` bits each, kv_codec_row_bytes(bits, d) bytes a row
//   64 * row bytes         scale [64]       f16
//
// Rows are meant to be rotated (an orthonormal Walsh-Hadamard transform over the head), which makes their numbers nearly Gaussian:
// the levels of n3, n4 and n5 are those of the Lloyd-Max quantiser of N(0, 1), as integers with 127 for the outermost. Integers, so that
// a byte shuffle decodes, 8-bit products can use them as they are, and all machines decode the same numbers. Scales hold what is left:
// they are searched for least squared error (docs/formats.md).
//
// 32 codes of a row stand together in 4 * bits bytes, low bits first:
//   low four bits (z6, n5, n4)   16 bytes   byte j: of code j in its low half, of code j + 16 in its high half
//   two bits (high of z6, low of n3)  8 bytes    of code i: byte i % 8, bits 2 (i / 8) and the next
//   one bit (sign of n5 and n3)   4 bytes    of code i: bit i of the 32, little endian
// i8: 32 signed bytes. n codes: number of the level, and 1 << (bits - 1) for a negative one. z6: level 2 code - 63.
#pragma once
#include <stdint.h>

namespace alloy {

enum class kv_codec : uint8_t {
#define ALLOY_KV_CODEC(name, bits, help) name,
#include "formats/kv_codecs.inc"
#undef ALLOY_KV_CODEC
    count
};
struct kv_codec_traits {
    const char * name;
    int bits;
    const char * help;
};
constexpr kv_codec_traits traits_of_codecs[] = { // by kv_codec
#define ALLOY_KV_CODEC(name, bits, help) {#name, bits, help},
#include "formats/kv_codecs.inc"
#undef ALLOY_KV_CODEC
};

constexpr int64_t kv_page_cells = 64;

// Positive levels of the n codecs. n4 as signed bytes by code is what decoders shuffle with.
alignas(16) constexpr int8_t kv_levels_n3[4] = {14, 45, 79, 127};
alignas(16) constexpr int8_t kv_levels_n4[8] = {6, 18, 31, 44, 58, 75, 96, 127};
alignas(16) constexpr int8_t kv_levels_n5[16] = {3, 8, 13, 18, 24, 29, 35, 41, 47, 54, 61, 70, 79, 90, 105, 127};

// The positive levels of an n codec. outermost: the outermost of the ideal levels, of which these are the nearest integers in proportion.
struct kv_levels {
    const int8_t * positive;
    int count;
    double outermost;
};
static constexpr kv_levels kv_levels_of(kv_codec codec) {
    if (codec == kv_codec::n3) return {kv_levels_n3, 4, 2.1519};
    if (codec == kv_codec::n4) return {kv_levels_n4, 8, 2.7326};
    return {kv_levels_n5, 16, 3.2607};
}

// `static`, here and above: ISA files include this header, and a function that they emit must not be shared with the rest of the program.
static constexpr int kv_codec_bits(kv_codec codec) { return traits_of_codecs[static_cast<int>(codec)].bits; }
static constexpr int64_t kv_codec_row_bytes(kv_codec codec, int64_t d) { return d / 8 * kv_codec_bits(codec); }
static constexpr int64_t kv_codec_page_bytes(kv_codec codec, int64_t d) { return kv_page_cells * (kv_codec_row_bytes(codec, d) + 2); }
static constexpr bool kv_codec_fits(int64_t d) { return d % 32 == 0; }

// Encodes and decodes one page: the definition of the format, and of how well a scale is to be chosen. Scales tried: i8 max|x| / 127; z6
// max|x| / 63 times 1 - 0.028 k, k in 0..24; n max|x| / 127, so that what was decoded encodes to itself, and rms times 1 + 0.04 k, k in -6..10,
// over 127 for the outermost of the ideal levels. Codes are those of the least squared error, the scale stored is the best for them.
// False: a number is NaN or Inf, or so large that f16 does not hold the scale, and the page is undefined.
bool kv_codec_encode(kv_codec codec, const float * rows, int64_t d, uint8_t * page); // rows [64][d]
void kv_codec_decode(kv_codec codec, const uint8_t * page, int64_t d, float * rows);

} // namespace alloy
