// The algorithms of family rowwise over a vector type. An ISA file defines in an anonymous namespace
//   struct vec: reg, lanes, the arithmetic (add sub mul div fma fms max_keep_nan min), load/store/load_n/store_n (the first n
//   lanes; the rest reads as 0), sum, add_exponent, hadamard (of the lanes), rotate_pairs, load_cos_sin/load_cos_sin_n
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

// Two vectors as one. The functions below are long chains of dependent operations: two interleaved keep the floating-point
// pipes 5 to 10 % busier than one after another, for which the scheduler is too short.
struct vec_pair {
    struct reg {
        vec::reg lo, hi;
    };
    static constexpr int64_t lanes = 2 * vec::lanes;
    static reg load(const float * p) { return {vec::load(p), vec::load(p + vec::lanes)}; }
    static void store(float * p, reg x) { vec::store(p, x.lo), vec::store(p + vec::lanes, x.hi); }
    static reg set1(float x) { return {vec::set1(x), vec::set1(x)}; }
    static reg add(reg x, reg y) { return {vec::add(x.lo, y.lo), vec::add(x.hi, y.hi)}; }
    static reg sub(reg x, reg y) { return {vec::sub(x.lo, y.lo), vec::sub(x.hi, y.hi)}; }
    static reg mul(reg x, reg y) { return {vec::mul(x.lo, y.lo), vec::mul(x.hi, y.hi)}; }
    static reg div(reg x, reg y) { return {vec::div(x.lo, y.lo), vec::div(x.hi, y.hi)}; }
    static reg fma(reg x, reg y, reg z) { return {vec::fma(x.lo, y.lo, z.lo), vec::fma(x.hi, y.hi, z.hi)}; }
    static reg fms(reg x, reg y, reg z) { return {vec::fms(x.lo, y.lo, z.lo), vec::fms(x.hi, y.hi, z.hi)}; }
    static reg min(reg x, reg y) { return {vec::min(x.lo, y.lo), vec::min(x.hi, y.hi)}; }
    static reg max_keep_nan(reg x, reg y) { return {vec::max_keep_nan(x.lo, y.lo), vec::max_keep_nan(x.hi, y.hi)}; }
    static reg add_exponent(reg x, reg z) { return {vec::add_exponent(x.lo, z.lo), vec::add_exponent(x.hi, z.hi)}; }
};

// Access to a whole vector, and to the last `n` elements of a row: loops are written once and called with either.
template <class v> struct whole {
    using type = v;
    typename v::reg load(const float * p) const { return v::load(p); }
    void store(float * p, typename v::reg x) const { v::store(p, x); }
    void load_cos_sin(const float * p, reg & cos, reg & sin) const { v::load_cos_sin(p, cos, sin); }
};
struct part {
    using type = vec;
    int64_t n;
    reg load(const float * p) const { return vec::load_n(p, n); }
    void store(float * p, reg x) const { vec::store_n(p, x, n); }
    void load_cos_sin(const float * p, reg & cos, reg & sin) const { vec::load_cos_sin_n(p, n, cos, sin); }
};

template <class Body> inline void for_vectors(int64_t k, Body body) {
    int64_t i = 0;
    for (; i + vec::lanes <= k; i += vec::lanes) body(i, whole<vec>{});
    if (i < k) body(i, part{k - i});
}

