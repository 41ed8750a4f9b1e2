// Family matmul, AVX-512 VNNI, 16 rows a vector.
// Registers: a tile of 2 vectors of rows x 6 columns has 12 sums in int32 and 12 in f32, 2 vectors of codes, 1 of activations,
// 2 of scales. Up to 8 columns: 8 vectors of codes, a sum for each column (two for K-quants).
// Limit: the two dot-product pipes; of 10 of their slots 8 are dot products (blocks of 32), the others scale. Few columns: memory.
// Lost: 4 x 4, 1 x 12 and 2 x 8 tiles (f32 sums spill: 5 to 25 %); zero points by another multiplication (starting the sums at
// -zero * sum(a) is free); activations in tile order (rows are in L1 as they are).
#include "kernels/matmul/matmul.h"
#include "base/avx512.h"

namespace alloy {
namespace {

struct vec {
    using bytes = __m512i;
    using ints = __m512i;
    using floats = __m512;
    static constexpr int rows = 16;
    static constexpr int zero_of_signed = 128; // VPDPBUSD wants unsigned weights

    static bytes load(const uint8_t * p) { return _mm512_loadu_si512(p); }
    static void store(uint8_t * p, bytes x) { _mm512_storeu_si512(p, x); }
    template <int n> static bytes shift_right(bytes x) { return _mm512_srli_epi16(x, n); }
    template <int n> static bytes shift_left(bytes x) { return _mm512_slli_epi16(x, n); }
    template <int m> static bytes mask(bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(m)); }
    template <int m> static bytes or_masked(bytes x, bytes y) { // x | (y & m)
        return _mm512_ternarylogic_epi32(x, y, _mm512_set1_epi8(m), 0xF8);
    }
    static bytes look_up(const int8_t * table, bytes x) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i *>(table))), x);
    }
    static bytes from_signed(bytes x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }

    static ints zero_ints() { return _mm512_setzero_si512(); }
    static ints broadcast(const int32_t * p) { return _mm512_set1_epi32(*p); }
    static ints four(const int8_t * a) { // four activations for every row
        int32_t x;
        __builtin_memcpy(&x, a, 4);
        return _mm512_set1_epi32(x);
    }
    // start + the dot products of `vectors` vectors of codes with 4 * vectors activations
    template <int bits, int vectors, int chains> static ints dot(ints start, const bytes * w, const int8_t * a) {
        ints other = zero_ints();
        for (int v = 0; v < vectors; v++) {
            ints & sum = chains == 2 && v % 2 != 0 ? other : start;
            sum = _mm512_dpbusd_epi32(sum, w[v], four(a + 4 * v));
        }
        return chains == 2 ? _mm512_add_epi32(start, other) : start;
    }

    static floats zero() { return _mm512_setzero_ps(); }
    static floats load_floats(const float * p) { return _mm512_loadu_ps(p); }
    static void store_floats(float * p, floats x) { _mm512_storeu_ps(p, x); }
    static floats broadcast(const float * p) { return _mm512_set1_ps(*p); }
    static floats to_floats(ints x) { return _mm512_cvtepi32_ps(x); }
    static floats add(floats x, floats y) { return _mm512_add_ps(x, y); }
    static floats mul(floats x, floats y) { return _mm512_mul_ps(x, y); }
    static floats fma(floats x, floats y, floats z) { return _mm512_fmadd_ps(x, y, z); } // x * y + z
    static floats bytes_to_floats(const uint8_t * p) { // `rows` of them
        return to_floats(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
    }
    static floats signed_bytes_to_floats(const uint8_t * p) {
        return to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
    }
    static floats load_halves(const uint8_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
    static void load_bf16_pairs(const uint8_t * p, floats & even, floats & odd) {
        const __m512i x = load(p);
        even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
        odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
    }
    static void halves_to_floats(const uint8_t * p, float * out) { store_floats(out, load_halves(p)); } // 16 of them

    static void prefetch(const uint8_t * p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T0); }
    static void prefetch_stream(const uint8_t * p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1); }
};

struct tile {
    static constexpr int groups = 4; // two pairs: activations and their sums are read once for both
    static constexpr int columns = 6;
};

} // namespace
} // namespace alloy

#include "kernels/matmul/generic.h"
#include "kernels/matmul/x86.h"

