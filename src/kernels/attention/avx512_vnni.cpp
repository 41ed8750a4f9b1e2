// Family attention, AVX-512 with VNNI, 16 lanes.
// Registers: 4 cells x 4 rows of sums where cells lie, 4 x 4 of outputs; tiles 6 rows x 64 cells or channels, 24 sums and 4 vectors. Sealed
// pages: 2 x 4 cells x 4 rows, each as two sums; bound by VPDPBUSD (one a cycle on Zen 4, half the time) and by what decodes beside it.
#include "kernels/attention/attention.h"
#include "base/avx512.h"

#include "kernels/attention/x86.h"

namespace alloy {
namespace {

struct vec : byte_vec {
    using reg = __m512;
    using part = __m512;
    using ints = __m512i;
    using key_codes = __m512i;
    using value_codes = __m512i;
    using four = __m512i;
    using codes = __m512i; // of 64 channels
    static constexpr bool byte_dots = true; // see coded.h
    static constexpr int tile_rows = 6, tile_vectors = 4;
    static constexpr int int8_rows = 6, int8_vectors = 4;
    static constexpr uint8_t key_offset = 128; // VPDPBUSD multiplies unsigned by signed bytes
    static constexpr float largest_q = 127, largest_p = 255;
    static constexpr int tokens(int rows) { return rows == 1 ? 16 : rows == 2 ? 8 : 4; }
    static constexpr int value_vectors(int) { return 4; }

    static reg zero() { return _mm512_setzero_ps(); }
    static reg set1(float x) { return _mm512_set1_ps(x); }
    static reg load(const float * p) { return _mm512_loadu_ps(p); }
    static void store(float * p, reg x) { _mm512_storeu_ps(p, x); }
    static reg add(reg x, reg y) { return _mm512_add_ps(x, y); }
    static reg sub(reg x, reg y) { return _mm512_sub_ps(x, y); }
    static reg mul(reg x, reg y) { return _mm512_mul_ps(x, y); }
    static reg div(reg x, reg y) { return _mm512_div_ps(x, y); }
    static reg fma(reg x, reg y, reg z) { return _mm512_fmadd_ps(x, y, z); } // x * y + z
    static reg max(reg x, reg y) { return _mm512_max_ps(x, y); }
    static reg min(reg x, reg limit) { return _mm512_min_ps(limit, x); } // NaN stays: MINPS and MAXPS return the second operand then
    static reg abs(reg x) { return _mm512_abs_ps(x); }
    // x less the whole number below it; of -inf 0. Scaling takes that whole number of x by itself.
    static reg fraction(reg & x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
    static reg scale_by_exp2(reg y, reg x) { return _mm512_scalef_ps(y, x); }
    static reg to_floats(ints x) { return _mm512_cvtepi32_ps(x); }
    static bool all_zero(reg x) { return _mm512_cmp_ps_mask(x, zero(), _CMP_NEQ_UQ) == 0; }
    static float largest(reg x) {
        __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
        __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
    }
    static float sum(reg x) { return _mm512_reduce_add_ps(x); }
    // x + mask * slope; -inf where the mask is, also for NaN.
    static reg add_mask(reg x, reg mask, reg slope) {
        const reg hidden = set1(-__builtin_inff());
        return _mm512_mask_mov_ps(fma(mask, slope, x), _mm512_cmp_ps_mask(mask, hidden, _CMP_EQ_OQ), hidden);
    }
    static void prefetch(const uint8_t * p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1); }

    // --- cells
    static reg set1_half(const uint8_t * p) { return _mm512_cvtph_ps(_mm256_set1_epi16(*reinterpret_cast<const int16_t *>(p))); }
    static reg from_halves(const uint8_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
    static reg from_bf16(const uint8_t * p) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static reg from_signed(bytes x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)); }
    static bytes set_bit4(bytes x, const uint8_t * bits) { // bit i of 16 bits into byte i
        uint16_t mask;
        __builtin_memcpy(&mask, bits, 2);
        return _mm_mask_add_epi8(x, mask, x, _mm_set1_epi8(16));
    }
    static bytes negate_where(bytes x, const uint8_t * bits) { // bit i of 16 bits for byte i
        uint16_t mask;
        __builtin_memcpy(&mask, bits, 2);
        return _mm_mask_sub_epi8(x, mask, _mm_setzero_si128(), x);
    }

