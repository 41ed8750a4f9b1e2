// What the ARM64 files of family matmul share: 4 rows a vector, a tile of 16 rows x 4 columns. The includer has defined `tile`
// and defines multiply_tile().
#pragma once
#include "kernels/matmul/matmul.h"

#include <arm_neon.h>

namespace alloy {
namespace {

struct vec {
    using bytes = uint8x16_t;
    using ints = int32x4_t;
    using floats = float32x4_t;
    static constexpr int rows = 4;
    static constexpr int zero_of_signed = 0; // SDOT and SMMLA want signed weights; unsigned codes are below 64

    template <int n> struct shifted { // a mask of the bits that are left costs nothing
        bytes x;
        operator bytes() const { return x; }
    };

    static bytes load(const uint8_t * p) { return vld1q_u8(p); }
    static void store(uint8_t * p, bytes x) { vst1q_u8(p, x); }
    template <int n> static shifted<n> shift_right(bytes x) { return {vshrq_n_u8(x, n)}; }
    template <int n> static bytes shift_left(bytes x) { return vshlq_n_u8(x, n); }
    template <int m> static bytes mask(bytes x) { return vandq_u8(x, vdupq_n_u8(m)); }
    template <int m, int n> static bytes mask(shifted<n> x) {
        if constexpr (m == 0xFF >> n) return x.x;
        else return mask<m>(x.x);
    }
    template <int m> static bytes or_masked(bytes x, bytes y) { return vbslq_u8(vdupq_n_u8(m), y, x); } // x has no bit of m
    static bytes look_up(const int8_t * table, bytes x) { return vqtbl1q_u8(vreinterpretq_u8_s8(vld1q_s8(table)), x); }
    static bytes from_signed(bytes x) { return x; }

    static ints zero_ints() { return vdupq_n_s32(0); }
    static ints broadcast(const int32_t * p) { return vld1q_dup_s32(p); }
    template <int lane> static ints dot_lane(ints sum, bytes w, int8x16_t a) {
        return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(w), a, lane);
    }
    // start + the dot products of `vectors` vectors of codes with 4 * vectors activations
    template <int bits, int vectors, int chains> static ints dot(ints start, const bytes * w, const int8_t * a) {
        ints other = zero_ints();
        ints & odd = chains == 2 ? other : start;
        for (int v = 0; v < vectors; v += 4) {
            const int8x16_t x = vld1q_s8(a + 4 * v);
            start = dot_lane<0>(start, w[v], x);
            odd = dot_lane<1>(odd, w[v + 1], x);
            start = dot_lane<2>(start, w[v + 2], x);
            odd = dot_lane<3>(odd, w[v + 3], x);
        }
        return chains == 2 ? vaddq_s32(start, other) : start;
    }

    static floats zero() { return vdupq_n_f32(0); }
    static floats load_floats(const float * p) { return vld1q_f32(p); }
    static void store_floats(float * p, floats x) { vst1q_f32(p, x); }
    static floats broadcast(const float * p) { return vld1q_dup_f32(p); }
    static floats to_floats(ints x) { return vcvtq_f32_s32(x); }
    static floats add(floats x, floats y) { return vaddq_f32(x, y); }
    static floats mul(floats x, floats y) { return vmulq_f32(x, y); }
    static floats fma(floats x, floats y, floats z) { return vfmaq_f32(z, x, y); } // x * y + z
    static floats bytes_to_floats(const uint8_t * p) { // `rows` of them
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four(p)))));
    }
    static floats signed_bytes_to_floats(const uint8_t * p) {
        return to_floats(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four(p))))));
    }
    static floats load_halves(const uint8_t * p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
    static void load_bf16_pairs(const uint8_t * p, floats & even, floats & odd) {
        const uint32x4_t x = vreinterpretq_u32_u8(load(p));
        even = vreinterpretq_f32_u32(vshlq_n_u32(x, 16));
        odd = vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xFFFF0000)));
    }
    static void halves_to_floats(const uint8_t * p, float * out) { // 16 of them
        for (int r = 0; r < packed_rows; r += rows) store_floats(out + r, load_halves(p + 2 * r));
    }

    static void prefetch(const uint8_t * p) { __builtin_prefetch(p, 0, 3); }
    static void prefetch_stream(const uint8_t * p) { __builtin_prefetch(p, 0, 2); } // into L2

  private:
    static uint8x8_t four(const uint8_t * p) {
        uint32_t x;
        __builtin_memcpy(&x, p, 4);
        return vcreate_u8(x);
    }
};

} // namespace
} // namespace alloy

#include "kernels/matmul/generic.h"

