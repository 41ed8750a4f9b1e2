// Family quantize, AVX2, 256 numbers a step.
// Registers: pass 1 has 8 maxima, pass 2 4 vectors of numbers and 4 of sums.
// Limit: shuffles, packs and sums, 60 operations of 32 B in 256 numbers, and maxima and conversions, 63, two of each a cycle.
// Lost: one reduction and one division a block (folding 8 blocks together gives their maxima in one vector, in order); sums
// by maddubs + madd (sad does both); broadcasting factors from a register (from memory they are free).
#include "kernels/quantize/quantize.h"
#include "formats/act_q8.h"

#include <immintrin.h>

namespace alloy {
namespace {

// Of numbers that are not negative the largest as an integer is the largest, and NaN is larger than all: it must not get lost.
__m256 larger(__m256 x, __m256 y) { return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(x), _mm256_castps_si256(y))); }
__m128 larger(__m128 x, __m128 y) { return _mm_castsi128_ps(_mm_max_epi32(_mm_castps_si128(x), _mm_castps_si128(y))); }

__m256 abs_8(const float * x) { return _mm256_and_ps(_mm256_loadu_ps(x), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
__m256 abs_max_32(const float * x) {
    return larger(larger(abs_8(x), abs_8(x + 8)), larger(abs_8(x + 16), abs_8(x + 24)));
}

// Lane by lane, the maxima of the halves of x and of y: [x, y, x, y]
__m256 fold_words(__m256 x, __m256 y) { return larger(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y)); }
__m256 fold_pairs(__m256 x, __m256 y) {
    const __m256d p = _mm256_castps_pd(x), q = _mm256_castps_pd(y);
    return larger(_mm256_castpd_ps(_mm256_unpacklo_pd(p, q)), _mm256_castpd_ps(_mm256_unpackhi_pd(p, q)));
}

__m256i codes_8(const float * x, __m256 factor) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor)); }

__m256i codes_of_block(const float * x, float factor) {
    const __m256 f = _mm256_set1_ps(factor);
    const __m256i lo = _mm256_packs_epi32(codes_8(x, f), codes_8(x + 8, f));
    const __m256i hi = _mm256_packs_epi32(codes_8(x + 16, f), codes_8(x + 24, f));
    // Packs work within 128-bit lanes: word v of lane l holds codes of vector v; the permutation transposes them. Only an
    // input that is not finite makes -128.
    const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(lo, hi), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return _mm256_max_epi8(codes, _mm256_set1_epi8(-127));
}

// Sums of 8 codes + 128 each, in 4 quadwords.
__m256i sums_of_8(__m256i codes) {
    return _mm256_sad_epu8(_mm256_xor_si256(codes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
}

struct tile {
    static void scales_8x32(const float * x, float * scales, float * factors) {
        __m256 m[8];
        for (int b = 0; b < 8; b++) m[b] = abs_max_32(x + 32 * b);
        const __m256 u = fold_pairs(fold_words(m[0], m[1]), fold_words(m[2], m[3]));
        const __m256 v = fold_pairs(fold_words(m[4], m[5]), fold_words(m[6], m[7]));
        const __m256 max = larger(_mm256_permute2f128_ps(u, v, 0x20), _mm256_permute2f128_ps(u, v, 0x31));
        const __m256 some = _mm256_cmp_ps(max, _mm256_set1_ps(act_q8_smallest), _CMP_NLT_UQ);
        _mm256_storeu_ps(scales, _mm256_and_ps(some, _mm256_mul_ps(max, _mm256_set1_ps(1.0f / 127.0f))));
        _mm256_storeu_ps(factors, _mm256_and_ps(some, _mm256_div_ps(_mm256_set1_ps(127.0f), max)));
    }

    template <int n> static float abs_max(const float * x) {
        __m256 m = abs_max_32(x);
        for (int i = 32; i < n; i += 32) m = larger(m, abs_max_32(x + i));
        __m128 half = larger(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
        half = larger(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(larger(half, _mm_movehdup_ps(half)));
    }

    // Codes and sums of 128 numbers. A sum of 8 fits in 16 bits: word b of a quadword becomes the sum of block b, and four
    // blocks are folded at once.
    template <int group> static __m128i codes_128(const float * x, const float * factors, int8_t * codes) {
        __m256i s[4];
        for (int b = 0; b < 4; b++) {
            const __m256i c = codes_of_block(x + 32 * b, factors[b]);
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(codes + 32 * b), c);
            s[b] = sums_of_8(c);
        }
        const __m256i even = _mm256_or_si256(s[0], _mm256_slli_epi64(s[2], 32));
        const __m256i odd = _mm256_or_si256(s[1], _mm256_slli_epi64(s[3], 32));
        __m256i words = _mm256_or_si256(even, _mm256_slli_epi64(odd, 16));
        words = _mm256_add_epi16(words, _mm256_shuffle_epi32(words, 0x4E));
        const __m128i first = _mm256_castsi256_si128(words), second = _mm256_extracti128_si256(words, 1);
        const __m128i sums = group == 16 ? _mm_unpacklo_epi16(first, second) : _mm_add_epi16(first, second);
        return _mm_sub_epi16(sums, _mm_set1_epi16(128 * group));
    }

    template <int group> static void codes_256(const float * x, const float * factors, int8_t * codes, int16_t * sums) {
        const __m128i lo = codes_128<group>(x, factors, codes), hi = codes_128<group>(x + 128, factors + 4, codes + 128);
        auto * out = reinterpret_cast<__m128i *>(sums);
        if (group == 16) {
            _mm_storeu_si128(out, lo);
            _mm_storeu_si128(out + 1, hi);
        } else {
            _mm_storeu_si128(out, _mm_unpacklo_epi64(lo, hi));
        }
    }

    static int16_t codes_32(const float * x, float factor, int8_t * codes) {
        const __m256i c = codes_of_block(x, factor);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(codes), c);
        const __m256i s = sums_of_8(c);
        const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        return static_cast<int16_t>(_mm_cvtsi128_si32(half) + _mm_extract_epi16(half, 4) - 128 * 32);
    }
};

} // namespace
} // namespace alloy

#include "kernels/quantize/generic.h"

namespace alloy {
ALLOY_DEFINE_QUANTIZE(avx2)
}
