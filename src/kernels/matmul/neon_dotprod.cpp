// Family matmul, Advanced SIMD with SDOT, 4 rows a vector.
// Registers: a tile of 2 vectors of rows x 4 columns has 8 sums in int32 and 8 in f32, 2 vectors of codes, 4 of 16 activations (by
// lane), 2 of scales; it goes over the 16 rows of a panel in two passes. Up to 8 columns: 8 vectors of codes, a sum for each column.
// Limit, by counting: of 11 vector operations 8 are SDOT (blocks of 32), for 3 loads. Few columns: memory.
// Lost, by counting: 4 x 4 with 16 sums in int32 (its f32 sums go through memory for each sub-block: more loads, 16 stores).
// Not measured yet on any CPU: so far these kernels ran under qemu only.
#include "kernels/matmul/matmul.h"

namespace alloy {
namespace {

struct tile {
    static constexpr int groups = 1;
    static constexpr int columns = 4;
};

} // namespace
} // namespace alloy

#include "kernels/matmul/neon.h"

namespace alloy {
namespace {

// Element `lane` of each column's 16 activations is 4 of them, for the vector of codes at w.
template <int lane, int n>
void dot_columns(const uint8_t * w, const int8x16_t (&a)[n], int32x4_t (&dot0)[n], int32x4_t (&dot1)[n]) {
    const uint8x16_t w0 = vec::load(w), w1 = vec::load(w + 16);
    for (int c = 0; c < n; c++) {
        dot0[c] = vec::dot_lane<lane>(dot0[c], w0, a[c]);
        dot1[c] = vec::dot_lane<lane>(dot1[c], w1, a[c]);
    }
}

// Rows [first, first + 8) of the panel.
template <weight_type type, int n>
[[gnu::noinline]] void multiply_8_rows(const panel & p, const column * cols, const sub_starts<type, n> & starts, int first, float * sums) {
    using t = traits<type>;
    const int8_t * a[n];
    const float * scales[n];
    float32x4_t acc0[n], acc1[n];
    for (int c = 0; c < n; c++) {
        a[c] = cols[c].codes + p.chunk * packed_columns;
        scales[c] = cols[c].scales + (t::k_quant ? p.chunk : p.chunk * 8);
        acc0[c] = acc1[c] = vec::zero();
    }
    const uint8_t * w = p.codes[0][0] + 4 * first;
    const int subs = t::k_quant ? t::subs : p.blocks;
    int j = 0;
    do { // there is one: gcc stores the sums in each turn of a loop that may not run
        int32x4_t dot0[n], dot1[n];
        for (int c = 0; c < n; c++) {
            dot0[c] = dot1[c] = t::minima || t::zero == 0 ? vec::zero_ints() : vec::broadcast(&starts[c][j].from);
        }
#pragma GCC unroll 1 // else gcc loads the codes of both steps first and has no room for sums
        for (int i = 0; i < t::sub; i += 16) {
            int8x16_t x[n];
            for (int c = 0; c < n; c++) x[c] = vld1q_s8(a[c] + t::sub * j + i);
            dot_columns<0, n>(w, x, dot0, dot1);
            dot_columns<1, n>(w + 64, x, dot0, dot1);
            dot_columns<2, n>(w + 128, x, dot0, dot1);
            dot_columns<3, n>(w + 192, x, dot0, dot1);
            w += 256;
        }
        const float * scale = p.scales[0].scale[j] + first;
        const float32x4_t scale0 = vec::load_floats(scale), scale1 = vec::load_floats(scale + 4);
        for (int c = 0; c < n; c++) {
            if constexpr (t::k_quant) {
                acc0[c] = vec::fma(vec::to_floats(dot0[c]), scale0, acc0[c]);
                acc1[c] = vec::fma(vec::to_floats(dot1[c]), scale1, acc1[c]);
            } else {
                acc0[c] = vec::fma(vec::to_floats(dot0[c]), vmulq_n_f32(scale0, scales[c][j]), acc0[c]);
                acc1[c] = vec::fma(vec::to_floats(dot1[c]), vmulq_n_f32(scale1, scales[c][j]), acc1[c]);
            }
        }
    } while (++j < subs);
    for (int c = 0; c < n; c++) {
        float * out = sums + 16 * c + first;
        const float32x4_t s = t::k_quant ? vec::broadcast(scales[c]) : vdupq_n_f32(1);
        vec::store_floats(out, vec::fma(acc0[c], s, vec::load_floats(out)));
        vec::store_floats(out + 4, vec::fma(acc1[c], s, vec::load_floats(out + 4)));
    }
}

template <weight_type type, int n>
void multiply_tile(const panel & p, const column * cols, const sub_starts<type, n> & starts, float * sums) {
    multiply_8_rows<type, n>(p, cols, starts, 0, sums);
    multiply_8_rows<type, n>(p, cols, starts, 8, sums);
}

} // namespace

#define ALLOY_WEIGHT(weights, ...) ALLOY_DEFINE_MATMUL(weights, neon_dotprod)
#include "formats/weights.inc"
#undef ALLOY_WEIGHT
} // namespace alloy
