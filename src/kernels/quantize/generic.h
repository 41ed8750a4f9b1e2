// The loops of family quantize. An ISA file defines in an anonymous namespace
//   struct tile: scales_8x32  scales and factors of 8 blocks of 32
//                abs_max<n>   max|x| of 32 or 256 numbers
//                codes_256<g> codes of 256 numbers with one factor per 32, and their sums per g = 32 or 16
//                codes_32     codes of one block of 32, returns their sum
// and then includes this file, so that each ISA compiles its own copy and no symbol of it leaves the object.
#include "base/check.h"

namespace alloy {
namespace {

struct row_sections {
    const float * x;
    int8_t * codes;
    float * scales;
    int16_t * sums;
};

row_sections sections_of(const quantize_args & args, act_q8_layout layout, int64_t row) {
    uint8_t * out = static_cast<uint8_t *>(args.out) + row * args.stride_out;
    return {reinterpret_cast<const float *>(reinterpret_cast<const char *>(args.in) + row * args.stride_in),
            reinterpret_cast<int8_t *>(out), reinterpret_cast<float *>(out + act_q8_scales_offset(args.k)),
            reinterpret_cast<int16_t *>(out + act_q8_sums_offset(layout, args.k))};
}

void check_contract(const quantize_args & args, act_q8_layout layout) {
    ALLOY_EXPECT(args.k > 0 && args.k % layout.block == 0);
    ALLOY_EXPECT(reinterpret_cast<uintptr_t>(args.out) % 64 == 0 && args.stride_out % 64 == 0);
    ALLOY_EXPECT(args.num_rows < 2 || args.stride_out >= act_q8_row_size(layout, args.k));
    static_cast<void>(args), static_cast<void>(layout);
}

// The scale of a block; returns what its numbers are multiplied with.
inline float scale_and_factor(float max, float & scale) {
    const bool zero = max < act_q8_smallest;
    scale = zero ? 0 : max * (1.0f / 127.0f);
    return zero ? 0 : 127.0f / max;
}

// Rows go in chunks of two passes, first all factors, then all codes: from the first number of a block to its factor is a chain
// of some 60 cycles, which blocks after one another overlap only while nothing else fills the scheduler. A chunk stays in L1.
constexpr int64_t chunk = 2048;

inline void quantize_q8_32_rows(const quantize_args & args) {
    check_contract(args, act_q8_32);
    const int64_t whole = args.k / 256 * 256;
    for (int64_t r = 0; r < args.num_rows; r++) {
        const row_sections row = sections_of(args, act_q8_32, r);
        alignas(64) float factors[chunk / 32];
        for (int64_t start = 0; start < whole; start += chunk) {
            const int64_t end = start + chunk < whole ? start + chunk : whole;
            for (int64_t i = start; i < end; i += 256) {
                tile::scales_8x32(row.x + i, row.scales + i / 32, factors + (i - start) / 32);
            }
            for (int64_t i = start; i < end; i += 256) {
                tile::codes_256<32>(row.x + i, factors + (i - start) / 32, row.codes + i, row.sums + i / 32);
            }
        }
        for (int64_t i = whole; i < args.k; i += 32) {
            const float factor = scale_and_factor(tile::abs_max<32>(row.x + i), row.scales[i / 32]);
            row.sums[i / 32] = tile::codes_32(row.x + i, factor, row.codes + i);
        }
    }
}

inline void quantize_q8_256_rows(const quantize_args & args) {
    check_contract(args, act_q8_256);
    for (int64_t r = 0; r < args.num_rows; r++) {
        const row_sections row = sections_of(args, act_q8_256, r);
        alignas(64) float factors[chunk / 32];
        for (int64_t start = 0; start < args.k; start += chunk) {
            const int64_t end = start + chunk < args.k ? start + chunk : args.k;
            for (int64_t i = start; i < end; i += 256) {
                const float factor = scale_and_factor(tile::abs_max<256>(row.x + i), row.scales[i / 256]);
                for (int64_t b = 0; b < 8; b++) factors[(i - start) / 32 + b] = factor;
            }
            for (int64_t i = start; i < end; i += 256) {
                tile::codes_256<16>(row.x + i, factors + (i - start) / 32, row.codes + i, row.sums + i / 16);
            }
        }
    }
}

} // namespace
} // namespace alloy

// The kernels that quantize.h declares, for one ISA.
#define ALLOY_DEFINE_QUANTIZE(isa)                                                                      \
    void quantize_q8_32_f32_##isa(const quantize_args & args) { quantize_q8_32_rows(args); }            \
    void quantize_q8_256_f32_##isa(const quantize_args & args) { quantize_q8_256_rows(args); }
