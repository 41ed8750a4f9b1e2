// What the ARM64 files of family attention share: 16 elements in four registers. The includer has defined `tile`: the largest code of P, and
// the dot product of P with values.
// Registers: where cells lie 2 cells x 4 rows of sums and 16 for the queries, outputs 4 rows x 16 channels; tiles 5 rows x 16 cells or channels,
// 20 sums, 4 of the panel, 5 for what the rows multiply it by, one lane each.
// Limit, by counting: of a tile FMLA or SDOT, 20 for 9 loads. Where cells lie conversions are as many operations as the products of one row
// (f16, bf16) to five (4 bits).
// Lost, by counting: tiles of 6 rows (gcc 12 loads what six rows multiply by before it multiplies, and keeps up to 4 sums on the stack).
// gcc's order of loads keeps registers on the stack too where one or two rows meet quantised cells: loads and stores, of which they have few.
// NaN: FMAX and FMIN return it if either operand is one. So `largest` of a row is NaN where one of its scores is; softmax then keeps the
// reference it had, and the NaN goes on in P, sums and outputs.
// Not measured yet on any CPU: so far these kernels ran under qemu only.
#pragma once
#include "kernels/attention/attention.h"

#include <arm_neon.h>

namespace alloy {
namespace {

struct vec {
    struct reg {
        float32x4_t a, b, c, d;
    };
    struct ints {
        int32x4_t a, b, c, d;
    };
    struct codes {
        int8x16_t a, b, c, d;
    };
    using part = float32x4_t;
    using bytes = uint8x16_t;
    using key_codes = codes;
    using value_codes = codes;
    using four = uint8x8_t; // its first four
    static constexpr int tile_rows = 5, tile_vectors = 1;
    static constexpr int int8_rows = 5, int8_vectors = 1;
    static constexpr bool byte_dots = false; // sealed pages in f32, see coded.h
    static constexpr uint8_t key_offset = 0;
    static constexpr float largest_q = 127, largest_p = tile::largest_p;
    static constexpr int tokens(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
    static constexpr int value_vectors(int rows) { return rows <= 2 ? 2 : 1; }

    template <class F, class... Regs> static reg each(F f, Regs... x) { return {f(x.a...), f(x.b...), f(x.c...), f(x.d...)}; }
    static reg zero() { return set1(0); }
    static reg set1(float x) {
        const float32x4_t all = vdupq_n_f32(x);
        return {all, all, all, all};
    }
    static reg load(const float * p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
    static void store(float * p, reg x) { vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d); }
    static reg add(reg x, reg y) { return each([](auto... v) { return vaddq_f32(v...); }, x, y); }
    static reg sub(reg x, reg y) { return each([](auto... v) { return vsubq_f32(v...); }, x, y); }
    static reg mul(reg x, reg y) { return each([](auto... v) { return vmulq_f32(v...); }, x, y); }
    static reg div(reg x, reg y) { return each([](auto... v) { return vdivq_f32(v...); }, x, y); }
    static reg fma(reg x, reg y, reg z) { return each([](auto... v) { return vfmaq_f32(v...); }, z, x, y); } // x * y + z
    static reg max(reg x, reg y) { return each([](auto... v) { return vmaxq_f32(v...); }, x, y); }
    static reg min(reg x, reg limit) { return each([](auto... v) { return vminq_f32(v...); }, x, limit); }
    static reg abs(reg x) { return each([](auto v) { return vabsq_f32(v); }, x); }
    // x less the whole number below it. x becomes that number, limited so that the exponent of f32 holds it and its neighbours.
    static reg fraction(reg & x) {
        const reg limited = max(x, set1(-200));
        x = each([](auto v) { return vrndmq_f32(v); }, limited);
        return sub(limited, x);
    }
    // x * 2^whole for x in [1, 2); 0 below the normal range.
    static float32x4_t scale_by_exp2(float32x4_t x, float32x4_t whole) {
        const int32x4_t scaled = vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vcvtq_s32_f32(whole), 23));
        return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(scaled), vcltq_f32(whole, vdupq_n_f32(-126)))); // NaN stays
    }
    static reg scale_by_exp2(reg x, reg whole) { return each([](auto... v) { return scale_by_exp2(v...); }, x, whole); }
    static reg to_floats(ints x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)}; }
    static float32x4_t quarter_sum(reg x) { return vaddq_f32(vaddq_f32(x.a, x.b), vaddq_f32(x.c, x.d)); }
    static bool all_zero(reg x) { return vminvq_u32(vceqzq_f32(quarter_sum(x))) != 0; }
    static float largest(reg x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d))); }
    static float sum(reg x) { return vaddvq_f32(quarter_sum(x)); }
    // x + mask * slope; -inf where the mask is, also for NaN.
    static float32x4_t add_mask(float32x4_t x, float32x4_t mask, float32x4_t slope) {
        const float32x4_t hidden = vdupq_n_f32(-__builtin_inff());
        return vbslq_f32(vceqq_f32(mask, hidden), hidden, vfmaq_f32(x, mask, slope));
    }
    static reg add_mask(reg x, reg mask, reg slope) { return each([](auto... v) { return add_mask(v...); }, x, mask, slope); }
    static void prefetch(const uint8_t * p) { __builtin_prefetch(p, 0, 2); } // into L2

    // --- cells
    static bytes load_bytes(const uint8_t * p) { return vld1q_u8(p); }
    static float half(const uint8_t * p) {
        __fp16 x;
        __builtin_memcpy(&x, p, 2);
        return x;
    }
    static reg set1_half(const uint8_t * p) { return set1(half(p)); }
    static reg from_halves(const uint8_t * p) {
        const float16x8_t x = vreinterpretq_f16_u8(vld1q_u8(p)), y = vreinterpretq_f16_u8(vld1q_u8(p + 16));
        return {vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x), vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)};
    }
    static reg from_bf16(const uint8_t * p) {
        const uint16x8_t zero = vdupq_n_u16(0), x = vreinterpretq_u16_u8(vld1q_u8(p)), y = vreinterpretq_u16_u8(vld1q_u8(p + 16));
        return {vreinterpretq_f32_u16(vzip1q_u16(zero, x)), vreinterpretq_f32_u16(vzip2q_u16(zero, x)),
                vreinterpretq_f32_u16(vzip1q_u16(zero, y)), vreinterpretq_f32_u16(vzip2q_u16(zero, y))};
    }
    static reg from_signed(bytes x) {
        const int8x16_t s = vreinterpretq_s8_u8(x);
        const int16x8_t low = vmovl_s8(vget_low_s8(s)), high = vmovl_high_s8(s);
        return to_floats({vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)});
    }
    static bytes low_nibbles(bytes x) { return vandq_u8(x, vdupq_n_u8(15)); }
    static bytes high_nibbles(bytes x) { return vshrq_n_u8(x, 4); }
    static bytes spread_bits(const uint8_t * bits) { // bit i of 16 bits as all bits of byte i
        const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
        return vtstq_u8(vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1])), bit);
    }
    static bytes set_bit4(bytes x, const uint8_t * bits) { return vorrq_u8(x, vandq_u8(spread_bits(bits), vdupq_n_u8(16))); }
    static bytes negate_where(bytes x, const uint8_t * bits) {
        const bytes all = spread_bits(bits);
        return vsubq_u8(veorq_u8(x, all), all);
    }
    static bytes from_words(uint64_t low, uint64_t high) { return vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(high))); }
    // Levels -63, -61 .. 63 of six-bit codes.
    static bytes odd_levels(bytes nibbles, bytes high) {
        const bytes code = vorrq_u8(nibbles, vshlq_n_u8(high, 4));
        return vsubq_u8(vaddq_u8(code, code), vdupq_n_u8(63));
    }
    static bytes look_up(const int8_t * table, bytes x) { return vqtbl1q_u8(vreinterpretq_u8_s8(vld1q_s8(table)), x); }

    // --- dot products where cells lie: 4 sums at a time
    static part no_sum() { return vdupq_n_f32(0); }
    static part dot(part sum, reg x, reg y) {
        return vfmaq_f32(vfmaq_f32(vfmaq_f32(vfmaq_f32(sum, x.a, y.a), x.b, y.b), x.c, y.c), x.d, y.d);
    }
    // acc[cell][row] -> s[row * attention_block + cell]
    template <int R> static void store_sums(const part (&acc)[tokens(R)][R], float * s) {
        constexpr int T = tokens(R);
        const auto at = [&](int i) __attribute__((always_inline)) { return acc[i % T][i / T < R ? i / T : 0]; };
        const auto four_sums = [&](int i) __attribute__((always_inline)) {
            return vpaddq_f32(vpaddq_f32(at(i), at(i + 1)), vpaddq_f32(at(i + 2), at(i + 3)));
        };
        const float32x4_t low = four_sums(0), high = four_sums(4);
        if constexpr (R <= 2) {
            vst1q_f32(s, low);
            vst1q_f32(R == 1 ? s + 4 : s + attention_block, high);
        } else {
            vst1_f32(s, vget_low_f32(low));
            vst1_f32(s + attention_block, vget_high_f32(low));
            vst1_f32(s + 2 * attention_block, vget_low_f32(high));
            if constexpr (R == 4) vst1_f32(s + 3 * attention_block, vget_high_f32(high));
        }
    }

    // --- 16 x 16 elements of 4 bytes; strides in elements
    static void transpose16(const float * in, int64_t stride_in, float * out, int64_t stride_out) {
        for (int64_t i = 0; i < 16; i += 4) {
            for (int64_t j = 0; j < 16; j += 4) transpose4(in + i * stride_in + j, stride_in, out + j * stride_out + i, stride_out);
        }
    }
    static void transpose4(const float * in, int64_t stride_in, float * out, int64_t stride_out) {
        const float32x4_t row0 = vld1q_f32(in), row1 = vld1q_f32(in + stride_in);
        const float32x4_t row2 = vld1q_f32(in + 2 * stride_in), row3 = vld1q_f32(in + 3 * stride_in);
        const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(row0, row1)), odd01 = vreinterpretq_f64_f32(vtrn2q_f32(row0, row1));
        const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(row2, row3)), odd23 = vreinterpretq_f64_f32(vtrn2q_f32(row2, row3));
        vst1q_f32(out, vreinterpretq_f32_f64(vtrn1q_f64(even01, even23)));
        vst1q_f32(out + stride_out, vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23)));
        vst1q_f32(out + 2 * stride_out, vreinterpretq_f32_f64(vtrn2q_f64(even01, even23)));
        vst1q_f32(out + 3 * stride_out, vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23)));
    }

    // --- 8 bit
    static int16x8_t to_words(float32x4_t x, float32x4_t y) {
        return vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(x)), vcvtnq_s32_f32(y));
    }
    static void store_codes(int8_t * p, reg x, uint8_t) {
        vst1q_s8(p, vqmovn_high_s16(vqmovn_s16(to_words(x.a, x.b)), to_words(x.c, x.d)));
    }
    static void store_p(uint8_t * p, const reg (&x)[4]) {
        for (int i = 0; i < 4; i++) {
            vst1q_u8(p + 16 * i, vqmovun_high_s16(vqmovun_s16(to_words(x[i].a, x[i].b)), to_words(x[i].c, x[i].d)));
        }
    }
    // 4 rows of d codes -> [d][4]
    static void interleave4(const int8_t * rows, int64_t d, int8_t * out) {
        for (int64_t i = 0; i < d; i += 16) {
            const auto row = [&](int64_t t) { return vld1q_s8(rows + t * d + i); };
            const int8x16x4_t all = {{row(0), row(1), row(2), row(3)}};
            vst4q_s8(out + 4 * i, all);
        }
    }
    static ints set1_ints(int32_t x) {
        const int32x4_t all = vdupq_n_s32(x);
        return {all, all, all, all};
    }
    static codes load_values(const int8_t * p) { return {vld1q_s8(p), vld1q_s8(p + 16), vld1q_s8(p + 32), vld1q_s8(p + 48)}; }
    static codes load_keys(const uint8_t * p) { return load_values(reinterpret_cast<const int8_t *>(p)); }
    static four load_four(const void * p) {
        uint32_t x;
        __builtin_memcpy(&x, p, 4);
        return vcreate_u8(x);
    }
    static ints dot_keys(ints sum, codes k, four q) {
        const int8x8_t x = vreinterpret_s8_u8(q);
        return {vdotq_lane_s32(sum.a, k.a, x, 0), vdotq_lane_s32(sum.b, k.b, x, 0), vdotq_lane_s32(sum.c, k.c, x, 0),
                vdotq_lane_s32(sum.d, k.d, x, 0)};
    }
    static ints dot_values(ints sum, four p, codes v) {
        return {tile::dot(sum.a, p, v.a), tile::dot(sum.b, p, v.b), tile::dot(sum.c, p, v.c), tile::dot(sum.d, p, v.d)};
    }
};

} // namespace
} // namespace alloy

#include "kernels/attention/generic.h"
