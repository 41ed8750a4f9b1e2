// Family attention, AVX2, 16 elements in two registers.
// Registers: 2 cells x 4 rows of sums where cells lie, 4 x 2 of outputs; f32 tiles 6 rows x 16 cells or channels, 12 sums; 8-bit tiles 3 rows.
// Saturation: VPMADDUBSW adds two products of bytes into int16: K + 128 <= 255 times |Q| <= 63, P <= 127 times |V| <= 127.
// Lost: Q in 8 bits with signs moved from K (VPSIGNB): one instruction more, 241 cycles for 145.
#include "kernels/attention/attention.h"

#include <immintrin.h>

#include "kernels/attention/x86.h"

namespace alloy {
namespace {

struct vec : byte_vec {
    struct reg {
        __m256 a, b;
    };
    struct ints {
        __m256i a, b;
    };
    using part = __m256;
    using key_codes = ints;
    using value_codes = ints;
    using four = __m256i;
    static constexpr int tile_rows = 6, tile_vectors = 1;
    static constexpr int int8_rows = 3, int8_vectors = 1;
    static constexpr bool byte_dots = false; // sealed pages in f32, see coded.h
    static constexpr uint8_t key_offset = 128;
    static constexpr float largest_q = 63, largest_p = 127;
    static constexpr int tokens(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
    static constexpr int value_vectors(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

    static reg zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static reg set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static reg load(const float * p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static void store(float * p, reg x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
    static reg add(reg x, reg y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static reg sub(reg x, reg y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
    static reg mul(reg x, reg y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static reg div(reg x, reg y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
    static reg fma(reg x, reg y, reg z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; } // x * y + z
    static reg max(reg x, reg y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
    static reg min(reg x, reg limit) { return {_mm256_min_ps(limit.a, x.a), _mm256_min_ps(limit.b, x.b)}; } // NaN stays
    static reg abs(reg x) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
    }
    // x less the whole number below it. x becomes that number, limited so that the exponent of f32 holds it and its neighbours.
    static __m256 fraction(__m256 & x) {
        const __m256 limited = _mm256_max_ps(_mm256_set1_ps(-200), x); // NaN stays
        x = _mm256_floor_ps(limited);
        return _mm256_sub_ps(limited, x);
    }
    static reg fraction(reg & x) { return {fraction(x.a), fraction(x.b)}; }
    // y * 2^whole for y in [1, 2); 0 below the normal range.
    static __m256 scale_by_exp2(__m256 y, __m256 whole) {
        const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
        const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent));
        const __m256 kept = _mm256_cmp_ps(whole, _mm256_set1_ps(-126), _CMP_NLT_UQ); // also NaN
        return _mm256_and_ps(kept, scaled);
    }
    static reg scale_by_exp2(reg y, reg whole) { return {scale_by_exp2(y.a, whole.a), scale_by_exp2(y.b, whole.b)}; }
    static reg to_floats(ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    static bool all_zero(reg x) {
        return _mm256_movemask_ps(_mm256_cmp_ps(_mm256_add_ps(x.a, x.b), _mm256_setzero_ps(), _CMP_NEQ_UQ)) == 0;
    }
    static float largest(reg x) {
        const __m256 half = _mm256_max_ps(x.a, x.b);
        __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
    }
    static float sum(reg x) {
        const __m256 half = _mm256_add_ps(x.a, x.b);
        __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
    }
    // x + mask * slope; -inf where the mask is, also for NaN.
    static __m256 add_mask(__m256 x, __m256 mask, __m256 slope) {
        const __m256 hidden = _mm256_set1_ps(-__builtin_inff());
        return _mm256_blendv_ps(_mm256_fmadd_ps(mask, slope, x), hidden, _mm256_cmp_ps(mask, hidden, _CMP_EQ_OQ));
    }
    static reg add_mask(reg x, reg mask, reg slope) { return {add_mask(x.a, mask.a, slope.a), add_mask(x.b, mask.b, slope.b)}; }
    static void prefetch(const uint8_t * p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1); }

    // --- cells
    static reg set1_half(const uint8_t * p) {
        const __m256 x = _mm256_cvtph_ps(_mm_set1_epi16(*reinterpret_cast<const int16_t *>(p)));
        return {x, x};
    }
    static reg from_halves(const uint8_t * p) { return {_mm256_cvtph_ps(load_bytes(p)), _mm256_cvtph_ps(load_bytes(p + 16))}; }
    static __m256 from_bf16(bytes x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
    static reg from_bf16(const uint8_t * p) { return {from_bf16(load_bytes(p)), from_bf16(load_bytes(p + 16))}; }
    static reg from_signed(bytes x) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)))};
    }
    static bytes spread_bits(const uint8_t * bits) { // bit i of 16 bits as all bits of byte i
        uint16_t mask;
        __builtin_memcpy(&mask, bits, 2);
        const bytes spread = _mm_shuffle_epi8(_mm_set1_epi16(static_cast<int16_t>(mask)), _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
        const bytes bit = _mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
        return _mm_cmpeq_epi8(_mm_and_si128(spread, bit), bit);
    }
    static bytes set_bit4(bytes x, const uint8_t * bits) { return _mm_or_si128(x, _mm_and_si128(spread_bits(bits), _mm_set1_epi8(16))); }
    static bytes negate_where(bytes x, const uint8_t * bits) {
        const bytes all = spread_bits(bits);
        return _mm_sub_epi8(_mm_xor_si128(x, all), all);
    }

    // --- dot products where cells lie: 8 sums at a time
    static part no_sum() { return _mm256_setzero_ps(); }
    static part dot(part sum, reg x, reg y) { return _mm256_fmadd_ps(x.b, y.b, _mm256_fmadd_ps(x.a, y.a, sum)); }
    // acc[cell][row] -> s[row * attention_block + cell]
    template <int R> static void store_sums(const part (&acc)[tokens(R)][R], float * s) {
        constexpr int T = tokens(R);
        const auto at = [&](int i) __attribute__((always_inline)) { return acc[i % T][i / T < R ? i / T : 0]; };
        const auto four_sums = [&](int i) __attribute__((always_inline)) {
            return _mm256_hadd_ps(_mm256_hadd_ps(at(i), at(i + 1)), _mm256_hadd_ps(at(i + 2), at(i + 3)));
        };
        const __m256 low = four_sums(0), high = four_sums(4);
        const __m256 sums = _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
        const __m128 a = _mm256_castps256_ps128(sums), b = _mm256_extractf128_ps(sums, 1);
        if constexpr (R == 1) {
            _mm256_storeu_ps(s, sums);
        } else if constexpr (R == 2) {
            _mm_storeu_ps(s, a);
            _mm_storeu_ps(s + attention_block, b);
        } else {
            _mm_storel_pi(reinterpret_cast<__m64 *>(s), a);
            _mm_storeh_pi(reinterpret_cast<__m64 *>(s + attention_block), a);
            _mm_storel_pi(reinterpret_cast<__m64 *>(s + 2 * attention_block), b);
            if constexpr (R == 4) _mm_storeh_pi(reinterpret_cast<__m64 *>(s + 3 * attention_block), b);
        }
    }

    // --- 16 x 16 elements of 4 bytes; strides in elements
    static void transpose16(const float * in, int64_t stride_in, float * out, int64_t stride_out) {
        for (int64_t i = 0; i < 16; i += 8) {
            for (int64_t j = 0; j < 16; j += 8) transpose8(in + i * stride_in + j, stride_in, out + j * stride_out + i, stride_out);
        }
    }
    static void transpose8(const float * in, int64_t stride_in, float * out, int64_t stride_out) {
        __m256 a[8], b[8];
        for (int i = 0; i < 4; i++) { // rows i and i + 4 as halves of one register
            const auto row = [&](int r, int half) { return _mm_loadu_ps(in + r * stride_in + 4 * half); };
            a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(row(i, 0)), row(i + 4, 0), 1);
            a[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(row(i, 1)), row(i + 4, 1), 1);
        }
        for (int i = 0; i < 8; i += 4) {
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
            b[i + 2] = _mm256_unpacklo_ps(a[i + 2], a[i + 3]);
            b[i + 3] = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
            _mm256_storeu_ps(out + i * stride_out, _mm256_shuffle_ps(b[i], b[i + 2], 0x44));
            _mm256_storeu_ps(out + (i + 1) * stride_out, _mm256_shuffle_ps(b[i], b[i + 2], 0xEE));
            _mm256_storeu_ps(out + (i + 2) * stride_out, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44));
            _mm256_storeu_ps(out + (i + 3) * stride_out, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xEE));
        }
    }

