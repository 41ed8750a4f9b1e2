// Family select, AVX-512 (F, BW, VL, DQ), 16 lanes: a line is one register.
// Registers: block_max 1 maximum; exp_sums 1 sum and 9 constants; moments 3 sums.
// Limit: block_max by loads from L2 or L3; exp_sums by the two FMA pipes; exp_bins by its scalar additions to memory.
// Lost: vcompressps to memory (microcode on Zen 4, 100 times the form between registers); scatter with conflict detection (slower
// than scalar additions where neighbours seldom share a bin, and much slower where they do).
#include "kernels/select/select.h"
#include "base/avx512.h"

namespace alloy {
namespace {

struct vec {
    using reg = __m512;
    static constexpr int64_t lanes = 16;

    static reg load(const float * p) { return _mm512_loadu_ps(p); }
    static void store(float * p, reg x) { _mm512_storeu_ps(p, x); }
    static reg set1(float x) { return _mm512_set1_ps(x); }
    static reg add(reg x, reg y) { return _mm512_add_ps(x, y); }
    static reg sub(reg x, reg y) { return _mm512_sub_ps(x, y); }
    static reg mul(reg x, reg y) { return _mm512_mul_ps(x, y); }
    static reg fma(reg x, reg y, reg z) { return _mm512_fmadd_ps(x, y, z); } // x * y + z
    static reg max(reg x, reg y) { return _mm512_max_ps(x, y); }
    static reg min(reg x, reg y) { return _mm512_min_ps(x, y); }
    static reg if_at_least(reg x, reg limit, reg y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), y); }

    // x * 2^(the low bits of z, as a signed integer)
    static reg add_exponent(reg x, reg z) {
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(z), 23)));
    }
    static void to_int_store(int32_t * p, reg x) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(x)); }

    static float highest(reg x) {
        const __m256 half = _mm256_max_ps(_mm512_extractf32x8_ps(x, 0), _mm512_extractf32x8_ps(x, 1));
        __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
    }
    static float sum(reg x) {
        const __m256 half = _mm256_add_ps(_mm512_extractf32x8_ps(x, 0), _mm512_extractf32x8_ps(x, 1));
        __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
    }

    // The lanes with lo <= x <= hi, close together; how many.
    static int64_t append(float * values, int32_t * ids, reg x, int32_t first_id, reg lo, reg hi) {
        const __mmask16 mask = _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(x, lo, _CMP_GE_OQ), x, hi, _CMP_LE_OQ);
        if (mask == 0) return 0;
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        _mm512_storeu_ps(values, _mm512_maskz_compress_ps(mask, x));
        _mm512_storeu_si512(ids, _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lane, _mm512_set1_epi32(first_id))));
        return __builtin_popcount(mask);
    }
};

} // namespace
} // namespace alloy

#include "kernels/select/generic.h"

namespace alloy {
ALLOY_DEFINE_SELECT(avx512)
}
