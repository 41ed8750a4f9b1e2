// Every row of kernels.inc against the scalar definition of the codecs, and that against the bytes that formats/kv_codec.h describes, read
// here once more.
#include "kernels/codec/codec.h"
#include "support/fenced_rows.h"
#include "support/gguf_reference.h"
#include "support/kernel_test.h"
#include "support/values.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace alloy {
namespace {

using test::fenced_rows;

using listed = test::listed<kv_codec, codec_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(codec, token) {kv_codec::codec, isa::token, "encode_" #codec "_" #token, encode_##codec##_##token},
#include "kernels/codec/kernels.inc"
#undef ALLOY_KERNEL
};
constexpr int64_t head_sizes[] = {32, 64, 96, 128, 256, 576};
constexpr int64_t cells = kv_page_cells;

// --- what a page says -------------------------------------------------------------------------------------------------------------------
int level_at(kv_codec codec, const uint8_t * row, int64_t i) {
    const uint8_t * p = row + i / 32 * 4 * kv_codec_bits(codec);
    const int e = static_cast<int>(i % 32);
    const auto nibble = [&] { return e < 16 ? p[e] & 15 : p[e - 16] >> 4; };
    const auto pair = [&](int at) { return p[at + e % 8] >> 2 * (e / 8) & 3; };
    const auto bit = [&](int at) { return p[at + e / 8] >> e % 8 & 1; };
    switch (codec) {
        case kv_codec::i8: return static_cast<int8_t>(p[e]);
        case kv_codec::z6: return 2 * (nibble() | pair(16) << 4) - 63;
        case kv_codec::n5: return bit(16) ? -kv_levels_n5[nibble()] : kv_levels_n5[nibble()];
        case kv_codec::n4: return nibble() & 8 ? -kv_levels_n4[nibble() & 7] : kv_levels_n4[nibble()];
        case kv_codec::n3: return bit(8) ? -kv_levels_n3[pair(0)] : kv_levels_n3[pair(0)];
        case kv_codec::count: break;
    }
    return 0;
}
double scale_at(kv_codec codec, const uint8_t * page, int64_t d, int64_t cell) {
    return test::half_value(page + cells * kv_codec_row_bytes(codec, d) + 2 * cell);
}

double squared_error(kv_codec codec, const uint8_t * page, int64_t d, int64_t cell, const float * x) {
    const double scale = scale_at(codec, page, d, cell);
    double error = 0;
    for (int64_t i = 0; i < d; i++) {
        const double left = x[i] - scale * level_at(codec, page + cell * kv_codec_row_bytes(codec, d), i);
        error += left * left;
    }
    return error;
}
double energy(const float * x, int64_t d) {
    double sum = 0;
    for (int64_t i = 0; i < d; i++) sum += static_cast<double>(x[i]) * x[i];
    return sum;
}

// --- what is encoded ----------------------------------------------------------------------------------------------------------------------
enum class kind { normal, outlier, constant, one_hot, alternating, uniform, zeros, tiny, tiniest, small, large, count };

void fill(kind k, float * x, int64_t d, uint64_t salt) {
    std::mt19937_64 engine(test::seed() * 31 + salt);
    std::normal_distribution<float> normal(0, 1);
    const size_t hot = engine() % static_cast<uint64_t>(d);
    for (int64_t i = 0; i < d; i++) {
        const float y = normal(engine);
        x[i] = k == kind::zeros || k == kind::one_hot ? 0
             : k == kind::constant                    ? 0.7f
             : k == kind::alternating                 ? (i % 2 ? -3.0f : 1.5f)
             : k == kind::uniform                     ? static_cast<float>(engine() % 2001) - 1000
             : k == kind::tiny                        ? y * 1e-6f
             : k == kind::tiniest                     ? y * 1e-9f
             : k == kind::small                       ? y * 1e-3f
             : k == kind::large                       ? y * 1e5f
                                                      : y;
    }
    if (k == kind::one_hot) x[hot] = -1;
    if (k == kind::outlier) x[hot] = static_cast<float>(10 + engine() % 21) * (engine() % 2 ? 1.0f : -1.0f);
}

struct scene {
    int64_t d;
    fenced_rows rows, page;

