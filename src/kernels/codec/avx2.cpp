// Family codec, AVX2, 8 rows at once, 4 numbers of each a step of the search.
// Registers: 4 tables of levels, 2 factors, 3 sums, 3 constants, and 4 on the way.
// Limit: of a step of n5 24 operations of 32 B, on Zen 4 four a cycle, of them 8 shuffles and shifts at two. 6 cycles, 9 measured.
// Lost: VPCMPEQB of a maximum for `count` (as fast within noise); by counting a comparison with each midpoint (30 operations for n5, not 12).
#include "kernels/codec/codec.h"

#include <immintrin.h>

namespace alloy {
namespace {

struct vec {
    using floats = __m256;
    using ints = __m256i;
    static constexpr int rows = 8;

    // --- 8 floats
    static floats set1(float x) { return _mm256_set1_ps(x); }
    static floats load(const float * p) { return _mm256_loadu_ps(p); }
    static void store(float * p, floats x) { _mm256_storeu_ps(p, x); }
    static floats add(floats x, floats y) { return _mm256_add_ps(x, y); }
    static floats mul(floats x, floats y) { return _mm256_mul_ps(x, y); }
    static floats div(floats x, floats y) { return _mm256_div_ps(x, y); }
    static floats fma(floats x, floats y, floats z) { return _mm256_fmadd_ps(x, y, z); } // x * y + z
    static floats abs(floats x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
    static floats round(floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    // Of numbers that are not negative the largest as an integer is the largest, and NaN is larger than all.
    static floats larger(floats x, floats y) {
        return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(x), _mm256_castps_si256(y)));
    }
    static float largest(floats x) {
        const __m256i v = _mm256_castps_si256(x);
        __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
        return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1))));
    }
    static float sum(floats x) {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
    static uint16_t to_half(float x) { return static_cast<uint16_t>(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), 0), 0)); }

    // --- integers
    static ints load_ints(const void * p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
    static void store(void * p, ints x) { _mm256_storeu_si256(static_cast<__m256i *>(p), x); }
    static ints all_bytes(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
    static ints both(ints x, ints y) { return _mm256_and_si256(x, y); }
    static ints either(ints x, ints y) { return _mm256_or_si256(x, y); }
    static ints abs_words(ints x) { return _mm256_abs_epi16(x); }
    static ints words(floats lo, floats hi) { // to nearest, in order
        return _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(lo), _mm256_cvtps_epi32(hi)), 0xD8);
    }
    static void store_bytes(uint8_t * p, ints words) {
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), bytes);
    }
    static floats to_floats(ints x) { return _mm256_cvtepi32_ps(x); }
    static floats from_bytes(const int8_t * p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
    }

    // --- the search: lane r is of row r
    static ints factors(floats x) { // both words of a lane
        const ints f = _mm256_cvtps_epi32(x);
        return _mm256_or_si256(f, _mm256_slli_epi32(f, 16));
    }
    static ints mul_high(ints x, ints factors) { return _mm256_mulhi_epu16(x, factors); }
    static ints narrow(ints lo, ints hi) { return _mm256_packus_epi16(lo, hi); } // to 255
    static ints narrow_signed(ints lo, ints hi) { return _mm256_packs_epi16(lo, hi); }
    static ints widen_low(ints x) { return _mm256_unpacklo_epi8(x, _mm256_setzero_si256()); } // what narrow() had as lo
    static ints widen_high(ints x) { return _mm256_unpackhi_epi8(x, _mm256_setzero_si256()); }
    static ints with_sign(ints x, ints signs) { return _mm256_sign_epi8(x, _mm256_or_si256(signs, _mm256_set1_epi8(1))); } // that of bytes
    static ints table(const uint8_t * p) { return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(p))); }
    static ints look_up(ints table, ints x) { return _mm256_shuffle_epi8(table, x); }
    static ints high_nibbles(ints x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }
    static ints count(ints n, ints x, ints before) { // n and one more where x > before
        return _mm256_add_epi8(n, _mm256_min_epu8(_mm256_subs_epu8(x, before), _mm256_set1_epi8(1)));
    }
    static ints min_bytes(ints x, ints y) { return _mm256_min_epu8(x, y); }
    static ints add_products(ints sums, ints x, ints y) { return _mm256_add_epi32(sums, _mm256_madd_epi16(x, y)); }
    static ints twice_low(ints x) { return _mm256_unpacklo_epi32(x, x); } // lanes 0 and 1 of every four, each twice
    static ints twice_high(ints x) { return _mm256_unpackhi_epi32(x, x); }
    static ints add_pairs(ints x, ints y) { return _mm256_hadd_epi32(x, y); } // of neighbours, those of x and of y
    static ints add_squares(ints sums, ints bytes) { // of the four bytes of each lane
        return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, bytes), _mm256_set1_epi16(1)));
    }
    static void take_larger(floats & best, floats & best_a, floats & best_b, floats x, floats a, floats b) {
        const __m256 larger = _mm256_cmp_ps(x, best, _CMP_GT_OQ);
        best = _mm256_blendv_ps(best, x, larger);
        best_a = _mm256_blendv_ps(best_a, a, larger);
        best_b = _mm256_blendv_ps(best_b, b, larger);
    }
};

} // namespace
} // namespace alloy

#include "kernels/codec/generic.h"

namespace alloy {
ALLOY_DEFINE_CODEC(avx2)
}
