// Every row of kernels.inc against sums in double precision over what the GGUF bytes and the activation codes are worth.
#include "kernels/matmul/matmul.h"
#include "formats/act_q8.h"
#include "support/fenced_rows.h"
#include "support/gguf_reference.h"
#include "support/kernel_test.h"
#include "support/values.h"

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

namespace alloy {
namespace {

using test::fenced_rows;
using test::values;

using listed = test::listed<weight_type, matmul_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(weights, token) \
    {weight_type::weights, isa::token, "matmul_f32_" #weights "_" #token, matmul_f32_##weights##_##token},
#include "kernels/matmul/kernels.inc"
#undef ALLOY_KERNEL
};

constexpr double eps = 0x1p-24;

bool has_minima(weight_type type) { return !is_floating(format_of(type)) && format_of(type).supers == 2; }

// Weights as GGUF rows and packed; packed memory ends at a closed page.
struct weights {
    weight_type type;
    int64_t rows, k;
    std::vector<uint8_t> gguf;
    fenced_rows packed;

    weights(weight_type type, int64_t rows, int64_t k, std::vector<uint8_t> bytes)
        : type(type), rows(rows), k(k), gguf(std::move(bytes)),
          packed(packed_groups(rows), group_bytes(), group_bytes()) {
        for (int64_t g = 0; g < packed_groups(rows); g++) {
            std::memset(packed.row<uint8_t>(g), 0, group_bytes());
            const int64_t first = g * packed_rows, here = std::min<int64_t>(packed_rows, rows - first);
            pack_rows(type, k, row(first), row_bytes(), 0, static_cast<int>(here), packed.row<uint8_t>(g));
        }
    }
    int64_t row_bytes() const { return test::gguf_row_bytes(type, k); }
    size_t group_bytes() const { return static_cast<size_t>(packed_group_bytes(format_of(type), k)); }
    const uint8_t * row(int64_t r) const { return gguf.data() + r * row_bytes(); }
};

// Activations as the kernel reads them, and what they are worth.
struct activations {
    fenced_rows rows;
    std::vector<const void *> pointers;
    std::vector<std::vector<double>> worth;

    static size_t bytes(activation kind, int64_t k) {
        return static_cast<size_t>(kind == activation::f32 ? 4 * k : act_q8_row_size(kind == activation::q8_32 ? act_q8_32 : act_q8_256, k));
    }
    activations(activation kind, int64_t k, const std::vector<std::vector<float>> & x)
        : rows(static_cast<int64_t>(x.size()), bytes(kind, k), bytes(kind, k) + (kind == activation::f32 ? 4 : 64)) {
        std::vector<float> unpacked(static_cast<size_t>(k));
        for (size_t c = 0; c < x.size(); c++) {
            auto * row = rows.row<void>(static_cast<int64_t>(c));
            if (kind == activation::f32) {
                std::memcpy(row, x[c].data(), x[c].size() * 4);
                unpacked = x[c];
            } else {
                const act_q8_layout layout = kind == activation::q8_32 ? act_q8_32 : act_q8_256;
                act_q8_pack(layout, x[c].data(), k, row);
                act_q8_unpack(layout, row, k, unpacked.data());
            }
            pointers.push_back(row);
            worth.emplace_back(unpacked.begin(), unpacked.end());
        }
    }
};

struct outputs {
    fenced_rows rows;
    std::vector<float *> pointers;
    outputs(int64_t n, int64_t num_rows) : rows(n, static_cast<size_t>(4 * num_rows), static_cast<size_t>(4 * num_rows + 12)) {
        for (int64_t c = 0; c < n; c++) pointers.push_back(rows.row<float>(c));
    }
};

class matmul : public test::kernel_test<listed> {
  protected:
    weight_type type = GetParam().op;
    const weight_format & format = format_of(type);

    std::vector<int64_t> depths() const {
        if (is_floating(format)) return {1, 2, 3, 31, 64, 129, 256, 576};
        if (format.block == 256) return {256, 512, 2048};
        return {32, 64, 224, 256, 288, 576, 2080};
    }

    matmul_args args_for(const weights & w, const activations & a, const outputs & out) const {
        return {.weights = const_cast<weights &>(w).packed.row<uint8_t>(0), .stride_group = static_cast<int64_t>(w.group_bytes()),
                .num_rows = w.rows, .first_row = 0, .k = w.k, .n = static_cast<int64_t>(a.pointers.size()), .acts = a.pointers.data(),
                .out = out.pointers.data(), .bias = nullptr, .residual = nullptr, .scale = 1};
    }

    // |error| that the contract allows for a row worth `row`. Types with minima add and subtract more than their values are worth.
    double bound(const std::vector<double> & row, const std::vector<double> & a) const {
        double largest = 0, terms = 0;
        for (const double w : row) largest = std::max(largest, std::fabs(w));
        for (size_t i = 0; i < row.size(); i++) terms += (has_minima(type) ? 2 * largest : std::fabs(row[i])) * std::fabs(a[i]);
        const auto k = static_cast<double>(row.size());
        return (is_floating(format) ? k / 4 + 8 : k / format.block + 24) * eps * terms + 1e-37;
    }

