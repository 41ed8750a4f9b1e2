// Every row of kernels.inc against an fp64 oracle, and the orders of rank.h against stable sorts, over lengths, ties and edge values.
#include "kernels/select/rank.h"
#include "kernels/select/select.h"
#include "support/fenced_rows.h"
#include "support/kernel_test.h"
#include "support/values.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace alloy {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
constexpr double eps = 0x1p-24;

using listed = test::listed<select_op, select_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(op, token) {select_op::op, isa::token, "select_f32_" #op "_" #token, select_f32_##op##_##token},
#include "kernels/select/kernels.inc"
#undef ALLOY_KERNEL
};

const int64_t lengths[] = {0, 1, 2, 7, 15, 16, 17, 127, 128, 129, 255, 256, 1000, 4099};

// Rows as samplers meet them, and worse.
enum class kind { normal, peaked, coarse, equal, masked, nans, infinite, all_masked, all_nan, ascending, denormal, zeros, wide, count };

std::vector<float> make_row(kind what, int64_t n, uint64_t salt) {
    std::mt19937_64 engine(test::seed() * 31 + salt * 977 + static_cast<uint64_t>(what));
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> x(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++) {
        float y = normal(engine);
        const uint64_t dice = engine() % 8;
        switch (what) {
            case kind::peaked: y += engine() % 128 == 0 ? 12.0f : 0.0f; break;
            case kind::coarse: y = std::round(y); break; // many equal values
            case kind::equal: y = 1.5f; break;
            case kind::masked: y = dice < 6 ? -inf : y; break;
            case kind::nans: y = dice == 0 ? nan : dice == 1 ? -inf : dice == 2 ? -nan : y; break;
            case kind::infinite: y = dice == 0 ? inf : y; break;
            case kind::all_masked: y = -inf; break;
            case kind::all_nan: y = nan; break;
            case kind::ascending: y = static_cast<float>(i) * 0.01f; break;
            case kind::denormal: y *= 1e-42f; break;
            case kind::zeros: y = dice < 4 ? -0.0f : 0.0f; break;
            case kind::wide: y *= std::pow(10.0f, static_cast<float>(dice * 5)); break;
            default: break;
        }
        x[static_cast<size_t>(i)] = y;
    }
    return x;
}

float known(float x) { return std::isnan(x) ? -inf : x; }

// The row at the end of a page, everything around it NaN.
struct scene {
    test::fenced_rows x, maxima, lanes, ids, values, sums, exps, mass, moments;
    int64_t n, blocks, count = -1;
    select_args args{};

    explicit scene(const std::vector<float> & row)
        : x(1, 4 * row.size(), 4 * row.size(), 4), maxima(1, 4 * blocks_of(row), 4 * blocks_of(row)),
          lanes(1, 64 * blocks_of(row), 64 * blocks_of(row)), ids(1, 4 * row.size() + 64, 4 * row.size() + 64),
          values(1, 4 * row.size() + 64, 4 * row.size() + 64), sums(1, 8 * blocks_of(row), 8 * blocks_of(row)),
          exps(1, 4 * row.size(), 4 * row.size()), mass(1, 8 * select_bins, 8 * select_bins), moments(1, 24, 24),
          n(static_cast<int64_t>(row.size())), blocks(select_blocks(n)) {
        if (n > 0) std::memcpy(x.row<float>(0), row.data(), 4 * row.size());
        std::memset(mass.row<double>(0), 0, 8 * select_bins);
        args.x = x.row<float>(0);
        args.n = n;
        args.maxima = maxima.row<float>(0);
        args.lane_maxima = lanes.row<float>(0);
        args.ids = ids.row<int32_t>(0);
        args.values = values.row<float>(0);
        args.count = &count;
        args.sums = sums.row<double>(0);
        args.exps = exps.row<float>(0);
        args.mass = mass.row<double>(0);
        args.moments = moments.row<double>(0);
        args.scale = 1;
    }
    static size_t blocks_of(const std::vector<float> & row) { return static_cast<size_t>(select_blocks(static_cast<int64_t>(row.size()))); }
    void expect_fences() {
        for (test::fenced_rows * rows : {&x, &maxima, &lanes, &ids, &values, &sums, &exps, &mass, &moments}) EXPECT_TRUE(rows->gaps_untouched());
    }
    float highest() const {
        float top = -inf;
        for (int64_t i = 0; i < n; i++) top = std::max(top, known(args.x[i]));
        return top;
    }
    void fill_maxima() {
        for (int64_t b = 0; b < blocks; b++) {
            args.maxima[b] = -inf;
            for (int64_t i = b * select_block; i < std::min(n, (b + 1) * select_block); i++) args.maxima[b] = std::max(args.maxima[b], known(args.x[i]));
        }
    }
};

