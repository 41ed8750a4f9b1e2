// The algorithms of family rowwise over a vector type. An ISA file defines in an anonymous namespace
//   struct vec: reg, lanes, the arithmetic (add sub mul div fma fms max_keep_nan min), load/store/load_n/store_n (the first n
//   lanes; the rest reads as 0), sum, add_exponent, rotate_pairs, load_cos_sin/load_cos_sin_n
// and then includes this file, so that each ISA compiles its own copy and no symbol of it leaves the object.
#include "base/check.h"
#include <string.h>

#if defined(__clang__)
#define ALLOY_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ALLOY_UNROLL _Pragma("GCC unroll 8")
#endif

namespace alloy {
namespace {

using reg = vec::reg;

const float * row_of(const float * base, int64_t stride, int64_t row) {
    return reinterpret_cast<const float *>(reinterpret_cast<const char *>(base) + row * stride);
}
float * row_of(float * base, int64_t stride, int64_t row) {
    return reinterpret_cast<float *>(reinterpret_cast<char *>(base) + row * stride);
}

// Access to a whole vector, and to the last `n` elements of a row: loops are written once and called with either.
struct whole {
    reg load(const float * p) const { return vec::load(p); }
    void store(float * p, reg x) const { vec::store(p, x); }
    void load_cos_sin(const float * p, reg & cos, reg & sin) const { vec::load_cos_sin(p, cos, sin); }
};
struct part {
    int64_t n;
    reg load(const float * p) const { return vec::load_n(p, n); }
    void store(float * p, reg x) const { vec::store_n(p, x, n); }
    void load_cos_sin(const float * p, reg & cos, reg & sin) const { vec::load_cos_sin_n(p, n, cos, sin); }
};

template <class Body> inline void for_vectors(int64_t k, Body body) {
    int64_t i = 0;
    for (; i + vec::lanes <= k; i += vec::lanes) body(i, whole{});
    if (i < k) body(i, part{k - i});
}

template <class F> inline void map_one(const rowwise_args & args, F f) {
    ALLOY_EXPECT(args.k >= 1 && args.a && args.out);
    for (int64_t r = 0; r < args.num_rows; r++) {
        const float * a = row_of(args.a, args.stride_a, r);
        float * out = row_of(args.out, args.stride_out, r);
        for_vectors(args.k, [=](int64_t i, auto at) { at.store(out + i, f(at.load(a + i))); });
    }
}

template <class F> inline void map_two(const rowwise_args & args, F f) {
    ALLOY_EXPECT(args.k >= 1 && args.a && args.b && args.out);
    for (int64_t r = 0; r < args.num_rows; r++) {
        const float * a = row_of(args.a, args.stride_a, r);
        const float * b = row_of(args.b, args.stride_b, r);
        float * out = row_of(args.out, args.stride_out, r);
        for_vectors(args.k, [=](int64_t i, auto at) { at.store(out + i, f(at.load(a + i), at.load(b + i))); });
    }
}

// 8 accumulators cover the latency of two FMA pipes and make at least 32 partial sums, each of at most k/32 + 1 terms.
template <bool scaled> inline float sum_of_squares(const float * a, int64_t k, float factor) {
    constexpr int num_sums = 8;
    const reg c = vec::set1(factor);
    reg sums[num_sums];
    ALLOY_UNROLL for (int j = 0; j < num_sums; j++) sums[j] = vec::set1(0);
    int64_t i = 0;
    for (; i + num_sums * vec::lanes <= k; i += num_sums * vec::lanes) {
        ALLOY_UNROLL for (int j = 0; j < num_sums; j++) {
            reg x = vec::load(a + i + j * vec::lanes);
            if (scaled) x = vec::mul(x, c);
            sums[j] = vec::fma(x, x, sums[j]);
        }
    }
    ALLOY_UNROLL for (int j = 0; j < num_sums; j++) {
        const int64_t n = k - i < vec::lanes ? k - i : vec::lanes;
        if (n <= 0) break;
        reg x = vec::load_n(a + i, n);
        if (scaled) x = vec::mul(x, c);
        sums[j] = vec::fma(x, x, sums[j]);
        i += n;
    }
    ALLOY_UNROLL for (int j = 0; j < 4; j++) sums[j] = vec::add(sums[j], sums[j + 4]);
    return vec::sum(vec::add(vec::add(sums[0], sums[2]), vec::add(sums[1], sums[3])));
}

// 1 / sqrt(mean(a^2) + eps). Squares leave f32's range long before the values do: such rows are summed again, scaled by a
// power of two, which is exact. Both limits leave room for the whole sum (2^-60 * 2^160 and 2^128 * 2^-96 squared).
inline float norm_factor(const float * a, int64_t k, float eps) {
    double sum = sum_of_squares<false>(a, k, 1);
    if (__builtin_expect(!(sum >= 0x1p-60 && sum <= 0x1p120), 0)) {
        const bool large = !(sum < 0x1p-60);
        sum = sum_of_squares<true>(a, k, large ? 0x1p-96f : 0x1p80f) * (large ? 0x1p192 : 0x1p-160);
    }
    return static_cast<float>(1.0 / __builtin_sqrt(sum / static_cast<double>(k) + eps));
}

template <bool with_weight> inline void rms_norm_rows(const rowwise_args & args) {
    ALLOY_EXPECT(args.k >= 1 && args.a && args.out && (args.b || !with_weight));
    for (int64_t r = 0; r < args.num_rows; r++) {
        const float * a = row_of(args.a, args.stride_a, r);
        const float * b = with_weight ? row_of(args.b, args.stride_b, r) : nullptr;
        float * out = row_of(args.out, args.stride_out, r);
        const reg s = vec::set1(norm_factor(a, args.k, args.p0));
        for_vectors(args.k, [=](int64_t i, auto at) {
            reg x = vec::mul(at.load(a + i), s);
            if (with_weight) x = vec::mul(x, at.load(b + i));
            at.store(out + i, x);
        });
    }
}

// The exponentials below are 2^t = 2^n * 2^f, n = round(t). Adding 1.5 * 2^23 rounds to an integer and leaves n in the low bits.
// They are made 2^8 too small: then t up to 135 needs no care for infinity, and x / (1 + 2^t) = (x/2^8) / (1/2^8 + 2^(t-8)).
constexpr float exp_scale = 0x1p-8f;
constexpr float round_magic = 0x1.8p23f - 8;

// 2^(n-8) * 2^f, |f| <= 1/2, `z` = n + round_magic. Minimax polynomial with p(0) = 1: relative error below 1.9 * 2^-24.
inline reg exp2_scaled(reg z, reg f) {
    reg p = vec::set1(0x1.5bba14p-10f);
    p = vec::fma(p, f, vec::set1(0x1.3cea88p-7f));
    p = vec::fma(p, f, vec::set1(0x1.c6b752p-5f));
    p = vec::fma(p, f, vec::set1(0x1.ebf9bcp-3f));
    p = vec::fma(p, f, vec::set1(0x1.62e42ap-1f));
    p = vec::fma(p, f, vec::set1(1));
    return vec::add_exponent(p, z);
}

// x / (1 + 2^t), with e = 2^(t-8)
inline reg divide_by_one_plus(reg x, reg e) {
    return vec::div(vec::mul(x, vec::set1(exp_scale)), vec::add(vec::set1(exp_scale), e));
}

// x / (1 + exp(-x)). Below -93 the result stays at silu(-93) = -3.8e-39; above 80 exp(-x) no longer matters.
inline reg silu(reg x) {
    constexpr float log2e_hi = 0x1.715476p+0f, log2e_lo = 0x1.4ae0cp-26f;
    x = vec::max_keep_nan(x, vec::set1(-93));
    const reg y = vec::min(x, vec::set1(80));
    const reg z = vec::fma(y, vec::set1(-log2e_hi), vec::set1(round_magic));
    const reg minus_n = vec::sub(vec::set1(round_magic), z);
    reg f = vec::fma(y, vec::set1(-log2e_hi), minus_n);
    f = vec::fma(y, vec::set1(-log2e_lo), f);
    return divide_by_one_plus(x, exp2_scaled(z, f));
}

// x/2 * (1 + tanh(u)) = x / (1 + 2^t), t = -2u / ln 2 = x * (c1 + c2 * x^2). t reaches 133, so its rounding alone would cost
// a hundred times the bound: c1 + c2 * x^2 is kept as the sum of two floats w + w_lo. c1_hi has 12 bits, so that w - c1_hi is
// exact for every w in reach. Below -10.2 the result stays at -1e-39; above 9.5 2^t no longer matters.
inline reg gelu(reg x) {
    constexpr float c1_hi = -0x1.26ap+1f, c1_lo = -0.00045038565f; // -2 sqrt(2/pi) log2(e)
    constexpr float c2_hi = -0x1.a5a7dp-4f, c2_lo = 2.0161985e-09f; // 0.044715 of that
    x = vec::max_keep_nan(x, vec::set1(-10.2f));
    const reg y = vec::min(x, vec::set1(9.5f));
    const reg square = vec::mul(y, y);
    const reg square_lo = vec::fms(y, y, square);
    const reg p = vec::mul(square, vec::set1(c2_hi));
    const reg p_lo = vec::fms(square, vec::set1(c2_hi), p);
    const reg w = vec::add(p, vec::set1(c1_hi));
    reg w_lo = vec::sub(p, vec::sub(w, vec::set1(c1_hi)));
    reg rest = vec::fma(square, vec::set1(c2_lo), vec::set1(c1_lo));
    rest = vec::fma(square_lo, vec::set1(c2_hi), rest);
    w_lo = vec::add(w_lo, vec::add(p_lo, rest));
    const reg z = vec::fma(y, w, vec::set1(round_magic));
    const reg minus_n = vec::sub(vec::set1(round_magic), z);
    reg f = vec::fma(y, w, minus_n);
    f = vec::fma(y, w_lo, f);
    return divide_by_one_plus(x, exp2_scaled(z, f));
}

// `rows` rows from `row` on that share one row of (cos, sin) pairs, so that it is loaded and split once.
template <bool neox, int rows> inline void rope_rows(const rowwise_args & args, int64_t row) {
    const float * b = row_of(args.b, args.stride_b, row);
    const float * a[rows];
    float * out[rows];
    ALLOY_UNROLL for (int r = 0; r < rows; r++) {
        a[r] = row_of(args.a, args.stride_a, row + r);
        out[r] = row_of(args.out, args.stride_out, row + r);
    }
    const int64_t n = args.num_rotated, half = n / 2;
    if constexpr (neox) {
        for_vectors(half, [&](int64_t i, auto at) {
            reg cos, sin;
            at.load_cos_sin(b + 2 * i, cos, sin);
            ALLOY_UNROLL for (int r = 0; r < rows; r++) {
                const reg lo = at.load(a[r] + i), hi = at.load(a[r] + half + i);
                at.store(out[r] + i, vec::fms(lo, cos, vec::mul(hi, sin)));
                at.store(out[r] + half + i, vec::fma(lo, sin, vec::mul(hi, cos)));
            }
        });
    } else {
        for_vectors(n, [&](int64_t i, auto at) {
            const reg cos_sin = at.load(b + i);
            ALLOY_UNROLL for (int r = 0; r < rows; r++) {
                at.store(out[r] + i, vec::rotate_pairs(at.load(a[r] + i), cos_sin));
            }
        });
    }
    ALLOY_UNROLL for (int r = 0; r < rows; r++) {
        if (n < args.k && a[r] != out[r]) memcpy(out[r] + n, a[r] + n, static_cast<size_t>(args.k - n) * sizeof(float));
    }
}

template <bool neox> inline void rope_all(const rowwise_args & args) {
    ALLOY_EXPECT(args.k >= 1 && args.a && args.b && args.out);
    ALLOY_EXPECT(args.num_rotated >= 0 && args.num_rotated <= args.k && args.num_rotated % 2 == 0);
    int64_t r = 0;
    if (args.stride_b == 0) {
        for (; r + 4 <= args.num_rows; r += 4) rope_rows<neox, 4>(args, r);
    }
    for (; r < args.num_rows; r++) rope_rows<neox, 1>(args, r);
}

inline void add_rows(const rowwise_args & args) {
    map_two(args, [](reg x, reg y) { return vec::add(x, y); });
}
inline void scale_rows(const rowwise_args & args) {
    const reg factor = vec::set1(args.p0), bias = vec::set1(args.p1);
    map_one(args, [=](reg x) { return vec::fma(x, factor, bias); });
}
inline void swiglu_rows(const rowwise_args & args) {
    map_two(args, [](reg x, reg y) { return vec::mul(silu(x), y); });
}
inline void geglu_rows(const rowwise_args & args) {
    map_two(args, [](reg x, reg y) { return vec::mul(gelu(x), y); });
}

} // namespace
} // namespace alloy

// The kernels that rowwise.h declares, for one ISA.
#define ALLOY_DEFINE_ROWWISE(isa)                                                                                       \
    void rowwise_f32_rms_norm_##isa(const rowwise_args & args) { rms_norm_rows<false>(args); }                          \
    void rowwise_f32_rms_norm_mul_##isa(const rowwise_args & args) { rms_norm_rows<true>(args); }                       \
    void rowwise_f32_add_##isa(const rowwise_args & args) { add_rows(args); }                                           \
    void rowwise_f32_scale_##isa(const rowwise_args & args) { scale_rows(args); }                                       \
    void rowwise_f32_swiglu_##isa(const rowwise_args & args) { swiglu_rows(args); }                                     \
    void rowwise_f32_geglu_##isa(const rowwise_args & args) { geglu_rows(args); }                                       \
    void rowwise_f32_rope_normal_##isa(const rowwise_args & args) { rope_all<false>(args); }                            \
    void rowwise_f32_rope_neox_##isa(const rowwise_args & args) { rope_all<true>(args); }
