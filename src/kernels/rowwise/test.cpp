// Every row of kernels.inc against an fp64 oracle, over shapes, strides, aliases and values.
#include "kernels/rowwise/rowwise.h"
#include "support/compare.h"
#include "support/fenced_rows.h"
#include "support/kernel_test.h"
#include "support/shapes.h"
#include "support/values.h"

#include <limits>

namespace alloy {
namespace {

using test::eps;
using test::expected;
using test::fenced_rows;
using test::values;

using listed = test::listed<rowwise_op, rowwise_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(op, token) {rowwise_op::op, isa::token, "rowwise_f32_" #op "_" #token, rowwise_f32_##op##_##token},
#include "kernels/rowwise/kernels.inc"
#undef ALLOY_KERNEL
};

bool is_rope(rowwise_op op) { return op == rowwise_op::rope_normal || op == rowwise_op::rope_neox; }
bool has_b(rowwise_op op) { return op != rowwise_op::rms_norm && op != rowwise_op::scale && op != rowwise_op::hadamard; }
bool takes(rowwise_op op, int64_t k) { return op != rowwise_op::hadamard || (k >= 16 && (k & (k - 1)) == 0); }

void oracle_hadamard(int64_t k, const float * a, std::vector<expected> & want) {
    double size = 0;
    for (int64_t i = 0; i < k; i++) {
        want.push_back({a[i], 0});
        size += std::fabs(a[i]);
    }
    for (int64_t half = 1; half < k; half *= 2) {
        for (int64_t i = 0; i < k; i++) {
            if ((i & half) != 0) continue;
            const double x = want[i].value, y = want[i + half].value;
            want[i].value = x + y;
            want[i + half].value = x - y;
        }
    }
    const double root = std::sqrt(static_cast<double>(k));
    for (expected & e : want) e = {e.value / root, (std::log2(static_cast<double>(k)) + 2) * eps * size / root + 1e-36};
}

void oracle_rope(const rowwise_args & x, bool neox, const float * a, const float * b, std::vector<expected> & want) {
    for (int64_t i = 0; i < x.k; i++) want.push_back({a[i], 0});
    for (int64_t j = 0; j < x.num_rotated / 2; j++) {
        const int64_t lo = neox ? j : 2 * j, hi = neox ? j + x.num_rotated / 2 : 2 * j + 1;
        const double c = b[2 * j], s = b[2 * j + 1];
        want[lo] = {a[lo] * c - a[hi] * s, 2 * eps * (std::fabs(a[lo] * c) + std::fabs(a[hi] * s)) + 2e-36};
        want[hi] = {a[lo] * s + a[hi] * c, 2 * eps * (std::fabs(a[lo] * s) + std::fabs(a[hi] * c)) + 2e-36};
    }
}

std::vector<expected> oracle(rowwise_op op, const rowwise_args & x, const float * a, const float * b) {
    std::vector<expected> want;
    if (is_rope(op)) oracle_rope(x, op == rowwise_op::rope_neox, a, b, want);
    if (op == rowwise_op::hadamard) oracle_hadamard(x.k, a, want);
    double squares = 0;
    for (int64_t i = 0; i < x.k; i++) squares += static_cast<double>(a[i]) * a[i];
    const double s = 1 / std::sqrt(squares / static_cast<double>(x.k) + static_cast<double>(x.p0));
    for (int64_t i = 0; i < x.k && want.size() < static_cast<size_t>(x.k); i++) {
        const double v = a[i], w = has_b(op) ? b[i] : 1.0;
        const double underflow = 1e-36 * (1 + std::fabs(w));
        const double u = std::sqrt(2 / M_PI) * v * (1 + 0.044715 * v * v);
        const auto relative = [&](double value, double factor) {
            want.push_back({value, factor * eps * std::fabs(value) + underflow});
        };
        switch (op) {
            case rowwise_op::rms_norm:
            case rowwise_op::rms_norm_mul: relative(v * s * w, static_cast<double>(x.k) / 64 + 16); break;
            case rowwise_op::add: want.push_back({v + w, 2 * eps * (std::fabs(v) + std::fabs(w))}); break;
            case rowwise_op::scale:
                want.push_back({v * x.p0 + x.p1, 2 * eps * (std::fabs(v * x.p0) + std::fabs(x.p1)) + underflow});
                break;
            case rowwise_op::swiglu: relative(v / (1 + std::exp(-v)) * w, 8); break;
            case rowwise_op::geglu: relative(v / (1 + std::exp(-2 * u)) * w, 8); break; // v/2 (1 + tanh(u)) cancels
            default: break;
        }
    }
    return want;
}

// One call with its memory. `gap`: floats between rows; `tail`: floats after the last.
struct scene {
    fenced_rows a, b, out;
    rowwise_args args;

