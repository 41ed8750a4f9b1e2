// Family rowwise, AVX2 + FMA, 8 lanes.
// Registers: rms_norm 8 accumulators; swiglu and geglu 2 x 4 to 2 x 6 values, which leaves some constants in memory operands.
// Limit: add, scale and the second pass of the norms by stores (32 B a cycle); swiglu and geglu by the two FMA pipes.
// Lost: rcpps + one Newton step (3 slots more than the division); a gather for rope_neox's table (two loads, two
// shuffles and two permutations make 8 pairs).
#include "kernels/rowwise/rowwise.h"

#include <immintrin.h>

namespace alloy {
namespace {

// Lane masks: 8 - n words in, the first n lanes are set.
alignas(64) constexpr int32_t mask_words[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

struct vec {
    using reg = __m256;
    static constexpr int64_t lanes = 8;

    static __m256i first(int64_t n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(mask_words + 8 - n)); }

    static reg load(const float * p) { return _mm256_loadu_ps(p); }
    static reg load_n(const float * p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
    static void store(float * p, reg x) { _mm256_storeu_ps(p, x); }
    static void store_n(float * p, reg x, int64_t n) { _mm256_maskstore_ps(p, first(n), x); }

    static reg set1(float x) { return _mm256_set1_ps(x); }
    static reg add(reg x, reg y) { return _mm256_add_ps(x, y); }
    static reg sub(reg x, reg y) { return _mm256_sub_ps(x, y); }
    static reg mul(reg x, reg y) { return _mm256_mul_ps(x, y); }
    static reg div(reg x, reg y) { return _mm256_div_ps(x, y); }
    static reg fma(reg x, reg y, reg z) { return _mm256_fmadd_ps(x, y, z); } // x * y + z
    static reg fms(reg x, reg y, reg z) { return _mm256_fmsub_ps(x, y, z); } // x * y - z
    // MAXPS returns its second operand when either is NaN.
    static reg max_keep_nan(reg x, reg limit) { return _mm256_max_ps(limit, x); }
    static reg min(reg x, reg limit) { return _mm256_min_ps(x, limit); }

    static float sum(reg x) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }

    // x * 2^(the low bits of z, as a signed integer)
    static reg add_exponent(reg x, reg z) {
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(z), 23)));
    }

    // Hadamard transform of the lanes, unscaled: x[i] + x[i ^ half] in the lower, x[i ^ half] - x[i] in the upper ones of each pair.
    template <int upper> static reg butterfly(reg x, reg swapped) {
        return _mm256_blend_ps(_mm256_add_ps(x, swapped), _mm256_sub_ps(swapped, x), upper);
    }
    static reg hadamard(reg x) {
        x = butterfly<0xAA>(x, _mm256_permute_ps(x, 0xB1));
        x = butterfly<0xCC>(x, _mm256_permute_ps(x, 0x4E));
        return butterfly<0xF0>(x, _mm256_permute2f128_ps(x, x, 1));
    }

    // Pairs (x0, x1) turned by pairs (cos, sin): (x0 cos - x1 sin, x1 cos + x0 sin).
    static reg rotate_pairs(reg x, reg cos_sin) {
        const reg swapped = _mm256_permute_ps(x, 0xB1);
        return _mm256_fmaddsub_ps(x, _mm256_moveldup_ps(cos_sin), _mm256_mul_ps(swapped, _mm256_movehdup_ps(cos_sin)));
    }

    static reg in_order(reg x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xD8)); }
    static void split(reg first, reg second, reg & cos, reg & sin) {
        cos = in_order(_mm256_shuffle_ps(first, second, 0x88));
        sin = in_order(_mm256_shuffle_ps(first, second, 0xDD));
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
ALLOY_DEFINE_ROWWISE(avx2)
}
