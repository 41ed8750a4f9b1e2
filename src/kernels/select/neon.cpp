// Family select, Advanced SIMD, 4 lanes: a line is four registers.
// Registers: block_max 4 maxima; exp_sums 4 sums and 9 constants; moments 12 sums.
// Limit: block_max by loads from L2 or L3; exp_sums by the FMA pipes; exp_bins by its scalar additions to memory.
// Lost: FMAXNM and FMINNM for the rule of NaN (a signalling NaN comes out as NaN): a comparison and a choice cost one operation more.
#include "kernels/select/select.h"

#include <arm_neon.h>

namespace alloy {
namespace {

struct vec {
    using reg = float32x4_t;
    static constexpr int64_t lanes = 4;

    static reg load(const float * p) { return vld1q_f32(p); }
    static void store(float * p, reg x) { vst1q_f32(p, x); }
    static reg set1(float x) { return vdupq_n_f32(x); }
    static reg add(reg x, reg y) { return vaddq_f32(x, y); }
    static reg sub(reg x, reg y) { return vsubq_f32(x, y); }
    static reg mul(reg x, reg y) { return vmulq_f32(x, y); }
    static reg fma(reg x, reg y, reg z) { return vfmaq_f32(z, x, y); } // x * y + z
    static reg max(reg x, reg y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
    static reg min(reg x, reg y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
    static reg if_at_least(reg x, reg limit, reg y) {
        return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x, limit), vreinterpretq_u32_f32(y)));
    }

    // x * 2^(the low bits of z, as a signed integer)
    static reg add_exponent(reg x, reg z) {
        return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vreinterpretq_s32_f32(z), 23)));
    }
    static void to_int_store(int32_t * p, reg x) { vst1q_s32(p, vcvtq_s32_f32(x)); }

    static float highest(reg x) { return vmaxvq_f32(x); }
    static float sum(reg x) {
        const float32x2_t half = vadd_f32(vget_low_f32(x), vget_high_f32(x));
        return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
    }

    // The lanes with lo <= x <= hi, close together; how many.
    static int64_t append(float * values, int32_t * ids, reg x, int32_t first_id, reg lo, reg hi) {
        const uint32x4_t inside = vandq_u32(vcgeq_f32(x, lo), vcleq_f32(x, hi));
        if (vmaxvq_u32(inside) == 0) return 0;
        float lane[lanes];
        uint32_t chosen[lanes];
        vst1q_f32(lane, x);
        vst1q_u32(chosen, inside);
        int64_t found = 0;
        for (int64_t i = 0; i < lanes; i++) {
            values[found] = lane[i];
            ids[found] = first_id + static_cast<int32_t>(i);
            found += chosen[i] & 1;
        }
        return found;
    }
};

} // namespace
} // namespace alloy

#include "kernels/select/generic.h"

namespace alloy {
ALLOY_DEFINE_SELECT(neon)
}
