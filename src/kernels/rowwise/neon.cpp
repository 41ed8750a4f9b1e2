// Family rowwise, Advanced SIMD, 4 lanes.
// Registers: rms_norm 8 accumulators = 32 partial sums, which the error bound needs; swiglu 12 constants and 2 x 4 values.
// Limit: add, scale and the second pass of the norms by stores; swiglu and geglu by FMA and division.
// Lost: FRECPE + two Newton steps (no better than FDIV on cores since Cortex-A76). Tails go through memory on the stack: they
// are at most 3 elements of a row, and Advanced SIMD has no masked access.
#include "kernels/rowwise/rowwise.h"

#include <arm_neon.h>

namespace alloy {
namespace {

struct vec {
    using reg = float32x4_t;
    static constexpr int64_t lanes = 4;

    static reg load(const float * p) { return vld1q_f32(p); }
    static reg load_n(const float * p, int64_t n) {
        float x[lanes] = {};
        for (int64_t i = 0; i < n; i++) x[i] = p[i];
        return vld1q_f32(x);
    }
    static void store(float * p, reg x) { vst1q_f32(p, x); }
    static void store_n(float * p, reg x, int64_t n) {
        float y[lanes];
        vst1q_f32(y, x);
        for (int64_t i = 0; i < n; i++) p[i] = y[i];
    }

    static reg set1(float x) { return vdupq_n_f32(x); }
    static reg add(reg x, reg y) { return vaddq_f32(x, y); }
    static reg sub(reg x, reg y) { return vsubq_f32(x, y); }
    static reg mul(reg x, reg y) { return vmulq_f32(x, y); }
    static reg div(reg x, reg y) { return vdivq_f32(x, y); }
    static reg fma(reg x, reg y, reg z) { return vfmaq_f32(z, x, y); }             // x * y + z
    static reg fms(reg x, reg y, reg z) { return vnegq_f32(vfmsq_f32(z, x, y)); } // x * y - z
    static reg max_keep_nan(reg x, reg limit) { return vmaxq_f32(x, limit); }
    static reg min(reg x, reg limit) { return vminq_f32(x, limit); }
    static float sum(reg x) { return vaddvq_f32(x); }

    // x * 2^(the low bits of z, as a signed integer)
    static reg add_exponent(reg x, reg z) {
        return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vreinterpretq_s32_f32(z), 23)));
    }

    // Hadamard transform of the lanes, unscaled: x[i] + x[i ^ half] in the lower, x[i ^ half] - x[i] in the upper ones of each pair.
    static reg hadamard(reg x) {
        reg swapped = vrev64q_f32(x);
        x = vtrn1q_f32(vaddq_f32(x, swapped), vrev64q_f32(vsubq_f32(swapped, x)));
        swapped = vextq_f32(x, x, 2);
        return vcombine_f32(vget_low_f32(vaddq_f32(x, swapped)), vget_high_f32(vsubq_f32(swapped, x)));
    }

    // Pairs (x0, x1) turned by pairs (cos, sin): (x0 cos - x1 sin, x1 cos + x0 sin).
    static reg rotate_pairs(reg x, reg cos_sin) {
        const uint32x4_t signs = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000u));
        const reg cos = vtrn1q_f32(cos_sin, cos_sin), sin = vtrn2q_f32(cos_sin, cos_sin);
        const reg signed_sin = vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(sin), signs));
        return vfmaq_f32(vmulq_f32(vrev64q_f32(x), signed_sin), x, cos);
    }

    static void load_cos_sin(const float * p, reg & cos, reg & sin) {
        const float32x4x2_t pairs = vld2q_f32(p);
        cos = pairs.val[0];
        sin = pairs.val[1];
    }
    static void load_cos_sin_n(const float * p, int64_t n, reg & cos, reg & sin) {
        float pairs[2 * lanes] = {};
        for (int64_t i = 0; i < 2 * n; i++) pairs[i] = p[i];
        load_cos_sin(pairs, cos, sin);
    }
};

} // namespace
} // namespace alloy

#include "kernels/rowwise/generic.h"

namespace alloy {
ALLOY_DEFINE_ROWWISE(neon)
}
