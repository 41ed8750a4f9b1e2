// The algorithms of family attention over vectors of 16 elements. An ISA file defines in an anonymous namespace
//   struct vec: reg (16 f32), part (a register of partial sums of a dot product), ints (16 int32), bytes (16 bytes), the arithmetic,
//   conversions and shuffles, and the sizes of its tiles
// and then includes this file, so that each ISA compiles its own copy and no symbol of it leaves the object.
#include "base/check.h"

#include <string.h>

#include "kernels/attention/cells.h"

#if defined(__clang__)
#define ALLOY_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ALLOY_UNROLL _Pragma("GCC unroll 16")
#endif

namespace alloy {
namespace {

using reg = vec::reg;
constexpr int64_t block = attention_block;
constexpr int block_regs = block / 16;
constexpr float infinity = __builtin_inff();

// Calls f<R>(first row) for all rows, at most `most` at a time and as evenly as that goes: 5 rows are 3 and 2, not 4 and 1.
template <int most, class F> inline void for_rows(int64_t num_rows, F f) {
    const int64_t passes = (num_rows + most - 1) / most;
    for (int64_t r = 0, pass = 0; pass < passes; pass++) {
        const int64_t rows = (num_rows - r) / (passes - pass);
        auto run = [&]<int n>(auto & self) {
            if (rows == n) return f.template operator()<n>(r);
            if constexpr (n > 1) self.template operator()<n - 1>(self);
        };
        run.template operator()<most>(run);
        r += rows;
    }
}

// Calls f<vectors>(first vector) for d / 16 vectors.
template <int most, class F> [[gnu::always_inline]] inline void for_vectors(int64_t d, F f) {
    int64_t j = 0;
    for (; j + most <= d / 16; j += most) f.template operator()<most>(j);
    if constexpr (most > 2) {
        for (; j + 2 <= d / 16; j += 2) f.template operator()<2>(j);
    }
    for (; j < d / 16; j++) f.template operator()<1>(j);
}

inline float largest_of(const reg (&x)[block_regs]) { return vec::largest(vec::max(vec::max(x[0], x[1]), vec::max(x[2], x[3]))); }

// Reads ahead what cell c of the next block stands for: as many bytes as a row has.
[[gnu::always_inline]] inline void prefetch_row(const attention_ahead & next, int64_t c, int64_t bytes) {
    const uint8_t * row = next.data + c * next.stride;
    for (int64_t line = 0; line < bytes; line += 64) vec::prefetch(row + line);
}

// --- cells where they lie -------------------------------------------------------------------------------------------------------------
template <cell_type type> constexpr int64_t row_bytes(int64_t d) { return d / traits<type>.elements * traits<type>.bytes; }

template <cell_type type, int R>
[[gnu::noinline]] void score_rows(const float * q, int64_t d, const uint8_t * k, int64_t stride, int64_t n, const attention_ahead & next, float * s) {
    constexpr int T = vec::tokens(R);
    for (int64_t c = 0; c < n; c += T) {
        const uint8_t * row[T];
        ALLOY_UNROLL for (int t = 0; t < T; t++) row[t] = k + (c + t < n ? c + t : n - 1) * stride;
        vec::part acc[T][R];
        ALLOY_UNROLL for (int t = 0; t < T; t++) {
            prefetch_row(next, c + t, row_bytes<type>(d));
            ALLOY_UNROLL for (int r = 0; r < R; r++) acc[t][r] = vec::no_sum();
        }
        const auto add = [&]<int half>(int64_t pair) __attribute__((always_inline)) {
            reg x[R];
            ALLOY_UNROLL for (int r = 0; r < R; r++) x[r] = vec::load(q + r * d + 32 * pair + 16 * half);
            ALLOY_UNROLL for (int t = 0; t < T; t++) {
                const reg y = load16<type, half>(row[t], pair);
                ALLOY_UNROLL for (int r = 0; r < R; r++) acc[t][r] = vec::dot(acc[t][r], x[r], y);
            }
        };
        for (int64_t pair = 0; pair < d / 32; pair++) {
            add.template operator()<0>(pair);
            add.template operator()<1>(pair);
        }
        if (d % 32 != 0) add.template operator()<0>(d / 32);
        vec::store_sums<R>(acc, s + c);
    }
}

// The scales of a sealed page, 16 cells at a time.
template <cell_type type> [[gnu::always_inline]] inline void load_scales(const uint8_t * page, int64_t d, reg (&scales)[block_regs]) {
    ALLOY_UNROLL for (int i = 0; i < block_regs; i++) scales[i] = vec::from_halves(page + block * row_bytes<type>(d) + 32 * i);
}

} // namespace
} // namespace alloy

