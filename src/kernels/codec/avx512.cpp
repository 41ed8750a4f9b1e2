// Family codec, AVX-512 (F, BW, VL, DQ), 16 rows at once, 4 numbers of each a step of the search.
// Registers: 4 tables of levels, 2 factors, 3 sums, 4 constants and some 6 on the way.
// Limit: of a step of n5 24 operations of 64 B, on Zen 4 two a cycle: 8 shuffles and shifts and 8 products and saturating subtractions at
// one a cycle. 12 cycles, 16 measured.
// Lost: comparisons into masks for `count` (clang 14 makes bytes of them, and it takes as long); by counting words and VPERMW (no packs, but
// twice the look-ups) and rows one after another (a sum across the register for each candidate, at d 64 as much as all else).
#include "kernels/codec/codec.h"
#include "base/avx512.h"

namespace alloy {
namespace {

struct vec {
    using floats = __m512;
    using ints = __m512i;
    static constexpr int rows = 16;

    // --- 16 floats
    static floats set1(float x) { return _mm512_set1_ps(x); }
    static floats load(const float * p) { return _mm512_loadu_ps(p); }
    static void store(float * p, floats x) { _mm512_storeu_ps(p, x); }
    static floats add(floats x, floats y) { return _mm512_add_ps(x, y); }
    static floats mul(floats x, floats y) { return _mm512_mul_ps(x, y); }
    static floats div(floats x, floats y) { return _mm512_div_ps(x, y); }
    static floats fma(floats x, floats y, floats z) { return _mm512_fmadd_ps(x, y, z); } // x * y + z
    static floats abs(floats x) { return _mm512_abs_ps(x); }
    static floats round(floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    // Of numbers that are not negative the largest as an integer is the largest, and NaN is larger than all.
    static floats larger(floats x, floats y) {
        return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(x), _mm512_castps_si512(y)));
    }
    static float largest(floats x) { return __builtin_bit_cast(float, _mm512_reduce_max_epi32(_mm512_castps_si512(x))); }
    static float sum(floats x) { return _mm512_reduce_add_ps(x); }
    static uint16_t to_half(float x) { return static_cast<uint16_t>(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), 0), 0)); }

    // --- integers
    static ints load_ints(const void * p) { return _mm512_loadu_si512(p); }
    static void store(void * p, ints x) { _mm512_storeu_si512(p, x); }
    static ints all_bytes(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
    static ints both(ints x, ints y) { return _mm512_and_si512(x, y); }
    static ints either(ints x, ints y) { return _mm512_or_si512(x, y); }
    static ints abs_words(ints x) { return _mm512_abs_epi16(x); }
    static ints words(floats lo, floats hi) { // to nearest, in order
        const ints in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        return _mm512_permutexvar_epi64(in_order, _mm512_packs_epi32(_mm512_cvtps_epi32(lo), _mm512_cvtps_epi32(hi)));
    }
    static void store_bytes(uint8_t * p, ints words) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi16_epi8(words));
    }
    static floats to_floats(ints x) { return _mm512_cvtepi32_ps(x); }
    static floats from_bytes(const int8_t * p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
    }

    // --- the search: lane r is of row r
    static ints factors(floats x) { // both words of a lane
        const ints f = _mm512_cvtps_epi32(x);
        return _mm512_or_si512(f, _mm512_slli_epi32(f, 16));
    }
    static ints mul_high(ints x, ints factors) { return _mm512_mulhi_epu16(x, factors); }
    static ints narrow(ints lo, ints hi) { return _mm512_packus_epi16(lo, hi); } // to 255
    static ints narrow_signed(ints lo, ints hi) { return _mm512_packs_epi16(lo, hi); }
    static ints widen_low(ints x) { return _mm512_unpacklo_epi8(x, _mm512_setzero_si512()); } // what narrow() had as lo
    static ints widen_high(ints x) { return _mm512_unpackhi_epi8(x, _mm512_setzero_si512()); }
    static ints with_sign(ints x, ints signs) { // that of bytes
        return _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(signs), _mm512_setzero_si512(), x);
    }
    static ints table(const uint8_t * p) { return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i *>(p))); }
    static ints look_up(ints table, ints x) { return _mm512_shuffle_epi8(table, x); }
    static ints high_nibbles(ints x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
    static ints count(ints n, ints x, ints before) { // n and one more where x > before
        return _mm512_add_epi8(n, _mm512_min_epu8(_mm512_subs_epu8(x, before), _mm512_set1_epi8(1)));
    }
    static ints min_bytes(ints x, ints y) { return _mm512_min_epu8(x, y); }
    static ints add_products(ints sums, ints x, ints y) { return _mm512_add_epi32(sums, _mm512_madd_epi16(x, y)); }
    static ints twice_low(ints x) { return _mm512_unpacklo_epi32(x, x); } // lanes 0 and 1 of every four, each twice
    static ints twice_high(ints x) { return _mm512_unpackhi_epi32(x, x); }
    static ints add_pairs(ints x, ints y) { // of neighbours, those of x and of y
        const __m512 a = _mm512_castsi512_ps(x), b = _mm512_castsi512_ps(y);
        return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xDD)));
    }
    static ints add_squares(ints sums, ints bytes) { // of the four bytes of each lane
        return _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, bytes), _mm512_set1_epi16(1)));
    }
    static void take_larger(floats & best, floats & best_a, floats & best_b, floats x, floats a, floats b) {
        const __mmask16 larger = _mm512_cmp_ps_mask(x, best, _CMP_GT_OQ);
        best = _mm512_mask_mov_ps(best, larger, x);
        best_a = _mm512_mask_mov_ps(best_a, larger, a);
        best_b = _mm512_mask_mov_ps(best_b, larger, b);
    }
};

} // namespace
} // namespace alloy

#include "kernels/codec/generic.h"

namespace alloy {
ALLOY_DEFINE_CODEC(avx512)
}