namespace alloy {
namespace {

template <weight_type type, int n> using sub_starts = sub_start[n][traits<type>::subs];

// Defined by the ISA file. What multiply_panel() does, for n <= tile::columns columns and without the minima:
template <weight_type type, int n>
void multiply_tile(const panel & p, const column * cols, const sub_starts<type, n> & starts, float * sums);

// The minima's part. Apart from the codes, because there its 16 sums would not fit beside those of the tile.
template <weight_type type, int n> void add_minima(const panel & p, const column * cols, const sub_starts<type, n> & starts, float * sums) {
    using t = traits<type>;
    float32x4_t acc[n][parts];
    for (int c = 0; c < n; c++)
        for (int r = 0; r < parts; r++) acc[c][r] = t::k_quant ? vec::zero() : vec::load_floats(sums + 16 * c + 4 * r);
    const int subs = t::k_quant ? t::subs : p.blocks;
    int j = 0;
    do { // there is one: gcc stores the sums in each turn of a loop that may not run
        float32x4_t minimum[parts];
        for (int r = 0; r < parts; r++) minimum[r] = vec::load_floats(p.scales[0].minimum[j] + 4 * r);
        for (int c = 0; c < n; c++) {
            const float32x4_t sum = vec::broadcast(&starts[c][j].times_minimum);
            for (int r = 0; r < parts; r++) acc[c][r] = vec::fma(minimum[r], sum, acc[c][r]);
        }
    } while (++j < subs);
    for (int c = 0; c < n; c++) {
        for (int r = 0; r < parts; r++) {
            float * out = sums + 16 * c + 4 * r;
            if constexpr (t::k_quant) acc[c][r] = vec::fma(acc[c][r], vec::broadcast(cols[c].scales + p.chunk), vec::load_floats(out));
            vec::store_floats(out, acc[c][r]);
        }
    }
}

template <weight_type type, int n> [[gnu::noinline]] void multiply_columns(const panel & p, const column * cols, float * sums) {
    alignas(64) sub_starts<type, n> starts;
    for (int c = 0; c < n; c++) fill_starts<type>(cols[c], p.chunk, starts[c]);
    multiply_tile<type, n>(p, cols, starts, sums);
    if constexpr (traits<type>::minima) add_minima<type, n>(p, cols, starts, sums);
}

template <weight_type type> void multiply_panel(const panel & p, const column * cols, int64_t n, float * sums) {
    static_assert(tile::groups == 1 && tile::columns == 4);
    int64_t c = 0;
    for (; c + 4 <= n; c += 4) {
        for (int64_t next = c + 4; next < c + 8 && next < n; next++) {
            const auto * codes = reinterpret_cast<const uint8_t *>(cols[next].codes + p.chunk * packed_columns);
            for (int line = 0; line < 32 * p.blocks; line += 64) vec::prefetch(codes + line);
        }
        multiply_columns<type, 4>(p, cols + c, sums + 16 * c);
    }
    switch (n - c) {
        case 1: return multiply_columns<type, 1>(p, cols + c, sums + 16 * c);
        case 2: return multiply_columns<type, 2>(p, cols + c, sums + 16 * c);
        case 3: return multiply_columns<type, 3>(p, cols + c, sums + 16 * c);
        default: return;
    }
}

// acc[c] += one row of w times element `lane` of x[c].
template <int lane, int n> void multiply_lane(const float * w, const float32x4_t (&x)[n], float32x4_t (&acc)[n][parts]) {
    for (int r = 0; r < parts; r++) {
        const float32x4_t row = vec::load_floats(w + 4 * r);
        for (int c = 0; c < n; c++) acc[c][r] = vfmaq_laneq_f32(acc[c][r], row, x[c], lane);
    }
}

template <int n> void multiply_floats_n(const float * w, int64_t k, const float * const * x, float * sums) {
    float32x4_t acc[n][parts], a[n];
#pragma GCC unroll 4 // here and below: else gcc stores the sums in each turn
    for (int c = 0; c < n; c++)
        for (int r = 0; r < parts; r++) acc[c][r] = vec::load_floats(sums + 16 * c + 4 * r);
    int64_t i = 0;
    for (; i + 4 <= k; i += 4) {
        for (int c = 0; c < n; c++) a[c] = vec::load_floats(x[c] + i);
        multiply_lane<0, n>(w + 16 * i, a, acc);
        multiply_lane<1, n>(w + 16 * i + 16, a, acc);
        multiply_lane<2, n>(w + 16 * i + 32, a, acc);
        multiply_lane<3, n>(w + 16 * i + 48, a, acc);
    }
    for (; i < k; i++) {
        for (int c = 0; c < n; c++) a[c] = vec::broadcast(x[c] + i);
        multiply_lane<0, n>(w + 16 * i, a, acc);
    }
#pragma GCC unroll 4
    for (int c = 0; c < n; c++)
        for (int r = 0; r < parts; r++) vec::store_floats(sums + 16 * c + 4 * r, acc[c][r]);
}

inline void multiply_floats(const float * w, int64_t k, const float * const * x, int n, float * sums) {
    switch (n) {
        case 1: return multiply_floats_n<1>(w, k, x, sums);
        case 2: return multiply_floats_n<2>(w, k, x, sums);
        case 3: return multiply_floats_n<3>(w, k, x, sums);
        case 4: return multiply_floats_n<4>(w, k, x, sums);
        default: return;
    }
}

} // namespace
} // namespace alloy