#include "kernels/attention/coded.h"

namespace alloy {
namespace {

template <cell_type type>
void scores(const float * q, int64_t num_rows, int64_t d, const uint8_t * k, int64_t stride, int64_t n, const attention_ahead & next, float * s) {
    ALLOY_EXPECT(n >= 1 && n <= block && d % 16 == 0 && (!has_codec<type> || n == block));
    if constexpr (has_codec<type> && vec::byte_dots) {
        coded_scores<type, vec>(q, num_rows, d, k, next, s);
        return;
    }
    for_rows<4>(num_rows, [&]<int R>(int64_t r) { score_rows<type, R>(q + r * d, d, k, stride, n, next, s + r * block); });
    if constexpr (has_codec<type>) {
        reg scales[block_regs];
        load_scales<type>(k, d, scales);
        for (int64_t r = 0; r < num_rows; r++, s += block) {
            ALLOY_UNROLL for (int i = 0; i < block_regs; i++) vec::store(s + 16 * i, vec::mul(vec::load(s + 16 * i), scales[i]));
        }
    }
}

template <int R, int J> [[gnu::always_inline]] inline bool all_finite(const reg (&acc)[R][J]) {
    reg zero = vec::zero();
    ALLOY_UNROLL for (int r = 0; r < R; r++) {
        ALLOY_UNROLL for (int j = 0; j < J; j++) zero = vec::fma(acc[r][j], vec::zero(), zero); // 0, or NaN
    }
    return vec::all_zero(zero);
}

// o[j] for one row as in `values`, but without the cells whose p is 0: they may hold NaN.
template <class Load> [[gnu::noinline]] void values_of_seen_cells(const float * p, int64_t n, float alpha, float * o, int64_t vectors, Load load) {
    for (int64_t j = 0; j < vectors; j++) {
        reg acc = vec::zero();
        for (int64_t c = 0; c < n; c++) {
            if (p[c] != 0) acc = vec::fma(vec::set1(p[c]), load(c, j), acc);
        }
        vec::store(o + 16 * j, vec::fma(vec::load(o + 16 * j), vec::set1(alpha), acc));
    }
}

// acc[r][j] = sum_c a[r][c] x_j(c) for R rows, c in [0, n); load(c, j) gives vector j of x(c).
template <int R, int J, class Load>
[[gnu::always_inline]] inline void multiply(const float * a, int64_t stride, int64_t n, Load load, reg (&acc)[R][J]) {
    ALLOY_UNROLL for (int r = 0; r < R; r++) {
        ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][j] = vec::zero();
    }
    for (int64_t c = 0; c < n; c++) {
        reg x[J];
        ALLOY_UNROLL for (int j = 0; j < J; j++) x[j] = load(c, j);
        ALLOY_UNROLL for (int r = 0; r < R; r++) {
            const reg w = vec::set1(a[r * stride + c]);
            ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][j] = vec::fma(w, x[j], acc[r][j]);
        }
    }
}

