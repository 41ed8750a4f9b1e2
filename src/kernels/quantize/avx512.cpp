// Family quantize, AVX-512 (F, BW, VL, DQ), 256 numbers a step.
// Registers: pass 1 has 8 maxima, pass 2 4 vectors of numbers and 4 of sums; both leave half of the file unused.
// Limit: shuffles, packs and sums, 39 operations of 64 B in 256 numbers, one a cycle on Zen 4; then maxima and conversions, 32.
// Lost: one reduction a block (a chain of 4 shuffles for one number; folding 8 blocks together takes 2 each); vpmovdb (as many
// shuffles as the packs, and no vector of 64 codes to sum); sums by maddubs + madd (sad does both); broadcasting factors from
// a register (8 permutations; from memory they are free).
#include "kernels/quantize/quantize.h"
#include "formats/act_q8.h"
#include "base/avx512.h"

namespace alloy {
namespace {

// Of numbers that are not negative the largest as an integer is the largest, and NaN is larger than all: it must not get lost.
__m512 larger(__m512 x, __m512 y) { return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(x), _mm512_castps_si512(y))); }
__m256 larger(__m256 x, __m256 y) { return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(x), _mm256_castps_si256(y))); }
__m128 larger(__m128 x, __m128 y) { return _mm_castsi128_ps(_mm_max_epi32(_mm_castps_si128(x), _mm_castps_si128(y))); }
__m512 abs_16(const float * x) { return _mm512_abs_ps(_mm512_loadu_ps(x)); }

// Lane by lane, the maxima of the halves of x and of y: [x, y, x, y]
__m512 fold_words(__m512 x, __m512 y) { return larger(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y)); }
__m512 fold_pairs(__m512 x, __m512 y) {
    const __m512d p = _mm512_castps_pd(x), q = _mm512_castps_pd(y);
    return larger(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
}

__m512i codes_16(const float * x, __m512 factor) { return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), factor)); }

// The 64 codes of x, the first 32 with factors[0], the others with factors[1].
__m512i codes_64(const float * x, const float * factors) {
    const __m512 f0 = _mm512_set1_ps(factors[0]), f1 = _mm512_set1_ps(factors[1]);
    const __m512i lo = _mm512_packs_epi32(codes_16(x, f0), codes_16(x + 16, f0));
    const __m512i hi = _mm512_packs_epi32(codes_16(x + 32, f1), codes_16(x + 48, f1));
    // Packs work within 128-bit lanes: word v of lane l holds codes of vector v; the permutation transposes them. Only an
    // input that is not finite makes -128.
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i codes = _mm512_permutexvar_epi32(in_order, _mm512_packs_epi16(lo, hi));
    return _mm512_max_epi8(codes, _mm512_set1_epi8(-127));
}

// Sums of 8 codes + 128 each, in 8 quadwords.
__m512i sums_of_8(__m512i codes) {
    return _mm512_sad_epu8(_mm512_xor_si512(codes, _mm512_set1_epi8(-128)), _mm512_setzero_si512());
}

struct tile {
    static void scales_8x32(const float * x, float * scales, float * factors) {
        __m512 m[8];
        for (int b = 0; b < 8; b++) m[b] = larger(abs_16(x + 32 * b), abs_16(x + 32 * b + 16));
        const __m512 u = fold_pairs(fold_words(m[0], m[1]), fold_words(m[2], m[3]));
        const __m512 v = fold_pairs(fold_words(m[4], m[5]), fold_words(m[6], m[7]));
        const __m512 w = larger(_mm512_shuffle_f32x4(u, v, 0x88), _mm512_shuffle_f32x4(u, v, 0xDD));
        const __m256 max = larger(_mm512_extractf32x8_ps(_mm512_shuffle_f32x4(w, w, 0x08), 0),
                                         _mm512_extractf32x8_ps(_mm512_shuffle_f32x4(w, w, 0x0D), 0));
        const __mmask8 some = _mm256_cmp_ps_mask(max, _mm256_set1_ps(act_q8_smallest), _CMP_NLT_UQ);
        _mm256_storeu_ps(scales, _mm256_maskz_mul_ps(some, max, _mm256_set1_ps(1.0f / 127.0f)));
        _mm256_storeu_ps(factors, _mm256_maskz_div_ps(some, _mm256_set1_ps(127.0f), max));
    }

    template <int n> static float abs_max(const float * x) {
        __m512 m[2];
        for (int j = 0; j < 2; j++) m[j] = abs_16(x + 16 * j);
        for (int i = 32; i < n; i += 32) {
            for (int j = 0; j < 2; j++) m[j] = larger(m[j], abs_16(x + i + 16 * j));
        }
        const __m512 both = larger(m[0], m[1]);
        const __m256 half = larger(_mm512_extractf32x8_ps(both, 0), _mm512_extractf32x8_ps(both, 1));
        __m128 quarter = larger(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        quarter = larger(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(larger(quarter, _mm_movehdup_ps(quarter)));
    }

    template <int group> static void codes_256(const float * x, const float * factors, int8_t * codes, int16_t * sums) {
        __m512i s[4];
        for (int v = 0; v < 4; v++) {
            const __m512i c = codes_64(x + 64 * v, factors + 2 * v);
            _mm512_storeu_si512(codes + 64 * v, c);
            s[v] = sums_of_8(c);
        }
        // A sum of 8 fits in 16 bits: word v of a quadword becomes the sum of vector v, and all vectors are folded at once.
        const __m512i even = _mm512_or_si512(s[0], _mm512_slli_epi64(s[2], 32));
        const __m512i odd = _mm512_or_si512(s[1], _mm512_slli_epi64(s[3], 32));
        __m512i words = _mm512_or_si512(even, _mm512_slli_epi64(odd, 16));
        words = _mm512_add_epi16(words, _mm512_shuffle_epi32(words, _MM_PERM_BADC));
        if (group == 32) words = _mm512_add_epi16(words, _mm512_shuffle_i64x2(words, words, 0xB1));
        words = _mm512_sub_epi16(words, _mm512_set1_epi16(128 * group));
        // Lane l has the words v: sum 4v + l of 16 codes, or with l = 2h sum 2v + h of 32.
        const __m256i order = group == 16 ? _mm256_setr_epi16(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27)
                                          : _mm256_setr_epi16(0, 16, 1, 17, 2, 18, 3, 19, 0, 0, 0, 0, 0, 0, 0, 0);
        const __m512i sorted = _mm512_permutexvar_epi16(_mm512_zextsi256_si512(order), words);
        const __m256i low = _mm512_extracti64x4_epi64(sorted, 0);
        if (group == 16) {
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(sums), low);
        } else {
            _mm_storeu_si128(reinterpret_cast<__m128i *>(sums), _mm256_castsi256_si128(low));
        }
    }

    static int16_t codes_32(const float * x, float factor, int8_t * codes) {
        const __m512 f = _mm512_set1_ps(factor);
        const __m512i words = _mm512_packs_epi32(codes_16(x, f), codes_16(x + 16, f));
        const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        __m256i c = _mm512_cvtsepi16_epi8(_mm512_permutexvar_epi64(in_order, words));
        c = _mm256_max_epi8(c, _mm256_set1_epi8(-127));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(codes), c);
        const __m256i s = _mm256_sad_epu8(_mm256_xor_si256(c, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
        const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        return static_cast<int16_t>(_mm_cvtsi128_si32(half) + _mm_extract_epi16(half, 4) - 128 * 32);
    }
};

} // namespace
} // namespace alloy

#include "kernels/quantize/generic.h"

namespace alloy {
ALLOY_DEFINE_QUANTIZE(avx512)
}
