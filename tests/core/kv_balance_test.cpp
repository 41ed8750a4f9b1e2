// Channels of keys that are balanced against queries before they are sealed.
#include "kv_scene.h"

namespace alloy::test {
namespace {

constexpr cache_shape shape{host::type_f16, 64, 2, 512, 1};

class KvBalance : public ::testing::Test {
  protected:
    void SetUp() override {
        fake::reset();
        fake::connect();
    }
    static kv::policy sealing(kv_codec codec) { return {.lossy = true, .window = 0, .keys = codec, .values = codec}; }
    std::mt19937_64 engine{seed()};
};

TEST_F(KvBalance, FactorsAreTheRootsOfQueriesOverKeys) {
    const std::vector<float> queries = {4, 4, 1, 1}, keys = {1, 1, 4, 4};
    const kv::channel_balance b({queries.data(), 4, 1}, {keys.data(), 4, 1}, 4, {});
    ASSERT_TRUE(b.fits(1, 4));
    // Shares of the mean channel's energy, 32/17 and 2/17, and 0.02 of it.
    const double ratio = (32.0 / 17 + 0.02) / (2.0 / 17 + 0.02);
    for (int i = 0; i < 4; i++) EXPECT_NEAR(b.of(0)[i], std::pow(ratio, i < 2 ? 0.25 : -0.25), 1e-5) << i;
    std::vector<float> rows(8, 1);
    b.multiply(0, rows);
    EXPECT_EQ(rows[5], b.of(0)[1]);
    b.divide(0, rows);
    for (const float x : rows) EXPECT_NEAR(x, 1, 1e-6);
}

// Two KV heads of two query heads each.
TEST_F(KvBalance, HeadsThatShareKeysAreAveraged) {
    const std::vector<float> queries = {1, 3, 3, 1, 1, 1, 1, 1}, keys = {1, 1}, alike = {1, 1};
    const kv::channel_balance b({queries.data(), 8, 4}, {keys.data(), 2, 2}, 2, {});
    ASSERT_TRUE(b.fits(2, 2));
    for (int64_t head = 0; head < 2; head++) EXPECT_FLOAT_EQ(b.of(head)[0], b.of(head)[1]) << head;
    const std::vector<float> unlike = {1, 3, 1, 3, 1, 1, 1, 1};
    const kv::channel_balance c({unlike.data(), 8, 4}, {keys.data(), 2, 2}, 2, {});
    EXPECT_LT(c.of(0)[0], c.of(0)[1]);
    EXPECT_FLOAT_EQ(c.of(1)[0], c.of(1)[1]);
    const kv::channel_balance turned({unlike.data(), 8, 4}, {keys.data(), 2, 2}, 2, {.num = 2, .halves = true});
    EXPECT_FLOAT_EQ(turned.of(0)[0], turned.of(0)[1]);
}

TEST_F(KvBalance, WeightsThatTellNothingGiveNone) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> ones(32, 1), zeros(32, 0), broken(32, nan);
    for (const auto & [q, k] : {std::pair(&ones, &zeros), {&zeros, &ones}, {&broken, &ones}, {&ones, &broken}}) {
        EXPECT_EQ(kv::channel_balance({q->data(), 32, 1}, {k->data(), 32, 1}, 32, {}).of(0), nullptr);
    }
}

TEST_F(KvBalance, LogitsLoseLess) {
    for (const kv_codec codec : {kv_codec::z6, kv_codec::n5, kv_codec::n4}) {
        SCOPED_TRACE(traits_of_codecs[static_cast<int>(codec)].name);
        const kv::channel_balance factors = strong_balance(shape.heads, shape.d);
        const auto error = [&](bool balanced) { // mean square of q.k, where queries are large where keys are small
            std::mt19937_64 same{7};
            std::normal_distribution<float> normal;
            cache_scene s(shape, sealing(codec));
            if (balanced) s.cache->balance_by(factors);
            s.view();
            std::vector<float> x(static_cast<size_t>(shape.cells * shape.heads * shape.d));
            const auto factor = [&](size_t i) { return factors.of(static_cast<int64_t>(i) / shape.d % shape.heads)[static_cast<int64_t>(i) % shape.d]; };
            for (size_t i = 0; i < x.size(); i++) x[i] = normal(same) / factor(i);
            const bytes_t rows = s.stored(x);
            s.set_rows(0, rows);
            s.cache->seal();
            EXPECT_EQ(s.num_sealed(), shape.blocks());
            s.check_view();
            const bytes_t back = s.read_all();
            double sum = 0;
            for (int64_t c = 0; c < shape.cells; c++) {
                const size_t at = static_cast<size_t>(c) * shape.row_bytes();
                const std::vector<float> was = s.numbers(rows.data() + at), is = s.numbers(back.data() + at);
                double logit = 0;
                for (size_t i = 0; i < was.size(); i++) logit += normal(same) * factor(i) * (is[i] - was[i]);
                sum += logit * logit;
            }
            return sum;
        };
        EXPECT_LT(error(true), 0.5 * error(false));
    }
}

// Also in another process: factors come from the model, not from what was seen.
TEST_F(KvBalance, RestoredKeysKeepTheirCodes) {
    for (const kv_codec codec : {kv_codec::n5, kv_codec::n4}) {
        SCOPED_TRACE(traits_of_codecs[static_cast<int>(codec)].name);
        cache_scene a(shape, sealing(codec)), b(shape, sealing(codec));
        for (cache_scene * s : {&a, &b}) {
            s->cache->balance_by(strong_balance(shape.heads, shape.d));
            s->view();
        }
        const bytes_t rows = a.random_rows(shape.cells, engine);
        a.set_rows(0, rows, true);
        a.cache->seal();
        const bytes_t saved = a.read_all();
        EXPECT_GT(a.loss(rows, saved), loss_of(codec) / 4);
        b.write(0, saved);
        EXPECT_EQ(b.num_sealed(), shape.blocks() - 1);
        EXPECT_LE(b.loss(saved, b.read_all()), loss_of(codec) / 16);
        a.cache->open_share(0, 1);
        a.cache->seal_share(0, 1);
        EXPECT_LE(a.loss(saved, a.read_all()), 1e-5);
    }
}

TEST_F(KvBalance, PagesOfAnotherBalanceAreCopiedAsRows) {
    cache_scene a(shape, sealing(kv_codec::i8)), b(shape, sealing(kv_codec::i8));
    a.cache->balance_by(strong_balance(shape.heads, shape.d));
    a.view();
    b.view();
    const bytes_t rows = a.random_rows(shape.cells, engine);
    a.set_rows(0, rows);
    a.cache->seal();
    ASSERT_TRUE(b.cache->copy_from(*a.cache, 0, 0, shape.bytes()));
    EXPECT_LE(b.loss(a.read_all(), b.read_all()), 2 * loss_of(kv_codec::i8));
    b.check_view();
}

TEST_F(KvBalance, OnlyTurnedKeysAreBalanced) {
    const auto balance_of = [&](const cache_shape & of, bool values, int64_t heads) {
        cache_scene s(of, sealing(kv_codec::n4), values);
        s.cache->balance_by(strong_balance(heads, of.d));
        return s.view().balance->of(0) != nullptr;
    };
    EXPECT_TRUE(balance_of(shape, false, shape.heads));
    EXPECT_FALSE(balance_of(shape, true, shape.heads));
    EXPECT_FALSE(balance_of(shape, false, 4)); // another number of heads
    EXPECT_FALSE(balance_of({type_q8_0, 64, 2, 512, 1}, false, 2)); // turned by the host
}

} // namespace
} // namespace alloy::test
