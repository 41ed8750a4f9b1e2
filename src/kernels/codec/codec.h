// Family codec: rows of keys or values -> a sealed page of the KV store. The way back is attention's `expand` and its kernels on cells.
#pragma once
#include "base/isa.h"
#include "formats/kv_codec.h"

#include <cstddef>
#include <cstdint>

namespace alloy {

// CONTRACT codec
//   Computes    a page of 64 rows in the bytes of formats/kv_codec.h: the codes nearest to x / scale for the scale that was searched, and
//               the scale of least squared error for these codes, in f16
//   Shape       d a multiple of 32 up to 576; 64 rows
//   Alias       none
//   Alignment   rows 4 B, page 2 B
//   Over-read   none
//   Numerics    the squared error of a page is at most 1.01 times what kv_codec_encode() reaches, that of a row 1.5 times: a short row
//               feels to which of two levels rounding sends a number between them. A row of zeros, or too small for an f16 scale,
//               has scale 0
//               What was decoded encodes to itself: the same codes for every row whose scale is a normal f16, also through rounding to f16
//               and a Hadamard transform there and back
//   Threads     a pure function of its rows; `reproducible`
//   Never       allocates, locks, logs, throws, reads globals or the environment. Takes up to 32 KiB of stack
struct encode_args {
    const float * rows; // [64][d]
    int64_t stride;     // bytes
    int64_t d;
    uint8_t * page;     // kv_codec_page_bytes(codec, d)
};

// False: a number is NaN or Inf, or too large for an f16 scale, and the page is undefined.
using codec_kernel = bool (*)(const encode_args &);

#define ALLOY_KERNEL(codec, isa) bool encode_##codec##_##isa(const encode_args & args);
#include "kernels/codec/kernels.inc"
#undef ALLOY_KERNEL

// The best kernel for `codec` within `allowed`, or null.
codec_kernel find_encode(kv_codec codec, isa_set allowed = isa_allowed());

} // namespace alloy
