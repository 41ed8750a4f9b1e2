// Family rowwise, AVX-512 (F, BW, VL, DQ), 16 lanes.
// Registers: rms_norm 8 accumulators; swiglu 12 constants and 2 x 4 values, geglu 17 and 2 x 6.
// Limit: add, scale and the second pass of the norms by stores (64 B in 2 cycles on Zen 4); swiglu and geglu by the two FMA
// pipes, where a division takes 2 slots of 16 lanes: 10 and 17 slots a vector.
// Lost: rcp14 + one Newton step (3 slots more than the division); scalef (2 slots; a shift and an addition fit elsewhere);
// 2^(j/32) by vpermt2ps (shuffles share a pipe with FMA); a rational 2^f (fewer multiplications, but more operations in all).
#include "kernels/rowwise/rowwise.h"
#include "base/avx512.h"

namespace alloy {
namespace {

struct vec {
    using reg = __m512;
    static constexpr int64_t lanes = 16;

    static __mmask16 first(int64_t n) { return static_cast<__mmask16>(_bzhi_u32(0xffff, static_cast<uint32_t>(n))); }

    static reg load(const float * p) { return _mm512_loadu_ps(p); }
    static reg load_n(const float * p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
    static void store(float * p, reg x) { _mm512_storeu_ps(p, x); }
    static void store_n(float * p, reg x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }

    static reg set1(float x) { return _mm512_set1_ps(x); }
    static reg add(reg x, reg y) { return _mm512_add_ps(x, y); }
    static reg sub(reg x, reg y) { return _mm512_sub_ps(x, y); }
    static reg mul(reg x, reg y) { return _mm512_mul_ps(x, y); }
    static reg div(reg x, reg y) { return _mm512_div_ps(x, y); }
    static reg fma(reg x, reg y, reg z) { return _mm512_fmadd_ps(x, y, z); } // x * y + z
    static reg fms(reg x, reg y, reg z) { return _mm512_fmsub_ps(x, y, z); } // x * y - z
    // MAXPS returns its second operand when either is NaN.
    static reg max_keep_nan(reg x, reg limit) { return _mm512_max_ps(limit, x); }
    static reg min(reg x, reg limit) { return _mm512_min_ps(x, limit); }

    static float sum(reg x) {
        const __m256 half = _mm256_add_ps(_mm512_extractf32x8_ps(x, 0), _mm512_extractf32x8_ps(x, 1));
        __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
    }

    // x * 2^(the low bits of z, as a signed integer)
    static reg add_exponent(reg x, reg z) {
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(z), 23)));
    }

    // Hadamard transform of the lanes, unscaled: x[i] + x[i ^ half] in the lower, x[i ^ half] - x[i] in the upper ones of each pair.
    static reg butterfly(reg x, reg swapped, uint16_t upper) { return _mm512_mask_sub_ps(_mm512_add_ps(x, swapped), upper, swapped, x); }
    static reg hadamard(reg x) {
        x = butterfly(x, _mm512_permute_ps(x, 0xB1), 0xAAAA);
        x = butterfly(x, _mm512_permute_ps(x, 0x4E), 0xCCCC);
        x = butterfly(x, _mm512_shuffle_f32x4(x, x, 0xB1), 0xF0F0);
        return butterfly(x, _mm512_shuffle_f32x4(x, x, 0x4E), 0xFF00);
    }

    // Pairs (x0, x1) turned by pairs (cos, sin): (x0 cos - x1 sin, x1 cos + x0 sin).
    static reg rotate_pairs(reg x, reg cos_sin) {
        const reg swapped = _mm512_permute_ps(x, 0xB1);
        return _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(cos_sin), _mm512_mul_ps(swapped, _mm512_movehdup_ps(cos_sin)));
    }

    static void split(reg first, reg second, reg & cos, reg & sin) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        cos = _mm512_permutex2var_ps(first, even, second);
        sin = _mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
    }
    static void load_cos_sin(const float * p, reg & cos, reg & sin) { split(load(p), load(p + lanes), cos, sin); }
    static void load_cos_sin_n(const float * p, int64_t n, reg & cos, reg & sin) {
        const int64_t second = 2 * n - lanes;
        split(load_n(p, second < 0 ? 2 * n : lanes), load_n(p + lanes, second < 0 ? 0 : second), cos, sin);
    }
};

} // namespace
} // namespace alloy

#include "kernels/rowwise/generic.h"

namespace alloy {
ALLOY_DEFINE_ROWWISE(avx512)
}