class select_family : public test::kernel_test<listed> {
  protected:
    template <class Check> void over_rows(Check check) {
        for (const int64_t n : lengths) {
            for (int what = 0; what < static_cast<int>(kind::count); what++) {
                SCOPED_TRACE(testing::Message() << "n " << n << ", kind " << what);
                scene s(make_row(static_cast<kind>(what), n, static_cast<uint64_t>(n)));
                check(s);
                s.expect_fences();
                if (testing::Test::HasFailure()) return;
            }
        }
    }
};

void check_block_max(const listed & row, scene & s) {
    row.run(s.args);
    for (int64_t b = 0; b < s.blocks; b++) {
        float top = -inf, lanes[select_lanes];
        std::fill_n(lanes, select_lanes, -inf);
        for (int64_t i = b * select_block; i < std::min(s.n, (b + 1) * select_block); i++) {
            top = std::max(top, known(s.args.x[i]));
            lanes[i % select_lanes] = std::max(lanes[i % select_lanes], known(s.args.x[i]));
        }
        ASSERT_EQ(top, s.args.maxima[b]) << "block " << b;
        for (int64_t j = 0; j < select_lanes; j++) ASSERT_EQ(lanes[j], s.args.lane_maxima[b * select_lanes + j]) << "block " << b << ", lane " << j;
    }
}

void check_in_range(const listed & row, scene & s) {
    s.fill_maxima();
    float * const maxima = s.args.maxima;
    const float median = s.n > 0 ? known(s.args.x[s.n / 2]) : 0;
    const float ranges[][2] = {{-inf, inf}, {median, inf}, {median, median}, {-1, 1}, {inf, inf}, {-inf, -inf}, {1, -1}, {0, 0}};
    for (const auto & range : ranges) {
        for (const bool skipping : {false, true}) {
            s.args.lo = range[0];
            s.args.hi = range[1];
            s.args.maxima = skipping ? maxima : nullptr;
            row.run(s.args);
            int64_t want = 0;
            for (int64_t i = 0; i < s.n; i++) {
                const float y = known(s.args.x[i]);
                if (!(y >= range[0] && y <= range[1])) continue;
                ASSERT_LT(want, s.count);
                ASSERT_EQ(i, s.args.ids[want]);
                ASSERT_EQ(y, s.args.values[want]);
                want++;
            }
            ASSERT_EQ(want, s.count) << range[0] << " to " << range[1];
        }
    }
}

// The scale that makes the row's differences reach from 0 to far below what counts.
bool prepare_weights(scene & s, float scale) {
    s.args.shift = s.highest();
    s.args.scale = scale;
    return std::isfinite(s.args.shift);
}
double weight(const scene & s, int64_t i, double & bound) {
    const double d = (static_cast<double>(known(s.args.x[i])) - s.args.shift) * s.args.scale;
    const double e = std::exp(d);
    bound = d < -87 * (1 + 4 * eps) ? 0 : (4 + 2 * std::fabs(d)) * eps * e;
    if (d > -87.01 && d < -86.99) bound = 2e-38; // either side of the cut
    return d < -87 ? 0 : e;
}

void check_exp_sums(const listed & row, scene & s) {
    for (const float scale : {1.0f, 0.125f, 3.7f}) {
        if (!prepare_weights(s, scale)) continue;
        row.run(s.args);
        for (int64_t b = 0; b < s.blocks; b++) {
            double sum = 0, bound = 0;
            for (int64_t i = b * select_block; i < std::min(s.n, (b + 1) * select_block); i++) {
                double one;
                const double e = weight(s, i, one);
                ASSERT_NEAR(e, s.args.exps[i], one) << i << ": " << s.args.x[i];
                sum += e;
                bound += one;
            }
            ASSERT_NEAR(sum, s.args.sums[b], bound + 12 * eps * sum) << "block " << b;
        }
        float * const exps = s.args.exps;
        s.args.exps = nullptr;
        std::vector<double> sums(s.args.sums, s.args.sums + s.blocks);
        row.run(s.args);
        s.args.exps = exps;
        ASSERT_TRUE(std::equal(sums.begin(), sums.end(), s.args.sums));
    }
}