// o = o * alpha + p x for R rows and J vectors; load(c, j) gives vector j of cell c. A block is summed by itself first: sums over all
// cells one by one would lose digits with their number.
template <int R, int J, class Load>
[[gnu::always_inline]] inline void add_products(const float * p, int64_t n, const float * alpha, float * o, int64_t d, Load load) {
    reg acc[R][J];
    multiply(p, block, n, load, acc);
    if (!all_finite(acc)) {
        for (int r = 0; r < R; r++) values_of_seen_cells(p + r * block, n, alpha[r], o + r * d, J, load);
        return;
    }
    ALLOY_UNROLL for (int r = 0; r < R; r++) {
        const reg a = vec::set1(alpha[r]);
        ALLOY_UNROLL for (int j = 0; j < J; j++) vec::store(o + r * d + 16 * j, vec::fma(vec::load(o + r * d + 16 * j), a, acc[r][j]));
    }
}

template <cell_type type, int R>
[[gnu::noinline]] void value_rows(const float * p, int64_t d, const uint8_t * v, int64_t stride, int64_t n, const attention_ahead & next, const float * alpha,
                                  float * o) {
    const auto add = [&]<int J, int half>(int64_t first) __attribute__((always_inline)) { // half: of the first vector
        const int64_t pair = first / 2, from = first * row_bytes<type>(32) / 2;
        const attention_ahead ahead{next.data + from, next.stride};
        add_products<R, J>(p, n, alpha, o + 16 * first, d, [=](int64_t c, int64_t j) __attribute__((always_inline)) {
            if (j == 0) prefetch_row(ahead, c, J * row_bytes<type>(32) / 2);
            return (half + j) % 2 == 0 ? load16<type, 0>(v + c * stride, pair + (half + j) / 2) : load16<type, 1>(v + c * stride, pair + (half + j) / 2);
        });
    };
    for_vectors<vec::value_vectors(R)>(d, [&]<int J>(int64_t first) __attribute__((always_inline)) {
        if (J == 1 && first % 2 != 0) add.template operator()<J, 1>(first);
        else add.template operator()<J, 0>(first);
    });
}

template <cell_type type>
void values(const float * p, int64_t num_rows, int64_t d, const uint8_t * v, int64_t stride, int64_t n, const attention_ahead & next, const float * alpha,
            float * o) {
    ALLOY_EXPECT(!has_codec<type> || (num_rows <= attention_tile && n == block));
    if constexpr (has_codec<type> && vec::byte_dots) return coded_values<type, vec>(p, num_rows, d, v, next, alpha, o);
    alignas(64) float scaled[has_codec<type> ? attention_tile * block : 1];
    if constexpr (has_codec<type>) {
        reg scales[block_regs];
        load_scales<type>(v, d, scales);
        for (int64_t r = 0; r < num_rows; r++) {
            ALLOY_UNROLL for (int i = 0; i < block_regs; i++) vec::store(scaled + r * block + 16 * i, vec::mul(vec::load(p + r * block + 16 * i), scales[i]));
        }
        p = scaled;
    }
    for_rows<4>(num_rows, [&]<int R>(int64_t r) { value_rows<type, R>(p + r * block, d, v, stride, n, next, alpha + r, o + r * d); });
}

template <cell_type type> void expand(const uint8_t * cells, int64_t stride, int64_t n, int64_t d, float * out) {
    for (int64_t c = 0; c < n; c++) {
        const uint8_t * row = cells + c * stride;
        reg scale = vec::set1(1);
        if constexpr (has_codec<type>) scale = vec::set1_half(cells + block * row_bytes<type>(d) + 2 * c);
        for (int64_t g = 0; g < d / 16; g++) {
            const reg x = g % 2 == 0 ? load16<type, 0>(row, g / 2) : load16<type, 1>(row, g / 2);
            vec::store(out + c * d + 16 * g, has_codec<type> ? vec::mul(x, scale) : x);
        }
    }
    memset(out + n * d, 0, static_cast<size_t>((block - n) * d) * sizeof(float));
}

