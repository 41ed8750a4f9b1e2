// Every row of kernels.inc against the scalar definition of the format, byte by byte, and that against exact arithmetic.
#include "kernels/quantize/quantize.h"
#include "formats/act_q8.h"
#include "support/fenced_rows.h"
#include "support/kernel_test.h"
#include "support/values.h"

#include <cmath>
#include <limits>
#include <vector>

namespace alloy {
namespace {

using test::fenced_rows;
using test::values;

using listed = test::listed<act_format, quantize_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(format, token) \
    {act_format::format, isa::token, "quantize_" #format "_f32_" #token, quantize_##format##_f32_##token},
#include "kernels/quantize/kernels.inc"
#undef ALLOY_KERNEL
};

act_q8_layout layout_of(act_format format) { return format == act_format::q8_32 ? act_q8_32 : act_q8_256; }

// Around whole groups of 256 and the blocks left over.
std::vector<int64_t> row_lengths(act_q8_layout layout) {
    if (layout.block == 256) return {256, 512, 768, 2048, 2304};
    return {32, 64, 96, 224, 256, 288, 480, 576, 640, 2048, 2080};
}

struct scene {
    fenced_rows in, out;
    quantize_args args;

    scene(act_q8_layout layout, int64_t num_rows, int64_t k, int64_t gap, int64_t tail)
        : in(num_rows, 4 * k, 4 * (k + gap), 4 * tail),
          out(num_rows, act_q8_row_size(layout, k), act_q8_row_size(layout, k) + 64 * static_cast<size_t>(gap)) {
        args = {.in = in.row<float>(0), .out = out.row<void>(0), .stride_in = in.stride(), .stride_out = out.stride(),
                .num_rows = num_rows, .k = k};
    }
};

// The row that the definition gives; bytes between sections stay as fenced_rows made them.
std::vector<uint8_t> packed(act_q8_layout layout, const float * x, int64_t k) {
    std::vector<uint8_t> row(static_cast<size_t>(act_q8_row_size(layout, k)), 0xFF);
    act_q8_pack(layout, x, k, row.data());
    return row;
}

class quantize : public test::kernel_test<listed> {
  protected:
    act_q8_layout layout = layout_of(GetParam().op);

