// Family matmul, AVX2, 8 rows a vector.
// Registers: 8 vectors of codes stay while columns pass (of signed codes their absolute values; the signs are read from L1), 1 of
// scales, ones, a sum in int16 and one in int32. Sums in f32 are in memory.
// Limit: VPMADDUBSW and the additions after it, 16 for 32 columns of 4-bit codes; signed codes need two more each.
// Saturation: 2^bits - 1 times 127, two in a lane, fit 8 times (4 bits), 4 (5 bits), 2 (6 bits) or once (8) into int16.
// Lost: 8-bit codes as two nibbles (0.75 to 0.9x) or as int16 (0.95x); pointers to each column (copies at constant distances:
// 1.2x); 2 x 3 tiles with f32 sums in registers (4-bit codes leave none for weights); dwords shuffled from registers.
#include "kernels/matmul/matmul.h"

#include <immintrin.h>

namespace alloy {
namespace {

struct vec {
    using bytes = __m256i;
    using ints = __m256i;
    using floats = __m256;
    static constexpr int rows = 8;
    static constexpr int zero_of_signed = 0;

    static bytes load(const uint8_t * p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static void store(uint8_t * p, bytes x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), x); }
    template <int n> static bytes shift_right(bytes x) { return _mm256_srli_epi16(x, n); }
    template <int n> static bytes shift_left(bytes x) { return _mm256_slli_epi16(x, n); }
    template <int m> static bytes mask(bytes x) { return _mm256_and_si256(x, _mm256_set1_epi8(m)); }
    template <int m> static bytes or_masked(bytes x, bytes y) { return _mm256_or_si256(x, mask<m>(y)); } // x | (y & m)
    static bytes look_up(const int8_t * table, bytes x) {
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(table))), x);
    }
    static bytes from_signed(bytes x) { return x; }

    static ints zero_ints() { return _mm256_setzero_si256(); }
    static ints broadcast(const int32_t * p) { return _mm256_set1_epi32(*p); }
    static ints four(const int8_t * a) { // four activations for every row
        int32_t x;
        __builtin_memcpy(&x, a, 4);
        return _mm256_set1_epi32(x);
    }
    static ints widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
    // start + the dot products of `vectors` vectors of codes with 4 * vectors activations
    template <int bits, int vectors, int chains> static ints dot(ints start, const bytes * w, const int8_t * a) {
        if constexpr (bits == 8) {
            bytes sizes[vectors];
            for (int v = 0; v < vectors; v++) sizes[v] = _mm256_abs_epi8(w[v]);
            return dot_signed<vectors>(start, sizes, w, a);
        }
        constexpr int fit = bits <= 4 ? 8 : bits == 5 ? 4 : 2; // products that int16 holds
        constexpr int at_once = fit < vectors ? fit : vectors;
        for (int first = 0; first < vectors; first += at_once) {
            __m256i pairs = _mm256_maddubs_epi16(w[first], four(a + 4 * first));
            for (int v = first + 1; v < first + at_once; v++) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[v], four(a + 4 * v)));
            start = _mm256_add_epi32(start, widen(pairs));
        }
        return start;
    }
    // Signed codes: their sizes times activations with their signs. -128 has size 128 as an unsigned byte.
    template <int vectors> static ints dot_signed(ints start, const bytes * sizes, const bytes * signs, const int8_t * a) {
        for (int v = 0; v < vectors; v++) {
            const __m256i products = _mm256_maddubs_epi16(sizes[v], _mm256_sign_epi8(four(a + 4 * v), signs[v]));
            start = _mm256_add_epi32(start, widen(products));
        }
        return start;
    }

    static floats zero() { return _mm256_setzero_ps(); }
    static floats load_floats(const float * p) { return _mm256_loadu_ps(p); }
    static void store_floats(float * p, floats x) { _mm256_storeu_ps(p, x); }
    static floats broadcast(const float * p) { return _mm256_broadcast_ss(p); }
    static floats to_floats(ints x) { return _mm256_cvtepi32_ps(x); }
    static floats add(floats x, floats y) { return _mm256_add_ps(x, y); }
    static floats mul(floats x, floats y) { return _mm256_mul_ps(x, y); }
    static floats fma(floats x, floats y, floats z) { return _mm256_fmadd_ps(x, y, z); } // x * y + z
    static floats bytes_to_floats(const uint8_t * p) { // `rows` of them
        return to_floats(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
    }
    static floats signed_bytes_to_floats(const uint8_t * p) {
        return to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
    }
    static floats load_halves(const uint8_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
    static void load_bf16_pairs(const uint8_t * p, floats & even, floats & odd) {
        const __m256i x = load(p);
        even = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
        odd = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
    }
    static void halves_to_floats(const uint8_t * p, float * out) { // 16 of them
        store_floats(out, load_halves(p));
        store_floats(out + 8, load_halves(p + 16));
    }

    static void prefetch(const uint8_t * p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T0); }
    static void prefetch_stream(const uint8_t * p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1); }
};

struct tile {
    static constexpr int groups = 4;
    static constexpr int columns = 12;
};

} // namespace
} // namespace alloy

#include "kernels/matmul/generic.h"
#include "kernels/matmul/x86.h"