    void expect_right(const weights & w, const activations & a, const outputs & out, const matmul_args & args) const {
        for (int64_t r = 0; r < w.rows; r++) {
            std::vector<double> row(static_cast<size_t>(w.k));
            for (int64_t i = 0; i < w.k; i++) row[i] = test::gguf_value(type, w.row(r), i);
            for (int64_t c = 0; c < args.n; c++) {
                double want = 0;
                for (int64_t i = 0; i < w.k; i++) want += row[i] * a.worth[c][i];
                want = want * args.scale + (args.bias ? args.bias[r] : 0) + (args.residual ? args.residual[c][r] : 0);
                const double got = out.pointers[c][r];
                ASSERT_NEAR(want, got, bound(row, a.worth[c]) * std::fabs(args.scale) + 4 * eps * std::fabs(want) + 1e-6 * (args.bias ? 1 : 0))
                    << "row " << r << " column " << c << " of " << w.rows << " x " << args.n << ", k " << w.k;
            }
        }
        ASSERT_TRUE(out.rows.gaps_untouched());
    }

    void check(int64_t rows, int64_t k, int64_t n, values kind, uint64_t salt) const {
        std::mt19937_64 engine(test::seed() + salt);
        const weights w(type, rows, k, test::random_gguf(type, k, rows, 0.01, engine));
        std::vector<std::vector<float>> x(static_cast<size_t>(n), std::vector<float>(static_cast<size_t>(k)));
        for (size_t c = 0; c < x.size(); c++) test::fill(kind, x[c].data(), k, salt + c);
        const activations a(format.acts, k, x);
        outputs out(n, rows);
        const matmul_args args = args_for(w, a, out);
        GetParam().run(args);
        expect_right(w, a, out, args);
    }
};

TEST_P(matmul, agrees_with_double_precision) {
    uint64_t salt = 1;
    for (const int64_t k : depths()) {
        for (const int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17}) {
            for (const int64_t rows : {1, 15, 16, 17, 33, 48}) {
                if (k > 600 && rows % 16 != 1) continue;
                check(rows, k, n, values::normal, salt++);
                if (HasFatalFailure()) return;
            }
        }
    }
}

TEST_P(matmul, agrees_on_edge_values) {
    const int64_t k = format.block == 256 ? 512 : 288;
    for (int kind = 0; kind < static_cast<int>(values::count); kind++) {
        for (const int64_t n : {1, 3, 13}) {
            check(17, k, n, static_cast<values>(kind), static_cast<uint64_t>(kind));
            if (HasFatalFailure()) return;
        }
    }
}

TEST_P(matmul, takes_more_columns_than_one_panel) {
    check(33, format.block == 256 ? 512 : 64, 300, values::normal, 7);
}

TEST_P(matmul, does_nothing_without_columns) {
    std::mt19937_64 engine(1);
    const weights w(type, 5, 256, test::random_gguf(type, 256, 5, 1, engine));
    const activations a(format.acts, 256, {});
    outputs out(0, 5);
    GetParam().run(args_for(w, a, out));
    EXPECT_TRUE(out.rows.gaps_untouched());
}

// Every code at its largest, every activation at +-127: a sum that saturates anywhere is far off.
TEST_P(matmul, never_saturates) {
    const int64_t k = 512, rows = 16;
    std::mt19937_64 engine(test::seed());
    std::vector<uint8_t> bytes = test::random_gguf(type, k, rows, 0.01, engine);
    for (const int fill : {0xFF, 0x00, 0x80, 0x7F, 0x88, 0x77}) {
        if (is_floating(format)) break;
        std::vector<uint8_t> filled(bytes.size(), static_cast<uint8_t>(fill));
        for (size_t block = 0; block < bytes.size(); block += static_cast<size_t>(format.block_bytes)) {
            for (int at : test::gguf_halves(type)) std::memcpy(filled.data() + block + at, bytes.data() + block + at, 2);
            if (type == weight_type::mxfp4) filled[block] = 125;
        }
        const weights w(type, rows, k, filled);
        std::vector<std::vector<float>> x(9, std::vector<float>(static_cast<size_t>(k)));
        for (size_t c = 0; c < x.size(); c++) {
            for (size_t i = 0; i < x[c].size(); i++) x[c][i] = c % 3 == 0 || (c % 3 == 1 && i % 2) ? 3.0f : -3.0f;
        }
        for (const size_t n : {size_t{1}, size_t{4}, size_t{9}}) {
            const activations a(format.acts, k, {x.begin(), x.begin() + static_cast<ptrdiff_t>(n)});
            outputs out(static_cast<int64_t>(n), rows);
            const matmul_args args = args_for(w, a, out);
            GetParam().run(args);
            expect_right(w, a, out, args);
            if (HasFatalFailure()) return;
        }
    }
}

TEST_P(matmul, adds_bias_and_residual_and_scales) {
    const int64_t k = 256, rows = 37;
    for (const int64_t n : {1, 5, 20}) {
        std::mt19937_64 engine(test::seed());
        const weights w(type, rows, k, test::random_gguf(type, k, rows, 0.01, engine));
        std::vector<std::vector<float>> x(static_cast<size_t>(n), std::vector<float>(static_cast<size_t>(k)));
        for (size_t c = 0; c < x.size(); c++) test::fill(values::normal, x[c].data(), k, c);
        const activations a(format.acts, k, x);
        std::vector<float> bias(static_cast<size_t>(rows));
        test::fill(values::normal, bias.data(), rows, 99);
        outputs out(n, rows), residual(n, rows);
        for (int64_t c = 0; c < n; c++) test::fill(values::normal, residual.pointers[c], rows, 100 + static_cast<uint64_t>(c));
        matmul_args args = args_for(w, a, out);
        args.scale = 0.25f;
        args.bias = bias.data();
        args.residual = residual.pointers.data();
        GetParam().run(args);
        expect_right(w, a, out, args);
        args.bias = nullptr;
        GetParam().run(args);
        expect_right(w, a, out, args);
        // The residual may be the output itself.
        for (int64_t c = 0; c < n; c++) std::copy_n(residual.pointers[c], rows, out.pointers[c]);
        args.residual = out.pointers.data();
        GetParam().run(args);
        args.residual = residual.pointers.data();
        expect_right(w, a, out, args);
        if (HasFatalFailure()) return;
    }
}

TEST_P(matmul, tiles_of_rows_give_the_whole) {
    const int64_t k = 256, rows = 70, n = 11;
    std::mt19937_64 engine(test::seed());
    const weights w(type, rows, k, test::random_gguf(type, k, rows, 0.01, engine));
    std::vector<std::vector<float>> x(n, std::vector<float>(k));
    for (size_t c = 0; c < x.size(); c++) test::fill(values::wide, x[c].data(), k, c);
    const activations a(format.acts, k, x);
    outputs whole(n, rows), tiled(n, rows);
    GetParam().run(args_for(w, a, whole));
    for (const int64_t first : {48, 0, 16}) {
        matmul_args args = args_for(w, a, tiled);
        args.weights += first / packed_rows * args.stride_group;
        args.first_row = first;
        args.num_rows = first == 0 ? 16 : first == 16 ? 32 : 22;
        GetParam().run(args);
    }
    for (int64_t c = 0; c < n; c++) ASSERT_EQ(0, std::memcmp(whole.pointers[c], tiled.pointers[c], rows * 4)) << "column " << c;
    ASSERT_TRUE(tiled.rows.gaps_untouched());
}

// NaN in one row's scale, or in one activation row, stays there and does not get lost.
TEST_P(matmul, keeps_nan_where_it_is) {
    const int64_t k = 256, rows = 20;
    std::mt19937_64 engine(test::seed());
    std::vector<uint8_t> bytes = test::random_gguf(type, k, rows, 0.01, engine);
    const uint16_t nan = type == weight_type::bf16 ? 0x7FC0 : 0x7E00;
    auto * bad_row = bytes.data() + 3 * test::gguf_row_bytes(type, k);
    const bool weights_have_nan = type != weight_type::mxfp4;
    if (type == weight_type::f32) bad_row[2] = 0xC0, bad_row[3] = 0x7F;
    else if (weights_have_nan) std::memcpy(bad_row + test::gguf_halves(type)[0], &nan, 2);
    const weights w(type, rows, k, bytes);
    for (const size_t n : {size_t{2}, size_t{12}}) {
        std::vector<std::vector<float>> x(n, std::vector<float>(static_cast<size_t>(k), 1.5f));
        x[1][7] = std::numeric_limits<float>::quiet_NaN();
        const activations a(format.acts, k, x);
        outputs out(static_cast<int64_t>(n), rows);
        GetParam().run(args_for(w, a, out));
        for (int64_t r = 0; r < rows; r++) {
            for (size_t c = 0; c < n; c++) {
                EXPECT_EQ((weights_have_nan && r == 3) || c == 1, std::isnan(out.pointers[c][r])) << "row " << r << " column " << c;
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(list, matmul, testing::ValuesIn(list), test::row_name<listed>);

TEST(matmul_list, has_a_row_for_this_cpu) { test::expect_runnable_row(list); }
TEST(matmul_list, selector_gives_the_first_allowed_row) {
    test::expect_selector(list, [](weight_type type, isa_set allowed) { return find_matmul(type, allowed); });
}

} // namespace
} // namespace alloy
