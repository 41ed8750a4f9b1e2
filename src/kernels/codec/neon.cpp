// Family codec, ARMv8.0 NEON, 4 rows at once, 4 numbers of each a step of the search.
// Registers: 4 tables of levels, 2 factors, 3 sums, 1 constant; half of the file is free.
// Limit, by counting: products and their pairwise additions, 12 of 27 operations of a step of n5.
// Lost, by counting: SQRDMULH (rounds, and midpoints are between whole half steps then). Not measured yet on any CPU.
#include "kernels/codec/codec.h"

#include <arm_neon.h>

namespace alloy {
namespace {

struct vec {
    using floats = float32x4_t;
    using ints = uint8x16_t;
    static constexpr int rows = 4;

    // --- 4 floats
    static floats set1(float x) { return vdupq_n_f32(x); }
    static floats load(const float * p) { return vld1q_f32(p); }
    static void store(float * p, floats x) { vst1q_f32(p, x); }
    static floats add(floats x, floats y) { return vaddq_f32(x, y); }
    static floats mul(floats x, floats y) { return vmulq_f32(x, y); }
    static floats div(floats x, floats y) { return vdivq_f32(x, y); }
    static floats fma(floats x, floats y, floats z) { return vfmaq_f32(z, x, y); } // x * y + z
    static floats abs(floats x) { return vabsq_f32(x); }
    static floats round(floats x) { return vrndnq_f32(x); }
    static floats larger(floats x, floats y) { return vmaxq_f32(x, y); } // NaN if either is
    static float largest(floats x) { return vmaxvq_f32(x); }
    static float sum(floats x) { return vaddvq_f32(x); }
    static uint16_t to_half(float x) { return __builtin_bit_cast(uint16_t, static_cast<__fp16>(x)); }

    // --- integers
    static int16x8_t as_words(ints x) { return vreinterpretq_s16_u8(x); }
    static ints as_ints(int16x8_t x) { return vreinterpretq_u8_s16(x); }
    static ints load_ints(const void * p) { return vld1q_u8(static_cast<const uint8_t *>(p)); }
    static void store(void * p, ints x) { vst1q_u8(static_cast<uint8_t *>(p), x); }
    static ints all_bytes(int x) { return vdupq_n_u8(static_cast<uint8_t>(x)); }
    static ints both(ints x, ints y) { return vandq_u8(x, y); }
    static ints either(ints x, ints y) { return vorrq_u8(x, y); }
    static ints abs_words(ints x) { return as_ints(vabsq_s16(as_words(x))); }
    static ints words(floats lo, floats hi) { // to nearest, in order
        return as_ints(vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(lo)), vqmovn_s32(vcvtnq_s32_f32(hi))));
    }
    static void store_bytes(uint8_t * p, ints words) { vst1_u8(p, vreinterpret_u8_s8(vqmovn_s16(as_words(words)))); }
    static floats to_floats(ints x) { return vcvtq_f32_s32(vreinterpretq_s32_u8(x)); }
    static floats from_bytes(const int8_t * p) {
        int32_t four;
        __builtin_memcpy(&four, p, 4);
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
    }

    // --- the search: lane r is of row r
    static ints factors(floats x) { // both words of a lane, halves: mul_high() doubles
        const int32x4_t f = vcvtnq_s32_f32(vmulq_n_f32(x, 0.5f));
        return vreinterpretq_u8_s32(vorrq_s32(f, vshlq_n_s32(f, 16)));
    }
    static ints mul_high(ints x, ints factors) { return as_ints(vqdmulhq_s16(as_words(x), as_words(factors))); }
    static ints narrow(ints lo, ints hi) { return vcombine_u8(vqmovun_s16(as_words(lo)), vqmovun_s16(as_words(hi))); } // to 255
    static ints narrow_signed(ints lo, ints hi) {
        return vreinterpretq_u8_s8(vcombine_s8(vqmovn_s16(as_words(lo)), vqmovn_s16(as_words(hi))));
    }
    static ints widen_low(ints x) { return vreinterpretq_u8_u16(vmovl_u8(vget_low_u8(x))); } // what narrow() had as lo
    static ints widen_high(ints x) { return vreinterpretq_u8_u16(vmovl_high_u8(x)); }
    static ints with_sign(ints x, ints signs) { // that of bytes
        const int8x16_t y = vreinterpretq_s8_u8(x);
        return vreinterpretq_u8_s8(vbslq_s8(vcltzq_s8(vreinterpretq_s8_u8(signs)), vnegq_s8(y), y));
    }
    static ints table(const uint8_t * p) { return vld1q_u8(p); }
    static ints look_up(ints table, ints x) { return vqtbl1q_u8(table, x); }
    static ints high_nibbles(ints x) { return vshrq_n_u8(x, 4); }
    static ints count(ints n, ints x, ints before) { return vsubq_u8(n, vcgtq_u8(x, before)); } // n and one more where x > before
    static ints min_bytes(ints x, ints y) { return vminq_u8(x, y); }
    static ints add_products(ints sums, ints x, ints y) {
        const int32x4_t lo = vmull_s16(vget_low_s16(as_words(x)), vget_low_s16(as_words(y))), hi = vmull_high_s16(as_words(x), as_words(y));
        return vreinterpretq_u8_s32(vaddq_s32(vreinterpretq_s32_u8(sums), vpaddq_s32(lo, hi)));
    }
    static ints twice_low(ints x) { return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(x), vreinterpretq_u32_u8(x))); }
    static ints twice_high(ints x) { return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(x), vreinterpretq_u32_u8(x))); }
    static ints add_pairs(ints x, ints y) { return vreinterpretq_u8_s32(vpaddq_s32(vreinterpretq_s32_u8(x), vreinterpretq_s32_u8(y))); }
    static ints add_squares(ints sums, ints bytes) { // of the four bytes of each lane
        const uint16x8_t pairs = vpaddq_u16(vmull_u8(vget_low_u8(bytes), vget_low_u8(bytes)), vmull_high_u8(bytes, bytes));
        return vreinterpretq_u8_u32(vpadalq_u16(vreinterpretq_u32_u8(sums), pairs));
    }
    static void take_larger(floats & best, floats & best_a, floats & best_b, floats x, floats a, floats b) {
        const uint32x4_t larger = vcgtq_f32(x, best);
        best = vbslq_f32(larger, x, best);
        best_a = vbslq_f32(larger, a, best_a);
        best_b = vbslq_f32(larger, b, best_b);
    }
};

} // namespace
} // namespace alloy

#include "kernels/codec/generic.h"

namespace alloy {
ALLOY_DEFINE_CODEC(neon)
}