namespace alloy {
namespace {

// One chunk of a tile's columns side by side: with constant distances the inner loop has no pointers to fetch.
struct tile_columns {
    alignas(64) int8_t codes[tile::columns][packed_columns];
    alignas(64) float scales[tile::columns][8];
    alignas(64) sub_start starts[tile::columns][16];
};

template <weight_type type> void gather(const panel & p, const column * cols, int n, tile_columns & out) {
    using t = traits<type>;
    for (int c = 0; c < n; c++) {
        fill_starts<type>(cols[c], p.chunk, out.starts[c]);
        __builtin_memcpy(out.codes[c], cols[c].codes + p.chunk * packed_columns, static_cast<size_t>(p.blocks) * 32);
        __builtin_memcpy(out.scales[c], cols[c].scales + (t::k_quant ? p.chunk : p.chunk * 8), t::k_quant ? 4 : static_cast<size_t>(p.blocks) * 4);
    }
}

// One part of a group x columns [first, first + n) of a tile.
template <weight_type type, int n>
[[gnu::noinline]] void multiply_part(const panel & p, int g, int part, const tile_columns & cols, int first, float * sums) {
    using t = traits<type>;
    constexpr int vectors = t::sub / 4;
    alignas(32) float chunk_sums[n][vec::rows]; // K-quants: before the activations' scale
    if constexpr (t::k_quant) {
        for (int c = 0; c < n; c++) vec::store_floats(chunk_sums[c], vec::zero());
    }
    const int subs = p.blocks * 32 / t::sub;
#pragma GCC unroll 1
    for (int j = 0; j < subs; j++) {
        vec::bytes w[vectors], sizes[vectors];
        const uint8_t * codes = p.codes[g][j * vectors] + part * part_bytes;
        for (int v = 0; v < vectors; v++) {
            w[v] = vec::load(codes + 64 * v);
            if constexpr (t::is_signed) sizes[v] = _mm256_abs_epi8(w[v]);
        }
        const __m256 scale = vec::load_floats(p.scales[g].scale[j] + part * vec::rows);
        __m256 minimum = vec::zero();
        if constexpr (t::minima) minimum = vec::load_floats(p.scales[g].minimum[j] + part * vec::rows);
#pragma GCC unroll 12
        for (int c = 0; c < n; c++) {
            const int8_t * x = cols.codes[first + c] + t::sub * j;
            const sub_start * start_at = &cols.starts[first + c][j];
            const __m256i start = t::minima || t::zero == 0 ? vec::zero_ints() : vec::broadcast(&start_at->from);
            __m256i dot;
            if constexpr (t::is_signed) dot = vec::dot_signed<vectors>(start, sizes, reinterpret_cast<const vec::bytes *>(w), x);
            else dot = vec::dot<t::bits, vectors, 1>(start, w, x);
            float * sum = t::k_quant ? chunk_sums[c] : sums + panel_rows * c;
            __m256 factor = scale;
            if constexpr (!t::k_quant) factor = vec::mul(scale, vec::broadcast(&cols.scales[first + c][j]));
            __m256 result = vec::fma(vec::to_floats(dot), factor, vec::load_floats(sum));
            if constexpr (t::minima) result = vec::fma(minimum, vec::broadcast(&start_at->times_minimum), result);
            vec::store_floats(sum, result);
        }
    }
    if constexpr (t::k_quant) {
        for (int c = 0; c < n; c++) {
            float * sum = sums + panel_rows * c;
            const __m256 scale = vec::broadcast(cols.scales[first + c]);
            vec::store_floats(sum, vec::fma(vec::load_floats(chunk_sums[c]), scale, vec::load_floats(sum)));
        }
    }
}

template <weight_type type> void multiply_panel(const panel & p, const column * cols, int64_t n, float * sums) {
    tile_columns gathered;
    for (int64_t c = 0; c < n; c += tile::columns, sums += tile::columns * panel_rows) {
        const int now = static_cast<int>(n - c < tile::columns ? n - c : tile::columns);
        gather<type>(p, cols + c, now, gathered);
        for (int64_t next = c + tile::columns; next < c + 2 * tile::columns && next < n; next++) {
            const auto * codes = reinterpret_cast<const uint8_t *>(cols[next].codes + p.chunk * packed_columns);
            for (int line = 0; line < 32 * p.blocks; line += 64) vec::prefetch(codes + line);
        }
        for (int i = 0; i < p.groups * parts; i++) {
            const int g = i / parts, part = i % parts;
            float * out = sums + i * vec::rows;
            if (now == tile::columns) {
                multiply_part<type, tile::columns>(p, g, part, gathered, 0, out);
                continue;
            }
            int first = 0;
            for (; first + 4 <= now; first += 4) multiply_part<type, 4>(p, g, part, gathered, first, out + first * panel_rows);
            for (; first < now; first++) multiply_part<type, 1>(p, g, part, gathered, first, out + first * panel_rows);
        }
    }
}

} // namespace

#define ALLOY_WEIGHT(weights, ...) ALLOY_DEFINE_MATMUL(weights, avx2)
#include "formats/weights.inc"
#undef ALLOY_WEIGHT
} // namespace alloy