    scene(rowwise_op op, values kind, int64_t num_rows, int64_t k, int64_t gap, int64_t tail, bool one_b)
        : a(num_rows, 4 * k, 4 * (k + gap), 4 * tail), b(one_b ? 1 : num_rows, 4 * k, 4 * (k + gap), 4 * tail),
          out(num_rows, 4 * k, 4 * (k + gap), 4 * tail) {
        args = {.a = a.row<float>(0), .b = has_b(op) ? b.row<float>(0) : nullptr, .out = out.row<float>(0),
                .stride_a = a.stride(), .stride_b = one_b ? 0 : b.stride(), .stride_out = out.stride(),
                .num_rows = num_rows, .k = k, .num_rotated = k / 2 * 2, .p0 = 1e-6f, .p1 = 0};
        if (op == rowwise_op::scale) args.p0 = 0.37f, args.p1 = -1.5f;
        for (int64_t r = 0; r < num_rows; r++) test::fill(kind, a.row<float>(r), k, static_cast<uint64_t>(r));
        for (int64_t r = 0; r < (one_b ? 1 : num_rows); r++) {
            test::fill(is_rope(op) ? values::normal : kind, b.row<float>(r), k, static_cast<uint64_t>(r) + 1000);
        }
    }
};

class rowwise : public test::kernel_test<listed> {};

TEST_P(rowwise, matches_oracle) {
    for (const int64_t k : test::row_lengths) {
        if (!takes(GetParam().op, k)) continue;
        for (const int64_t num_rows : test::row_counts) {
            for (int kind = 0; kind < static_cast<int>(values::count); kind++) {
                const bool one_b = kind % 2 == 0;
                scene s(GetParam().op, static_cast<values>(kind), num_rows, k, kind % 4, kind % 3, one_b);
                if (is_rope(GetParam().op) && kind % 3 == 0) s.args.num_rotated = k / 4 * 2; // the rest is copied
                GetParam().run(s.args);
                for (int64_t r = 0; r < num_rows; r++) {
                    const float * b = s.b.row<float>(one_b ? 0 : r);
                    ASSERT_TRUE(test::within(s.out.row<float>(r), oracle(GetParam().op, s.args, s.a.row<float>(r), b)))
                        << "row " << r << " of " << num_rows << ", k " << k << ", values " << kind;
                }
                ASSERT_TRUE(s.out.gaps_untouched()) << "k " << k;
            }
        }
    }
}

TEST_P(rowwise, in_place_and_in_parts_give_the_same_bits) {
    const rowwise_op op = GetParam().op;
    for (const int64_t k : test::row_lengths) {
        if (!takes(op, k)) continue;
        for (const bool one_b : {false, true}) {
            scene whole(op, values::wide, 5, k, 1, 0, one_b);
            GetParam().run(whole.args);
            const auto expect_same = [&](fenced_rows & got, const char * how) {
                for (int64_t r = 0; r < 5; r++) {
                    const size_t size = 4 * static_cast<size_t>(k);
                    EXPECT_EQ(0, std::memcmp(got.row<float>(r), whole.out.row<float>(r), size)) << how << ", k " << k;
                }
                EXPECT_TRUE(got.gaps_untouched()) << how;
            };
            for (const std::vector<int64_t> & cuts : {std::vector<int64_t>{0, 2, 5}, std::vector<int64_t>{0, 1, 4, 5}}) {
                scene parts(op, values::wide, 5, k, 1, 0, one_b);
                for (size_t c = 0; c + 1 < cuts.size(); c++) {
                    rowwise_args args = parts.args;
                    args.a = parts.a.row<float>(cuts[c]);
                    if (!one_b && args.b) args.b = parts.b.row<float>(cuts[c]);
                    args.out = parts.out.row<float>(cuts[c]);
                    args.num_rows = cuts[c + 1] - cuts[c];
                    GetParam().run(args);
                }
                expect_same(parts.out, "in parts");
            }
            scene over_a(op, values::wide, 5, k, 1, 0, one_b);
            over_a.args.out = over_a.a.row<float>(0);
            GetParam().run(over_a.args);
            expect_same(over_a.a, "over a");
            if (!has_b(op) || is_rope(op) || one_b) continue;
            scene over_b(op, values::wide, 5, k, 1, 0, one_b);
            over_b.args.out = over_b.b.row<float>(0);
            GetParam().run(over_b.args);
            expect_same(over_b.b, "over b");
        }
    }
}

// Squares of such rows underflow, and no eps hides it.
TEST_P(rowwise, norms_of_small_rows) {
    if (GetParam().op != rowwise_op::rms_norm && GetParam().op != rowwise_op::rms_norm_mul) return;
    for (const int64_t k : test::row_lengths) {
        scene s(GetParam().op, values::normal, 2, k, 0, 0, false);
        for (int64_t r = 0; r < 2; r++) {
            for (int64_t i = 0; i < k; i++) s.a.row<float>(r)[i] *= r ? 1e-30f : 1e-12f;
        }
        s.args.p0 = 0;
        GetParam().run(s.args);
        for (int64_t r = 0; r < 2; r++) {
            const std::vector<expected> want = oracle(GetParam().op, s.args, s.a.row<float>(r), s.b.row<float>(r));
            ASSERT_TRUE(test::within(s.out.row<float>(r), want)) << "k " << k;
        }
    }
}

TEST_P(rowwise, extremes) {
    constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const float a[] = {nan, inf, -inf, 3e38f, -3e38f, -100, -1e4f, 100, 0, 1e-45f};
    float b[10], out[10];
    std::fill_n(b, 10, 1.0f);
    const rowwise_op op = GetParam().op;
    if (!takes(op, 10)) return;
    GetParam().run({.a = a, .b = b, .out = out, .stride_a = 40, .stride_b = 40, .stride_out = 40, .num_rows = 1, .k = 10,
                    .num_rotated = 0, .p0 = 1, .p1 = 0});
    EXPECT_TRUE(std::isnan(out[0]));
    if (op != rowwise_op::swiglu && op != rowwise_op::geglu) return;
    for (const int i : {1, 3, 7, 8}) EXPECT_EQ(a[i], out[i]);
    for (const int i : {2, 4, 5, 6, 9}) EXPECT_NEAR(0, out[i], 2e-36);
}

INSTANTIATE_TEST_SUITE_P(list, rowwise, testing::ValuesIn(list), test::row_name<listed>);

TEST(rowwise_list, has_a_row_for_this_cpu) { test::expect_runnable_row(list); }
TEST(rowwise_list, selector_takes_the_first_row_allowed) { test::expect_selector(list, find_rowwise); }

TEST(rowwise_list, selector_prefers_the_stronger_isa) {
#if defined(__x86_64__)
    EXPECT_EQ(rowwise_f32_add_avx2, find_rowwise(rowwise_op::add, isa_bit(isa::avx2)));
    EXPECT_EQ(rowwise_f32_add_avx512, find_rowwise(rowwise_op::add, isa_bit(isa::avx2) | isa_bit(isa::avx512)));
#elif defined(__aarch64__)
    EXPECT_EQ(rowwise_f32_add_neon, find_rowwise(rowwise_op::add, isa_bit(isa::neon)));
#endif
}

} // namespace
} // namespace alloy
