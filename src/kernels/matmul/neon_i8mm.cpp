// Family matmul, Advanced SIMD with SMMLA: 2 rows x 8 columns of k times 2 columns, a sum holds [2 rows][2 columns].
// Registers: a tile of 4 pairs of rows x 2 pairs of columns has 8 sums in int32 and 8 in f32 of the same order, 2 pairs of rows and
// 2 of columns, 4 vectors of scales; it goes over the 16 rows of a panel in two passes. Up to 8 columns: the code of neon_dotprod.
// Limit, by counting: of 16 vector operations 8 are SMMLA (blocks of 32), 7 scale, 1 pairs columns.
// Lost, by counting: f32 sums in the order of rows (sums unzipped for each sub-block instead of scales zipped: twice the
// permutations); pairing columns while multiplying (twice as often). Rows are paired once, when a panel is expanded.
// Not measured yet on any CPU: so far these kernels ran under qemu only.
#include "kernels/matmul/matmul.h"

#include <arm_neon.h>

namespace alloy {
namespace {

struct tile {
    static constexpr int groups = 1;
    static constexpr int columns = 4;

    // Vectors v and v + 1, 4 columns of 4 rows each, become 8 columns of rows 0 and 1, and of rows 2 and 3.
    static void arrange(uint8x16_t (&w)[8]) {
        for (int v = 0; v < 8; v += 2) {
            const uint32x4_t x = vreinterpretq_u32_u8(w[v]), y = vreinterpretq_u32_u8(w[v + 1]);
            w[v] = vreinterpretq_u8_u32(vzip1q_u32(x, y));
            w[v + 1] = vreinterpretq_u8_u32(vzip2q_u32(x, y));
        }
    }
};

} // namespace
} // namespace alloy

#include "kernels/matmul/neon.h"