// --- softmax --------------------------------------------------------------------------------------------------------------------------
// 2^x for x <= 0 or so. Relative error 8e-8 with degree 5, 9e-5 with degree 3 (whose results become 8 bit). 2^0 is 1, else a state that is
// scaled by it again and again would fade; -inf gives 0, NaN NaN.
template <int degree> [[gnu::always_inline]] inline reg exp2(reg x) {
    const reg f = vec::fraction(x); // in [0, 1); x is now what scale_by_exp2 wants
    reg y;
    if constexpr (degree == 5) {
        y = vec::fma(vec::set1(1.86713007e-3f), f, vec::set1(9.01703032e-3f));
        y = vec::fma(y, f, vec::set1(5.57999131e-2f));
        y = vec::fma(y, f, vec::set1(2.4016445e-1f));
        y = vec::fma(y, f, vec::set1(6.93151312e-1f));
    } else {
        y = vec::fma(vec::set1(7.7067042e-2f), f, vec::set1(2.27644991e-1f));
        y = vec::fma(y, f, vec::set1(6.95116786e-1f));
    }
    return vec::scale_by_exp2(vec::fma(y, f, vec::set1(1)), x);
}

inline bool needs_mask(const attention_row & row, int64_t first_cell) {
    return row.mask != nullptr && (row.sight[first_cell / block] & sight_masked) != 0;
}

// Scores of one row, times `unit`, become logits in units of log2: softcap, mask; -inf for hidden cells and those beyond n. Returns the
// largest.
[[gnu::noinline]] inline float make_logits(float * s, float unit, const attention_row & row, int64_t first_cell, int64_t n, float cap) {
    reg x[block_regs];
    ALLOY_UNROLL for (int i = 0; i < block_regs; i++) x[i] = vec::mul(vec::load(s + 16 * i), vec::set1(unit));
    if (cap != 0) { // tanh(y) = 1 - 2 / (exp(2 y) + 1)
        for (int i = 0; i < block_regs; i++) {
            const reg e = exp2<5>(vec::min(vec::mul(x[i], vec::set1(2 * log2_e / cap)), vec::set1(100)));
            const reg t = vec::sub(vec::set1(1), vec::div(vec::set1(2), vec::add(e, vec::set1(1))));
            x[i] = vec::mul(vec::set1(cap), t);
        }
    }
    if (needs_mask(row, first_cell)) {
        const auto * mask = reinterpret_cast<const uint8_t *>(row.mask + first_cell);
        uint8_t padded[2 * block];
        if (n < block) {
            memset(padded, 0, sizeof(padded));
            memcpy(padded, mask, static_cast<size_t>(2 * n));
            mask = padded;
        }
        const reg slope = vec::set1(row.slope * log2_e);
        ALLOY_UNROLL for (int i = 0; i < block_regs; i++) x[i] = vec::add_mask(x[i], vec::from_halves(mask + 32 * i), slope);
    }
    ALLOY_UNROLL for (int i = 0; i < block_regs; i++) vec::store(s + 16 * i, x[i]);
    if (n == block) return largest_of(x);
    for (int64_t c = n; c < block; c++) s[c] = -infinity;
    ALLOY_UNROLL for (int i = 0; i < block_regs; i++) x[i] = vec::load(s + 16 * i);
    return largest_of(x);
}

// A tile's rows on their way through softmax. Each step is done for all rows before the next: alone, a row would wait for the latency
// of its own maximum and exponentials. Rows from num_rows on hold what they may: nobody looks at them.
struct softmax_rows {
    static constexpr int64_t size = (attention_tile + 15) / 16 * 16;
    alignas(64) float unit[size], largest[size] = {}, reference[size], old_factor[size], new_factor[size]; // new_factor: only with from_block