void check_exp_bins(const listed & row, scene & s) {
    if (!prepare_weights(s, 0.8f)) return;
    s.fill_maxima();
    float * const maxima = s.args.maxima;
    for (const bool skipping : {false, true}) {
        s.args.maxima = skipping ? maxima : nullptr;
        s.args.lo = s.args.shift - 2;
        std::memset(s.args.mass, 0, 8 * select_bins);
        row.run(s.args);
        std::vector<double> want(select_bins, 0), bound(select_bins, 0);
        for (int64_t i = 0; i < s.n; i++) {
            if (skipping && maxima[i / select_block] < s.args.lo) continue;
            const int bin = bin_of(s.args.x[i], s.args.shift);
            double one;
            want[static_cast<size_t>(bin)] += weight(s, i, one);
            bound[static_cast<size_t>(bin)] += one;
        }
        for (size_t b = 0; b < select_bins; b++) ASSERT_NEAR(want[b], s.args.mass[b], bound[b] * 1.0001) << "bin " << b;
    }
}

void check_moments(const listed & row, scene & s) {
    s.args.shift = std::isfinite(s.highest()) ? s.highest() : 0;
    double number = 0, total = 0, squares = 0, size = 0;
    for (int64_t i = 0; i < s.n; i++) {
        const float y = known(s.args.x[i]);
        if (y == -inf) continue;
        const double d = static_cast<double>(y) - s.args.shift;
        if (std::fabs(d) > 0x1p60) return; // outside the contract
        number += 1;
        total += d;
        squares += d * d;
        size += std::fabs(d);
    }
    row.run(s.args);
    ASSERT_EQ(number, s.args.moments[0]);
    ASSERT_NEAR(total, s.args.moments[1], 14 * eps * size);
    ASSERT_NEAR(squares, s.args.moments[2], 16 * eps * squares + 0x1p-120 * number); // squares may leave f32's normal range
}

TEST_P(select_family, matches_oracle) {
    over_rows([&](scene & s) {
        switch (GetParam().op) {
            case select_op::block_max: return check_block_max(GetParam(), s);
            case select_op::in_range: return check_in_range(GetParam(), s);
            case select_op::exp_sums: return check_exp_sums(GetParam(), s);
            case select_op::exp_bins: return check_exp_bins(GetParam(), s);
            case select_op::moments: return check_moments(GetParam(), s);
            case select_op::count: break;
        }
    });
}

// `reproducible`: an FNV hash of all outputs, the same on every ISA. The inputs come from an integer generator, not from the C library.
TEST_P(select_family, same_bits_on_every_isa) {
    constexpr uint64_t want[] = {0x56d5b698bfcfaf7e, 0xe4648b36073bfea5, 0x935b6fe7bf420d6e, 0x0de51cd318973d6e, 0xfb4e3fe5b3cbdacd};
    std::vector<float> row(1000);
    uint32_t state = 12345;
    for (float & x : row) {
        state = state * 1664525u + 1013904223u;
        x = static_cast<float>(static_cast<int32_t>(state >> 8) - (1 << 23)) * 0x1p-20f; // -8 to 8
    }
    scene s(row);
    s.args.shift = 8;
    s.args.scale = 1.25f;
    s.args.lo = 2;
    s.args.hi = 7;
    float * const maxima = s.args.maxima;
    if (GetParam().op != select_op::block_max) s.args.maxima = nullptr;
    GetParam().run(s.args);
    uint64_t hash = 1469598103934665603u;
    const auto add = [&](const void * data, int64_t bytes) {
        for (int64_t i = 0; i < bytes; i++) hash = (hash ^ static_cast<const uint8_t *>(data)[i]) * 1099511628211u;
    };
    switch (GetParam().op) {
        case select_op::block_max: add(maxima, 4 * s.blocks), add(s.args.lane_maxima, 64 * s.blocks); break;
        case select_op::in_range: add(s.args.ids, 4 * s.count), add(s.args.values, 4 * s.count); break;
        case select_op::exp_sums: add(s.args.sums, 8 * s.blocks), add(s.args.exps, 4 * s.n); break;
        case select_op::exp_bins: add(s.args.mass, 8 * select_bins); break;
        case select_op::moments: add(s.args.moments, 24); break;
        case select_op::count: break;
    }
    EXPECT_EQ(want[static_cast<int>(GetParam().op)], hash) << std::hex << "0x" << hash;
}

INSTANTIATE_TEST_SUITE_P(list, select_family, testing::ValuesIn(list), test::row_name<listed>);

TEST(select_list, has_a_row_for_this_cpu) { test::expect_runnable_row(list); }
TEST(select_list, selector_takes_the_first_row_allowed) { test::expect_selector(list, find_select); }

// --- orders

