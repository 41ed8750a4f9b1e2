// Eviction: which cells heads drop, what is left of them, and what makes it stop.
#include "kv_scene.h"

#include <bit>
#include <numeric>

namespace alloy::test {
namespace {

constexpr int64_t run_cells = attention_packing::max_blocks * block, observers = 2 * block;
const cache_shape shape{host::type_f16, 64, 2, 2 * run_cells, 1};

kv::policy policy(double keep) { return {.lossy = true, .window = 0, .keys = kv_codec::n5, .values = kv_codec::n4, .keep = keep}; }

// Keys and values of one layer with two KV heads of two query heads each.
class KvEviction : public ::testing::Test {
  protected:
    void SetUp() override {
        fake::reset();
        fake::connect();
        evicted = std::make_unique<kv::eviction>(policy(0.75));
        keys = std::make_unique<cache_scene>(shape, policy(0.75), false, nullptr, evicted.get());
        values = std::make_unique<cache_scene>(shape, policy(0.75), true, nullptr, evicted.get());
        keys->cache->balance_by(strong_balance(shape.heads, shape.d));
        keys->cache->pair_with(*values->cache);
        live_ = value_of(counter::kv_live_bytes), saved_ = value_of(counter::kv_saved_bytes), rows_ = value_of(counter::kv_evicted_rows);
    }
    void TearDown() override {
        keys.reset(), values.reset();
        EXPECT_EQ(value_of(counter::kv_live_bytes), live_);
        EXPECT_EQ(value_of(counter::kv_saved_bytes), saved_);
    }

    void fill(int64_t cells, bool sinks = false) {
        for (cache_scene * s : {keys.get(), values.get()}) {
            s->view();
            s->set_rows(0, s->random_rows(cells, engine), sinks);
            s->cache->seal();
        }
    }
    // What the tokens after the first run saw: all but cells `hot` got next to nothing, in head 0; in head 1 each cell got its share.
    kv::attention_sample sample(const std::vector<int64_t> & hot) {
        kv::attention_sample seen;
        std::vector<int64_t> rows;
        for (int64_t c = 0; c < 2 * block; c++) rows.push_back(run_cells + c);
        seen.which = kv::eviction::observers(rows, 0);
        seen.heads = 4, seen.kv_heads = 2, seen.d_k = 64, seen.scale = 1 / log2_e;
        seen.resize();
        std::fill(seen.sees_run.begin(), seen.sees_run.end(), 1);
        // p = 2^(q.k - log_sum): queries that are the sum of the hot keys meet these.
        std::vector<float> q(64);
        for (const int64_t c : hot) {
            const std::vector<float> k = row_of_head(*keys, c, 0);
            for (int64_t i = 0; i < 64; i++) q[static_cast<size_t>(i)] += k[static_cast<size_t>(i)];
        }
        for (int64_t head = 0; head < 2; head++) {
            for (int64_t t = 0; t < seen.tokens(); t++) std::copy(q.begin(), q.end(), seen.q.begin() + (head * seen.tokens() + t) * 64);
        }
        for (int64_t i = 0; i < 4 * seen.tokens(); i++) seen.log_sum[static_cast<size_t>(i)] = i < 2 * seen.tokens() ? 100.0f : 4.0f;
        return seen;
    }
    std::vector<float> row_of_head(const cache_scene & s, int64_t cell, int64_t head) const {
        const std::vector<float> rows = s.cache->turned_rows(cell / block, head);
        return {rows.begin() + cell % block * 64, rows.begin() + (cell % block + 1) * 64};
    }
    void evict(const std::vector<int64_t> & hot) {
        kv::attention_sample seen = sample(hot);
        evict(seen);
    }
    void evict(kv::attention_sample & seen) {
        evicted->weigh(*keys->cache, *values->cache, seen);
        evicted->choose();
        evicted->evict(*keys->cache);
    }
    const attention_packing * packing(int64_t b, int64_t head, const cache_scene & s) const { return s.view().of(0, head).pages[b].packing; }
    int64_t pages_of(int64_t head, const cache_scene & s) const {
        int64_t n = 0;
        for (int64_t b = 0; b < attention_packing::max_blocks; b++) n += s.view().of(0, head).pages[b].data != nullptr;
        return n;
    }
    bool keeps(int64_t cell, int64_t head) const { return (packing(cell / block, head, *keys)->kept[cell / block] >> cell % block & 1) != 0; }
    uint64_t evicted_rows() const { return value_of(counter::kv_evicted_rows) - rows_; }