namespace alloy {
namespace {

// A pair of columns of one chunk: codes in the order of SMMLA, and what belongs to each sub-block side by side.
struct column_pair {
    alignas(64) int8_t codes[packed_columns / 8][2][8];
    int32_t from[16][2];
    float scales[8][2];
};

template <weight_type type>
void pair_columns(const panel & p, const column & even, const column & odd, const sub_start * even_start, const sub_start * odd_start,
                  column_pair & out) {
    using t = traits<type>;
    const int8_t *a = even.codes + p.chunk * packed_columns, *b = odd.codes + p.chunk * packed_columns;
    for (int i = 0; i < 32 * p.blocks; i += 16) {
        const int64x2_t x = vreinterpretq_s64_s8(vld1q_s8(a + i)), y = vreinterpretq_s64_s8(vld1q_s8(b + i));
        vst1q_s8(out.codes[i / 8][0], vreinterpretq_s8_s64(vzip1q_s64(x, y)));
        vst1q_s8(out.codes[i / 8 + 1][0], vreinterpretq_s8_s64(vzip2q_s64(x, y)));
    }
    if constexpr (!t::minima && t::zero != 0) {
        for (int j = 0; j < (t::k_quant ? t::subs : p.blocks); j++) {
            out.from[j][0] = even_start[j].from;
            out.from[j][1] = odd_start[j].from;
        }
    }
    for (int j = 0; j < (t::k_quant ? 1 : p.blocks); j++) {
        out.scales[j][0] = even.scales[t::k_quant ? p.chunk : p.chunk * 8 + j];
        out.scales[j][1] = odd.scales[t::k_quant ? p.chunk : p.chunk * 8 + j];
    }
}

inline int32x4_t twice(const int32_t * pair) { return vcombine_s32(vld1_s32(pair), vld1_s32(pair)); }
inline float32x4_t twice(const float * pair) { return vcombine_f32(vld1_f32(pair), vld1_f32(pair)); }

// Rows [first, first + 8) of the panel.
template <weight_type type, int n>
[[gnu::noinline]] void multiply_8_rows(const panel & p, const column_pair * pairs, int first, float * sums) {
    using t = traits<type>;
    constexpr int num_pairs = (n + 1) / 2;
    float32x4_t acc[num_pairs][4];
    for (int c = 0; c < num_pairs; c++)
        for (int r = 0; r < 4; r++) acc[c][r] = vec::zero();
    const uint8_t * w = p.codes[0][0] + 4 * first;
    const int subs = t::k_quant ? t::subs : p.blocks;
    int j = 0;
    do { // there is one: gcc stores the sums in each turn of a loop that may not run
        int32x4_t dot[num_pairs][4];
        for (int c = 0; c < num_pairs; c++)
            for (int r = 0; r < 4; r++) dot[c][r] = t::minima || t::zero == 0 ? vec::zero_ints() : twice(pairs[c].from[j]);
#pragma GCC unroll 4
        for (int i = 0; i < t::sub / 8; i++) {
            int8x16_t a[num_pairs];
            for (int c = 0; c < num_pairs; c++) a[c] = vld1q_s8(pairs[c].codes[t::sub / 8 * j + i][0]);
            for (int r = 0; r < 4; r++) { // rows 0 1, 2 3, 4 5, 6 7
                const int8x16_t rows = vreinterpretq_s8_u8(vec::load(w + 64 * (r % 2) + 16 * (r / 2)));
                for (int c = 0; c < num_pairs; c++) dot[c][r] = vmmlaq_s32(dot[c][r], rows, a[c]);
            }
            w += 128;
        }
        for (int r = 0; r < 4; r += 2) {
            const float32x4_t scales = vec::load_floats(p.scales[0].scale[j] + first + 2 * r);
            const float32x4_t scale0 = vzip1q_f32(scales, scales), scale1 = vzip2q_f32(scales, scales);
            for (int c = 0; c < num_pairs; c++) {
                if constexpr (t::k_quant) {
                    acc[c][r] = vec::fma(vec::to_floats(dot[c][r]), scale0, acc[c][r]);
                    acc[c][r + 1] = vec::fma(vec::to_floats(dot[c][r + 1]), scale1, acc[c][r + 1]);
                } else {
                    const float32x4_t s = twice(pairs[c].scales[j]);
                    acc[c][r] = vec::fma(vec::to_floats(dot[c][r]), vec::mul(scale0, s), acc[c][r]);
                    acc[c][r + 1] = vec::fma(vec::to_floats(dot[c][r + 1]), vec::mul(scale1, s), acc[c][r + 1]);
                }
            }
        }
    } while (++j < subs);
    for (int c = 0; c < num_pairs; c++) {
        for (int r = 0; r < 4; r += 2) {
            float * out = sums + 32 * c + first + 2 * r;
            const float32x4_t even = vuzp1q_f32(acc[c][r], acc[c][r + 1]), odd = vuzp2q_f32(acc[c][r], acc[c][r + 1]);
            const float32x2_t s = t::k_quant ? vld1_f32(pairs[c].scales[0]) : vdup_n_f32(1);
            vec::store_floats(out, vfmaq_lane_f32(vec::load_floats(out), even, s, 0));
            if (2 * c + 1 < n) vec::store_floats(out + 16, vfmaq_lane_f32(vec::load_floats(out + 16), odd, s, 1));
        }
    }
}

template <weight_type type, int n>
void multiply_tile(const panel & p, const column * cols, const sub_starts<type, n> & starts, float * sums) {
    column_pair pairs[(n + 1) / 2];
    for (int c = 0; c < n; c += 2) { // the column that an odd n lacks is computed as a copy of the last and not written
        const int odd = c + 1 < n ? c + 1 : c;
        pair_columns<type>(p, cols[c], cols[odd], starts[c], starts[odd], pairs[c / 2]);
    }
    multiply_8_rows<type, n>(p, pairs, 0, sums);
    multiply_8_rows<type, n>(p, pairs, 8, sums);
}

} // namespace

#define ALLOY_WEIGHT(weights, ...) ALLOY_DEFINE_MATMUL(weights, neon_i8mm)
#include "formats/weights.inc"
#undef ALLOY_WEIGHT
} // namespace alloy
