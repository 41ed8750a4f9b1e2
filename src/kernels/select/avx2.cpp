// Family select, AVX2 + FMA, 8 lanes.
// Registers: block_max 2 maxima; exp_sums 2 sums and 9 constants; moments 6 sums.
// Limit: block_max by loads from L2 or L3; exp_sums by the two FMA pipes (11 operations a vector); exp_bins by its scalar additions
// to memory.
// Lost: a table of 256 permutations for in_range (8 KiB that evict the row's maxima); pdep and pext make one from the mask.
#include "kernels/select/select.h"

#include <immintrin.h>

namespace alloy {
namespace {

struct vec {
    using reg = __m256;
    static constexpr int64_t lanes = 8;

    static reg load(const float * p) { return _mm256_loadu_ps(p); }
    static void store(float * p, reg x) { _mm256_storeu_ps(p, x); }
    static reg set1(float x) { return _mm256_set1_ps(x); }
    static reg add(reg x, reg y) { return _mm256_add_ps(x, y); }
    static reg sub(reg x, reg y) { return _mm256_sub_ps(x, y); }
    static reg mul(reg x, reg y) { return _mm256_mul_ps(x, y); }
    static reg fma(reg x, reg y, reg z) { return _mm256_fmadd_ps(x, y, z); } // x * y + z
    static reg max(reg x, reg y) { return _mm256_max_ps(x, y); }
    static reg min(reg x, reg y) { return _mm256_min_ps(x, y); }
    static reg if_at_least(reg x, reg limit, reg y) { return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_GE_OQ), y); }

    // x * 2^(the low bits of z, as a signed integer)
    static reg add_exponent(reg x, reg z) {
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(z), 23)));
    }
    static void to_int_store(int32_t * p, reg x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm256_cvttps_epi32(x)); }

    static float highest(reg x) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }
    static float sum(reg x) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }

    // The lanes with lo <= x <= hi, close together; how many.
    static int64_t append(float * values, int32_t * ids, reg x, int32_t first_id, reg lo, reg hi) {
        const int mask = _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(x, lo, _CMP_GE_OQ), _mm256_cmp_ps(x, hi, _CMP_LE_OQ)));
        if (mask == 0) return 0;
        const uint64_t bytes = _pdep_u64(static_cast<uint64_t>(mask), 0x0101010101010101u) * 0xff;
        const uint64_t chosen = _pext_u64(0x0706050403020100u, bytes);
        const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(chosen)));
        _mm256_storeu_ps(values, _mm256_permutevar8x32_ps(x, order));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(ids), _mm256_add_epi32(order, _mm256_set1_epi32(first_id)));
        return __builtin_popcount(static_cast<unsigned>(mask));
    }
};

} // namespace
} // namespace alloy

#include "kernels/select/generic.h"

namespace alloy {
ALLOY_DEFINE_SELECT(avx2)
}
