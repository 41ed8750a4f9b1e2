// The first and the most recent cells of each sequence, which the host does not name.
#include "kv/exact_cells.h"

#include <gtest/gtest.h>

#include <numeric>

using alloy::kv::exact_cells;

namespace {

constexpr int64_t window = 4, cells = 256;

using list = std::vector<int64_t>;

struct scene {
    exact_cells exact{window};
    explicit scene(int64_t streams = 1) { exact.cover(this, cells * streams, streams); }
    void tokens(const std::vector<int64_t> & at, const std::vector<int32_t> & positions) { exact.write(at, positions.data(), true); }
    void prompt(int64_t at, int32_t position, int64_t n) {
        std::vector<int64_t> c(static_cast<size_t>(n));
        std::vector<int32_t> p(static_cast<size_t>(n));
        std::iota(c.begin(), c.end(), at);
        std::iota(p.begin(), p.end(), position);
        exact.write(c, p.data(), true);
    }
    // The host saves cells, whose rows have these hashes, and restores such.
    void save(int64_t at, const std::vector<uint64_t> & hashes) {
        for (size_t i = 0; i < hashes.size(); i++) exact.save(at + static_cast<int64_t>(i), hashes[i]);
    }
    void restore(int64_t at, const std::vector<uint64_t> & hashes) { exact.restore(this, at, hashes); }
    void restore_others() { exact.restore("another cache", 0, {}); }
    list recent() const { return of(false); }
    list sinks() const { return of(true); }