    // Runs the kernel on rows that fill(row, r) makes and compares with the definition.
    template <class Fill> void expect_defined(int64_t num_rows, int64_t k, Fill fill, const char * what) {
        scene s(layout, num_rows, k, num_rows % 3, k / 32 % 4);
        for (int64_t r = 0; r < num_rows; r++) fill(s.in.row<float>(r), r);
        GetParam().run(s.args);
        for (int64_t r = 0; r < num_rows; r++) {
            const std::vector<uint8_t> want = packed(layout, s.in.row<float>(r), k);
            const uint8_t * got = s.out.row<uint8_t>(r);
            const auto differs = std::mismatch(want.begin(), want.end(), got).first - want.begin();
            ASSERT_EQ(static_cast<ptrdiff_t>(want.size()), differs) << "byte of row " << r << ", k " << k << ", " << what;
        }
        ASSERT_TRUE(s.out.gaps_untouched());
    }
};

TEST_P(quantize, gives_the_bytes_of_the_definition) {
    for (const int64_t k : row_lengths(layout)) {
        for (const int64_t num_rows : {0, 1, 2, 5}) {
            for (int kind = 0; kind < static_cast<int>(values::count); kind++) {
                const values v = static_cast<values>(kind);
                const auto filled = [&](float * row, int64_t r) { test::fill(v, row, k, static_cast<uint64_t>(kind + 10 * r)); };
                expect_defined(num_rows, k, filled, test::values_name(v));
            }
            // Every code and every tie between two codes; 127 and -127 appear in each block.
            const auto ties = [&](float * row, int64_t r) {
                for (int64_t i = 0; i < k; i++) row[i] = 0.5f * static_cast<float>((i * 37 + r) % 509 - 254);
                for (int64_t i = 0; i < k; i += 32) row[i] = -127, row[i + 1] = 127;
            };
            expect_defined(num_rows, k, ties, "ties");
            // Blocks near the limit below which a block counts as zero, and near f32's largest number.
            const auto limits = [&](float * row, int64_t) {
                for (int64_t i = 0; i < k; i++) {
                    row[i] = std::ldexp(i % 2 ? 1.0f : -0.75f, i / 256 % 2 ? 127 : static_cast<int>(i / 32 % 4) - 121);
                }
            };
            expect_defined(num_rows, k, limits, "limits");
        }
    }
}

TEST_P(quantize, stays_within_the_bound) {
    for (uint64_t salt = 0; salt < 200; salt++) {
        constexpr int64_t k = 2048;
        scene s(layout, 1, k, 0, 0);
        float * x = s.in.row<float>(0);
        test::fill(salt % 2 ? values::wide : values::normal, x, k, salt);
        GetParam().run(s.args);
        const auto * codes = s.out.row<int8_t>(0);
        const auto * scales = reinterpret_cast<const float *>(codes + act_q8_scales_offset(k));
        for (int64_t i = 0; i < k; i++) {
            const double d = scales[i / layout.block];
            const double bound = d * (0.5 + 127 * 0x1p-22) + 0x1p-119;
            ASSERT_LE(std::fabs(x[i] - d * codes[i]), bound) << "element " << i << ", salt " << salt;
        }
    }
}

TEST_P(quantize, numbers_that_are_not_finite_stay_so) {
    constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (const int64_t k : row_lengths(layout)) {
        scene s(layout, 3, k, 1, 0);
        for (int64_t r = 0; r < 3; r++) {
            for (int64_t i = 0; i < k; i++) s.in.row<float>(r)[i] = i % 7 == 3 ? (r == 0 ? nan : r == 1 ? inf : -inf) : 0.1f * i;
        }
        GetParam().run(s.args);
        for (int64_t r = 0; r < 3; r++) {
            const auto * codes = s.out.row<int8_t>(r);
            const auto * scales = reinterpret_cast<const float *>(codes + act_q8_scales_offset(k));
            for (int64_t i = 0; i < k; i++) ASSERT_GE(codes[i], -127) << "k " << k << ", element " << i;
            for (int64_t b = 0; b < k / layout.block; b++) {
                ASSERT_TRUE(r == 0 ? std::isnan(scales[b]) : std::isinf(scales[b])) << "k " << k << ", block " << b;
            }
        }
        ASSERT_TRUE(s.out.gaps_untouched());
    }
}

TEST_P(quantize, in_parts_gives_the_same_bytes) {
    for (const int64_t k : row_lengths(layout)) {
        scene whole(layout, 5, k, 1, 0), parts(layout, 5, k, 1, 0);
        for (int64_t r = 0; r < 5; r++) {
            test::fill(values::wide, whole.in.row<float>(r), k, static_cast<uint64_t>(r));
            test::fill(values::wide, parts.in.row<float>(r), k, static_cast<uint64_t>(r));
        }
        GetParam().run(whole.args);
        for (const int64_t first : {0, 2, 4}) {
            quantize_args args = parts.args;
            args.in = parts.in.row<float>(first);
            args.out = parts.out.row<void>(first);
            args.num_rows = first == 4 ? 1 : 2;
            GetParam().run(args);
        }
        const size_t size = 5 * static_cast<size_t>(whole.out.stride()) - 64; // without the last gap
        ASSERT_EQ(0, std::memcmp(whole.out.row<void>(0), parts.out.row<void>(0), size));
    }
}

INSTANTIATE_TEST_SUITE_P(list, quantize, testing::ValuesIn(list), test::row_name<listed>);

TEST(quantize_list, has_a_row_for_this_cpu) { test::expect_runnable_row(list); }
TEST(quantize_list, selector_takes_the_first_row_allowed) { test::expect_selector(list, find_quantize); }

TEST(act_q8, unpack_inverts_pack) {
    std::vector<float> x(512), y(512), z(512);
    test::fill(values::wide, x.data(), 512, 7);
    for (const act_q8_layout layout : {act_q8_32, act_q8_256}) {
        const std::vector<uint8_t> row = packed(layout, x.data(), 512);
        act_q8_unpack(layout, row.data(), 512, y.data());
        const std::vector<uint8_t> again = packed(layout, y.data(), 512); // codes stay: y is on the grid
        EXPECT_EQ(0, std::memcmp(row.data(), again.data(), 512));
        const auto * sums = reinterpret_cast<const int16_t *>(row.data() + act_q8_sums_offset(layout, 512));
        int32_t sum = 0;
        for (int64_t i = 0; i < layout.group; i++) sum += static_cast<int8_t>(row[static_cast<size_t>(512 - 1 - i)]);
        EXPECT_EQ(sum, sums[512 / layout.group - 1]);
    }
    EXPECT_EQ(2432, act_q8_row_size(act_q8_32, 2048));
    EXPECT_EQ(2368, act_q8_row_size(act_q8_256, 2048));
}

} // namespace
} // namespace alloy
