// The algorithms of family select over a vector type. An ISA file defines in an anonymous namespace
//   struct vec: reg, lanes (a divisor of 16), load store set1 add sub mul fma, max (the second operand when the first is NaN), min
//   (likewise), if_at_least(x, limit, y) (y where x >= limit, else 0), add_exponent, to_int_store, highest, sum, append
// and then includes this file, so that each ISA compiles its own copy and no symbol of it leaves the object.
#include "base/check.h"
#include <string.h>

namespace alloy {
namespace {

using reg = vec::reg;
constexpr int parts = static_cast<int>(select_lanes) / static_cast<int>(vec::lanes); // registers of a line
constexpr int lines = static_cast<int>(select_block / select_lanes);
constexpr float minus_inf = -__builtin_inff();

#if defined(__clang__)
#define ALLOY_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ALLOY_UNROLL _Pragma("GCC unroll 8")
#endif

// body(block, its 128 elements, how many of them are the row's): the last block is filled up with -inf.
template <class Body> inline void for_blocks(const select_args & args, Body body) {
    int64_t b = 0;
    for (; (b + 1) * select_block <= args.n; b++) body(b, args.x + b * select_block, select_block);
    const int64_t rest = args.n - b * select_block;
    if (rest <= 0) return;
    float tail[select_block];
    for (int64_t i = 0; i < select_block; i++) tail[i] = minus_inf;
    memcpy(tail, args.x + b * select_block, static_cast<size_t>(rest) * sizeof(float));
    body(b, tail, rest);
}

inline void block_max_row(const select_args & args) {
    ALLOY_EXPECT(args.maxima);
    for_blocks(args, [&](int64_t b, const float * x, int64_t) __attribute__((always_inline)) {
        reg top[parts];
        ALLOY_UNROLL for (int p = 0; p < parts; p++) top[p] = vec::set1(minus_inf);
        ALLOY_UNROLL for (int line = 0; line < lines; line++) {
            ALLOY_UNROLL for (int p = 0; p < parts; p++) top[p] = vec::max(vec::load(x + line * select_lanes + p * vec::lanes), top[p]);
        }
        if (args.lane_maxima) {
            ALLOY_UNROLL for (int p = 0; p < parts; p++) vec::store(args.lane_maxima + b * select_lanes + p * vec::lanes, top[p]);
        }
        ALLOY_UNROLL for (int half = parts / 2; half > 0; half /= 2) {
            ALLOY_UNROLL for (int p = 0; p < half; p++) top[p] = vec::max(top[p], top[p + half]);
        }
        args.maxima[b] = vec::highest(top[0]);
    });
}

inline void in_range_row(const select_args & args) {
    ALLOY_EXPECT(args.ids && args.values && args.count);
    int64_t found = 0;
    const reg lo = vec::set1(args.lo), hi = vec::set1(args.hi);
    for_blocks(args, [&](int64_t b, const float * x, int64_t num) __attribute__((always_inline)) {
        if (args.maxima && args.maxima[b] < args.lo) return;
        int64_t i = 0;
        for (; i + vec::lanes <= num; i += vec::lanes) {
            const reg y = vec::max(vec::load(x + i), vec::set1(minus_inf));
            found += vec::append(args.values + found, args.ids + found, y, static_cast<int32_t>(b * select_block + i), lo, hi);
        }
        for (; i < num; i++) { // the padding is no element, not even of a range that begins at -inf
            const float y = x[i] == x[i] ? x[i] : minus_inf;
            if (!(y >= args.lo && y <= args.hi)) continue;
            args.values[found] = y;
            args.ids[found++] = static_cast<int32_t>(b * select_block + i);
        }
    });
    *args.count = found;
}

// exp(d) for d <= 0: 2^n times a polynomial near 1. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. The
// polynomial is minimax on |f| <= ln(2)/2 with relative error below 1.6 eps, and 1 at 0.
inline reg exp_of(reg d) {
    constexpr float magic = 0x1.8p23f, log2e = 0x1.715476p+0f, ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7d1cp-20f;
    const reg y = vec::max(d, vec::set1(-87.25f)); // keeps 2^n normal
    const reg z = vec::fma(y, vec::set1(log2e), vec::set1(magic));
    const reg n = vec::sub(z, vec::set1(magic));
    const reg f = vec::fma(n, vec::set1(-ln2_lo), vec::fma(n, vec::set1(-ln2_hi), y));
    reg p = vec::fma(vec::set1(0x1.0fa87ap-7f), f, vec::set1(0x1.573af8p-5f));
    p = vec::fma(p, f, vec::set1(0x1.555a74p-3f));
    p = vec::fma(p, f, vec::set1(0x1.fffdc4p-2f));
    p = vec::fma(p, f, vec::set1(0x1.fffff6p-1f));
    p = vec::fma(p, f, vec::set1(1));
    return vec::if_at_least(d, vec::set1(-87), vec::add_exponent(p, z)); // not for NaN
}

inline reg weight_of(const select_args & args, const float * x) {
    return exp_of(vec::mul(vec::sub(vec::load(x), vec::set1(args.shift)), vec::set1(args.scale)));
}

// Lanes i and i + 8, then i and i + 4 and so on: one order for all vector lengths.
inline float sum_of_line(reg * line) {
    ALLOY_UNROLL for (int half = parts / 2; half > 0; half /= 2) {
        ALLOY_UNROLL for (int p = 0; p < half; p++) line[p] = vec::add(line[p], line[p + half]);
    }
    return vec::sum(line[0]);
}

template <bool stored> inline void exp_sums_row(const select_args & args) {
    for_blocks(args, [&](int64_t b, const float * x, int64_t num) __attribute__((always_inline)) {
        reg sum[parts];
        float weights[select_block];
        ALLOY_UNROLL for (int p = 0; p < parts; p++) sum[p] = vec::set1(0);
        ALLOY_UNROLL for (int line = 0; line < lines; line++) {
            ALLOY_UNROLL for (int p = 0; p < parts; p++) {
                const int64_t at = line * select_lanes + p * vec::lanes;
                const reg e = weight_of(args, x + at);
                if (stored) vec::store(weights + at, e);
                sum[p] = vec::add(sum[p], e);
            }
        }
        if (stored) memcpy(args.exps + b * select_block, weights, static_cast<size_t>(num) * sizeof(float));
        args.sums[b] = static_cast<double>(sum_of_line(sum));
    });
}

inline void exp_sums_of(const select_args & args) {
    ALLOY_EXPECT(args.sums);
    args.exps ? exp_sums_row<true>(args) : exp_sums_row<false>(args);
}

inline void exp_bins_row(const select_args & args) {
    ALLOY_EXPECT(args.mass);
    const reg shift = vec::set1(args.shift), per_unit = vec::set1(bins_per_unit), last = vec::set1(static_cast<float>(select_bins - 1));
    for_blocks(args, [&](int64_t b, const float * x, int64_t num) __attribute__((always_inline)) {
        if (args.maxima && args.maxima[b] < args.lo) return;
        int32_t bins[select_block];
        float weights[select_block];
        ALLOY_UNROLL for (int64_t i = 0; i < select_block; i += vec::lanes) {
            const reg d = vec::mul(vec::sub(shift, vec::load(x + i)), per_unit);
            vec::to_int_store(bins + i, vec::max(vec::min(d, last), vec::set1(0)));
            vec::store(weights + i, weight_of(args, x + i));
        }
        for (int64_t i = 0; i < num; i++) args.mass[bins[i]] += static_cast<double>(weights[i]);
    });
}

inline void moments_row(const select_args & args) {
    ALLOY_EXPECT(args.moments);
    double number = 0, total = 0, squares = 0;
    const reg shift = vec::set1(args.shift), one = vec::set1(1), least = vec::set1(-__FLT_MAX__);
    for_blocks(args, [&](int64_t, const float * x, int64_t) __attribute__((always_inline)) {
        reg num[parts], sum[parts], square[parts];
        ALLOY_UNROLL for (int p = 0; p < parts; p++) num[p] = sum[p] = square[p] = vec::set1(0);
        ALLOY_UNROLL for (int line = 0; line < lines; line++) {
            ALLOY_UNROLL for (int p = 0; p < parts; p++) {
                const reg y = vec::load(x + line * select_lanes + p * vec::lanes);
                const reg d = vec::if_at_least(y, least, vec::sub(y, shift));
                num[p] = vec::add(num[p], vec::if_at_least(y, least, one));
                sum[p] = vec::add(sum[p], d);
                square[p] = vec::fma(d, d, square[p]);
            }
        }
        number += static_cast<double>(sum_of_line(num));
        total += static_cast<double>(sum_of_line(sum));
        squares += static_cast<double>(sum_of_line(square));
    });
    args.moments[0] = number;
    args.moments[1] = total;
    args.moments[2] = squares;
}

} // namespace
} // namespace alloy

// The kernels that select.h declares, for one ISA.
#define ALLOY_DEFINE_SELECT(isa)                                                             \
    void select_f32_block_max_##isa(const select_args & args) { block_max_row(args); }       \
    void select_f32_in_range_##isa(const select_args & args) { in_range_row(args); }         \
    void select_f32_exp_sums_##isa(const select_args & args) { exp_sums_of(args); }          \
    void select_f32_exp_bins_##isa(const select_args & args) { exp_bins_row(args); }         \
    void select_f32_moments_##isa(const select_args & args) { moments_row(args); }