    // Logits and the largest of each row. `unit` is what the scores still need to be logits: where nothing else is to be done with a
    // row they stay as they are, and the exponentials take care of it.
    [[gnu::always_inline]] void start(float * s, const float * units, const attention_tile_rows & tile) {
        for (int64_t r = 0; r < tile.num_rows; r++, s += block) {
            const float u = units != nullptr ? units[r] : 1;
            reg x[block_regs];
            if (tile.cap == 0 && tile.num_cells == block && !needs_mask(tile.rows[r], tile.first_cell)) {
                ALLOY_UNROLL for (int i = 0; i < block_regs; i++) x[i] = vec::load(s + 16 * i);
                largest[r] = u * largest_of(x);
                unit[r] = u;
            } else {
                largest[r] = make_logits(s, u, tile.rows[r], tile.first_cell, tile.num_cells, tile.cap);
                unit[r] = 1;
            }
        }
    }
    // Brings m up to date. Exponents are taken from m, or from the largest of the block, but never from -inf.
    template <bool from_block> [[gnu::always_inline]] void refer(float * m, int64_t num_rows) {
        alignas(64) float before[size] = {};
        for (int64_t r = 0; r < num_rows; r++) before[r] = m[r];
        const reg low = vec::set1(-1e30f);
        for (int64_t r = 0; r < num_rows; r += 16) {
            const reg now = vec::load(largest + r), was = vec::load(before + r);
            const reg after = vec::max(now, was), to = vec::max(after, low); // a largest that is NaN leaves m alone
            vec::store(old_factor + r, exp2<5>(vec::sub(was, to)));
            if constexpr (from_block) vec::store(new_factor + r, exp2<5>(vec::sub(now, to)));
            vec::store(reference + r, from_block ? vec::max(now, low) : to);
            vec::store(before + r, after);
        }
        for (int64_t r = 0; r < num_rows; r++) m[r] = before[r];
    }
};

void softmax(float * s, const attention_tile_rows & tile) {
    ALLOY_EXPECT(tile.num_rows <= attention_tile);
    softmax_rows t;
    t.start(s, nullptr, tile);
    t.refer<false>(tile.m, tile.num_rows);
    for (int64_t r = 0; r < tile.num_rows; r++) {
        reg sum = vec::zero();
        ALLOY_UNROLL for (int i = 0; i < block_regs; i++) {
            float * at = s + r * block + 16 * i;
            const reg p = exp2<5>(vec::sub(vec::load(at), vec::set1(t.reference[r])));
            vec::store(at, p);
            sum = vec::add(sum, p);
        }
        vec::store(tile.l + 16 * r, vec::fma(vec::load(tile.l + 16 * r), vec::set1(t.old_factor[r]), sum));
        tile.alpha[r] = t.old_factor[r];
    }
}

// --- f32 tiles ------------------------------------------------------------------------------------------------------------------------
void pack_keys(const float * rows, int64_t d, float * panel) {
    for (int64_t i = 0; i < d; i += 16) {
        for (int64_t c = 0; c < block; c += 16) vec::transpose16(rows + c * d + i, d, panel + i * block + c, block);
    }
}

// Chains of at most 128 channels, whose sums are added: one chain over a head of 576 would lose digits.
template <int R> [[gnu::noinline]] void tile_score_rows(const float * q, int64_t d, const float * panel, float * s) {
    constexpr int J = vec::tile_vectors;
    constexpr int64_t chain = 128;
    for (int64_t first = 0; first < block_regs; first += J) {
        for (int64_t begin = 0; begin < d; begin += chain) {
            const float * rows = panel + begin * block + 16 * first;
            reg acc[R][J];
            multiply(q + begin, d, begin + chain < d ? chain : d - begin,
                     [=](int64_t i, int64_t j) __attribute__((always_inline)) { return vec::load(rows + i * block + 16 * j); }, acc);
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                ALLOY_UNROLL for (int j = 0; j < J; j++) {
                    float * out = s + r * block + 16 * (first + j);
                    vec::store(out, begin == 0 ? acc[r][j] : vec::add(vec::load(out), acc[r][j]));
                }
            }
        }
    }
}