namespace alloy {
namespace {


// Groups g and g + 1 of a panel x n columns.
template <weight_type type, int n>
void multiply_pair(const panel & p, int g, const sub_start (&starts)[n][16], const int8_t * const (&a)[n], const float * const (&scales)[n],
                   float * sums) {
    using t = traits<type>;
    __m512 acc0[n], acc1[n];
    for (int c = 0; c < n; c++) {
        acc0[c] = t::k_quant ? vec::zero() : vec::load_floats(sums + panel_rows * c);
        acc1[c] = t::k_quant ? vec::zero() : vec::load_floats(sums + panel_rows * c + 16);
    }
    const uint8_t *w0 = p.codes[g][0], *w1 = p.codes[g + 1][0];
    const chunk_scales &scales0 = p.scales[g], &scales1 = p.scales[g + 1];
    const int subs = p.blocks * 32 / t::sub;
    for (int j = 0; j < subs; j++) {
        __m512i dot0[n], dot1[n];
        for (int c = 0; c < n; c++) dot0[c] = dot1[c] = t::minima ? vec::zero_ints() : vec::broadcast(&starts[c][j].from);
#pragma GCC unroll 2 // clang spills sums when it unrolls more
        for (int v = 0; v < t::sub / 4; v++) {
            const __m512i x0 = vec::load(w0 + 64 * v), x1 = vec::load(w1 + 64 * v);
            for (int c = 0; c < n; c++) {
                const __m512i four = vec::four(a[c] + t::sub * j + 4 * v);
                dot0[c] = _mm512_dpbusd_epi32(dot0[c], x0, four);
                dot1[c] = _mm512_dpbusd_epi32(dot1[c], x1, four);
            }
        }
        w0 += 16 * t::sub;
        w1 += 16 * t::sub;
        const __m512 scale0 = vec::load_floats(scales0.scale[j]), scale1 = vec::load_floats(scales1.scale[j]);
        for (int c = 0; c < n; c++) {
            if constexpr (t::k_quant) {
                acc0[c] = vec::fma(vec::to_floats(dot0[c]), scale0, acc0[c]);
                acc1[c] = vec::fma(vec::to_floats(dot1[c]), scale1, acc1[c]);
            } else {
                const __m512 s = vec::broadcast(scales[c] + j);
                acc0[c] = vec::fma(vec::to_floats(dot0[c]), vec::mul(scale0, s), acc0[c]);
                acc1[c] = vec::fma(vec::to_floats(dot1[c]), vec::mul(scale1, s), acc1[c]);
            }
        }
        if constexpr (t::minima) {
            const __m512 minimum0 = vec::load_floats(scales0.minimum[j]), minimum1 = vec::load_floats(scales1.minimum[j]);
            for (int c = 0; c < n; c++) {
                const __m512 sum = vec::broadcast(&starts[c][j].times_minimum);
                acc0[c] = vec::fma(minimum0, sum, acc0[c]);
                acc1[c] = vec::fma(minimum1, sum, acc1[c]);
            }
        }
    }
    for (int c = 0; c < n; c++) {
        if constexpr (t::k_quant) {
            const __m512 s = vec::broadcast(scales[c]);
            acc0[c] = vec::fma(acc0[c], s, vec::load_floats(sums + panel_rows * c));
            acc1[c] = vec::fma(acc1[c], s, vec::load_floats(sums + panel_rows * c + 16));
        }
        vec::store_floats(sums + panel_rows * c, acc0[c]);
        vec::store_floats(sums + panel_rows * c + 16, acc1[c]);
    }
}

template <weight_type type, int n> [[gnu::noinline]] void multiply_tile(const panel & p, const column * cols, float * sums) {
    using t = traits<type>;
    alignas(64) sub_start starts[n][16];
    const int8_t * a[n];
    const float * scales[n];
    for (int c = 0; c < n; c++) {
        fill_starts<type>(cols[c], p.chunk, starts[c]);
        a[c] = cols[c].codes + p.chunk * packed_columns;
        scales[c] = cols[c].scales + (t::k_quant ? p.chunk : p.chunk * 8);
    }
#pragma GCC unroll 1
    for (int g = 0; g < p.groups; g += 2) multiply_pair<type, n>(p, g, starts, a, scales, sums + packed_rows * g);
}

template <weight_type type> void multiply_panel(const panel & p, const column * cols, int64_t n, float * sums) {
    int64_t c = 0;
    for (; c + tile::columns <= n; c += tile::columns) {
        for (int64_t next = c + tile::columns; next < c + 2 * tile::columns && next < n; next++) {
            const auto * codes = reinterpret_cast<const uint8_t *>(cols[next].codes + p.chunk * packed_columns);
            for (int line = 0; line < 32 * p.blocks; line += 64) vec::prefetch(codes + line);
        }
        multiply_tile<type, tile::columns>(p, cols + c, sums + panel_rows * c);
    }
    switch (n - c) {
        case 1: return multiply_tile<type, 1>(p, cols + c, sums + panel_rows * c);
        case 2: return multiply_tile<type, 2>(p, cols + c, sums + panel_rows * c);
        case 3: return multiply_tile<type, 3>(p, cols + c, sums + panel_rows * c);
        case 4: return multiply_tile<type, 4>(p, cols + c, sums + panel_rows * c);
        case 5: return multiply_tile<type, 5>(p, cols + c, sums + panel_rows * c);
        default: return;
    }
}

} // namespace

#define ALLOY_WEIGHT(weights, ...) ALLOY_DEFINE_MATMUL(weights, avx512_vnni)
#include "formats/weights.inc"
#undef ALLOY_WEIGHT
} // namespace alloy