    // --- 8 bit
    static __m128i to_bytes(reg x) {
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)), 0xD8);
        return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    }
    static void store_codes(int8_t * p, reg x, uint8_t offset) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm_xor_si128(to_bytes(x), _mm_set1_epi8(static_cast<char>(offset))));
    }
    static void store_p(uint8_t * p, const reg (&x)[4]) {
        for (int i = 0; i < 4; i++) _mm_storeu_si128(reinterpret_cast<__m128i *>(p + 16 * i), to_bytes(x[i]));
    }
    static ints set1_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    static __m256i load_ints(const void * p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
    static key_codes load_keys(const uint8_t * p) { return {load_ints(p), load_ints(p + 32)}; }
    static value_codes load_values(const int8_t * p) { return {load_ints(p), load_ints(p + 32)}; }
    static four load_four(const void * p) {
        int32_t x;
        __builtin_memcpy(&x, p, 4);
        return _mm256_set1_epi32(x);
    }
    static __m256i add_pairs(__m256i sum, __m256i pairs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
    static ints dot_keys(ints sum, key_codes k, four q) {
        return {add_pairs(sum.a, _mm256_maddubs_epi16(k.a, q)), add_pairs(sum.b, _mm256_maddubs_epi16(k.b, q))};
    }
    static ints dot_values(ints sum, four p, value_codes v) {
        return {add_pairs(sum.a, _mm256_maddubs_epi16(p, v.a)), add_pairs(sum.b, _mm256_maddubs_epi16(p, v.b))};
    }
};

} // namespace
} // namespace alloy

#include "kernels/attention/generic.h"

namespace alloy {
ALLOY_DEFINE_TILES(avx2)
#define ALLOY_CELL_TYPE(name, host, elements, bytes) ALLOY_DEFINE_CELLS(name, avx2)
#include "kernels/attention/cell_types.inc"
#undef ALLOY_CELL_TYPE
}
