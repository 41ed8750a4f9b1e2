#include "formats/act_q8.h"

#include <bit>
#include <cmath>

namespace alloy {
namespace {

// To the nearest integer, ties to even; NaN becomes -127.
int8_t code_of(float x) {
    if (!(x > -127)) return -127;
    return static_cast<int8_t>(std::nearbyint(x < 127 ? x : 127.0f));
}

// Of two numbers that are not negative; NaN is the largest.
float larger(float x, float y) { return std::bit_cast<uint32_t>(y) > std::bit_cast<uint32_t>(x) ? y : x; }

} // namespace

void act_q8_pack(act_q8_layout layout, const float * x, int64_t k, void * row) {
    auto * bytes = static_cast<uint8_t *>(row);
    auto * codes = reinterpret_cast<int8_t *>(bytes);
    auto * scales = reinterpret_cast<float *>(bytes + act_q8_scales_offset(k));
    auto * sums = reinterpret_cast<int16_t *>(bytes + act_q8_sums_offset(layout, k));
    for (int64_t b = 0; b < k / layout.block; b++) {
        float max = 0;
        for (int64_t i = b * layout.block; i < (b + 1) * layout.block; i++) max = larger(max, std::fabs(x[i]));
        const bool zero = max < act_q8_smallest;
        // 1/127 as f32 is off by 2^-28 only: the product is as good as the quotient.
        scales[b] = zero ? 0 : max * (1.0f / 127.0f);
        const float factor = zero ? 0 : 127.0f / max;
        for (int64_t i = b * layout.block; i < (b + 1) * layout.block; i++) codes[i] = code_of(x[i] * factor);
    }
    for (int64_t g = 0; g < k / layout.group; g++) {
        int32_t sum = 0;
        for (int64_t i = g * layout.group; i < (g + 1) * layout.group; i++) sum += codes[i];
        sums[g] = static_cast<int16_t>(sum);
    }
}

void act_q8_unpack(act_q8_layout layout, const void * row, int64_t k, float * x) {
    const auto * bytes = static_cast<const uint8_t *>(row);
    const auto * codes = reinterpret_cast<const int8_t *>(bytes);
    const auto * scales = reinterpret_cast<const float *>(bytes + act_q8_scales_offset(k));
    for (int64_t i = 0; i < k; i++) x[i] = scales[i / layout.block] * static_cast<float>(codes[i]);
}

} // namespace alloy