void tile_scores(const float * q, int64_t num_rows, int64_t d, const float * panel, float * s) {
    for_rows<vec::tile_rows>(num_rows, [&]<int R>(int64_t r) { tile_score_rows<R>(q + r * d, d, panel, s + r * block); });
}

template <int R> [[gnu::noinline]] void tile_value_rows(const float * p, int64_t d, const float * panel, const float * alpha, float * o) {
    for_vectors<vec::tile_vectors>(d, [&]<int J>(int64_t first) __attribute__((always_inline)) {
        const float * column = panel + 16 * first;
        add_products<R, J>(p, block, alpha, o + 16 * first, d,
                           [=](int64_t c, int64_t j) __attribute__((always_inline)) { return vec::load(column + c * d + 16 * j); });
    });
}

void tile_values(const float * p, int64_t num_rows, int64_t d, const float * panel, const float * alpha, float * o) {
    for_rows<vec::tile_rows>(num_rows, [&]<int R>(int64_t r) { tile_value_rows<R>(p + r * block, d, panel, alpha + r, o + r * d); });
}

// --- 8-bit tiles ----------------------------------------------------------------------------------------------------------------------
// codes[i] = x[i] / scale rounded to even, scale = max |x| / largest_code; `offset` is added to each code.
inline float quantize_row(const float * x, int64_t d, float largest_code, uint8_t offset, int8_t * codes) {
    reg largest = vec::zero();
    for (int64_t i = 0; i < d; i += 16) largest = vec::max(largest, vec::abs(vec::load(x + i)));
    const float scale = vec::largest(largest) / largest_code;
    const reg inverse = vec::set1(scale > 0x1p-120f ? 1 / scale : 0);
    for (int64_t i = 0; i < d; i += 16) vec::store_codes(codes + i, vec::mul(vec::load(x + i), inverse), offset);
    return scale;
}

inline float norm_of(const float * x, int64_t d) {
    reg squares = vec::zero();
    for (int64_t i = 0; i < d; i += 16) squares = vec::fma(vec::load(x + i), vec::load(x + i), squares);
    return __builtin_sqrtf(vec::sum(squares));
}

inline bool is_finite(float x) { return __builtin_fabsf(x) < infinity; }

void pack_int8_keys(const float * rows, int64_t d, int64_t n, float * scratch, int8_keys & keys) {
    auto * codes = reinterpret_cast<int8_t *>(scratch); // [block][d]
    keys.largest_scale = keys.largest_norm = 0;
    keys.finite = true;
    for (int64_t c = 0; c < block; c++) {
        const float scale = quantize_row(rows + c * d, d, 127, vec::key_offset, codes + c * d);
        keys.scales[c] = scale;
        if (c >= n) continue;
        const float norm = norm_of(rows + c * d, d);
        keys.largest_scale = scale > keys.largest_scale ? scale : keys.largest_scale;
        keys.largest_norm = norm > keys.largest_norm ? norm : keys.largest_norm;
        keys.finite = keys.finite && is_finite(norm);
    }
    // Four codes are one element of the transposition.
    const int64_t quads = d / 4;
    auto * out = reinterpret_cast<float *>(keys.codes);
    int64_t i = 0;
    for (; i + 16 <= quads; i += 16) {
        for (int64_t c = 0; c < block; c += 16) vec::transpose16(scratch + c * quads + i, quads, out + i * block + c, block);
    }
    for (; i < quads; i++) {
        for (int64_t c = 0; c < block; c++) memcpy(out + i * block + c, codes + c * d + 4 * i, 4);
    }
}