    scene(kv_codec codec, int64_t d, int64_t gap = 0)
        : d(d), rows(cells, 4 * d, 4 * (d + gap), 4 * gap), page(1, kv_codec_page_bytes(codec, d), kv_codec_page_bytes(codec, d), 2 * gap) {}
    void fill(kind k, uint64_t salt) {
        for (int64_t cell = 0; cell < cells; cell++) alloy::fill(k, rows.row<float>(cell), d, 64 * salt + cell);
    }
    void fill(const float * x) {
        for (int64_t cell = 0; cell < cells; cell++) std::copy_n(x + cell * d, d, rows.row<float>(cell));
    }
    bool encode(codec_kernel run) {
        return run({.rows = rows.row<float>(0), .stride = rows.stride(), .d = d, .page = page.row<uint8_t>(0)});
    }
    std::vector<float> decoded(kv_codec codec) {
        std::vector<float> x(static_cast<size_t>(cells * d));
        kv_codec_decode(codec, page.row<uint8_t>(0), d, x.data());
        return x;
    }
};

std::vector<uint8_t> defined(kv_codec codec, scene & s) {
    std::vector<float> x;
    for (int64_t cell = 0; cell < cells; cell++) x.insert(x.end(), s.rows.row<float>(cell), s.rows.row<float>(cell) + s.d);
    std::vector<uint8_t> page(static_cast<size_t>(kv_codec_page_bytes(codec, s.d)));
    EXPECT_TRUE(kv_codec_encode(codec, x.data(), s.d, page.data()));
    return page;
}

// An orthonormal Walsh-Hadamard transform of each power of two that d is made of: its own inverse.
void hadamard(float * x, int64_t d) {
    const int64_t n = d & -d;
    for (int64_t start = 0; start < d; start += n) {
        for (int64_t step = 1; step < n; step *= 2) {
            for (int64_t i = start; i < start + n; i++) {
                if ((i - start) & step) continue;
                const float a = x[i], b = x[i + step];
                x[i] = a + b, x[i + step] = a - b;
            }
        }
        for (int64_t i = start; i < start + n; i++) x[i] /= std::sqrt(static_cast<float>(n));
    }
}
float through_half(float x) { // to nearest, for what f16 holds as a normal number
    int exponent;
    const float m = std::frexp(x, &exponent);
    return std::ldexp(std::nearbyint(m * 2048), exponent - 11);
}

// --- the kernels --------------------------------------------------------------------------------------------------------------------------
class codec : public test::kernel_test<listed> {
  protected:
    kv_codec op = GetParam().op;
};

TEST_P(codec, is_as_good_as_the_definition) {
    double worst = 0, worst_page = 0;
    for (const int64_t d : head_sizes) {
        for (int k = 0; k < static_cast<int>(kind::count); k++) {
            scene s(op, d, k % 3);
            s.fill(static_cast<kind>(k), static_cast<uint64_t>(k));
            ASSERT_TRUE(s.encode(GetParam().run));
            ASSERT_TRUE(s.page.gaps_untouched());
            const std::vector<uint8_t> want = defined(op, s);
            const uint8_t * page = s.page.row<uint8_t>(0);
            double left_of_page = 0, least_of_page = 0;
            for (int64_t cell = 0; cell < cells; cell++) {
                const float * x = s.rows.row<float>(cell);
                const double left = squared_error(op, page, d, cell, x), least = squared_error(op, want.data(), d, cell, x);
                // Where the numbers fit exactly or the scale is hardly above 0 it is the rounding of the scale that is left.
                const double rounding = 0x1p-22 * energy(x, d) + 0x1p-50 * 127 * 127 * static_cast<double>(d);
                ASSERT_LE(left, 1.5 * least + rounding) << "kind " << k << ", d " << d << ", cell " << cell;
                worst = std::max(worst, left / (least + rounding));
                left_of_page += left, least_of_page += least + rounding;
                const uint8_t * codes = page + cell * kv_codec_row_bytes(op, d);
                if (scale_at(op, page, d, cell) == 0) {
                    ASSERT_EQ(kv_codec_row_bytes(op, d), std::count(codes, codes + kv_codec_row_bytes(op, d), 0));
                }
                const bool none = static_cast<kind>(k) == kind::zeros || static_cast<kind>(k) == kind::tiniest;
                ASSERT_TRUE(!none || scale_at(op, page, d, cell) == 0) << "kind " << k << ", d " << d;
            }
            ASSERT_LE(left_of_page, 1.01 * least_of_page) << "kind " << k << ", d " << d;
            worst_page = std::max(worst_page, left_of_page / least_of_page);
        }
    }
    std::printf("squared error over the definition's: a row up to %.4f, a page up to %.4f\n", worst, worst_page);
}

TEST_P(codec, what_was_decoded_encodes_to_itself) {
    for (const int64_t d : head_sizes) {
        for (const kind k : {kind::normal, kind::outlier, kind::constant, kind::one_hot, kind::alternating, kind::uniform}) {
            scene s(op, d);
            s.fill(k, 7);
            ASSERT_TRUE(s.encode(GetParam().run));
            const std::vector<uint8_t> first(s.page.row<uint8_t>(0), s.page.row<uint8_t>(0) + kv_codec_page_bytes(op, d));
            for (int cycle = 0; cycle < 9; cycle++) { // as it is, through f16, through a transform and f16
                std::vector<float> x = s.decoded(op);
                const bool transformed = cycle % 3 == 2;
                for (int64_t cell = 0; cell < cells && transformed; cell++) hadamard(x.data() + cell * d, d);
                if (cycle % 3 != 0) std::transform(x.begin(), x.end(), x.begin(), through_half);
                for (int64_t cell = 0; cell < cells && transformed; cell++) hadamard(x.data() + cell * d, d);
                s.fill(x.data());
                ASSERT_TRUE(s.encode(GetParam().run));
                const int64_t compared = cycle == 0 ? kv_codec_page_bytes(op, d) : cells * kv_codec_row_bytes(op, d); // scales too, or codes
                const auto differs = std::mismatch(first.begin(), first.begin() + compared, s.page.row<uint8_t>(0)).first - first.begin();
                ASSERT_EQ(compared, differs) << "byte of kind " << static_cast<int>(k) << ", d " << d << ", cycle " << cycle;
            }
        }
    }
}

TEST_P(codec, refuses_what_is_not_finite) {
    constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (const int64_t d : head_sizes) {
        scene s(op, d, 1);
        s.fill(kind::normal, 1);
        for (int64_t i = 0; i < cells * d; i += i % 97 + 1) {
            float & x = s.rows.row<float>(i / d)[i % d];
            const float good = x;
            for (const float bad : {nan, -nan, inf, -inf, 3e38f}) {
                x = bad;
                ASSERT_FALSE(s.encode(GetParam().run)) << bad << " at " << i << ", d " << d;
            }
            x = good;
        }
        ASSERT_TRUE(s.encode(GetParam().run));
        for (int64_t i = 0; i < d; i++) s.rows.row<float>(63)[i] *= 1e8f; // a scale that f16 does not hold
        ASSERT_FALSE(s.encode(GetParam().run));
        ASSERT_TRUE(s.page.gaps_untouched());
    }
}

INSTANTIATE_TEST_SUITE_P(list, codec, testing::ValuesIn(list), test::row_name<listed>);

TEST(codec_list, has_a_row_for_this_cpu) { test::expect_runnable_row(list); }
TEST(codec_list, selector_takes_the_first_row_allowed) { test::expect_selector(list, find_encode); }

// --- the definition -----------------------------------------------------------------------------------------------------------------------
constexpr kv_codec codecs[] = {kv_codec::i8, kv_codec::z6, kv_codec::n5, kv_codec::n4, kv_codec::n3};

TEST(kv_codec_definition, decodes_any_bits_as_the_layout_says) {
    std::mt19937_64 engine(test::seed());
    for (const kv_codec op : codecs) {
        scene s(op, 96);
        for (int64_t i = 0; i < kv_codec_page_bytes(op, 96); i++) s.page.row<uint8_t>(0)[i] = static_cast<uint8_t>(engine());
        for (int64_t cell = 0; cell < cells; cell++) { // finite scales, which are not negative
            s.page.row<uint8_t>(0)[cells * kv_codec_row_bytes(op, 96) + 2 * cell + 1] &= 0x7B;
        }
        const std::vector<float> x = s.decoded(op);
        for (int64_t i = 0; i < cells * 96; i++) {
            const uint8_t * page = s.page.row<uint8_t>(0);
            const int level = level_at(op, page + i / 96 * kv_codec_row_bytes(op, 96), i % 96);
            ASSERT_EQ(scale_at(op, page, 96, i / 96) * level, x[static_cast<size_t>(i)]) << i;
        }
    }
}

TEST(kv_codec_definition, what_was_decoded_encodes_to_itself) {
    for (const kv_codec op : codecs) {
        for (const kind k : {kind::normal, kind::outlier, kind::constant, kind::one_hot}) {
            scene s(op, 64);
            s.fill(k, 3);
            const std::vector<uint8_t> page = defined(op, s);
            std::vector<float> x(cells * 64);
            kv_codec_decode(op, page.data(), 64, x.data());
            s.fill(x.data());
            ASSERT_EQ(page, defined(op, s)) << traits_of_codecs[static_cast<int>(op)].name << ", kind " << static_cast<int>(k);
        }
    }
}

TEST(kv_codec_definition, finds_a_scale_near_the_best) { // and of the errors that the levels of a Gaussian are known for
    for (const auto & [op, error] : {std::pair(kv_codec::n3, 0.0345), {kv_codec::n4, 0.0095}, {kv_codec::n5, 0.0025}}) {
        scene s(op, 256);
        s.fill(kind::normal, 5);
        const std::vector<uint8_t> page = defined(op, s);
        double left = 0, all = 0;
        for (int64_t cell = 0; cell < cells; cell++) {
            left += squared_error(op, page.data(), 256, cell, s.rows.row<float>(cell));
            all += energy(s.rows.row<float>(cell), 256);
        }
        EXPECT_LE(left / all, error);
        EXPECT_GE(left / all, 0.8 * error);
    }
}

TEST(kv_codec_definition, refuses_what_is_not_finite) {
    std::vector<float> x(cells * 32, 1.0f);
    std::vector<uint8_t> page(static_cast<size_t>(kv_codec_page_bytes(kv_codec::i8, 32)));
    for (const kv_codec op : codecs) {
        for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(), 1e9f}) {
            x[777] = bad;
            EXPECT_FALSE(kv_codec_encode(op, x.data(), 32, page.data()));
            x[777] = 1;
            EXPECT_TRUE(kv_codec_encode(op, x.data(), 32, page.data()));
        }
    }
}

} // namespace
} // namespace alloy
