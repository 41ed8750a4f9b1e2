// Family quantize, Advanced SIMD, blocks of 32.
// Registers: pass 1 has 4 maxima, pass 2 8 vectors of numbers.
// Limit: conversions and narrowing, 14 operations for 32 numbers.
// Lost: FMAXV for each block (a chain; pairwise maxima of four blocks end as one vector, in order); sums by SDOT, which
// ARMv8.0 does not have.
#include "kernels/quantize/quantize.h"
#include "formats/act_q8.h"

#include <arm_neon.h>

namespace alloy {
namespace {

float32x4_t abs_max_16(const float * x) {
    const float32x4_t lo = vmaxq_f32(vabsq_f32(vld1q_f32(x)), vabsq_f32(vld1q_f32(x + 4)));
    return vmaxq_f32(lo, vmaxq_f32(vabsq_f32(vld1q_f32(x + 8)), vabsq_f32(vld1q_f32(x + 12))));
}
float32x4_t abs_max_32(const float * x) { return vmaxq_f32(abs_max_16(x), abs_max_16(x + 16)); }

// Rounds to nearest, ties to even; conversion and narrowing saturate, and only an input that is not finite makes -128.
int16x4_t codes_4(const float * x, float32x4_t factor) { return vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x), factor))); }
int8x16_t codes_16(const float * x, float32x4_t factor) {
    const int16x8_t lo = vcombine_s16(codes_4(x, factor), codes_4(x + 4, factor));
    const int16x8_t hi = vcombine_s16(codes_4(x + 8, factor), codes_4(x + 12, factor));
    return vmaxq_s8(vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)), vdupq_n_s8(-127));
}

struct tile {
    static void scales_8x32(const float * x, float * scales, float * factors) {
        for (int b = 0; b < 8; b += 4) {
            const float * y = x + 32 * b;
            // Pairwise maxima of four vectors end as one maximum a block.
            const float32x4_t max = vpmaxq_f32(vpmaxq_f32(abs_max_32(y), abs_max_32(y + 32)),
                                               vpmaxq_f32(abs_max_32(y + 64), abs_max_32(y + 96)));
            const uint32x4_t some = vmvnq_u32(vcltq_f32(max, vdupq_n_f32(act_q8_smallest))); // NaN too
            const auto masked = [=](float32x4_t v) { return vreinterpretq_f32_u32(vandq_u32(some, vreinterpretq_u32_f32(v))); };
            vst1q_f32(scales + b, masked(vmulq_n_f32(max, 1.0f / 127.0f)));
            vst1q_f32(factors + b, masked(vdivq_f32(vdupq_n_f32(127.0f), max)));
        }
    }

    template <int n> static float abs_max(const float * x) {
        float32x4_t m = abs_max_32(x);
        for (int i = 32; i < n; i += 32) m = vmaxq_f32(m, abs_max_32(x + i));
        return vmaxvq_f32(m);
    }

    template <int group> static void codes_256(const float * x, const float * factors, int8_t * codes, int16_t * sums) {
        for (int b = 0; b < 8; b++) {
            const float32x4_t f = vdupq_n_f32(factors[b]);
            const int8x16_t lo = codes_16(x + 32 * b, f), hi = codes_16(x + 32 * b + 16, f);
            vst1q_s8(codes + 32 * b, lo);
            vst1q_s8(codes + 32 * b + 16, hi);
            if (group == 16) {
                sums[2 * b] = vaddlvq_s8(lo);
                sums[2 * b + 1] = vaddlvq_s8(hi);
            } else {
                sums[b] = vaddvq_s16(vpadalq_s8(vpaddlq_s8(lo), hi));
            }
        }
    }

    static int16_t codes_32(const float * x, float factor, int8_t * codes) {
        const float32x4_t f = vdupq_n_f32(factor);
        const int8x16_t lo = codes_16(x, f), hi = codes_16(x + 16, f);
        vst1q_s8(codes, lo);
        vst1q_s8(codes + 16, hi);
        return vaddvq_s16(vpadalq_s8(vpaddlq_s8(lo), hi));
    }
};

} // namespace
} // namespace alloy

#include "kernels/quantize/generic.h"

namespace alloy {
ALLOY_DEFINE_QUANTIZE(neon)
}