void pack_int8_values(const float * rows, int64_t d, int64_t n, int8_values & values) {
    alignas(64) int8_t codes[4 * attention_max_d];
    values.finite = true;
    for (int64_t c = 0; c < block; c += 4) {
        for (int64_t t = 0; t < 4; t++) {
            const float scale = quantize_row(rows + (c + t) * d, d, 127, 0, codes + t * d);
            values.scales[c + t] = scale;
            values.finite = values.finite && (c + t >= n || is_finite(norm_of(rows + (c + t) * d, d)));
        }
        vec::interleave4(codes, d, values.codes + c * d);
    }
}

void quantize_queries(const float * q, int64_t num_rows, int64_t d, const int8_queries & out) {
    const int64_t channels = d / out.num_groups;
    for (int64_t r = 0; r < num_rows; r++, q += d) {
        float largest = 0;
        for (int64_t g = 0; g < out.num_groups; g++) {
            int8_t * codes = out.codes + r * d + g * channels;
            const float scale = quantize_row(q + g * channels, channels, vec::largest_q, 0, codes);
            int32_t sum = 0;
            for (int64_t i = 0; i < channels; i++) sum += codes[i];
            out.scales[r * out.num_groups + g] = scale;
            out.sums[r * out.num_groups + g] = vec::key_offset * sum;
            largest = scale > largest ? scale : largest;
        }
        // Rounding to steps of a scale deviates by scale / sqrt(12); logits are in units of log2 here.
        constexpr float deviation = 0.28867513f / log2_e;
        out.errors[2 * r] = deviation * largest;
        out.errors[2 * r + 1] = deviation * norm_of(q, d);
    }
}

template <int R> [[gnu::noinline]] void int8_score_rows(const int8_queries & q, int64_t row, int64_t d, const int8_keys & keys, float * s) {
    constexpr int J = vec::int8_vectors;
    const int64_t groups = q.num_groups, quads = d / 4 / groups;
    const int8_t * codes = q.codes + row * d;
    for (int64_t first = 0; first < block_regs; first += J) {
        for (int64_t g = 0; g < groups; g++) {
            vec::ints acc[R][J];
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                const vec::ints start = vec::set1_ints(-q.sums[(row + r) * groups + g]);
                ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][j] = start;
            }
            const uint8_t * panel = keys.codes + (g * quads * block + 16 * first) * 4;
            for (int64_t i = g * quads; i < (g + 1) * quads; i++, panel += 4 * block) {
                vec::key_codes x[J];
                ALLOY_UNROLL for (int j = 0; j < J; j++) x[j] = vec::load_keys(panel + 64 * j);
                ALLOY_UNROLL for (int r = 0; r < R; r++) {
                    const vec::four w = vec::load_four(codes + r * d + 4 * i);
                    ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][j] = vec::dot_keys(acc[r][j], x[j], w);
                }
            }
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                const reg scale = vec::set1(q.scales[(row + r) * groups + g]);
                ALLOY_UNROLL for (int j = 0; j < J; j++) {
                    float * out = s + r * block + 16 * (first + j);
                    const reg x = vec::mul(vec::to_floats(acc[r][j]), vec::load(keys.scales + 16 * (first + j)));
                    if (groups == 1) vec::store(out, x);
                    else vec::store(out, g == 0 ? vec::mul(x, scale) : vec::fma(x, scale, vec::load(out)));
                }
            }
        }
    }
}

void int8_scores(const int8_queries & q, int64_t first_row, int64_t num_rows, int64_t d, const int8_keys & keys, float * s) {
    for_rows<vec::int8_rows>(num_rows, [&]<int R>(int64_t r) { int8_score_rows<R>(q, first_row + r, d, keys, s + r * block); });
}