std::vector<int32_t> stable_order(const std::vector<float> & x, bool descending) {
    std::vector<int32_t> ids(x.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
        const double u = known(x[static_cast<size_t>(a)]), v = known(x[static_cast<size_t>(b)]);
        return descending ? u > v : u < v;
    });
    return ids;
}

template <class Check> void over_orders(Check check) {
    select_memory memory; // one for all: what an earlier row left must not matter
    uint64_t salt = 0;
    for (const int64_t n : {1, 2, 5, 100, 191, 192, 511, 512, 513, 1000, 2048, 4095, 4096, 9000, 33000}) {
        for (int what = 0; what < static_cast<int>(kind::count); what++) {
            for (int round = 0; round < (n < 3000 ? 12 : 2); round++) {
                SCOPED_TRACE(testing::Message() << "n " << n << ", kind " << what << ", round " << round);
                check(make_row(static_cast<kind>(what), n, salt++), memory);
                if (testing::Test::HasFailure()) return;
            }
        }
    }
}

TEST(rank, top_is_the_beginning_of_a_stable_sort) {
    over_orders([](const std::vector<float> & x, select_memory & m) {
        const auto n = static_cast<int64_t>(x.size());
        const std::vector<int32_t> want = stable_order(x, true);
        for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{40}, n / 16, n / 16 + 1, n / 3, n - 1, n, n + 5}) {
            const int64_t got = top_ranks(x.data(), n, k, m);
            ASSERT_EQ(std::clamp<int64_t>(k, 0, n), got);
            for (int64_t i = 0; i < got; i++) {
                ASSERT_EQ(want[static_cast<size_t>(i)], id_of(m.ranks[static_cast<size_t>(i)])) << "k " << k << ", place " << i;
                ASSERT_EQ(known(x[static_cast<size_t>(want[static_cast<size_t>(i)])]), value_of(m.ranks[static_cast<size_t>(i)]));
            }
        }
    });
}

// The places that a bound is sampled from say nothing about the rest: too few elements reach it, or nearly all do.
TEST(rank, top_does_not_trust_its_sample) {
    select_memory m;
    for (const int64_t n : {4096, 5000, 16384}) {
        for (const float at_samples : {9.0f, -9.0f, nan}) {
            std::vector<float> x = make_row(kind::coarse, n, 5);
            for (int64_t i = 0; i < 1024; i++) x[static_cast<size_t>(i * n / 1024)] = at_samples;
            const std::vector<int32_t> want = stable_order(x, true);
            for (const int64_t k : {n / 16 + 1, n / 4, n / 2}) {
                ASSERT_EQ(k, top_ranks(x.data(), n, k, m));
                for (int64_t i = 0; i < k; i++) ASSERT_EQ(want[static_cast<size_t>(i)], id_of(m.ranks[static_cast<size_t>(i)])) << "n " << n << " k " << k << ", place " << i;
            }
        }
    }
}

TEST(rank, argsort_is_a_stable_sort) {
    over_orders([](const std::vector<float> & x, select_memory & m) {
        std::vector<int32_t> got(x.size());
        for (const bool descending : {true, false}) {
            argsort(x.data(), static_cast<int64_t>(x.size()), descending, got.data(), m);
            ASSERT_EQ(stable_order(x, descending), got) << (descending ? "descending" : "ascending");
        }
        ASSERT_EQ(stable_order(x, true)[0], argmax(x.data(), static_cast<int64_t>(x.size()), m));
    });
}

TEST(rank, is_a_total_order) {
    const float values[] = {inf, 3e38f, 1, 1e-45f, 0, -1e-45f, -1, -3e38f, -inf};
    for (size_t i = 0; i + 1 < std::size(values); i++) {
        EXPECT_LT(rank_of(values[i], 9), rank_of(values[i + 1], 3)) << values[i];
        EXPECT_EQ(values[i], value_of(rank_of(values[i], 7)));
        EXPECT_EQ(7, id_of(rank_of(values[i], 7)));
    }
    EXPECT_EQ(rank_of(0.0f, 1), rank_of(-0.0f, 1));
    EXPECT_EQ(rank_of(-inf, 1), rank_of(nan, 1));
    EXPECT_EQ(rank_of(-inf, 1), rank_of(-nan, 1));
    EXPECT_LT(rank_of(2, 1), rank_of(2, 2));
}

TEST(rank, empty_rows) {
    select_memory m;
    EXPECT_EQ(0, top_ranks(nullptr, 0, 5, m));
    EXPECT_EQ(0, argmax(nullptr, 0, m));
    argsort(nullptr, 0, true, nullptr, m);
}

} // namespace
} // namespace alloy