  private:
    list of(bool sinks) const {
        list found;
        for (int64_t c = 0; c < 2 * cells; c++) {
            if (exact.has(c) && exact.has_sink(c) == sinks) found.push_back(c);
        }
        return found;
    }
};

std::vector<uint64_t> hashes(uint64_t first, size_t n) {
    std::vector<uint64_t> h(n);
    std::iota(h.begin(), h.end(), first);
    return h;
}

TEST(KvExactCells, TheFirstAndTheLastOfASequence) {
    scene s;
    s.prompt(0, 0, 10);
    EXPECT_EQ(s.sinks(), (list{0, 1, 2, 3}));
    EXPECT_EQ(s.recent(), (list{6, 7, 8, 9}));
    s.tokens({20}, {10});
    EXPECT_EQ(s.recent(), (list{7, 8, 9, 20}));
    EXPECT_TRUE(s.exact.block_has(0));
    EXPECT_TRUE(s.exact.block_has_sink(0));
    EXPECT_FALSE(s.exact.block_has(1));
    EXPECT_FALSE(s.exact.block_has(cells));
    s.prompt(64, 11, 1);
    EXPECT_TRUE(s.exact.block_has(1));
    EXPECT_FALSE(s.exact.block_has_sink(1));
    s.exact.clear();
    EXPECT_FALSE(s.exact.block_has(0));
    EXPECT_FALSE(s.exact.block_has(1));
}

TEST(KvExactCells, SequencesGoOnWhereTheyEnded) {
    scene s;
    s.prompt(0, 0, 10);
    s.prompt(10, 0, 6);
    EXPECT_EQ(s.recent(), (list{6, 7, 8, 9, 14, 15}));
    for (int32_t i = 0; i < 4; i++) s.tokens({16 + 2 * i, 17 + 2 * i}, {6 + i, 10 + i}); // the other way round
    EXPECT_EQ(s.recent(), (list{16, 17, 18, 19, 20, 21, 22, 23}));
    s.prompt(30, 14, 9); // one rests
    EXPECT_EQ(s.recent(), (list{16, 18, 20, 22, 35, 36, 37, 38}));
}

TEST(KvExactCells, BothOfTwoAtTheSamePosition) {
    scene s;
    s.prompt(0, 0, 10);
    for (int32_t i = 0; i < 4; i++) s.tokens({20 + i, 30 + i}, {10 + i, 10 + i}); // a copy of the first
    EXPECT_EQ(s.recent(), (list{20, 21, 22, 23, 30, 31, 32, 33}));
}

TEST(KvExactCells, TokensAreTakenBack) {
    scene s;
    s.prompt(0, 0, 10);
    s.prompt(10, 8, 1); // a draft's last two were wrong
    EXPECT_EQ(s.recent(), (list{6, 7, 10}));
}

TEST(KvExactCells, TokensAreTakenBackFromTheSequenceThatEndsNearest) {
    scene s;
    s.prompt(0, 0, 10);
    s.prompt(10, 0, 12); // of both the token at position 8 is recent
    s.prompt(30, 8, 1);
    EXPECT_EQ(s.recent(), (list{6, 7, 18, 19, 20, 21, 30}));
    s.prompt(40, 0, 9); // as long as the first is now: the newer one
    s.prompt(50, 7, 1);
    EXPECT_EQ(s.recent(), (list{6, 7, 18, 19, 20, 21, 30, 45, 46, 50}));
}

TEST(KvExactCells, CellsThatOthersTake) {
    scene s;
    s.prompt(0, 0, 10);
    s.prompt(5, 0, 3); // over what the first left
    EXPECT_EQ(s.sinks(), (list{0, 1, 2, 3, 5, 6, 7}));
    EXPECT_EQ(s.recent(), (list{8, 9}));
    s.prompt(0, 10, 4);
    EXPECT_EQ(s.sinks(), (list{5, 6, 7}));
    EXPECT_EQ(s.recent(), (list{0, 1, 2, 3}));
    s.exact.forget_from(0, 6);
    EXPECT_EQ(s.sinks(), list{5});
    s.exact.forget_from(0, 2);
    EXPECT_EQ(s.sinks(), list{});
    EXPECT_EQ(s.recent(), (list{0, 1}));
}

TEST(KvExactCells, ThoseThatRestedLongestAreForgotten) {
    scene s;
    for (int32_t i = 0; i < 40; i++) s.prompt(6 * i, 0, 6);
    ASSERT_EQ(s.recent().size(), 2u * cells / 8 / window);
    EXPECT_EQ(s.recent().front(), 240 - 6 * cells / 8 / window + 4);
    EXPECT_EQ(s.sinks().size(), 160u);
}

// A server saves a slot that rests, and clears it.
TEST(KvExactCells, ThoseThatWereSavedAreForgottenFirst) {
    scene s;
    for (int32_t i = 0; i < cells / 8 / window; i++) s.prompt(6 * i, 0, 6);
    s.save(22, {1, 2});
    s.prompt(100, 0, 6);
    EXPECT_FALSE(s.exact.has(22));
    EXPECT_TRUE(s.exact.has(4));
    s.prompt(110, 0, 6);
    EXPECT_FALSE(s.exact.has(4));
}

TEST(KvExactCells, WithoutPositionsThereIsOneSequence) {
    scene s;
    s.exact.write({1, 2, 3, 4, 5}, nullptr, true);
    EXPECT_EQ(s.sinks(), (list{1, 2, 3}));
    s.exact.write({10, 11}, nullptr, true);
    EXPECT_EQ(s.recent(), (list{4, 5, 10, 11}));
}

TEST(KvExactCells, PositionsOfImagesTellOfNoSequence) {
    scene s;
    const int32_t positions[] = {0, 7, 7, 7, 7, 9};
    s.exact.write({10, 11, 12, 13, 14, 15}, positions, false);
    EXPECT_EQ(s.sinks(), list{10});
    EXPECT_EQ(s.recent(), (list{12, 13, 14, 15}));
}

// Of states that this process did not save: in the order of their rows.
TEST(KvExactCells, RestoredSequencesGoOnWithTheNextTokens) {
    scene s;
    s.prompt(0, 0, 10);
    s.restore(40, hashes(100, 10));
    s.restore(60, hashes(200, 2));
    s.restore_others();
    EXPECT_EQ(s.sinks(), (list{0, 1, 2, 3, 40, 41, 42, 43}));
    EXPECT_EQ(s.recent(), (list{6, 7, 8, 9, 48, 49, 60, 61}));
    s.restore(100, hashes(300, 5)); // another sequence, as other caches were written
    EXPECT_EQ(s.recent(), (list{6, 7, 8, 9, 48, 49, 60, 61, 104}));
    s.tokens({70, 71}, {10, 25});
    EXPECT_EQ(s.recent(), (list{7, 8, 9, 48, 49, 60, 61, 70, 71, 104}));
    s.restore(120, hashes(300, 5)); // and another, as a graph was run
    EXPECT_EQ(s.recent(), (list{7, 8, 9, 48, 49, 60, 61, 70, 71, 104, 124}));
}

// A sequence that came around the end of the cache, whose first cells hold its last tokens.
TEST(KvExactCells, RestoredRowsAreKnownWhateverTheirOrder) {
    scene s;
    s.prompt(240, 0, 16);
    s.prompt(0, 16, 2);
    EXPECT_EQ(s.recent(), (list{0, 1, 254, 255}));
    s.save(0, hashes(116, 2));
    s.save(240, hashes(100, 16));
    s.exact.clear();
    std::vector<uint64_t> rows = hashes(116, 2);
    for (const uint64_t h : hashes(100, 16)) rows.push_back(h);
    for (size_t i = 0; i < rows.size(); i++) s.restore(20 + static_cast<int64_t>(i), {rows[i]}); // row by row
    EXPECT_EQ(s.sinks(), (list{22, 23, 24, 25}));
    EXPECT_EQ(s.recent(), (list{20, 21, 36, 37}));
    s.tokens({50}, {18}); // 36, 37, 20, 21 was their order
    EXPECT_EQ(s.recent(), (list{20, 21, 37, 50}));
}

TEST(KvExactCells, GuessesEndWithTheFirstRowThatIsKnown) {
    scene s;
    s.prompt(0, 0, 10);
    s.save(0, hashes(100, 10));
    s.exact.clear();
    s.restore(32, hashes(50, 7));   // of a longer sequence: what was sealed has other bytes
    s.restore(40, hashes(100, 10));
    s.restore(50, hashes(60, 7));
    EXPECT_EQ(s.sinks(), (list{40, 41, 42, 43}));
    EXPECT_EQ(s.recent(), (list{46, 47, 48, 49}));
}

TEST(KvExactCells, StreamsHaveTheirOwn) {
    scene s(2);
    s.prompt(0, 0, 10);
    s.prompt(cells, 0, 10);
    s.prompt(cells + 10, 10, 1);
    EXPECT_EQ(s.recent(), (list{6, 7, 8, 9, cells + 7, cells + 8, cells + 9, cells + 10}));
    s.exact.copy(s.exact, cells, 0, cells);
    EXPECT_EQ(s.recent(), (list{6, 7, 8, 9, 10, cells + 7, cells + 8, cells + 9, cells + 10}));
    s.exact.forget_from(1, 0);
    EXPECT_EQ(s.recent(), (list{6, 7, 8, 9, 10}));
    EXPECT_EQ(s.sinks(), (list{0, 1, 2, 3}));
}

TEST(KvExactCells, ACopyMayTakeThePlaceOfItsSource) {
    scene s(2);
    s.prompt(0, 0, 10);
    for (int32_t i = 1; i < 2 * cells / 8 / window; i++) s.prompt(10 + 6 * i, 0, 6);
    s.exact.copy(s.exact, 0, cells, 10);
    EXPECT_FALSE(s.exact.has(9));
    s.tokens({cells + 20}, {10});
    for (const int64_t c : {7, 8, 9, 20}) EXPECT_TRUE(s.exact.has(cells + c)) << c;
    EXPECT_FALSE(s.exact.has(cells + 6));
}

TEST(KvExactCells, NoWindowAndNoCacheHoldNothing) {
    exact_cells no_window(0), no_cache(4);
    no_window.cover(&no_window, 64, 1);
    for (exact_cells * e : {&no_window, &no_cache}) {
        e->write({1, 2, 30, 1000, -1}, nullptr, true);
        e->save(30, 1);
        e->restore(e, 20, hashes(0, 100));
        e->copy(*e, 20, 30, 10);
        EXPECT_FALSE(e->has(34));
        e->forget_from(0, 0);
        EXPECT_FALSE(e->block_has(0)); // nor its sinks
    }
}

} // namespace