    std::unique_ptr<kv::eviction> evicted;
    std::unique_ptr<cache_scene> keys, values;
    std::mt19937_64 engine{seed()};

  private:
    uint64_t live_ = 0, saved_ = 0, rows_ = 0;
};

TEST_F(KvEviction, HeadsDropWholePagesOfWhatIsAttendedLeast) {
    fill(run_cells + 2 * block);
    std::vector<std::vector<float>> before[2];
    for (int64_t c = 0; c < run_cells; c++) before[0].push_back(row_of_head(*keys, c, 0)), before[1].push_back(row_of_head(*values, c, 0));
    const uint64_t live = value_of(counter::kv_live_bytes);
    evict({5, 200, 201, 511});
    // A quarter of both heads' pages, all from head 0, whose cells got less.
    EXPECT_EQ(pages_of(0, *keys), 4);
    EXPECT_EQ(pages_of(1, *keys), 8);
    EXPECT_EQ(pages_of(0, *values), 4);
    EXPECT_EQ(evicted_rows(), 4u * block);
    EXPECT_EQ(live - value_of(counter::kv_live_bytes), 4u * static_cast<uint64_t>(kv_codec_page_bytes(kv_codec::n5, 64) + kv_codec_page_bytes(kv_codec::n4, 64)));
    for (const int64_t hot : {5, 200, 201, 511}) {
        for (int64_t c = std::max<int64_t>(0, hot - 3); c <= std::min(run_cells - 1, hot + 3); c++) EXPECT_TRUE(keeps(c, 0)) << c; // the pool's width
    }
    // What is kept is what it was, of keys and values; in the place of the rest stands one kept row.
    std::vector<float> stand_in;
    int64_t kept = 0;
    for (int64_t c = 0; c < run_cells; c++) {
        if (keeps(c, 0)) {
            kept++;
            EXPECT_EQ(row_of_head(*keys, c, 0), before[0][static_cast<size_t>(c)]) << c;
            EXPECT_EQ(row_of_head(*values, c, 0), before[1][static_cast<size_t>(c)]) << c;
        } else if (stand_in.empty()) {
            stand_in = row_of_head(*keys, c, 0);
            EXPECT_NE(std::find(before[0].begin(), before[0].end(), stand_in), before[0].end());
        } else {
            EXPECT_EQ(row_of_head(*keys, c, 0), stand_in);
        }
    }
    EXPECT_EQ(kept, 4 * block);
}

// Queries here ask for channels that lie small in sealed pages, others hardly matter: with factors left out it would be the other way round.
TEST_F(KvEviction, CellsAreWeighedAsQueriesSeeThem) {
    fill(run_cells + 2 * block);
    const float * factors = keys->cache->balance().of(0);
    kv::attention_sample seen = sample({});
    for (int64_t i = 0; i < 2 * seen.tokens() * 64; i++) seen.q[static_cast<size_t>(i)] = factors[i % 64] < 0.7f ? 1 : 0.25f;
    std::fill_n(seen.log_sum.begin(), 2 * seen.tokens(), 40.0f);
    std::vector<std::pair<float, int64_t>> logits;
    for (int64_t c = 0; c < run_cells; c++) {
        const std::vector<float> k = row_of_head(*keys, c, 0);
        logits.emplace_back(std::inner_product(k.begin(), k.end(), seen.q.begin(), 0.0f), c);
    }
    std::sort(logits.rbegin(), logits.rend());
    evict(seen);
    ASSERT_EQ(pages_of(0, *keys), 4);
    for (int i = 0; i < 24; i++) EXPECT_TRUE(keeps(logits[static_cast<size_t>(i)].second, 0)) << i;
}

TEST_F(KvEviction, SinksStayAsRowsAndTheirBlockIsNoPartOfTheRun) {
    fill(run_cells + 2 * block, true);
    evict({100});
    EXPECT_EQ(packing(0, 0, *keys), nullptr);
    ASSERT_NE(packing(1, 0, *keys), nullptr);
    EXPECT_EQ(packing(1, 0, *keys)->first_block, 1);
    EXPECT_EQ(packing(1, 0, *keys)->num_blocks, 7);
    // 14 pages, of which 10.5 may stay.
    EXPECT_EQ(evicted_rows(), 4u * block);
}

TEST_F(KvEviction, NothingLeavesBeforeAllObserversWereSeenOrBlocksAreSealed) {
    fill(run_cells - 1);
    evict({1});
    EXPECT_EQ(evicted_rows(), 0u); // the last block is not full
    for (cache_scene * s : {keys.get(), values.get()}) {
        s->set_rows(run_cells - 1, s->random_rows(1 + 2 * block, engine));
        s->cache->seal();
    }
    evicted->expect(*keys->cache, {{attention_packing::max_blocks - 1, uint64_t{1} << 63}}); // of the run itself
    kv::attention_sample hidden = sample({1});
    hidden.sees_run[0] = 0; // a mask hides something from the first
    evicted->weigh(*keys->cache, *values->cache, hidden);
    evicted->choose();
    evicted->evict(*keys->cache);
    EXPECT_EQ(evicted_rows(), 0u);
    evicted->forget();
    evict({1});
    EXPECT_EQ(evicted_rows(), 4u * block);
    evict({1}); // once is enough
    EXPECT_EQ(evicted_rows(), 4u * block);
}

// A rejected draft, say.
TEST_F(KvEviction, NothingLeavesThatWasObservedByACellThatIsWrittenAgain) {
    fill(run_cells + 2 * block);
    kv::attention_sample half = sample({1}), rest = half;
    half.sees_run.assign(half.sees_run.size(), 0);
    for (int64_t head = 0; head < 4; head++) std::fill_n(half.sees_run.begin() + head * observers, block, 1), std::fill_n(rest.sees_run.begin() + head * observers, block, 0);
    evicted->expect(*keys->cache, {{attention_packing::max_blocks, ~uint64_t{0}}}); // nothing has been observed yet
    evicted->weigh(*keys->cache, *values->cache, half);
    evicted->expect(*keys->cache, {{attention_packing::max_blocks + 1, ~uint64_t{0}}}); // that block has not observed anything
    evicted->expect(*keys->cache, {{attention_packing::max_blocks, uint64_t{1} << 63}});
    evicted->weigh(*keys->cache, *values->cache, rest);
    evicted->choose();
    evicted->evict(*keys->cache);
    EXPECT_EQ(evicted_rows(), 0u);
    evict({1}); // all come again
    EXPECT_EQ(evicted_rows(), 4u * block);
}

TEST_F(KvEviction, TokensOfTheTwoBlocksAfterARunObserve) {
    std::vector<int64_t> rows;
    for (int64_t c = 0; c < 3 * run_cells; c++) rows.push_back(c);
    const std::vector<kv::sampled_token> found = kv::eviction::observers(rows, 0);
    ASSERT_EQ(found.size(), 2u * observers); // of runs 0 and 1; none observes run 2
    for (size_t i = 0; i < found.size(); i++) {
        const auto run = static_cast<int64_t>(i) / observers;
        EXPECT_EQ(found[i].token, (run + 1) * run_cells + static_cast<int64_t>(i) % observers);
        EXPECT_EQ(found[i].row, found[i].token);
        EXPECT_EQ(found[i].run_begin, run * run_cells);
        EXPECT_EQ(found[i].run_end, (run + 1) * run_cells);
    }
    // Not across the start of a stream.
    EXPECT_EQ(kv::eviction::observers(rows, run_cells).size(), static_cast<size_t>(observers));
}

TEST_F(KvEviction, WritesUnpackTheRunOfKeysAndValues) {
    for (const bool whole_block : {false, true}) {
        keys->cache->clear(), values->cache->clear(), evicted->forget();
        fill(run_cells + 2 * block);
        evict({1});
        ASSERT_NE(packing(0, 0, *keys), nullptr);
        const std::vector<float> kept = row_of_head(*values, 1, 0);
        const bytes_t fresh = keys->random_rows(whole_block ? block : 1, engine);
        keys->set_rows(3 * block, fresh);
        EXPECT_EQ(packing(0, 0, *keys), nullptr);
        EXPECT_EQ(packing(0, 0, *values), nullptr);
        EXPECT_EQ(std::memcmp(keys->rows_of(3), fresh.data(), fresh.size()), 0);
        for (int64_t b = 0; b < attention_packing::max_blocks; b++) EXPECT_FALSE(keys->is_sealed(b) || values->is_sealed(b)) << b;
        values->cache->seal();
        EXPECT_EQ(row_of_head(*values, 1, 0), kept);
    }
}

TEST_F(KvEviction, TrimsUnpackWhatTheyCutAndDropWhatLiesBeyond) {
    fill(run_cells + 2 * block);
    evict({1});
    for (cache_scene * s : {keys.get(), values.get()}) s->cache->trim(0, run_cells);
    EXPECT_NE(packing(0, 0, *keys), nullptr);
    for (cache_scene * s : {keys.get(), values.get()}) s->cache->trim(0, 200);
    EXPECT_EQ(packing(0, 0, *keys), nullptr);
    EXPECT_TRUE(keys->has_memory(2));
    EXPECT_FALSE(keys->has_memory(5));
    fill(run_cells + 2 * block);
    evict({1});
    ASSERT_NE(packing(0, 0, *keys), nullptr);
    for (cache_scene * s : {keys.get(), values.get()}) s->cache->trim(0, 0);
    EXPECT_EQ(packing(0, 0, *keys), nullptr);
    EXPECT_FALSE(keys->has_memory(0));
}

TEST_F(KvEviction, CopiesAndPlainCachesHaveEveryCell) {
    fill(run_cells + 2 * block);
    evict({1});
    const std::vector<float> kept = row_of_head(*keys, 1, 0);
    ASSERT_TRUE(keys->cache->copy_from(*keys->cache, 0, shape.bytes() / 2, shape.bytes() / 2));
    EXPECT_EQ(packing(attention_packing::max_blocks, 0, *keys), nullptr);
    keys->cache->seal();
    EXPECT_EQ(row_of_head(*keys, run_cells + 1, 0), kept);
    keys->cache->keep_plain("test");
    EXPECT_EQ(values->view().of(0, 0).pages[0].packing, nullptr);
}

TEST_F(KvEviction, StopsForGoodWhenRowsAreSaved) {
    fill(run_cells + 2 * block);
    evict({1});
    ASSERT_GT(evicted_rows(), 0u);
    const uint64_t rows = evicted_rows();
    const bytes_t saved = keys->read_all();
    EXPECT_FALSE(evicted->on());
    for (size_t at = 0; at + 2 <= saved.size() / 2; at += 2) { // every row is finite
        uint16_t half;
        std::memcpy(&half, saved.data() + at, 2);
        ASSERT_NE(half & 0x7C00, 0x7C00);
    }
    EXPECT_EQ(evicted_rows(), rows);
}

TEST_F(KvEviction, IsOffUnlessAskedFor) {
    EXPECT_FALSE(kv::eviction(policy(1)).on());
    kv::policy exact;
    exact.keep = 0.5;
    EXPECT_FALSE(kv::eviction(exact).on());
}

} // namespace
} // namespace alloy::test