// out = op::apply(a, b) element by element, two vectors at a time.
template <class op> inline void map_rows(const rowwise_args & args) {
    ALLOY_EXPECT(args.k >= 1 && args.a && args.b && args.out);
    for (int64_t r = 0; r < args.num_rows; r++) {
        const float * a = row_of(args.a, args.stride_a, r);
        const float * b = row_of(args.b, args.stride_b, r);
        float * out = row_of(args.out, args.stride_out, r);
        // always_inline: otherwise gcc calls it for each pair and loads all constants anew, a third slower.
        const auto body = [=](int64_t i, auto at) __attribute__((always_inline)) {
            at.store(out + i, op::template apply<typename decltype(at)::type>(at.load(a + i), at.load(b + i)));
        };
        int64_t i = 0;
        for (; i + vec_pair::lanes <= args.k; i += vec_pair::lanes) body(i, whole<vec_pair>{});
        if (i + vec::lanes <= args.k) body(i, whole<vec>{}), i += vec::lanes;
        if (i < args.k) body(i, part{args.k - i});
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

// The exponentials below are 2^n times a polynomial near 1, n an integer. Adding 1.5 * 2^23 rounds to an integer and leaves
// it in the low bits. Arguments are limited so that 2^n is a normal number.
constexpr float round_magic = 0x1.8p23f;

// c0 + c1 x + ... + c4 x^4 and one more: 1 + x * that
template <class v> inline typename v::reg one_plus_x_times(typename v::reg x, float c0, float c1, float c2, float c3, float c4) {
    typename v::reg p = v::fma(v::set1(c4), x, v::set1(c3));
    p = v::fma(p, x, v::set1(c2));
    p = v::fma(p, x, v::set1(c1));
    p = v::fma(p, x, v::set1(c0));
    return v::fma(p, x, v::set1(1));
}

// x / (1 + exp(-x)), exp(-x) = 2^n exp(-f), f = x + n ln 2. The f32 nearest to ln 2 is off by 2.7e-9 of it only, so one
// step reduces: at x = -88 that costs 4 eps, at -20 less than 1. Below -88 the result stays at silu(-88) = -5.3e-37.
template <class v> inline typename v::reg silu(typename v::reg x) {
    constexpr float log2e = 0x1.715476p+0f, ln2 = 0x1.62e43p-1f;
    x = v::max_keep_nan(x, v::set1(-88));
    const typename v::reg y = v::min(x, v::set1(80)); // above, exp(-x) no longer matters
    const typename v::reg z = v::fma(y, v::set1(-log2e), v::set1(round_magic));
    const typename v::reg n = v::sub(z, v::set1(round_magic));
    const typename v::reg f = v::fma(n, v::set1(ln2), y);
    // exp(-f), |f| <= 0.3467: minimax, relative error below 1.6 eps
    const typename v::reg p =
        one_plus_x_times<v>(f, -0x1.fffff6p-1f, 0x1.fffdc4p-2f, -0x1.555a74p-3f, 0x1.573af8p-5f, -0x1.0fa87ap-7f);
    return v::div(x, v::add(v::set1(1), v::add_exponent(p, z)));
}

// x/2 * (1 + tanh(u)) = x / (1 + 2^t), t = -2u / ln 2 = x * (c1 + c2 * x^2). t reaches 127, so its rounding alone would cost
// a hundred times the bound: c1 + c2 * x^2 is kept as the sum of two floats w + w_lo. c1_hi has 12 bits, so that w - c1_hi is
// exact for every w in reach. Below -10.03 the result stays at -6e-38.
template <class v> inline typename v::reg gelu(typename v::reg x) {
    using reg = typename v::reg;
    constexpr float c1_hi = -0x1.26ap+1f, c1_lo = -0.00045038565f;  // -2 sqrt(2/pi) log2(e)
    constexpr float c2_hi = -0x1.a5a7dp-4f, c2_lo = 2.0161985e-09f; // 0.044715 of that
    x = v::max_keep_nan(x, v::set1(-10.03f));
    const reg y = v::min(x, v::set1(9.5f)); // above, 2^t no longer matters
    const reg square = v::mul(y, y);
    const reg square_lo = v::fms(y, y, square);
    const reg p = v::mul(square, v::set1(c2_hi));
    const reg p_lo = v::fms(square, v::set1(c2_hi), p);
    const reg w = v::add(p, v::set1(c1_hi));
    const reg w_error = v::sub(p, v::sub(w, v::set1(c1_hi)));
    reg rest = v::fma(square, v::set1(c2_lo), v::set1(c1_lo));
    rest = v::fma(square_lo, v::set1(c2_hi), rest);
    const reg w_lo = v::add(w_error, v::add(p_lo, rest));
    const reg z = v::fma(y, w, v::set1(round_magic));
    reg f = v::fma(y, w, v::sub(v::set1(round_magic), z));
    f = v::fma(y, w_lo, f);
    // 2^f, |f| <= 1/2: minimax, relative error below 1.9 eps
    const reg e = one_plus_x_times<v>(f, 0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f, 0x1.3cea88p-7f, 0x1.5bba14p-10f);
    return v::div(x, v::add(v::set1(1), v::add_exponent(e, z)));
}

struct add_op {
    template <class v> static typename v::reg apply(typename v::reg a, typename v::reg b) { return v::add(a, b); }
};
struct swiglu_op {
    template <class v> static typename v::reg apply(typename v::reg a, typename v::reg b) { return v::mul(silu<v>(a), b); }
};
struct geglu_op {
    template <class v> static typename v::reg apply(typename v::reg a, typename v::reg b) { return v::mul(gelu<v>(a), b); }
};

inline void scale_rows(const rowwise_args & args) {
    ALLOY_EXPECT(args.k >= 1 && args.a && args.out);
    const reg factor = vec::set1(args.p0), bias = vec::set1(args.p1);
    for (int64_t r = 0; r < args.num_rows; r++) {
        const float * a = row_of(args.a, args.stride_a, r);
        float * out = row_of(args.out, args.stride_out, r);
        for_vectors(args.k, [=](int64_t i, auto at) { at.store(out + i, vec::fma(at.load(a + i), factor, bias)); });
    }
}

// Rows one by one even where all share one row of (cos, sin): turning four at once loads and splits it once, which is worth a
// third in L1, but from memory it costs 60 %, because the rows' lines are then not touched in order.
template <bool neox> inline void rope_rows(const rowwise_args & args) {
    ALLOY_EXPECT(args.k >= 1 && args.a && args.b && args.out);
    ALLOY_EXPECT(args.num_rotated >= 0 && args.num_rotated <= args.k && args.num_rotated % 2 == 0);
    const int64_t n = args.num_rotated, half = n / 2;
    for (int64_t r = 0; r < args.num_rows; r++) {
        const float * a = row_of(args.a, args.stride_a, r);
        const float * b = row_of(args.b, args.stride_b, r);
        float * out = row_of(args.out, args.stride_out, r);
        if constexpr (neox) {
            for_vectors(half, [=](int64_t i, auto at) {
                reg cos, sin;
                at.load_cos_sin(b + 2 * i, cos, sin);
                const reg lo = at.load(a + i), hi = at.load(a + half + i);
                at.store(out + i, vec::fms(lo, cos, vec::mul(hi, sin)));
                at.store(out + half + i, vec::fma(lo, sin, vec::mul(hi, cos)));
            });
        } else {
            for_vectors(n, [=](int64_t i, auto at) { at.store(out + i, vec::rotate_pairs(at.load(a + i), at.load(b + i))); });
        }
        if (n < args.k && a != out) memcpy(out + n, a + n, static_cast<size_t>(args.k - n) * sizeof(float));
    }
}

// Steps within a vector first, then those between vectors of the row.
inline void hadamard_rows(const rowwise_args & args) {
    const int64_t k = args.k;
    ALLOY_EXPECT(k >= 16 && (k & (k - 1)) == 0 && args.a && args.out);
    const reg unit = vec::set1(1 / __builtin_sqrtf(static_cast<float>(k)));
    for (int64_t r = 0; r < args.num_rows; r++) {
        const float * a = row_of(args.a, args.stride_a, r);
        float * out = row_of(args.out, args.stride_out, r);
        for (int64_t i = 0; i < k; i += vec::lanes) vec::store(out + i, vec::mul(vec::hadamard(vec::load(a + i)), unit));
        for (int64_t half = vec::lanes; half < k; half *= 2) {
            for (int64_t first = 0; first < k; first += 2 * half) {
                for (int64_t i = first; i < first + half; i += vec::lanes) {
                    const reg x = vec::load(out + i), y = vec::load(out + i + half);
                    vec::store(out + i, vec::add(x, y));
                    vec::store(out + i + half, vec::sub(x, y));
                }
            }
        }
    }
}

} // namespace
} // namespace alloy

// The kernels that rowwise.h declares, for one ISA.
#define ALLOY_DEFINE_ROWWISE(isa)                                                                               \
    void rowwise_f32_rms_norm_##isa(const rowwise_args & args) { rms_norm_rows<false>(args); }                  \
    void rowwise_f32_rms_norm_mul_##isa(const rowwise_args & args) { rms_norm_rows<true>(args); }               \
    void rowwise_f32_add_##isa(const rowwise_args & args) { map_rows<add_op>(args); }                           \
    void rowwise_f32_scale_##isa(const rowwise_args & args) { scale_rows(args); }                               \
    void rowwise_f32_swiglu_##isa(const rowwise_args & args) { map_rows<swiglu_op>(args); }                     \
    void rowwise_f32_geglu_##isa(const rowwise_args & args) { map_rows<geglu_op>(args); }                       \
    void rowwise_f32_rope_normal_##isa(const rowwise_args & args) { rope_rows<false>(args); }                   \
    void rowwise_f32_rope_neox_##isa(const rowwise_args & args) { rope_rows<true>(args); }                      \
    void rowwise_f32_hadamard_##isa(const rowwise_args & args) { hadamard_rows(args); }