void int8_softmax(float * s, const float * unit, const attention_tile_rows & tile, const int8_values & values, uint8_t * codes, float * weight) {
    ALLOY_EXPECT(tile.num_rows <= attention_tile);
    softmax_rows t;
    t.start(s, unit, tile);
    t.refer<true>(tile.m, tile.num_rows);
    float top[attention_tile];
    for (int64_t r = 0; r < tile.num_rows; r++) {
        const reg u = vec::set1(t.unit[r]), minus_reference = vec::set1(-t.reference[r]);
        reg sum = vec::zero(), x[block_regs];
        ALLOY_UNROLL for (int i = 0; i < block_regs; i++) {
            float * at = s + r * block + 16 * i;
            const reg p = exp2<3>(vec::fma(vec::load(at), u, minus_reference));
            sum = vec::add(sum, p);
            x[i] = vec::mul(p, vec::load(values.scales + 16 * i));
            vec::store(at, x[i]);
        }
        top[r] = largest_of(x);
        sum = vec::mul(sum, vec::set1(t.new_factor[r]));
        vec::store(tile.l + 16 * r, vec::fma(vec::load(tile.l + 16 * r), vec::set1(t.old_factor[r]), sum));
        tile.alpha[r] = t.old_factor[r];
    }
    for (int64_t r = 0; r < tile.num_rows; r++) {
        // The largest product, not the largest p, gets the largest code: an attention sink has all of p and next to nothing of V.
        const reg inverse = vec::set1(top[r] > 0x1p-100f ? vec::largest_p / top[r] : 0);
        reg x[block_regs];
        ALLOY_UNROLL for (int i = 0; i < block_regs; i++) x[i] = vec::mul(vec::load(s + r * block + 16 * i), inverse);
        vec::store_p(codes + r * block, x);
        weight[r] = top[r] * (1 / vec::largest_p) * t.new_factor[r];
    }
}

template <int R>
[[gnu::noinline]] void int8_value_rows(const uint8_t * codes, const float * weight, int64_t d, const int8_t * panel, const float * alpha, float * o) {
    for_vectors<vec::int8_vectors>(d, [&]<int J>(int64_t first) __attribute__((always_inline)) {
        vec::ints acc[R][J];
        ALLOY_UNROLL for (int r = 0; r < R; r++) {
            ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][j] = vec::set1_ints(0);
        }
        const int8_t * column = panel + 64 * first;
        for (int64_t c = 0; c < block; c += 4, column += 4 * d) {
            vec::value_codes x[J];
            ALLOY_UNROLL for (int j = 0; j < J; j++) x[j] = vec::load_values(column + 64 * j);
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                const vec::four w = vec::load_four(codes + r * block + c);
                ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][j] = vec::dot_values(acc[r][j], w, x[j]);
            }
        }
        ALLOY_UNROLL for (int r = 0; r < R; r++) {
            const reg w = vec::set1(weight[r]), a = vec::set1(alpha[r]);
            ALLOY_UNROLL for (int j = 0; j < J; j++) {
                float * out = o + r * d + 16 * (first + j);
                vec::store(out, vec::fma(vec::to_floats(acc[r][j]), w, vec::mul(vec::load(out), a)));
            }
        }
    });
}

void int8_values_of_tile(const uint8_t * codes, const float * weight, int64_t num_rows, int64_t d, const int8_values & values, const float * alpha,
                         float * o) {
    for_rows<vec::int8_rows>(num_rows, [&]<int R>(int64_t r) {
        int8_value_rows<R>(codes + r * block, weight + r, d, values.codes, alpha + r, o + r * d);
    });
}

} // namespace
} // namespace alloy

// What attention.h declares, for one ISA: an ISA file defines its tiles, and its cells for each type of cell_types.inc.
#define ALLOY_DEFINE_TILES(token)                                                                                      \
    namespace {                                                                                                        \
    constexpr attention_tiles tiles = {isa::token,     code_queries<vec>(), softmax,          pack_keys,        tile_scores, tile_values,   \
                                       pack_int8_keys, pack_int8_values, quantize_queries, int8_scores, int8_softmax,  \
                                       int8_values_of_tile};                                                           \
    }
#define ALLOY_DEFINE_CELLS(name, token) \
    const attention_cells attention_##name##_##token = {cell_type::name, &tiles, scores<cell_type::name>, values<cell_type::name>, expand<cell_type::name>};