    // --- dot products where cells lie: 16 sums at a time
    static part no_sum() { return _mm512_setzero_ps(); }
    static part dot(part sum, reg x, reg y) { return _mm512_fmadd_ps(x, y, sum); }
    // acc[cell][row] -> s[row * attention_block + cell]
    template <int R> static void store_sums(const part (&acc)[tokens(R)][R], float * s) {
        __m512 quads[4]; // of each the 4 lanes hold parts of the sums of 4 cells
        for (int q = 0; q < 4; q++) {
            const auto at = [&](int t) __attribute__((always_inline)) {
                if constexpr (R == 1) return acc[4 * q + t][0];
                else if constexpr (R == 2) return acc[4 * (q & 1) + t][q >> 1];
                else return acc[t][q < R ? q : 0];
            };
            const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(at(0), at(1)), _mm512_unpackhi_ps(at(0), at(1)));
            const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(at(2), at(3)), _mm512_unpackhi_ps(at(2), at(3)));
            quads[q] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
        }
        const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x44), _mm512_shuffle_f32x4(quads[0], quads[1], 0xEE));
        const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x44), _mm512_shuffle_f32x4(quads[2], quads[3], 0xEE));
        const __m512 sums = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
        if constexpr (R == 1) {
            _mm512_storeu_ps(s, sums);
        } else if constexpr (R == 2) {
            _mm256_storeu_ps(s, _mm512_castps512_ps256(sums));
            _mm256_storeu_ps(s + attention_block, _mm512_extractf32x8_ps(sums, 1));
        } else {
            _mm_storeu_ps(s, _mm512_castps512_ps128(sums));
            _mm_storeu_ps(s + attention_block, _mm512_extractf32x4_ps(sums, 1));
            _mm_storeu_ps(s + 2 * attention_block, _mm512_extractf32x4_ps(sums, 2));
            if constexpr (R == 4) _mm_storeu_ps(s + 3 * attention_block, _mm512_extractf32x4_ps(sums, 3));
        }
    }

    // --- 16 x 16 elements of 4 bytes; strides in elements
    static void transpose16(const float * in, int64_t stride_in, float * out, int64_t stride_out) {
        __m512 a[16], b[16];
        for (int i = 0; i < 16; i++) a[i] = load(in + i * stride_in);
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
            a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xEE);
            a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
            a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xEE);
        }
        for (int i = 0; i < 4; i++) {
            b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
            b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xDD);
            b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
            b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xDD);
        }
        for (int i = 0; i < 4; i++) {
            store(out + i * stride_out, _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
            store(out + (i + 4) * stride_out, _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88));
            store(out + (i + 8) * stride_out, _mm512_shuffle_f32x4(b[i], b[i + 8], 0xDD));
            store(out + (i + 12) * stride_out, _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xDD));
        }
    }

    // --- levels of 64 codes: two groups of 32, in the order of channels
    static codes load_halves(const uint8_t * a, const uint8_t * b) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(a)), high = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b));
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    static codes nibbles(const uint8_t * a, const uint8_t * b) {
        const codes x = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load_bytes(a)), 0xFF00, load_bytes(b));
        return _mm512_and_si512(_mm512_srlv_epi64(x, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)), _mm512_set1_epi8(15));
    }
    static codes two_bits(const uint8_t * a, const uint8_t * b) {
        int64_t low, high;
        __builtin_memcpy(&low, a, 8);
        __builtin_memcpy(&high, b, 8);
        const codes x = _mm512_mask_set1_epi64(_mm512_set1_epi64(low), 0xF0, high);
        return _mm512_and_si512(_mm512_srlv_epi64(x, _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6)), _mm512_set1_epi8(3));
    }
    using byte_vec::look_up;
    static codes look_up(const int8_t * table, codes x) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i *>(table))), x);
    }
    static codes negate_where(codes x, const uint8_t * a, const uint8_t * b) { // bit i of twice 32 for byte i
        uint32_t low, high;
        __builtin_memcpy(&low, a, 4);
        __builtin_memcpy(&high, b, 4);
        return _mm512_mask_sub_epi8(x, _mm512_kunpackd(high, low), _mm512_setzero_si512(), x);
    }
    using byte_vec::odd_levels;
    static codes odd_levels(codes nibbles, codes high, uint8_t offset) {
        const codes code = _mm512_or_si512(nibbles, _mm512_slli_epi16(high, 4));
        return _mm512_add_epi8(_mm512_add_epi8(code, code), _mm512_set1_epi8(static_cast<char>(offset - 63)));
    }
    static codes flip(codes x, uint8_t bits) { return _mm512_xor_si512(x, _mm512_set1_epi8(static_cast<char>(bits))); }
    static codes load_codes(const int8_t * p) { return _mm512_loadu_si512(p); }
    static codes set1_codes(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
    static void store_codes(int8_t * p, codes x) { _mm512_storeu_si512(p, x); }
    // Four cells -> x[i]: in quarter q channels [16 q + 4 i, + 4) of one cell after the other.
    static void transpose_fours(codes (&x)[4]) {
        const codes a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
        const codes c = _mm512_unpacklo_epi32(x[2], x[3]), e = _mm512_unpackhi_epi32(x[2], x[3]);
        x[0] = _mm512_unpacklo_epi64(a, c);
        x[1] = _mm512_unpackhi_epi64(a, c);
        x[2] = _mm512_unpacklo_epi64(b, e);
        x[3] = _mm512_unpackhi_epi64(b, e);
    }
    // out[i]: in each quarter of x its bytes [4 i, + 4), four times.
    static void spread_fours(codes x, codes (&out)[4]) {
        out[0] = _mm512_shuffle_epi32(x, _MM_PERM_AAAA);
        out[1] = _mm512_shuffle_epi32(x, _MM_PERM_BBBB);
        out[2] = _mm512_shuffle_epi32(x, _MM_PERM_CCCC);
        out[3] = _mm512_shuffle_epi32(x, _MM_PERM_DDDD);
    }
    static ints join_terms(ints high, ints low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
    // Sums of the quarters of four vectors, one after the other.
    static ints sum_quarters(const ints (&x)[4]) {
        const ints a = _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x44), _mm512_shuffle_i32x4(x[0], x[1], 0xEE));
        const ints b = _mm512_add_epi32(_mm512_shuffle_i32x4(x[2], x[3], 0x44), _mm512_shuffle_i32x4(x[2], x[3], 0xEE));
        return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
    }
    // Four cells -> x[k]: in quarter q channels [16 q + 4 k, + 4) of the four, cell by cell for each channel.
    static void interleave(codes (&x)[4]) {
        const codes a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
        const codes c = _mm512_unpacklo_epi8(x[2], x[3]), e = _mm512_unpackhi_epi8(x[2], x[3]);
        x[0] = _mm512_unpacklo_epi16(a, c);
        x[1] = _mm512_unpackhi_epi16(a, c);
        x[2] = _mm512_unpacklo_epi16(b, e);
        x[3] = _mm512_unpackhi_epi16(b, e);
    }
    // Sums of what interleave() gives into the order of channels.
    static void transpose_quarters(reg (&x)[4]) {
        const __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[0], x[1], 0xEE);
        const __m512 c = _mm512_shuffle_f32x4(x[2], x[3], 0x44), e = _mm512_shuffle_f32x4(x[2], x[3], 0xEE);
        x[0] = _mm512_shuffle_f32x4(a, c, 0x88);
        x[1] = _mm512_shuffle_f32x4(a, c, 0xDD);
        x[2] = _mm512_shuffle_f32x4(b, e, 0x88);
        x[3] = _mm512_shuffle_f32x4(b, e, 0xDD);
    }
    // 64 numbers rounded, as 256 terms[0] + terms[1] with the latter in [-128, 127].
    static void signed_terms(const reg (&x)[4], codes (&terms)[2]) {
        __m128i high[4], low[4];
        for (int j = 0; j < 4; j++) {
            const ints code = _mm512_cvtps_epi32(x[j]);
            high[j] = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(code, set1_ints(128)), 8));
            low[j] = _mm512_cvtepi32_epi8(code);
        }
        terms[0] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(high[1], high[0])), _mm256_set_m128i(high[3], high[2]), 1);
        terms[1] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(low[1], low[0])), _mm256_set_m128i(low[3], low[2]), 1);
    }
    // 64 numbers rounded, as 256 high + low with low in [0, 255].
    static void store_unsigned_terms(uint8_t * high, uint8_t * low, const reg (&x)[4]) {
        ints codes[4];
        for (int j = 0; j < 4; j++) codes[j] = _mm512_cvtps_epi32(x[j]);
        const ints a = _mm512_packus_epi32(codes[0], codes[1]), b = _mm512_packus_epi32(codes[2], codes[3]), byte = _mm512_set1_epi16(255);
        const ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); // packing works in quarters
        const ints highs = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
        const ints lows = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
        _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, highs));
        _mm512_storeu_si512(low, _mm512_permutexvar_epi32(order, lows));
    }
    static int32_t sum_terms(const codes (&terms)[2]) { // 256 terms[0] + terms[1]
        const codes ones = set1_codes(1);
        const ints zero = set1_ints(0);
        return _mm512_reduce_add_epi32(join_terms(_mm512_dpbusd_epi32(zero, ones, terms[0]), _mm512_dpbusd_epi32(zero, ones, terms[1])));
    }
    static ints add_ints(ints x, ints y) { return _mm512_add_epi32(x, y); }

    // --- 8 bit
    static void store_codes(int8_t * p, reg x, uint8_t offset) {
        const __m128i codes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm_xor_si128(codes, _mm_set1_epi8(static_cast<char>(offset))));
    }
    static void store_p(uint8_t * p, const reg (&x)[4]) {
        for (int i = 0; i < 4; i++) {
            _mm_storeu_si128(reinterpret_cast<__m128i *>(p + 16 * i), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(x[i])));
        }
    }
    static ints set1_ints(int32_t x) { return _mm512_set1_epi32(x); }
    static key_codes load_keys(const uint8_t * p) { return _mm512_loadu_si512(p); }
    static value_codes load_values(const int8_t * p) { return _mm512_loadu_si512(p); }
    static four load_four(const void * p) {
        int32_t x;
        __builtin_memcpy(&x, p, 4);
        return _mm512_set1_epi32(x);
    }
    static ints dot_keys(ints sum, key_codes k, four q) { return _mm512_dpbusd_epi32(sum, k, q); }
    static ints dot_values(ints sum, four p, value_codes v) { return _mm512_dpbusd_epi32(sum, p, v); }
};

} // namespace
} // namespace alloy

#include "kernels/attention/generic.h"

namespace alloy {
ALLOY_DEFINE_TILES(avx512_vnni)
#define ALLOY_CELL_TYPE(name, host, elements, bytes) ALLOY_DEFINE_CELLS(name, avx512_vnni)
#include "kernels/attention/cell_types.inc"
#undef ALLOY_CELL_TYPE
}
